//! A classifier with its parameters, its batch-normalisation buffers, and one explicit forward and backward pass.
//!
//! Why not candle's autograd for training: each of its gradient contributions costs a zero fill and an addition over
//! the whole tensor, and intermediate tensors are allocated anew at each step.
//! The same kernels are offered as candle operations in [`crate::ops`] for methods that want autograd.

use crate::arch::ArchSpec;
use crate::compute::Compute;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::data::{Input, Normaliser, plain_input};
use crate::error::NnError;
use crate::flat::{Flat, Layout};
use crate::graph::{Graph, Op, StateName, Value};
use crate::kernels::conv::{self, Add, Affine, ConvShape, Source};
use crate::kernels::loss::{Loss, cross_entropy};
use crate::kernels::precision::Precision;
use crate::kernels::{linear, norm, pool, vector};
use crate::profile::Profile;
use crate::state::StateDict;
#[cfg(feature = "cuda")]
use bb_core::data::Split;
use bb_core::data::{DatasetSpec, Images};
use candle_core::{Device, Tensor};
#[cfg(feature = "cuda")]
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// What batch normalisation does in a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Normalises with the running statistics.
    Eval,
    /// Normalises with the batch's statistics and moves the running ones (momentum 0.1, unbiased variance).
    Train,
    /// Normalises with the batch's statistics and leaves the running ones alone.
    TrainKeepStats,
}

pub(crate) const MOMENTUM: f32 = 0.1;
pub(crate) const EPS: f32 = 1e-5;

/// Sizes of an activation, `[n, h, w, c]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Images.
    pub n: usize,
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Shape {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An activation, `[n, h, w, c]`.
#[derive(Clone, Debug)]
pub struct Activation {
    /// Its sizes.
    pub shape: Shape,
    /// Its elements.
    pub data: Vec<f32>,
}

/// A classifier.
#[derive(Debug)]
pub struct Net {
    spec: ArchSpec,
    graph: Arc<Graph>,
    params: Flat,
    buffers: Flat,
    /// `num_batches_tracked` of each batch normalisation.
    tracked: Vec<i64>,
    precision: Precision,
    run: Run,
    /// The GPU that passes run on, if there is one.
    #[cfg(feature = "cuda")]
    cuda: Option<cuda::Pass>,
}

impl Clone for Net {
    fn clone(&self) -> Self {
        Self {
            spec: self.spec.clone(),
            graph: Arc::clone(&self.graph),
            params: self.params.clone(),
            buffers: self.buffers.clone(),
            tracked: self.tracked.clone(),
            precision: self.precision,
            run: Run::default(),
            #[cfg(feature = "cuda")]
            cuda: self.cuda.as_ref().map(|c| cuda::Pass::new(c.device())),
        }
    }
}

/// What one pass leaves for the next: activations, statistics and free buffers.
#[derive(Debug, Default)]
struct Run {
    values: Vec<Option<Activation>>,
    norms: Vec<Option<NormRun>>,
    free: Vec<Vec<f32>>,
    profile: Option<Profile>,
}

impl Run {
    /// Notes in the profile, if there is one, that an operation began at `start` and ends now.
    fn note(&mut self, start: Instant, name: impl FnOnce() -> String, flops: usize) {
        if let Some(profile) = &mut self.profile {
            profile.record(&name(), start, flops);
        }
    }

    fn take(&mut self, len: usize) -> Vec<f32> {
        let best = self
            .free
            .iter()
            .enumerate()
            .min_by_key(|(_, b)| {
                if b.capacity() >= len {
                    (0, b.capacity())
                } else {
                    (1, usize::MAX - b.capacity())
                }
            })
            .map(|(i, _)| i);
        let mut buffer = best.map(|i| self.free.swap_remove(i)).unwrap_or_default();
        buffer.resize(len, 0.0);
        buffer
    }

    fn give(&mut self, buffer: Vec<f32>) {
        self.free.push(buffer);
    }

    fn release(&mut self, value: Value) {
        if let Some(old) = self.values[value].take() {
            self.give(old.data);
        }
    }
}

/// Statistics of one batch normalisation in the last forward pass.
#[derive(Debug)]
struct NormRun {
    scale: Vec<f32>,
    shift: Vec<f32>,
    mean: Vec<f32>,
    invstd: Vec<f32>,
    batch: bool,
    relu: bool,
}

impl NormRun {
    fn saved(&self) -> norm::Saved<'_> {
        norm::Saved {
            scale: &self.scale,
            shift: &self.shift,
            mean: &self.mean,
            invstd: &self.invstd,
            relu: self.relu,
        }
    }
}

