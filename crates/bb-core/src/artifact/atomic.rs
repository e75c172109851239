//! A file or folder appears whole or not at all, also when the power fails.
//!
//! The content goes to a temporary one beside it, which is brought to the disk and then renamed; at last the folder that
//! both lie in is brought to the disk, because the name lives there.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::ArtifactError;
use crate::files::Special;

const PREFIX: &str = ".tmp-";
/// No file or folder takes as long to be written.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);

/// Writes `bytes` to `path`, in place of any file that is there.
///
/// The folder must exist.
///
/// # Errors
/// [`ArtifactError::Special`] if something else than a file is there, [`ArtifactError::Write`] if any step fails; the
/// old content then remains.
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
    ///
    /// # Errors
    /// [`ArtifactError::Special`] if something else than a file lies there, [`ArtifactError::Write`] if the system
    /// refuses.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, ArtifactError> {
        let path = path.as_ref().to_owned();
        if path.file_name().is_none() {
            return Err(ArtifactError::NoName { path });
        }
        refuse_special(&path)?;
        loop {
            let temporary = temporary_beside(&path);
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

/// A folder being written; it takes its name with [`commit`](Self::commit), and vanishes when dropped before.
///
/// A killed process leaves the temporary folder behind; [`is_temporary`] knows it by its name.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    temporary: PathBuf,
    /// Folders inside, to be brought to the disk at the end.
    inner: BTreeSet<PathBuf>,
    committed: bool,
}

impl Folder {
    /// Begins a folder that is to lie at `path`, where nothing may lie yet; folders above it are made.
    ///
    /// # Errors
    /// [`ArtifactError::Exists`] if something lies there, [`ArtifactError::Write`] if the system refuses.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, ArtifactError> {
        let path = path.as_ref().to_owned();
        if path.file_name().is_none() {
            return Err(ArtifactError::NoName { path });
        }
        refuse_existing(&path)?;
        let failed = |source| ArtifactError::Write {
            path: path.clone(),
            source,
        };
        let parent = folder_of(&path);
        fs_err::create_dir_all(parent).map_err(failed)?;
        clear_abandoned(parent);
        loop {
            let temporary = temporary_beside(&path);
            match fs_err::create_dir(&temporary) {
                Ok(()) => {
                    return Ok(Self {
                        path,
                        temporary,
                        inner: BTreeSet::new(),
                        committed: false,
                    });
                }
                // Left by a killed process that had the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(failed(source)),
            }
        }
    }

    /// Begins a file at a relative path in the folder; folders on the way are made. [`Self::finish`] ends it.
    ///
    /// # Errors
    /// [`ArtifactError::Write`] if any step fails.
    pub fn file(&mut self, name: impl AsRef<Path>) -> Result<fs_err::File, ArtifactError> {
        let (name, folder) = (name.as_ref(), self.temporary.clone());
        debug_assert!(name.is_relative(), "a path inside of the folder");
        let begin = || -> io::Result<(Vec<PathBuf>, fs_err::File)> {
            let above = name.ancestors().skip(1);
            let above = above.filter(|part| *part != Path::new(""));
            let inner: Vec<PathBuf> = above.map(|part| folder.join(part)).collect();
            if let Some(deepest) = inner.first() {
                fs_err::create_dir_all(deepest)?;
            }
            Ok((inner, fs_err::File::create_new(folder.join(name))?))
        };
        let (inner, file) = begin().map_err(|source| self.failed(name, source))?;
        self.inner.extend(inner);
        Ok(file)
    }

    /// Brings the content of a file to the disk.
    ///
    /// # Errors
    /// [`ArtifactError::Write`] if the system refuses.
    pub fn finish(&self, name: impl AsRef<Path>, file: &fs_err::File) -> Result<(), ArtifactError> {
        file.sync_all()
            .map_err(|source| self.failed(name.as_ref(), source))
    }

    /// Writes a file at a relative path in the folder.
    ///
    /// # Errors
    /// [`ArtifactError::Write`] if any step fails.
    pub fn write(
        &mut self,
        name: impl AsRef<Path>,
        bytes: impl AsRef<[u8]>,
    ) -> Result<(), ArtifactError> {
        let mut file = self.file(&name)?;
        let written = file.write_all(bytes.as_ref());
        written.map_err(|source| self.failed(name.as_ref(), source))?;
        self.finish(name, &file)
    }

    /// Brings the names to the disk and gives the folder its own.
    ///
    /// # Errors
    /// [`ArtifactError::Exists`] if something has come to lie there, [`ArtifactError::Write`] if any step fails.
    pub fn commit(mut self) -> Result<(), ArtifactError> {
        refuse_existing(&self.path)?;
        self.try_commit()
            .map_err(|source| self.failed(Path::new(""), source))
    }

    fn try_commit(&mut self) -> io::Result<()> {
        // Children before their parents.
        for folder in self.inner.iter().rev() {
            sync(folder)?;
        }
        sync(&self.temporary)?;
        fs_err::rename(&self.temporary, &self.path)?;
        self.committed = true;
        sync_folder_of(&self.path)
    }

    fn failed(&self, name: &Path, source: io::Error) -> ArtifactError {
        ArtifactError::Write {
            path: self.path.join(name),
            source,
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if !self.committed {
            // As for a file.
            let _ = fs_err::remove_dir_all(&self.temporary);
        }
    }
}

