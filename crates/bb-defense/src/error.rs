//! Everything that can go wrong in a defense, and which exit code it has.

use std::path::{Path, PathBuf};

use bb_core::artifact::ArtifactError;
use bb_core::cell::CellError;
use bb_core::cli::{CliError, Coded, Interrupted, exit};
use bb_core::data::DataError;
use bb_core::method::UnknownMethod;
use bb_core::poison::PoisonError;
use bb_core::settings::SettingsError;
use bb_nn::NnError;

use crate::nwc::MismatchError;

/// A repair that cannot be begun or finished.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DefenseError {
    /// No defense has this name.
    #[error(transparent)]
    UnknownMethod(#[from] UnknownMethod),
    /// A setting is unknown, of the wrong type or out of range.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The machine cannot do what was asked.
    #[error(transparent)]
    Cli(#[from] CliError),
    /// The dataset cannot be opened.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The result folder or the folder of the suspect model cannot be opened, written or completed.
    #[error(transparent)]
    Cell(#[from] CellError),
    /// A file cannot be hashed or written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The model does not fit its architecture, or holds NaN.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// The poisoned test set cannot be read.
    #[error(transparent)]
    Poison(#[from] PoisonError),
    /// The run was asked to stop; the last checkpoint stands.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// What is to be repaired is not the result of an attack.
    #[error("`{}` holds the result of a defense, expected an attack's", path.display())]
    NotAnAttack {
        /// The folder.
        path: PathBuf,
    },
    /// The suspect model's folder lacks a file.
    #[error("`{}` has no `{name}`", path.display())]
    NoFile {
        /// The folder.
        path: PathBuf,
        /// The file.
        name: &'static str,
    },
    /// A command-line option contradicts the suspect model.
    #[error("`--{option} {found}` does not fit the suspect model, which has `{expected}`")]
    OtherModel {
        /// The option.
        option: &'static str,
        /// What was asked for.
        found: String,
        /// What the model has.
        expected: String,
    },
    /// The dataset's content is not what the attack used.
    #[error("dataset `{id}` is not the one of the attack: digest {found}, expected {expected}")]
    OtherDataset {
        /// The dataset.
        id: String,
        /// Digest of the attack's dataset.
        expected: String,
        /// Digest of the dataset that was opened.
        found: String,
    },
    /// The poisoned test set was not made from this dataset.
    #[error("image {number} of the poisoned test set `{}` does not fit the dataset: {reason}", path.display())]
    OtherTestSet {
        /// The file.
        path: PathBuf,
        /// Place of the image in the file.
        number: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The poisoned test set has images of another size.
    #[error("the poisoned test set `{}` has images of {found:?} pixels, expected {expected:?}", path.display())]
    ImageSize {
        /// The file.
        path: PathBuf,
        /// Height and width in the dataset.
        expected: (usize, usize),
        /// Height and width in the file.
        found: (usize, usize),
    },
    /// The share of clean images comes to none.
    #[error("`clean.ratio` {ratio} of {images} training images gives no clean image")]
    NoCleanImages {
        /// The share.
        ratio: f64,
        /// Images in the training split.
        images: usize,
    },
    /// The file with the indices of the clean images cannot be read.
    #[error("cannot read the index file `{}`", path.display())]
    IndexFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file with the indices of the clean images holds something else.
    #[error("`{}`, line {line}: expected a new index below {images}, found `{found}`", path.display())]
    IndexLine {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// What stands there.
        found: String,
        /// Images in the training split.
        images: usize,
    },
    /// The file with the indices of the clean images is empty.
    #[error("`{}` holds no index", path.display())]
    NoIndices {
        /// The file.
        path: PathBuf,
    },
    /// Too few clean images to hold some out.
    #[error(
        "{images} clean images are too few to hold out {share} of them and keep at least one on each side"
    )]
    HoldOut {
        /// Clean images.
        images: usize,
        /// Share to hold out.
        share: f64,
    },
    /// The models compared by neuron weight change do not match.
    #[error(transparent)]
    Mismatch(#[from] MismatchError),
    /// The model has no tensor of this name.
    #[error("setting `{key}` names the tensor `{name}`, which `{arch}` does not have")]
    NoTensor {
        /// The setting.
        key: &'static str,
        /// The tensor.
        name: String,
        /// The architecture.
        arch: String,
    },
    /// The network does not end in a linear layer.
    #[error("`{arch}` does not end in a linear layer with a bias, which this method acts on")]
    NoHead {
        /// The architecture.
        arch: String,
    },
    /// The network has nothing to be scored.
    #[error("`{arch}` has no batch normalisation behind a convolution, which this method acts on")]
    NoNorm {
        /// The architecture.
        arch: String,
    },
    /// The network has no channel to act on.
    #[error("`{arch}` has no batch normalisation, whose channels this method acts on")]
    NoChannels {
        /// The architecture.
        arch: String,
    },
    /// The features before the classifier are not the neurons of the last convolution.
    #[error(
        "`prune.order` is `nwc`, expected `activation`: `{arch}` has {features} features before the classifier, but its last convolution {neurons} neurons"
    )]
    Features {
        /// The architecture.
        arch: String,
        /// Features.
        features: usize,
        /// Neurons of the last convolution.
        neurons: usize,
    },
    /// The suspect model's file holds another network than its manifest says, or numbers that are none.
    #[error("the network in `{}` cannot be used: {source}", path.display())]
    Network {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<NnError>,
    },
    /// Layers that must follow each other do not.
    #[error(
        "target layer `{layer}` has {found} inputs, but the target layer before it has {expected} neurons"
    )]
    Chain {
        /// The layer.
        layer: String,
        /// Its inputs.
        found: usize,
        /// Neurons of the target layer before it.
        expected: usize,
    },
    /// The loss became infinite or not a number.
    #[error("{stage} diverged: the loss of epoch {}, step {} is {loss}", .epoch + 1, .step + 1)]
    Diverged {
        /// The stage of the method.
        stage: String,
        /// Epoch, counted from 0 here and from 1 in the message.
        epoch: usize,
        /// Step in the epoch, counted likewise.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// The repaired model, or one on the way to it, holds NaN or an infinity.
    #[error("{stage} diverged: tensor `{tensor}` is no longer finite")]
    NotFinite {
        /// The stage of the method.
        stage: String,
        /// The first such tensor.
        tensor: String,
    },
    /// A network has no class for some images, although its weights are finite.
    #[error("{network} cannot be scored")]
    Scores {
        /// Which network, and the epoch if it has one.
        network: String,
        /// Which images.
        source: Box<NnError>,
    },
    /// A checkpoint does not fit.
    #[error("cannot resume from `{}`: {reason}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The log cannot be written.
    #[error("cannot write the log in `{}`", dir.display())]
    Log {
        /// The folder of the cell.
        dir: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The method gave two models the same name.
    #[error("the method gave two models the name `{name}`")]
    SameName {
        /// The name.
        name: String,
    },
    /// An error of a method of another crate.
    #[error("the method cannot go on")]
    Method {
        /// The exit code, see [`bb_core::cli::exit`].
        code: u8,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl DefenseError {
    /// Names the network in an error about its logits, which knows only the images.
    pub fn scores(network: impl Into<String>) -> impl FnOnce(NnError) -> Self {
        let network = network.into();
        move |error| match error {
            NnError::Logits(_) => Self::Scores {
                network,
                source: Box::new(error),
            },
            other => other.into(),
        }
    }

    /// Names the file in an error about what it holds, which knows only the tensor.
    pub(crate) fn in_file(path: &Path) -> impl FnOnce(NnError) -> Self {
        let path = path.to_owned();
        move |error| match error {
            NnError::Read { .. } | NnError::Format { .. } => Self::Nn(error),
            error => Self::Network {
                path,
                source: Box::new(error),
            },
        }
    }

    /// A log in `dir` that cannot be written.
    pub(crate) fn log(dir: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let dir = dir.to_owned();
        move |source| Self::Log { dir, source }
    }
}

impl Coded for DefenseError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::UnknownMethod(error) => error.exit_code(),
            Self::Settings(error) => error.exit_code(),
            Self::Cli(error) => error.exit_code(),
            Self::Data(error) => error.exit_code(),
            Self::Log { source, .. } | Self::IndexFile { source, .. } => source.exit_code(),
            Self::Cell(error) => error.exit_code(),
            Self::Artifact(error) => error.exit_code(),
            Self::Poison(error) => error.exit_code(),
            Self::Interrupted(error) => error.exit_code(),
            Self::NoCleanImages { .. }
            | Self::OtherModel { .. }
            | Self::IndexLine { .. }
            | Self::NoIndices { .. }
            | Self::HoldOut { .. }
            | Self::NoTensor { .. }
            | Self::Features { .. } => exit::USAGE,
            Self::Diverged { .. } | Self::NotFinite { .. } | Self::Scores { .. } => exit::NUMERICAL,
            // The manifest of the suspect model names the architecture.
            Self::Nn(NnError::UnknownArch { .. } | NnError::ArchSize { .. })
            | Self::NotAnAttack { .. }
            | Self::NoFile { .. }
            | Self::OtherDataset { .. }
            | Self::OtherTestSet { .. }
            | Self::ImageSize { .. }
            | Self::Mismatch(_)
            | Self::NoHead { .. }
            | Self::NoNorm { .. }
            | Self::NoChannels { .. }
            | Self::Chain { .. }
            | Self::Checkpoint { .. } => exit::INPUT,
            Self::Nn(error) => error.exit_code(),
            Self::Network { source, .. } => source.exit_code(),
            Self::SameName { .. } => exit::BUG,
            Self::Method { code, .. } => *code,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownMethod(error) => error.hint(),
            Self::Settings(error) => error.hint(),
            Self::Cli(error) => error.hint(),
            Self::Data(error) => error.hint(),
            Self::Cell(error) => error.hint(),
            Self::Artifact(error) => error.hint(),
            Self::Poison(error) => error.hint(),
            Self::Interrupted(error) => error.hint(),
            Self::Nn(error) => error.hint(),
            Self::Network { source, .. } => source.hint(),
            Self::Chain { .. } => Some(
                "`layers.exclude` leaves out the convolutions whose name contains one of its parts"
                    .to_owned(),
            ),
            Self::OtherModel { option, .. } => Some(format!("leave `--{option}` out")),
            Self::OtherDataset { .. } => {
                Some("give the `--data` that the attack was run with".to_owned())
            }
            Self::Checkpoint { .. } => {
                Some("remove the folder `ckpt` of the cell to start anew".to_owned())
            }
            Self::Diverged { .. } | Self::NotFinite { .. } => {
                Some("try a smaller learning rate".to_owned())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_can_mend_has_a_hint() {
        let word = || "word".to_owned();
        let diverged = DefenseError::Diverged {
            stage: word(),
            epoch: 0,
            step: 0,
            loss: f32::NAN,
        };
        let not_finite = DefenseError::NotFinite {
            stage: word(),
            tensor: word(),
        };
        let chain = DefenseError::Chain {
            layer: word(),
            found: 1,
            expected: 2,
        };
        let model = DefenseError::OtherModel {
            option: "width",
            found: word(),
            expected: word(),
        };
        let dataset = DefenseError::OtherDataset {
            id: word(),
            expected: word(),
            found: word(),
        };
        let checkpoint = DefenseError::Checkpoint {
            path: PathBuf::new(),
            reason: word(),
        };
        for (error, word) in [
            (diverged, "learning rate"),
            (not_finite, "learning rate"),
            (chain, "`layers.exclude`"),
            (model, "leave `--width` out"),
            (dataset, "`--data`"),
            (checkpoint, "`ckpt`"),
        ] {
            let hint = error.hint().unwrap_or_default();
            assert!(hint.contains(word), "{error}: {hint}");
        }
    }
}
