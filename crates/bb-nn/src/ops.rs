//! The kernels as candle operations with a backward pass, for methods that want autograd.
//!
//! Tensors are `f32` on the CPU in PyTorch's layout: images `[n, c, h, w]`, convolution weights `[out, in, k, k]`.
//! Each operation reorders its arguments for the kernel and its result back, so a network made of these is slower than
//! [`crate::net::Net`]; the numbers are those of the same kernels.
//! The gradients are first order: what an operation's backward pass returns is detached.

use crate::kernels::conv::{self, Add, ConvShape};
use crate::kernels::precision::Precision;
use crate::kernels::{linear as linear_kernel, loss, norm, pool};
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Device, Layout, Result, Shape, Tensor, bail,
};

/// `conv2d(x, w)` without bias: `x` `[n, cin, h, w]`, `w` `[cout, cin, k, k]`.
pub fn conv2d(x: &Tensor, w: &Tensor, stride: usize, pad: usize) -> Result<Tensor> {
    x.contiguous()?
        .apply_op2(&w.contiguous()?, Conv2d { stride, pad })
}

/// Batch normalisation with the batch's own statistics (eps 1e-5) over the channels of `[n, c, h, w]`.
pub fn batch_norm_train(x: &Tensor, gamma: &Tensor, beta: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op3(
        &gamma.contiguous()?,
        &beta.contiguous()?,
        BatchNorm { running: None },
    )
}

/// Batch normalisation with given statistics (eps 1e-5), which get no gradient.
pub fn batch_norm_eval(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    mean: &Tensor,
    var: &Tensor,
) -> Result<Tensor> {
    let running = Some((mean.to_vec1::<f32>()?, var.to_vec1::<f32>()?));
    x.contiguous()?.apply_op3(
        &gamma.contiguous()?,
        &beta.contiguous()?,
        BatchNorm { running },
    )
}

/// `max(x, 0)`; the gradient at exactly 0 is 0, as in PyTorch (candle's own passes it).
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Relu)
}

/// Mean over the pixels: `[n, c, h, w]` to `[n, c]`.
pub fn global_average_pool(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(GlobalAveragePool)
}

/// `x w^T + b`: `x` `[n, inputs]`, `w` `[outputs, inputs]`, `b` `[outputs]`.
pub fn linear(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Tensor> {
    x.contiguous()?
        .apply_op3(&w.contiguous()?, &b.contiguous()?, Linear)
}

/// Mean softmax cross-entropy of `logits` `[n, classes]`, a scalar.
pub fn cross_entropy(logits: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let (n, classes) = logits.dims2()?;
    if labels.len() != n {
        bail!("cross_entropy: {} labels for {n} rows", labels.len());
    }
    if let Some(label) = labels.iter().find(|l| **l as usize >= classes) {
        bail!("cross_entropy: label {label} is not below {classes}");
    }
    logits.contiguous()?.apply_op1(CrossEntropy {
        labels: labels.to_vec(),
    })
}

/// The elements of a contiguous `f32` argument.
fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(data) = storage else {
        bail!("this operation takes f32 tensors")
    };
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&data[from..to]),
        None => bail!("this operation takes contiguous tensors"),
    }
}

fn values(t: &Tensor) -> Result<Vec<f32>> {
    t.flatten_all()?.to_vec1::<f32>()
}

fn tensor(data: Vec<f32>, shape: impl Into<Shape>) -> Result<Tensor> {
    Tensor::from_vec(data, shape, &Device::Cpu)
}

/// `[n, rows, cols]` to `[n, cols, rows]`: NCHW to NHWC with rows = c, and back with rows = pixels.
fn transposed(x: &[f32], n: usize, rows: usize, cols: usize) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    if rows * cols > 0 {
        debug_assert_eq!(x.len(), n * rows * cols);
        for (x, y) in x
            .chunks_exact(rows * cols)
            .zip(y.chunks_exact_mut(rows * cols))
        {
            for (r, row) in x.chunks_exact(cols).enumerate() {
                for (c, v) in row.iter().enumerate() {
                    y[c * rows + r] = *v;
                }
            }
        }
    }
    y
}

struct Conv2d {
    stride: usize,
    pad: usize,
}

impl Conv2d {
    fn shape(&self, x: &Shape, w: &Shape) -> Result<ConvShape> {
        let (n, cin, h, width) = x.dims4()?;
        let (cout, w_cin, k, k2) = w.dims4()?;
        let shape = ConvShape {
            n,
            h,
            w: width,
            cin,
            cout,
            k,
            stride: self.stride,
            pad: self.pad,
        };
        if cin != w_cin || k != k2 || !shape.is_valid() {
            bail!(
                "conv2d: input {x:?}, weight {w:?}, stride {}, padding {} do not fit",
                self.stride,
                self.pad
            );
        }
        Ok(shape)
    }
}

