//! Brings a listed file to where it is wanted: from a folder or a server, whole, and with the content that the list says.
//!
//! Nothing of a file is parsed before its size and its SHA-256 are right.
//! A download goes to `<name>.part` beside the target and is continued from there, also by the next program and from the
//! next mirror, since all mirrors hold the same bytes.
//! What people often get instead of a file, a web page or a Git LFS pointer, is recognised by its first bytes and named.
//!
//! Downloads need the feature `download`; folders do not.

use std::fmt::{self, Write as _};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bb_core::artifact::{ArtifactError, sha256_file};
use bb_core::cli::{Coded, exit};
use bb_core::files::{self, Links};
use fs_err::{File, OpenOptions};

use crate::index::Listed;
use crate::sniff;

#[cfg(feature = "download")]
mod http;

/// Where a file may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A path, also written as `file://` and an absolute path.
    Path(PathBuf),
    /// An `http://` or `https://` address.
    Address(String),
}

impl Source {
    /// What the user named: an address, or else a path.
    ///
    /// # Errors
    /// [`FetchError::Scheme`] for another scheme, and for `file://` with a host.
    pub fn parse(text: &str) -> Result<Self, FetchError> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(Self::Path(text.into()));
        };
        match scheme {
            "http" | "https" => Ok(Self::Address(text.to_owned())),
            "file" if rest.starts_with('/') => Ok(Self::Path(rest.into())),
            _ => Err(FetchError::Scheme {
                text: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Why a file could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// An address of a kind that is not fetched from.
    #[error("`{}` is no source, expected a path, `file:///PATH`, `http://` or `https://`", text.escape_debug())]
    Scheme {
        /// What was named.
        text: String,
    },
    /// There is nowhere to get it from.
    #[error("`{name}` is published nowhere")]
    NoSource {
        /// Its name.
        name: String,
    },
    /// What lies at the target is another file.
    #[error("`{}` is another file: {fault}", path.display())]
    Other {
        /// The target.
        path: PathBuf,
        /// What differs.
        fault: Fault,
    },
    /// Another process is fetching it.
    #[error("`{}` is being fetched by another process", path.display())]
    Busy {
        /// The file that it writes.
        path: PathBuf,
    },
    /// The target cannot be read or written.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// The target cannot be read.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// No source had it.
    #[error("`{name}` could not be fetched{}", lines(tried))]
    Failed {
        /// Its name.
        name: String,
        /// Each source with what went wrong.
        tried: Vec<(Source, Fault)>,
    },
}

impl Coded for FetchError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Scheme { .. } => exit::USAGE,
            Self::Busy { .. } => exit::TRY_AGAIN,
            Self::Disk(error) => error.exit_code(),
            Self::Artifact(error) => error.exit_code(),
            Self::Failed { tried, .. } if tried.iter().any(|(_, fault)| fault.is_passing()) => {
                exit::TRY_AGAIN
            }
            _ => exit::INPUT,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoSource { .. } => Some("name a copy of it with `--from`".to_owned()),
            Self::Other { .. } => Some("remove it, and fetch again".to_owned()),
            Self::Failed { tried, .. } => tried
                .iter()
                .any(|(_, fault)| matches!(fault, Fault::FeatureOff))
                .then(|| {
                    "build with `--features download`, or name a copy with `--from`".to_owned()
                }),
            _ => None,
        }
    }
}

/// A line for each source.
fn lines(tried: &[(Source, Fault)]) -> String {
    let mut text = String::new();
    for (source, fault) in tried {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {source}: {fault}");
    }
    text
}

/// What is wrong with one source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Not the announced length.
    #[error("{found} bytes, expected {expected}")]
    Size {
        /// Its length.
        found: u64,
        /// The listed one.
        expected: u64,
    },
    /// The right length and another content.
    #[error("SHA-256 {found}, expected {expected}")]
    Hash {
        /// Its hash.
        found: String,
        /// The listed one.
        expected: String,
    },
    /// Something else in place of the file.
    #[error("{what}")]
    Sniffed {
        /// What it is.
        what: &'static str,
    },
    /// The server says no.
    #[error("the server answers {status}")]
    Status {
        /// HTTP's status code.
        status: u16,
    },
    /// The connection failed, or broke off for good.
    #[error("{reason}")]
    Connection {
        /// What the client said.
        reason: String,
    },
    /// The bytes come so slowly that the whole would not come in time.
    #[error("it sends fewer than {LEAST_RATE} bytes a second")]
    Slow,
    /// A path that cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The program was built without downloads.
    #[error("this build does not download")]
    FeatureOff,
}

