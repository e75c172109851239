//! Settings in layers: defaults in code, the committed recipe, `-c` files, `--set`.
//!
//! The decision this module embodies: the serialised defaults are the schema.
//! A key that they do not have is an error with a suggestion, a value of another kind is an error that names the
//! place, and every value remembers which layer it came from, so that `--show-config` can tell.
//! Tables merge, arrays (arrays of tables too) are replaced whole, and the layer that is applied last wins.
//!
//! What follows for a type of settings `T`:
//! - `T` serialises every field, always, and to something TOML can say. There is no null, so an optional setting has a
//!   sentinel that the type documents, such as the empty string for "no file".
//! - The fields of a table are the same whatever its values, so a choice with parameters of its own is a string beside
//!   those parameters (`schedule = "step"`, `milestones = [..]`), not an enum that carries data.
//! - Where the default is a float an integer is welcome, and is a float from then on.
//!
//! ```
//! # use serde::{Serialize, Deserialize};
//! use bb_core::settings::Layers;
//! #[derive(Serialize, Deserialize)]
//! struct Config {
//!     lr: f32,
//!     epochs: usize,
//! }
//! let resolved = Layers::new(&Config { lr: 0.01, epochs: 20 })
//!     .toml_text("configs/attack/badnets/cifar10.toml", "epochs = 100")?
//!     .set("lr=1")?
//!     .resolve::<Config>()?;
//! assert_eq!(resolved.value.lr, 1.0);
//! assert_eq!(
//!     bb_core::settings::render(&resolved),
//!     "lr = 1.0  # --set\nepochs = 100  # recipe configs/attack/badnets/cifar10.toml\n"
//! );
//! # Ok::<(), bb_core::settings::SettingsError>(())
//! ```

mod classes;
mod error;
mod read;
mod suggest;
mod valid;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

pub use classes::Unnumbered;
pub use error::{Origin, SettingsError};
pub use suggest::{did_you_mean, nearest};
pub use valid::{Idle, Valid, Validate, check};
pub use write::{option_line, render};

use read::{Entry, Node};

use crate::files::{self, Links};

/// Most bytes of a file of settings, which is written by hand.
const LONGEST: u64 = 256 << 10;
/// Most values of a list. A method makes a model or a row for each, and a manifest has to hold what came of them.
const MOST_VALUES: usize = 1000;

/// Settings that are still being put together, layer by layer; see the module's head.
#[derive(Clone, Debug)]
pub struct Layers {
    /// What is known so far; its keys and kinds are those of the defaults, whatever was merged in.
    tree: Map<String, Value>,
    /// Where a value was set, by dotted key; the defaults are not listed.
    origins: BTreeMap<String, Origin>,
    /// The settings that take the name of a class, too.
    classes: Vec<&'static str>,
}

/// Settings with all layers applied.
#[derive(Clone, Debug)]
pub struct Resolved<T> {
    /// The settings.
    pub value: T,
    /// The settings once more, complete and in one canonical form: what equal settings are recognised by.
    pub tree: Value,
    /// Dotted key, value as TOML and origin of every setting, in the order of the type's fields.
    pub origins: Vec<(String, String, Origin)>,
}

impl Layers {
    /// The lowest layer.
    ///
    /// # Panics
    /// When `defaults` do not serialise to a table that TOML can say: a null (an `Option` that is `None`, a NaN), or an
    /// integer beyond `i64`. That is a mistake in the type, found by the first test that uses it.
    pub fn new(defaults: &impl Serialize) -> Self {
        let tree = canonical(defaults);
        if let Some(key) = find(&tree, "", &|leaf| {
            leaf.is_null() || leaf.is_u64() && !leaf.is_i64()
        }) {
            panic!(
                "the default of the setting `{key}` is null or too large, which TOML cannot say"
            );
        }
        let Value::Object(tree) = tree else {
            panic!("default settings serialise to a table")
        };
        Self {
            tree,
            origins: BTreeMap::new(),
            classes: Vec::new(),
        }
    }

