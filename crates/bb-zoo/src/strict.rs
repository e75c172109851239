//! A strict reader for small TOML files: unknown keys, wrong types and missing keys are errors that name the file, the
//! line, the key, what was expected and what was found.
//!
//! `serde` with `deny_unknown_fields` would do most of this, yet its messages lose the key's path and offer no
//! suggestion, so the reader walks the parsed table itself.
use std::fmt::Display;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bb_core::cli::{Coded, exit};
use bb_core::files::{self, Links};
use bb_core::settings::nearest;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The largest file that [`Document::read`] accepts, in bytes: these files are written by hand.
pub const MAX_BYTES: u64 = 1 << 20;

/// What can be wrong with a file, each with the place and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StrictError {
    /// The file cannot be opened or read; the cause names the path.
    #[error(transparent)]
    Read(#[from] std::io::Error),
    /// The file is larger than [`MAX_BYTES`].
    #[error("`{}` has {found} bytes, expected at most {limit}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The file is not UTF-8.
    #[error("`{}` is not UTF-8 text, first wrong byte at offset {offset}", path.display())]
    Encoding {
        /// The file.
        path: PathBuf,
        /// Where the first byte that is not UTF-8 stands.
        offset: usize,
    },
    /// The text is not TOML.
    #[error("not valid TOML: {message}\n  in {}, line {line}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// What the parser expected.
        message: String,
    },
    /// A key that nobody reads.
    #[error("unknown key `{key}`\n  in {}, line {line}", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Dotted path of the key.
        key: String,
        /// The nearest known key, or else all of them.
        hint: String,
    },
    /// A required key is absent.
    #[error("`{key}` is missing, expected {expected}\n  in {}, line {line}", path.display())]
    MissingKey {
        /// The file.
        path: PathBuf,
        /// Line of the table that lacks it, counted from 1.
        line: usize,
        /// Dotted path of the key.
        key: String,
        /// The kind of value it should have.
        expected: &'static str,
    },
    /// The value has another type.
    #[error("`{key}` is {found}, expected {expected}\n  in {}, line {line}", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Dotted path of the key.
        key: String,
        /// The type that was found.
        found: &'static str,
        /// The type that was expected.
        expected: &'static str,
    },
    /// The value has the right type and is not allowed.
    #[error("`{key}` is `{found}`, expected {expected}\n  in {}, line {line}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: usize,
        /// Dotted path of the key.
        key: String,
        /// The value as written.
        found: String,
        /// What would be accepted.
        expected: String,
    },
}

impl Coded for StrictError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Read(error) => error.exit_code(),
            _ => exit::USAGE,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { hint, .. } => Some(hint.clone()),
            _ => None,
        }
    }
}

/// The text of one file together with its path, which every error names.
#[derive(Debug, Clone)]
pub struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    /// Wraps text that is already in memory; `path` is only used in messages.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    /// Reads a file of at most [`MAX_BYTES`] bytes of UTF-8.
    pub fn read(path: &Path) -> Result<Self, StrictError> {
        use std::io::Read;
        let file = files::open(path, Links::Follow)?;
        let mut bytes = Vec::new();
        // The size is taken from what is read, not from the metadata, so that a growing file is capped too.
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(StrictError::TooLarge {
                path: path.to_owned(),
                found: fs_err::metadata(path)?.len().max(MAX_BYTES + 1),
                limit: MAX_BYTES,
            });
        }
        let text = String::from_utf8(bytes).map_err(|e| StrictError::Encoding {
            path: path.to_owned(),
            offset: e.utf8_error().valid_up_to(),
        })?;
        Ok(Self::new(path, text))
    }

    /// The path given at construction.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text as read.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Parses the text and hands the top table to `read`.
    pub fn parse<T, E: From<StrictError>>(
        &self,
        read: impl FnOnce(Table<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let parsed = DeTable::parse(&self.text).map_err(|e| StrictError::Syntax {
            path: self.path.clone(),
            line: e.span().map_or(1, |span| self.line(&span)),
            // The parser's message may span lines; one line is what the error line has room for.
            message: e.message().lines().collect::<Vec<_>>().join(", "),
        })?;
        let span = parsed.span();
        read(Table {
            document: self,
            prefix: String::new(),
            span,
            map: parsed.get_ref(),
        })
    }

    fn line(&self, span: &Range<usize>) -> usize {
        let before = self.text.get(..span.start).unwrap_or(&self.text);
        1 + before.matches('\n').count()
    }
}

