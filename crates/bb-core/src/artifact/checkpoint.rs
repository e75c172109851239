//! What an interrupted run goes on from: exactly what was written, at this place, or not used at all.
//!
//! A flipped bit in a checkpoint would give another result that nothing else could find, so each ends in a digest of its
//! content and of where it lies: its name, its folder, and the cell around that, whose name says what is computed.

use std::fmt;
use std::io::{self, Write as _};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{ArtifactError, LARGEST_FILE, atomic};
use crate::files::{self, Links};

/// The last bytes of every checkpoint.
const END: &[u8; 8] = b"bb-ckpt1";
/// Bytes of the digest before them.
const DIGEST: usize = 32;
/// Parts at the end of a path that a checkpoint belongs to.
const PARTS: usize = 3;

/// Which of the checkpoints at a place is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The one written last.
    Last,
    /// The one before, where [`replace`] left it.
    Before,
}

impl Version {
    /// Both, the newer one first.
    pub const BOTH: [Self; 2] = [Self::Last, Self::Before];

    fn file(self, path: &Path) -> PathBuf {
        let mut file = path.as_os_str().to_owned();
        if self == Self::Before {
            file.push(".before");
        }
        file.into()
    }
}

/// What lies where a checkpoint is looked for.
#[derive(Debug)]
pub enum Found {
    /// Nothing.
    Absent,
    /// Something that cannot be used.
    Damaged(Damage),
    /// The content that was written.
    Whole(Vec<u8>),
}

/// Why a file is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    path: PathBuf,
    /// Whether it ends as a checkpoint does.
    digest: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = if self.digest {
            "it is not what was written there"
        } else {
            "it has no digest at its end, because it is cut off or of an earlier version"
        };
        write!(f, "checkpoint `{}` is not used: {why}", self.path.display())
    }
}

/// Writes a checkpoint in place of any that is there.
///
/// # Errors
/// As [`atomic::write`].
pub fn write(path: &Path, content: &[u8]) -> Result<(), ArtifactError> {
    sealed(path, content)?.commit()
}

/// [`write()`] that leaves the checkpoint that was there beside it, as [`Version::Before`].
///
/// # Errors
/// As [`atomic::write`].
pub fn replace(path: &Path, content: &[u8]) -> Result<(), ArtifactError> {
    let file = sealed(path, content)?;
    // A run that is killed between the two renames goes on from the one before.
    match fs_err::rename(path, Version::Before.file(path)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            let path = path.to_owned();
            Err(ArtifactError::Write { path, source })
        }
        _ => file.commit(),
    }
}

/// Reads a checkpoint.
///
/// # Errors
/// [`ArtifactError::Read`] if the file cannot be read, or is not a regular file.
pub fn read(path: &Path, version: Version) -> Result<Found, ArtifactError> {
    let file = version.file(path);
    let mut bytes = match files::read(&file, Links::Refuse, LARGEST_FILE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Absent),
        Err(source) => return Err(ArtifactError::Read { path: file, source }),
    };
    let parts = bytes
        .strip_suffix(END)
        .and_then(|rest| rest.split_at_checked(rest.len().checked_sub(DIGEST)?));
    let fits = parts.map(|(content, digest)| digest == digest_of(path, content));
    if fits == Some(true) {
        bytes.truncate(bytes.len() - END.len() - DIGEST);
        return Ok(Found::Whole(bytes));
    }
    Ok(Found::Damaged(Damage {
        path: file,
        digest: fits.is_some(),
    }))
}

fn sealed(path: &Path, content: &[u8]) -> Result<atomic::File, ArtifactError> {
    let mut file = atomic::File::create(path)?;
    let written = file
        .write_all(content)
        .and_then(|()| file.write_all(&digest_of(path, content)))
        .and_then(|()| file.write_all(END));
    match written {
        Ok(()) => Ok(file),
        Err(source) => {
            let path = path.to_owned();
            Err(ArtifactError::Write { path, source })
        }
    }
}

fn digest_of(path: &Path, content: &[u8]) -> [u8; DIGEST] {
    let names = path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.as_encoded_bytes()),
        _ => None,
    });
    let mut hash = Sha256::new();
    for name in names.take(PARTS) {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
    }
    hash.update(content);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(path: &Path, version: Version) -> Option<Vec<u8>> {
        match read(path, version).expect("readable") {
            Found::Whole(content) => Some(content),
            Found::Absent => None,
            Found::Damaged(damage) => panic!("{damage}"),
        }
    }

    fn damage(path: &Path) -> String {
        match read(path, Version::Last).expect("readable") {
            Found::Damaged(damage) => damage.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_one_before_stays_until_two_have_come() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("state");
        assert_eq!(content(&path, Version::Last), None);
        for (text, before) in [("one", None), ("two", Some("one")), ("", Some("two"))] {
            replace(&path, text.as_bytes()).expect("written");
            let read = |version| content(&path, version);
            assert_eq!(read(Version::Last).as_deref(), Some(text.as_bytes()));
            assert_eq!(read(Version::Before).as_deref(), before.map(str::as_bytes));
        }
        write(&path, b"four").expect("written");
        assert_eq!(
            content(&path, Version::Before).as_deref(),
            Some(&b"two"[..])
        );
    }

    #[test]
    fn nothing_but_what_was_written_there_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a/ckpt/state");
        for name in ["a", "b"] {
            let inside = folder.path().join(name).join("ckpt");
            fs_err::create_dir_all(inside).expect("made");
        }
        write(&path, b"content").expect("written");
        let whole = fs_err::read(&path).expect("there");
        for bit in 0..8 * whole.len() {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs_err::write(&path, flipped).expect("written");
            let said = damage(&path);
            assert!(said.contains("ckpt/state` is not used"), "{said}");
        }
        for cut in 0..whole.len() {
            fs_err::write(&path, &whole[..cut]).expect("written");
            assert!(damage(&path).ends_with("of an earlier version"));
        }
        for other in ["a/ckpt/other", "b/ckpt/state", "a/state"] {
            let other = folder.path().join(other);
            fs_err::write(&other, &whole).expect("written");
            assert!(damage(&other).ends_with("not what was written there"));
        }
        fs_err::write(&path, &whole).expect("written");
        assert_eq!(
            content(&path, Version::Last).as_deref(),
            Some(&b"content"[..])
        );
        // A folder that has moved is the same.
        fs_err::rename(folder.path().join("a"), folder.path().join("b/a")).expect("moved");
        let moved = folder.path().join("b/a/ckpt/state");
        assert_eq!(
            content(&moved, Version::Last).as_deref(),
            Some(&b"content"[..])
        );
    }
}