    /// Applies a committed recipe; `origin` is the path that it has in the repository.
    pub fn toml_text(self, origin: &str, text: &str) -> Result<Self, SettingsError> {
        let entries = read::document(text, &|line| Origin::Recipe {
            name: origin.to_owned(),
            line,
        })?;
        self.merge(&entries)
    }

    /// Applies a file of the user.
    pub fn file(self, path: &Path) -> Result<Self, SettingsError> {
        let text = files::read_text(path, Links::Follow, LONGEST)?;
        let entries = read::document(&text, &|line| Origin::File {
            path: path.to_owned(),
            line,
        })?;
        self.merge(&entries)
    }

    /// Applies one `key=value` of the command line.
    ///
    /// The value is read as TOML; what is neither that nor begins like it (with a quote or a bracket) is a string, so
    /// that words and paths need no quotes, and nothing at all is the empty string.
    pub fn set(self, assignment: &str) -> Result<Self, SettingsError> {
        let entry = read::assignment(assignment)?;
        self.merge(std::slice::from_ref(&entry))
    }

    /// The settings as `T`.
    ///
    /// An error of `T` itself (an unknown choice, a number out of range) names the setting and its origin.
    pub fn resolve<T: Serialize + DeserializeOwned>(self) -> Result<Resolved<T>, SettingsError> {
        let Self { tree, origins, .. } = self;
        let tree = Value::Object(tree);
        let value: T = serde_path_to_error::deserialize(&tree).map_err(|error| {
            let key = error.path().to_string();
            let origin = origin_of(&origins, &key);
            SettingsError::refused(key, &error.into_inner().to_string(), origin)
        })?;
        let canonical = canonical(&value);
        // A number that does not fit the float type of its field has become infinite, which serialises as null.
        if let Some(key) = find(&canonical, "", &Value::is_null) {
            let origin = origin_of(&origins, &key);
            let found = lookup(&tree, &key).map_or_else(String::new, write::literal);
            let error = SettingsError::Value {
                key,
                found,
                expected: "a number that fits single precision".to_owned(),
            };
            return Err(error.at(origin));
        }
        let mut listed = Vec::new();
        let mut long = None;
        write::leaves(&canonical, "", &mut |key, leaf| {
            let length = leaf.as_array().map_or(0, Vec::len);
            if length > MOST_VALUES {
                long.get_or_insert_with(|| (key.to_owned(), length));
            }
            listed.push((
                key.to_owned(),
                write::literal(leaf),
                origin_of(&origins, key),
            ));
        });
        if let Some((key, length)) = long {
            let origin = origin_of(&origins, &key);
            let expected = format!("at most {MOST_VALUES}");
            let found = format!("a list of {length} values");
            return Err(SettingsError::value(key, found, expected).at(origin));
        }
        Ok(Resolved {
            value,
            tree: canonical,
            origins: listed,
        })
    }

    /// Merges one layer, all of it or nothing: the error is that of the first line that is wrong.
    fn merge(mut self, entries: &[Entry]) -> Result<Self, SettingsError> {
        let mut merge = Merge {
            known: &self.tree.clone(),
            classes: &self.classes,
            origins: &mut self.origins,
            first: None,
        };
        merge.table(&mut self.tree, entries, "");
        match merge.first {
            None => Ok(self),
            Some((_, error)) => Err(error),
        }
    }
}

impl<T> Resolved<T> {
    /// A complete `config.toml`: given back with `-c` it yields the same settings.
    pub fn to_toml(&self) -> String {
        write::document(&self.tree)
    }

