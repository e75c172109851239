//! What the papers say of backdoored networks, measured: data as CSV and a figure as SVG.
//!
//! The decision this module embodies: looking at triggers and test images is for those who study a backdoor, not for
//! those who repair it. So the analyses are here, in a crate that no defense is built on, and use the defenses as tools;
//! nothing they find goes back.
//!
//! - [`nwc`]: neuron weight change of clean, random and poison unlearning (Observation 1 of TSBD, and OTBR's).
//! - [`activeness`]: gradient norms of neurons in a backdoored and a clean network (Observation 2 of TSBD).
//! - [`unlearning`]: accuracy and attack success from epoch to epoch of unlearning.
//! - [`tac`]: what a trigger changes in each channel, and how many of these channels each method ranks first.
//!
//! The unlearning is TSBD's, with its settings: the recipe of the cell's dataset, then those of the user.
//! [`subject`] opens cells, [`masks`] reads what repairs learned, [`statistics`] has the correlations, [`svg`] draws, and
//! [`output`] writes.

pub mod activeness;
pub(crate) mod command;
pub mod masks;
pub mod nwc;
pub mod output;
pub mod statistics;
pub mod subject;
pub mod svg;
pub mod tac;
pub mod unlearning;

use std::path::{Path, PathBuf};

use bb_core::cell::Cell;
use bb_core::cli::{Coded, Failure, catch_interrupts, exit};
use bb_core::events::Log;
use bb_core::settings::{Origin, Valid};
use bb_defense::method::{Given, settings};
use bb_defense::tsbd::Tsbd;
use bb_defense::tsbd::config::TsbdConfig;
use bb_nn::Compute;
use serde_json::{Value, json};

use self::output::{Findings, Folder};
use self::subject::Subject;

/// Tables of TSBD's settings that analyses depend on.
const USED: [&str; 3] = ["clean", "layers", "unlearn"];

/// What every analysis is given.
#[derive(Clone)]
pub struct Request {
    /// Folder or manifest of the attack's cell.
    pub cell: PathBuf,
    /// Folder with the datasets.
    pub data: Option<PathBuf>,
    /// Settings of TSBD over the recipe of the dataset.
    pub given: Given,
    /// Seed of augmentation and noise, as in a run of TSBD and OTBR.
    pub seed: u64,
    /// Folder to be made.
    pub out: PathBuf,
    /// Where to compute.
    pub compute: Compute,
    /// No log lines.
    pub quiet: bool,
}

/// Why an analysis cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnalyzeError {
    /// There is no trigger to look at.
    #[error("the model of `{}` has no poisoned test image, but {what} needs a backdoored one", path.display())]
    NotBackdoored {
        /// The cell.
        path: PathBuf,
        /// What was asked for.
        what: &'static str,
    },
    /// There is a trigger where there should be none.
    #[error("the model of `{}` has {images} poisoned test images, expected one trained without a backdoor", path.display())]
    NotClean {
        /// The cell.
        path: PathBuf,
        /// Poisoned test images.
        images: usize,
    },
    /// Two models that are to be compared are not alike.
    #[error("the {field} of `{}` is {found}, expected {expected} as in the other cell", path.display())]
    NotAlike {
        /// The second cell.
        path: PathBuf,
        /// What differs.
        field: &'static str,
        /// In the first cell.
        expected: String,
        /// In the second cell.
        found: String,
    },
    /// The results would lie over others.
    #[error("`{}` exists already", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The results cannot be written where they are wanted.
    #[error("cannot make the folder `{}` for the results", path.display())]
    Out {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The settings leave no layer to look at.
    #[error(
        "`layers.exclude` is {exclude:?}, which leaves no target layer of {arch}, expected at least one"
    )]
    NoTargets {
        /// The network.
        arch: String,
        /// The setting.
        exclude: Vec<String>,
    },
    /// The layer that is ranked has no weight change.
    #[error("`{layer}` is no target layer, so it has no weight change")]
    NotTarget {
        /// Name of the convolution.
        layer: String,
    },
    /// A cell that repaired another model, or none.
    #[error(
        "`{}` repaired {}, expected the model of digest {expected}",
        path.display(),
        found.as_ref().map_or("no model".to_owned(), |found| format!("the model of digest {found}"))
    )]
    NotItsRepair {
        /// The cell.
        path: PathBuf,
        /// Digest of the model that is looked at.
        expected: String,
        /// Digest of the model that was repaired.
        found: Option<String>,
    },
    /// A cell without masks.
    #[error("the repair of `{}` has no `{}`, expected one by a method that learns masks", path.display(), masks::FILE)]
    NoMasks {
        /// The cell.
        path: PathBuf,
    },
    /// A table of masks that does not fit the layer.
    #[error("`{}`: {reason}", path.display())]
    Masks {
        /// The table.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A figure that is infinite or not a number.
    #[error("{what} is not finite for channel {channel} of `{layer}`")]
    NotFinite {
        /// What was computed.
        what: String,
        /// The layer.
        layer: String,
        /// The channel.
        channel: usize,
    },
}