/// `[cout, cin, k, k]` to `[k, k, cin, cout]`.
fn hwio(w: &[f32], s: &ConvShape) -> Vec<f32> {
    transposed(w, 1, s.cout * s.cin, s.k * s.k)
        .chunks_exact(s.cout * s.cin)
        .flat_map(|tap| transposed(tap, 1, s.cout, s.cin))
        .collect()
}

fn oihw(w: &[f32], s: &ConvShape) -> Vec<f32> {
    let taps: Vec<f32> = w
        .chunks_exact(s.cout * s.cin)
        .flat_map(|tap| transposed(tap, 1, s.cin, s.cout))
        .collect();
    transposed(&taps, 1, s.k * s.k, s.cout * s.cin)
}

impl CustomOp2 for Conv2d {
    fn name(&self) -> &'static str {
        "bb-conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let s = self.shape(lx.shape(), lw.shape())?;
        let x = transposed(elements(x, lx)?, s.n, s.cin, s.h * s.w);
        let mut y = vec![0.0; s.output_len()];
        conv::forward(
            &s,
            Precision::F32,
            &x,
            &hwio(elements(w, lw)?, &s),
            Add::Nothing,
            &mut y,
        );
        let y = transposed(&y, s.n, s.oh() * s.ow(), s.cout);
        Ok((
            CpuStorage::F32(y),
            Shape::from((s.n, s.cout, s.oh(), s.ow())),
        ))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let s = self.shape(x.shape(), w.shape())?;
        let dy = transposed(&values(dy)?, s.n, s.cout, s.oh() * s.ow());
        let (mut dx, mut dw) = (vec![0.0; s.input_len()], vec![0.0; s.weight_len()]);
        conv::input_gradient(
            &s,
            Precision::F32,
            &dy,
            &hwio(&values(w)?, &s),
            Add::Nothing,
            &mut dx,
        );
        conv::weight_gradient(
            &s,
            Precision::F32,
            &transposed(&values(x)?, s.n, s.cin, s.h * s.w),
            &dy,
            &mut dw,
        );
        let dx = transposed(&dx, s.n, s.h * s.w, s.cin);
        Ok((
            Some(tensor(dx, x.shape())?),
            Some(tensor(oihw(&dw, &s), w.shape())?),
        ))
    }
}

struct BatchNorm {
    /// Mean and variance to use instead of the batch's.
    running: Option<(Vec<f32>, Vec<f32>)>,
}

/// Per-channel factors of one batch normalisation.
struct Factors {
    scale: Vec<f32>,
    shift: Vec<f32>,
    mean: Vec<f32>,
    invstd: Vec<f32>,
}

impl BatchNorm {
    fn factors(&self, x: &[f32], gamma: &[f32], beta: &[f32]) -> Result<Factors> {
        const EPS: f32 = 1e-5;
        let c = gamma.len();
        let (mean, var) = match &self.running {
            Some(given) => given.clone(),
            None => norm::statistics(x, c),
        };
        if beta.len() != c || mean.len() != c || var.len() != c {
            bail!(
                "batch_norm: {c} scales, {} shifts, {} means, {} variances",
                beta.len(),
                mean.len(),
                var.len()
            );
        }
        let invstd: Vec<f32> = var.iter().map(|v| 1.0 / (v + EPS).sqrt()).collect();
        let scale: Vec<f32> = gamma.iter().zip(&invstd).map(|(g, i)| g * i).collect();
        let shift = beta
            .iter()
            .zip(&mean)
            .zip(&scale)
            .map(|((b, m), s)| b - m * s)
            .collect();
        Ok(Factors {
            scale,
            shift,
            mean,
            invstd,
        })
    }
}