    /// Shows the setting `key` as the string `text`, whatever it is in the value: the name of a class whose number is not
    /// known yet.
    ///
    /// # Panics
    /// If `key` is no setting.
    pub fn show_as(&mut self, key: &str, text: &str) {
        let shown = self.origins.iter_mut().find(|(known, ..)| known == key);
        shown.expect("a setting").1 = write::literal(&Value::from(text));
        let leaf = key
            .split('.')
            .try_fold(&mut self.tree, |table, name| table.get_mut(name));
        *leaf.expect("a setting") = Value::from(text);
    }

    /// The tree without those of the settings `later` (dotted keys) that have the value that they have in `defaults`.
    ///
    /// A setting that was added to a type changes the tree of everybody, also where its default is what was always done;
    /// left out there, settings that are equal in effect are recognised as equal over versions.
    ///
    /// # Panics
    /// If one of `later` is no setting.
    pub fn identity(&self, later: &[&str], defaults: &impl Serialize) -> Value {
        let defaults = canonical(defaults);
        let mut tree = self.tree.clone();
        for key in later {
            let usual = lookup(&defaults, key).expect("a setting that came later is one");
            if lookup(&tree, key) == Some(usual) {
                let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
                let table = match table {
                    "" => Some(&mut tree),
                    table => table
                        .split('.')
                        .try_fold(&mut tree, |tree, name| tree.get_mut(name)),
                };
                if let Some(table) = table.and_then(Value::as_object_mut) {
                    table.shift_remove(name);
                }
            }
        }
        tree
    }

    /// Checks the settings, and names the origin of one that is refused.
    ///
    /// # Errors
    /// What [`Validate::validate`] says, and [`SettingsError::Idle`] for one of `--set` that does nothing.
    pub fn valid(self) -> Result<Resolved<Valid<T>>, SettingsError>
    where
        T: Validate,
    {
        let Self {
            value,
            tree,
            origins,
        } = self;
        match Valid::new(value) {
            Ok(value) => {
                for (idle, why) in value.idle() {
                    let below = |key: &str| {
                        key.strip_prefix(idle)
                            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                    };
                    let given = origins.iter().find(|(key, _, origin)| {
                        matches!(origin, Origin::Set { .. }) && below(key)
                    });
                    if let Some((key, _, origin)) = given {
                        let key = key.clone();
                        return Err(SettingsError::Idle { key, why }.at(origin.clone()));
                    }
                }
                Ok(Resolved {
                    value,
                    tree,
                    origins,
                })
            }
            Err(error) => Err(
                match error
                    .key()
                    .and_then(|key| origins.iter().find(|(known, ..)| known == key))
                {
                    Some((_, _, origin)) => {
                        let origin = origin.clone();
                        error.at(origin)
                    }
                    None => error,
                },
            ),
        }
    }
}

/// What to warn of: numbers of epochs that somebody set to 0, by which a part of the work is left out.
///
/// `origins` are those of [`Resolved::origins`]. A default of 0 has a meaning of its own, and so has a 0 that is given in
/// its place (`trigger.clean_epochs`), which the name of the setting tells.
pub fn zero_epochs(origins: &[(String, String, Origin)]) -> Vec<String> {
    let zero = origins.iter().filter(|(key, value, origin)| {
        let given = !matches!(origin, Origin::Defaults | Origin::Recipe { .. });
        given && value == "0" && key.ends_with("epochs") && !key.ends_with("clean_epochs")
    });
    zero.map(|(key, ..)| format!("`{key}` is 0, so nothing is trained there"))
        .collect()
}

/// The merging of one layer.
struct Merge<'a> {
    /// All settings, for suggestions.
    known: &'a Map<String, Value>,
    /// Those that take the name of a class, too.
    classes: &'a [&'static str],
    origins: &'a mut BTreeMap<String, Origin>,
    /// The error with the lowest line so far. Tables may be written in any order, so it need not be the first one met.
    first: Option<(usize, SettingsError)>,
}