impl Fault {
    /// Whether it may be otherwise later.
    fn is_passing(&self) -> bool {
        match self {
            Self::Connection { .. } | Self::Slow => true,
            Self::Status { status } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }
}

/// Bytes a second that a source must bring, over each [`SPAN`] and over all.
const LEAST_RATE: u64 = 4096;
const SPAN: Duration = Duration::from_secs(60);

/// Whether bytes come fast enough; without it a byte a minute would keep a program for years.
struct Pace {
    /// When this span began, and the bytes since.
    span: (Instant, u64),
    /// When the source should be done, whatever it did.
    end: Instant,
    /// Whether it was too slow.
    slow: bool,
}

impl Pace {
    /// For a file of `bytes`, twice as long as it takes at the least rate, since a source may begin anew.
    fn new(bytes: u64, now: Instant) -> Self {
        let all = Duration::from_secs(2 * (bytes / LEAST_RATE)) + SPAN;
        Self {
            span: (now, 0),
            end: now + all,
            slow: false,
        }
    }

    /// Counts bytes and says whether they come fast enough.
    fn count(&mut self, bytes: usize, now: Instant) -> bool {
        let (begun, so_far) = &mut self.span;
        *so_far += bytes as u64;
        if now.duration_since(*begun) >= SPAN {
            self.slow |= *so_far < LEAST_RATE * SPAN.as_secs();
            self.span = (now, 0);
        }
        self.slow |= now > self.end;
        !self.slow
    }
}

/// A source that fails when it is too slow.
struct Paced<'a>(&'a mut dyn Read, &'a mut Pace);

impl Read for Paced<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let found = self.0.read(buffer)?;
        // At the end it does not matter any more.
        if found == 0 || self.1.count(found, Instant::now()) {
            Ok(found)
        } else {
            Err(io::ErrorKind::TimedOut.into())
        }
    }
}

/// The bytes of a file as they come in.
struct Part<'a> {
    file: File,
    path: PathBuf,
    wanted: &'a Listed,
    /// Bytes so far.
    len: u64,
    progress: &'a mut dyn FnMut(u64),
}

/// Brings a file to `target`, from the first of `sources` that has it; one that is there already is checked and kept.
///
/// `progress` is told how many bytes there are, now and then.
///
/// # Errors
/// [`FetchError::Failed`] with what was wrong with each source, and whatever is wrong with the target.
pub fn fetch(
    sources: &[Source],
    wanted: &Listed,
    target: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), FetchError> {
    if target.symlink_metadata().is_ok() {
        return match check(target, wanted)? {
            None => Ok(()),
            Some(fault) => Err(FetchError::Other {
                path: target.to_owned(),
                fault,
            }),
        };
    }
    let name = || target.display().to_string();
    if sources.is_empty() {
        return Err(FetchError::NoSource { name: name() });
    }
    let mut part = Part::open(target, wanted, progress)?;
    let mut tried = Vec::new();
    for source in sources {
        let continued = part.len > 0;
        let mut brought = part.bring(source)?;
        if brought.is_err() && continued && part.len == 0 {
            // What was there was of another file, so this source has not had its turn yet.
            brought = part.bring(source)?;
        }
        match brought {
            Ok(()) => return part.finish(target),
            Err(fault) => tried.push((source.clone(), fault)),
        }
    }
    part.give_up()?;
    Err(FetchError::Failed {
        name: name(),
        tried,
    })
}

/// What is wrong with a file that lies there; nothing if it is the listed one.
///
/// # Errors
/// If it cannot be read.
pub fn check(path: &Path, wanted: &Listed) -> Result<Option<Fault>, FetchError> {
    let mut file = files::open(path, Links::Follow)?;
    let (found, expected) = (file.metadata()?.len(), wanted.bytes);
    if found != expected {
        let mut head = [0; sniff::HEAD];
        let read = sniff::read_up_to(&mut file, &mut head)?;
        return Ok(Some(match sniff::instead(&head[..read]) {
            Some(what) => Fault::Sniffed { what },
            None => Fault::Size { found, expected },
        }));
    }
    let (found, expected) = (sha256_file(path)?, wanted.sha256.clone());
    Ok((found != expected).then_some(Fault::Hash { found, expected }))
}

