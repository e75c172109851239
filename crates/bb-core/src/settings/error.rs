//! What can be wrong with settings, and where it stands.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::read::Node;
use super::{suggest, write};
use crate::cli::{Coded, exit};

/// Where a value was set.
///
/// Displayed as `--show-config` shows it; [`SettingsError`] adds the line, or the words of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// In the code.
    Defaults,
    /// In a recipe that is part of the program.
    Recipe {
        /// Its path in the repository.
        name: String,
        /// Line, counted from 1.
        line: usize,
    },
    /// In a file given with `-c`.
    File {
        /// The path as it was given.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
    },
    /// With `--set`.
    Set {
        /// What followed `--set`.
        assignment: String,
    },
}

impl Origin {
    /// The line, where there is one.
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::Recipe { line, .. } | Self::File { line, .. } => Some(*line),
            Self::Defaults | Self::Set { .. } => None,
        }
    }

    /// The place, for the second line of an error.
    fn place(&self) -> String {
        match self {
            Self::Defaults => "in the defaults".to_owned(),
            Self::Recipe { name, line } => format!("in {name}, line {line}"),
            Self::File { path, line } => format!("in {}, line {line}", path.display()),
            Self::Set { assignment } => format!("in `--set {assignment}`"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Defaults => f.write_str("defaults"),
            Self::Recipe { name, .. } => write!(f, "recipe {name}"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Set { .. } => f.write_str("--set"),
        }
    }
}

/// What a number of a type of Rust is, in words.
fn in_words(kind: &str) -> Option<String> {
    let whole = |least: &str, most: String| format!("a whole number from {least} to {most}");
    Some(match kind {
        "u8" => whole("0", u8::MAX.to_string()),
        "u16" => whole("0", u16::MAX.to_string()),
        "u32" => whole("0", u32::MAX.to_string()),
        "u64" | "usize" => "a whole number of at least 0".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" => "a string".to_owned(),
        _ => return None,
    })
}

/// Why settings were refused.
///
/// All but [`SettingsError::Read`] display as one line that says what and, where it is known, a second, indented line
/// that says where. The hint comes through [`Coded`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A settings file cannot be read; the message of the source names it.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// The text is not TOML.
    #[error("not valid TOML: {message}\n  {}", origin.place())]
    Syntax {
        /// What the parser says.
        message: String,
        /// Where.
        origin: Origin,
    },
    /// What followed `--set` is not of the form `key=value`.
    #[error("`--set` expects `key=value`, found `{found}`")]
    Assignment {
        /// What it is instead.
        found: String,
    },
    /// No such setting.
    #[error("unknown setting `{key}`\n  {}", origin.place())]
    Unknown {
        /// The dotted key.
        key: String,
        /// Where.
        origin: Origin,
        /// The known setting that was probably meant.
        nearest: Option<Box<str>>,
        /// The settings of the table that was written to.
        known: Box<[String]>,
    },
    /// The value is of another kind than the default.
    #[error("setting `{key}` expects {expected}, found {found}\n  {}", origin.place())]
    Kind {
        /// The dotted key.
        key: String,
        /// The kind of the default, with its article.
        expected: &'static str,
        /// What is there, with its kind.
        found: Box<str>,
        /// Where.
        origin: Origin,
        /// How to write it instead, where that is plain.
        hint: Option<Box<str>>,
    },
    /// The type of the setting refuses the value: an unknown choice, a number out of its range, a wrong element.
    #[error("setting `{key}` is not accepted: {reason}\n  {}", origin.place())]
    Invalid {
        /// The dotted key, with the index of an element where one is meant.
        key: String,
        /// What the type says.
        reason: String,
        /// Where.
        origin: Origin,
    },
    /// The value is of the right type and makes no sense; said by [`Validate`](super::Validate).
    #[error("setting `{key}` is `{found}`, expected {expected}")]
    Value {
        /// The dotted key.
        key: String,
        /// The value.
        found: String,
        /// What would do, with its article.
        expected: String,
    },
    /// The value does nothing because of another setting.
    #[error("setting `{key}` does nothing, because {why}")]
    Idle {
        /// The dotted key.
        key: String,
        /// Which other setting it is.
        why: &'static str,
    },
    /// No class of the data is called so.
    #[error("setting `{key}` is `{name}`, which is no class of the data\n  {}", origin.place())]
    UnknownClass {
        /// The dotted key.
        key: String,
        /// The name.
        name: String,
        /// Where.
        origin: Origin,
        /// The names of the classes.
        known: Box<[String]>,
    },
    /// Another error, with the place that it is about.
    #[error("{error}\n  {}", origin.place())]
    Located {
        /// The error, which does not name the place itself.
        error: Box<SettingsError>,
        /// Where.
        origin: Origin,
    },
}