impl Net {
    /// A network with PyTorch's default initialisation, drawn from the stream (`seed`, "init").
    ///
    /// Convolution and linear weights and the linear bias are uniform in `±1/sqrt(fan_in)`, batch normalisation starts
    /// at 1 and 0.
    pub fn new(spec: &ArchSpec, seed: u64) -> Self {
        let mut net = Self::blank(spec);
        let layout = Arc::clone(net.params.layout());
        for norm in &net.graph.norms {
            net.params.tensor_mut(norm.gamma).fill(1.0);
            net.buffers.tensor_mut(norm.var).fill(1.0);
        }
        let mut fan_in = 1;
        for (i, entry) in layout.entries().iter().enumerate() {
            let is_weight = entry.shape.len() > 1;
            if is_weight {
                fan_in = entry.shape[1..].iter().product();
            } else if !entry.name.ends_with("linear.bias") {
                continue;
            }
            let bound = 1.0 / (fan_in as f64).sqrt();
            let mut stream = bb_core::rng::stream(seed, &format!("init/{}", entry.name), 0, 0);
            let values: Vec<f32> = entry
                .range
                .clone()
                .map(|_| ((2.0 * bb_core::rng::unit_f64(&mut stream) - 1.0) * bound) as f32)
                .collect();
            net.params.set_plain(i, &values);
        }
        net
    }

    fn blank(spec: &ArchSpec) -> Self {
        let mut graph = spec.graph();
        let params = Flat::zeros(&Arc::new(std::mem::take(&mut graph.params)));
        let buffers = Flat::zeros(&Arc::new(std::mem::take(&mut graph.buffers)));
        let tracked = vec![0; graph.norms.len()];
        Self {
            spec: spec.clone(),
            graph: Arc::new(graph),
            params,
            buffers,
            tracked,
            precision: Precision::F32,
            run: Run::default(),
            #[cfg(feature = "cuda")]
            cuda: None,
        }
    }

    /// A network with the tensors of `state`, which must be exactly those of the architecture.
    pub fn from_state(spec: &ArchSpec, state: &StateDict) -> Result<Self, NnError> {
        let mut net = Self::blank(spec);
        net.set_state(state)?;
        Ok(net)
    }

    /// Replaces all tensors; see [`Net::from_state`]. On error the network is unchanged.
    pub fn set_state(&mut self, state: &StateDict) -> Result<(), NnError> {
        let (mut params, mut buffers, mut tracked) = (
            self.params.clone(),
            self.buffers.clone(),
            self.tracked.clone(),
        );
        let missing = |name: &str, shape: &[usize]| NnError::MissingTensor {
            name: name.to_owned(),
            expected: shape.to_vec(),
        };
        let mut known = Vec::with_capacity(self.graph.order.len());
        for slot in &self.graph.order {
            let (flat, i) = match slot {
                StateName::Param(i) => (&mut params, *i),
                StateName::Buffer(i) => (&mut buffers, *i),
                StateName::Tracked(i, name) => {
                    // A missing counter is tolerated: only momentum-free averaging would read it.
                    if let Some(t) = state.get(name) {
                        tracked[*i] = t
                            .flatten_all()?
                            .to_vec1::<i64>()?
                            .first()
                            .copied()
                            .unwrap_or(0);
                    }
                    known.push(name.as_str());
                    continue;
                }
            };
            let entry = &flat.layout().entries()[i];
            let (name, shape) = (entry.name.clone(), entry.shape.clone());
            let tensor = state.get(&name).ok_or_else(|| missing(&name, &shape))?;
            if tensor.dims() != shape.as_slice() {
                return Err(NnError::Shape {
                    name,
                    expected: shape,
                    found: tensor.dims().to_vec(),
                });
            }
            let values = state
                .floats(&name)
                .unwrap_or_else(|| Err(missing(&name, &shape)))?;
            if let Some(index) = values.iter().position(|v| !v.is_finite()) {
                return Err(NnError::NotFinite { name, index });
            }
            flat.set_plain(i, &values);
        }
        let layouts = (Arc::clone(params.layout()), Arc::clone(buffers.layout()));
        let has = |name: &str| {
            layouts.0.position(name).is_some()
                || layouts.1.position(name).is_some()
                || known.contains(&name)
        };
        if let Some((name, _)) = state.iter().find(|(name, _)| !has(name)) {
            return Err(NnError::UnusedTensor {
                name: name.to_owned(),
                arch: self.spec.label(),
            });
        }
        (self.params, self.buffers, self.tracked) = (params, buffers, tracked);
        Ok(())
    }

