//! Forward and backward pass on a GPU over the same list of operations as [`crate::net`].

use super::replay::{Key, Replay, Replays, State, fill_images};
use super::split::DeviceSplit;
use super::storage::{narrow, widen};
use super::{Context, CudaError, Device, Result, Storage, countable, launch, stored};
use crate::data::Input;
use crate::flat::{Flat, Layout};
use crate::graph::{Graph, Norm, Op, Value, conv_shape};
use crate::kernels::loss::Loss;
use crate::kernels::precision::Precision;
use crate::net::{Activation, EPS, Mode, Shape};
use cudarc::driver::{CudaSlice, CudaView, DevicePtr, DevicePtrMut};
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

/// Threads of a block that reduces rows: channels times rows.
const REDUCE: (u32, u32) = (32, 8);
/// Blocks that a reduction over rows aims at.
const REDUCE_BLOCKS: usize = 512;

/// What one pass leaves for the next.
#[derive(Debug)]
pub(crate) struct Pass {
    device: Rc<Device>,
    values: Vec<Option<OnDevice>>,
    norms: Vec<Option<NormRun>>,
    /// Of the pass under way.
    precision: Precision,
    /// The parameters in `bf16`, for a pass that stores it.
    narrow: Option<CudaSlice<f32>>,
    /// Sum of the batches' mean losses, images predicted right, batches.
    sums: Option<CudaSlice<f64>>,
    replays: Rc<RefCell<Replays>>,
}

/// An activation, `[n, h, w, c]`.
#[derive(Debug)]
struct OnDevice {
    shape: Shape,
    storage: Storage,
    data: CudaSlice<f32>,
}

impl OnDevice {
    /// An activation of unspecified content.
    fn take(device: &Device, shape: Shape, storage: Storage) -> Result<Self> {
        countable(shape)?;
        Ok(Self {
            shape,
            storage,
            data: device.take(storage.words(shape.len()))?,
        })
    }

    /// Its elements in `f32`.
    fn download(&self, device: &Device) -> Result<Vec<f32>> {
        download(device, self.shape, self.storage, &self.data)
    }
}

/// The elements of an activation in `f32`.
fn download(
    device: &Device,
    shape: Shape,
    storage: Storage,
    data: &CudaSlice<f32>,
) -> Result<Vec<f32>> {
    match storage {
        Storage::F32 => device.download(data),
        Storage::Bf16 => {
            let mut wide = device.take(shape.len())?;
            widen(device, data, &mut wide.as_view_mut(), shape.len())?;
            let values = device.download(&wide);
            device.give(wide);
            values
        }
    }
}

/// Statistics of one batch normalisation in the last forward pass.
#[derive(Debug)]
struct NormRun {
    mean: CudaSlice<f32>,
    invstd: CudaSlice<f32>,
    scale: CudaSlice<f32>,
    shift: CudaSlice<f32>,
    batch: bool,
    relu: bool,
}

/// The network's tensors on the device.
struct Tensors<'a> {
    layout: &'a Layout,
    data: &'a CudaSlice<f32>,
}

impl<'a> Tensors<'a> {
    fn tensor(&self, i: usize) -> CudaView<'a, f32> {
        self.data.slice(self.layout.entries()[i].range.clone())
    }
}

/// Sums over several passes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Sum of the batches' mean losses.
    pub(crate) loss: f64,
    /// Images predicted right.
    pub(crate) correct: u64,
}

/// How a reduction over `rows` rows of `c` channels is cut.
struct Parts {
    count: usize,
    rows: usize,
}

impl Parts {
    fn new(rows: usize, c: usize) -> Self {
        let wanted = (REDUCE_BLOCKS / c.div_ceil(REDUCE.0 as usize)).clamp(1, rows.div_ceil(64));
        let rows_per_part = rows.div_ceil(wanted);
        Self {
            count: rows.div_ceil(rows_per_part),
            rows: rows_per_part,
        }
    }

    fn grid(&self, c: usize) -> (u32, u32) {
        (self.count as u32, c.div_ceil(REDUCE.0 as usize) as u32)
    }
}

