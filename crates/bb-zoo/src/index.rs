//! The zoo's index: which checkpoints are known, how large they are, what they hash to and what they should score.
//!
//! The index is read strictly, because a later download trusts it: an entry with a short hash or a strange id is
//! refused here and never reaches the network or the disk.
//!
//! ```toml
//! schema = 1
//!
//! [[entry]]
//! id = "badnets-synthetic-w8"         # [a-z0-9][a-z0-9._-]*, at most 64 characters; it becomes a folder's name
//! arch = "preactresnet18"
//! width = 8                           # channels of the first stage
//! dataset = "synthetic"
//! attack = "badnets"
//! source = "trained by this repository with configs/attack/badnets/synthetic.toml"
//! bytes = 123456                      # exact size of the file
//! sha256 = "…"                        # 64 lower-case hex digits
//! licence = "MIT OR Apache-2.0"       # SPDX expression
//! expected = { acc = 0.93, asr = 0.99 }   # fractions from 0 to 1, of all test images
//! mirrors = ["https://…"]             # tried in this order; may be empty for a file that is not published
//! path = "badnets.safetensors"        # may be left out: a file of this name beside the index
//! poison = { seed = 0, set = [] }     # may be left out: how the poisoned test images are made
//! ```
//!
//! `poison` is either a recipe, the seed of the attack and settings on top of the dataset's committed recipe, or a file
//! of its own (`poison_test.safetensors` of a cell) with `bytes`, `sha256`, `mirrors` and `path` as above.
//! An entry without it cannot have its ASR measured again.
use std::collections::BTreeMap;
use std::path::Path;

use bb_core::cli::{Coded, exit};
use bb_core::settings::nearest;

use crate::strict::{Document, Field, StrictError, Table};

/// The version of the schema that this reader understands.
pub const SCHEMA: i64 = 1;

/// The largest checkpoint that an entry may announce, in bytes (4 GiB).
pub const MAX_CHECKPOINT_BYTES: u64 = 4 << 30;

/// What can be wrong with an index or a question to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The file is not what the schema says; the message names file, line and field.
    #[error(transparent)]
    Strict(#[from] StrictError),
    /// Two entries have the same id.
    #[error("the id `{id}` is already used in line {first}\n  in {path}, line {line}")]
    Duplicate {
        /// The file.
        path: String,
        /// Line of the second entry, counted from 1.
        line: usize,
        /// Line of the first entry.
        first: usize,
        /// The id both have.
        id: String,
    },
    /// No entry has this id.
    #[error("no model `{id}` in the zoo's index")]
    Unknown {
        /// The id that was asked for.
        id: String,
        /// The nearest id, or else where to look.
        hint: String,
    },
}

impl Coded for IndexError {
    fn exit_code(&self) -> u8 {
        match self {
            // The index comes from strangers: a mistake in it is a rejected input, not a wrong use of the program.
            Self::Strict(_) | Self::Duplicate { .. } => exit::INPUT,
            Self::Unknown { .. } => exit::USAGE,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Strict(e) => e.hint(),
            Self::Unknown { hint, .. } => Some(hint.clone()),
            Self::Duplicate { .. } => None,
        }
    }
}

/// What the publisher measured; fractions from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected {
    /// Accuracy on the clean test set.
    pub acc: f64,
    /// Attack success rate on the poisoned test set.
    pub asr: f64,
}

/// A file that is known by its content, wherever it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256, 64 lower-case hex digits.
    pub sha256: String,
    /// Addresses to download it from, the first one first.
    pub mirrors: Vec<String>,
    /// Its name beside the index, if it lies there.
    pub path: Option<String>,
}

/// Where poisoned test images come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Poison {
    /// The attack makes them again.
    Recipe {
        /// Its seed.
        seed: u64,
        /// Settings over the committed recipe of the dataset, `key=value`.
        set: Vec<String>,
    },
    /// They are published, as `poison_test.safetensors` of a cell.
    File(Listed),
}