    /// All tensors with PyTorch's names, shapes and order.
    pub fn state(&self) -> Result<StateDict, NnError> {
        let mut state = StateDict::new();
        for slot in &self.graph.order {
            match slot {
                StateName::Param(i) => {
                    state.insert(
                        self.params.layout().entries()[*i].name.as_str(),
                        self.params.to_tensor(*i)?,
                    );
                }
                StateName::Buffer(i) => {
                    state.insert(
                        self.buffers.layout().entries()[*i].name.as_str(),
                        self.buffers.to_tensor(*i)?,
                    );
                }
                StateName::Tracked(i, name) => {
                    state.insert(
                        name.as_str(),
                        Tensor::from_vec(vec![self.tracked[*i]], (), &Device::Cpu)?,
                    );
                }
            }
        }
        Ok(state)
    }

    /// The network, multiplying in `precision` from now on, which must be one of where its passes run; a new network
    /// uses `f32`.
    pub fn with_precision(mut self, precision: Precision) -> Result<Self, NnError> {
        self.compute().supports(precision)?;
        self.precision = precision;
        Ok(self)
    }

    /// Where its passes run.
    fn compute(&self) -> Compute {
        #[cfg(feature = "cuda")]
        if let Some(pass) = &self.cuda {
            return Compute::Cuda(Rc::clone(pass.device()));
        }
        Compute::Cpu
    }

    /// How convolutions multiply.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// See [`Net::with_precision`], for a precision that this processor is known to support.
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// Times every operation from now on.
    pub fn start_profile(&mut self) {
        self.run.profile = Some(Profile::default());
    }

