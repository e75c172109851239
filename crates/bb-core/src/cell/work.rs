//! Cells on their way: locked, resumable, and complete with one last rename.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::{
    CKPT, CONFIG, Cell, CellError, CellSpec, ENV, FAILED, Failed, FileEntry, LOCK, LOG, Lock,
    MANIFEST, METRICS, MODEL, Manifest, POISON_TEST, POISON_TRAIN, stays_within, store,
};
use crate::artifact::{self, atomic};
use crate::cli::{Coded, Failure};
use crate::events::LONGEST_ROWS;
use crate::files::{self, Links};

/// The files of any run, listed also if this process did not write them: one that was killed just before the end leaves
/// nothing to add to its rows.
const KNOWN: [&str; 5] = [MODEL, POISON_TRAIN, POISON_TEST, CONFIG, METRICS];

/// What is to be done about a cell.
#[derive(Debug)]
pub enum Opened {
    /// Nothing: it is complete, and its files have been verified.
    Complete(Box<Cell>),
    /// It is to be begun or resumed.
    Work(Box<Work>),
}

/// Opens the cell of `spec` below the folder `out`, which is made if need be.
///
/// # Errors
/// [`CellError::Locked`] if another process works on it, [`CellError::Link`] if its folder, one between it and `out` or
/// anything in a cell that is not complete is a link. A complete cell that does not verify is an error that says
/// what is wrong with which file; it is never computed again in silence.
pub fn open(out: &Path, spec: &CellSpec) -> Result<Opened, CellError> {
    spec.check_names()?;
    let dir = spec.dir(out);
    store::refuse_links(out, &dir)?;
    if let Some(cell) = complete(&dir, spec)? {
        cell.clear_up();
        return Ok(Opened::Complete(Box::new(cell)));
    }
    fs_err::create_dir_all(&dir).map_err(CellError::io(&dir))?;
    let lock = Lock::take(&dir, LOCK)?;
    // The process that held the lock until now may have finished.
    if let Some(cell) = complete(&dir, spec)? {
        return Ok(Opened::Complete(Box::new(cell)));
    }
    clear(&dir)?;
    Ok(Opened::Work(Box::new(Work {
        dir,
        spec: spec.clone(),
        names: Mutex::default(),
        _lock: lock,
    })))
}

impl Cell {
    /// Removes the checkpoints that a run left behind which was killed right after its last rename.
    ///
    /// Whoever holds the lock clears up itself; what stays harms nobody.
    pub fn clear_up(&self) {
        if self.dir.join(CKPT).is_dir()
            && let Ok(_lock) = Lock::take(&self.dir, LOCK)
        {
            remove_checkpoints(&self.dir);
        }
    }
}

/// A cell that this process alone may write to, until the value is dropped.
///
/// Names of files are relative to the cell, with `/` between the parts; folders are made when they are needed.
#[derive(Debug)]
pub struct Work {
    dir: PathBuf,
    spec: CellSpec,
    /// The files that were written here.
    names: Mutex<BTreeSet<String>>,
    _lock: Lock,
}

impl Work {
    /// The folder. Whatever lies in its sub-folder [`CKPT`] is removed when the cell is complete.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the cell is to be a result of.
    pub fn spec(&self) -> &CellSpec {
        &self.spec
    }

