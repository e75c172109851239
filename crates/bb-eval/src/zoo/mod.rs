//! Models that strangers published, as ordinary cells of an attack, and our own cells for other programs.
//!
//! - [`import()`] makes a cell of a folder that BackdoorBench left (`attack_result.pt` and the pictures beside it), on
//!   which every defense works, or of a bare state dictionary, as the cell of a network without a backdoor;
//!   [`record`] compares its pictures with the dataset.
//! - [`import_repaired()`] makes a defense's cell of a network that another program repaired.
//! - [`export()`] makes such a folder of a cell, or a state dictionary in PyTorch's format or as safetensors.
//! - [`published`] lists, fetches and measures the models of an index.
//!
//! How tensors meet the names of an architecture is in [`tensors`].

use std::path::PathBuf;

use bb_attack::picture::PictureError;
use bb_core::cli::{Coded, exit};

pub mod export;
pub mod import;
pub mod published;
pub mod record;
pub mod repaired;
mod source;
pub mod tensors;

pub use export::{ExportRequest, Exported, Format, export};
pub use import::{ImportRequest, import};
pub use repaired::{RepairedRequest, import_repaired};
pub use tensors::{Report, Rules};

/// Name of BackdoorBench's checkpoint in its folder.
pub const ATTACK_RESULT: &str = "attack_result.pt";

/// Why a model cannot be imported or exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ZooError {
    /// The checkpoint is of another dataset.
    #[error("`{}` is a model for `{found}`, expected `{expected}`", path.display())]
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
    /// The architecture of a bare state dictionary is not known.
    #[error("`{}` does not say what network it belongs to", path.display())]
    NoArch {
        /// The file.
        path: PathBuf,
    },
    /// No architecture of that name.
    #[error("`{}` is a `{found}`, expected one of {known}", path.display())]
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
            Self::NoArch { .. } | Self::OutName { .. } => exit::USAGE,
            _ => exit::INPUT,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoArch { .. } => Some("name it with `--arch`".to_owned()),
            Self::NoResult { cell: true, .. } => Some(
                "a cell needs no import: `bb-defense` and `bb-eval` take it as it is".to_owned(),
            ),
            Self::NoResult { .. } => {
                Some("name the file itself (`.pt`, `.pth` or `.safetensors`)".to_owned())
            }
            Self::Dataset { found, .. } => Some(format!("import it with `--dataset {found}`")),
            _ => None,
        }
    }
}