impl SettingsError {
    /// The error of [`Validate`](super::Validate): `found` at `key` is not `expected`.
    pub fn value(
        key: impl Into<String>,
        found: impl fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Value {
            key: key.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }

    /// The same error for settings that stand in the table `table`.
    ///
    /// A part of the settings that is used in several places checks itself without knowing where it stands, and the
    /// whole says so: `self.train.validate().map_err(|error| error.within("train"))`.
    #[must_use]
    pub fn within(self, table: &str) -> Self {
        match self {
            Self::Value {
                key,
                found,
                expected,
            } => Self::Value {
                key: format!("{table}.{key}"),
                found,
                expected,
            },
            other => other,
        }
    }

    /// The same error for settings that did not come from the command line but from a file, in which `place` knows where
    /// an assignment stands.
    #[must_use]
    pub fn relocated(mut self, place: &dyn Fn(&str) -> Option<Origin>) -> Self {
        match &mut self {
            Self::Syntax { origin, .. }
            | Self::Unknown { origin, .. }
            | Self::Kind { origin, .. }
            | Self::Invalid { origin, .. }
            | Self::UnknownClass { origin, .. }
            | Self::Located { origin, .. } => {
                if let Origin::Set { assignment } = origin
                    && let Some(other) = place(assignment)
                {
                    *origin = other;
                }
            }
            Self::Read(_) | Self::Assignment { .. } | Self::Value { .. } | Self::Idle { .. } => {}
        }
        self
    }

    /// The setting that is wrong, where one is.
    pub fn key(&self) -> Option<&str> {
        match self {
            Self::Unknown { key, .. }
            | Self::Kind { key, .. }
            | Self::Invalid { key, .. }
            | Self::UnknownClass { key, .. }
            | Self::Value { key, .. }
            | Self::Idle { key, .. } => Some(key),
            Self::Located { error, .. } => error.key(),
            Self::Read(_) | Self::Syntax { .. } | Self::Assignment { .. } => None,
        }
    }

    /// The same error, naming the place.
    pub(super) fn at(self, origin: Origin) -> Self {
        Self::Located {
            error: Box::new(self),
            origin,
        }
    }

    pub(super) fn unknown(
        key: String,
        origin: &Origin,
        all: &Map<String, Value>,
        table: &Map<String, Value>,
    ) -> Self {
        let nearest = suggest::nearest_setting(&key, all).map(String::into_boxed_str);
        Self::Unknown {
            key,
            origin: origin.clone(),
            nearest,
            known: table.keys().cloned().collect(),
        }
    }

    /// The type of the setting `key` refused its value, for a `reason` in serde's words.
    ///
    /// These name Rust's types, which say nothing to whoever sets something; whole numbers and the like are said in words.
    pub(super) fn refused(key: String, reason: &str, origin: Origin) -> Self {
        let parts = reason
            .strip_prefix("invalid value: ")
            .or_else(|| reason.strip_prefix("invalid type: "))
            .and_then(|rest| rest.split_once(", expected "));
        if let Some((found, expected)) = parts
            && let Some(expected) = in_words(expected)
        {
            // The kind and, in backticks or quotes, the value; no value of an array or a table.
            let value = found.split_once(['`', '"']);
            let found = value.map_or(found, |(_, value)| value.trim_end_matches(['`', '"']));
            let found = match found {
                "sequence" => "[..]",
                "map" => "{..}",
                found => found,
            };
            return Self::value(key, found, expected).at(origin);
        }
        Self::Invalid {
            key,
            reason: reason.to_owned(),
            origin,
        }
    }

    /// `table` holds the settings below `key`, where it is a table that was expected.
    pub(super) fn kind(
        key: String,
        expected: &'static str,
        found: &Node,
        origin: &Origin,
        table: Option<&Map<String, Value>>,
    ) -> Self {
        let hint = match (table.and_then(|table| table.keys().next()), found, origin) {
            (Some(below), ..) => Some(format!(
                "set what it holds, such as `{}`",
                write::join(&key, below)
            )),
            (
                None,
                Node::Value(Value::Bool(_) | Value::Number(_)) | Node::Foreign { .. },
                Origin::Set { assignment },
            ) if matches!(expected, "a string" | "the number or the name of a class") => {
                let text = assignment
                    .split_once('=')
                    .map_or("", |(_, text)| text.trim());
                Some(format!(
                    "quote it for the shell and for TOML: `--set '{key}=\"{text}\"'`"
                ))
            }
            _ => None,
        };
        Self::Kind {
            key,
            expected,
            found: found.describe().into_boxed_str(),
            origin: origin.clone(),
            hint: hint.map(String::into_boxed_str),
        }
    }
}

impl Coded for SettingsError {
    fn exit_code(&self) -> u8 {
        match self {
            // A file that is not there is the same failure whichever option names it.
            Self::Read(error) => error.exit_code(),
            _ => exit::USAGE,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Assignment { found } if !found.is_empty() && !found.contains('=') => {
                Some(format!("write `--set {found}=VALUE`"))
            }
            Self::Unknown {
                nearest: Some(nearest),
                ..
            } => Some(format!("did you mean `{nearest}`?")),
            Self::Unknown { known, .. } if !known.is_empty() => {
                Some(format!("known here: {}", suggest::list(known)))
            }
            Self::Idle { .. } => Some("leave it out, or change the other setting".to_owned()),
            Self::Kind { hint, .. } => hint.as_deref().map(str::to_owned),
            Self::Invalid { reason, .. } => {
                // Of an unknown choice: its name, and behind it in backticks those that there are.
                let (_, rest) = reason.split_once("unknown variant `")?;
                let (found, rest) = rest.split_once('`')?;
                suggest::did_you_mean(found, rest.split('`').skip(1).step_by(2))
            }
            Self::UnknownClass { name, known, .. } => {
                let meant = suggest::did_you_mean(name, known.iter().map(String::as_str));
                let all = format!("the classes are {}", suggest::list(known));
                Some(match meant {
                    Some(meant) => format!("{meant} {all}"),
                    None => all,
                })
            }
            Self::Located { error, .. } => error.hint(),
            _ => None,
        }
    }
}