impl Merge<'_> {
    fn table(&mut self, into: &mut Map<String, Value>, entries: &[Entry], prefix: &str) {
        for entry in entries {
            let key = write::join(prefix, &entry.key);
            match into.get_mut(&entry.key) {
                None => self.fail(
                    &entry.origin,
                    SettingsError::unknown(key, &entry.origin, self.known, into),
                ),
                Some(Value::Object(table)) => match &entry.node {
                    Node::Table(below) => self.table(table, below, &key),
                    other => {
                        let error =
                            SettingsError::kind(key, "a table", other, &entry.origin, Some(table));
                        self.fail(&entry.origin, error);
                    }
                },
                Some(leaf) if self.classes.contains(&key.as_str()) => match &entry.node {
                    Node::Value(value) if value.is_i64() || value.is_string() => {
                        *leaf = value.clone();
                        self.origins.insert(key, entry.origin.clone());
                    }
                    other => {
                        let expected = "the number or the name of a class";
                        let error = SettingsError::kind(key, expected, other, &entry.origin, None);
                        self.fail(&entry.origin, error);
                    }
                },
                Some(leaf) => match converted(leaf, &entry.node) {
                    Ok(value) => {
                        *leaf = value;
                        self.origins.insert(key, entry.origin.clone());
                    }
                    Err(expected) => {
                        let error =
                            SettingsError::kind(key, expected, &entry.node, &entry.origin, None);
                        self.fail(&entry.origin, error);
                    }
                },
            }
        }
    }

    fn fail(&mut self, origin: &Origin, error: SettingsError) {
        let line = origin.line().unwrap_or(0);
        if self.first.as_ref().is_none_or(|(first, _)| line < *first) {
            self.first = Some((line, error));
        }
    }
}

/// The given value in the kind that the default has, or what was expected.
///
/// Elements of arrays are left to the type: an empty default says nothing about them.
fn converted(default: &Value, given: &Node) -> Result<Value, &'static str> {
    let expected = match default {
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Null | Value::Object(_) => "a table",
    };
    let Node::Value(value) = given else {
        return Err(expected);
    };
    match (default, value) {
        (Value::Number(wanted), Value::Number(found)) => match (wanted.is_f64(), found.is_f64()) {
            (true, false) => found.as_f64().map(Value::from).ok_or(expected),
            (false, true) => Err(expected),
            _ => Ok(value.clone()),
        },
        (Value::Bool(_), Value::Bool(_))
        | (Value::String(_), Value::String(_))
        | (Value::Array(_), Value::Array(_)) => Ok(value.clone()),
        _ => Err(expected),
    }
}

/// `value` as a tree, by way of its text.
///
/// The text holds the shortest digits of a number, whichever width it has, so 0.1 in single precision is the same 0.1
/// that a file would say. Without the detour it would be 0.10000000149011612, and the file's 0.1 another setting.
fn canonical(value: &impl Serialize) -> Value {
    let text =
        serde_json::to_string(value).expect("settings are plain data, whose keys are strings");
    serde_json::from_str(&text).expect("what was just written is JSON")
}

/// The dotted key of the first leaf, elements of arrays included, that `wanted` accepts.
fn find(tree: &Value, key: &str, wanted: &impl Fn(&Value) -> bool) -> Option<String> {
    match tree {
        Value::Object(table) => table
            .iter()
            .find_map(|(name, below)| find(below, &write::join(key, name), wanted)),
        Value::Array(items) => items.iter().find_map(|below| find(below, key, wanted)),
        leaf => wanted(leaf).then(|| key.to_owned()),
    }
}

/// The value at a dotted key.
fn lookup<'a>(tree: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(tree, |table, name| table.get(name))
}

/// The origin of the setting at `key`, which may name an element inside it, as in `milestones[1]`.
fn origin_of(origins: &BTreeMap<String, Origin>, key: &str) -> Origin {
    let mut key = key;
    loop {
        if let Some(origin) = origins.get(key) {
            return origin.clone();
        }
        match key.rfind(['.', '[']) {
            Some(end) => key = &key[..end],
            None => return Origin::Defaults,
        }
    }
}
