//! A failure on its way to the user.

use std::any::Any;
use std::borrow::Cow;
use std::error::Error;
use std::fmt::{self, Write as _};
use std::io;

use rustix::io::Errno;

use super::exit;

/// An error that knows how the program ends because of it.
pub trait Coded: Error {
    /// One of the codes in [`exit`].
    fn exit_code(&self) -> u8;

    /// What the user can do about it, in one line.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// Any error, with the exit code and the hint that it ends the program with.
///
/// Made by `?` from every error that is [`Coded`]. Like `anyhow::Error` it is no error itself, which makes that possible.
pub struct Failure(Box<Inner>);

struct Inner {
    error: Box<dyn Error + Send + Sync>,
    code: u8,
    hint: Option<String>,
}

impl Failure {
    /// A failure with an exit code of its own; `error` may be a message.
    pub fn new(code: u8, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Box::new(Inner {
            error: error.into(),
            code,
            hint: None,
        }))
    }

    /// A check said no, with exit code 1.
    pub fn check(message: impl Into<String>) -> Self {
        Self::new(exit::NO, message.into())
    }

    /// Wrong usage that the parser of the command line cannot see, with exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(exit::USAGE, message.into())
    }

    /// A bug: a part of the program panicked with this payload.
    pub fn panicked(payload: &(dyn Any + Send)) -> Self {
        let words = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied());
        Self::new(
            exit::BUG,
            format!("a bug: {}", words.unwrap_or("it panicked")),
        )
    }

    /// The same failure with another hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same failure below a message that says what was being done.
    #[must_use]
    pub fn context(mut self, message: impl Into<String>) -> Self {
        self.0.error = Box::new(Context {
            message: message.into(),
            source: self.0.error,
        });
        self
    }

    /// The exit code of the program.
    pub fn exit_code(&self) -> u8 {
        self.0.code
    }

    /// The error itself.
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.0.error
    }

    /// What the user sees: `error:`, one `caused by:` for each source, `hint:`.
    pub fn report(&self, colour: bool) -> String {
        let mut text = String::new();
        let mut line = |colour_code: &str, label: &str, words: &str| {
            let words = visible(words);
            let written = if colour {
                writeln!(text, "\x1b[1;{colour_code}m{label}:\x1b[0m {words}")
            } else {
                writeln!(text, "{label}: {words}")
            };
            written.expect("writing to a string succeeds");
        };
        let mut said = self.0.error.to_string();
        line("31", "error", &said);
        for cause in causes(self.error()) {
            // Some errors repeat their source in their own message.
            let words = cause.to_string();
            if !said.contains(&words) {
                line("33", "caused by", &words);
                said = words;
            }
        }
        if let Some(hint) = &self.0.hint {
            line("36", "hint", hint);
        }
        text
    }

    /// Whether the reader of standard output went away; nothing else writes to pipes.
    pub(super) fn is_broken_pipe(&self) -> bool {
        let broken = |error: &(dyn Error + 'static)| {
            error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        };
        broken(self.error()) || causes(self.error()).any(broken)
    }
}

impl<E: Coded + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        let (code, hint) = (error.exit_code(), error.hint());
        Self(Box::new(Inner {
            error: Box::new(error),
            code,
            hint,
        }))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.error.fmt(f)
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {}\n{}", self.0.code, self.report(false))
    }
}

impl Coded for io::Error {
    /// What is short now may not be later; everything else is about the file that was named.
    fn exit_code(&self) -> u8 {
        match self.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::ResourceBusy
            | io::ErrorKind::OutOfMemory
            | io::ErrorKind::WouldBlock
            | io::ErrorKind::TimedOut
            // What a disk becomes after an error of its own, and a server's file after a restart.
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::StaleNetworkFileHandle => exit::TRY_AGAIN,
            _ if has_too_many_open_files(self) => exit::TRY_AGAIN,
            _ => exit::INPUT,
        }
    }
}

/// Whether the system has no room for another open file, which has no kind of its own. The number may lie below errors
/// that name the file, and those of `fs_err` keep it in their words alone.
fn has_too_many_open_files(error: &io::Error) -> bool {
    let full = |error: &io::Error| {
        [Errno::MFILE, Errno::NFILE].iter().any(|full| {
            let number = full.raw_os_error();
            let words = format!("(os error {number})");
            error.raw_os_error() == Some(number) || error.to_string().ends_with(&words)
        })
    };
    full(error) || causes(error).any(|error| error.downcast_ref().is_some_and(full))
}

/// Enough of a value to recognise it by in a message: it may be of any length.
pub fn shorten(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A text without anything that a terminal would obey: control characters, but for line breaks and tabs, and those that
/// turn the direction of what follows become visible.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| {
        let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        turns || (c.is_control() && !matches!(c, '\n' | '\t'))
    };
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let shown = text.chars().flat_map(|c| {
        let escaped = obeyed(c).then(|| c.escape_unicode());
        let plain = escaped.is_none().then_some(c);
        escaped.into_iter().flatten().chain(plain)
    });
    Cow::Owned(shown.collect())
}

/// The sources of an error, outermost first.
pub(crate) fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |&error| error.source())
}

/// A message above an error.
#[derive(Debug)]
struct Context {
    message: String,
    source: Box<dyn Error + Send + Sync>,
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Context {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