/// One checkpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its name, unique in the index and safe as a file name.
    pub id: String,
    /// Architecture, e.g. `preactresnet18`.
    pub arch: String,
    /// Channels of the first stage; 64 is the standard network.
    pub width: usize,
    /// Dataset id of `bb_core::data`.
    pub dataset: String,
    /// Attack id, e.g. `badnets`.
    pub attack: String,
    /// Where it comes from, in words.
    pub source: String,
    /// The file.
    pub file: Listed,
    /// SPDX expression of the licence.
    pub licence: String,
    /// What it should score.
    pub expected: Expected,
    /// The poisoned test images, if anybody else can have them.
    pub poison: Option<Poison>,
}

/// A checked index.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Index {
    entries: Vec<Entry>,
}

impl Index {
    /// Reads and checks an index file.
    pub fn load(path: &Path) -> Result<Self, IndexError> {
        Self::read(&Document::read(path)?)
    }

    /// Checks the text of an index; `path` is only used in messages.
    pub fn parse(path: &str, text: &str) -> Result<Self, IndexError> {
        Self::read(&Document::new(path, text))
    }

    /// All entries, in the order of the file.
    pub fn list(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry with this id; the error suggests the nearest one.
    pub fn find(&self, id: &str) -> Result<&Entry, IndexError> {
        self.entries.iter().find(|e| e.id == id).ok_or_else(|| {
            let hint = match nearest(id, self.entries.iter().map(|e| e.id.as_str())) {
                Some(name) => format!("did you mean `{name}`?"),
                None if self.entries.is_empty() => "the index has no entries yet".to_owned(),
                None => format!("the index has {} models", self.entries.len()),
            };
            IndexError::Unknown {
                id: id.to_owned(),
                hint,
            }
        })
    }

    fn read(document: &Document) -> Result<Self, IndexError> {
        document.parse(|top| {
            top.only(&["schema", "entry"])?;
            need(&top, "schema", "an integer", Table::int)?.check(
                |v| *v == SCHEMA,
                format_args!("`{SCHEMA}`, the schema this version reads"),
            )?;
            let mut lines = BTreeMap::<String, usize>::new();
            let mut entries = Vec::new();
            for table in top.tables("entry")? {
                let (id, entry) = entry(&table)?;
                if let Some(first) = lines.insert(entry.id.clone(), id.line()) {
                    return Err(IndexError::Duplicate {
                        path: document.path().display().to_string(),
                        line: id.line(),
                        first,
                        id: entry.id,
                    });
                }
                entries.push(entry);
            }
            Ok(Self { entries })
        })
    }
}

fn need<'a, T>(
    table: &Table<'a>,
    name: &str,
    expected: &'static str,
    get: impl Fn(&Table<'a>, &str) -> Result<Option<Field<'a, T>>, StrictError>,
) -> Result<Field<'a, T>, StrictError> {
    get(table, name)?.ok_or_else(|| table.missing(name, expected))
}

/// A name that may become part of a path: it cannot leave the folder it is put in, nor hide there.
fn is_name(text: &str) -> bool {
    text.len() <= 64
        && text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}

fn is_words(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= 1000 && !text.chars().any(char::is_control)
}

/// `https` only: the hash protects the content, the scheme keeps a mirror from being a local file.
fn is_address(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://") else {
        return false;
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    !host.is_empty()
        && !host.contains('@')
        && text.len() <= 2000
        && text.bytes().all(|b| b.is_ascii_graphic())
}

const NAME: &str = "1 to 64 of `a-z`, `0-9`, `.`, `_`, `-`, beginning with a letter or digit";

