//! Everything that can go wrong in an attack, and which exit code it has.

use std::io;
use std::path::{Path, PathBuf};

use bb_core::artifact::ArtifactError;
use bb_core::cell::CellError;
use bb_core::cli::{CliError, Coded, Interrupted, exit};
use bb_core::data::DataError;
use bb_core::method::UnknownMethod;
use bb_core::poison::PoisonFault;
use bb_core::settings::SettingsError;
use bb_nn::NnError;
use bb_nn::train::TrainError;

use crate::clean_net::CleanNetError;
use crate::labels::LabelError;
use crate::lf::pattern::PatternError;
use crate::picture::PictureError;
use crate::poison_index::PoisonIndexError;
use crate::ssba::arrays::ArrayError;

/// An attack that cannot be prepared or trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttackError {
    /// No attack has this name.
    #[error(transparent)]
    UnknownMethod(#[from] UnknownMethod),
    /// The dataset cannot be opened, or images of it cannot be put together.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A setting is unknown, of the wrong type or out of range.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A label setting does not fit the dataset.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The images to poison cannot be chosen.
    #[error(transparent)]
    PoisonIndex(#[from] PoisonIndexError),
    /// The poisoned images do not fit together or do not fit the dataset.
    #[error("the poisoned images are not valid")]
    Poison(#[from] PoisonFault),
    /// A trigger picture cannot be read.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// A trigger pattern cannot be read.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// The wave is too fine for the images.
    #[error("`trigger.frequency` is {found}, expected less than {} (half the width of the images)", *width as f64 / 2.0)]
    Frequency {
        /// The setting.
        found: f64,
        /// Width of the images in pixels.
        width: usize,
    },
    /// The attacker's clean network cannot be read.
    #[error(transparent)]
    CleanNet(#[from] CleanNetError),
    /// More neurons than the network has.
    #[error(
        "`trigger.neurons` is {found}, expected at most {features}, the features of the network"
    )]
    Neurons {
        /// The setting.
        found: usize,
        /// Features before the last layer.
        features: usize,
    },
    /// An array of encoded images cannot be used.
    #[error(transparent)]
    Encoded(#[from] ArrayError),
    /// The encoder's loss is not a number.
    #[error("the training of the encoder diverged in step {}, expected finite losses", .step + 1)]
    EncoderDiverged {
        /// Step, counted from 0 here and from 1 in the message.
        step: usize,
    },
    /// The encoder takes square images only.
    #[error(
        "the images have {height} x {width} pixels, expected squares for `trigger.source = \"train\"`"
    )]
    NotSquare {
        /// Height of the images.
        height: usize,
        /// Width of the images.
        width: usize,
    },
    /// No image could be driven to the target class.
    #[error(
        "none of {images} images could be driven to class {target} on the clean network, expected at least one; \
         is the network trained?"
    )]
    NoPattern {
        /// Images that were tried.
        images: usize,
        /// The attacker's class.
        target: u32,
    },
    /// The trained network has no class for some images, although its weights are finite.
    #[error("training diverged: the network cannot be scored after {done} of {total} epochs")]
    Scores {
        /// Epochs done.
        done: usize,
        /// Epochs of the training.
        total: usize,
        /// Which images.
        source: NnError,
    },
    /// The clean network, that the trigger is made for, diverged.
    #[error("{source}, while the clean network was trained")]
    CleanDiverged {
        /// Where.
        source: TrainError,
    },
    /// A network of the attack's own gives no numbers.
    #[error("the {network} gives {what} that are NaN or infinite")]
    OwnNetwork {
        /// Which one, such as `clean network`.
        network: &'static str,
        /// What it gives, and for which image.
        what: String,
    },
    /// A ratio by which no batch of the run has a poisoned image.
    #[error(
        "`ratio` {ratio} selects no image of any batch of the run (up to {batch_size} images each, {batches} in all), \
         expected at least one"
    )]
    NoPoisonedBatch {
        /// The setting.
        ratio: f64,
        /// Images in a batch.
        batch_size: usize,
        /// Batches of the whole run.
        batches: u64,
    },
    /// A preparation was asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A network of the attack's own needs other images.
    #[error("the images are {height} x {width} pixels, expected sides that are multiples of 8")]
    Sides {
        /// Height of the images.
        height: usize,
        /// Width of the images.
        width: usize,
    },
    /// There is nothing that a preview could show.
    #[error("no preview of `{method}`: {reason}")]
    NoPreview {
        /// The attack.
        method: &'static str,
        /// Why not.
        reason: &'static str,
    },
    /// A limit that leaves nothing out.
    #[error("the limit of {limit} {split} images does nothing, because the dataset has {images}")]
    WideLimit {
        /// `train` or `test`.
        split: &'static str,
        /// The limit.
        limit: usize,
        /// Images in the split.
        images: usize,
    },
    /// The file of a preview would have another format than its name says.
    #[error("`{}` does not end in `.png`, and a preview is a PNG file", path.display())]
    NotPng {
        /// The file.
        path: PathBuf,
    },
    /// The patch is larger than what it is drawn on.
    #[error(
        "`trigger.size` {size} with `trigger.margin` {margin} does not fit in {height} x {width} pixels, \
         expected a sum of at most {}",
        height.min(width)
    )]
    PatchTooLarge {
        /// Side of the patch.
        size: usize,
        /// Distance from the edges.
        margin: usize,
        /// Height of what it is drawn on.
        height: usize,
        /// Width of what it is drawn on.
        width: usize,
    },
    /// A picture that paints nothing, because black pixels are left alone.
    #[error("trigger picture `{}` is black at the dataset's size, expected at least one value above 0", path.display())]
    BlackTrigger {
        /// The picture.
        path: PathBuf,
    },
    /// The network cannot be built or written.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// Training failed or was interrupted.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A part of the checkpoint cannot be read or written.
    #[error("cannot use checkpoint `{}`", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The log cannot be written.
    #[error("cannot write the log in `{}`", dir.display())]
    Log {
        /// The folder of the cell.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The result folder cannot be opened, written or completed.
    #[error(transparent)]
    Cell(#[from] CellError),
    /// A file cannot be hashed or written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The machine cannot do what was asked.
    #[error(transparent)]
    Machine(#[from] CliError),
}

impl AttackError {
    /// A log in `dir` that cannot be written.
    pub(crate) fn log(dir: &Path) -> impl FnOnce(io::Error) -> Self {
        let dir = dir.to_owned();
        move |source| Self::Log { dir, source }
    }
}

impl Coded for AttackError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::UnknownMethod(error) => error.exit_code(),
            Self::Data(error) => error.exit_code(),
            Self::Settings(error) => error.exit_code(),
            Self::Label(_)
            | Self::PoisonIndex(_)
            | Self::PatchTooLarge { .. }
            | Self::Frequency { .. }
            | Self::Neurons { .. }
            | Self::Sides { .. }
            | Self::NotSquare { .. }
            | Self::NoPoisonedBatch { .. }
            | Self::NotPng { .. }
            | Self::NoPreview { .. }
            | Self::WideLimit { .. } => exit::USAGE,
            Self::Poison(_) => exit::BUG,
            Self::Picture(_)
            | Self::Pattern(_)
            | Self::CleanNet(_)
            | Self::Encoded(_)
            | Self::NoPattern { .. }
            | Self::BlackTrigger { .. } => exit::INPUT,
            // What is written is the result of the training, and not what somebody gave.
            Self::Nn(NnError::NotFinite { .. })
            | Self::EncoderDiverged { .. }
            | Self::Scores { .. }
            | Self::CleanDiverged { .. }
            | Self::OwnNetwork { .. } => exit::NUMERICAL,
            Self::Nn(error) => error.exit_code(),
            Self::Train(error) => error.exit_code(),
            Self::Checkpoint { source, .. } | Self::Log { source, .. } => source.exit_code(),
            Self::Cell(error) => error.exit_code(),
            Self::Artifact(error) => error.exit_code(),
            Self::Machine(error) => error.exit_code(),
            Self::Interrupted(error) => error.exit_code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownMethod(error) => error.hint(),
            Self::Data(error) => error.hint(),
            Self::Settings(error) => error.hint(),
            Self::PoisonIndex(PoisonIndexError::ClassTooSmall { available: 1.., .. }) => {
                Some("set `oversize=cap` to poison the whole class".to_owned())
            }
            Self::EncoderDiverged { .. } => Some("lower `trigger.lr`".to_owned()),
            Self::Train(TrainError::Diverged { .. } | TrainError::NotFinite { .. })
            | Self::CleanDiverged { .. }
            | Self::Scores { .. } => Some("lower `train.lr`".to_owned()),
            Self::NoPoisonedBatch { .. } => Some(
                "raise `ratio` or `train.batch_size` until their product is 1 or more".to_owned(),
            ),
            Self::Train(TrainError::NoBatch { .. }) => {
                Some("lower `train.batch_size`, or set `train.drop_last=false`".to_owned())
            }
            Self::Train(TrainError::Checkpoint { .. }) | Self::Checkpoint { .. } => {
                Some("remove the folder of the cell to begin anew".to_owned())
            }
            Self::Nn(error) => error.hint(),
            Self::Train(error) => error.hint(),
            Self::Artifact(error) => error.hint(),
            Self::WideLimit { split, .. } => Some(format!(
                "leave out `--{split}-limit`, in a grid `{split}_limit`"
            )),
            Self::Cell(error) => error.hint(),
            Self::Machine(error) => error.hint(),
            Self::Interrupted(error) => error.hint(),
            _ => None,
        }
    }
}
