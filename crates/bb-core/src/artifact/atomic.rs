//! A file appears whole or not at all, also when the power fails.
//!
//! The content goes to a temporary file in the same folder, which is brought to the disk and then renamed; at last the
//! folder is brought to the disk, because the name lives there.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::ArtifactError;

const PREFIX: &str = ".tmp-";

/// Writes `bytes` to `path`, in place of any file that is there.
///
/// The folder must exist.
///
/// # Errors
/// [`ArtifactError::Write`] if any step fails; the old content then remains.
pub fn write(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<(), ArtifactError> {
    let mut file = File::create(path)?;
    if let Err(source) = file.write_all(bytes.as_ref()) {
        return Err(file.failed(source));
    }
    file.commit()
}

/// A file being written; it takes its name with [`commit`](Self::commit), and vanishes when dropped before.
///
/// A killed process leaves the temporary file behind; [`is_temporary`] knows it by its name.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    temporary: PathBuf,
    open: fs_err::File,
    committed: bool,
}

impl File {
    /// Begins a file that is to lie at `path`; the folder must exist.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, ArtifactError> {
        // Another file of this process may be on its way to the same name.
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let path = path.as_ref().to_owned();
        if path.file_name().is_none() {
            return Err(ArtifactError::NoName { path });
        }
        loop {
            // The name does not contain that of the target, which may already be as long as the system allows.
            let temporary = path.with_file_name(format!(
                "{PREFIX}{}-{}",
                std::process::id(),
                COUNTER.fetch_add(1, Ordering::Relaxed)
            ));
            match fs_err::OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&temporary)
            {
                Ok(file) => {
                    return Ok(Self {
                        path,
                        temporary,
                        open: file,
                        committed: false,
                    });
                }
                // Left by a killed process that had the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(ArtifactError::Write { path, source }),
            }
        }
    }

    /// Brings the content to the disk and gives the file its name.
    ///
    /// # Errors
    /// [`ArtifactError::Write`] if any step fails; the old content then remains.
    pub fn commit(mut self) -> Result<(), ArtifactError> {
        match self.try_commit() {
            Ok(()) => Ok(()),
            Err(source) => Err(self.failed(source)),
        }
    }

    fn try_commit(&mut self) -> io::Result<()> {
        self.open.sync_all()?;
        fs_err::rename(&self.temporary, &self.path)?;
        self.committed = true;
        sync_folder_of(&self.path)
    }

    fn failed(&self, source: io::Error) -> ArtifactError {
        ArtifactError::Write {
            path: self.path.clone(),
            source,
        }
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.open.flush()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        if !self.committed {
            // There is nobody to tell; the name says that the file can go.
            let _ = fs_err::remove_file(&self.temporary);
        }
    }
}

/// Whether a file name is that of a file on its way to another name.
pub fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

/// Brings the names in the folder of `path` to the disk.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if parent != Path::new("") => sync(parent),
        _ => sync(Path::new(".")),
    }
}

/// Brings the content of a file, or the names in a folder, to the disk.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    fs_err::File::open(path)?.sync_all()
}