/// What a pass computes on.
pub(crate) struct Job<'a> {
    pub(crate) graph: &'a Graph,
    pub(crate) params: &'a Flat,
    pub(crate) buffers: &'a mut Flat,
    pub(crate) batch: Batch<'a>,
    pub(crate) mode: Mode,
    pub(crate) precision: Precision,
}

/// Where a pass finds its images and labels.
#[derive(Clone, Debug)]
pub(crate) enum Batch<'a> {
    /// On the host; labels are needed for a gradient only.
    Host(&'a Input, &'a [u32]),
    /// On the device, at these places of the epoch's order.
    Resident(&'a DeviceSplit<'a>, Range<usize>),
}

impl Batch<'_> {
    fn shape(&self) -> Shape {
        match self {
            Self::Host(input, _) => input.shape(),
            Self::Resident(split, range) => split.shape(range),
        }
    }
}

impl Pass {
    pub(crate) fn new(device: &Rc<Device>) -> Self {
        let replays = Rc::default();
        device.watch(&replays);
        Self {
            device: Rc::clone(device),
            values: Vec::new(),
            norms: Vec::new(),
            precision: Precision::F32,
            narrow: None,
            sums: None,
            replays,
        }
    }

    pub(crate) fn device(&self) -> &Rc<Device> {
        &self.device
    }

    /// Whether the last pass with gradients was launched as one graph.
    #[cfg(test)]
    pub(crate) fn is_recorded(&self) -> bool {
        let replays = self.replays.borrow();
        let last = replays.last();
        last.is_some_and(|r| matches!(r.state, State::Recorded(_)))
    }

    /// Logits `[n, classes]`, and the values `wanted`.
    pub(crate) fn forward(
        &mut self,
        job: Job<'_>,
        wanted: &[Value],
    ) -> Result<(Vec<f32>, Vec<Activation>)> {
        let Job {
            graph,
            params,
            buffers,
            batch,
            mode,
            precision,
        } = job;
        let device = Rc::clone(&self.device);
        let (layout, buffer_layout) = (params.layout(), Arc::clone(buffers.layout()));
        self.precision = precision;
        let mut images = OnDevice::take(&device, batch.shape(), Storage::of(precision))?;
        fill_images(&device, &batch, images.storage, &mut images.data)?;
        params.held().read(layout, &device, |data| {
            let params = Tensors { layout, data };
            hold_statistics(buffers, &device, mode, |data| {
                let buffers = Tensors {
                    layout: &buffer_layout,
                    data,
                };
                self.run_forward(graph, &params, &buffers, images, mode, false, wanted)
            })
        })?;
        let mut features = Vec::with_capacity(wanted.len());
        for value in wanted {
            let value = self.value(*value);
            features.push(Activation {
                shape: value.shape,
                data: value.download(&self.device)?,
            });
        }
        let logits = self.value(graph.values - 1).download(&self.device)?;
        self.clear();
        Ok((logits, features))
    }

    /// Mean cross-entropy and its gradients; see [`crate::Net::loss_grad`].
    pub(crate) fn loss_grad(
        &mut self,
        job: Job<'_>,
        grads: Option<&mut Flat>,
        input_gradient: Option<&mut [f32]>,
    ) -> Result<Loss> {
        self.take_tally()?;
        let shape = job.batch.shape();
        let storage = Storage::of(job.precision);
        self.gradients(job, grads, input_gradient.is_some())?;
        let tally = self.take_tally()?;
        let replays = self.replays.borrow();
        let left = replays.last().and_then(|r| r.input_gradient.as_ref());
        if let (Some(out), Some(dx)) = (input_gradient, left) {
            out.copy_from_slice(&download(&self.device, shape, storage, dx)?);
        }
        Ok(Loss {
            mean: tally.loss as f32,
            correct: tally.correct as usize,
        })
    }