impl<'a> Part<'a> {
    /// Opens what an earlier download left, or begins anew.
    fn open(
        target: &Path,
        wanted: &'a Listed,
        progress: &'a mut dyn FnMut(u64),
    ) -> Result<Self, FetchError> {
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".part");
        let path = target.with_file_name(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        // A link there could lead to any other file of the user.
        let file = files::open_with(&path, &mut options, Links::Refuse)?;
        match file.file().try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(FetchError::Busy { path }),
            Err(std::fs::TryLockError::Error(error)) => return Err(error.into()),
        }
        let len = file.metadata()?.len();
        let mut part = Self {
            file,
            path,
            wanted,
            len,
            progress,
        };
        if len > wanted.bytes {
            part.restart()?;
        }
        part.file.seek(SeekFrom::End(0))?;
        Ok(part)
    }

    /// Takes all of the file from a source; the outer error is one of the disk.
    ///
    /// Of wrong bytes nothing is left, since it is not known whose they were.
    fn bring(&mut self, source: &Source) -> Result<Result<(), Fault>, FetchError> {
        let brought = match source {
            Source::Path(path) => self.copy(path)?,
            Source::Address(address) => self.download(address)?,
        };
        if brought.is_err() {
            return Ok(brought);
        }
        match self.check()? {
            None => Ok(Ok(())),
            Some(fault) => {
                self.restart()?;
                Ok(Err(fault))
            }
        }
    }

    /// Forgets all bytes.
    fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.len = 0;
        (self.progress)(0);
        Ok(())
    }

    /// Takes bytes of a source until it ends; the outer error is one of the disk.
    ///
    /// The first bytes of the file are looked at before they are kept, and not one is kept beyond the listed length.
    fn take(&mut self, source: &mut dyn Read, pace: &mut Pace) -> io::Result<Result<(), Fault>> {
        let mut buffer = vec![0; 1 << 16];
        let source = &mut Paced(source, pace);
        loop {
            // At the beginning a whole head, which a server may send in pieces.
            let found = if self.len == 0 {
                sniff::read_up_to(source, &mut buffer[..sniff::HEAD])
            } else {
                source.read(&mut buffer)
            };
            let found = match found {
                Ok(0) => return Ok(Ok(())),
                Ok(found) => found,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) if source.1.slow => return Ok(Err(Fault::Slow)),
                Err(error) => {
                    let reason = error.to_string();
                    return Ok(Err(Fault::Connection { reason }));
                }
            };
            if self.len == 0
                && let Some(what) = sniff::instead(&buffer[..found])
            {
                return Ok(Err(Fault::Sniffed { what }));
            }
            if self.len + found as u64 > self.wanted.bytes {
                let (found, expected) = (self.len + found as u64, self.wanted.bytes);
                self.restart()?;
                return Ok(Err(Fault::Size { found, expected }));
            }
            self.file.write_all(&buffer[..found])?;
            self.len += found as u64;
            (self.progress)(self.len);
        }
    }

    fn copy(&mut self, path: &Path) -> io::Result<Result<(), Fault>> {
        let begin = || -> Result<File, Fault> {
            let mut file = files::open(path, Links::Follow)?;
            let (found, expected) = (file.metadata()?.len(), self.wanted.bytes);
            if found != expected {
                let mut head = [0; sniff::HEAD];
                let read = sniff::read_up_to(&mut file, &mut head)?;
                return Err(match sniff::instead(&head[..read]) {
                    Some(what) => Fault::Sniffed { what },
                    None => Fault::Size { found, expected },
                });
            }
            Ok(file)
        };
        let mut file = match begin() {
            Ok(file) => file,
            Err(fault) => return Ok(Err(fault)),
        };
        // A copy costs little, so nothing is taken over from what a download left.
        self.restart()?;
        self.take(&mut file, &mut Pace::new(self.wanted.bytes, Instant::now()))
    }

    #[cfg(not(feature = "download"))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "as with the feature"
    )]
    fn download(&mut self, _: &str) -> io::Result<Result<(), Fault>> {
        Ok(Err(Fault::FeatureOff))
    }

    /// Whether the bytes are all there, and the right ones.
    fn check(&mut self) -> Result<Option<Fault>, FetchError> {
        self.file.flush()?;
        check(&self.path, self.wanted)
    }

    fn finish(self, target: &Path) -> Result<(), FetchError> {
        self.file.sync_all()?;
        fs_err::rename(&self.path, target)?;
        let folder = target.parent().filter(|p| *p != Path::new(""));
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(())
    }

    /// Leaves what may be continued, and nothing else.
    fn give_up(self) -> io::Result<()> {
        if self.len == 0 {
            fs_err::remove_file(&self.path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_too_slow_in_any_minute_or_over_all() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let least = (LEAST_RATE * SPAN.as_secs()) as usize;
        // A byte a minute.
        let mut pace = Pace::new(1 << 30, begun);
        assert!(pace.count(1, at(59)));
        assert!(!pace.count(1, at(118)));
        // Fast, and then no more.
        let mut pace = Pace::new(1 << 30, begun);
        assert!(pace.count(100 * least, at(60)));
        assert!(!pace.count(least - 1, at(120)) && pace.slow);
        // As slow as it may be, and for longer than twice the file takes.
        let mut pace = Pace::new(10 * least as u64, begun);
        for minute in 1..=21 {
            assert!(pace.count(least, at(60 * minute)), "{minute}");
        }
        assert!(!pace.count(least, at(60 * 21 + 1)));
    }
}
