//! The two formats of PyTorch's checkpoints: a zip archive (from 1.6 on), and the older one behind a magic number.

use super::layout::{self, MOST_ENTRIES};
use super::pickle::{
    Element, Limits, Object, Pickle, PickleError, Storage, Tensor, Value, elements, short,
};
use crate::sniff;
use bb_core::artifact::LARGEST_FILE;
use bb_core::cli::{Coded, exit};
use bb_core::files::{self, Links};
use fs_err::File;
use half::{bf16, f16};
use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use zip::ZipArchive;

/// Largest pickle, in bytes: tensors lie beside it.
const LARGEST_PICKLE: u64 = 64 << 20;

/// Why a checkpoint was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    /// The file cannot be read; the cause names it.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// It is no checkpoint.
    #[error("`{}` is no PyTorch checkpoint: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
        /// What to do about it.
        hint: Option<&'static str>,
    },
    /// Its pickle is refused.
    #[error("`{}` is refused: {source}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: PickleError,
    },
    /// A record whose poisoned sets are tensors, not pictures.
    #[error("`{}` is a record of BackdoorBench 1, which is not read", path.display())]
    Old {
        /// The file.
        path: PathBuf,
    },
    /// It is a checkpoint with something else in it than expected.
    #[error("`{}`{} is {found}, expected {expected}", path.display(), within(field))]
    Field {
        /// The file.
        path: PathBuf,
        /// Dotted path from the top, empty for the whole.
        field: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl Coded for TorchError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Read(error) => error.exit_code(),
            _ => exit::INPUT,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Format { hint, .. } => hint.map(str::to_owned),
            Self::Pickle { source, .. } => source.hint.map(str::to_owned),
            Self::Old { .. } => Some("`--key model` reads its network alone".to_owned()),
            _ => None,
        }
    }
}

fn within(field: &str) -> String {
    if field.is_empty() {
        String::new()
    } else {
        format!(": `{field}`")
    }
}

/// The elements of a tensor, last axis fastest.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// Floating point, whatever its width was.
    Float(Vec<f32>),
    /// Whole numbers and truth values.
    Int(Vec<i64>),
}

/// A checkpoint file: inert values, and the storages beside them.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    pickle: Pickle,
    source: RefCell<Source>,
    /// Bytes of elements that may still be made.
    left: Cell<u64>,
    /// Storages of which several tensors may be views, each read once.
    shared: RefCell<HashMap<Rc<str>, Rc<[u8]>>>,
    /// Bytes of such storages that may still be kept.
    room: Cell<u64>,
}

/// Where storages lie.
#[derive(Debug)]
enum Source {
    Zip {
        archive: Box<ZipArchive<File>>,
        root: String,
    },
    Legacy {
        file: File,
        /// Place and bytes of each.
        storages: HashMap<String, (u64, u64)>,
    },
}

