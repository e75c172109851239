//! Where passes run.

use crate::error::NnError;
use crate::kernels::precision::{Precision, supported};
use bb_core::cell::env::Env;
use bb_core::cli::{Backend, CliError, Device};

/// Where a network's passes run: the CPU, or a GPU that has been opened.
#[derive(Clone, Debug, Default)]
pub enum Compute {
    /// All cores of the CPU.
    #[default]
    Cpu,
    /// One GPU.
    #[cfg(feature = "cuda")]
    Cuda(std::rc::Rc<crate::cuda::Device>),
}

/// What `--device` asks for cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComputeError {
    /// There is no such device.
    #[error(transparent)]
    Cli(#[from] CliError),
    /// It is there and cannot be used.
    #[error(transparent)]
    Nn(#[from] NnError),
}

impl bb_core::cli::Coded for ComputeError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Cli(error) => error.exit_code(),
            Self::Nn(error) => error.exit_code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Cli(error) => error.hint(),
            Self::Nn(error) => error.hint(),
        }
    }
}

/// Number of CUDA devices, `None` in a build without CUDA.
pub fn cuda_devices() -> Option<usize> {
    #[cfg(feature = "cuda")]
    return Some(crate::cuda::device_count());
    #[cfg(not(feature = "cuda"))]
    None
}

impl Compute {
    /// What `device` asks for.
    pub fn open(device: Device) -> Result<Self, ComputeError> {
        match device.resolve(cuda_devices())? {
            Backend::Cpu => Ok(Self::Cpu),
            #[cfg(feature = "cuda")]
            Backend::Cuda(index) => Ok(Self::Cuda(crate::cuda::Device::new(index)?)),
            #[cfg(not(feature = "cuda"))]
            Backend::Cuda(index) => Err(CliError::NoCuda { index }.into()),
        }
    }

    /// What differs from run to run, of a program that computes here.
    pub fn env(&self) -> Env {
        let features = [("cuda", cfg!(feature = "cuda"))];
        let features = features.iter().filter(|(_, there)| *there);
        Env {
            device: self.name(),
            features: features.map(|(name, _)| (*name).to_owned()).collect(),
            ..Env::here()
        }
    }

    /// `cpu`, or the GPU's name.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu => "cpu".to_owned(),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => device.name(),
        }
    }

    /// What the GPU failed at since the last question, in any network; see [`crate::Net::take_failure`].
    pub fn take_failure(&self) -> Result<(), NnError> {
        match self {
            Self::Cpu => Ok(()),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => device
                .take_error()
                .map_or(Ok(()), |error| Err(error.into())),
        }
    }

    /// Refuses a precision that cannot be had there.
    pub fn supports(&self, precision: Precision) -> Result<(), NnError> {
        match self {
            Self::Cpu => {
                supported(precision)?;
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => Ok(()),
        }
    }

    /// One line on what `auto` came to, for people; nothing where there was no choice.
    pub fn choice(&self, device: Device) -> Option<String> {
        choice(device, cuda_devices().is_some(), self)
    }
}

fn choice(device: Device, cuda: bool, found: &Compute) -> Option<String> {
    match (device, found) {
        (Device::Auto, Compute::Cpu) if cuda => {
            Some("no CUDA device found; computing on the CPU".to_owned())
        }
        #[cfg(feature = "cuda")]
        (Device::Auto, Compute::Cuda(_)) => Some(format!("computing on {}", found.name())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_says_what_it_found_where_it_could_find_something_else() {
        let cpu = &Compute::Cpu;
        let line = choice(Device::Auto, true, cpu).expect("a build with CUDA");
        assert_eq!(line, "no CUDA device found; computing on the CPU");
        assert_eq!(choice(Device::Auto, false, cpu), None);
        assert_eq!(choice(Device::Cpu, true, cpu), None);
    }

    #[test]
    #[cfg(not(feature = "cuda"))]
    fn a_build_without_cuda_refuses_a_gpu_with_the_hint_of_the_command_line() {
        use bb_core::cli::Coded as _;

        let error = Compute::open(Device::Cuda(0)).expect_err("there is none");
        assert_eq!(
            error.to_string(),
            "device `cuda:0` is not available: this build runs on the CPU only"
        );
        assert_eq!(error.exit_code(), bb_core::cli::exit::USAGE);
        assert_eq!(error.hint().as_deref(), Some("run with `--device cpu`"));
    }
}
