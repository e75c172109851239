//! What is inside a checkpoint, for people.

use super::file::Checkpoint;
use super::pickle::{Object, Value, short};
use std::fmt::Write as _;

/// How much of a checkpoint is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detail {
    /// Dictionaries in one another.
    levels: usize,
    /// Entries of each dictionary.
    entries: usize,
    /// Lines.
    lines: usize,
}

impl Detail {
    /// One page: the beginning of each dictionary.
    pub const PAGE: Self = Self {
        levels: 4,
        entries: 12,
        lines: 60,
    };
    /// As much as anybody reads. A small file can hold one dictionary at so many places that it would never be shown
    /// whole.
    pub const FULL: Self = Self {
        levels: 4,
        entries: 5000,
        lines: 5000,
    };
}

/// What is inside a checkpoint, one line for each value, and 80 characters of each text; nothing in it is run.
pub fn scan(checkpoint: &Checkpoint, detail: Detail) -> String {
    let mut page = Page {
        checkpoint,
        detail,
        text: String::new(),
        left: detail.lines,
    };
    page.describe(&checkpoint.pickle().root, "", 0);
    if page.left == 0 {
        page.text.push_str("and more\n");
    }
    page.text
}

struct Page<'a> {
    checkpoint: &'a Checkpoint,
    detail: Detail,
    text: String,
    left: usize,
}

impl Page<'_> {
    fn line(&mut self, level: usize, line: &str) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{}{line}", "  ".repeat(level));
        true
    }

    fn describe(&mut self, value: &Value, name: &str, level: usize) {
        let checkpoint = self.checkpoint;
        let pickle = checkpoint.pickle();
        let what = match (value, pickle.object(value)) {
            (Value::Text(text), _) => format!("\"{}\"", short(text)),
            (Value::Int(n), _) => n.to_string(),
            (Value::Float(x), _) => x.to_string(),
            (Value::Bool(b), _) => b.to_string(),
            (_, Some(Object::Tensor(tensor))) => {
                format!("tensor {:?} {:?}", tensor.storage.element, tensor.shape)
            }
            (_, Some(Object::Array(Some(array)))) => {
                format!("array {:?} {:?}", array.element, array.shape)
            }
            (_, Some(Object::Dict(entries))) => format!("dictionary of {}", entries.len()),
            (_, Some(Object::List(items) | Object::Tuple(items) | Object::Set(items))) => {
                format!("{} of {}", pickle.kind(value), items.len())
            }
            _ => pickle.kind(value).to_owned(),
        };
        let separator = if level == 0 { "" } else { ": " };
        let shown = self.line(level, &format!("{name}{separator}{what}"));
        if !shown || level >= self.detail.levels {
            return;
        }
        let entries = pickle.dict(value).unwrap_or_default();
        for (key, value) in entries.iter().take(self.detail.entries) {
            let name = match key {
                Value::Text(text) => short(text),
                Value::Int(n) => n.to_string(),
                other => pickle.kind(other).to_owned(),
            };
            self.describe(value, &name, level + 1);
        }
        if entries.len() > self.detail.entries {
            let more = format!("and {} more", entries.len() - self.detail.entries);
            self.line(level + 1, &more);
        }
    }
}
