//! Networks of strangers in safetensors files, in whatever type their elements are.
//!
//! `bb_nn::StateDict` reads the same format for our own cells, in `f32` and `i64` only; here the other widths are
//! converted as they are in PyTorch's files.

use std::io::Read as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bb_core::cli::{Coded, exit};
use fs_err::File;
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};

use crate::torch::NamedTensor;
use crate::torch::file::{LARGEST_FILE, Wide, decode};
use crate::torch::pickle::{Element, short};

/// Largest header, in bytes; that of a network of 20,000 tensors has some 3 MB.
const LARGEST_HEADER: u64 = 8 << 20;
/// Most tensors of a file.
const MOST_TENSORS: usize = 20_000;
/// Most axes of a tensor.
const MOST_AXES: usize = 8;

/// Why a safetensors file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The file cannot be read; the cause names it.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// It is not what the format says.
    #[error("`{}` is no valid safetensors file: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was found and what was expected.
        reason: String,
    },
    /// A tensor is not one that is read.
    #[error("`{}`: `{name}` is {found}, expected {expected}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl Coded for SafetensorsError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Read(error) => error.exit_code(),
            _ => exit::INPUT,
        }
    }
}

/// What the header says of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// The format's word for its type, such as `F16`.
    pub dtype: String,
    /// Sizes.
    pub shape: Vec<usize>,
}

/// A file with a valid header.
#[derive(Debug)]
pub struct Safetensors {
    path: PathBuf,
    bytes: Vec<u8>,
    /// In the order of the file, with types and places.
    tensors: Vec<(Listed, Dtype, Range<usize>)>,
}

/// Whether a file begins as safetensors do: with the length of a header, and its brace.
///
/// # Errors
/// A file that cannot be read.
pub fn is_safetensors(path: &Path) -> std::io::Result<bool> {
    // A pipe would keep whoever opens it waiting.
    if !fs_err::metadata(path)?.is_file() {
        return Ok(false);
    }
    let mut head = Vec::new();
    File::open(path)?.take(9).read_to_end(&mut head)?;
    Ok(head.get(8) == Some(&b'{') && !head.starts_with(b"PK"))
}

impl Safetensors {
    /// Reads a file and checks its header.
    ///
    /// # Errors
    /// [`SafetensorsError`] for a file that is too large, and for a header that does not describe it.
    pub fn open(path: &Path) -> Result<Self, SafetensorsError> {
        let format = |reason: String| SafetensorsError::Format {
            path: path.to_owned(),
            reason,
        };
        let mut file = File::open(path)?;
        let len = file.metadata()?.len();
        if len > LARGEST_FILE {
            return Err(format(format!(
                "it has {len} bytes, expected at most {LARGEST_FILE}"
            )));
        }
        let mut head = [0; 8];
        let bytes = match file.read_exact(&mut head) {
            Ok(()) => {
                let header = u64::from_le_bytes(head);
                if header > LARGEST_HEADER {
                    return Err(format(format!(
                        "its header has {header} bytes, expected at most {LARGEST_HEADER}"
                    )));
                }
                let mut bytes = head.to_vec();
                file.read_to_end(&mut bytes)?;
                bytes
            }
            Err(_) => return Err(format("it is cut off".to_owned())),
        };
        let (header, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| format(short(&error.to_string())))?;
        let data = size_of_val(&head) + header;
        let infos = metadata.tensors();
        if let Some((name, info)) = infos.iter().find(|(_, info)| info.shape.len() > MOST_AXES) {
            let (name, axes) = (short(name), info.shape.len());
            return Err(format(format!(
                "`{name}` has {axes} axes, expected at most {MOST_AXES}"
            )));
        }
        let place = |(name, info): (String, &TensorInfo)| {
            let (begin, end) = info.data_offsets;
            let listed = Listed {
                name,
                dtype: format!("{:?}", info.dtype),
                shape: info.shape.clone(),
            };
            (listed, info.dtype, data + begin..data + end)
        };
        let mut tensors: Vec<_> = infos.into_iter().map(place).collect();
        if tensors.len() > MOST_TENSORS {
            let count = tensors.len();
            return Err(format(format!(
                "{count} tensors, expected at most {MOST_TENSORS}"
            )));
        }
        // The map they come from has no order; those without elements lie at one place.
        tensors.sort_by(|(a, _, at), (b, _, to)| (at.start, &a.name).cmp(&(to.start, &b.name)));
        Ok(Self {
            path: path.to_owned(),
            bytes,
            tensors,
        })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the header lists, in the order of the file.
    pub fn list(&self) -> impl ExactSizeIterator<Item = &Listed> {
        self.tensors.iter().map(|(listed, ..)| listed)
    }

    /// All tensors, in the order of the file.
    ///
    /// # Errors
    /// [`SafetensorsError::Tensor`] for types that networks are not computed with here.
    pub fn tensors(&self) -> Result<Vec<NamedTensor>, SafetensorsError> {
        let mut tensors = Vec::with_capacity(self.tensors.len());
        for (listed, dtype, place) in &self.tensors {
            let wrong = |found: String, expected| SafetensorsError::Tensor {
                path: self.path.clone(),
                name: short(&listed.name),
                found,
                expected,
            };
            let element = element(*dtype).ok_or_else(|| {
                let expected = "F64, F32, F16, BF16, I64 to I8, U64 to U8 or BOOL";
                wrong(format!("of type {}", listed.dtype), expected)
            })?;
            let data = decode(element, &self.bytes[place.clone()]).map_err(|wide| {
                let Wide {
                    index,
                    value,
                    expected,
                } = wide;
                wrong(format!("{value} at flat index {index}"), expected)
            })?;
            tensors.push(NamedTensor {
                name: listed.name.clone(),
                shape: listed.shape.clone(),
                data,
            });
        }
        Ok(tensors)
    }
}

fn element(dtype: Dtype) -> Option<Element> {
    Some(match dtype {
        Dtype::F64 => Element::F64,
        Dtype::F32 => Element::F32,
        Dtype::F16 => Element::F16,
        Dtype::BF16 => Element::Bf16,
        Dtype::I64 => Element::I64,
        Dtype::I32 => Element::I32,
        Dtype::I16 => Element::I16,
        Dtype::I8 => Element::I8,
        Dtype::U64 => Element::U64,
        Dtype::U32 => Element::U32,
        Dtype::U16 => Element::U16,
        Dtype::U8 => Element::U8,
        Dtype::BOOL => Element::Bool,
        _ => return None,
    })
}