/// One table of a [`Document`], with the dotted path that leads to it.
#[derive(Debug, Clone)]
pub struct Table<'a> {
    document: &'a Document,
    prefix: String,
    span: Range<usize>,
    map: &'a DeTable<'a>,
}

/// A value together with its place, so that later checks can still name the line.
#[derive(Debug, Clone)]
pub struct Field<'a, T> {
    document: &'a Document,
    key: String,
    span: Range<usize>,
    /// The value.
    pub value: T,
}

impl<'a, T> Field<'a, T> {
    /// Line of the value, counted from 1.
    pub fn line(&self) -> usize {
        self.document.line(&self.span)
    }

    /// The error that this value is not allowed, saying what would be.
    pub fn refuse(&self, expected: impl Display) -> StrictError {
        let found = self
            .document
            .text
            .get(self.span.clone())
            .unwrap_or_default();
        let found = found.trim().trim_matches(['"', '\'']);
        let mut shown: String = found.chars().take(80).collect();
        if shown.len() < found.len() {
            shown.push('…');
        }
        StrictError::Value {
            path: self.document.path.clone(),
            line: self.line(),
            key: self.key.clone(),
            found: shown,
            expected: expected.to_string(),
        }
    }

    /// Keeps the value if `ok` says so; otherwise refuses it.
    pub fn check(
        self,
        ok: impl FnOnce(&T) -> bool,
        expected: impl Display,
    ) -> Result<Self, StrictError> {
        if ok(&self.value) {
            Ok(self)
        } else {
            Err(self.refuse(expected))
        }
    }

    fn with<U>(&self, value: U) -> Field<'a, U> {
        Field {
            document: self.document,
            key: self.key.clone(),
            span: self.span.clone(),
            value,
        }
    }
}

/// A value of a table that is no table itself.
struct Leaf<'a> {
    document: &'a Document,
    /// The key from the top of the document, for messages.
    key: String,
    /// The key from the table on, dotted and quoted where it must be.
    path: String,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Leaf<'a> {
    /// `key=value` of the leaf's value, or of a part of it.
    fn assignment(&self, value: &Spanned<DeValue<'a>>) -> Field<'a, String> {
        let (path, span) = (&self.path, value.span());
        let text = self.document.text.get(span.clone()).unwrap_or_default();
        Field {
            document: self.document,
            key: self.key.clone(),
            value: format!("{path}={text}"),
            span,
        }
    }
}

impl<'a> Table<'a> {
    /// Line where the table begins, counted from 1.
    pub fn line(&self) -> usize {
        self.document.line(&self.span)
    }

    /// Refuses every key that is not in `known`, the first one in the file first.
    pub fn only(&self, known: &[&str]) -> Result<(), StrictError> {
        let unknown = self
            .map
            .iter()
            .map(|(key, _)| key)
            .filter(|key| !known.contains(&key.get_ref().as_ref()))
            .min_by_key(|key| key.span().start);
        let Some(key) = unknown else { return Ok(()) };
        let hint = match nearest(key.get_ref(), known.iter().copied()) {
            Some(name) => format!("did you mean `{}`?", self.key(name)),
            None => format!("known keys: `{}`", known.join("`, `")),
        };
        Err(StrictError::UnknownKey {
            path: self.document.path.clone(),
            line: self.document.line(&key.span()),
            key: self.key(key.get_ref()),
            hint,
        })
    }

    /// The keys of this table, in the order of the file.
    pub fn keys(&self) -> Vec<String> {
        let mut keys: Vec<_> = self
            .map
            .iter()
            .map(|(k, _)| (k.span().start, k.get_ref().to_string()))
            .collect();
        keys.sort();
        keys.into_iter().map(|(_, key)| key).collect()
    }