    /// The times since [`Net::start_profile`]; ends the profile.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.run.profile.take()
    }

    /// The architecture.
    pub fn spec(&self) -> &ArchSpec {
        &self.spec
    }

    /// The parameters.
    pub fn params(&self) -> &Flat {
        &self.params
    }

    /// See [`Net::params`].
    pub fn params_mut(&mut self) -> &mut Flat {
        &mut self.params
    }

    /// Running means and variances.
    pub fn buffers(&self) -> &Flat {
        &self.buffers
    }

    /// See [`Net::buffers`].
    pub fn buffers_mut(&mut self) -> &mut Flat {
        &mut self.buffers
    }

    /// A zero vector with the parameters' layout.
    pub fn zeros(&self) -> Flat {
        Flat::zeros(self.params.layout())
    }

    /// The network with its passes on `compute` from now on, which must support its precision.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(unused_mut, reason = "the GPU's arm needs it")
    )]
    pub fn on(mut self, compute: &Compute) -> Result<Self, NnError> {
        compute.supports(self.precision)?;
        #[cfg(feature = "cuda")]
        {
            self.cuda = match compute {
                Compute::Cpu => None,
                Compute::Cuda(device) => Some(cuda::Pass::new(device)),
            };
        }
        Ok(self)
    }

    /// What a GPU failed at since the last question; results after a failure are NaN.
    pub fn take_failure(&mut self) -> Result<(), NnError> {
        #[cfg(feature = "cuda")]
        if let Some(error) = self.cuda.as_ref().and_then(|c| c.device().take_error()) {
            return Err(error.into());
        }
        Ok(())
    }

    /// Runs `f` on the GPU if there is one; a failure is kept and gives `otherwise`.
    #[cfg(feature = "cuda")]
    fn on_device<T>(
        &mut self,
        batch: cuda::Batch<'_>,
        mode: Mode,
        otherwise: impl FnOnce(&Self) -> T,
        f: impl FnOnce(&mut cuda::Pass, cuda::Job<'_>) -> cuda::Result<T>,
    ) -> Option<T> {
        let mut pass = self.cuda.take()?;
        let graph = Arc::clone(&self.graph);
        let job = cuda::Job {
            graph: &graph,
            params: &self.params,
            buffers: &mut self.buffers,
            batch,
            mode,
            precision: self.precision,
        };
        let result = f(&mut pass, job);
        let result = pass.device().keep(result);
        self.cuda = Some(pass);
        if mode == Mode::Train {
            self.count_batch();
        }
        Some(result.unwrap_or_else(|| otherwise(self)))
    }

    /// Without a GPU no dataset is on one.
    #[cfg(not(feature = "cuda"))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "as with the feature"
    )]
    pub(crate) fn resident(
        &self,
        _: &bb_core::data::Split,
        _: &bb_core::data::DatasetSpec,
    ) -> Result<Option<std::convert::Infallible>, NnError> {
        Ok(None)
    }

    /// The dataset on the GPU, if there is one.
    #[cfg(feature = "cuda")]
    pub(crate) fn resident<'a>(
        &self,
        split: &'a Split,
        spec: &'a DatasetSpec,
    ) -> Result<Option<cuda::DeviceSplit<'a>>, NnError> {
        let Some(pass) = &self.cuda else {
            return Ok(None);
        };
        Ok(Some(cuda::DeviceSplit::new(pass.device(), split, spec)?))
    }

    /// [`Net::loss_grad`] in train mode on images that are on the GPU; the loss goes to the tally.
    #[cfg(feature = "cuda")]
    pub(crate) fn gradients_resident(
        &mut self,
        split: &cuda::DeviceSplit<'_>,
        range: std::ops::Range<usize>,
        grads: &mut Flat,
    ) {
        self.on_device(
            cuda::Batch::Resident(split, range),
            Mode::Train,
            |_| (),
            |pass, job| pass.gradients(job, grads, false).map(|_| ()),
        );
    }

    /// What [`Net::gradients_resident`] has summed up since the last question.
    #[cfg(feature = "cuda")]
    pub(crate) fn take_tally(&mut self) -> Result<cuda::Tally, NnError> {
        self.take_failure()?;
        let pass = self.cuda.as_mut().expect("its images are on the GPU");
        Ok(pass.take_tally()?)
    }

    fn count_batch(&mut self) {
        for t in &mut self.tracked {
            *t += 1;
        }
    }

    /// Logits `[n, classes]`.
    pub fn forward(&mut self, input: &Input, mode: Mode) -> Vec<f32> {
        #[cfg(feature = "cuda")]
        if let Some(logits) = self.on_device(
            cuda::Batch::Host(input, &[]),
            mode,
            |net| vec![f32::NAN; input.n * net.spec.classes()],
            |pass, job| Ok(pass.forward(job, &[])?.0),
        ) {
            return logits;
        }
        self.run_forward(input, mode, false, &[]);
        self.take_logits()
    }

    /// Calls `f` with the logits of all `images` in eval mode, part by part in their order, `[images of the part, classes]`.
    ///
    /// Images are normalised as `spec` says. A GPU is given their bytes once.
    pub fn forward_images(
        &mut self,
        images: &Images,
        spec: &DatasetSpec,
        mut f: impl FnMut(&[f32]),
    ) {
        // No result depends on how many images a pass takes.
        let parts = |size: usize| {
            let starts = (0..images.len()).step_by(size);
            starts.map(move |first| first..(first + size).min(images.len()))
        };
        #[cfg(feature = "cuda")]
        if let Some(device) = self.cuda.as_ref().map(|c| Rc::clone(c.device())) {
            let resident = cuda::DeviceSplit::plain(&device, images, spec);
            let Some(resident) = device.keep(resident) else {
                f(&vec![f32::NAN; images.len() * self.spec.classes()]);
                return;
            };
            for part in parts(1000) {
                let count = part.len();
                let logits = self.on_device(
                    cuda::Batch::Resident(&resident, part),
                    Mode::Eval,
                    |net| vec![f32::NAN; count * net.spec.classes()],
                    |pass, job| Ok(pass.forward(job, &[])?.0),
                );
                f(&logits.expect("it runs on the device"));
            }
            return;
        }
        let normaliser = Normaliser::new(spec);
        for part in parts(250) {
            let input = plain_input(images, part, &normaliser);
            f(&self.forward(&input, Mode::Eval));
        }
    }

    /// Logits, and the activations called `names` (such as `layer4` or `avgpool`; unknown names are left out).
    pub fn forward_with(
        &mut self,
        input: &Input,
        mode: Mode,
        names: &[&str],
    ) -> (Vec<f32>, Vec<Activation>) {
        let wanted: Vec<Value> = names
            .iter()
            .filter_map(|n| {
                self.graph
                    .named
                    .iter()
                    .find(|(name, _)| name == n)
                    .map(|(_, v)| *v)
            })
            .collect();
        #[cfg(feature = "cuda")]
        if let Some(found) = self.on_device(
            cuda::Batch::Host(input, &[]),
            mode,
            |net| (vec![f32::NAN; input.n * net.spec.classes()], Vec::new()),
            |pass, job| pass.forward(job, &wanted),
        ) {
            return found;
        }
        self.run_forward(input, mode, false, &wanted);
        let features = wanted
            .iter()
            .filter_map(|v| self.run.values[*v].clone())
            .collect();
        (self.take_logits(), features)
    }

    /// Mean cross-entropy on a batch; `grads` becomes its gradient by the parameters.
    pub fn loss_grad(
        &mut self,
        input: &Input,
        labels: &[u32],
        mode: Mode,
        grads: &mut Flat,
    ) -> Loss {
        self.loss_and_gradients(input, labels, mode, grads, None)
    }

    /// [`Net::loss_grad`] with the gradient by the normalised input as well, `[n, h, w, 3]`.
    pub fn loss_grad_input(
        &mut self,
        input: &Input,
        labels: &[u32],
        mode: Mode,
        grads: &mut Flat,
    ) -> (Loss, Vec<f32>) {
        let mut dx = vec![0.0; input.data.len()];
        let loss = self.loss_and_gradients(input, labels, mode, grads, Some(&mut dx));
        (loss, dx)
    }

    fn loss_and_gradients(
        &mut self,
        input: &Input,
        labels: &[u32],
        mode: Mode,
        grads: &mut Flat,
        #[cfg_attr(
            not(feature = "cuda"),
            expect(unused_mut, reason = "the GPU's arm needs it")
        )]
        mut input_gradient: Option<&mut [f32]>,
    ) -> Loss {
        #[cfg(feature = "cuda")]
        if let Some(loss) = self.on_device(
            cuda::Batch::Host(input, labels),
            mode,
            |_| cuda::failed_loss(),
            |pass, job| pass.loss_grad(job, grads, input_gradient.as_deref_mut()),
        ) {
            return loss;
        }
        self.run_forward(input, mode, true, &[]);
        let logits = self.take_logits();
        let mut gradient = self.run.take(logits.len());
        let loss = cross_entropy(&logits, labels, self.spec.classes(), Some(&mut gradient));
        self.run.give(logits);
        self.run_backward(input, gradient, grads, input_gradient);
        loss
    }

    fn take_logits(&mut self) -> Vec<f32> {
        let last = self.graph.values - 1;
        self.run.values[last]
            .take()
            .expect("a forward pass ends with the logits")
            .data
    }

    fn run_forward(&mut self, input: &Input, mode: Mode, keep: bool, wanted: &[Value]) {
        let graph = Arc::clone(&self.graph);
        self.run.norms = graph.norms.iter().map(|_| None).collect();
        if self.run.values.len() != graph.values {
            self.run.values = vec![None; graph.values];
        }
        for v in 0..graph.values {
            self.run.release(v);
        }
        for (i, op) in graph.ops.iter().enumerate() {
            let shape_of = |run: &Run, v: Value| shape_of(run, &graph, input, v);
            let start = Instant::now();
            match *op {
                Op::Conv {
                    x,
                    residual,
                    weight,
                    k,
                    stride,
                    pad,
                    out,
                } => {
                    let shape = shape_of(&self.run, x);
                    let conv = conv_shape(self.params.layout(), shape, weight, k, stride, pad);
                    let mut y = self.run.take(conv.output_len());
                    let add = residual
                        .map_or(Add::Nothing, |r| Add::Other(&activation(&self.run, r).data));
                    conv::forward(
                        &conv,
                        self.precision,
                        source(&self.run, &graph, input, x),
                        self.params.tensor(weight),
                        add,
                        &mut y,
                    );
                    let name = || format!("forward {conv}");
                    self.run.note(start, name, conv.flops());
                    let shape = Shape {
                        n: conv.n,
                        h: conv.oh(),
                        w: conv.ow(),
                        c: conv.cout,
                    };
                    self.run.values[out] = Some(Activation { shape, data: y });
                }
                Op::BatchNorm { x, norm, relu, out } => {
                    let shape = shape_of(&self.run, x);
                    let run = self.normalisation(norm, relu, input, x, mode);
                    if graph.folded[out].is_none() {
                        let mut y = self.run.take(shape.len());
                        norm::apply(
                            data(&self.run, input, x),
                            &run.scale,
                            &run.shift,
                            relu,
                            &mut y,
                        );
                        self.run.values[out] = Some(Activation { shape, data: y });
                    }
                    self.run.norms[norm] = Some(run);
                    let name = || format!("forward batch norm {} @{}", shape.c, shape.h);
                    self.run.note(start, name, 0);
                }
                Op::GlobalAveragePool { x, out } => {
                    let Shape { n, h, w, c } = shape_of(&self.run, x);
                    let mut y = self.run.take(n * c);
                    pool::global_average(data(&self.run, input, x), h * w, c, &mut y);
                    self.run.values[out] = Some(Activation {
                        shape: Shape { n, h: 1, w: 1, c },
                        data: y,
                    });
                }
                Op::Linear {
                    x,
                    weight,
                    bias,
                    out,
                } => {
                    let shape = shape_of(&self.run, x);
                    let (inputs, outputs) = (shape.len() / shape.n, self.params.tensor(bias).len());
                    let mut y = self.run.take(shape.n * outputs);
                    let (w, b) = (self.params.tensor(weight), self.params.tensor(bias));
                    linear::forward(data(&self.run, input, x), w, b, inputs, &mut y);
                    let shape = Shape {
                        n: shape.n,
                        h: 1,
                        w: 1,
                        c: outputs,
                    };
                    self.run.values[out] = Some(Activation { shape, data: y });
                }
            }
            if !keep {
                for v in op.reads() {
                    // A folded value's place is empty: what it is made of is what can be released.
                    let v = graph.folded[v].map_or(v, |folded| folded.x);
                    if graph.last_read[v] == i && !wanted.contains(&v) {
                        self.run.release(v);
                    }
                }
            }
        }
        if mode == Mode::Train {
            self.count_batch();
        }
    }

    /// Chooses the statistics of a batch normalisation, moving the running ones where `mode` asks for it.
    fn normalisation(
        &mut self,
        norm: usize,
        relu: bool,
        input: &Input,
        x: Value,
        mode: Mode,
    ) -> NormRun {
        let at = self.graph.norms[norm];
        let batch = mode != Mode::Eval;
        let (mean, var) = if batch {
            let x = data(&self.run, input, x);
            let rows = x.len() / at.channels;
            let (mean, var) = norm::statistics(x, at.channels);
            if mode == Mode::Train {
                // One row has no unbiased variance; PyTorch refuses that case, here the biased one (0) is used.
                let unbiased = rows as f32 / (rows.max(2) - 1) as f32;
                for (r, m) in self.buffers.tensor_mut(at.mean).iter_mut().zip(&mean) {
                    *r = (1.0 - MOMENTUM) * *r + MOMENTUM * m;
                }
                for (r, v) in self.buffers.tensor_mut(at.var).iter_mut().zip(&var) {
                    *r = (1.0 - MOMENTUM) * *r + MOMENTUM * (v * unbiased);
                }
            }
            (mean, var)
        } else {
            (
                self.buffers.tensor(at.mean).to_vec(),
                self.buffers.tensor(at.var).to_vec(),
            )
        };
        let invstd: Vec<f32> = var.iter().map(|v| 1.0 / (v + EPS).sqrt()).collect();
        let (gamma, beta) = (self.params.tensor(at.gamma), self.params.tensor(at.beta));
        let scale: Vec<f32> = gamma.iter().zip(&invstd).map(|(g, i)| g * i).collect();
        let shift = beta
            .iter()
            .zip(&mean)
            .zip(&scale)
            .map(|((b, m), s)| b - m * s)
            .collect();
        NormRun {
            scale,
            shift,
            mean,
            invstd,
            batch,
            relu,
        }
    }

    fn run_backward(
        &mut self,
        input: &Input,
        gradient: Vec<f32>,
        grads: &mut Flat,
        mut input_gradient: Option<&mut [f32]>,
    ) {
        let graph = Arc::clone(&self.graph);
        let run = &mut self.run;
        let mut gradients: Vec<Option<Vec<f32>>> = vec![None; graph.values];
        gradients[graph.values - 1] = Some(gradient);
        for op in graph.ops.iter().rev() {
            let start = Instant::now();
            match *op {
                Op::Linear {
                    x,
                    weight,
                    bias,
                    out,
                } => {
                    let dy = gradients[out]
                        .take()
                        .expect("an operation's result has a gradient");
                    let mut dx = run.take(activation(run, x).data.len());
                    let (mut dw, mut db) = (
                        run.take(grads.tensor(weight).len()),
                        run.take(grads.tensor(bias).len()),
                    );
                    let w = self.params.tensor(weight);
                    linear::backward(
                        &activation(run, x).data,
                        w,
                        &dy,
                        &mut dw,
                        &mut db,
                        Some(&mut dx),
                    );
                    grads.tensor_mut(weight).copy_from_slice(&dw);
                    grads.tensor_mut(bias).copy_from_slice(&db);
                    join(run, &mut gradients[x], dx);
                    for buffer in [dy, dw, db] {
                        run.give(buffer);
                    }
                }
                Op::GlobalAveragePool { x, out } => {
                    let dy = gradients[out]
                        .take()
                        .expect("an operation's result has a gradient");
                    let Shape { h, w, c, .. } = activation(run, x).shape;
                    let mut dx = run.take(activation(run, x).data.len());
                    pool::global_average_gradient(&dy, h * w, c, &mut dx);
                    join(run, &mut gradients[x], dx);
                    run.give(dy);
                }
                Op::BatchNorm { x, norm, out, .. } => {
                    let mut dy = gradients[out]
                        .take()
                        .expect("an operation's result has a gradient");
                    let record = run.norms[norm]
                        .take()
                        .expect("the forward pass kept its statistics");
                    let saved = record.saved();
                    let x_data = data(run, input, x);
                    let (dbeta, dgamma) = norm::parameter_gradients(&dy, x_data, &saved);
                    let batch = record
                        .batch
                        .then_some((dbeta.as_slice(), dgamma.as_slice()));
                    if let Some(dx) = &mut gradients[x] {
                        norm::add_input_gradient(&dy, x_data, &saved, batch, dx);
                        run.give(dy);
                    } else {
                        norm::input_gradient_in_place(&mut dy, x_data, &saved, batch);
                        gradients[x] = Some(dy);
                    }
                    let at = graph.norms[norm];
                    grads.tensor_mut(at.gamma).copy_from_slice(&dgamma);
                    grads.tensor_mut(at.beta).copy_from_slice(&dbeta);
                    let Shape { h, c, .. } = shape_of(run, &graph, input, x);
                    run.note(start, || format!("backward batch norm {c} @{h}"), 0);
                }
                Op::Conv {
                    x,
                    residual,
                    weight,
                    k,
                    stride,
                    pad,
                    out,
                } => {
                    let dy = gradients[out]
                        .take()
                        .expect("an operation's result has a gradient");
                    let shape = shape_of(run, &graph, input, x);
                    let conv = conv_shape(self.params.layout(), shape, weight, k, stride, pad);
                    conv::weight_gradient(
                        &conv,
                        self.precision,
                        source(run, &graph, input, x),
                        &dy,
                        grads.tensor_mut(weight),
                    );
                    run.note(start, || format!("weight gradient {conv}"), conv.flops());
                    let start = Instant::now();
                    let w = self.params.tensor(weight);
                    if x == 0 {
                        if let Some(dx) = input_gradient.as_deref_mut() {
                            conv::input_gradient(&conv, self.precision, &dy, w, Add::Nothing, dx);
                        }
                    } else if let Some(dx) = &mut gradients[x] {
                        conv::input_gradient(&conv, self.precision, &dy, w, Add::Destination, dx);
                    } else {
                        let mut dx = run.take(conv.input_len());
                        conv::input_gradient(&conv, self.precision, &dy, w, Add::Nothing, &mut dx);
                        gradients[x] = Some(dx);
                    }
                    if x != 0 {
                        run.note(start, || format!("input gradient {conv}"), conv.flops());
                    }
                    match residual {
                        Some(r) => join(run, &mut gradients[r], dy),
                        None => run.give(dy),
                    }
                }
            }
            // The operation's result has been used by every reader and now by its own backward step.
            run.release(op.out());
        }
    }
}

