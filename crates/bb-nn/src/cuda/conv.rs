//! cuDNN's convolutions, planned once per shape.

use super::{Context, Device, Result};
use crate::kernels::conv::ConvShape;
use crate::kernels::precision::Precision;
use cudarc::cudnn::sys::{
    cudnnConvolutionBwdDataAlgo_t, cudnnConvolutionBwdFilterAlgo_t, cudnnConvolutionFwdAlgo_t,
    cudnnConvolutionMode_t, cudnnMathType_t, cudnnTensorFormat_t,
};
use cudarc::cudnn::{
    ConvBackwardData, ConvBackwardFilter, ConvDescriptor, ConvForward, FilterDescriptor,
    TensorDescriptor,
};
use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};
use std::rc::Rc;

// The deterministic ones.
const FORWARD: cudnnConvolutionFwdAlgo_t =
    cudnnConvolutionFwdAlgo_t::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM;
const DATA: cudnnConvolutionBwdDataAlgo_t =
    cudnnConvolutionBwdDataAlgo_t::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
const FILTER: cudnnConvolutionBwdFilterAlgo_t =
    cudnnConvolutionBwdFilterAlgo_t::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;

/// Descriptors of one convolution.
#[derive(Debug)]
pub(crate) struct Plan {
    conv: ConvDescriptor<f32>,
    x: TensorDescriptor<f32>,
    w: FilterDescriptor<f32>,
    y: TensorDescriptor<f32>,
    /// Bytes of scratch memory: forward, input gradient, weight gradient.
    workspace: [usize; 3],
}

impl Plan {
    fn new(device: &Device, s: &ConvShape, precision: Precision) -> Result<Self> {
        const WHAT: &str = "describing a convolution";
        const NHWC: cudnnTensorFormat_t = cudnnTensorFormat_t::CUDNN_TENSOR_NHWC;
        let dnn = &device.cudnn;
        let int = |v: usize| i32::try_from(v).on(WHAT);
        let (pad, stride) = (int(s.pad)?, int(s.stride)?);
        let mut conv = dnn
            .create_conv2d::<f32>(
                [pad; 2],
                [stride; 2],
                [1, 1],
                cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
            )
            .on(WHAT)?;
        // The default rounds factors to TF32 where the GPU can.
        conv.set_math_type(match precision {
            Precision::Tf32 => cudnnMathType_t::CUDNN_DEFAULT_MATH,
            Precision::F32 | Precision::Bf16 => cudnnMathType_t::CUDNN_FMA_MATH,
        })
        .on(WHAT)?;
        // Sizes are always given as N, C, H, W; the format says how memory lies.
        let tensor = |c, h, w| -> Result<TensorDescriptor<f32>> {
            dnn.create_4d_tensor(NHWC, [int(s.n)?, int(c)?, int(h)?, int(w)?])
                .on(WHAT)
        };
        let mut plan = Self {
            conv,
            x: tensor(s.cin, s.h, s.w)?,
            w: dnn
                .create_4d_filter(NHWC, [int(s.cout)?, int(s.cin)?, int(s.k)?, int(s.k)?])
                .on(WHAT)?,
            y: tensor(s.cout, s.oh(), s.ow())?,
            workspace: [0; 3],
        };
        plan.workspace = [
            plan.forward().get_workspace_size(FORWARD).on(WHAT)?,
            plan.data().get_workspace_size(DATA).on(WHAT)?,
            plan.filter().get_workspace_size(FILTER).on(WHAT)?,
        ];
        Ok(plan)
    }

    fn forward(&self) -> ConvForward<'_, f32, f32, f32> {
        ConvForward {
            conv: &self.conv,
            x: &self.x,
            w: &self.w,
            y: &self.y,
        }
    }

    fn data(&self) -> ConvBackwardData<'_, f32, f32, f32> {
        ConvBackwardData {
            conv: &self.conv,
            dx: &self.x,
            w: &self.w,
            dy: &self.y,
        }
    }

    fn filter(&self) -> ConvBackwardFilter<'_, f32, f32, f32> {
        ConvBackwardFilter {
            conv: &self.conv,
            x: &self.x,
            dw: &self.w,
            dy: &self.y,
        }
    }
}

/// What a plan is kept by.
type Key<'a> = (&'a ConvShape, Precision);

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

    /// Calls `f` with at least `bytes` of scratch memory, `None` for none.
    fn with_workspace<T>(
        &self,
        bytes: usize,
        f: impl FnOnce(Option<&mut CudaSlice<u8>>) -> Result<T>,
    ) -> Result<T> {
        if bytes == 0 {
            return f(None);
        }
        let mut workspace = self.workspace.borrow_mut();
        if workspace.as_ref().is_none_or(|w| w.len() < bytes) {
            *workspace = None;
            // SAFETY: cuDNN writes its scratch memory before it reads it.
            let grown = unsafe { self.stream.alloc(bytes) };
            *workspace = Some(grown.map_err(|e| self.out_of_memory(bytes / 4, e))?);
        }
        f(workspace.as_mut())
    }

    /// `y = conv(x, w)`, added to what `y` holds if `add`.
    pub(crate) fn conv_forward<W: DevicePtr<f32>>(
        &self,
        key: Key<'_>,
        x: &CudaSlice<f32>,
        w: &W,
        add: bool,
        y: &mut CudaSlice<f32>,
    ) -> Result<()> {
        let plan = self.plan(key)?;
        let beta = if add { 1.0 } else { 0.0 };
        self.with_workspace(plan.workspace[0], |workspace| {
            // SAFETY: the buffers have the sizes of the descriptors; the caller takes them by the same shape.
            unsafe {
                plan.forward()
                    .launch(FORWARD, workspace, (1.0, beta), x, w, y)
            }
            .on("a convolution")
        })
    }

    /// `dx = d/dx conv(x, w) * dy`, added to what `dx` holds if `add`.
    pub(crate) fn conv_input_gradient<W: DevicePtr<f32>>(
        &self,
        key: Key<'_>,
        dy: &CudaSlice<f32>,
        w: &W,
        add: bool,
        dx: &mut CudaSlice<f32>,
    ) -> Result<()> {
        const WHAT: &str = "an input gradient";
        let plan = self.plan(key)?;
        let beta = if add { 1.0 } else { 0.0 };
        self.with_workspace(plan.workspace[1], |workspace| {
            // SAFETY: as in `conv_forward`.
            unsafe { plan.data().launch(DATA, workspace, (1.0, beta), dx, w, dy) }.on(WHAT)
        })
    }

    /// `dw = d/dw conv(x, w) * dy`.
    pub(crate) fn conv_weight_gradient<W: DevicePtrMut<f32>>(
        &self,
        key: Key<'_>,
        x: &CudaSlice<f32>,
        dy: &CudaSlice<f32>,
        dw: &mut W,
    ) -> Result<()> {
        const WHAT: &str = "a weight gradient";
        let plan = self.plan(key)?;
        self.with_workspace(plan.workspace[2], |workspace| {
            // SAFETY: as in `conv_forward`.
            unsafe {
                plan.filter()
                    .launch(FILTER, workspace, (1.0, 0.0), x, dw, dy)
            }
            .on(WHAT)
        })
    }
}
