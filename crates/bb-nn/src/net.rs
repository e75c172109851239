//! A network with its parameters, its batch-normalisation buffers, and explicit forward and backward passes.
//!
//! Why not candle's autograd for training: each of its gradient contributions costs a zero fill and an addition over
//! the whole tensor, and intermediate tensors are allocated anew at each step.
//! The same kernels are offered as candle operations in [`crate::ops`] for methods that want autograd.
//!
//! A classifier's training step is [`Net::loss_grad`]. Any other loss is a forward pass that is kept and a backward pass
//! from the loss's gradient by what the network gave:
//!
//! ```
//! use bb_nn::data::Input;
//! use bb_nn::{ArchSpec, Mode, Net};
//!
//! let mut net = Net::new(&ArchSpec::new("preactresnet18", 4, 10)?, 0);
//! let images = Input { n: 1, h: 32, w: 32, data: vec![0.5; 32 * 32 * 3] };
//! let tape = net.record(&images, Mode::Eval);
//! // The loss is half of the squared norm of a feature, so its gradient is the feature itself.
//! let feature = tape.feature("avgpool").expect("it has one").data.clone();
//! let gradient = net.input_gradient(tape, &[("avgpool", &feature)])?;
//! assert_eq!(gradient.len(), images.data.len());
//! # Ok::<(), bb_nn::NnError>(())
//! ```

use crate::compute::Compute;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::data::{Input, Normaliser, plain_input};
use crate::error::NnError;
use crate::flat::Flat;
use crate::graph::{Graph, Init, StateName, Value};
use crate::kernels::loss::{Loss, cross_entropy};
use crate::kernels::precision::Precision;
use crate::pass::{self, Keep, Pool, Wanted};
pub use crate::pass::{Inputs, Tape};
use crate::profile::Profile;
use crate::spec::Spec;
use crate::state::StateDict;
use bb_core::artifact::Header;
#[cfg(feature = "cuda")]
use bb_core::data::Split;
use bb_core::data::{DatasetSpec, Images};
use bb_core::files::Links;
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::path::Path;
#[cfg(feature = "cuda")]
use std::rc::Rc;
use std::sync::Arc;

/// What batch normalisation and dropout do in a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Normalises with the running statistics, drops nothing.
    Eval,
    /// Normalises with the batch's statistics and moves the running ones (momentum 0.1 unless the architecture says
    /// otherwise, unbiased variance); drops.
    Train,
    /// Normalises with the batch's statistics and leaves the running ones alone; drops.
    TrainKeepStats,
}

/// Where a network's next dropout masks come from.
///
/// It belongs to the state of a training run: [`crate::train::fit`] starts it from its seed and keeps the step in its
/// checkpoints, so that a resumed run draws the masks that the whole one would have drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropoutStream {
    /// Seed of the masks' streams.
    pub seed: u64,
    /// Forward passes in a training mode so far; each draws masks of its own.
    pub step: u64,
}

/// Added to the variance by every batch normalisation, as in PyTorch.
pub const EPS: f32 = 1e-5;

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

/// What a counter of batches says.
fn count(name: &str, tensor: &Tensor) -> Result<i64, NnError> {
    if tensor.dtype() != DType::I64 {
        return Err(NnError::DType {
            name: name.to_owned(),
            expected: "i64",
            found: format!("{:?}", tensor.dtype()),
        });
    }
    let values = tensor.flatten_all()?.to_vec1::<i64>()?;
    Ok(values.first().copied().unwrap_or(0))
}

/// An activation, `[n, h, w, c]`.
#[derive(Clone, Debug)]
pub struct Activation {
    /// Its sizes.
    pub shape: Shape,
    /// Its elements.
    pub data: Vec<f32>,
}

/// A network.
#[derive(Debug)]
pub struct Net {
    spec: Spec,
    graph: Arc<Graph>,
    params: Flat,
    buffers: Flat,
    /// `num_batches_tracked` of each batch normalisation.
    tracked: Vec<i64>,
    dropout: DropoutStream,
    precision: Precision,
    pool: Pool,
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
            dropout: self.dropout,
            precision: self.precision,
            pool: Pool::default(),
            #[cfg(feature = "cuda")]
            cuda: self.cuda.as_ref().map(|c| cuda::Pass::new(c.device())),
        }
    }
}