    /// Writes a file whole, in place of any that is there.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), CellError> {
        Ok(atomic::write(self.prepare(name)?, bytes)?)
    }

    /// Adds a line to a file, which is made if need be.
    ///
    /// This is quick and does not wait for the disk, so a crash may cost the last lines and leave half a one. Half a
    /// line at the end of the file is removed here and in [`truncate_lines`](Self::truncate_lines).
    pub fn append_line(&self, name: &str, line: &str) -> Result<(), CellError> {
        let path = self.prepare(name)?;
        if line.contains('\n') {
            return Err(CellError::LineBreak { path });
        }
        append(&path, line).map_err(CellError::io(&path))
    }

    /// Brings the lines of a file to the disk, with its name: before a checkpoint that counts them. A file that is absent
    /// stays so.
    pub fn sync_lines(&self, name: &str) -> Result<(), CellError> {
        let path = self.prepare(name)?;
        let synced = match atomic::sync(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            synced => synced,
        };
        synced
            .and_then(|()| atomic::sync(path.parent().unwrap_or(&self.dir)))
            .map_err(CellError::io(&path))
    }

    /// Removes every line for which `keep` says no, on resuming those that were written after the checkpoint.
    ///
    /// Half a line at the end goes too, and so does a line that is not UTF-8. A file that is absent stays so.
    pub fn truncate_lines(
        &self,
        name: &str,
        mut keep: impl FnMut(&str) -> bool,
    ) -> Result<(), CellError> {
        let path = self.prepare(name)?;
        let old = match files::read(&path, Links::Refuse, LONGEST_ROWS) {
            Ok(old) => old,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(CellError::io(&path)(error)),
        };
        let mut new = Vec::with_capacity(old.len());
        for line in old.split_inclusive(|&byte| byte == b'\n') {
            let text = line.strip_suffix(b"\n").map(str::from_utf8);
            if let Some(Ok(text)) = text
                && keep(text)
            {
                new.extend_from_slice(line);
            }
        }
        if new != old {
            atomic::write(&path, new)?;
        }
        Ok(())
    }

    /// Does the work: `body` computes, and what it returns are the results that the cell is [finished](Self::finish)
    /// with.
    ///
    /// A failure that the same run would meet again, a panic too, is kept in [`FAILED`]; see [`Failed`].
    ///
    /// # Errors
    /// Those of `body` and of [`finish`](Self::finish).
    ///
    /// # Panics
    /// If `body` does.
    pub fn complete<E>(self, body: impl FnOnce(&Self) -> Result<Value, E>) -> Result<Cell, E>
    where
        E: Coded + From<CellError> + 'static,
    {
        let done = catch_unwind(AssertUnwindSafe(|| body(&self)));
        let failed = match &done {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Failed::of(error.exit_code(), error),
            Err(panic) => {
                let failure = Failure::panicked(&**panic);
                Some(Failed::new(failure.exit_code(), &failure.to_string()))
            }
        };
        if let Some(failed) = failed {
            // Best effort: without it the run is repeated, and the user is told of the failure itself.
            let _ = failed.write(&self.dir);
        }
        match done {
            Ok(results) => Ok(self.finish(results?)?),
            Err(panic) => resume_unwind(panic),
        }
    }

    /// Makes the cell complete: lists its files with their lengths and digests, writes the manifest and removes [`CKPT`].
    ///
    /// Listed are the files that were written through this value, and those that any run has. What else lies there, a
    /// `.DS_Store` say, is no result: listed, it would give the same run another digest. Left out are also [`ENV`] and
    /// [`LOG`], whose content differs from run to run. A run that was killed within may call this again, when it has
    /// written its files again.
    pub fn finish(self, results: Value) -> Result<Cell, CellError> {
        let mut files = BTreeMap::new();
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.extend(KNOWN.map(str::to_owned));
        list(&self.dir, "", &names, &mut files)?;
        drop(names);
        remove_record(&self.dir)?;
        let manifest = Manifest::new(&self.spec, files, results);
        atomic::write(self.dir.join(MANIFEST), manifest.to_text())?;
        // Only now: without them a run that is killed before the manifest is there would begin anew.
        remove_checkpoints(&self.dir);
        Ok(Cell {
            dir: self.dir,
            manifest,
        })
    }

    /// The path of a file, with its folder made.
    fn prepare(&self, name: &str) -> Result<PathBuf, CellError> {
        let (dir, name) = (self.dir.clone(), name.to_owned());
        if !stays_within(&name) {
            return Err(CellError::FileName { path: dir, name });
        }
        let temporary = |part| atomic::is_temporary(OsStr::new(part));
        if [LOCK, MANIFEST, CKPT, FAILED].contains(&&*name) || name.split('/').any(temporary) {
            return Err(CellError::Reserved { path: dir, name });
        }
        let path = dir.join(&name);
        if let Some(folder) = path.parent() {
            fs_err::create_dir_all(folder).map_err(CellError::io(folder))?;
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(name);
        Ok(path)
    }
}