    /// A string, if the key is there.
    pub fn str(&self, name: &str) -> Result<Option<Field<'a, String>>, StrictError> {
        self.get(name)
            .map(|f| {
                let text = f
                    .value
                    .as_str()
                    .ok_or_else(|| wrong(&f, "a string"))?
                    .to_owned();
                Ok(f.with(text))
            })
            .transpose()
    }

    /// A truth value, if the key is there.
    pub fn bool(&self, name: &str) -> Result<Option<Field<'a, bool>>, StrictError> {
        self.get(name)
            .map(|f| {
                let value = f.value.as_bool().ok_or_else(|| wrong(&f, "a boolean"))?;
                Ok(f.with(value))
            })
            .transpose()
    }

    /// An integer, if the key is there.
    pub fn int(&self, name: &str) -> Result<Option<Field<'a, i64>>, StrictError> {
        self.get(name).map(|f| integer(&f)).transpose()
    }

    /// A number, integer or not, if the key is there; `nan` and `inf` are refused.
    pub fn number(&self, name: &str) -> Result<Option<Field<'a, f64>>, StrictError> {
        self.get(name)
            .map(|f| {
                let value = match f.value {
                    DeValue::Float(x) => x
                        .as_str()
                        .parse()
                        .map_err(|_| f.with(()).refuse("a finite number"))?,
                    DeValue::Integer(_) => integer(&f)?.value as f64,
                    _ => return Err(wrong(&f, "a number")),
                };
                f.with(value).check(|x| x.is_finite(), "a finite number")
            })
            .transpose()
    }

    /// A table, if the key is there.
    pub fn table(&self, name: &str) -> Result<Option<Table<'a>>, StrictError> {
        self.get(name).map(|f| inner(&f)).transpose()
    }

    /// The tables of an array of tables (`[[name]]`); empty if the key is absent.
    pub fn tables(&self, name: &str) -> Result<Vec<Table<'a>>, StrictError> {
        self.items(name, "an array of tables")?
            .iter()
            .flatten()
            .map(inner)
            .collect()
    }

    /// An array of strings, if the key is there.
    pub fn strs(&self, name: &str) -> Result<Option<Vec<Field<'a, String>>>, StrictError> {
        let Some(items) = self.items(name, "an array of strings")? else {
            return Ok(None);
        };
        items
            .iter()
            .map(|f| {
                let text = f
                    .value
                    .as_str()
                    .ok_or_else(|| wrong(f, "a string"))?
                    .to_owned();
                Ok(f.with(text))
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// An array of integers, if the key is there.
    pub fn ints(&self, name: &str) -> Result<Option<Vec<Field<'a, i64>>>, StrictError> {
        let Some(items) = self.items(name, "an array of integers")? else {
            return Ok(None);
        };
        items
            .iter()
            .map(integer)
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// The leaves of this table as `key=value` with dotted keys and TOML values, as `--set` takes them.
    pub fn assignments(&self) -> Vec<Field<'a, String>> {
        let leaf = |leaf: &Leaf<'a>| leaf.assignment(leaf.value);
        self.all_leaves().iter().map(leaf).collect()
    }

    /// The leaves of this table, each an array, as one `key=value` for each of its elements.
    ///
    /// # Errors
    /// A leaf that is no array, or has no element.
    pub fn alternatives(&self) -> Result<Vec<Vec<Field<'a, String>>>, StrictError> {
        let each = |leaf: &Leaf<'a>| {
            let values = leaf.value.get_ref().as_array();
            match values.filter(|values| !values.is_empty()) {
                Some(values) => Ok(values.iter().map(|value| leaf.assignment(value)).collect()),
                None => Err(leaf
                    .assignment(leaf.value)
                    .refuse("an array of the values to try")),
            }
        };
        self.all_leaves().iter().map(each).collect()
    }

    /// In the order of the file.
    fn all_leaves(&self) -> Vec<Leaf<'a>> {
        let mut leaves = Vec::new();
        self.leaves("", &mut leaves);
        leaves.sort_by_key(|leaf| leaf.value.span().start);
        leaves
    }

    fn leaves(&self, path: &str, out: &mut Vec<Leaf<'a>>) {
        for (key, value) in self.map {
            let name = quoted(key.get_ref());
            let path = if path.is_empty() {
                name
            } else {
                format!("{path}.{name}")
            };
            if let DeValue::Table(map) = value.get_ref() {
                let below = Table {
                    document: self.document,
                    prefix: self.key(key.get_ref()),
                    span: value.span(),
                    map,
                };
                below.leaves(&path, out);
            } else {
                out.push(Leaf {
                    document: self.document,
                    key: self.key(key.get_ref()),
                    path,
                    value,
                });
            }
        }
    }

    /// The error that `name` is required here.
    pub fn missing(&self, name: &str, expected: &'static str) -> StrictError {
        StrictError::MissingKey {
            path: self.document.path.clone(),
            line: self.line(),
            key: self.key(name),
            expected,
        }
    }

    /// The dotted path of a key of this table.
    pub fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.prefix)
        }
    }

    fn get(&self, name: &str) -> Option<Field<'a, &'a DeValue<'a>>> {
        let (_, value) = self
            .map
            .iter()
            .find(|(key, _)| key.get_ref().as_ref() == name)?;
        Some(Field {
            document: self.document,
            key: self.key(name),
            span: value.span(),
            value: value.get_ref(),
        })
    }

    fn items(
        &self,
        name: &str,
        expected: &'static str,
    ) -> Result<Option<Vec<Field<'a, &'a DeValue<'a>>>>, StrictError> {
        let Some(f) = self.get(name) else {
            return Ok(None);
        };
        let items = f.value.as_array().ok_or_else(|| wrong(&f, expected))?;
        let item = |(i, value): (usize, &'a Spanned<DeValue<'a>>)| Field {
            document: f.document,
            key: format!("{}[{i}]", f.key),
            span: value.span(),
            value: value.get_ref(),
        };
        Ok(Some(items.iter().enumerate().map(item).collect()))
    }
}