/// Size, hash and places of a file.
fn listed(t: &Table<'_>) -> Result<Listed, StrictError> {
    let bytes = need(t, "bytes", "an integer", Table::int)?
        .check(
            |v| u64::try_from(*v).is_ok_and(|v| (1..=MAX_CHECKPOINT_BYTES).contains(&v)),
            format_args!("a size from 1 to {MAX_CHECKPOINT_BYTES} bytes"),
        )?
        .value;
    let sha256 = need(t, "sha256", "a string", Table::str)?
        .check(
            |v| {
                v.len() == 64
                    && v.bytes()
                        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
            },
            "64 lower-case hex digits",
        )?
        .value;
    let mirrors = t
        .strs("mirrors")?
        .ok_or_else(|| t.missing("mirrors", "an array of strings"))?
        .into_iter()
        .map(|f| Ok(f.check(|v| is_address(v), "an `https://` address")?.value))
        .collect::<Result<_, StrictError>>()?;
    let path = t.str("path")?.map(|f| f.check(|v| is_name(v), NAME));
    Ok(Listed {
        bytes: u64::try_from(bytes).expect("checked to be positive"),
        sha256,
        mirrors,
        path: path.transpose()?.map(|f| f.value),
    })
}

fn poison(t: &Table<'_>) -> Result<Poison, StrictError> {
    if !t.keys().iter().any(|key| key == "seed" || key == "set") {
        t.only(&["bytes", "sha256", "mirrors", "path"])?;
        return Ok(Poison::File(listed(t)?));
    }
    t.only(&["seed", "set"])?;
    let seed = need(t, "seed", "an integer", Table::int)?
        .check(|v| u32::try_from(*v).is_ok(), "an integer of 32 bits")?
        .value;
    let set = t
        .strs("set")?
        .ok_or_else(|| t.missing("set", "an array of strings"))?
        .into_iter()
        .map(|f| Ok(f.check(|v| is_words(v), "`key=value`")?.value))
        .collect::<Result<_, StrictError>>()?;
    Ok(Poison::Recipe {
        seed: u64::try_from(seed).expect("checked to be positive"),
        set,
    })
}

fn entry<'a>(t: &Table<'a>) -> Result<(Field<'a, String>, Entry), IndexError> {
    t.only(&[
        "id", "arch", "width", "dataset", "attack", "source", "bytes", "sha256", "licence",
        "expected", "mirrors", "path", "poison",
    ])?;
    let text = |name: &str| need(t, name, "a string", Table::str);
    let name = |name: &str| text(name)?.check(|v| is_name(v), NAME);
    let words = |name: &str| text(name)?.check(|v| is_words(v), "one line of 1 to 1000 characters");

    let id = name("id")?;
    let arch = name("arch")?.value;
    let width = need(t, "width", "an integer", Table::int)?
        .check(|v| (1..=4096).contains(v), "an integer from 1 to 4096")?
        .value;
    let dataset = name("dataset")?;
    if let Err(e) = bb_core::data::spec(&dataset.value) {
        return Err(dataset.refuse(format_args!("a known dataset ({e})")).into());
    }
    let attack = name("attack")?.value;
    let source = words("source")?.value;
    let file = listed(t)?;
    let licence = words("licence")?.value;
    let expected = t
        .table("expected")?
        .ok_or_else(|| t.missing("expected", "a table with `acc` and `asr`"))?;
    expected.only(&["acc", "asr"])?;
    let fraction = |name: &str| {
        need(&expected, name, "a number", Table::number)?
            .check(|v| (0.0..=1.0).contains(v), "a fraction from 0 to 1")
            .map(|f| f.value)
    };
    let expected = Expected {
        acc: fraction("acc")?,
        asr: fraction("asr")?,
    };
    let poison = t.table("poison")?.map(|table| poison(&table)).transpose()?;
    let entry = Entry {
        id: id.value.clone(),
        arch,
        width: usize::try_from(width).expect("checked to be at most 4096"),
        dataset: dataset.value,
        attack,
        source,
        file,
        licence,
        expected,
        poison,
    };
    Ok((id, entry))
}