    /// Gradients of the mean cross-entropy by the parameters, where `grads` has room for them; the loss goes to the tally,
    /// the input's gradient, if `input` asks for it, stays with the replay.
    pub(crate) fn gradients(
        &mut self,
        job: Job<'_>,
        grads: Option<&mut Flat>,
        input: bool,
    ) -> Result<()> {
        let Job {
            graph,
            params,
            buffers,
            batch,
            mode,
            precision,
        } = job;
        let device = Rc::clone(&self.device);
        let (layout, buffer_layout) = (params.layout(), Arc::clone(buffers.layout()));
        if self.sums.is_none() {
            self.sums = Some(device.stream().alloc_zeros(3).on("making room for sums")?);
        }
        self.precision = precision;
        params.held().read(layout, &device, |params| {
            hold_statistics(buffers, &device, mode, |buffers| {
                let mut step = |grads: Option<&mut CudaSlice<f32>>| {
                    let sums = self.sums.as_ref().expect("it was made above");
                    let key = Key {
                        shape: batch.shape(),
                        mode,
                        precision,
                        input,
                        vectors: [
                            address(&device, params),
                            address(&device, buffers),
                            grads.as_deref().map_or(0, |grads| address(&device, grads)),
                            address(&device, sums),
                        ],
                    };
                    let kept = self.replays.borrow_mut().take(&device, key);
                    let mut replay = match kept {
                        Some(kept) => kept,
                        None => Replay::new(&device, key)?,
                    };
                    replay.fill(&device, &batch)?;
                    let tensors = (
                        Tensors {
                            layout,
                            data: params,
                        },
                        Tensors {
                            layout: &buffer_layout,
                            data: buffers,
                        },
                    );
                    self.replay(graph, &tensors, grads, &mut replay)?;
                    self.replays.borrow_mut().put(replay);
                    Ok(())
                };
                match grads {
                    None => step(None),
                    Some(grads) => grads
                        .held_mut()
                        .write(layout, &device, |grads| step(Some(grads))),
                }
            })
        })
    }

    /// The pass of a replay whose batch is in place: call by call at first, then as a graph.
    fn replay(
        &mut self,
        graph: &Graph,
        tensors: &(Tensors<'_>, Tensors<'_>),
        mut grads: Option<&mut CudaSlice<f32>>,
        replay: &mut Replay,
    ) -> Result<()> {
        let device = Rc::clone(&self.device);
        let mut scratch = std::mem::take(&mut replay.scratch);
        let result = device.with_scratch(&mut scratch, || {
            if matches!(replay.state, State::Ready) {
                let grads = grads.as_deref_mut();
                let recorded = device.record(|| self.call_by_call(graph, tensors, grads, replay));
                replay.state = recorded.map_or(State::Refused, State::Recorded);
            }
            match &replay.state {
                State::Recorded(recorded) => recorded.launch().on("launching a pass"),
                State::New | State::Ready | State::Refused => {
                    self.call_by_call(graph, tensors, grads, replay)
                }
            }
        });
        replay.scratch = scratch;
        if matches!(replay.state, State::New) {
            replay.state = State::Ready;
        }
        result
    }

    /// Forward pass, loss and backward pass.
    fn call_by_call(
        &mut self,
        graph: &Graph,
        (params, buffers): &(Tensors<'_>, Tensors<'_>),
        grads: Option<&mut CudaSlice<f32>>,
        replay: &mut Replay,
    ) -> Result<()> {
        let device = Rc::clone(&self.device);
        if let Some(before) = replay.input_gradient.take() {
            device.give(before);
        }
        let Key {
            shape, mode, input, ..
        } = replay.key;
        let images = OnDevice {
            shape,
            storage: Storage::of(self.precision),
            data: replay.images.take().expect("no other pass is running"),
        };
        let result = self
            .run_forward(graph, params, buffers, images, mode, true, &[])
            .and_then(|()| self.cross_entropy(graph.values - 1, &replay.labels))
            .and_then(|gradient| self.run_backward(graph, params, grads, gradient, input));
        replay.images = self.values[0].take().map(|images| images.data);
        self.clear();
        replay.input_gradient = result?;
        Ok(())
    }

    /// What the passes with a gradient have summed up since the last question.
    pub(crate) fn take_tally(&mut self) -> Result<Tally> {
        const WHAT: &str = "reading the loss";
        let Some(sums) = &mut self.sums else {
            return Ok(Tally::default());
        };
        let stream = self.device.stream();
        let values = stream.clone_dtoh(sums).on(WHAT)?;
        stream.memset_zeros(sums).on(WHAT)?;
        Ok(Tally {
            loss: values[0],
            correct: values[1] as u64,
        })
    }

