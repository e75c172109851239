//! The engine on an NVIDIA GPU.
//!
//! Convolutions are cuDNN's, with fixed deterministic algorithms; everything around them is `cuda/kernels.cu`, compiled
//! to PTX when the crate is built. candle's own CUDA code is not used: the engine has its own tensors and passes, so
//! nothing of it would run, and without it a build needs nothing but a compiler for one file and starts on machines
//! without a driver.
//!
//! A failed call is kept in the [`Device`] (as CUDA itself keeps it in the context) and reported by the next function
//! that can fail; until then results are NaN.

mod conv;
mod pass;
pub(crate) mod resident;
mod split;

pub(crate) use pass::{Batch, Job, Pass, Tally};
pub(crate) use split::DeviceSplit;

use crate::error::NnError;
use crate::kernels::conv::ConvShape;
use crate::kernels::loss::Loss;
use crate::kernels::precision::Precision;
use cudarc::cudnn::Cudnn;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, LaunchConfig};
use cudarc::nvrtc::Ptx;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/kernels.ptx"));

/// Threads of a block in kernels that take one element per thread.
const BLOCK: u32 = 256;

/// A failed call.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what} failed on the GPU: {reason}")]
pub struct CudaError {
    /// What was tried.
    pub what: String,
    /// What the driver or cuDNN said.
    pub reason: String,
}

