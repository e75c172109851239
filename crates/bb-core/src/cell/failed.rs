//! The record of a run that failed for good, which the next run need not repeat.

use std::error::Error;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use serde::de::Error as _;
use serde::{Deserialize, Serialize};

use super::{CellError, FAILED};
use crate::artifact::{ArtifactError, atomic};
use crate::cli::{causes, exit};
use crate::events::rfc3339;
use crate::files::{self, FileError, Links};
use crate::json;

/// Most bytes of a record: no message comes near.
const LONGEST: u64 = 1 << 20;
/// Most values of a record, which has four.
const MOST_VALUES: usize = 100;
/// Characters of a message that are shown.
const SHOWN: usize = 2000;

/// What [`FAILED`] says of the last run of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The exit code that the run ended with, see [`exit`].
    pub exit_code: u8,
    /// What went wrong, on one line.
    pub message: String,
    /// When it was, in UTC as RFC 3339.
    pub time: String,
    /// The version of the program.
    pub version: String,
}

impl Failed {
    /// The record in the folder of a cell, if there is one.
    ///
    /// # Errors
    /// [`CellError::Record`] if it says something else, [`CellError::NotAFile`] and [`CellError::Io`] if it cannot be
    /// read.
    pub fn read(dir: &Path) -> Result<Option<Self>, CellError> {
        let path = dir.join(FAILED);
        match fs_err::symlink_metadata(&path) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(CellError::NotAFile { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(CellError::io(&path)(error)),
        }
        let bytes = files::read(&path, Links::Refuse, LONGEST).map_err(CellError::io(&path))?;
        let invalid = |field: String, source| CellError::Record {
            path: path.clone(),
            field,
            source,
        };
        let mut record: Self = json::parse(&bytes, MOST_VALUES)
            .map_err(|error| invalid(error.path().to_string(), error.into_inner()))?;
        if !is_for_good(record.exit_code) {
            let source = serde_json::Error::custom(format_args!(
                "found {}, expected 2, 3, 4 or 101",
                record.exit_code
            ));
            return Err(invalid("exit_code".to_owned(), source));
        }
        for text in [&mut record.message, &mut record.time, &mut record.version] {
            *text = one_line(text);
        }
        Ok(Some(record))
    }

    /// The record of an error, if the same run would meet it again.
    ///
    /// What came of the machine (an interruption, a full disk, any file that could not be read or written, a lock) may
    /// be gone when the run is repeated.
    pub(super) fn of(code: u8, error: &(dyn Error + 'static)) -> Option<Self> {
        let mut all = std::iter::once(error).chain(causes(error));
        let of_a_file =
            |error: &(dyn Error + 'static)| error.is::<io::Error>() || error.is::<FileError>();
        if !is_for_good(code) || all.any(of_a_file) {
            return None;
        }
        let mut message = error.to_string();
        for cause in causes(error) {
            let words = cause.to_string();
            // Some errors repeat their source in their own message.
            if !message.contains(&words) {
                message = format!("{message}: {words}");
            }
        }
        Some(Self::new(code, &message))
    }

    pub(super) fn new(exit_code: u8, message: &str) -> Self {
        Self {
            exit_code,
            message: one_line(message),
            time: rfc3339(SystemTime::now()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    pub(super) fn write(&self, dir: &Path) -> Result<(), ArtifactError> {
        let mut text = serde_json::to_string_pretty(self).expect("a record is plain data");
        text.push('\n');
        atomic::write(dir.join(FAILED), text)
    }
}

/// Whether a run that ended with this code would do so again.
fn is_for_good(code: u8) -> bool {
    matches!(
        code,
        exit::USAGE | exit::INPUT | exit::NUMERICAL | exit::BUG
    )
}

/// A text of any length and kind on one line of a plan or a table, without anything that a terminal would obey.
fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(SHOWN).collect()
}
