//! TOML text into entries that know their line.

use serde_json::{Map, Value};
use toml_edit::{Document, Item, Key, TableLike};

use super::error::{Origin, SettingsError};
use super::write;
use crate::cli::shorten;

/// One key of a layer.
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) origin: Origin,
    pub(super) node: Node,
}

/// What a key of a layer holds.
pub(super) enum Node {
    /// A table, however it was written.
    Table(Vec<Entry>),
    /// A scalar or an array.
    Value(Value),
    /// Something that TOML can say and no setting can be: a date, a NaN, or an array that holds one.
    Foreign { kind: &'static str, text: String },
}

impl Node {
    /// The value with its kind, for the message of an error.
    pub(super) fn describe(&self) -> String {
        let (kind, text) = match self {
            Self::Table(_) => return "a table".to_owned(),
            Self::Foreign { kind, text } => (*kind, text.clone()),
            Self::Value(value) => {
                let kind = match value {
                    Value::Bool(_) | Value::Null => return format!("`{value}`"),
                    Value::Number(number) if number.is_f64() => "the float",
                    Value::Number(_) => "the integer",
                    Value::String(_) => "the string",
                    Value::Array(_) => "the array",
                    Value::Object(_) => return "a table".to_owned(),
                };
                (kind, write::literal(value))
            }
        };
        format!("{kind} `{}`", shorten(&text))
    }
}

/// The entries of a whole document; `origin` makes the origin of a line, counted from 1.
pub(super) fn document(
    text: &str,
    origin: &dyn Fn(usize) -> Origin,
) -> Result<Vec<Entry>, SettingsError> {
    // A mark that some editors put in front, and that says nothing.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let document = Document::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        SettingsError::Syntax {
            message: message(&error),
            origin: origin(Lines::of(text).number(at)),
        }
    })?;
    Ok(entries(document.as_table(), &Lines::of(text), 1, origin))
}

/// The entry that `key=value` stands for, one table around it for each dot.
pub(super) fn assignment(assignment: &str) -> Result<Entry, SettingsError> {
    let refused = || SettingsError::Assignment {
        found: assignment.to_owned(),
    };
    let origin = Origin::Set {
        assignment: assignment.to_owned(),
    };
    let (key, text) = assignment.split_once('=').ok_or_else(refused)?;
    let mut path = Key::parse(key.trim())
        .map_err(|_| refused())?
        .into_iter()
        .rev();
    let last = path.next().ok_or_else(refused)?;
    let node = match text.trim().parse::<toml_edit::Value>() {
        Ok(value) => node(&Item::Value(value), &Lines::of(""), 1, &|_| origin.clone()),
        Err(error) if text.trim().starts_with(['"', '\'', '[', '{']) => {
            return Err(SettingsError::Syntax {
                message: message(&error),
                origin,
            });
        }
        Err(_) => Node::Value(Value::from(text.trim())),
    };
    let innermost = Entry {
        key: last.get().to_owned(),
        origin: origin.clone(),
        node,
    };
    Ok(path.fold(innermost, |below, key| Entry {
        key: key.get().to_owned(),
        origin: origin.clone(),
        node: Node::Table(vec![below]),
    }))
}

/// The parser's words on one line.
fn message(error: &toml_edit::TomlError) -> String {
    let words: Vec<_> = error
        .message()
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    words.join(", ")
}

/// Where the lines of a text end.
struct Lines(Vec<usize>);

impl Lines {
    fn of(text: &str) -> Self {
        Self(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    /// The line of a byte, counted from 1.
    fn number(&self, at: usize) -> usize {
        1 + self.0.partition_point(|&end| end < at)
    }
}

/// `line` is that of the table itself, for keys that carry no position.
fn entries(
    table: &dyn TableLike,
    lines: &Lines,
    line: usize,
    origin: &dyn Fn(usize) -> Origin,
) -> Vec<Entry> {
    table
        .iter()
        .map(|(name, item)| {
            let span = table.key(name).and_then(Key::span);
            let line = span.map_or(line, |span| lines.number(span.start));
            Entry {
                key: name.to_owned(),
                origin: origin(line),
                node: node(item, lines, line, origin),
            }
        })
        .collect()
}

fn node(item: &Item, lines: &Lines, line: usize, origin: &dyn Fn(usize) -> Origin) -> Node {
    match item.as_table_like() {
        Some(table) => Node::Table(entries(table, lines, line, origin)),
        None => match value(item) {
            Ok(value) => Node::Value(value),
            Err((kind, text)) => Node::Foreign { kind, text },
        },
    }
}

/// The item as a plain value, or the kind and the text of the part of it that cannot be one.
fn value(item: &Item) -> Result<Value, (&'static str, String)> {
    let table = |table: &dyn TableLike| -> Result<Value, _> {
        let entries = table
            .iter()
            .map(|(key, item)| Ok((key.to_owned(), value(item)?)));
        Ok(Value::Object(entries.collect::<Result<Map<_, _>, _>>()?))
    };
    let scalar = match item {
        Item::None => return Ok(Value::Null),
        Item::Table(inner) => return table(inner),
        Item::ArrayOfTables(array) => {
            let items: Result<Vec<_>, _> = array.iter().map(|inner| table(inner)).collect();
            return Ok(Value::Array(items?));
        }
        Item::Value(scalar) => scalar,
    };
    match scalar {
        toml_edit::Value::String(text) => Ok(Value::from(text.value().as_str())),
        toml_edit::Value::Integer(number) => Ok(Value::from(*number.value())),
        toml_edit::Value::Boolean(truth) => Ok(Value::from(*truth.value())),
        toml_edit::Value::Float(number) if number.value().is_finite() => {
            Ok(Value::from(*number.value()))
        }
        toml_edit::Value::Float(number) => Err(("the float", number.value().to_string())),
        toml_edit::Value::Datetime(date) => Err(("the date", date.value().to_string())),
        toml_edit::Value::Array(array) => {
            let items: Result<Vec<_>, _> = array
                .iter()
                .map(|inner| value(&Item::Value(inner.clone())))
                .collect();
            Ok(Value::Array(items?))
        }
        toml_edit::Value::InlineTable(inner) => table(inner),
    }
}