    fn value(&self, v: Value) -> &OnDevice {
        self.values[v]
            .as_ref()
            .expect("a value is computed before it is read and kept until its last reader")
    }

    fn release(&mut self, v: Value) {
        if let Some(old) = self.values[v].take() {
            self.device.give(old.data);
        }
    }

    fn release_norm(&mut self, norm: usize) {
        if let Some(run) = self.norms[norm].take() {
            for buffer in [run.mean, run.invstd, run.scale, run.shift] {
                self.device.give(buffer);
            }
        }
    }

    /// Gives all buffers of a pass back, whatever it was cut off at.
    fn clear(&mut self) {
        (0..self.values.len()).for_each(|v| self.release(v));
        (0..self.norms.len()).for_each(|n| self.release_norm(n));
        if let Some(narrow) = self.narrow.take() {
            self.device.give(narrow);
        }
    }

    /// Calls `f` with a convolution's weight as the pass stores it, which begins where cuDNN's wide loads may.
    fn with_weight<T>(
        &self,
        params: &Tensors<'_>,
        i: usize,
        f: impl FnOnce(&CudaView<'_, f32>) -> Result<T>,
    ) -> Result<T> {
        let device = &self.device;
        let range = params.layout.entries()[i].range.clone();
        match &self.narrow {
            None if is_aligned(&range, Storage::F32) => f(&params.tensor(i)),
            // Whole words, because it is aligned to several of them.
            Some(narrow) if is_aligned(&range, Storage::Bf16) => {
                f(&narrow.slice(range.start / 2..range.end.div_ceil(2)))
            }
            narrow_all => {
                let storage = Storage::of(self.precision);
                let mut own = device.take(storage.words(range.len()))?;
                if narrow_all.is_some() {
                    narrow(device, &params.tensor(i), &mut own, range.len())?;
                } else {
                    copy(device, &params.tensor(i), &mut own)?;
                }
                let result = f(&own.as_view())?;
                device.give(own);
                Ok(result)
            }
        }
    }

    /// Computes all values from the images. Unless all are to be `keep`t, those that nothing reads any more are given back,
    /// but for the `wanted` ones.
    #[expect(
        clippy::too_many_arguments,
        reason = "what a pass works on, and what is left of it"
    )]
    fn run_forward(
        &mut self,
        graph: &Graph,
        params: &Tensors<'_>,
        buffers: &Tensors<'_>,
        images: OnDevice,
        mode: Mode,
        keep: bool,
        wanted: &[Value],
    ) -> Result<()> {
        let device = Rc::clone(&self.device);
        self.clear();
        self.values.resize_with(graph.values, || None);
        self.norms.resize_with(graph.norms.len(), || None);
        self.values[0] = Some(images);
        if Storage::of(self.precision) == Storage::Bf16 {
            let data = params.data;
            let mut all = device.take(Storage::Bf16.words(data.len()))?;
            narrow(&device, &data.as_view(), &mut all, data.len())?;
            self.narrow = Some(all);
        }
        for (i, op) in graph.ops.iter().enumerate() {
            self.forward_op(graph, op, params, buffers, mode)?;
            if keep {
                continue;
            }
            for v in op.reads() {
                if graph.last_read[v] == i && !wanted.contains(&v) {
                    self.release(v);
                }
            }
        }
        Ok(())
    }

    fn forward_op(
        &mut self,
        graph: &Graph,
        op: &Op,
        params: &Tensors<'_>,
        buffers: &Tensors<'_>,
        mode: Mode,
    ) -> Result<()> {
        let device = Rc::clone(&self.device);
        match *op {
            Op::Conv {
                x,
                residual,
                weight,
                k,
                stride,
                pad,
                out,
                bias: None,
            } => {
                let x = self.value(x);
                let conv = conv_shape(params.layout, x.shape, weight, k, stride, pad);
                let shape = Shape {
                    n: conv.n,
                    h: conv.oh(),
                    w: conv.ow(),
                    c: conv.cout,
                };
                let mut y = OnDevice::take(&device, shape, x.storage)?;
                if let Some(residual) = residual {
                    device
                        .stream()
                        .memcpy_dtod(&self.value(residual).data, &mut y.data)
                        .on("copying a residual")?;
                }
                let key = (&conv, self.precision);
                self.with_weight(params, weight, |w| {
                    device.conv_forward(key, &x.data, w, residual.is_some(), &mut y.data)
                })?;
                self.values[out] = Some(y);
            }
            Op::BatchNorm { x, norm, relu, out } => {
                let run = self.normalisation(graph.norms[norm], relu, params, buffers, x, mode)?;
                let x = self.value(x);
                let mut y = OnDevice::take(&device, x.shape, x.storage)?;
                let (n, c) = (x.shape.len() as i64, int(x.shape.c));
                let relu = i32::from(relu);
                launch!(
                    device,
                    stored!(x.storage, "bn_apply"),
                    Device::elements(x.shape.len()),
                    &x.data,
                    &run.scale,
                    &run.shift,
                    &relu,
                    &n,
                    &c,
                    &mut y.data,
                );
                self.values[out] = Some(y);
                self.norms[norm] = Some(run);
            }
            Op::GlobalAveragePool { x, out } => {
                let x = self.value(x);
                let Shape { n, h, w, c } = x.shape;
                let shape = Shape { n, h: 1, w: 1, c };
                let mut y = OnDevice::take(&device, shape, Storage::F32)?;
                let (images, pixels, channels) = (int(n), int(h * w), int(c));
                launch!(
                    device,
                    stored!(x.storage, "global_average"),
                    Device::elements(n * c),
                    &x.data,
                    &images,
                    &pixels,
                    &channels,
                    &mut y.data,
                );
                self.values[out] = Some(y);
            }
            Op::Linear {
                x,
                weight,
                bias,
                out,
            } => {
                let x = self.value(x);
                assert_eq!(x.storage, Storage::F32, "pooling gives `f32`");
                let sizes = LinearSizes::new(params.layout, weight, x.shape);
                let shape = Shape {
                    n: x.shape.n,
                    h: 1,
                    w: 1,
                    c: sizes.out,
                };
                let mut y = OnDevice::take(&device, shape, Storage::F32)?;
                let (w, b) = (params.tensor(weight), params.tensor(bias));
                launch!(
                    device,
                    "linear_forward",
                    Device::product(x.shape.n, sizes.out),
                    &x.data,
                    &w,
                    &b,
                    &sizes.rows,
                    &sizes.inputs,
                    &sizes.outputs,
                    &mut y.data,
                );
                self.values[out] = Some(y);
            }
            _ => return Err(missing(op)),
        }
        Ok(())
    }

    /// Chooses the statistics of a batch normalisation, moving the running ones where `mode` asks for it.
    fn normalisation(
        &self,
        at: Norm,
        relu: bool,
        params: &Tensors<'_>,
        buffers: &Tensors<'_>,
        x: Value,
        mode: Mode,
    ) -> Result<NormRun> {
        let device = &self.device;
        let x = self.value(x);
        let c = at.channels;
        let mut run = NormRun {
            mean: device.take(c)?,
            invstd: device.take(c)?,
            scale: device.take(c)?,
            shift: device.take(c)?,
            batch: mode != Mode::Eval,
            relu,
        };
        let (gamma, beta) = (params.tensor(at.gamma), params.tensor(at.beta));
        let channels = int(c);
        // The kernel changes them if it is told to `update`; then they are held for writing.
        let (mean, var) = (buffers.tensor(at.mean), buffers.tensor(at.var));
        if !run.batch {
            launch!(
                device,
                "bn_eval_factors",
                Device::channels(c),
                &mean,
                &var,
                &gamma,
                &beta,
                &EPS,
                &channels,
                &mut run.mean,
                &mut run.invstd,
                &mut run.scale,
                &mut run.shift,
            );
            return Ok(run);
        }
        let rows = x.shape.len() / c;
        let parts = Parts::new(rows, c);
        let mut partial = device.take(2 * parts.count * c)?;
        let (row_count, part_rows, count) = (int(rows), int(parts.rows), int(parts.count));
        launch!(
            device,
            stored!(x.storage, "bn_partial"),
            Device::grid(parts.grid(c), REDUCE),
            &x.data,
            &row_count,
            &channels,
            &part_rows,
            &mut partial,
        );
        let update = i32::from(mode == Mode::Train);
        launch!(
            device,
            "bn_factors",
            Device::joined(c),
            &partial,
            &count,
            &row_count,
            &part_rows,
            &channels,
            &gamma,
            &beta,
            &mean,
            &var,
            &at.momentum,
            &EPS,
            &update,
            &mut run.mean,
            &mut run.invstd,
            &mut run.scale,
            &mut run.shift,
        );
        device.give(partial);
        Ok(run)
    }

    /// Gradient of the loss by the logits; the loss goes to the tally.
    fn cross_entropy(&mut self, logits: Value, labels: &CudaSlice<i32>) -> Result<CudaSlice<f32>> {
        let device = Rc::clone(&self.device);
        let Shape { n, c, .. } = self.value(logits).shape;
        let (mut losses, mut hits) = (device.take(n)?, device.take(n)?);
        let mut gradient = device.take(n * c)?;
        let (rows, classes) = (int(n), int(c));
        let logits = self.value(logits);
        launch!(
            device,
            "cross_entropy",
            Device::elements(n),
            &logits.data,
            labels,
            &rows,
            &classes,
            &mut gradient,
            &mut losses,
            // As many 32-bit integers as it has floats.
            &mut hits,
        );
        launch!(
            device,
            "loss_sums",
            Device::grid((1, 1), (256, 1)),
            &losses,
            &hits,
            &rows,
            self.sums.as_mut().expect("it was made above"),
        );
        device.give(losses);
        device.give(hits);
        Ok(gradient)
    }

    /// Gradients of all parameters, where there is room for them; the input's if `input` asks for it.
    fn run_backward(
        &mut self,
        graph: &Graph,
        params: &Tensors<'_>,
        mut grads: Option<&mut CudaSlice<f32>>,
        gradient: CudaSlice<f32>,
        input: bool,
    ) -> Result<Option<CudaSlice<f32>>> {
        let device = Rc::clone(&self.device);
        let mut gradients: Vec<Option<CudaSlice<f32>>> = Vec::new();
        gradients.resize_with(graph.values, || None);
        gradients[graph.values - 1] = Some(gradient);
        let range = |i: usize| params.layout.entries()[i].range.clone();
        for op in graph.ops.iter().rev() {
            let out = op.out();
            let dy = gradients[out]
                .take()
                .expect("an operation's result has a gradient");
            match *op {
                Op::Linear {
                    x, weight, bias, ..
                } => {
                    let value = self.value(x);
                    let sizes = LinearSizes::new(params.layout, weight, value.shape);
                    if let Some(grads) = grads.as_deref_mut() {
                        // Registered one after the other, so that both gradients are one slice.
                        let (w_range, b_range) = (range(weight), range(bias));
                        assert_eq!(w_range.end, b_range.start, "the bias follows its weight");
                        let mut both = grads.slice_mut(w_range.start..b_range.end);
                        let (mut dw, mut db) = both.split_at_mut(w_range.len());
                        launch!(
                            device,
                            "linear_weight_gradient",
                            Device::product(sizes.out, value.shape.len() / value.shape.n),
                            &value.data,
                            &dy,
                            &sizes.rows,
                            &sizes.inputs,
                            &sizes.outputs,
                            &mut dw,
                            &mut db,
                        );
                    }
                    let mut dx = device.take(value.shape.len())?;
                    let w = params.tensor(weight);
                    launch!(
                        device,
                        "linear_input_gradient",
                        Device::product(value.shape.n, value.shape.len() / value.shape.n),
                        &dy,
                        &w,
                        &sizes.rows,
                        &sizes.inputs,
                        &sizes.outputs,
                        &mut dx,
                    );
                    self.join(x, &mut gradients, dx)?;
                    device.give(dy);
                }
                Op::GlobalAveragePool { x, .. } => {
                    let shape = self.value(x).shape;
                    let storage = self.value(x).storage;
                    let mut dx = device.take(storage.words(shape.len()))?;
                    let (n, pixels, c) = (int(shape.n), int(shape.h * shape.w), int(shape.c));
                    launch!(
                        device,
                        stored!(storage, "global_average_gradient"),
                        Device::elements(shape.len()),
                        &dy,
                        &n,
                        &pixels,
                        &c,
                        &mut dx,
                    );
                    self.join(x, &mut gradients, dx)?;
                    device.give(dy);
                }
                Op::BatchNorm { x, norm, .. } => {
                    let before = gradients[x].take();
                    let at = graph.norms[norm];
                    let ranges = (range(at.gamma), range(at.beta));
                    let grads = grads.as_deref_mut();
                    gradients[x] = Some(self.norm_gradient(x, norm, ranges, dy, before, grads)?);
                    self.release_norm(norm);
                }
                Op::Conv {
                    x,
                    residual,
                    weight,
                    k,
                    stride,
                    pad,
                    ..
                } => {
                    let value = self.value(x);
                    let conv = conv_shape(params.layout, value.shape, weight, k, stride, pad);
                    let key = (&conv, self.precision);
                    let (range, storage) = (range(weight), value.storage);
                    if let Some(grads) = grads.as_deref_mut() {
                        let mut dw = grads.slice_mut(range.clone());
                        if storage == Storage::F32 && is_aligned(&range, storage) {
                            device.conv_weight_gradient(key, &value.data, &dy, &mut dw)?;
                        } else {
                            let mut own = device.take(storage.words(range.len()))?;
                            device.conv_weight_gradient(key, &value.data, &dy, &mut own)?;
                            match storage {
                                Storage::F32 => copy(&device, &own.as_view(), &mut dw)?,
                                Storage::Bf16 => widen(&device, &own, &mut dw, range.len())?,
                            }
                            device.give(own);
                        }
                    }
                    if x != 0 || input {
                        let add = gradients[x].is_some();
                        let mut dx = match gradients[x].take() {
                            Some(dx) => dx,
                            None => device.take(value.storage.words(conv.input_len()))?,
                        };
                        self.with_weight(params, weight, |w| {
                            device.conv_input_gradient(key, &dy, w, add, &mut dx)
                        })?;
                        gradients[x] = Some(dx);
                    }
                    match residual {
                        Some(r) => self.join(r, &mut gradients, dy)?,
                        None => device.give(dy),
                    }
                }
                _ => return Err(missing(op)),
            }
            self.release(out);
        }
        Ok(gradients[0].take())
    }

    /// Adds a contribution to the gradient of a value, or makes it the first one.
    fn join(
        &self,
        value: Value,
        gradients: &mut [Option<CudaSlice<f32>>],
        contribution: CudaSlice<f32>,
    ) -> Result<()> {
        let device = &self.device;
        let Some(sum) = &mut gradients[value] else {
            gradients[value] = Some(contribution);
            return Ok(());
        };
        let len = self.value(value).shape.len();
        let (n, grid) = (len as i64, Device::elements(len));
        match self.value(value).storage {
            Storage::F32 => launch!(device, "add_scaled", grid, sum, &1f32, &contribution, &n),
            Storage::Bf16 => launch!(device, "add_bf16", grid, sum, &contribution, &n),
        }
        device.give(contribution);
        Ok(())
    }

    /// Gradient by the input of a batch normalisation, added to `before`; its parameters' gradients go to `grads`, if there
    /// is room for them.
    fn norm_gradient(
        &self,
        x: Value,
        norm: usize,
        (gamma, beta): (Range<usize>, Range<usize>),
        dy: CudaSlice<f32>,
        before: Option<CudaSlice<f32>>,
        grads: Option<&mut CudaSlice<f32>>,
    ) -> Result<CudaSlice<f32>> {
        let device = &self.device;
        let run = self.norms[norm]
            .as_ref()
            .expect("the forward pass kept its statistics");
        let x = self.value(x);
        let c = x.shape.c;
        let rows = x.shape.len() / c;
        let parts = Parts::new(rows, c);
        let mut partial = device.take(2 * parts.count * c)?;
        let (row_count, part_rows, count) = (int(rows), int(parts.rows), int(parts.count));
        let (channels, relu) = (int(c), i32::from(run.relu));
        launch!(
            device,
            stored!(x.storage, "bn_gradient_partial"),
            Device::grid(parts.grid(c), REDUCE),
            &dy,
            &x.data,
            &run.scale,
            &run.shift,
            &run.mean,
            &relu,
            &row_count,
            &channels,
            &part_rows,
            &mut partial,
        );
        let (mut constant, mut slope) = (device.take(c)?, device.take(c)?);
        // The kernel writes both gradients in any case.
        let mut unwanted = device.take(2 * c)?;
        let batch = i32::from(run.batch);
        {
            assert_eq!(gamma.end, beta.start, "beta follows gamma");
            let mut both = match grads {
                Some(grads) => grads.slice_mut(gamma.start..beta.end),
                None => unwanted.slice_mut(..),
            };
            let (mut dgamma, mut dbeta) = both.split_at_mut(gamma.len());
            launch!(
                device,
                "bn_gradient_terms",
                Device::joined(c),
                &partial,
                &count,
                &row_count,
                &channels,
                &run.invstd,
                &run.scale,
                &batch,
                &mut dbeta,
                &mut dgamma,
                &mut constant,
                &mut slope,
            );
        }
        let n = x.shape.len() as i64;
        let shape = Device::elements(x.shape.len());
        let add = i32::from(before.is_some());
        // Without a gradient to add to, in place: the kernel reads each element before it writes it.
        let target = before.as_ref().unwrap_or(&dy);
        launch!(
            device,
            stored!(x.storage, "bn_input_gradient"),
            shape,
            &dy,
            &x.data,
            &run.scale,
            &run.shift,
            &run.mean,
            &constant,
            &slope,
            &relu,
            &add,
            &n,
            &channels,
            target,
        );
        let dx = match before {
            Some(dx) => {
                device.give(dy);
                dx
            }
            None => dy,
        };
        for buffer in [partial, constant, slope, unwanted] {
            device.give(buffer);
        }
        Ok(dx)
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.clear();
        let device = Rc::clone(&self.device);
        self.replays.borrow_mut().clear(&device);
    }
}

