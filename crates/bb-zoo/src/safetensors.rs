//! Networks of strangers in safetensors files, in whatever type their elements are.
//!
//! `bb_nn::StateDict` reads the same format for our own cells, in `f32` and `i64` only; here the other widths are
//! converted as they are in PyTorch's files.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use bb_core::artifact::{Header, HeaderError, Listed};
use bb_core::cli::{Coded, exit};
use bb_core::files::{self, Links};
use fs_err::File;
use safetensors::Dtype;

use crate::torch::NamedTensor;
use crate::torch::file::{Wide, decode};
use crate::torch::pickle::{Element, short};

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

/// A file with a valid header.
#[derive(Debug)]
pub struct Safetensors {
    path: PathBuf,
    header: Header,
    /// At the first tensor.
    file: File,
}

/// Whether a file begins as safetensors do: with the length of a header, and its brace.
///
/// # Errors
/// A file that cannot be read.
pub fn is_safetensors(path: &Path) -> std::io::Result<bool> {
    let mut head = Vec::new();
    files::open(path, Links::Follow)?
        .take(9)
        .read_to_end(&mut head)?;
    Ok(head.get(8) == Some(&b'{') && !head.starts_with(b"PK"))
}

impl Safetensors {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// [`SafetensorsError`] for a file that is too large, and for a header that does not describe it.
    pub fn open(path: &Path) -> Result<Self, SafetensorsError> {
        let (header, file) = Header::open(path, Links::Follow).map_err(refused(path))?;
        let path = path.to_owned();
        Ok(Self { path, header, file })
    }

    /// Its header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What the header lists, in the order of the file.
    pub fn list(&self) -> impl ExactSizeIterator<Item = &Listed> {
        self.header.tensors().iter()
    }

    /// All tensors, in the order of the file.
    ///
    /// # Errors
    /// [`SafetensorsError::Tensor`] for types that networks are not computed with here.
    pub fn tensors(mut self) -> Result<Vec<NamedTensor>, SafetensorsError> {
        let mut tensors = Vec::with_capacity(self.list().len());
        for listed in self.header.tensors() {
            let wrong = |found: String, expected| SafetensorsError::Tensor {
                path: self.path.clone(),
                name: short(&listed.name),
                found,
                expected,
            };
            let element = element(listed.dtype).ok_or_else(|| {
                let expected = "F64, F32, F16, BF16, I64 to I8, U64 to U8 or BOOL";
                wrong(format!("of type {}", listed.dtype), expected)
            })?;
            let bytes = listed.read(&mut self.file).map_err(refused(&self.path))?;
            let data = decode(element, &bytes).map_err(|wide| {
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

/// Names the file in an error about its header.
fn refused(path: &Path) -> impl Fn(HeaderError) -> SafetensorsError {
    let path = path.to_owned();
    move |error| match error {
        HeaderError::Read(error) => SafetensorsError::Read(error),
        other => SafetensorsError::Format {
            path: path.clone(),
            reason: other.to_string(),
        },
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