impl Coded for AnalyzeError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NotBackdoored { .. }
            | Self::NotClean { .. }
            | Self::NotAlike { .. }
            | Self::NotItsRepair { .. }
            | Self::NoMasks { .. }
            | Self::Masks { .. } => exit::INPUT,
            Self::Out { source, .. } => source.exit_code(),
            Self::Exists { .. } | Self::NoTargets { .. } | Self::NotTarget { .. } => exit::USAGE,
            Self::NotFinite { .. } => exit::NUMERICAL,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NotBackdoored { .. } => "give the cell of an attack",
            Self::NotClean { .. } => "`bb-attack clean` trains one",
            Self::NotAlike { .. } => "train both with the same `--dataset`, `--arch` and `--width`",
            Self::Exists { .. } => "remove it, or give another `--out`",
            Self::Out { .. } => "give another `--out`",
            Self::NoTargets { .. } => {
                "it leaves out the convolutions whose name contains one of its parts"
            }
            Self::NotTarget { .. } => "leave it out of `layers.exclude`",
            Self::NotItsRepair { .. } => "repair this very model with `bb-defense`",
            Self::NoMasks { .. } => "ANP and RNP learn masks",
            Self::Masks { .. } | Self::NotFinite { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// An analysis that has begun: its cell, the settings and where to say how it goes.
pub struct Study {
    /// What is looked at.
    pub subject: Subject,
    /// How it unlearns.
    pub cfg: Valid<TsbdConfig>,
    /// See [`Request::seed`].
    pub seed: u64,
    /// See [`Request::compute`].
    pub compute: Compute,
    log: Log,
    settings: Value,
}

impl Study {
    /// Opens the cell and the settings.
    pub fn begin(request: &Request) -> Result<Self, Failure> {
        catch_interrupts()?;
        let subject = Subject::open(&request.cell, request.data.as_deref())?;
        let resolved = settings::<Tsbd>(&subject.cell.manifest.dataset, &request.given)?;
        let given = |origin: &Origin| matches!(origin, Origin::Set { .. });
        let used = |key: &str| USED.contains(&key.split('.').next().unwrap_or(key));
        let mut settings = resolved.origins.iter();
        if let Some((key, ..)) = settings.find(|(key, _, origin)| given(origin) && !used(key)) {
            return Err(Failure::usage(format!(
                "setting `{key}` does nothing in an analysis, which takes those of `clean`, `layers` and `unlearn`"
            ))
            .hint("leave it out"));
        }
        // Unlearning would find it out in the end.
        subject.targets(&resolved.value)?;
        Ok(Self {
            subject,
            cfg: resolved.value,
            seed: request.seed,
            compute: request.compute.clone(),
            log: Log::new(request.quiet),
            settings: resolved.tree,
        })
    }

    /// Says how it goes, in one line.
    pub fn say(&self, text: &str) {
        let said = self.log.info("analyze", text, &Value::Null);
        said.expect("only a log in a file can fail");
    }

    /// Says what the user should know of, even when quiet.
    pub fn warn(&self, text: &str) {
        let said = self.log.warn("analyze", text, &Value::Null);
        said.expect("only a log in a file can fail");
    }

    /// What was looked at, for the record; `tables` are the settings that the analysis depends on.
    pub fn facts(&self, what: &str, tables: &[&str]) -> Value {
        let manifest = &self.subject.cell.manifest;
        let settings: serde_json::Map<String, Value> = tables
            .iter()
            .map(|&table| (table.to_owned(), self.settings[table].clone()))
            .collect();
        json!({
            "analysis": what,
            "cell": named(&self.subject.cell),
            "dataset": manifest.dataset,
            "arch": self.subject.arch.label(),
            "seed": self.seed,
            "settings": settings,
        })
    }
}

/// What identifies a cell, for the record.
fn named(cell: &Cell) -> Value {
    let manifest = &cell.manifest;
    json!({ "method": manifest.method, "id": manifest.id, "digest": cell.digest() })
}

/// Runs an analysis and writes what it found; gives the line for standard output.
pub fn run(
    request: &Request,
    analysis: impl FnOnce(&Study) -> Result<Findings, Failure>,
) -> Result<String, Failure> {
    // First, so that a place that cannot be written to is not found out after all epochs.
    let folder = Folder::begin(&request.out)?;
    let study = Study::begin(request)?;
    let findings = analysis(&study);
    // What an analysis says of NaN is explained by a failed device, and what it found is not to be written then.
    study.compute.take_failure()?;
    let findings = findings?;
    folder.finish(&findings)?;
    Ok(line(&request.out, &findings))
}

/// Where the results are and what was found, as one line of JSON.
fn line(out: &Path, findings: &Findings) -> String {
    let mut line = serde_json::Map::from_iter([("out".to_owned(), json!(out))]);
    if let Value::Object(found) = &findings.found {
        line.extend(found.clone());
    }
    format!("{}\n", Value::Object(line))
}

/// Checks that every channel of a layer has a number.
fn finite(what: &str, layer: &str, values: &[f64]) -> Result<(), AnalyzeError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(channel) => Err(AnalyzeError::NotFinite {
            what: what.to_owned(),
            layer: layer.to_owned(),
            channel,
        }),
    }
}
