//! Safetensors: written with the same bits for the same content, and the one check of what a stranger's header says.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, View};
use serde::Deserialize;

use super::ArtifactError;
use crate::cli::{Coded, exit};
use crate::files::{self, FileError, Links};
use crate::json;
use crate::pickle::short;

/// Bytes of the number in front of the header.
const LENGTH: usize = size_of::<u64>();
/// Largest file, in bytes.
pub const LARGEST_FILE: u64 = 8 << 30;
/// Largest header, in bytes; that of a network of 20,000 tensors has some 3 MB.
const LARGEST_HEADER: u64 = 8 << 20;
/// Most tensors of a file.
pub const MOST_TENSORS: usize = 20_000;
/// Most axes of a tensor.
const MOST_AXES: usize = 8;
/// Longest name of a tensor, in bytes.
const LONGEST_NAME: usize = 512;
/// Most values of a header: a tensor of 8 axes has 14.
const MOST_VALUES: usize = 20 * MOST_TENSORS;

/// Why a safetensors file is not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The system refused, or the file is no regular one or too long; the cause names it.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It ends within its header.
    #[error("it is cut off")]
    Cut,
    /// The header is longer than any.
    #[error("its header has {found} bytes, expected at most {LARGEST_HEADER}")]
    Long {
        /// What the file says.
        found: u64,
    },
    /// The header is not of the format.
    #[error("its header: {}", short(&.0.to_string()))]
    Json(serde_json::Error),
    /// More tensors than any network has.
    #[error("{found} tensors, expected at most {MOST_TENSORS}")]
    Tensors {
        /// Their number.
        found: usize,
    },
    /// The name of a tensor is longer than any.
    #[error("the name `{}` has {} bytes, expected at most {LONGEST_NAME}", short(.0), .0.len())]
    Name(String),
    /// More axes than any tensor has.
    #[error("`{name}` has {axes} axes, expected at most {MOST_AXES}")]
    Axes {
        /// The tensor.
        name: String,
        /// Their number.
        axes: usize,
    },
    /// The sizes of a tensor have no product.
    #[error("`{name}` has shape {shape:?}, expected fewer elements than memory can hold")]
    Elements {
        /// The tensor.
        name: String,
        /// Its sizes.
        shape: Vec<usize>,
    },
    /// A tensor does not lie where the one before ends, or has not the bytes of its shape.
    #[error("`{name}` lies at {found:?} of the data, expected {expected:?}")]
    Place {
        /// The tensor.
        name: String,
        /// What the header says.
        found: Range<usize>,
        /// What follows from the shapes.
        expected: Range<usize>,
    },
    /// The file is shorter or longer than its tensors.
    #[error("it has {found} bytes, expected {expected}")]
    Size {
        /// Bytes that are there, or one too many.
        found: u64,
        /// What follows from the header.
        expected: u64,
    },
}

impl Coded for HeaderError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Read(error) => error.exit_code(),
            _ => exit::INPUT,
        }
    }
}

/// What a header says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Sizes; their product fits, also where one of them is 0.
    pub shape: Vec<usize>,
    /// Where its bytes lie in the file.
    pub place: Range<usize>,
}

impl Listed {
    /// Its bytes, from a file that stands at them; tensors that are read in their order follow one another.
    ///
    /// # Errors
    /// [`HeaderError::Read`], and [`HeaderError::Cut`] for a file that has become shorter.
    pub fn read(&self, reader: &mut impl Read) -> Result<Vec<u8>, HeaderError> {
        let mut bytes = Vec::new();
        let length = self.place.len();
        let whole = bytes.try_reserve_exact(length);
        whole.map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        reader.take(length as u64).read_to_end(&mut bytes)?;
        if bytes.len() < length {
            return Err(HeaderError::Cut);
        }
        Ok(bytes)
    }
}

/// The header of a safetensors file, checked before anything is made of it: every number in it fits the others.
#[derive(Debug)]
pub struct Header {
    tensors: Vec<Listed>,
    metadata: BTreeMap<String, String>,
    end: u64,
}