/// A rename would take the place of a device or a link, also for everybody else who uses it.
fn refuse_special(path: &Path) -> Result<(), ArtifactError> {
    // What cannot be looked at cannot be written either, and writing says why.
    let found = fs_err::symlink_metadata(path).ok();
    match found.and_then(|found| Special::of(found.file_type())) {
        // That is an error of the system, which says it as well.
        None | Some(Special::Folder) => Ok(()),
        Some(found) => Err(ArtifactError::Special {
            path: path.to_owned(),
            found,
        }),
    }
}

fn refuse_existing(path: &Path) -> Result<(), ArtifactError> {
    match fs_err::symlink_metadata(path) {
        Ok(_) => Err(ArtifactError::Exists {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ArtifactError::Write {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A name in the same folder that nothing else of this process has.
fn temporary_beside(path: &Path) -> PathBuf {
    // Another file of this process may be on its way to the same name.
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    // The name does not contain that of the target, which may already be as long as the system allows.
    path.with_file_name(format!(
        "{PREFIX}{}-{}",
        std::process::id(),
        COUNTER.fetch_add(1, Ordering::Relaxed)
    ))
}

/// Whether a file name is that of a file or folder on its way to another name.
pub fn is_temporary(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

/// Removes the files and folders that killed processes left on their way to another name in `folder`.
///
/// Whose process that was is known by its number alone, which another machine may have given to one that lives; so only
/// what was not touched for a day goes. What cannot be removed stays, and harms nobody.
pub fn clear_abandoned(folder: &Path) {
    for entry in fs_err::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let old = |found: &std::fs::Metadata| {
            let age = found.modified().ok().and_then(|time| time.elapsed().ok());
            age.is_some_and(|age| age > ABANDONED)
        };
        // A link is not followed: what it leads to is not ours.
        let found = fs_err::symlink_metadata(&path);
        if let Some(found) = found.ok().filter(|found| is_ended(&name) && old(found)) {
            let _ = if found.is_dir() {
                fs_err::remove_dir_all(path)
            } else {
                fs_err::remove_file(path)
            };
        }
    }
}

/// Whether a name is one of [`temporary_beside`] of a process that this machine does not have.
fn is_ended(name: &OsStr) -> bool {
    let numbers = name
        .to_str()
        .and_then(|name| name.strip_prefix(PREFIX)?.split_once('-'));
    let Some((Ok(process), Ok(_))) =
        numbers.map(|(process, count)| (process.parse::<i32>(), count.parse::<u64>()))
    else {
        return false;
    };
    let process = rustix::process::Pid::from_raw(process);
    process.is_some_and(|process| {
        rustix::process::test_kill_process(process) == Err(rustix::io::Errno::SRCH)
    })
}

/// The parent folder of `path`.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}

/// Brings the names in the folder of `path` to the disk.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    sync(folder_of(path))
}

/// Brings the content of a file, or the names in a folder, to the disk.
pub(crate) fn sync(path: &Path) -> io::Result<()> {
    fs_err::File::open(path)?.sync_all()
}
