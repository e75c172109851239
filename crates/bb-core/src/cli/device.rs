//! Where to compute.

use std::fmt;
use std::str::FromStr;

use super::CliError;

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
#[error("expected `auto`, `cpu` or `cuda:N`")]
pub struct ParseDeviceError;

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, ParseDeviceError> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            _ => {
                let index = text.strip_prefix("cuda:").ok_or(ParseDeviceError)?;
                // A number may begin with a plus sign for Rust, and should not here.
                if !index.bytes().all(|byte| byte.is_ascii_digit()) {
                    return Err(ParseDeviceError);
                }
                index.parse().map(Self::Cuda).map_err(|_| ParseDeviceError)
            }
        }
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
