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
pub(crate) mod neurons;
mod pass;
mod replay;
pub(crate) mod resident;
mod split;
mod storage;
#[cfg(test)]
mod tests;

pub(crate) use pass::{Batch, Job, Pass, Tally, supports};
pub(crate) use split::DeviceSplit;
pub(crate) use storage::{Storage, stored};

use self::replay::Replays;
use crate::error::NnError;
use crate::flat::Layout;
use crate::kernels::conv::ConvShape;
use crate::kernels::loss::Loss;
use crate::kernels::precision::Precision;
use crate::net::Shape;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaModule, CudaSlice, CudaStream, DeviceRepr,
    LaunchConfig,
};
use cudarc::nvrtc::Ptx;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::{Rc, Weak};
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
    /// Whether it may go well another time; not where the sizes are more than the kernels count.
    pub again: bool,
}

impl CudaError {
    pub(crate) fn new(what: &str, reason: impl std::fmt::Debug) -> Self {
        let reason = format!("{reason:?}");
        let reason = reason.lines().next().unwrap_or_default().to_owned();
        Self {
            what: what.to_owned(),
            reason,
            again: true,
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

/// Refuses an activation whose rows or channels are more than the kernels count.
pub(crate) fn countable(shape: Shape) -> Result<()> {
    let most = i32::MAX as usize;
    let rows = [shape.h, shape.w]
        .iter()
        .try_fold(shape.n, |rows, &n| rows.checked_mul(n));
    if rows.is_some_and(|rows| rows <= most) && shape.c <= most {
        return Ok(());
    }
    let Shape { n, h, w, c } = shape;
    Err(CudaError {
        what: format!("a layer of {n} images with {h} x {w} pixels of {c} channels"),
        reason: format!("its kernels count {most} pixels of a batch"),
        again: false,
    })
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
    // First, so that it is dropped before the stream that its calls run on.
    dnn: conv::Dnn,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: RefCell<HashMap<&'static str, CudaFunction>>,
    convolutions: RefCell<HashMap<(ConvShape, Precision), Rc<conv::Plan>>>,
    /// Where the tensors of a layout begin and end.
    bounds: RefCell<HashMap<Vec<i64>, Rc<CudaSlice<i64>>>>,
    scratch: RefCell<Scratch>,
    /// The scratch memories that [`Device::with_scratch`] has put aside, the device's own first.
    aside: RefCell<Vec<Scratch>>,
    /// The recorded passes of all networks.
    replays: RefCell<Vec<Weak<RefCell<Replays>>>>,
    /// Whether calls are recorded instead of carried out; nothing may be allocated then.
    recording: Cell<bool>,
    error: RefCell<Option<CudaError>>,
}

/// Memory that is used again and again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Buffers by length.
    free: HashMap<usize, Vec<CudaSlice<f32>>>,
    /// cuDNN's.
    workspace: Option<CudaSlice<u8>>,
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
                again: true,
            });
        }
        let context = CudaContext::new(ordinal).on("opening the device")?;
        // SAFETY: everything here runs on one stream, so no event is needed to order it.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().on("making a stream")?;
        let module = context
            .load_module(Ptx::from_src(PTX))
            .on("loading the kernels")?;
        Ok(Self {
            dnn: conv::Dnn::new(&stream)?,
            stream,
            module,
            functions: RefCell::default(),
            convolutions: RefCell::default(),
            bounds: RefCell::default(),
            scratch: RefCell::default(),
            aside: RefCell::default(),
            replays: RefCell::default(),
            recording: Cell::new(false),
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
        let kept = self
            .scratch
            .borrow_mut()
            .free
            .get_mut(&len)
            .and_then(Vec::pop);
        if let Some(buffer) = kept {
            return Ok(buffer);
        }
        self.allocate(len)
    }

    /// New memory of unspecified content. If there is none left, what is only kept to be used again goes first.
    fn allocate<T: DeviceRepr>(&self, len: usize) -> Result<CudaSlice<T>> {
        self.refuse_while_recording()?;
        // SAFETY: whoever takes a buffer writes it before anything reads it.
        let fresh = || unsafe { self.stream.alloc(len) };
        fresh()
            .or_else(|_| {
                self.relieve();
                fresh()
            })
            .map_err(|e| self.out_of_memory(size_of::<T>() * len, e))
    }

    /// Lets go of the buffers that wait for their next use, and of the recorded passes of all networks but the one under
    /// way. They will be made again when they are wanted.
    fn relieve(&self) {
        // Calls under way may still use them. What went wrong with those shows at the next call.
        let _ = self.stream.synchronize();
        let all: Vec<_> = self
            .replays
            .borrow()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        for replays in all {
            // One that is borrowed has a pass under way.
            if let Ok(mut replays) = replays.try_borrow_mut() {
                replays.clear(self);
            }
        }
        self.scratch.borrow_mut().free.clear();
        self.aside.borrow_mut().fill_with(Scratch::default);
    }

    /// Tells the device of a network's recorded passes, so that it can let go of them.
    fn watch(&self, replays: &Rc<RefCell<Replays>>) {
        let mut all = self.replays.borrow_mut();
        all.retain(|replays| replays.strong_count() > 0);
        all.push(Rc::downgrade(replays));
    }

    /// What is allocated while calls are recorded would belong to the recording.
    fn refuse_while_recording(&self) -> Result<()> {
        if self.recording.get() {
            return Err(CudaError::new("recording a pass", "a buffer is missing"));
        }
        Ok(())
    }

    /// Calls `f` with `own` in the place of the device's scratch memory.
    pub(crate) fn with_scratch<T>(&self, own: &mut Scratch, f: impl FnOnce() -> T) -> T {
        let outer = self.scratch.replace(std::mem::take(own));
        self.aside.borrow_mut().push(outer);
        // Whoever catches a panic goes on with the device.
        let result = catch_unwind(AssertUnwindSafe(f));
        let outer = self.aside.borrow_mut().pop().expect("it was put aside");
        *own = self.scratch.replace(outer);
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// Records what `f` asks for, to be launched as one graph, instead of doing it.
    pub(crate) fn record(&self, f: impl FnOnce() -> Result<()>) -> Result<CudaGraph> {
        const WHAT: &str = "recording a pass";
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).on(WHAT)?;
        self.recording.set(true);
        let asked = catch_unwind(AssertUnwindSafe(f));
        self.recording.set(false);
        // A recording that is under way must be ended in any case, also after a panic.
        let graph = self
            .stream
            .end_capture(CUgraphInstantiate_flags(0))
            .on(WHAT);
        asked.unwrap_or_else(|panic| resume_unwind(panic))?;
        graph?.ok_or_else(|| CudaError::new(WHAT, "there is no graph"))
    }

    fn out_of_memory(&self, bytes: usize, error: impl std::fmt::Debug) -> CudaError {
        let mib = |bytes: usize| bytes / (1 << 20);
        let free = self.stream.context().mem_get_info();
        let free = free.map_or(String::new(), |(free, total)| {
            format!("; {} of {} MiB are free", mib(free), mib(total))
        });
        let what = format!("taking {} MiB{free}", mib(bytes));
        CudaError::new(&what, error)
    }

    /// Gives a buffer back for the next [`Device::take`] of its length.
    pub(crate) fn give(&self, buffer: CudaSlice<f32>) {
        let len = buffer.len();
        let mut scratch = self.scratch.borrow_mut();
        scratch.free.entry(len).or_default().push(buffer);
    }

    /// Gives all buffers of a scratch memory back.
    pub(crate) fn give_all(&self, other: Scratch) {
        let mut scratch = self.scratch.borrow_mut();
        for (len, mut buffers) in other.free {
            scratch.free.entry(len).or_default().append(&mut buffers);
        }
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

    /// The `f64` values that a kernel has left in a buffer of twice as many words, which is given back.
    pub(crate) fn read_doubles(&self, words: CudaSlice<f32>) -> Result<Vec<f64>> {
        // SAFETY: any content is a number, and the buffer has room for half as many of them.
        let doubles = unsafe { words.transmute::<f64>(words.len() / 2) }.expect("half as many");
        let values = self.stream.clone_dtoh(&doubles).on("copying sums")?;
        self.give(words);
        Ok(values)
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

    /// Where the tensors of `layout` begin, and where the last one ends; copied to the device once.
    pub(crate) fn bounds(&self, layout: &Layout) -> Result<Rc<CudaSlice<i64>>> {
        let ends = layout.entries().iter().map(|e| e.range.end as i64);
        let bounds: Vec<i64> = std::iter::once(0).chain(ends).collect();
        if let Some(found) = self.bounds.borrow().get(&bounds) {
            return Ok(Rc::clone(found));
        }
        let copied = self.stream.clone_htod(&bounds).on("copying tensor sizes")?;
        let copied = Rc::new(copied);
        let mut known = self.bounds.borrow_mut();
        known.insert(bounds, Rc::clone(&copied));
        Ok(copied)
    }

    /// Blocks for `n` elements, which kernels stride over; most move four or eight at a time.
    pub(crate) fn elements(n: usize) -> LaunchConfig {
        let blocks = n.div_ceil(4 * BLOCK as usize).clamp(1, 8192);
        Self::grid((blocks as u32, 1), (BLOCK, 1))
    }

    /// At least one thread for each of `c` channels.
    pub(crate) fn channels(c: usize) -> LaunchConfig {
        Self::grid((c.div_ceil(BLOCK as usize) as u32, 1), (BLOCK, 1))
    }

    /// Blocks that join the parts of sums over rows of `c` channels.
    pub(crate) fn joined(c: usize) -> LaunchConfig {
        const EDGE: u32 = 32;
        Self::grid((c.div_ceil(EDGE as usize) as u32, 1), (EDGE, EDGE))
    }

    /// Blocks for a matrix product with this result.
    pub(crate) fn product(rows: usize, columns: usize) -> LaunchConfig {
        const TILE: u32 = 16;
        let tiles = |n: usize| n.div_ceil(TILE as usize) as u32;
        Self::grid((tiles(columns), tiles(rows)), (TILE, TILE))
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
    ($device:expr, $name:expr, $shape:expr, $($argument:expr),+ $(,)?) => {{
        use cudarc::driver::PushKernelArg;
        let shape = $shape;
        let name = $name;
        let function = $device.function(name)?;
        let mut launch = $device.stream().launch_builder(&function);
        $(launch.arg($argument);)+
        // SAFETY: the arguments are those of the kernel in `cuda/kernels.cu`, and their buffers have the sizes that the
        // caller has checked.
        let launched = unsafe { launch.launch(shape) };
        $crate::cuda::Context::on(launched, name)?;
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
