//! What the settings and results of every cell say, beside what is the method's own.
//!
//! An attack's settings have the tables `data` ([`Limits`]) and `model` ([`Network`]), a defense's those of the attack that
//! it names among its inputs; both have the table `compute` ([`Compute`]). The tables are written by their types and read
//! by them, so that a key is spelt in one place. A manifest may be a stranger's: every number has a bound.

use std::fmt::Display;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Cell, CellError, CellSpec, MANIFEST};
use crate::cli::{MOST_IMAGES, MOST_WIDTH};
use crate::precision::Precision;

/// Most classes of a network in a manifest.
const MOST_CLASSES: usize = 100_000;

/// The table `data`: which images of the dataset were used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Id of the dataset.
    pub dataset: String,
    /// Only the first images of the train split, if not all.
    pub train_limit: Option<usize>,
    /// Only the first images of the test split, if not all.
    pub test_limit: Option<usize>,
    /// The split that was measured on, where it was chosen: only then, so that the names of other cells do not depend on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_split: Option<String>,
}

/// The table `model`: the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    /// Id of the architecture.
    pub arch: String,
    /// Channels of its first stage.
    pub width: usize,
    /// Outputs; the manifests of strangers may lack it.
    pub classes: Option<usize>,
}

/// The table `compute`: in which numbers networks were trained, and which version of a method did it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compute {
    /// How convolutions multiplied; cells that are older than the choice are `f32`.
    #[serde(default)]
    pub precision: Precision,
    /// How often what the method computes has become something else since its first cells; 0, which those have, is left
    /// out.
    #[serde(default, skip_serializing_if = "is_first")]
    pub revision: u32,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the form that serde asks for"
)]
fn is_first(revision: &u32) -> bool {
    *revision == 0
}

/// A field of the settings that is not what it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// The field, dotted, from the top of the manifest.
    pub field: &'static str,
    /// What stands there, shortened; nothing if it is missing.
    pub found: Option<String>,
    /// What was expected.
    pub expected: String,
}

impl Limits {
    /// Reads the table from an attack's settings; one that is missing limits nothing.
    ///
    /// # Errors
    /// [`Wrong`] if a limit is no number from 1 to [`MOST_IMAGES`].
    pub fn of(settings: &Value) -> Result<Self, Wrong> {
        let table = &settings["data"];
        let word = |name: &str| table[name].as_str().map(str::to_owned);
        let limit = |name, field| number(&table[name], field, MOST_IMAGES);
        Ok(Self {
            dataset: word("dataset").unwrap_or_default(),
            train_limit: limit("train_limit", "settings.data.train_limit")?,
            test_limit: limit("test_limit", "settings.data.test_limit")?,
            test_split: word("test_split"),
        })
    }
}

impl Network {
    /// The id of the architecture in an attack's settings, if it is there.
    pub fn arch_of(settings: &Value) -> Option<&str> {
        settings["model"]["arch"].as_str()
    }

    /// Reads the table from an attack's settings.
    ///
    /// # Errors
    /// [`Wrong`] if the architecture or the width is missing, or a number is out of its bounds.
    pub fn of(settings: &Value) -> Result<Self, Wrong> {
        let table = &settings["model"];
        let arch = Self::arch_of(settings).ok_or_else(|| Wrong {
            field: "settings.model.arch",
            found: found(&table["arch"]),
            expected: "the id of an architecture".to_owned(),
        })?;
        let width = number(&table["width"], "settings.model.width", MOST_WIDTH)?;
        Ok(Self {
            arch: arch.to_owned(),
            width: width.ok_or_else(|| Wrong {
                field: "settings.model.width",
                found: None,
                expected: whole(MOST_WIDTH),
            })?,
            classes: number(&table["classes"], "settings.model.classes", MOST_CLASSES)?,
        })
    }
}

impl Compute {
    /// Reads the table from any cell's settings; what is missing or unknown is what the first cells had.
    pub fn of(settings: &Value) -> Self {
        Self::deserialize(&settings["compute"]).unwrap_or_default()
    }
}

/// Adds the tables to the settings of an attack.
pub fn add_tables(settings: &mut Value, data: &Limits, network: &Network, compute: Compute) {
    settings["data"] = json!(data);
    settings["model"] = json!(network);
    settings["compute"] = json!(compute);
}

/// Whether a cell was made of a file of another program: then nothing is known of how its network was trained.
pub fn is_imported(settings: &Value) -> bool {
    settings.get("imported").is_some()
}

impl Cell {
    /// See [`Limits::of`].
    ///
    /// # Errors
    /// [`CellError::Field`].
    pub fn limits(&self) -> Result<Limits, CellError> {
        Limits::of(&self.manifest.settings).map_err(|wrong| self.refuse(wrong))
    }

    /// See [`Network::of`].
    ///
    /// # Errors
    /// [`CellError::Field`].
    pub fn network(&self) -> Result<Network, CellError> {
        Network::of(&self.manifest.settings).map_err(|wrong| self.refuse(wrong))
    }

    /// See [`Compute::of`].
    pub fn compute(&self) -> Compute {
        Compute::of(&self.manifest.settings)
    }

    /// See [`is_imported`].
    pub fn is_imported(&self) -> bool {
        is_imported(&self.manifest.settings)
    }

