//! Cells: the folders in which results lie, and the only place where attack and defense meet.
//!
//! A cell is named by everything that its content follows from, so that it can be asked for before it exists:
//!
//! ```text
//! <out>/<kind>/<method>/<dataset>-<arch>/<id>/
//!   manifest.json                     written last: its presence means that the cell is complete
//!   model.safetensors, metrics.jsonl, …   listed in the manifest with length and SHA-256
//!   env.json, log.jsonl               what differs from run to run: machine, times; not listed
//!   ckpt/                             what a resumed run begins from; gone when the cell is complete
//!   failed.json                       why the last run failed for good, see [`Failed`]; gone when the cell is complete
//!   lock                              held by the process that works here, which it names with its machine
//! ```
//!
//! [`open`] finds out what is to be done: a complete cell is verified and returned, anything else is handed out as
//! [`Work`] to begin or to resume, by one process at a time.
//! The lock belongs to the process, not to the file, so that `kill -9` releases it.
//!
//! The manifest has neither times nor names of machines: the same run gives the same bits, wherever the processor rounds
//! alike.
//!
//! A cell may come from a stranger, and nothing in it is a link: one that were followed would have files read or written
//! anywhere. The folder of results that the user names may be one, and those above it; nothing below is.
pub mod contract;
pub mod env;
mod error;
mod failed;
mod lock;
mod manifest;
pub mod store;
mod work;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::artifact;

pub use error::CellError;
pub use failed::Failed;
pub use lock::{Holder, Lock};
pub use manifest::{Cell, FileEntry, Manifest};
pub use work::{Opened, Work, open};

/// The version of the layout of a cell; part of every id, so that no version takes another's cells for its own.
pub const SCHEMA: u32 = 1;

/// Name of the file whose presence means that a cell is complete.
pub const MANIFEST: &str = "manifest.json";
/// Name of the folder for what a resumed run begins from.
pub const CKPT: &str = "ckpt";
/// Name of the file on the machine and the time of a run.
pub const ENV: &str = "env.json";
/// Name of the log.
pub const LOG: &str = "log.jsonl";
/// Name of the record of a run that failed for good.
pub const FAILED: &str = "failed.json";
/// The trained or repaired network.
pub const MODEL: &str = "model.safetensors";
/// The poisoned training images of an attack.
pub const POISON_TRAIN: &str = "poison_train.safetensors";
/// The poisoned test images of an attack.
pub const POISON_TEST: &str = "poison_test.safetensors";
/// The complete settings, in a form that gives the same run again.
pub const CONFIG: &str = "config.toml";
/// The measured rows.
pub const METRICS: &str = "metrics.jsonl";
const LOCK: &str = "lock";

/// What a cell is a result of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A model trained by an attacker.
    Attack,
    /// A model repaired by a defender.
    Defense,
}

impl Kind {
    /// The word in paths and manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Attack => "attack",
            Self::Defense => "defense",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Everything that the content of a cell follows from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CellSpec {
    /// What it is a result of.
    pub kind: Kind,
    /// Id of the method.
    pub method: String,
    /// Id of the dataset.
    pub dataset: String,
    /// Name of the network.
    pub arch: String,
    /// All settings of the method after all layers, also those left at their default.
    pub settings: Value,
    /// The data it begins from: a name for each, and its digest.
    pub inputs: BTreeMap<String, String>,
    /// The seed of all random streams.
    pub seed: u64,
}

impl CellSpec {
    /// The name of the cell: the first 16 hexadecimal digits of the SHA-256 of this specification and [`SCHEMA`] as
    /// [`canonical_json`].
    pub fn id(&self) -> String {
        let mut id = artifact::sha256_hex(canonical_json(&json!({
            "schema": SCHEMA,
            "kind": self.kind,
            "method": self.method,
            "dataset": self.dataset,
            "arch": self.arch,
            "settings": self.settings,
            "inputs": self.inputs,
            "seed": self.seed,
        })));
        id.truncate(16);
        id
    }

    /// The folder of the cell, `<out>/<kind>/<method>/<dataset>-<arch>/<id>`.
    pub fn dir(&self, out: &Path) -> PathBuf {
        out.join(self.kind.as_str())
            .join(&self.method)
            .join(format!("{}-{}", self.dataset, self.arch))
            .join(self.id())
    }

    /// Checks that no name leads out of the folder it is made part of.
    fn check_names(&self) -> Result<(), CellError> {
        for (field, found) in [
            ("method", &self.method),
            ("dataset", &self.dataset),
            ("arch", &self.arch),
        ] {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
            let begins = found.starts_with(|c: char| c.is_ascii_alphanumeric());
            if !begins || found.len() > 100 || !found.chars().all(plain) {
                return Err(CellError::Name {
                    field,
                    found: found.clone(),
                });
            }
        }
        Ok(())
    }
}

/// JSON that is the same for equal values: keys sorted by their bytes at every level, no white space, floats in the
/// shortest form that reads back to the same bits.
pub fn canonical_json(value: &Value) -> String {
    sorted(value.clone()).to_string()
}

/// The same value with sorted keys.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let by_key: BTreeMap<String, Value> = map.into_iter().collect();
            let entries = by_key.into_iter().map(|(key, value)| (key, sorted(value)));
            Value::Object(entries.collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

/// Whether `name` names something within a folder on every system: parts with `/` between, none of them empty, `.` or
/// `..`, and no character that is special elsewhere.
fn stays_within(name: &str) -> bool {
    name.split('/').all(|part| {
        !matches!(part, "" | "." | "..")
            && !part.contains(|c: char| c.is_control() || matches!(c, '\\' | ':'))
    })
}