impl Net {
    /// A new network, drawn from the streams (`seed`, `init/<tensor>`).
    ///
    /// PyTorch's defaults, as the benchmark's models use them: convolution and linear weights and their biases are
    /// uniform in `±1/sqrt(fan_in)`, batch normalisation starts at 1 and 0. Where torchvision's constructors do
    /// otherwise, so do these architectures: convolutions of ResNets and VGG are normal with variance `2 / fan_out` and
    /// bias 0, VGG's linear layers normal with standard deviation 0.01 and bias 0.
    pub fn new(spec: impl Into<Spec>, seed: u64) -> Self {
        let mut net = Self::blank(spec);
        let layout = Arc::clone(net.params.layout());
        for norm in &net.graph.norms {
            net.buffers.tensor_mut(norm.var).fill(1.0);
        }
        for (i, entry) in layout.entries().iter().enumerate() {
            let purpose = format!("init/{}", entry.name);
            let values = match net.graph.init[i] {
                Init::Constant(value) => vec![value; entry.range.len()],
                Init::Uniform { fan_in } => {
                    let bound = 1.0 / (fan_in as f64).sqrt();
                    let mut stream = bb_core::rng::stream(seed, &purpose, 0, 0);
                    entry
                        .range
                        .clone()
                        .map(|_| ((2.0 * bb_core::rng::unit_f64(&mut stream) - 1.0) * bound) as f32)
                        .collect()
                }
                Init::Normal { std } => normal(seed, &purpose, entry.range.len(), std),
            };
            net.params.set_plain(i, &values);
        }
        net
    }

    fn blank(spec: impl Into<Spec>) -> Self {
        let spec = spec.into();
        let mut graph = spec.graph();
        let params = Flat::zeros(&Arc::new(std::mem::take(&mut graph.params)));
        let buffers = Flat::zeros(&Arc::new(std::mem::take(&mut graph.buffers)));
        let tracked = vec![0; graph.norms.len()];
        Self {
            spec,
            graph: Arc::new(graph),
            params,
            buffers,
            tracked,
            dropout: DropoutStream::default(),
            precision: Precision::F32,
            pool: Pool::default(),
            #[cfg(feature = "cuda")]
            cuda: None,
        }
    }

    /// A network with the tensors of `state`, which must be exactly those of the architecture.
    ///
    /// Names and shapes are compared before anything is allocated, so that it costs no more than the state does.
    ///
    /// # Errors
    /// A tensor that is missing, unknown, of another shape or type, or not finite; [`NnError::Variance`] for a running
    /// variance below 0.
    pub fn from_state(spec: impl Into<Spec>, state: &StateDict) -> Result<Self, NnError> {
        let spec = spec.into();
        spec.check_tensors(state.iter().map(|(name, tensor)| (name, tensor.dims())))?;
        let mut net = Self::blank(spec);
        net.fill(state)?;
        Ok(net)
    }

    /// Reads the network in a safetensors file, and its state.
    ///
    /// Names and shapes are compared before a tensor is read.
    ///
    /// # Errors
    /// As [`StateDict::load`] and [`Net::from_state`].
    pub fn load(spec: impl Into<Spec>, path: &Path) -> Result<(StateDict, Self), NnError> {
        let spec = spec.into();
        let (header, mut file) =
            Header::open(path, Links::Follow).map_err(NnError::header(path))?;
        let listed = header.tensors().iter();
        spec.check_tensors(listed.map(|it| (it.name.as_str(), it.shape.as_slice())))?;
        let state = StateDict::read(&header, &mut file, path)?;
        let net = Self::from_state(spec, &state)?;
        Ok((state, net))
    }

    /// Name of the first parameter or buffer that holds NaN or an infinity.
    pub fn first_not_finite(&self) -> Option<&str> {
        let buffers = || self.buffers.first_not_finite();
        self.params.first_not_finite().or_else(buffers)
    }

    /// Replaces all tensors; see [`Net::from_state`]. On error the network is unchanged.
    pub fn set_state(&mut self, state: &StateDict) -> Result<(), NnError> {
        let tensors = state.iter().map(|(name, tensor)| (name, tensor.dims()));
        self.spec.check_tensors(tensors)?;
        let before = (
            self.params.clone(),
            self.buffers.clone(),
            self.tracked.clone(),
        );
        let filled = self.fill(state);
        if filled.is_err() {
            (self.params, self.buffers, self.tracked) = before;
        }
        filled
    }