    /// The digest of an input.
    ///
    /// # Errors
    /// [`CellError::Field`].
    pub fn input(&self, input: Input) -> Result<&str, CellError> {
        let digest = self.manifest.inputs.get(input.name());
        digest.map(String::as_str).ok_or_else(|| {
            self.refuse(Wrong {
                field: input.field(),
                found: None,
                expected: "a digest".to_owned(),
            })
        })
    }

    /// What the method found, in the form of its kind of cell.
    ///
    /// # Errors
    /// [`CellError::Results`] with the place of the first field that is not what it must be.
    pub fn results<T: DeserializeOwned>(&self) -> Result<T, CellError> {
        serde_path_to_error::deserialize(&self.manifest.results).map_err(|error| {
            CellError::Results {
                path: self.file(MANIFEST),
                field: error.path().to_string(),
                source: error.into_inner(),
            }
        })
    }

    /// The error that a field of this cell's manifest is not what it must be.
    pub fn refuse(&self, wrong: Wrong) -> CellError {
        CellError::Field {
            path: self.file(MANIFEST),
            wrong,
        }
    }
}

/// What a cell begins from that every cell of its kind has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The data.
    Dataset,
    /// Of a defense, the attack that it repairs.
    Attack,
    /// Of a defense that is given clean images, their indices.
    CleanIndices,
}

impl Input {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Dataset, Self::Attack, Self::CleanIndices];

    /// The name among [`CellSpec::inputs`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            Self::Attack => "attack",
            Self::CleanIndices => "clean_indices",
        }
    }

    const fn field(self) -> &'static str {
        match self {
            Self::Dataset => "inputs.dataset",
            Self::Attack => "inputs.attack",
            Self::CleanIndices => "inputs.clean_indices",
        }
    }
}

impl CellSpec {
    /// The digest of an input, if it has it.
    pub fn input(&self, input: Input) -> Option<&str> {
        self.inputs.get(input.name()).map(String::as_str)
    }
}

/// A number from 1 to `most`, if it is there.
fn number(value: &Value, field: &'static str, most: usize) -> Result<Option<usize>, Wrong> {
    if value.is_null() {
        return Ok(None);
    }
    let number = value.as_u64().and_then(|n| usize::try_from(n).ok());
    let number = number.filter(|n| (1..=most).contains(n));
    number.map(Some).ok_or_else(|| Wrong {
        field,
        found: found(value),
        expected: whole(most),
    })
}

fn whole(most: impl Display) -> String {
    format!("a whole number from 1 to {most}")
}

fn found(value: &Value) -> Option<String> {
    (!value.is_null()).then(|| crate::cli::shorten(&value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Value {
        let mut settings = json!({ "ratio": 0.1 });
        let limits = Limits {
            dataset: "cifar10".to_owned(),
            train_limit: Some(100),
            ..Limits::default()
        };
        let network = Network {
            arch: "preactresnet18".to_owned(),
            width: 16,
            classes: Some(10),
        };
        add_tables(&mut settings, &limits, &network, Compute::default());
        settings
    }

    #[test]
    fn tables_have_the_form_that_the_first_cells_have() {
        let expected = json!({
            "ratio": 0.1,
            "data": { "dataset": "cifar10", "train_limit": 100, "test_limit": null },
            "model": { "arch": "preactresnet18", "width": 16, "classes": 10 },
            "compute": { "precision": "f32" },
        });
        assert_eq!(settings(), expected);
        let compute = Compute {
            precision: Precision::Bf16,
            revision: 2,
        };
        assert_eq!(
            json!(compute),
            json!({ "precision": "bf16", "revision": 2 })
        );
    }

    #[test]
    fn what_is_written_is_read() {
        let settings = settings();
        let limits = Limits::of(&settings).expect("valid");
        assert_eq!(json!(limits), settings["data"]);
        assert_eq!(
            json!(Network::of(&settings).expect("valid")),
            settings["model"]
        );
        assert_eq!(Compute::of(&settings), Compute::default());
        assert!(!is_imported(&settings));
        let nothing = Limits::of(&json!({})).expect("no limits");
        assert_eq!(nothing, Limits::default());
        // Cells that are older than the choice.
        assert_eq!(Compute::of(&json!({})), Compute::default());
    }

    #[test]
    fn a_wrong_field_says_what_stands_there_and_what_was_expected() {
        for (table, key, value, found, expected) in [
            (
                "data",
                "train_limit",
                json!("all"),
                Some("\"all\""),
                "a whole number from 1 to",
            ),
            (
                "data",
                "test_limit",
                json!(0),
                Some("0"),
                "a whole number from 1 to",
            ),
            (
                "model",
                "width",
                json!(MOST_WIDTH + 1),
                Some("513"),
                "a whole number from 1 to 512",
            ),
            (
                "model",
                "width",
                Value::Null,
                None,
                "a whole number from 1 to 512",
            ),
            (
                "model",
                "classes",
                json!(-1),
                Some("-1"),
                "a whole number from 1 to 100000",
            ),
            (
                "model",
                "arch",
                json!(7),
                Some("7"),
                "the id of an architecture",
            ),
        ] {
            let mut settings = settings();
            settings[table][key] = value;
            let limits = Limits::of(&settings).map(|_| ());
            let wrong = limits.and_then(|()| Network::of(&settings).map(|_| ()));
            let wrong = wrong.expect_err(key);
            assert_eq!(wrong.field, format!("settings.{table}.{key}"));
            assert_eq!(wrong.found.as_deref(), found, "{key}");
            assert!(wrong.expected.starts_with(expected), "{}", wrong.expected);
        }
    }
}