/// Calls `f` with running statistics on the device, where they stay only if `mode` changes them.
fn hold_statistics<T>(
    buffers: &mut Flat,
    device: &Rc<Device>,
    mode: Mode,
    f: impl FnOnce(&CudaSlice<f32>) -> Result<T>,
) -> Result<T> {
    let layout = Arc::clone(buffers.layout());
    if mode == Mode::Train {
        buffers.held_mut().write(&layout, device, |data| f(data))
    } else {
        buffers.held().read(&layout, device, f)
    }
}

/// Where a buffer begins.
fn address<T>(device: &Device, buffer: &impl DevicePtr<T>) -> u64 {
    buffer.device_ptr(device.stream()).0
}

/// Whether this module computes an operation; networks with others are refused before any pass.
pub(crate) fn supports(op: &Op) -> bool {
    matches!(
        op,
        Op::Conv { bias: None, .. }
            | Op::BatchNorm { .. }
            | Op::GlobalAveragePool { .. }
            | Op::Linear { .. }
    )
}

fn missing(op: &Op) -> CudaError {
    CudaError::new(op.label(), "it is computed on the CPU only")
}

/// Whether a tensor at this place of a vector begins at a multiple of 16 bytes.
fn is_aligned(range: &Range<usize>, storage: Storage) -> bool {
    let per_16_bytes = match storage {
        Storage::F32 => 4,
        Storage::Bf16 => 8,
    };
    range.start.is_multiple_of(per_16_bytes)
}

/// `to = from`.
fn copy(device: &Device, from: &CudaView<'_, f32>, to: &mut impl DevicePtrMut<f32>) -> Result<()> {
    device.stream().memcpy_dtod(from, to).on("copying a tensor")
}

/// Sizes of a fully connected layer.
struct LinearSizes {
    rows: i32,
    inputs: i32,
    outputs: i32,
    out: usize,
}

impl LinearSizes {
    fn new(layout: &Layout, weight: usize, x: Shape) -> Self {
        let out = layout.entries()[weight].shape[0];
        Self {
            rows: int(x.n),
            inputs: int(x.len() / x.n),
            outputs: int(out),
            out,
        }
    }
}

/// A size as the kernels take it, of an activation that [`countable`] has let through.
fn int(v: usize) -> i32 {
    i32::try_from(v).expect("rows and channels of a batch fit 31 bits")
}
