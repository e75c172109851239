//! Models that strangers published, as ordinary cells of an attack, and our own cells for other programs.
//!
//! - [`import()`] makes a cell of a folder that BackdoorBench left (`attack_result.pt` and the pictures beside it), on
//!   which every defense works, or of a bare state dictionary, as the cell of a network without a backdoor;
//!   [`record`] compares its pictures with the dataset.
//! - [`import_repaired()`] makes a defense's cell of a network that another program repaired.
//! - [`export()`] makes such a folder of a cell, or a state dictionary in PyTorch's format or as safetensors.
//! - [`published`] lists, fetches and measures the models of an index.
//!
//! - [`scan()`] says what a file is.
//!
//! How tensors meet the names of an architecture is in [`tensors`], what attacks are called in [`attacks`].

use std::path::PathBuf;

use bb_attack::picture::PictureError;
use bb_core::cli::{Coded, exit};
use bb_zoo::torch::pickle::short;

pub mod attacks;
pub mod export;
pub mod import;
mod names;
pub mod published;
pub mod record;
pub mod repaired;
mod scan;
mod source;
pub mod tensors;

pub use attacks::attack_name;
pub use export::{ExportRequest, Exported, Format, export};
pub use import::{ImportRequest, Importable, check, import};
pub use repaired::{RepairedRequest, import_repaired};
pub use scan::scan;
pub use tensors::{Report, Rules};

/// Name of BackdoorBench's checkpoint in its folder.
pub const ATTACK_RESULT: &str = "attack_result.pt";

/// Why a model cannot be imported or exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZooError {
    /// The checkpoint is of another dataset.
    #[error("`{}` is a model for `{}`, expected `{expected}`", path.display(), short(found))]
    Dataset {
        /// The checkpoint.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// The checkpoint's numbers do not fit the dataset.
    #[error("`{}`: `{field}` is {found}, the dataset has {expected}", path.display())]
    Fit {
        /// The checkpoint.
        path: PathBuf,
        /// The field.
        field: String,
        /// What it says.
        found: String,
        /// What the dataset has.
        expected: String,
    },
    /// A folder that BackdoorBench did not leave.
    #[error("`{}` has no `{ATTACK_RESULT}`, expected a folder with one, or a file of tensors", path.display())]
    NoResult {
        /// The folder.
        path: PathBuf,
        /// Whether it is a cell of ours.
        cell: bool,
    },
    /// No attack of that name.
    #[error("unknown attack `{}`, known are {known}", short(found))]
    Attack {
        /// What was asked for.
        found: String,
        /// The known names.
        known: String,
        /// The known one that is nearest.
        near: Option<String>,
    },
    /// The architecture of a bare state dictionary is not known.
    #[error("`{}` does not say what network it belongs to", path.display())]
    NoArch {
        /// The file.
        path: PathBuf,
        /// The one whose tensors have these names.
        fitting: Option<&'static str>,
    },
    /// The dataset of a file is not known.
    #[error("`{}` does not say what dataset it was trained on", path.display())]
    NoDataset {
        /// The file.
        path: PathBuf,
    },
    /// No dictionary of tensors lies where one was said to lie.
    #[error("`{}` has no dictionary at `{key}`", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Where it was said to lie.
        key: String,
        /// Where there are some.
        keys: Vec<String>,
    },
    /// More than one dictionary of tensors may be the network.
    #[error("`{}` has several dictionaries of tensors{}", path.display(), if *fit { " that fit" } else { ", and the names of none fit" })]
    Keys {
        /// The file.
        path: PathBuf,
        /// Whether their names are those of a network.
        fit: bool,
        /// Where they lie.
        keys: Vec<String>,
    },
    /// There is no dictionary of tensors alone.
    #[error("`{}` has no dictionary that holds tensors and nothing else", path.display())]
    NoTensors {
        /// The file.
        path: PathBuf,
        /// Where there are other dictionaries.
        keys: Vec<String>,
    },
    /// No architecture of that name.
    #[error("`{}` is a `{}`, expected one of {known}", path.display(), short(found))]
    Arch {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// The known names.
        known: String,
    },
    /// The tensors are not those of the architecture.
    #[error("the tensors of `{}` are not those of {arch}: {report}", path.display())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// The architecture.
        arch: String,
        /// What differs.
        report: String,
        /// What would make them fit.
        help: Option<String>,
    },
    /// A poisoned test image shows what the attacker wants it to be taken for.
    #[error("`{}`: image {index} of `bd_test` has the true label {label}, which is the attacked one, too; expected only images of other classes", path.display())]
    Target {
        /// The checkpoint.
        path: PathBuf,
        /// Index of the image in the test set.
        index: usize,
        /// Both labels.
        label: u32,
    },
    /// The file of a cell's network does not describe it.
    #[error("the metadata of `{}` have no `{field}`, or a wrong one", path.display())]
    NoField {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
    },
    /// The name of a folder cannot be a part of the paths that BackdoorBench opens.
    #[error("`{}` does not end in a name that is readable text", path.display())]
    OutName {
        /// The folder that was asked for.
        path: PathBuf,
    },
    /// A picture is missing or has other sizes.
    #[error(transparent)]
    Picture(#[from] PictureError),
}

impl Coded for ZooError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Attack { .. }
            | Self::NoArch { .. }
            | Self::NoDataset { .. }
            | Self::Key { .. }
            | Self::OutName { .. } => exit::USAGE,
            _ => exit::INPUT,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Attack { near, .. } => {
                let near = near.as_ref().map(|near| format!("did you mean `{near}`? "));
                let near = near.unwrap_or_default();
                Some(format!(
                    "{near}`--attack-name NAME` files it under any other name"
                ))
            }
            Self::NoArch { fitting, .. } => Some(match fitting {
                Some(arch) => format!("its tensors are those of {arch}: `--arch {arch}`"),
                None => "name it with `--arch`".to_owned(),
            }),
            Self::NoDataset { .. } => Some("name it with `--dataset`".to_owned()),
            Self::Key { keys, .. } if keys.is_empty() => {
                Some("it has none but the whole, so leave `--key` out".to_owned())
            }
            Self::Key { keys, .. } => Some(format!("tensors lie {}", listed(keys))),
            Self::Keys { keys, .. } => Some(format!(
                "name the one that is meant with `--key KEY`; tensors lie {}",
                listed(keys)
            )),
            Self::NoTensors { keys, .. } if keys.is_empty() => None,
            Self::NoTensors { keys, .. } => Some(format!(
                "other dictionaries lie {}; `--key KEY` says what is wrong with one",
                listed(keys)
            )),
            Self::Tensors { help, .. } => help.clone(),
            Self::NoResult { cell: true, .. } => Some(
                "a cell needs no import: `bb-defense` and `bb-eval` take it as it is".to_owned(),
            ),
            Self::NoResult { .. } => {
                Some("name the file itself (`.pt`, `.pth` or `.safetensors`)".to_owned())
            }
            // What it was refused with is of no use where that name is not known either.
            Self::Dataset { found, .. } => bb_core::data::spec(found)
                .is_ok()
                .then(|| format!("import it with `--dataset {found}`")),
            _ => None,
        }
    }
}

/// Where dictionaries lie, for a hint.
fn listed(keys: &[String]) -> String {
    const SHOWN: usize = 6;
    let name = |key: &String| match key.as_str() {
        "" => "at the top".to_owned(),
        key => format!("below `{}`", short(key)),
    };
    let shown: Vec<String> = keys.iter().take(SHOWN).map(name).collect();
    let more = if keys.len() > SHOWN { ", ..." } else { "" };
    shown.join(", ") + more
}
