//! Writes PyTorch's zip format: inert values as a pickle, and the elements of tensors beside it.
//!
//! What is written is what PyTorch and NumPy write themselves (protocol 2, classes by the names that old and new
//! versions know), so their loaders read it, and so does [`super::Checkpoint`].
//! Equal values give equal bytes: no times, no random names.

use super::attack::NamedTensor;
use super::file::TensorData;
use super::pickle::elements;
use std::collections::HashMap;
use std::io::{self, Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// A value that can be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Item {
    /// `None`
    None,
    /// `True` or `False`
    Bool(bool),
    /// `int`
    Int(i64),
    /// `str`
    Text(String),
    /// `list`
    List(Vec<Item>),
    /// `tuple`
    Tuple(Vec<Item>),
    /// `dict`, in this order
    Dict(Vec<(Item, Item)>),
    /// An `OrderedDict` of tensors by name: a state dictionary. Each tensor gets a storage of its own on the CPU.
    State(Vec<NamedTensor>),
    /// A NumPy vector of `int64`.
    Integers(Vec<i64>),
    /// A NumPy vector of `float64`.
    Floats(Vec<f64>),
}

impl Item {
    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A count or a size.
    ///
    /// # Panics
    /// If it is over 2^63, which nothing in memory has.
    pub fn size(n: usize) -> Self {
        Self::Int(i64::try_from(n).expect("nothing has 2^63 parts"))
    }

    /// A dictionary with texts as keys.
    pub fn dict<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self::Dict(entries.map(|(key, value)| (Self::text(key), value)).into())
    }
}

/// Where the elements of a tensor begin in the file: a multiple of this, as in PyTorch's own, so that they can be mapped.
const ALIGNMENT: u16 = 64;

/// Writes an archive with `item` as its object; `root` is the folder inside of it, PyTorch takes the file's stem.
///
/// # Errors
/// What the writer says. [`io::ErrorKind::InvalidInput`] for what the format does not hold: a tensor whose sizes are
/// not those of its elements, a text of over 4 GiB, a `root` that is no plain name.
pub fn archive(mut out: impl Write, root: &str, item: &Item) -> io::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if root.is_empty() || !root.chars().all(plain) {
        return Err(invalid(&format!("`{root}` as folder of an archive")));
    }
    let mut pickler = Pickler::default();
    pickler.op(&[0x80, 2]);
    pickler.write(item)?;
    pickler.op(b".");

    // Made in memory: a `ZipWriter` that is dropped after a failed write tries to end the file, and panics.
    let mut archive = Archive {
        zip: ZipWriter::new(Cursor::new(Vec::new())),
        root,
    };
    archive.add("data.pkl", &pickler.bytes)?;
    archive.add("byteorder", b"little")?;
    for (key, data) in pickler.storages.iter().enumerate() {
        let bytes: Vec<u8> = match data {
            TensorData::Float(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            TensorData::Int(values) => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        archive.add(&format!("data/{key}"), &bytes)?;
    }
    archive.add("version", b"3\n")?;
    out.write_all(archive.zip.finish()?.get_ref())?;
    out.flush()
}

struct Archive<'a> {
    zip: ZipWriter<Cursor<Vec<u8>>>,
    root: &'a str,
}

impl Archive<'_> {
    /// Adds a file, uncompressed.
    fn add(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default())
            .large_file(u32::try_from(content.len()).is_err())
            .with_alignment(ALIGNMENT);
        self.zip
            .start_file(format!("{}/{name}", self.root), options)?;
        self.zip.write_all(content)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{what} cannot be written"),
    )
}

/// Longest text that is remembered to be referred to later; the paths of pictures come once each.
const REMEMBERED: usize = 24;

#[derive(Default)]
struct Pickler<'a> {
    bytes: Vec<u8>,
    /// Where texts and classes are kept, by their opcodes.
    memo: HashMap<Vec<u8>, u32>,
    storages: Vec<&'a TensorData>,
}

