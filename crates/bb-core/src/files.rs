//! Files of strangers, opened so that nothing waits, nothing is followed that must not be, and nothing grows without end.
//!
//! A pipe keeps whoever opens it waiting, a device never ends, and a link inside a cell leads out of it; so only regular
//! files are opened, and the question is put to the open file, not to its name.
//! Memory is taken for what is read, never for what a file or the system says of it.

use std::fmt;
use std::fs::FileType;
use std::io::{self, Read as _};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::OpenOptionsExt as _;
use fs_err::{File, OpenOptions};
use rustix::fs::OFlags;

/// Why a file that can be opened is not read; the cause of an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It is something else than a regular file.
    #[error("`{}` is {found}, expected a regular file", path.display())]
    Special {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: Special,
    },
    /// It is longer than any of its kind.
    #[error("`{}` has more than {limit} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The most bytes that are read.
        limit: u64,
    },
    /// It is no text.
    #[error("`{}` is not UTF-8, at byte {at}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// How many bytes before are.
        at: usize,
    },
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What lies at a path in place of a regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Special {
    /// A folder.
    Folder,
    /// A link, where none is followed.
    Link,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A device.
    Device,
}

impl Special {
    /// What this is, unless it is a regular file.
    pub fn of(kind: FileType) -> Option<Self> {
        if kind.is_file() {
            None
        } else if kind.is_dir() {
            Some(Self::Folder)
        } else if kind.is_symlink() {
            Some(Self::Link)
        } else if kind.is_fifo() {
            Some(Self::Pipe)
        } else if kind.is_socket() {
            Some(Self::Socket)
        } else {
            Some(Self::Device)
        }
    }
}

impl fmt::Display for Special {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folder => "a folder",
            Self::Link => "a link",
            Self::Pipe => "a named pipe",
            Self::Socket => "a socket",
            Self::Device => "a device",
        })
    }
}

/// Whether the last part of a path may be a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// It may: the user named the file.
    Follow,
    /// It may not: the file belongs to a cell, where a link could lead anywhere.
    Refuse,
}

/// Opens a regular file for reading.
///
/// # Errors
/// Those of the system, and [`FileError::Special`] below an [`io::Error`]; all name the file.
pub fn open(path: impl AsRef<Path>, links: Links) -> io::Result<File> {
    open_with(path.as_ref(), OpenOptions::new().read(true), links)
}

/// Opens a regular file as `options` say, which may make it.
///
/// # Errors
/// As [`open`].
pub fn open_with(path: &Path, options: &mut OpenOptions, links: Links) -> io::Result<File> {
    // Without `NONBLOCK` a pipe waits for its other side; a regular file does not know the difference.
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    if links == Links::Refuse {
        flags |= OFlags::NOFOLLOW;
    }
    let flags = i32::try_from(flags.bits()).expect("flags of `open` are an int in C");
    let special = |found| FileError::Special {
        path: path.to_owned(),
        found,
    };
    let file = options.custom_flags(flags).open(path).map_err(|error| {
        // What it is says more than what the system thinks of opening it: a link, a socket, a pipe that nobody reads.
        let facts = match links {
            Links::Follow => fs_err::metadata(path),
            Links::Refuse => fs_err::symlink_metadata(path),
        };
        let found = facts.ok().and_then(|facts| Special::of(facts.file_type()));
        found.map_or(error, |found| special(found).into())
    })?;
    match Special::of(file.metadata()?.file_type()) {
        None => Ok(file),
        Some(found) => Err(special(found).into()),
    }
}

/// The content of a regular file of at most `limit` bytes.
///
/// # Errors
/// As [`open`], and [`FileError::TooLong`].
pub fn read(path: impl AsRef<Path>, links: Links, limit: u64) -> io::Result<Vec<u8>> {
    let path = path.as_ref();
    let too_long = || FileError::TooLong {
        path: path.to_owned(),
        limit,
    };
    let file = open(path, links)?;
    // A hole of any size is read as zeros, which takes its time; the files of the system say that they are empty.
    if file.metadata()?.len() > limit {
        return Err(too_long().into());
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_long().into());
    }
    Ok(bytes)
}

/// [`read`] for text.
///
/// # Errors
/// As [`read`], and [`FileError::NotText`].
pub fn read_text(path: impl AsRef<Path>, links: Links, limit: u64) -> io::Result<String> {
    let path = path.as_ref();
    String::from_utf8(read(path, links, limit)?).map_err(|error| {
        let (path, at) = (path.to_owned(), error.utf8_error().valid_up_to());
        FileError::NotText { path, at }.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Coded as _, exit};
    use rustix::fs::{CWD, FileType as Made, Mode, mknodat};

    fn said(result: io::Result<impl fmt::Debug>) -> String {
        let error = result.expect_err("it must be refused");
        assert_eq!(error.exit_code(), exit::INPUT);
        error.to_string()
    }

    #[test]
    fn only_regular_files_are_opened_and_no_pipe_is_waited_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let place = |name: &str| dir.path().join(name);
        fs_err::write(place("file"), "text").expect("written");
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, place("pipe"), Made::Fifo, mode, 0).expect("a pipe");
        let _socket = std::os::unix::net::UnixListener::bind(place("socket")).expect("a socket");
        for (name, target) in [
            ("link", "file"),
            ("to-pipe", "pipe"),
            ("nowhere", "absent"),
            ("round", "round"),
            ("zero", "/dev/zero"),
        ] {
            fs_err::os::unix::fs::symlink(target, place(name)).expect("a link");
        }
        let read = |name: &str, links| read(place(name), links, 10);

        for name in ["file", "link"] {
            assert_eq!(read(name, Links::Follow).expect("a file"), b"text");
        }
        assert_eq!(read("file", Links::Refuse).expect("a file"), b"text");
        for name in ["link", "to-pipe", "nowhere", "round", "zero"] {
            let text = said(read(name, Links::Refuse));
            assert!(
                text.ends_with(&format!("{name}` is a link, expected a regular file")),
                "{text}"
            );
        }
        for (name, what) in [
            ("pipe", "a named pipe"),
            ("to-pipe", "a named pipe"),
            ("socket", "a socket"),
            ("zero", "a device"),
            (".", "a folder"),
        ] {
            let text = said(read(name, Links::Follow));
            assert!(
                text.contains(&format!("is {what}, expected a regular file")),
                "{text}"
            );
        }
        // Also for writing, where a pipe that nobody reads is refused by the system itself.
        let append = |name: &str| {
            let mut options = OpenOptions::new();
            options.append(true).create(true);
            open_with(&place(name), &mut options, Links::Refuse)
        };
        assert!(said(append("pipe")).contains("is a named pipe"));
        assert!(said(append("link")).contains("is a link"));
        assert!(said(append("nowhere")).contains("is a link"));
        append("new").expect("a file is made");
        assert!(!place("absent").exists(), "a link was followed");
    }

    #[test]
    fn a_file_is_read_up_to_its_limit_and_not_beyond() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("file");
        fs_err::write(&path, "four").expect("written");
        assert_eq!(
            read(&path, Links::Follow, 4).expect("as long as allowed"),
            b"four"
        );
        assert!(said(read(&path, Links::Follow, 3)).ends_with("has more than 3 bytes"));
        fs_err::write(&path, b"ab\xff").expect("written");
        let text = said(read_text(&path, Links::Follow, 10));
        assert!(text.ends_with("is not UTF-8, at byte 2"), "{text}");
    }
}
