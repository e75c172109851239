//! cuDNN's convolutions, planned once per shape.
//!
//! Each direction has a fixed deterministic algorithm. Where cuDNN does not have that one for a shape or a storage, the
//! first deterministic one of its own list is taken, which is the same on every run with the same GPU and library.

use super::{Context, CudaError, Device, Result, Storage};
use crate::kernels::conv::ConvShape;
use crate::kernels::precision::Precision;
use cudarc::cudnn::result::{self as dnn, CudnnError};
use cudarc::cudnn::sys::{
    self, cudnnConvolutionBwdDataAlgo_t, cudnnConvolutionBwdFilterAlgo_t,
    cudnnConvolutionFwdAlgo_t, cudnnConvolutionMode_t, cudnnDataType_t, cudnnDeterminism_t,
    cudnnMathType_t, cudnnTensorFormat_t,
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;

const FORWARD: cudnnConvolutionFwdAlgo_t =
    cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
const DATA: cudnnConvolutionBwdDataAlgo_t =
    cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
const FILTER: cudnnConvolutionBwdFilterAlgo_t =
    cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;

const FORMAT: cudnnTensorFormat_t = cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;

/// Something of cuDNN's that is destroyed when it is dropped.
#[derive(Debug)]
struct Owned<T: Copy> {
    raw: T,
    destroy: unsafe fn(T) -> std::result::Result<(), CudnnError>,
}

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: it was created by the matching function and is destroyed here only. A failure leaks it, no more.
        let _ = unsafe { (self.destroy)(self.raw) };
    }
}

/// A handle of cuDNN, whose calls run on one stream.
#[derive(Debug)]
pub(crate) struct Dnn(Owned<sys::cudnnHandle_t>);

impl Dnn {
    pub(crate) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        const WHAT: &str = "opening cuDNN";
        stream.context().bind_to_thread().on(WHAT)?;
        let handle = Owned {
            raw: dnn::create_handle().on(WHAT)?,
            destroy: dnn::destroy_handle,
        };
        // SAFETY: both were made just now, and the device keeps the stream for as long as the handle.
        unsafe { dnn::set_stream(handle.raw, stream.cu_stream().cast()) }.on(WHAT)?;
        Ok(Self(handle))
    }
}

/// An algorithm and the bytes of scratch memory that it needs.
type Choice<A> = (A, usize);

/// Descriptors and algorithms of one convolution.
#[derive(Debug)]
pub(crate) struct Plan {
    x: Owned<sys::cudnnTensorDescriptor_t>,
    w: Owned<sys::cudnnFilterDescriptor_t>,
    y: Owned<sys::cudnnTensorDescriptor_t>,
    conv: Owned<sys::cudnnConvolutionDescriptor_t>,
    forward: Choice<cudnnConvolutionFwdAlgo_t>,
    data: Choice<cudnnConvolutionBwdDataAlgo_t>,
    filter: Choice<cudnnConvolutionBwdFilterAlgo_t>,
}

/// `fixed` where cuDNN has it, otherwise the first of `others` that it has.
fn choose<A: Copy>(
    fixed: A,
    workspace: impl Fn(A) -> std::result::Result<usize, CudnnError>,
    others: impl FnOnce() -> Vec<A>,
) -> Result<Choice<A>> {
    let refused = match workspace(fixed) {
        Ok(bytes) => return Ok((fixed, bytes)),
        Err(error) => error,
    };
    others()
        .into_iter()
        .find_map(|algorithm| Some((algorithm, workspace(algorithm).ok()?)))
        .ok_or_else(|| CudaError::new("finding a deterministic convolution", refused))
}

/// The deterministic algorithms of one direction in the order of cuDNN's estimate.
macro_rules! deterministic {
    ($query:path, $performance:ty, $($descriptor:expr),+) => {{
        const ROOM: usize = 16;
        let mut found = 0;
        let mut list: Vec<$performance> = Vec::with_capacity(ROOM);
        // SAFETY: the descriptors are alive, and the list has room for what is asked for.
        let asked = unsafe {
            $query($($descriptor),+, ROOM as i32, &raw mut found, list.as_mut_ptr())
        };
        if asked.is_ok() {
            // SAFETY: cuDNN has written as many elements as it says, at most `ROOM`.
            unsafe { list.set_len(usize::try_from(found).unwrap_or(0).min(ROOM)) };
        }
        list.iter()
            .filter(|p| {
                p.status == sys::cudnnStatus_t::CUDNN_STATUS_SUCCESS
                    && p.determinism == cudnnDeterminism_t::CUDNN_DETERMINISTIC
            })
            .map(|p| p.algo)
            .collect()
    }};
}

