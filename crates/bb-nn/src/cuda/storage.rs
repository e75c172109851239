//! Activations in `f32` or in `bf16`.

use super::{Device, Result, launch};
use crate::kernels::precision::Precision;
use cudarc::driver::{CudaSlice, CudaView, CudaViewMut};

/// How activations and their gradients are stored. A buffer is counted in 32-bit words either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Storage {
    /// One `f32` a word.
    F32,
    /// Two `bf16` a word.
    Bf16,
}

impl Storage {
    /// What training in `precision` stores.
    pub(crate) fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 | Precision::Tf32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }

    /// Words that hold `len` elements.
    pub(crate) fn words(self, len: usize) -> usize {
        match self {
            Self::F32 => len,
            Self::Bf16 => len.div_ceil(2),
        }
    }
}

/// The name of a kernel that comes in both storages.
macro_rules! stored {
    ($storage:expr, $name:literal) => {
        match $storage {
            $crate::cuda::Storage::F32 => $name,
            $crate::cuda::Storage::Bf16 => concat!($name, "_bf16"),
        }
    };
}
pub(crate) use stored;

/// Sets `narrow` to the `len` elements of `wide`, rounded to the nearest.
pub(crate) fn narrow(
    device: &Device,
    wide: &CudaView<'_, f32>,
    narrow: &mut CudaSlice<f32>,
    len: usize,
) -> Result<()> {
    let n = len as i64;
    launch!(device, "to_bf16", Device::elements(len), wide, &n, narrow);
    Ok(())
}

/// Sets `wide` to the `len` elements of `narrow`.
pub(crate) fn widen(
    device: &Device,
    narrow: &CudaSlice<f32>,
    wide: &mut CudaViewMut<'_, f32>,
    len: usize,
) -> Result<()> {
    let n = len as i64;
    launch!(device, "from_bf16", Device::elements(len), narrow, &n, wide);
    Ok(())
}