fn channels_of(x: &Shape, gamma: usize) -> Result<(usize, usize, usize)> {
    let (n, c, h, w) = x.dims4()?;
    if c != gamma || n * h * w == 0 {
        bail!("batch_norm: input {x:?} against {gamma} scales");
    }
    Ok((n, c, h * w))
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "bb-batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        gamma: &CpuStorage,
        lg: &Layout,
        beta: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gamma, beta) = (elements(gamma, lg)?, elements(beta, lb)?);
        let (n, c, pixels) = channels_of(lx.shape(), gamma.len())?;
        let x = transposed(elements(x, lx)?, n, c, pixels);
        let f = self.factors(&x, gamma, beta)?;
        let mut y = vec![0.0; x.len()];
        norm::apply(&x, &f.scale, &f.shift, false, &mut y);
        Ok((
            CpuStorage::F32(transposed(&y, n, pixels, c)),
            lx.shape().clone(),
        ))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (gamma_values, beta_values) = (values(gamma)?, values(beta)?);
        let (n, c, pixels) = channels_of(x.shape(), gamma_values.len())?;
        let x_rows = transposed(&values(x)?, n, c, pixels);
        let f = self.factors(&x_rows, &gamma_values, &beta_values)?;
        let saved = norm::Saved {
            scale: &f.scale,
            shift: &f.shift,
            mean: &f.mean,
            invstd: &f.invstd,
            relu: false,
        };
        let mut dy = transposed(&values(dy)?, n, c, pixels);
        let (dbeta, dgamma) = norm::parameter_gradients(&dy, &x_rows, &saved);
        let batch = self
            .running
            .is_none()
            .then_some((dbeta.as_slice(), dgamma.as_slice()));
        norm::input_gradient_in_place(&mut dy, &x_rows, &saved, batch);
        let dx = tensor(transposed(&dy, n, pixels, c), x.shape())?;
        Ok((
            Some(dx),
            Some(tensor(dgamma, gamma.shape())?),
            Some(tensor(dbeta, beta.shape())?),
        ))
    }
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "bb-relu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = elements(x, lx)?
            .iter()
            .map(|v| if *v < 0.0 { 0.0 } else { *v })
            .collect();
        Ok((CpuStorage::F32(y), lx.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = values(x)?
            .iter()
            .zip(values(dy)?)
            .map(|(x, d)| if *x > 0.0 { d } else { 0.0 })
            .collect();
        Ok(Some(tensor(dx, x.shape())?))
    }
}

struct GlobalAveragePool;

impl CustomOp1 for GlobalAveragePool {
    fn name(&self) -> &'static str {
        "bb-global-average-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, c, h, w) = lx.shape().dims4()?;
        if n * c * h * w == 0 {
            bail!("global_average_pool: input {:?} is empty", lx.shape());
        }
        let mut y = vec![0.0; n * c];
        pool::global_average(&transposed(elements(x, lx)?, n, c, h * w), h * w, c, &mut y);
        Ok((CpuStorage::F32(y), Shape::from((n, c))))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (n, c, h, w) = x.dims4()?;
        let mut dx = vec![0.0; n * c * h * w];
        pool::global_average_gradient(&values(dy)?, h * w, c, &mut dx);
        Ok(Some(tensor(transposed(&dx, n, h * w, c), x.shape())?))
    }
}

struct Linear;

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "bb-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        w: &CpuStorage,
        lw: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, inputs), (outputs, w_inputs)) = (lx.shape().dims2()?, lw.shape().dims2()?);
        if inputs != w_inputs || lb.shape().dims() != [outputs] || outputs == 0 {
            bail!(
                "linear: input {:?}, weight {:?}, bias {:?} do not fit",
                lx.shape(),
                lw.shape(),
                lb.shape()
            );
        }
        let mut y = vec![0.0; n * outputs];
        linear_kernel::forward(
            elements(x, lx)?,
            elements(w, lw)?,
            elements(b, lb)?,
            inputs,
            &mut y,
        );
        Ok((CpuStorage::F32(y), Shape::from((n, outputs))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (mut dx, mut dw, mut db) = (
            vec![0.0; x.elem_count()],
            vec![0.0; w.elem_count()],
            vec![0.0; b.elem_count()],
        );
        linear_kernel::backward(
            &values(x)?,
            &values(w)?,
            &values(dy)?,
            &mut dw,
            &mut db,
            Some(&mut dx),
        );
        Ok((
            Some(tensor(dx, x.shape())?),
            Some(tensor(dw, w.shape())?),
            Some(tensor(db, b.shape())?),
        ))
    }
}

struct CrossEntropy {
    labels: Vec<u32>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "bb-cross-entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, classes) = lx.shape().dims2()?;
        let result = loss::cross_entropy(elements(x, lx)?, &self.labels, classes, None);
        Ok((CpuStorage::F32(vec![result.mean]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, classes) = x.dims2()?;
        let mut gradient = vec![0.0; x.elem_count()];
        loss::cross_entropy(&values(x)?, &self.labels, classes, Some(&mut gradient));
        let factor = dy.to_vec0::<f32>()?;
        gradient.iter_mut().for_each(|g| *g *= factor);
        Ok(Some(tensor(gradient, x.shape())?))
    }
}