/// The sizes of a convolution of an activation `x` with the tensor `weight` of a network.
pub(crate) fn conv_shape(
    params: &Layout,
    x: Shape,
    weight: usize,
    k: usize,
    stride: usize,
    pad: usize,
) -> ConvShape {
    let cout = params.entries()[weight].shape[0];
    ConvShape {
        n: x.n,
        h: x.h,
        w: x.w,
        cin: x.c,
        cout,
        k,
        stride,
        pad,
    }
}

fn activation(run: &Run, v: Value) -> &Activation {
    run.values[v]
        .as_ref()
        .expect("a value is computed before it is read and kept until its last reader")
}

fn data<'a>(run: &'a Run, input: &'a Input, v: Value) -> &'a [f32] {
    if v == 0 {
        &input.data
    } else {
        &activation(run, v).data
    }
}

/// What a convolution reads: a value, or the batch normalisation that the value would be the result of.
fn source<'a>(run: &'a Run, graph: &Graph, input: &'a Input, v: Value) -> Source<'a> {
    let Some(folded) = graph.folded[v] else {
        return data(run, input, v).into();
    };
    let norm = run.norms[folded.norm]
        .as_ref()
        .expect("a normalisation runs before what reads it");
    Source {
        data: data(run, input, folded.x),
        affine: Some(Affine {
            scale: &norm.scale,
            shift: &norm.shift,
            relu: norm.relu,
        }),
    }
}

fn shape_of(run: &Run, graph: &Graph, input: &Input, v: Value) -> Shape {
    match graph.folded[v].map_or(v, |folded| folded.x) {
        0 => input.shape(),
        v => activation(run, v).shape,
    }
}

/// Adds a gradient contribution, or makes it the first one.
fn join(run: &mut Run, slot: &mut Option<Vec<f32>>, contribution: Vec<f32>) {
    match slot {
        Some(sum) => {
            vector::add_scaled(sum, 1.0, &contribution);
            run.give(contribution);
        }
        None => *slot = Some(contribution),
    }
}