    /// Takes the values of a state whose names and shapes fit.
    fn fill(&mut self, state: &StateDict) -> Result<(), NnError> {
        let graph = Arc::clone(&self.graph);
        for slot in &graph.order {
            let (flat, i) = match slot {
                StateName::Param(i) => (&mut self.params, *i),
                StateName::Buffer(i) => (&mut self.buffers, *i),
                StateName::Tracked(i, name) => {
                    if let Some(tensor) = state.get(name) {
                        self.tracked[*i] = count(name, tensor)?;
                    }
                    continue;
                }
            };
            let name = flat.layout().entries()[i].name.clone();
            let values = state.floats(&name).expect("names have been compared")?;
            if let Some(index) = values.iter().position(|v| !v.is_finite()) {
                return Err(NnError::NotFinite { name, index });
            }
            if let StateName::Buffer(i) = slot
                && graph.norms.iter().any(|norm| norm.var == *i)
                && let Some(index) = values.iter().position(|&v| v < 0.0)
            {
                let found = values[index];
                return Err(NnError::Variance { name, index, found });
            }
            flat.set_plain(i, &values);
        }
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
        self.pool.profile = Some(Profile::default());
    }

    /// The times since [`Net::start_profile`]; ends the profile.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.pool.profile.take()
    }

    /// What it was built from.
    pub fn spec(&self) -> &Spec {
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

    /// Where the next dropout masks come from; a new network starts at seed 0, step 0.
    pub fn dropout(&self) -> DropoutStream {
        self.dropout
    }

    /// See [`Net::dropout`].
    pub fn set_dropout(&mut self, stream: DropoutStream) {
        self.dropout = stream;
    }

    /// A zero vector with the parameters' layout.
    pub fn zeros(&self) -> Flat {
        Flat::zeros(self.params.layout())
    }

    /// The network with its passes on `compute` from now on, which must support its precision and its operations.
    #[cfg_attr(
        not(feature = "cuda"),
        expect(unused_mut, reason = "the GPU's arm needs it")
    )]
    pub fn on(mut self, compute: &Compute) -> Result<Self, NnError> {
        compute.supports(self.precision)?;
        #[cfg(feature = "cuda")]
        {
            if matches!(compute, Compute::Cuda(_))
                && let Some(op) = self.graph.ops.iter().find(|op| !cuda::supports(op))
            {
                return Err(NnError::NotOnGpu {
                    network: self.spec.label(),
                    operation: op.label(),
                });
            }
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
            |pass, job| pass.gradients(job, Some(grads), false),
        );
    }

    /// What [`Net::gradients_resident`] has summed up since the last question.
    #[cfg(feature = "cuda")]
    pub(crate) fn take_tally(&mut self) -> Result<cuda::Tally, NnError> {
        self.take_failure()?;
        let pass = self.cuda.as_mut().expect("its images are on the GPU");
        Ok(pass.take_tally()?)
    }

    /// See [`cuda::Pass::is_recorded`].
    #[cfg(all(test, feature = "cuda"))]
    pub(crate) fn is_recorded(&self) -> bool {
        self.cuda.as_ref().is_some_and(cuda::Pass::is_recorded)
    }

    fn count_batch(&mut self) {
        for t in &mut self.tracked {
            *t += 1;
        }
    }

    /// Logits `[n, classes]`, or whatever the network's last value is.
    pub fn forward(&mut self, input: &Input, mode: Mode) -> Vec<f32> {
        #[cfg(feature = "cuda")]
        if let Some(logits) = self.on_device(
            cuda::Batch::Host(input, &[]),
            mode,
            |net| vec![f32::NAN; input.n * net.spec.outputs()],
            |pass, job| Ok(pass.forward(job, &[])?.0),
        ) {
            return logits;
        }
        self.run_forward(input.into(), mode, &[]).0.data
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
                f(&vec![f32::NAN; images.len() * self.spec.outputs()]);
                return;
            };
            for part in parts(1000) {
                let count = part.len();
                let logits = self.on_device(
                    cuda::Batch::Resident(&resident, part),
                    Mode::Eval,
                    |net| vec![f32::NAN; count * net.spec.outputs()],
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

    /// [`Net::forward`], and the activations called `names` (unknown names are left out).
    ///
    /// The stages have names (`layer4`, `avgpool`), and so has what a convolution gives to a batch normalisation right
    /// behind it (`layer4.1.conv1`).
    pub fn forward_with(
        &mut self,
        input: &Input,
        mode: Mode,
        names: &[&str],
    ) -> (Vec<f32>, Vec<Activation>) {
        let wanted: Vec<Value> = names.iter().filter_map(|n| self.graph.find(n)).collect();
        #[cfg(feature = "cuda")]
        if let Some(found) = self.on_device(
            cuda::Batch::Host(input, &[]),
            mode,
            |net| (vec![f32::NAN; input.n * net.spec.outputs()], Vec::new()),
            |pass, job| pass.forward(job, &wanted),
        ) {
            return found;
        }
        let (output, features) = self.run_forward(input.into(), mode, &wanted);
        (output.data, features)
    }

    /// The last value for inputs of any kind, computed on the CPU, see [`Net::record`].
    pub fn output<'a>(&mut self, inputs: impl Into<Inputs<'a>>, mode: Mode) -> Activation {
        self.run_forward(inputs.into(), mode, &[]).0
    }

    /// A forward pass that is kept for a backward pass.
    ///
    /// It is computed on the CPU, also where the network's other passes run on a GPU; its tensors come to the host for
    /// it.
    pub fn record<'a>(&mut self, inputs: impl Into<Inputs<'a>>, mode: Mode) -> Tape<'a> {
        self.tape(inputs.into(), mode, Keep::Backward)
    }

    /// Gradient by the parameters of the sum over `cotangents` of `cotangent * value`; `grads` becomes it.
    ///
    /// A cotangent is the gradient of some loss by the value of that name: `output` is the last one, and every
    /// architecture names some of its features. Parameters that none of these values depends on get 0.
    ///
    /// # Errors
    /// [`NnError::UnknownFeature`] if a name is unknown.
    ///
    /// # Panics
    /// If `tape` is of another network or a cotangent has another length than its value.
    pub fn backward(
        &mut self,
        tape: Tape<'_>,
        cotangents: &[(&str, &[f32])],
        grads: &mut Flat,
    ) -> Result<(), NnError> {
        let wanted = Wanted {
            grads: Some(grads),
            input: false,
        };
        self.run_backward(tape, cotangents, wanted).map(|_| ())
    }

    /// [`Net::backward`], and the gradient by the (first) input.
    pub fn backward_input(
        &mut self,
        tape: Tape<'_>,
        cotangents: &[(&str, &[f32])],
        grads: &mut Flat,
    ) -> Result<Vec<f32>, NnError> {
        let wanted = Wanted {
            grads: Some(grads),
            input: true,
        };
        let gradient = self.run_backward(tape, cotangents, wanted)?;
        Ok(gradient.expect("it was asked for"))
    }

    /// The gradient by the (first) input alone, see [`Net::backward`]: parameters' gradients are not computed, which
    /// saves a third of a step.
    pub fn input_gradient(
        &mut self,
        tape: Tape<'_>,
        cotangents: &[(&str, &[f32])],
    ) -> Result<Vec<f32>, NnError> {
        let wanted = Wanted {
            grads: None,
            input: true,
        };
        let gradient = self.run_backward(tape, cotangents, wanted)?;
        Ok(gradient.expect("it was asked for"))
    }

    /// Gives a forward pass's buffers back without a backward pass; dropping it frees them instead.
    pub fn discard(&mut self, tape: Tape<'_>) {
        tape.clear(&mut self.pool);
    }

    /// Mean cross-entropy on a batch; `grads` becomes its gradient by the parameters.
    pub fn loss_grad(
        &mut self,
        input: &Input,
        labels: &[u32],
        mode: Mode,
        grads: &mut Flat,
    ) -> Loss {
        self.loss_and_gradients(input, labels, mode, Some(grads), None)
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
        let loss = self.loss_and_gradients(input, labels, mode, Some(grads), Some(&mut dx));
        (loss, dx)
    }

    /// Mean cross-entropy on a batch and its gradient by the normalised input alone, `[n, h, w, 3]`.
    ///
    /// The parameters' gradients are not computed, which saves a third of a step.
    pub fn loss_input_gradient(
        &mut self,
        input: &Input,
        labels: &[u32],
        mode: Mode,
    ) -> (Loss, Vec<f32>) {
        let mut dx = vec![0.0; input.data.len()];
        let loss = self.loss_and_gradients(input, labels, mode, None, Some(&mut dx));
        (loss, dx)
    }

    #[cfg_attr(
        not(feature = "cuda"),
        expect(unused_mut, reason = "the GPU's arm needs both")
    )]
    fn loss_and_gradients(
        &mut self,
        input: &Input,
        labels: &[u32],
        mode: Mode,
        mut grads: Option<&mut Flat>,
        mut input_gradient: Option<&mut [f32]>,
    ) -> Loss {
        let classes = self.spec.outputs();
        assert!(
            labels.iter().all(|l| (*l as usize) < classes),
            "labels below {classes}"
        );
        #[cfg(feature = "cuda")]
        if let Some(loss) = self.on_device(
            cuda::Batch::Host(input, labels),
            mode,
            |_| cuda::failed_loss(),
            |pass, job| pass.loss_grad(job, grads.as_deref_mut(), input_gradient.as_deref_mut()),
        ) {
            return loss;
        }
        let mut tape = self.tape(input.into(), mode, Keep::Backward);
        let logits = tape.take(self.graph.values - 1).data;
        let mut gradient = self.pool.take(logits.len());
        let loss = cross_entropy(&logits, labels, classes, Some(&mut gradient));
        self.pool.give(logits);
        let wanted = Wanted {
            grads,
            input: input_gradient.is_some(),
        };
        let from = [(self.graph.values - 1, gradient)];
        let dx = pass::backward(&mut self.pool, tape, &self.params, from, wanted);
        if let (Some(out), Some(dx)) = (input_gradient, dx) {
            out.copy_from_slice(&dx);
            self.pool.give(dx);
        }
        loss
    }

    /// A forward pass of which the last value and the `wanted` ones are left.
    fn run_forward(
        &mut self,
        inputs: Inputs<'_>,
        mode: Mode,
        wanted: &[Value],
    ) -> (Activation, Vec<Activation>) {
        let mut tape = self.tape(inputs, mode, Keep::Values(wanted));
        let features = wanted.iter().map(|v| tape.activation(*v).clone()).collect();
        let output = tape.take(self.graph.values - 1);
        tape.clear(&mut self.pool);
        (output, features)
    }

    fn tape<'a>(&mut self, inputs: Inputs<'a>, mode: Mode, keep: Keep<'_>) -> Tape<'a> {
        let precision = self.host_precision();
        let job = pass::Job {
            graph: &self.graph,
            params: &self.params,
            buffers: &mut self.buffers,
            inputs,
            mode,
            precision,
            dropout: self.dropout,
        };
        let tape = pass::forward(&mut self.pool, job, keep);
        if mode == Mode::Train {
            self.count_batch();
        }
        if mode != Mode::Eval && self.graph.dropouts > 0 {
            self.dropout.step += 1;
        }
        tape
    }

    /// How the CPU multiplies for this network: as it says, or in `f32` where it says how a GPU does.
    fn host_precision(&self) -> Precision {
        match self.compute() {
            Compute::Cpu => self.precision,
            #[cfg(feature = "cuda")]
            Compute::Cuda(_) => Precision::F32,
        }
    }

    fn run_backward(
        &mut self,
        tape: Tape<'_>,
        cotangents: &[(&str, &[f32])],
        wanted: Wanted<'_>,
    ) -> Result<Option<Vec<f32>>, NnError> {
        assert!(
            Arc::ptr_eq(tape.graph(), &self.graph),
            "a forward pass of another network"
        );
        let mut from = Vec::with_capacity(cotangents.len());
        for (name, cotangent) in cotangents {
            let Some(value) = self.graph.find(name) else {
                let known: Vec<&str> = self.graph.named.iter().map(|(n, _)| n.as_str()).collect();
                return Err(NnError::UnknownFeature {
                    name: (*name).to_owned(),
                    known: known.join(", "),
                });
            };
            assert_eq!(
                cotangent.len(),
                tape.shape(value).len(),
                "elements of the gradient by `{name}`"
            );
            let mut gradient = self.pool.take(cotangent.len());
            gradient.copy_from_slice(cotangent);
            from.push((value, gradient));
        }
        Ok(pass::backward(
            &mut self.pool,
            tape,
            &self.params,
            from,
            wanted,
        ))
    }
}

/// Elements drawn from one stream.
const DRAWN_TOGETHER: usize = 1 << 16;

/// Normal numbers with mean 0, from the streams (`seed`, `purpose`, piece), by Box and Muller's transform.
fn normal(seed: u64, purpose: &str, len: usize, std: f64) -> Vec<f32> {
    let mut values = vec![0f32; len];
    values
        .par_chunks_mut(DRAWN_TOGETHER)
        .enumerate()
        .for_each(|(piece, values)| {
            let mut stream = bb_core::rng::stream(seed, purpose, 0, piece as u64);
            for pair in values.chunks_mut(2) {
                // 1 - u is above 0, so that its logarithm is a number.
                let radius = (-2.0 * (1.0 - bb_core::rng::unit_f64(&mut stream)).ln()).sqrt();
                let angle = std::f64::consts::TAU * bb_core::rng::unit_f64(&mut stream);
                for (value, factor) in pair.iter_mut().zip([angle.cos(), angle.sin()]) {
                    *value = (std * radius * factor) as f32;
                }
            }
        });
    values
}
