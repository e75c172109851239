//! Where to compute.

use std::fmt;
use std::str::FromStr;

use super::CliError;
use crate::settings::nearest;

/// What `--device` asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first CUDA device where the build and the machine have one, otherwise the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device with this index.
    Cuda(usize),
}

/// Where the program computes: a device that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The CPU.
    Cpu,
    /// The CUDA device with this index.
    Cuda(usize),
}

impl Device {
    /// The device that this is, given how many CUDA devices there are; `None` says that the build has no CUDA at all.
    pub fn resolve(self, cuda_devices: Option<usize>) -> Result<Backend, CliError> {
        match (self, cuda_devices) {
            (Self::Cpu, _) | (Self::Auto, None | Some(0)) => Ok(Backend::Cpu),
            (Self::Auto, Some(_)) => Ok(Backend::Cuda(0)),
            (Self::Cuda(index), Some(count)) if index < count => Ok(Backend::Cuda(index)),
            (Self::Cuda(index), Some(count)) => Err(CliError::NoSuchCuda { index, count }),
            (Self::Cuda(index), None) => Err(CliError::NoCuda { index }),
        }
    }
}

/// The text names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected `auto`, `cpu` or `cuda:N`{}", .meant.map(|meant| format!("; did you mean `{meant}`?")).unwrap_or_default())]
pub struct ParseDeviceError {
    /// The device that was probably meant.
    meant: Option<&'static str>,
}

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, ParseDeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            // As in PyTorch.
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let index = text.strip_prefix("cuda:");
                // A number may begin with a plus sign for Rust, and should not here.
                let index = index.filter(|index| index.bytes().all(|byte| byte.is_ascii_digit()));
                let index = index.and_then(|index| index.parse().ok());
                index
                    .map(Self::Cuda)
                    .ok_or_else(|| ParseDeviceError { meant: meant(text) })
            }
        }
    }
}

/// The device that `text` probably means.
fn meant(text: &str) -> Option<&'static str> {
    match text.to_lowercase().split(':').next() {
        // One letter from `cpu`, which it does not mean.
        Some("gpu" | "nvidia") => Some("cuda:0"),
        Some(device) => match nearest(device, ["auto", "cpu", "cuda"])? {
            "cuda" => Some("cuda:0"),
            other => Some(other),
        },
        None => None,
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}