impl CudaError {
    pub(crate) fn new(what: &str, reason: impl std::fmt::Debug) -> Self {
        let reason = format!("{reason:?}");
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        Self {
            what: what.to_owned(),
            reason,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, CudaError>;

/// Turns an error of the driver or of cuDNN into ours.
pub(crate) trait Context<T> {
    fn on(self, what: &str) -> Result<T>;
}

impl<T, E: std::fmt::Debug> Context<T> for std::result::Result<T, E> {
    fn on(self, what: &str) -> Result<T> {
        self.map_err(|e| CudaError::new(what, e))
    }
}

/// How many CUDA devices there are; 0 without a driver.
pub fn device_count() -> usize {
    // SAFETY: this only asks whether the library can be loaded.
    let present = unsafe { cudarc::driver::sys::is_culib_present() };
    if !present {
        return 0;
    }
    CudaContext::device_count().map_or(0, |n| usize::try_from(n).unwrap_or(0))
}

/// One GPU with its stream, its compiled kernels and what cuDNN keeps between calls.
#[derive(Debug)]
pub struct Device {
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: RefCell<HashMap<&'static str, CudaFunction>>,
    cudnn: Arc<Cudnn>,
    convolutions: RefCell<HashMap<(ConvShape, Precision), Rc<conv::Plan>>>,
    workspace: RefCell<Option<CudaSlice<u8>>>,
    /// Buffers to be used again, by length.
    free: RefCell<HashMap<usize, Vec<CudaSlice<f32>>>>,
    error: RefCell<Option<CudaError>>,
}

impl Device {
    /// The GPU with this index.
    pub fn new(ordinal: usize) -> std::result::Result<Rc<Self>, NnError> {
        Ok(Rc::new(Self::open(ordinal)?))
    }

    fn open(ordinal: usize) -> Result<Self> {
        // SAFETY: this only asks whether the library can be loaded.
        if !unsafe { cudarc::cudnn::sys::is_culib_present() } {
            return Err(CudaError {
                what: "opening cuDNN".to_owned(),
                reason: "libcudnn.so.9 is not found; is its folder in LD_LIBRARY_PATH?".to_owned(),
            });
        }
        let context = CudaContext::new(ordinal).on("opening the device")?;
        // SAFETY: everything here runs on one stream, so no event is needed to order it.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().on("making a stream")?;
        let module = context
            .load_module(Ptx::from_src(PTX))
            .on("loading the kernels")?;
        let cudnn = Cudnn::new(Arc::clone(&stream)).on("opening cuDNN")?;
        Ok(Self {
            stream,
            module,
            functions: RefCell::default(),
            cudnn,
            convolutions: RefCell::default(),
            workspace: RefCell::default(),
            free: RefCell::default(),
            error: RefCell::default(),
        })
    }

    /// Name of the GPU.
    pub fn name(&self) -> String {
        let name = self.stream.context().name();
        name.unwrap_or_else(|_| "unknown GPU".to_owned())
    }

    /// The first failure since the last question.
    pub(crate) fn take_error(&self) -> Option<CudaError> {
        self.error.take()
    }

    /// Keeps the failure of `result`, if it is one.
    pub(crate) fn keep<T>(&self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.error.borrow_mut().get_or_insert(error);
                None
            }
        }
    }

    /// Waits until everything asked for is done.
    pub fn synchronize(&self) -> std::result::Result<(), NnError> {
        self.stream.synchronize().on("waiting for the device")?;
        Ok(())
    }

    /// `len` floats of unspecified content.
    pub(crate) fn take(&self, len: usize) -> Result<CudaSlice<f32>> {
        if let Some(buffer) = self.free.borrow_mut().get_mut(&len).and_then(Vec::pop) {
            return Ok(buffer);
        }
        // SAFETY: whoever takes a buffer writes it before anything reads it.
        let fresh = || unsafe { self.stream.alloc(len) };
        // Buffers kept for other batch sizes are the first thing to do without.
        fresh()
            .or_else(|_| {
                self.free.borrow_mut().clear();
                fresh()
            })
            .map_err(|e| self.out_of_memory(len, e))
    }

    fn out_of_memory(&self, len: usize, error: impl std::fmt::Debug) -> CudaError {
        let mib = |bytes: usize| bytes / (1 << 20);
        let free = self.stream.context().mem_get_info();
        let free = free.map_or(String::new(), |(free, total)| {
            format!("; {} of {} MiB are free", mib(free), mib(total))
        });
        let what = format!("taking {} MiB{free}", mib(4 * len));
        CudaError::new(&what, error)
    }

    /// Gives a buffer back for the next [`Device::take`] of its length.
    pub(crate) fn give(&self, buffer: CudaSlice<f32>) {
        let len = buffer.len();
        self.free.borrow_mut().entry(len).or_default().push(buffer);
    }

    /// Copies host floats to a buffer of their length.
    pub(crate) fn upload(&self, values: &[f32], to: &mut CudaSlice<f32>) -> Result<()> {
        self.stream
            .memcpy_htod(values, to)
            .on("copying to the device")
    }

    /// The floats of a buffer.
    pub(crate) fn download(&self, from: &CudaSlice<f32>) -> Result<Vec<f32>> {
        self.stream.clone_dtoh(from).on("copying from the device")
    }

    pub(crate) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The kernel called `name`.
    pub(crate) fn function(&self, name: &'static str) -> Result<CudaFunction> {
        if let Some(function) = self.functions.borrow().get(name) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(name).on(name)?;
        self.functions.borrow_mut().insert(name, function.clone());
        Ok(function)
    }

    /// Enough blocks for `n` elements; kernels stride over the rest.
    pub(crate) fn elements(n: usize) -> LaunchConfig {
        let blocks = n.div_ceil(BLOCK as usize).clamp(1, 8192);
        Self::grid((blocks as u32, 1), (BLOCK, 1))
    }

    pub(crate) fn grid(blocks: (u32, u32), threads: (u32, u32)) -> LaunchConfig {
        LaunchConfig {
            grid_dim: (blocks.0, blocks.1, 1),
            block_dim: (threads.0, threads.1, 1),
            shared_mem_bytes: 0,
        }
    }
}

/// Launches a kernel of `cuda/kernels.cu`: name, launch shape, arguments by reference, in the kernel's order.
macro_rules! launch {
    ($device:expr, $name:literal, $shape:expr, $($argument:expr),+ $(,)?) => {{
        use cudarc::driver::PushKernelArg;
        let shape = $shape;
        let function = $device.function($name)?;
        let mut launch = $device.stream().launch_builder(&function);
        $(launch.arg($argument);)+
        // SAFETY: the arguments are those of the kernel in `cuda/kernels.cu`, and their buffers have the sizes that the
        // caller has checked.
        let launched = unsafe { launch.launch(shape) };
        $crate::cuda::Context::on(launched, $name)?;
    }};
}
pub(crate) use launch;

/// The loss that stands for a failed pass; the device keeps the reason.
pub(crate) fn failed_loss() -> Loss {
    Loss {
        mean: f32::NAN,
        correct: 0,
    }
}
