//! Locks that the system releases when their process ends, however it ends.

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::CellError;
use crate::files::{self, Links};

/// The process that holds a lock, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its number on its machine.
    pub process: u32,
    /// The name of the machine, where the lock file says it; those of older versions do not.
    pub host: Option<String>,
}

impl Holder {
    /// This process.
    pub fn here() -> Self {
        let name = rustix::system::uname();
        let host = name.nodename().to_str().ok().filter(|name| is_host(name));
        Self {
            process: std::process::id(),
            host: host.map(str::to_owned),
        }
    }

    /// Reads the text of a lock file: number and host.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let process = words.next()?.parse().ok()?;
        let host = words.next().filter(|name| is_host(name));
        Some(Self {
            process,
            host: host.map(str::to_owned),
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.process)?;
        match &self.host {
            Some(host) => write!(f, " on {host}"),
            None => Ok(()),
        }
    }
}

/// Whether this can be printed as the name of a machine; anybody may have written a lock file.
fn is_host(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 255 && name.chars().all(plain)
}

/// A lock that is held until the value is dropped.
#[derive(Debug)]
pub struct Lock(fs_err::File);

impl Lock {
    /// Locks the file `name` in the folder `dir`, without waiting for it.
    ///
    /// The file stays when the lock is released: if it were removed, a third process could lock a new file of that name
    /// while a second one gets the old.
    ///
    /// # Errors
    /// [`CellError::Locked`] if another process holds it, [`CellError::NoLocks`] if the filesystem has no locks.
    pub fn take(dir: &Path, name: &str) -> Result<Self, CellError> {
        let path = dir.join(name);
        let io = CellError::io(&path);
        let mut options = fs_err::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // The file is cut to the note below: through a link it would be somebody else's.
        let mut file = match files::open_with(&path, &mut options, Links::Refuse) {
            Ok(file) => file,
            Err(error) => return Err(io(error)),
        };
        if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::WOULDBLOCK {
                return Err(refused(&path, error));
            }
            let mut text = String::new();
            // Only for the message: the holder may not have written its number yet.
            let read = file.take(300).read_to_string(&mut text);
            return Err(CellError::Locked {
                path: dir.to_owned(),
                holder: read.ok().and_then(|_| Holder::parse(&text)),
            });
        }
        let Holder { process, host } = Holder::here();
        let note = file
            .set_len(0)
            .and_then(|()| writeln!(file, "{process} {}", host.unwrap_or_default()));
        match note {
            Ok(()) => Ok(Self(file)),
            Err(error) => Err(io(error)),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file would do, but for a child process that has just been forked off and still has a copy.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Why the system did not even look whether the lock is free.
fn refused(path: &Path, error: Errno) -> CellError {
    let source = error.into();
    match error {
        Errno::NOTSUP | Errno::NOSYS | Errno::NOLCK | Errno::INVAL => CellError::NoLocks {
            path: path.to_owned(),
            source,
        },
        _ => CellError::io(path)(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Coded as _, exit};

    #[test]
    fn a_lock_file_says_who_holds_it_and_nothing_that_a_terminal_would_obey() {
        let holder = |process, host: Option<&str>| {
            Some(Holder {
                process,
                host: host.map(str::to_owned),
            })
        };
        for (text, expect) in [
            ("12 node-7.cluster\n", holder(12, Some("node-7.cluster"))),
            ("12\n", holder(12, None)),
            ("12 \u{1b}[31mred\n", holder(12, None)),
            ("12 a/b\n", holder(12, None)),
            ("", None),
            ("twelve node\n", None),
            ("-1 node\n", None),
            ("99999999999 node\n", None),
        ] {
            assert_eq!(Holder::parse(text), expect, "{text:?}");
        }
        assert_eq!(
            holder(12, Some("node")).map(|h| h.to_string()),
            Some("process 12 on node".to_owned())
        );
        assert_eq!(
            holder(12, None).map(|h| h.to_string()),
            Some("process 12".to_owned())
        );
    }

    #[test]
    fn a_filesystem_without_locks_is_called_so() {
        let path = Path::new("out/lock");
        for error in [Errno::NOTSUP, Errno::NOSYS, Errno::NOLCK] {
            let error = refused(path, error);
            assert_eq!(
                error.to_string(),
                "cannot lock `out/lock`: its filesystem has no file locks (`flock`)"
            );
            assert_eq!(error.exit_code(), exit::INPUT);
            let hint = error.hint().expect("there is a way out");
            assert!(hint.contains("`--store`"), "{hint}");
        }
        let other = refused(path, Errno::IO);
        assert!(matches!(other, CellError::Io { .. }), "{other}");
    }
}