impl<'a> Pickler<'a> {
    fn op(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes opcodes that make a value, or a reference to it if it was written before.
    fn once(&mut self, opcodes: Vec<u8>) {
        if let Some(&place) = self.memo.get(&opcodes) {
            return self.place(b'h', b'j', place);
        }
        self.op(&opcodes);
        let place = u32::try_from(self.memo.len()).expect("as many texts do not fit into memory");
        self.place(b'q', b'r', place);
        self.memo.insert(opcodes, place);
    }

    /// An opcode about a place of the memo: `near` takes one byte, `far` four.
    fn place(&mut self, near: u8, far: u8, place: u32) {
        if let Ok(place) = u8::try_from(place) {
            self.op(&[near, place]);
        } else {
            self.op(&[far]);
            self.op(&place.to_le_bytes());
        }
    }

    fn global(&mut self, module: &str, name: &str) {
        self.once(format!("c{module}\n{name}\n").into_bytes());
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        let len = u32::try_from(text.len())
            .map_err(|_| invalid(&format!("a text of {} bytes", text.len())))?;
        let opcodes = [b"X".as_slice(), &len.to_le_bytes(), text.as_bytes()].concat();
        if text.len() <= REMEMBERED {
            self.once(opcodes);
        } else {
            self.op(&opcodes);
        }
        Ok(())
    }

    fn int(&mut self, n: i64) {
        if let Ok(n) = u8::try_from(n) {
            self.op(&[b'K', n]);
        } else if let Ok(n) = u16::try_from(n) {
            self.op(b"M");
            self.op(&n.to_le_bytes());
        } else if let Ok(n) = i32::try_from(n) {
            self.op(b"J");
            self.op(&n.to_le_bytes());
        } else {
            self.op(&[0x8a, 8]);
            self.op(&n.to_le_bytes());
        }
    }

    fn size(&mut self, n: usize) {
        self.int(i64::try_from(n).expect("no size is as large"));
    }

    fn sizes(&mut self, sizes: &[usize]) {
        if sizes.is_empty() {
            return self.op(b")");
        }
        self.op(b"(");
        for n in sizes {
            self.size(*n);
        }
        self.op(b"t");
    }

    fn write(&mut self, item: &'a Item) -> io::Result<()> {
        match item {
            Item::None => self.op(b"N"),
            Item::Bool(value) => self.op(&[if *value { 0x88 } else { 0x89 }]),
            Item::Int(n) => self.int(*n),
            Item::Text(text) => self.text(text)?,
            Item::List(items) => {
                self.op(b"](");
                for item in items {
                    self.write(item)?;
                }
                self.op(b"e");
            }
            Item::Tuple(items) => {
                self.op(b"(");
                for item in items {
                    self.write(item)?;
                }
                self.op(b"t");
            }
            Item::Dict(entries) => {
                self.op(b"}(");
                for (key, value) in entries {
                    self.write(key)?;
                    self.write(value)?;
                }
                self.op(b"u");
            }
            Item::State(tensors) => {
                self.ordered_dict();
                self.op(b"(");
                for tensor in tensors {
                    self.text(&tensor.name)?;
                    self.tensor(tensor)?;
                }
                self.op(b"u");
            }
            Item::Integers(values) => {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes());
                self.vector("i8", values.len(), bytes)?;
            }
            Item::Floats(values) => {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes());
                self.vector("f8", values.len(), bytes)?;
            }
        }
        Ok(())
    }

    fn ordered_dict(&mut self) {
        self.global("collections", "OrderedDict");
        self.op(b")R");
    }

    fn tensor(&mut self, tensor: &'a NamedTensor) -> io::Result<()> {
        let NamedTensor { name, shape, data } = tensor;
        let (class, len) = match data {
            TensorData::Float(values) => ("FloatStorage", values.len()),
            TensorData::Int(values) => ("LongStorage", values.len()),
        };
        if elements(shape) != Some(len) {
            let what = format!("tensor `{name}` of shape {shape:?} with {len} elements");
            return Err(invalid(&what));
        }
        self.global("torch._utils", "_rebuild_tensor_v2");
        self.op(b"((");
        self.text("storage")?;
        self.global("torch", class);
        self.text(&self.storages.len().to_string())?;
        self.text("cpu")?;
        self.size(len);
        self.op(b"tQ");
        self.storages.push(data);
        self.size(0);
        self.sizes(shape);
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis].max(1);
        }
        self.sizes(&strides);
        self.op(&[0x89]);
        self.ordered_dict();
        self.op(b"tR");
        Ok(())
    }

    /// A NumPy vector of eight-byte numbers.
    fn vector(
        &mut self,
        code: &str,
        len: usize,
        bytes: impl Iterator<Item = u8>,
    ) -> io::Result<()> {
        // NumPy 2 keeps the old module for pickles; NumPy 1 does not know the new one.
        self.global("numpy.core.multiarray", "_reconstruct");
        self.global("numpy", "ndarray");
        self.sizes(&[0]);
        self.encoded(std::iter::once(b'b'))?;
        self.op(&[0x87, b'R', b'(', b'K', 1]);
        self.sizes(&[len]);
        self.global("numpy", "dtype");
        self.text(code)?;
        self.op(&[0x89, 0x88, 0x87, b'R', b'(', b'K', 3]);
        self.text("<")?;
        self.op(b"NNN");
        self.int(-1);
        self.int(-1);
        self.int(0);
        self.op(&[b't', b'b', 0x89]);
        self.encoded(bytes)?;
        self.op(b"tb");
        Ok(())
    }

    /// Bytes, for which protocol 2 has no opcode: a text with one character for each, and its way back.
    fn encoded(&mut self, bytes: impl Iterator<Item = u8>) -> io::Result<()> {
        self.global("_codecs", "encode");
        let text: String = bytes.map(char::from).collect();
        self.text(&text)?;
        self.text("latin1")?;
        self.op(&[0x86, b'R']);
        Ok(())
    }
}