impl Plan {
    fn new(device: &Device, s: &ConvShape, precision: Precision) -> Result<Self> {
        const WHAT: &str = "describing a convolution";
        let handle = device.dnn.0.raw;
        let int = |v: usize| i32::try_from(v).on(WHAT);
        let (pad, stride) = (int(s.pad)?, int(s.stride)?);
        let stored = match Storage::of(precision) {
            Storage::F32 => cudnnDataType_t::CUDNN_DATA_FLOAT,
            Storage::Bf16 => cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        };
        // The default rounds factors to TF32 where the GPU can.
        let math = match precision {
            Precision::F32 => cudnnMathType_t::CUDNN_FMA_MATH,
            Precision::Tf32 => cudnnMathType_t::CUDNN_DEFAULT_MATH,
            Precision::Bf16 => cudnnMathType_t::CUDNN_TENSOR_OP_MATH,
        };
        // Sizes are always given as N, C, H, W; the format says how memory lies.
        let tensor = |c, h, w| -> Result<_> {
            let tensor = Owned {
                raw: dnn::create_tensor_descriptor().on(WHAT)?,
                destroy: dnn::destroy_tensor_descriptor,
            };
            let sizes = [int(s.n)?, int(c)?, int(h)?, int(w)?];
            // SAFETY: the descriptor was created above.
            unsafe { dnn::set_tensor4d_descriptor(tensor.raw, FORMAT, stored, sizes) }.on(WHAT)?;
            Ok(tensor)
        };
        let (x, y) = (tensor(s.cin, s.h, s.w)?, tensor(s.cout, s.oh(), s.ow())?);
        let w = Owned {
            raw: dnn::create_filter_descriptor().on(WHAT)?,
            destroy: dnn::destroy_filter_descriptor,
        };
        let sizes = [int(s.cout)?, int(s.cin)?, int(s.k)?, int(s.k)?];
        // SAFETY: the descriptor was created above.
        unsafe { dnn::set_filter4d_descriptor(w.raw, stored, FORMAT, sizes) }.on(WHAT)?;
        let conv = Owned {
            raw: dnn::create_convolution_descriptor().on(WHAT)?,
            destroy: dnn::destroy_convolution_descriptor,
        };
        // SAFETY: the descriptor was created above. Sums are `f32` whatever is stored.
        unsafe {
            dnn::set_convolution2d_descriptor(
                conv.raw,
                pad,
                pad,
                stride,
                stride,
                1,
                1,
                cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                cudnnDataType_t::CUDNN_DATA_FLOAT,
            )
            .and_then(|()| dnn::set_convolution_math_type(conv.raw, math))
        }
        .on(WHAT)?;
        let forward = choose(
            FORWARD,
            // SAFETY: all descriptors are alive.
            |algorithm| unsafe {
                dnn::get_convolution_forward_workspace_size(
                    handle, x.raw, w.raw, conv.raw, y.raw, algorithm,
                )
            },
            || {
                deterministic!(
                    dnn::get_convolution_forward_algorithm,
                    sys::cudnnConvolutionFwdAlgoPerf_t,
                    handle,
                    x.raw,
                    w.raw,
                    conv.raw,
                    y.raw
                )
            },
        )?;
        let data = choose(
            DATA,
            // SAFETY: all descriptors are alive.
            |algorithm| unsafe {
                dnn::get_convolution_backward_data_workspace_size(
                    handle, w.raw, y.raw, conv.raw, x.raw, algorithm,
                )
            },
            || {
                deterministic!(
                    dnn::get_convolution_backward_data_algorithm,
                    sys::cudnnConvolutionBwdDataAlgoPerf_t,
                    handle,
                    w.raw,
                    y.raw,
                    conv.raw,
                    x.raw
                )
            },
        )?;
        let filter = choose(
            FILTER,
            // SAFETY: all descriptors are alive.
            |algorithm| unsafe {
                dnn::get_convolution_backward_filter_workspace_size(
                    handle, x.raw, y.raw, conv.raw, w.raw, algorithm,
                )
            },
            || {
                deterministic!(
                    dnn::get_convolution_backward_filter_algorithm,
                    sys::cudnnConvolutionBwdFilterAlgoPerf_t,
                    handle,
                    x.raw,
                    y.raw,
                    conv.raw,
                    w.raw
                )
            },
        )?;
        Ok(Self {
            x,
            w,
            y,
            conv,
            forward,
            data,
            filter,
        })
    }
}

/// What a plan is kept by.
type Key<'a> = (&'a ConvShape, Precision);

/// Where `buffer` begins.
fn start<T>(device: &Device, buffer: &impl DevicePtr<T>) -> *const c_void {
    // Everything runs on one stream, so nothing has to be recorded when the access is over.
    buffer.device_ptr(device.stream()).0 as *const c_void
}

/// See [`start`].
fn start_mut<T>(device: &Device, buffer: &mut impl DevicePtrMut<T>) -> *mut c_void {
    buffer.device_ptr_mut(device.stream()).0 as *mut c_void
}

