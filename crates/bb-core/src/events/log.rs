//! Rows for programs, lines for people.

use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::Serialize;
use serde_json::Value;

use super::{progress, rfc3339};
use crate::files::{self, Links};

/// Most bytes of a file of rows; those of a thousand epochs have one or two million.
pub const LONGEST_ROWS: u64 = 64 << 20;

/// A file of JSON objects, one a line, that only grows.
#[derive(Debug)]
pub struct JsonLines {
    file: fs_err::File,
}

impl JsonLines {
    /// Opens the file to append to it, and creates it where there is none.
    ///
    /// A last line without its end was cut off by a crash and is dropped, so that all lines are whole.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = fs_err::OpenOptions::new();
        options.append(true).create(true);
        let file = files::open_with(path, &mut options, Links::Refuse)?;
        let bytes = files::read(path, Links::Refuse, LONGEST_ROWS)?;
        let whole = bytes
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
        }
        Ok(Self { file })
    }

    /// Appends one row. A number that is not finite becomes null, which is all that JSON has for it.
    pub fn write(&mut self, row: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(row)?;
        line.push(b'\n');
        // One call for the whole line: a crash cuts it off at worst, and never mixes two.
        self.file.write_all(&line)
    }
}

/// The log of a run: lines for people on standard error, the same and more as JSON in `log.jsonl`.
///
/// A row holds `time`, `level`, `event`, `text` and, under `data`, what belongs to the event.
#[derive(Debug)]
pub struct Log {
    file: Option<Mutex<JsonLines>>,
    quiet: bool,
}

impl Log {
    /// A log that only people see.
    pub fn new(quiet: bool) -> Self {
        Self { file: None, quiet }
    }

    /// A log that is kept in a file too.
    pub fn open(path: &Path, quiet: bool) -> io::Result<Self> {
        Ok(Self {
            file: Some(Mutex::new(JsonLines::open(path)?)),
            quiet,
        })
    }

    /// Something happened, as expected. `event` is a fixed word to search for, `text` one line for people.
    pub fn info(&self, event: &str, text: &str, data: &impl Serialize) -> io::Result<()> {
        if !self.quiet {
            progress::line(text);
        }
        self.row("info", event, text, data)
    }

    /// Something happened that the user should know of; said even when quiet.
    pub fn warn(&self, event: &str, text: &str, data: &impl Serialize) -> io::Result<()> {
        progress::line(&format!("warning: {text}"));
        self.row("warning", event, text, data)
    }

    fn row(&self, level: &str, event: &str, text: &str, data: &impl Serialize) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let time = rfc3339(SystemTime::now());
        let mut row =
            serde_json::json!({ "time": time, "level": level, "event": event, "text": text });
        let data = serde_json::to_value(data)?;
        if data != Value::Null {
            row["data"] = data;
        }
        file.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(&row)
    }
}
