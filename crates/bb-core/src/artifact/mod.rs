//! Files that others may rely on: written whole or not at all, known by their SHA-256, the same bits for the same content.
pub mod atomic;
pub mod checkpoint;
mod tensors;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::cli::{Coded, exit};
use crate::files::{self, FileError, Links, Special};

pub use tensors::{Header, HeaderError, LARGEST_FILE, Listed, MOST_TENSORS, to_safetensors};

/// Why a file could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// The file could not be written whole; whatever lay there before is untouched.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file that was to be there.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else than a file lies where one is to be written, and stays.
    #[error("`{}` is {found}, expected a regular file or nothing", path.display())]
    Special {
        /// The path.
        path: PathBuf,
        /// What lies there.
        found: Special,
    },
    /// Something lies where a new folder is to be.
    #[error("`{}` exists already", path.display())]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// The path ends in no file name.
    #[error("`{}` does not name a file", path.display())]
    NoName {
        /// The path as given.
        path: PathBuf,
    },
    /// The tensors do not make a safetensors file.
    #[error("cannot write tensors as safetensors")]
    Tensors {
        /// What the format does not allow.
        source: safetensors::SafeTensorError,
    },
}

impl Coded for ArtifactError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Write { source, .. } | Self::Read { source, .. } => source.exit_code(),
            Self::Special { .. } => exit::INPUT,
            Self::NoName { .. } | Self::Exists { .. } => exit::USAGE,
            Self::Tensors { .. } => exit::BUG,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Exists { .. } => Some("name a folder that does not exist yet".to_owned()),
            Self::Special { .. } => Some("name another file, or remove what lies there".to_owned()),
            _ => None,
        }
    }
}

/// The SHA-256 of some bytes, 64 lower-case hexadecimal digits.
///
/// ```
/// let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// assert_eq!(bb_core::artifact::sha256_hex(b""), empty);
/// ```
pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes))
}

/// The SHA-256 of a file of at most [`LARGEST_FILE`] bytes, read in pieces, 64 lower-case hexadecimal digits.
pub fn sha256_file(path: impl AsRef<Path>) -> Result<String, ArtifactError> {
    Ok(measure(path.as_ref(), Links::Follow)?.1)
}

/// The length in bytes and the SHA-256 of a file, from one pass.
pub(crate) fn measure(path: &Path, links: Links) -> Result<(u64, String), ArtifactError> {
    let fail = |source| ArtifactError::Read {
        path: path.to_owned(),
        source,
    };
    let mut file = files::open(path, links).map_err(fail)?;
    // A file can have a hole of any size.
    if file.metadata().map_err(fail)?.len() > LARGEST_FILE {
        let (path, limit) = (path.to_owned(), LARGEST_FILE);
        return Err(fail(FileError::TooLong { path, limit }.into()));
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut length = 0;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok((length, hex(&hash.finalize()))),
            Ok(n) => {
                hash.update(&buffer[..n]);
                length += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fail(error)),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}