/// A factor as cuDNN takes it.
fn factor(value: &f32) -> *const c_void {
    std::ptr::from_ref(value).cast()
}

impl Device {
    fn plan(&self, (s, precision): Key<'_>) -> Result<Rc<Plan>> {
        if let Some(plan) = self.convolutions.borrow().get(&(*s, precision)) {
            return Ok(Rc::clone(plan));
        }
        let plan = Rc::new(Plan::new(self, s, precision)?);
        let mut plans = self.convolutions.borrow_mut();
        plans.insert((*s, precision), Rc::clone(&plan));
        Ok(plan)
    }

    /// Calls `f` with the start of at least `bytes` of scratch memory.
    fn with_workspace(
        &self,
        bytes: usize,
        f: impl FnOnce(*mut c_void) -> std::result::Result<(), CudnnError>,
        what: &str,
    ) -> Result<()> {
        if bytes == 0 {
            return f(std::ptr::null_mut()).on(what);
        }
        let enough = |kept: &mut CudaSlice<u8>| kept.len() >= bytes;
        let kept = self.scratch.borrow_mut().workspace.take_if(enough);
        let mut workspace = match kept {
            Some(kept) => kept,
            None => {
                self.refuse_while_recording()?;
                self.scratch.borrow_mut().workspace = None;
                self.allocate(bytes)?
            }
        };
        let done = f(start_mut(self, &mut workspace)).on(what);
        self.scratch.borrow_mut().workspace = Some(workspace);
        done
    }

    /// `y = conv(x, w)`, added to what `y` holds if `add`. All three are stored as the precision says.
    pub(crate) fn conv_forward(
        &self,
        key: Key<'_>,
        x: &CudaSlice<f32>,
        w: &impl DevicePtr<f32>,
        add: bool,
        y: &mut CudaSlice<f32>,
    ) -> Result<()> {
        let plan = self.plan(key)?;
        let (algorithm, bytes) = plan.forward;
        let (x, w, y) = (start(self, x), start(self, w), start_mut(self, y));
        let beta = f32::from(u8::from(add));
        let launch = |workspace| {
            // SAFETY: the buffers have the sizes of the descriptors; the caller takes them by the same shape.
            unsafe {
                dnn::convolution_forward(
                    self.dnn.0.raw,
                    factor(&1.0),
                    plan.x.raw,
                    x,
                    plan.w.raw,
                    w,
                    plan.conv.raw,
                    algorithm,
                    workspace,
                    bytes,
                    factor(&beta),
                    plan.y.raw,
                    y,
                )
            }
        };
        self.with_workspace(bytes, launch, "a convolution")
    }

    /// `dx = d/dx conv(x, w) * dy`, added to what `dx` holds if `add`.
    pub(crate) fn conv_input_gradient(
        &self,
        key: Key<'_>,
        dy: &CudaSlice<f32>,
        w: &impl DevicePtr<f32>,
        add: bool,
        dx: &mut CudaSlice<f32>,
    ) -> Result<()> {
        let plan = self.plan(key)?;
        let (algorithm, bytes) = plan.data;
        let (dy, w, dx) = (start(self, dy), start(self, w), start_mut(self, dx));
        let beta = f32::from(u8::from(add));
        let launch = |workspace| {
            // SAFETY: as in `conv_forward`.
            unsafe {
                dnn::convolution_backward_data(
                    self.dnn.0.raw,
                    factor(&1.0),
                    plan.w.raw,
                    w,
                    plan.y.raw,
                    dy,
                    plan.conv.raw,
                    algorithm,
                    workspace,
                    bytes,
                    factor(&beta),
                    plan.x.raw,
                    dx,
                )
            }
        };
        self.with_workspace(bytes, launch, "an input gradient")
    }

    /// `dw = d/dw conv(x, w) * dy`.
    pub(crate) fn conv_weight_gradient(
        &self,
        key: Key<'_>,
        x: &CudaSlice<f32>,
        dy: &CudaSlice<f32>,
        dw: &mut impl DevicePtrMut<f32>,
    ) -> Result<()> {
        let plan = self.plan(key)?;
        let (algorithm, bytes) = plan.filter;
        let (x, dy, dw) = (start(self, x), start(self, dy), start_mut(self, dw));
        let launch = |workspace| {
            // SAFETY: as in `conv_forward`.
            unsafe {
                dnn::convolution_backward_filter(
                    self.dnn.0.raw,
                    factor(&1.0),
                    plan.x.raw,
                    x,
                    plan.y.raw,
                    dy,
                    plan.conv.raw,
                    algorithm,
                    workspace,
                    bytes,
                    factor(&0.0),
                    plan.w.raw,
                    dw,
                )
            }
        };
        self.with_workspace(bytes, launch, "a weight gradient")
    }
}