/// A header as JSON.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "__metadata__")]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// The header of a file in memory, which must end where its last tensor does.
    ///
    /// # Errors
    /// [`HeaderError`], but for [`HeaderError::Read`].
    pub fn of(bytes: &[u8]) -> Result<Self, HeaderError> {
        let header = Self::read(&mut &*bytes)?;
        header.check_size(bytes.len() as u64)?;
        Ok(header)
    }

    /// Opens a file of at most [`LARGEST_FILE`] bytes and reads its header; what is to be read next are the tensors.
    ///
    /// # Errors
    /// [`HeaderError`], also if the file does not end where its last tensor does.
    pub fn open(path: &Path, links: Links) -> Result<(Self, fs_err::File), HeaderError> {
        let mut file = files::open(path, links)?;
        let found = file.metadata()?.len();
        if found > LARGEST_FILE {
            let (path, limit) = (path.to_owned(), LARGEST_FILE);
            return Err(io::Error::from(FileError::TooLong { path, limit }).into());
        }
        let header = Self::read(&mut file)?;
        header.check_size(found)?;
        Ok((header, file))
    }

    /// The tensors in the order of their places; those without elements at one place by name.
    pub fn tensors(&self) -> &[Listed] {
        &self.tensors
    }

    /// The texts under `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn read(reader: &mut impl Read) -> Result<Self, HeaderError> {
        let mut length = [0; LENGTH];
        reader.read_exact(&mut length).map_err(cut)?;
        let length = u64::from_le_bytes(length);
        if length > LARGEST_HEADER {
            return Err(HeaderError::Long { found: length });
        }
        let mut text = Vec::new();
        reader.take(length).read_to_end(&mut text)?;
        if (text.len() as u64) < length {
            return Err(HeaderError::Cut);
        }
        let raw: Raw = json::from_slice(&text, MOST_VALUES).map_err(HeaderError::Json)?;
        Self::checked(raw, LENGTH + text.len())
    }

    /// `data` is where the tensors begin.
    fn checked(raw: Raw, data: usize) -> Result<Self, HeaderError> {
        if raw.tensors.len() > MOST_TENSORS {
            let found = raw.tensors.len();
            return Err(HeaderError::Tensors { found });
        }
        let mut tensors: Vec<(String, TensorInfo)> = raw.tensors.into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        let mut end = 0;
        let mut listed = Vec::with_capacity(tensors.len());
        for (name, info) in tensors {
            let next = end_of(&name, &info, end)?;
            listed.push(Listed {
                name,
                dtype: info.dtype,
                shape: info.shape,
                place: data + end..data + next,
            });
            end = next;
        }
        Ok(Self {
            tensors: listed,
            metadata: raw.metadata.unwrap_or_default(),
            end: (data + end) as u64,
        })
    }

    fn check_size(&self, found: u64) -> Result<(), HeaderError> {
        if found == self.end {
            return Ok(());
        }
        let expected = self.end;
        Err(HeaderError::Size { found, expected })
    }
}

/// Where a tensor ends that must begin at `begin`.
fn end_of(name: &str, info: &TensorInfo, begin: usize) -> Result<usize, HeaderError> {
    if name.len() > LONGEST_NAME {
        return Err(HeaderError::Name(name.to_owned()));
    }
    let axes = info.shape.len();
    if axes > MOST_AXES {
        let name = short(name);
        return Err(HeaderError::Axes { name, axes });
    }
    // Strides are products of the sizes behind an axis, so those beside a 0 must have one too.
    let mut sizes = info.shape.iter().map(|&size| size.max(1));
    let bits = sizes.try_fold(info.dtype.bitsize(), usize::checked_mul);
    let empty = info.shape.contains(&0);
    let whole = bits.filter(|bits| empty || bits % 8 == 0);
    let bytes = whole.map(|bits| if empty { 0 } else { bits / 8 });
    let end = bytes
        .and_then(|bytes| begin.checked_add(bytes))
        .filter(|&end| end as u64 <= LARGEST_FILE)
        .ok_or_else(|| HeaderError::Elements {
            name: short(name),
            shape: info.shape.clone(),
        })?;
    let found = info.data_offsets.0..info.data_offsets.1;
    let expected = begin..end;
    if found == expected {
        return Ok(end);
    }
    let name = short(name);
    Err(HeaderError::Place {
        name,
        found,
        expected,
    })
}

fn cut(error: io::Error) -> HeaderError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => HeaderError::Cut,
        _ => HeaderError::Read(error),
    }
}

/// A safetensors file as bytes; equal tensors and metadata give equal bytes.
///
/// The crate `safetensors` keeps the metadata in a hash map and writes it in the order of that map, which differs from
/// run to run; here it is sorted.
pub fn to_safetensors<S, V>(
    tensors: impl IntoIterator<Item = (S, V)>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, ArtifactError>
where
    S: AsRef<str> + Ord + Display,
    V: View,
{
    let mut bytes = safetensors::serialize(tensors, None)
        .map_err(|source| ArtifactError::Tensors { source })?;
    if metadata.is_empty() {
        return Ok(bytes);
    }
    let length = u64::from_le_bytes(
        bytes[..LENGTH]
            .try_into()
            .expect("the file begins with the length of its header"),
    );
    let end = LENGTH + length as usize;
    let old = std::str::from_utf8(&bytes[LENGTH..end])
        .expect("the header is JSON")
        .trim_end()
        .strip_prefix('{')
        .expect("the header is an object");
    let entries = serde_json::to_string(metadata).expect("a map of strings is valid JSON");
    let comma = if old == "}" { "" } else { "," };
    let mut header = format!("{{\"__metadata__\":{entries}{comma}{old}").into_bytes();
    // The format wants the tensors aligned to 8 bytes.
    header.resize(header.len().next_multiple_of(LENGTH), b' ');
    let length = header.len() as u64;
    bytes.splice(..end, length.to_le_bytes().into_iter().chain(header));
    Ok(bytes)
}