/// A key as it stands in a dotted path: bare if it can be. No setting has a dot in its name, so `"a.b"` is a path too.
fn quoted(key: &str) -> String {
    let bare = !key.is_empty()
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b == b'.');
    if bare {
        key.to_owned()
    } else {
        format!("{key:?}")
    }
}

fn integer<'a>(f: &Field<'a, &'a DeValue<'a>>) -> Result<Field<'a, i64>, StrictError> {
    let number = f.value.as_integer().ok_or_else(|| wrong(f, "an integer"))?;
    let value = i64::from_str_radix(number.as_str(), number.radix())
        .map_err(|_| f.with(()).refuse("an integer of 64 bits"))?;
    Ok(f.with(value))
}

fn inner<'a>(f: &Field<'a, &'a DeValue<'a>>) -> Result<Table<'a>, StrictError> {
    let map = f.value.as_table().ok_or_else(|| wrong(f, "a table"))?;
    Ok(Table {
        document: f.document,
        prefix: f.key.clone(),
        span: f.span.clone(),
        map,
    })
}

fn wrong(f: &Field<'_, &DeValue<'_>>, expected: &'static str) -> StrictError {
    let found = match f.value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    };
    StrictError::WrongType {
        path: f.document.path.clone(),
        line: f.line(),
        key: f.key.clone(),
        found,
        expected,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        let document = Document::new("t.toml", text);
        let error = document
            .parse(|t| {
                t.only(&["name", "count", "share", "list", "inner", "seeds"])?;
                t.str("name")?
                    .ok_or_else(|| t.missing("name", "a string"))?;
                t.int("count")?;
                t.number("share")?;
                t.strs("list")?;
                t.ints("seeds")?;
                if let Some(inner) = t.table("inner")? {
                    inner.only(&["depth"])?;
                }
                Ok::<_, StrictError>(())
            })
            .map_or_else(
                |e| {
                    format!(
                        "{e}{}",
                        e.hint().map(|h| format!(" ({h})")).unwrap_or_default()
                    )
                },
                |()| "fine".into(),
            );
        assert_eq!(error, expect, "{text}");
    }

    #[test]
    fn every_mistake_has_one_clear_error() {
        let cases = [
            ("name = 'x'", "fine"),
            (
                "",
                "`name` is missing, expected a string\n  in t.toml, line 1",
            ),
            (
                "\nnamee = 'x'",
                "unknown key `namee`\n  in t.toml, line 2 (did you mean `name`?)",
            ),
            (
                "zzz = 1\nname = 'x'",
                "unknown key `zzz`\n  in t.toml, line 1 (known keys: `name`, `count`, `share`, `list`, `inner`, `seeds`)",
            ),
            (
                "name = 3",
                "`name` is an integer, expected a string\n  in t.toml, line 1",
            ),
            (
                "name = 'x'\ncount = 1.0",
                "`count` is a float, expected an integer\n  in t.toml, line 2",
            ),
            (
                "name = 'x'\ncount = 99999999999999999999",
                "`count` is `99999999999999999999`, expected an integer of 64 bits\n  in t.toml, line 2",
            ),
            (
                "name = 'x'\nshare = nan",
                "`share` is `nan`, expected a finite number\n  in t.toml, line 2",
            ),
            (
                "name = 'x'\nshare = -inf",
                "`share` is `-inf`, expected a finite number\n  in t.toml, line 2",
            ),
            (
                "name = 'x'\nshare = 'a'",
                "`share` is a string, expected a number\n  in t.toml, line 2",
            ),
            (
                "name = 'x'\nlist = 'a'",
                "`list` is a string, expected an array of strings\n  in t.toml, line 2",
            ),
            (
                "name = 'x'\nlist = ['a', 2]",
                "`list[1]` is an integer, expected a string\n  in t.toml, line 2",
            ),
            (
                "name = 'x'\nseeds = [true]",
                "`seeds[0]` is a boolean, expected an integer\n  in t.toml, line 2",
            ),
            (
                "name = 'x'\n[inner]\ndept = 1",
                "unknown key `inner.dept`\n  in t.toml, line 3 (did you mean `inner.depth`?)",
            ),
            (
                "name = 'x'\ninner = 1",
                "`inner` is an integer, expected a table\n  in t.toml, line 2",
            ),
            (
                "name = 'x'\nname = 'y'",
                "not valid TOML: duplicate key\n  in t.toml, line 2",
            ),
        ];
        for (text, expect) in cases {
            check(text, expect);
        }
    }

    #[test]
    fn assignments_are_dotted_and_in_file_order() {
        let document = Document::new(
            "t.toml",
            "b = 1\na = { c = [1, 2], d.e = \"x\" }\n\"k v\" = true",
        );
        let found = document.parse(|t| {
            Ok::<_, StrictError>(
                t.assignments()
                    .into_iter()
                    .map(|f| f.value)
                    .collect::<Vec<_>>(),
            )
        });
        assert_eq!(
            found.expect("valid TOML"),
            ["b=1", "a.c=[1, 2]", "a.d.e=\"x\"", "\"k v\"=true"]
        );
    }

    #[test]
    fn alternatives_are_the_elements_of_arrays() {
        let all = |text: &str| {
            let document = Document::new("t.toml", text);
            let found = document.parse(|t| {
                let all = t.alternatives()?.into_iter();
                let values = |fields: Vec<Field<'_, String>>| {
                    let fields = fields.into_iter().map(|f| (f.line(), f.value));
                    fields.collect::<Vec<_>>()
                };
                Ok::<_, StrictError>(all.map(values).collect::<Vec<_>>())
            });
            found.map_err(|error| error.to_string())
        };
        let own = |line: usize, text: &str| (line, text.to_owned());
        assert_eq!(
            all("b = [1,\n 2]\na = { c = [[1, 2], []], d = [\"x\"] }"),
            Ok(vec![
                vec![own(1, "b=1"), own(2, "b=2")],
                vec![own(3, "a.c=[1, 2]"), own(3, "a.c=[]")],
                vec![own(3, "a.d=\"x\"")],
            ])
        );
        for text in ["a.b = 1", "a.b = []"] {
            let error = all(text).expect_err(text);
            assert!(
                error.starts_with("`a.b` is `")
                    && error.contains("expected an array of the values to try"),
                "{error}"
            );
        }
    }

    #[test]
    fn files_are_capped_and_must_be_text() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("big.toml");
        fs_err::write(&path, vec![b'#'; MAX_BYTES as usize + 1]).expect("write");
        assert!(matches!(
            Document::read(&path),
            Err(StrictError::TooLarge { .. })
        ));
        fs_err::write(&path, b"a = \"\xff\"").expect("write");
        assert!(matches!(
            Document::read(&path),
            Err(StrictError::Encoding { offset: 5, .. })
        ));
        let absent = Document::read(&dir.path().join("absent.toml"));
        assert!(matches!(absent, Err(StrictError::Read(_))));
    }
}
