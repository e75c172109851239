//! What can go wrong in the engine.

use crate::arch::NAMES;
use crate::eval::NotFiniteLogits;
use crate::kernels::precision::UnsupportedPrecision;
use bb_core::artifact::HeaderError;
use bb_core::cli::{Coded, exit};
use bb_core::settings::did_you_mean;
use std::path::{Path, PathBuf};

/// Errors of the engine; see the variants.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NnError {
    /// The architecture's name is not known.
    #[error("unknown architecture `{name}`, expected one of {known}")]
    UnknownArch {
        /// What was asked for.
        name: String,
        /// The known names.
        known: String,
    },
    /// A size of the architecture is out of range.
    #[error("`{field}` of `{arch}` is {found}, expected {expected}")]
    ArchSize {
        /// The architecture.
        arch: String,
        /// `width`, `classes` and so on.
        field: &'static str,
        /// The value given.
        found: usize,
        /// What is allowed.
        expected: &'static str,
    },
    /// A tensor of the state is missing.
    #[error("tensor `{name}` is missing, expected shape {expected:?}")]
    MissingTensor {
        /// The tensor's name.
        name: String,
        /// Its shape.
        expected: Vec<usize>,
    },
    /// The state holds a tensor that the network has no place for.
    #[error("tensor `{name}` does not belong to `{arch}`")]
    UnusedTensor {
        /// The tensor's name.
        name: String,
        /// The architecture.
        arch: String,
    },
    /// A tensor has another shape.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor's name.
        name: String,
        /// The network's shape.
        expected: Vec<usize>,
        /// The state's shape.
        found: Vec<usize>,
    },
    /// A tensor has another element type.
    #[error("tensor `{name}` has type {found}, expected {expected}")]
    DType {
        /// The tensor's name.
        name: String,
        /// The network's type.
        expected: &'static str,
        /// The state's type.
        found: String,
    },
    /// A tensor holds NaN or an infinity.
    #[error("tensor `{name}` holds NaN or an infinity at flat index {index}")]
    NotFinite {
        /// The tensor's name.
        name: String,
        /// The first such element.
        index: usize,
    },
    /// A running variance is below 0, whose square root is NaN.
    #[error(
        "tensor `{name}` holds {found} at flat index {index}, expected variances of at least 0"
    )]
    Variance {
        /// The tensor's name.
        name: String,
        /// The first such element.
        index: usize,
        /// Its value.
        found: f32,
    },
    /// Images without a class, so that there is no score.
    #[error(transparent)]
    Logits(#[from] NotFiniteLogits),
    /// The images are smaller than the architecture's layers can take.
    #[error(
        "`{arch}` needs images of at least {least} x {least} pixels, the dataset has {height} x {width}"
    )]
    ImageSize {
        /// The architecture.
        arch: String,
        /// Its least side.
        least: usize,
        /// Height of the images.
        height: usize,
        /// Width of the images.
        width: usize,
    },
    /// A checkpoint file cannot be read.
    #[error("cannot read checkpoint `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A checkpoint file is not a valid safetensors file.
    #[error("`{}` is not a valid safetensors file: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// The network has no feature of that name.
    #[error("unknown feature `{name}`, expected one of {known}")]
    UnknownFeature {
        /// What was asked for.
        name: String,
        /// The network's names.
        known: String,
    },
    /// The network has an operation that only the CPU computes.
    #[error("`{network}` cannot run on a GPU: {operation} is computed on the CPU only")]
    NotOnGpu {
        /// The network.
        network: String,
        /// Its first such operation.
        operation: &'static str,
    },
    /// The processor cannot compute in the chosen precision.
    #[error(transparent)]
    Precision(#[from] UnsupportedPrecision),
    /// A call to the GPU failed.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
    /// candle refused an operation.
    #[error("tensor operation failed")]
    Candle(#[from] candle_core::Error),
}

impl NnError {
    /// Names the file in an error about its header.
    pub(crate) fn header(path: &Path) -> impl Fn(HeaderError) -> Self {
        let path = path.to_owned();
        move |error| match error {
            HeaderError::Read(source) => Self::Read {
                path: path.clone(),
                source,
            },
            other => Self::Format {
                path: path.clone(),
                reason: other.to_string(),
            },
        }
    }
}

impl Coded for NnError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::UnknownArch { .. }
            | Self::ArchSize { .. }
            | Self::ImageSize { .. }
            | Self::NotOnGpu { .. }
            | Self::Precision(_) => exit::USAGE,
            Self::Logits(_) => exit::NUMERICAL,
            Self::Read { source, .. } => source.exit_code(),
            Self::Candle(_) | Self::UnknownFeature { .. } => exit::BUG,
            // The machine's trouble, not the input's; a run that is started again goes on from its checkpoint.
            #[cfg(feature = "cuda")]
            Self::Cuda(error) if error.again => exit::TRY_AGAIN,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => exit::USAGE,
            _ => exit::INPUT,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownArch { name, .. } => did_you_mean(name, NAMES.iter().copied()),
            Self::NotOnGpu { .. } => Some("use `--device cpu`".to_owned()),
            #[cfg(feature = "cuda")]
            Self::Cuda(error) if !error.again => Some("lower the batch size".to_owned()),
            Self::ImageSize { .. } => {
                Some("choose another architecture, or a dataset with larger images".to_owned())
            }
            _ => None,
        }
    }
}