/// The cell in this folder, verified, if it has a manifest.
fn complete(dir: &Path, spec: &CellSpec) -> Result<Option<Cell>, CellError> {
    let path = dir.join(MANIFEST);
    if !path.try_exists().map_err(CellError::io(&path))? {
        return Ok(None);
    }
    let cell = Cell::load(dir)?;
    let expected = spec.id();
    if cell.manifest.id != expected {
        return Err(CellError::Id {
            path,
            expected,
            found: cell.manifest.id,
        });
    }
    Ok(Some(cell))
}

/// Best effort: what stays is removed when the cell is opened again, and harms nobody until then.
fn remove_checkpoints(dir: &Path) {
    let _ = fs_err::remove_dir_all(dir.join(CKPT));
}

/// An earlier run failed, and this one did not.
fn remove_record(dir: &Path) -> Result<(), CellError> {
    let path = dir.join(FAILED);
    match fs_err::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CellError::io(&path)(error)),
        _ => Ok(()),
    }
}

/// Removes what a killed process has left half written, and checks that the rest are files and folders.
fn clear(dir: &Path) -> Result<(), CellError> {
    for (path, kind) in entries(dir)? {
        if kind.is_symlink() {
            return Err(CellError::Link { path });
        } else if kind.is_dir() {
            clear(&path)?;
        } else if !kind.is_file() {
            return Err(CellError::NotAFile { path });
        } else if path.file_name().is_some_and(atomic::is_temporary) {
            fs_err::remove_file(&path).map_err(CellError::io(&path))?;
        }
    }
    Ok(())
}

/// Brings all files below `dir` that are among `names` to the disk, and lists them; their names begin with `prefix`.
fn list(
    dir: &Path,
    prefix: &str,
    names: &BTreeSet<String>,
    files: &mut BTreeMap<String, FileEntry>,
) -> Result<(), CellError> {
    for (path, kind) in entries(dir)? {
        let Some(part) = path.file_name().and_then(OsStr::to_str) else {
            continue;
        };
        if prefix.is_empty() && matches!(part, MANIFEST | LOCK | CKPT | ENV | FAILED | LOG) {
            continue;
        }
        let name = format!("{prefix}{part}");
        if kind.is_dir() {
            list(&path, &format!("{name}/"), names, files)?;
        } else if names.contains(&name) {
            if !kind.is_file() {
                return Err(CellError::NotAFile { path });
            }
            // Lines were added without waiting for the disk, and the manifest must not be there before them.
            atomic::sync(&path).map_err(CellError::io(&path))?;
            let (bytes, sha256) = artifact::measure(&path, Links::Refuse)?;
            files.insert(name, FileEntry { bytes, sha256 });
        }
    }
    atomic::sync(dir).map_err(CellError::io(dir))
}

/// What lies in a folder, sorted by path; links are not followed.
fn entries(dir: &Path) -> Result<Vec<(PathBuf, std::fs::FileType)>, CellError> {
    let read = || -> io::Result<Vec<_>> {
        fs_err::read_dir(dir)?
            .map(|entry| {
                let entry = entry?;
                Ok((entry.path(), entry.file_type()?))
            })
            .collect()
    };
    let mut found = read().map_err(CellError::io(dir))?;
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut options = fs_err::OpenOptions::new();
    options.read(true).append(true).create(true);
    let mut file = files::open_with(path, &mut options, Links::Refuse)?;
    if file.seek(SeekFrom::End(0))? > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            let whole = files::read(path, Links::Refuse, LONGEST_ROWS)?;
            let end = whole.iter().rposition(|&byte| byte == b'\n');
            file.set_len(end.map_or(0, |end| end as u64 + 1))?;
        }
    }
    file.write_all(format!("{line}\n").as_bytes())
}