impl Checkpoint {
    /// Reads the pickle of a checkpoint; tensors are read when they are asked for.
    pub fn open(path: &Path) -> Result<Self, TorchError> {
        let format = |reason: String| TorchError::Format {
            path: path.to_owned(),
            reason,
            hint: None,
        };
        let mut file = files::open(path, Links::Follow)?;
        let len = file.metadata()?.len();
        if len > LARGEST_FILE {
            return Err(format(format!(
                "it has {len} bytes, expected at most {LARGEST_FILE}"
            )));
        }
        let mut head = [0; sniff::HEAD];
        let found = sniff::read_up_to(&mut file, &mut head)?;
        let head = &head[..found];
        let (pickle, source) = if head.starts_with(b"PK\x03\x04") {
            open_zip(path, file, len)?
        } else if is_legacy(head) {
            open_legacy(path, file, len)?
        } else {
            let other = match head {
                [0x80, 0..=5, ..] => {
                    "it is neither a zip archive nor PyTorch's older format, but a pickle by itself"
                }
                [0x1f, 0x8b, ..] => "it is compressed with gzip; unpack it first",
                [0x89, b'H', b'D', b'F', ..] => "it is an HDF5 file",
                [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => "it is a NumPy array",
                _ => "it is neither a zip archive nor PyTorch's older format",
            };
            return Err(format(sniff::instead(head).unwrap_or(other).to_owned()));
        };
        Ok(Self {
            path: path.to_owned(),
            pickle,
            source: RefCell::new(source),
            // Nothing is shared between tensors but views of one storage.
            left: Cell::new(2 * len),
            shared: RefCell::default(),
            room: Cell::new(len),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its values.
    pub fn pickle(&self) -> &Pickle {
        &self.pickle
    }

    /// An error about a value at `field`.
    pub fn wrong(&self, field: &str, value: &Value, expected: &'static str) -> TorchError {
        TorchError::Field {
            path: self.path.clone(),
            field: field.to_owned(),
            found: self.pickle.kind(value).to_owned(),
            expected,
        }
    }

    fn format(&self, reason: String) -> TorchError {
        TorchError::Format {
            path: self.path.clone(),
            reason,
            hint: None,
        }
    }

    /// Sizes and elements of the tensor at `field`.
    pub fn tensor(
        &self,
        field: &str,
        value: &Value,
    ) -> Result<(Vec<usize>, TensorData), TorchError> {
        let Some(Object::Tensor(tensor)) = self.pickle.object(value) else {
            return Err(self.wrong(field, value, "a tensor"));
        };
        let storage = &*tensor.storage;
        let bytes = |n: usize| n.checked_mul(storage.element.bytes());
        // Each is charged what it has, which is more than its storage has where elements are repeated.
        let own = elements(&tensor.shape).and_then(bytes);
        let left = own.and_then(|own| self.left.get().checked_sub(own as u64));
        let (Some(own), Some(whole), Some(left)) = (own, bytes(storage.len), left) else {
            return Err(self.format(format!(
                "the tensors up to `{field}` have more elements than the file has room for, even if each were there twice"
            )));
        };
        self.left.set(left);
        let data = if own < whole {
            gather(tensor, &self.shared(field, storage, whole)?)
        } else {
            gather(tensor, &self.storage(field, storage)?)
        };
        match data {
            Ok(data) => Ok((tensor.shape.clone(), data)),
            Err(Wide {
                index,
                value,
                expected,
            }) => Err(TorchError::Field {
                path: self.path.clone(),
                field: field.to_owned(),
                found: format!("{value} at flat index {index}"),
                expected,
            }),
        }
    }

    /// The bytes of a storage of which a tensor is a part, so that it is read once for all its parts.
    fn shared(&self, field: &str, storage: &Storage, len: usize) -> Result<Rc<[u8]>, TorchError> {
        let kept = self.shared.borrow().get(&storage.key).cloned();
        if let Some(kept) = kept.filter(|kept| kept.len() == len) {
            return Ok(kept);
        }
        // Files of an archive can lie at one place, and claim more together than it has.
        let Some(room) = self.room.get().checked_sub(len as u64) else {
            return Err(self.format(format!(
                "the storages up to that of `{field}` have more bytes than the file"
            )));
        };
        self.room.set(room);
        let bytes: Rc<[u8]> = self.storage(field, storage)?.into();
        self.shared
            .borrow_mut()
            .insert(Rc::clone(&storage.key), Rc::clone(&bytes));
        Ok(bytes)
    }

    /// The bytes of a storage.
    fn storage(&self, field: &str, storage: &Storage) -> Result<Vec<u8>, TorchError> {
        let len = storage.len * storage.element.bytes();
        let missing = |reason: String| self.format(format!("data of `{field}`: {reason}"));
        match &mut *self.source.borrow_mut() {
            Source::Zip { archive, root } => {
                let name = format!("{root}/data/{}", storage.key);
                let mut entry = archive
                    .by_name(&name)
                    .map_err(|e| missing(format!("`{}`: {e}", short(&name))))?;
                if entry.size() != len as u64 {
                    let found = entry.size();
                    return Err(missing(format!("{found} bytes, expected {len}")));
                }
                let mut bytes = Vec::new();
                // To the very end, where the checksum is compared.
                entry
                    .read_to_end(&mut bytes)
                    .map_err(|e| missing(e.to_string()))?;
                Ok(bytes)
            }
            Source::Legacy { file, storages } => {
                let (at, found) = *storages
                    .get(&*storage.key)
                    .ok_or_else(|| missing("no such storage".to_owned()))?;
                if found != len as u64 {
                    return Err(missing(format!("{found} bytes, expected {len}")));
                }
                file.seek(SeekFrom::Start(at))?;
                let mut bytes = vec![0; len];
                file.read_exact(&mut bytes)?;
                Ok(bytes)
            }
        }
    }
}

fn open_zip(path: &Path, mut file: File, len: u64) -> Result<(Pickle, Source), TorchError> {
    let format = |reason: String| TorchError::Format {
        path: path.to_owned(),
        reason,
        hint: None,
    };
    let entries = layout::check(&mut file, len).map_err(|fault| match fault {
        layout::Fault::Read(error) => error.into(),
        layout::Fault::Layout(reason) => format(reason),
        layout::Fault::Crowd(entries) => TorchError::Format {
            path: path.to_owned(),
            reason: format!("{entries} files in the archive, expected at most {MOST_ENTRIES}"),
            hint: Some("if a folder was packed into it, unpack it first"),
        },
    })?;
    let mut archive = ZipArchive::new(file).map_err(|e| format(e.to_string()))?;
    if archive.has_duplicate_names() || archive.len() as u64 != entries {
        return Err(format("two files of the archive have one name".to_owned()));
    }
    let names = archive.file_names().collect::<Result<Vec<_>, _>>();
    let names = names.map_err(|e| format(e.to_string()))?;
    if let Some((reason, hint)) = other_archive(&names) {
        return Err(TorchError::Format {
            path: path.to_owned(),
            reason,
            hint: Some(hint),
        });
    }
    drop(names);
    let mut root = None;
    for i in 0..archive.len() {
        let entry = archive.by_index_raw(i).map_err(|e| format(e.to_string()))?;
        let name = entry
            .name()
            .map_err(|e| format(e.to_string()))?
            .into_owned();
        if let Some(folder) = name.strip_suffix("/data.pkl")
            && root.replace((folder.to_owned(), i, entry.size())).is_some()
        {
            return Err(format("it holds two `data.pkl`".to_owned()));
        }
    }
    let (root, i, size) = root.ok_or_else(|| format("it holds no `data.pkl`".to_owned()))?;
    if size > LARGEST_PICKLE {
        return Err(format(format!(
            "its pickle has {size} bytes, expected at most {LARGEST_PICKLE}"
        )));
    }
    if let Ok(mut order) = archive.by_name(&format!("{root}/byteorder")) {
        let mut word = String::new();
        let read = order.by_ref().take(16).read_to_string(&mut word);
        read.map_err(|e| format(format!("byte order: {e}")))?;
        if word != "little" {
            return Err(format(format!(
                "its byte order is `{}`, expected `little`",
                word.escape_debug()
            )));
        }
    }
    let mut bytes = Vec::new();
    let mut entry = archive.by_index(i).map_err(|e| format(e.to_string()))?;
    let read = entry.read_to_end(&mut bytes);
    read.map_err(|e| format(format!("`data.pkl`: {e}")))?;
    drop(entry);
    let pickle = read_pickle(path, &bytes, Limits::default())?;
    if pickle.end != bytes.len() {
        return Err(format("something follows its pickle".to_owned()));
    }
    let archive = Box::new(archive);
    Ok((pickle, Source::Zip { archive, root }))
}

/// What else an archive is by the names in it, and what to do with it.
fn other_archive(names: &[Cow<'_, str>]) -> Option<(String, &'static str)> {
    let find = |is: &dyn Fn(&str) -> bool| names.iter().find(|name| is(name));
    let last = |name: &str| name.rsplit('/').next().map(str::to_owned);
    let is_code = |name: &str| name.ends_with("/constants.pkl") || name.contains("/code/__torch__");
    if find(&is_code).is_some() {
        return Some((
            "it is a TorchScript archive".to_owned(),
            "load it with `torch.jit.load` and have `model.state_dict()` saved instead",
        ));
    }
    if find(&|name| last(name).as_deref() == Some("data.pkl")).is_some() {
        return None;
    }
    let ends = |name: &str, ends: &[&str]| {
        let (_, end) = name.rsplit_once('.').unwrap_or_default();
        ends.contains(&end.to_ascii_lowercase().as_str())
    };
    let is_model = |name: &str| ends(name, &["pt", "pth", "ckpt", "safetensors", "bin"]);
    let is_record = |name: &str| last(name).as_deref() == Some("attack_result.pt");
    if let Some(name) = find(&is_record).or_else(|| find(&is_model)) {
        let name = short(name);
        return Some((
            format!("it is an archive with `{name}` in it"),
            "unpack it first",
        ));
    }
    find(&|name| ends(name, &["npy"])).map(|_| {
        (
            "it is an archive of NumPy arrays".to_owned(),
            "have the tensors saved with `torch.save`",
        )
    })
}

fn read_pickle(path: &Path, bytes: &[u8], limits: Limits) -> Result<Pickle, TorchError> {
    Pickle::read(bytes, limits).map_err(|source| TorchError::Pickle {
        path: path.to_owned(),
        source,
    })
}

/// Whether a file begins with a number of ten bytes, as PyTorch's older format does, behind its protocol and a frame.
fn is_legacy(head: &[u8]) -> bool {
    let begins = head.get(2..16.min(head.len())).unwrap_or_default();
    head.first() == Some(&0x80) && begins.windows(2).any(|pair| pair == [0x8a, 0x0a])
}

/// `0x1950a86a20f9469cfc6c`, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// Limits of the pickles beside the object: a number, or a dozen facts of the system.
const FACTS: Limits = Limits {
    values: 1000,
    bytes: 1 << 16,
};
/// Limits of the names of the storages, each of which is one value, and one more where it is remembered.
const NAMES: Limits = Limits {
    values: 4 * MOST_ENTRIES as usize,
    bytes: 4 << 20,
};

/// Magic number, version, facts of the system, the object, the names of its storages (five pickles), then the storages,
/// each behind its element count.
fn open_legacy(path: &Path, mut file: File, len: u64) -> Result<(Pickle, Source), TorchError> {
    let format = |reason: &str| TorchError::Format {
        path: path.to_owned(),
        reason: reason.to_owned(),
        hint: None,
    };
    file.seek(SeekFrom::Start(0))?;
    // The pickles lie in front of the data, whose size is not known yet.
    let mut bytes = Vec::new();
    file.by_ref().take(LARGEST_PICKLE).read_to_end(&mut bytes)?;
    let mut at = 0;
    let mut next = |limits| -> Result<Pickle, TorchError> {
        let pickle = read_pickle(path, &bytes[at..], limits).map_err(|error| match error {
            TorchError::Pickle { path, mut source } => {
                source.offset += at;
                TorchError::Pickle { path, source }
            }
            other => other,
        })?;
        at += pickle.end;
        Ok(pickle)
    };
    if next(FACTS)?.root != Value::Bytes(MAGIC.into()) {
        return Err(format("its magic number is wrong"));
    }
    if next(FACTS)?.root != Value::Int(1001) {
        return Err(format("its version is not 1001"));
    }
    let system = next(FACTS)?;
    let little = system.dict(&system.root).is_some_and(|entries| {
        entries.contains(&(Value::Text("little_endian".into()), Value::Bool(true)))
    });
    if !little {
        return Err(format("it is not said to be little-endian"));
    }
    let pickle = next(Limits::default())?;
    let names = next(NAMES)?;
    let mut at = at as u64;
    let mut sizes = HashMap::new();
    for object in pickle.storages() {
        sizes.insert(object.key.to_string(), object.element.bytes() as u64);
    }
    let mut storages = HashMap::new();
    for name in names.sequence(&names.root).unwrap_or_default() {
        let Value::Text(name) = name else {
            return Err(format("a storage has no name"));
        };
        let size = sizes
            .get(&**name)
            .ok_or_else(|| format("a storage is listed that nothing uses"))?;
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut count)
            .map_err(|_| format("it is cut off between storages"))?;
        at += 8;
        let count = u64::from_le_bytes(count);
        let end = count.checked_mul(*size).and_then(|n| n.checked_add(at));
        let Some(end) = end.filter(|end| *end <= len) else {
            return Err(format("it is cut off inside of a storage"));
        };
        let twice = storages.insert(name.to_string(), (at, end - at));
        if twice.is_some() {
            return Err(format("a storage is listed twice"));
        }
        at = end;
    }
    if at != len {
        return Err(format("something follows its storages"));
    }
    Ok((pickle, Source::Legacy { file, storages }))
}

/// An element that the type it becomes cannot hold.
pub(crate) struct Wide {
    /// Where it is, last axis fastest.
    pub(crate) index: usize,
    /// What it is.
    pub(crate) value: String,
    /// What it should be.
    pub(crate) expected: &'static str,
}

/// The elements of a tensor from the bytes of its storage.
fn gather(tensor: &Tensor, bytes: &[u8]) -> Result<TensorData, Wide> {
    let mut data = decode(tensor.storage.element, &in_order(tensor, bytes))?;
    if tensor.negated {
        match &mut data {
            TensorData::Float(values) => values.iter_mut().for_each(|v| *v = -*v),
            TensorData::Int(values) => values.iter_mut().for_each(|v| *v = v.wrapping_neg()),
        }
    }
    Ok(data)
}

/// Little-endian elements as the two types that tensors have here.
pub(crate) fn decode(element: Element, bytes: &[u8]) -> Result<TensorData, Wide> {
    fn all<const N: usize, T>(bytes: &[u8], f: impl Fn([u8; N]) -> T) -> Vec<T> {
        let (cells, rest) = bytes.as_chunks::<N>();
        assert!(rest.is_empty(), "whole elements");
        cells.iter().map(|cell| f(*cell)).collect()
    }
    Ok(match element {
        Element::F64 => {
            let narrow = all(bytes, |c| f64::from_le_bytes(c) as f32);
            let (wide, _) = bytes.as_chunks::<8>();
            let is_lost =
                |i: &usize| narrow[*i].is_infinite() && f64::from_le_bytes(wide[*i]).is_finite();
            if let Some(index) = (0..narrow.len()).find(is_lost) {
                return Err(Wide {
                    index,
                    value: format!("{:e}", f64::from_le_bytes(wide[index])),
                    expected: "a number that 32 bits hold",
                });
            }
            TensorData::Float(narrow)
        }
        Element::F32 => TensorData::Float(all(bytes, f32::from_le_bytes)),
        Element::F16 => TensorData::Float(all(bytes, |c| f16::from_le_bytes(c).to_f32())),
        Element::Bf16 => TensorData::Float(all(bytes, |c| bf16::from_le_bytes(c).to_f32())),
        Element::I64 => TensorData::Int(all(bytes, i64::from_le_bytes)),
        Element::I32 => TensorData::Int(all(bytes, |c| i32::from_le_bytes(c).into())),
        Element::I16 => TensorData::Int(all(bytes, |c| i16::from_le_bytes(c).into())),
        Element::I8 => TensorData::Int(all(bytes, |c| i8::from_le_bytes(c).into())),
        Element::U64 => {
            let values = all(bytes, i64::from_le_bytes);
            if let Some(index) = values.iter().position(|v| *v < 0) {
                return Err(Wide {
                    index,
                    value: values[index].cast_unsigned().to_string(),
                    expected: "a whole number below 2^63",
                });
            }
            TensorData::Int(values)
        }
        Element::U32 => TensorData::Int(all(bytes, |c| u32::from_le_bytes(c).into())),
        Element::U16 => TensorData::Int(all(bytes, |c| u16::from_le_bytes(c).into())),
        Element::U8 | Element::Bool => TensorData::Int(all(bytes, |[c]| c.into())),
    })
}

/// The bytes of a tensor's elements, last axis fastest; a copy only where its storage has another order.
fn in_order<'a>(tensor: &Tensor, bytes: &'a [u8]) -> Cow<'a, [u8]> {
    let size = tensor.storage.element.bytes();
    let Tensor {
        offset,
        shape,
        stride,
        ..
    } = tensor;
    let count = elements(shape).unwrap_or(0);
    if count == 0 {
        return Cow::Borrowed(&[]);
    }
    let mut dense = 1;
    let is_dense = shape.iter().zip(stride).rev().all(|(n, step)| {
        let here = *n == 1 || *step == dense;
        dense *= n;
        here
    });
    if is_dense {
        return Cow::Borrowed(&bytes[offset * size..(offset + count) * size]);
    }
    let mut out = Vec::with_capacity(count * size);
    let mut place = vec![0; shape.len()];
    for _ in 0..count {
        let at = offset + place.iter().zip(stride).map(|(i, s)| i * s).sum::<usize>();
        out.extend_from_slice(&bytes[at * size..(at + 1) * size]);
        for (i, n) in place.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < *n {
                break;
            }
            *i = 0;
        }
    }
    Cow::Owned(out)
}
