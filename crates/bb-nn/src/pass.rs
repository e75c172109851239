//! Forward and backward pass on the CPU over the list of operations of a network.

use crate::data::Input;
use crate::flat::Flat;
use crate::graph::{Graph, Norm, OUTPUT, Op, Value, conv_shape};
use crate::kernels::conv::{self, Add, Affine, ConvShape, Source};
use crate::kernels::dropout::{self, Mask};
use crate::kernels::precision::Precision;
use crate::kernels::{image, linear, map, norm, pool, vector};
use crate::net::{Activation, DropoutStream, EPS, Mode, Shape};
use crate::profile::Profile;
use std::sync::Arc;
use std::time::Instant;

/// What a forward pass reads: a batch of images, and for some networks a second batch.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    first: (Shape, &'a [f32]),
    second: Option<(Shape, &'a [f32])>,
}

impl<'a> Inputs<'a> {
    fn get(&self, v: Value) -> Option<(Shape, &'a [f32])> {
        match v {
            0 => Some(self.first),
            1 => self.second,
            _ => None,
        }
    }

    fn count(&self) -> usize {
        1 + usize::from(self.second.is_some())
    }

    /// Sizes of the first batch.
    pub fn shape(&self) -> Shape {
        self.first.0
    }
}

impl<'a> From<&'a Input> for Inputs<'a> {
    fn from(input: &'a Input) -> Self {
        Self {
            first: (input.shape(), &input.data),
            second: None,
        }
    }
}

impl<'a> From<&'a Activation> for Inputs<'a> {
    fn from(input: &'a Activation) -> Self {
        Self {
            first: (input.shape, &input.data),
            second: None,
        }
    }
}

impl<'a> From<(&'a Input, &'a [f32])> for Inputs<'a> {
    /// Images, and as many numbers for each of them.
    fn from((input, rows): (&'a Input, &'a [f32])) -> Self {
        let shape = Shape {
            n: input.n,
            h: 1,
            w: 1,
            c: rows.len() / input.n,
        };
        Self {
            second: Some((shape, rows)),
            ..input.into()
        }
    }
}

/// Buffers that passes use again, and the times of operations.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    free: Vec<Vec<f32>>,
    places: Vec<Vec<u8>>,
    pub(crate) profile: Option<Profile>,
}

impl Pool {
    /// Notes in the profile, if there is one, that an operation began at `start` and ends now.
    fn note(&mut self, start: Instant, name: impl FnOnce() -> String, flops: usize) {
        if let Some(profile) = &mut self.profile {
            profile.record(&name(), start, flops);
        }
    }

    /// A buffer of unspecified content.
    pub(crate) fn take(&mut self, len: usize) -> Vec<f32> {
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

    pub(crate) fn give(&mut self, buffer: Vec<f32>) {
        self.free.push(buffer);
    }

    fn take_places(&mut self, len: usize) -> Vec<u8> {
        let mut places = self.places.pop().unwrap_or_default();
        places.resize(len, 0);
        places
    }

    /// Adds a gradient contribution, or makes it the first one.
    fn join(&mut self, slot: &mut Option<Vec<f32>>, contribution: Vec<f32>) {
        match slot {
            Some(sum) => {
                vector::add_scaled(sum, 1.0, &contribution);
                self.give(contribution);
            }
            None => *slot = Some(contribution),
        }
    }

    /// [`Pool::join`] of a copy.
    fn join_copy(&mut self, slot: &mut Option<Vec<f32>>, contribution: &[f32]) {
        if let Some(sum) = slot {
            vector::add_scaled(sum, 1.0, contribution);
        } else {
            let mut copy = self.take(contribution.len());
            copy.copy_from_slice(contribution);
            *slot = Some(copy);
        }
    }
}

/// A forward pass with what the backward pass needs of it.
///
/// It owns its activations, so a network may have several of them at a time; they hold for the parameters that the
/// network had then.
#[derive(Debug)]
pub struct Tape<'a> {
    graph: Arc<Graph>,
    inputs: Inputs<'a>,
    shapes: Vec<Shape>,
    values: Vec<Option<Activation>>,
    norms: Vec<Option<NormRun>>,
    /// Where the largest values of each pooling were.
    places: Vec<Option<Vec<u8>>>,
    /// Masks of dropout, where there was any.
    masks: Option<DropoutStream>,
    precision: Precision,
}

impl<'a> Tape<'a> {
    /// The last value: logits, or an image.
    pub fn output(&self) -> &Activation {
        self.feature(OUTPUT).expect("every network has an output")
    }

    /// The value called `name`, such as `layer4` or `avgpool`, if the network has one.
    pub fn feature(&self, name: &str) -> Option<&Activation> {
        Some(self.activation(self.graph.find(name)?))
    }

    pub(crate) fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// Takes a value out.
    pub(crate) fn take(&mut self, v: Value) -> Activation {
        self.values[v]
            .take()
            .expect("a wanted value is kept until the pass ends")
    }

    /// Gives all buffers back.
    pub(crate) fn clear(mut self, pool: &mut Pool) {
        for v in 0..self.values.len() {
            self.release(pool, v);
        }
    }

    pub(crate) fn shape(&self, v: Value) -> Shape {
        self.shapes[v]
    }

    pub(crate) fn activation(&self, v: Value) -> &Activation {
        self.values[v]
            .as_ref()
            .expect("a value is computed before it is read and kept until its last reader")
    }

    fn data(&self, v: Value) -> &[f32] {
        match self.inputs.get(v) {
            Some((_, data)) => data,
            None => &self.activation(v).data,
        }
    }

    /// What a convolution reads: a value, or the batch normalisation that the value would be the result of.
    fn source(&self, v: Value) -> Source<'_> {
        let Some(folded) = self.graph.folded[v] else {
            return self.data(v).into();
        };
        let norm = self.norms[folded.norm]
            .as_ref()
            .expect("a normalisation runs before what reads it");
        Source {
            data: self.data(folded.x),
            affine: Some(Affine {
                scale: &norm.scale,
                shift: &norm.shift,
                relu: norm.relu,
            }),
        }
    }

    fn mask(&self, layer: usize) -> Option<Mask> {
        let DropoutStream { seed, step } = self.masks?;
        Some(Mask { seed, step, layer })
    }

    fn release(&mut self, pool: &mut Pool, v: Value) {
        if let Some(old) = self.values[v].take() {
            pool.give(old.data);
        }
        if let Some(places) = self.places[v].take() {
            pool.places.push(places);
        }
    }
}

/// Statistics of one batch normalisation in a forward pass.
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

/// What a forward pass computes on.
pub(crate) struct Job<'a, 'i> {
    pub(crate) graph: &'a Arc<Graph>,
    pub(crate) params: &'a Flat,
    pub(crate) buffers: &'a mut Flat,
    pub(crate) inputs: Inputs<'i>,
    pub(crate) mode: Mode,
    pub(crate) precision: Precision,
    pub(crate) dropout: DropoutStream,
}

/// What is kept of a forward pass.
#[derive(Clone, Copy)]
pub(crate) enum Keep<'a> {
    /// The output and these values.
    Values(&'a [Value]),
    /// What a backward pass reads, and every named value.
    Backward,
}

/// The sizes of convolution `op`.
fn conv_of(op: &Op, params: &Flat, shapes: &[Shape]) -> ConvShape {
    match *op {
        Op::Conv {
            x,
            weight,
            k,
            stride,
            pad,
            ..
        } => conv_shape(params.layout(), shapes[x], weight, k, stride, pad),
        _ => unreachable!("asked for convolutions only"),
    }
}

/// A forward pass.
pub(crate) fn forward<'i>(pool: &mut Pool, job: Job<'_, 'i>, keep: Keep<'_>) -> Tape<'i> {
    let graph = job.graph;
    assert_eq!(job.inputs.count(), graph.inputs, "inputs of the network");
    let mut tape = Tape {
        graph: Arc::clone(graph),
        inputs: job.inputs,
        shapes: vec![Shape::default(); graph.values],
        values: vec![None; graph.values],
        norms: graph.norms.iter().map(|_| None).collect(),
        places: vec![None; graph.values],
        masks: (job.mode != Mode::Eval && graph.dropouts > 0).then_some(job.dropout),
        precision: job.precision,
    };
    for v in 0..graph.inputs {
        let (shape, data) = job.inputs.get(v).expect("as many inputs were given");
        assert_eq!(data.len(), shape.len(), "elements of input {v}");
        tape.shapes[v] = shape;
    }
    for (i, op) in graph.ops.iter().enumerate() {
        let out = op.out();
        tape.shapes[out] = op.shape(job.params.layout(), &tape.shapes);
        forward_op(
            pool,
            &mut tape,
            op,
            job.params,
            (&mut *job.buffers, job.mode),
        );
        for v in op.reads() {
            // A folded value's place is empty: what it is made of is what can be released.
            let v = graph.folded[v].map_or(v, |folded| folded.x);
            let kept = match keep {
                Keep::Values(wanted) => wanted.contains(&v),
                Keep::Backward => graph.kept[v],
            };
            if graph.last_read[v] == i && !kept {
                tape.release(pool, v);
            }
        }
    }
    tape
}

fn forward_op(
    pool: &mut Pool,
    tape: &mut Tape<'_>,
    op: &Op,
    params: &Flat,
    (buffers, mode): (&mut Flat, Mode),
) {
    let start = Instant::now();
    let out = op.out();
    let shape = tape.shapes[out];
    let sizes = |v: Value| {
        let Shape { h, w, c, .. } = tape.shapes[v];
        (h, w, c)
    };
    let note = |pool: &mut Pool| {
        let name = || format!("forward {} {} @{}", op.label(), shape.c, shape.h);
        pool.note(start, name, 0);
    };
    if let Op::BatchNorm { x, norm, relu, .. } = *op {
        let at = tape.graph.norms[norm];
        let run = normalisation(at, relu, params, buffers, tape.data(x), mode);
        if tape.graph.folded[out].is_none() {
            let mut data = pool.take(shape.len());
            norm::apply(tape.data(x), &run.scale, &run.shift, relu, &mut data);
            tape.values[out] = Some(Activation { shape, data });
        }
        tape.norms[norm] = Some(run);
        return note(pool);
    }
    let mut y = pool.take(shape.len());
    match *op {
        Op::Conv {
            x,
            residual,
            weight,
            bias,
            ..
        } => {
            let conv = conv_of(op, params, &tape.shapes);
            let add = match (residual, bias) {
                (None, None) => Add::Nothing,
                (Some(r), None) => Add::Other(tape.data(r)),
                (None, Some(b)) => Add::Bias(params.tensor(b)),
                (Some(_), Some(_)) => unreachable!("no network has a bias beside a residual"),
            };
            let w = params.tensor(weight);
            conv::forward(&conv, tape.precision, tape.source(x), w, add, &mut y);
            pool.note(start, || format!("forward {conv}"), conv.flops());
        }
        Op::BatchNorm { .. } => unreachable!("done above"),
        Op::Add { a, b, relu, .. } => map::add(tape.data(a), tape.data(b), relu, &mut y),
        Op::Map { x, function, .. } => map::apply(function, tape.data(x), &mut y),
        Op::MaxPool { x, window, .. } => {
            let mut places = pool.take_places(shape.len());
            pool::max(tape.data(x), sizes(x), window, &mut y, &mut places);
            tape.places[out] = Some(places);
        }
        Op::GlobalAveragePool { x, .. } => {
            let (h, w, c) = sizes(x);
            pool::global_average(tape.data(x), h * w, c, &mut y);
        }
        Op::AveragePool { x, rows, cols, .. } => {
            pool::adaptive_average(tape.data(x), sizes(x), (rows, cols), &mut y);
        }
        Op::Upsample {
            x, factor, smooth, ..
        } => {
            if smooth {
                assert_eq!(factor, 2, "the factor of bilinear upsampling");
                image::double(tape.data(x), sizes(x), &mut y);
            } else {
                image::repeat(tape.data(x), sizes(x), factor, &mut y);
            }
        }
        Op::Concat { a, b, c, .. } => {
            let mut from = 0;
            for v in [Some(a), Some(b), c].into_iter().flatten() {
                let part = tape.shapes[v].c;
                image::put_channels(tape.data(v), part, from, shape.c, &mut y);
                from += part;
            }
        }
        Op::PadEnd { x, .. } => image::pad_end(tape.data(x), sizes(x), &mut y),
        Op::Dropout {
            x,
            probability,
            layer,
            ..
        } => match tape.mask(layer) {
            Some(mask) => {
                let image = shape.len() / shape.n;
                dropout::apply(tape.data(x), image, probability, mask, &mut y);
            }
            None => y.copy_from_slice(tape.data(x)),
        },
        Op::Reshape { x, .. } => y.copy_from_slice(tape.data(x)),
        Op::Linear {
            x, weight, bias, ..
        } => {
            let inputs = tape.shapes[x].len() / shape.n;
            let (w, b) = (params.tensor(weight), params.tensor(bias));
            linear::forward(tape.data(x), w, b, inputs, &mut y);
        }
    }
    if !matches!(op, Op::Conv { .. }) {
        note(pool);
    }
    tape.values[out] = Some(Activation { shape, data: y });
}

/// Chooses the statistics of a batch normalisation, moving the running ones where `mode` asks for it.
fn normalisation(
    at: Norm,
    relu: bool,
    params: &Flat,
    buffers: &mut Flat,
    x: &[f32],
    mode: Mode,
) -> NormRun {
    let batch = mode != Mode::Eval;
    let (mean, var) = if batch {
        let rows = x.len() / at.channels;
        let (mean, var) = norm::statistics(x, at.channels);
        if mode == Mode::Train {
            let momentum = at.momentum;
            // One row has no unbiased variance; PyTorch refuses that case, here the biased one (0) is used.
            let unbiased = rows as f32 / (rows.max(2) - 1) as f32;
            for (r, m) in buffers.tensor_mut(at.mean).iter_mut().zip(&mean) {
                *r = (1.0 - momentum) * *r + momentum * m;
            }
            for (r, v) in buffers.tensor_mut(at.var).iter_mut().zip(&var) {
                *r = (1.0 - momentum) * *r + momentum * (v * unbiased);
            }
        }
        (mean, var)
    } else {
        (
            buffers.tensor(at.mean).to_vec(),
            buffers.tensor(at.var).to_vec(),
        )
    };
    let invstd: Vec<f32> = var.iter().map(|v| 1.0 / (v + EPS).sqrt()).collect();
    let (gamma, beta) = (params.tensor(at.gamma), params.tensor(at.beta));
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

/// What a backward pass is asked for.
pub(crate) struct Wanted<'a> {
    /// Where the parameters' gradients go, if they are wanted.
    pub(crate) grads: Option<&'a mut Flat>,
    /// Whether the gradient by the first input is.
    pub(crate) input: bool,
}

/// A backward pass from the gradients by some values; gives the gradient by the first input, if it is wanted.
pub(crate) fn backward(
    pool: &mut Pool,
    mut tape: Tape<'_>,
    params: &Flat,
    from: impl IntoIterator<Item = (Value, Vec<f32>)>,
    mut wanted: Wanted<'_>,
) -> Option<Vec<f32>> {
    let graph = Arc::clone(&tape.graph);
    let mut gradients: Vec<Option<Vec<f32>>> = vec![None; graph.values];
    for (v, gradient) in from {
        assert_eq!(
            gradient.len(),
            tape.shapes[v].len(),
            "elements of a gradient"
        );
        pool.join(&mut gradients[v], gradient);
    }
    for op in graph.ops.iter().rev() {
        match gradients[op.out()].take() {
            Some(dy) => backward_op(pool, &mut tape, op, params, dy, &mut gradients, &mut wanted),
            None => {
                // Nothing that was asked for depends on this operation.
                if let Some(grads) = wanted.grads.as_deref_mut() {
                    for parameter in parameters(op, &graph).into_iter().flatten() {
                        grads.tensor_mut(parameter).fill(0.0);
                    }
                }
            }
        }
        // The operation's result has been used by every reader and now by its own backward step.
        tape.release(pool, op.out());
    }
    let input = gradients[0].take();
    if wanted.input && input.is_none() {
        return Some(vec![0.0; tape.shapes[0].len()]);
    }
    input
}

/// The parameters of an operation.
fn parameters(op: &Op, graph: &Graph) -> [Option<usize>; 2] {
    match *op {
        Op::Conv { weight, bias, .. } => [Some(weight), bias],
        Op::Linear { weight, bias, .. } => [Some(weight), Some(bias)],
        Op::BatchNorm { norm, .. } => {
            let at = graph.norms[norm];
            [Some(at.gamma), Some(at.beta)]
        }
        _ => [None, None],
    }
}

/// Gives the gradient `dy` of an operation's result on to what it read.
fn backward_op(
    pool: &mut Pool,
    tape: &mut Tape<'_>,
    op: &Op,
    params: &Flat,
    mut dy: Vec<f32>,
    gradients: &mut [Option<Vec<f32>>],
    wanted: &mut Wanted<'_>,
) {
    let start = Instant::now();
    let out = op.out();
    let shape = tape.shapes[out];
    let inputs = tape.graph.inputs;
    let wants = |v: Value| v >= inputs || (v == 0 && wanted.input);
    let grads = wanted.grads.as_deref_mut();
    let sizes = |v: Value| {
        let Shape { h, w, c, .. } = tape.shapes[v];
        (h, w, c)
    };
    match *op {
        Op::Conv {
            x,
            residual,
            weight,
            bias,
            ..
        } => {
            let conv = conv_of(op, params, &tape.shapes);
            if let Some(grads) = grads {
                let (source, dw) = (tape.source(x), grads.tensor_mut(weight));
                conv::weight_gradient(&conv, tape.precision, source, &dy, dw);
                if let Some(bias) = bias {
                    conv::bias_gradient(&dy, grads.tensor_mut(bias));
                }
                pool.note(start, || format!("weight gradient {conv}"), conv.flops());
            }
            if wants(x) {
                let start = Instant::now();
                let w = params.tensor(weight);
                let precision = tape.precision;
                if let Some(dx) = &mut gradients[x] {
                    conv::input_gradient(&conv, precision, &dy, w, Add::Destination, dx);
                } else {
                    let mut dx = pool.take(conv.input_len());
                    conv::input_gradient(&conv, precision, &dy, w, Add::Nothing, &mut dx);
                    gradients[x] = Some(dx);
                }
                pool.note(start, || format!("input gradient {conv}"), conv.flops());
            }
            match residual {
                Some(r) if wants(r) => pool.join(&mut gradients[r], dy),
                _ => pool.give(dy),
            }
            return;
        }
        Op::BatchNorm { x, norm, .. } => {
            let record = tape.norms[norm]
                .take()
                .expect("the forward pass kept its statistics");
            let saved = record.saved();
            let data = tape.data(x);
            let sums = (record.batch || grads.is_some())
                .then(|| norm::parameter_gradients(&dy, data, &saved));
            if let (Some(grads), Some((dbeta, dgamma))) = (grads, &sums) {
                let at = tape.graph.norms[norm];
                grads.tensor_mut(at.gamma).copy_from_slice(dgamma);
                grads.tensor_mut(at.beta).copy_from_slice(dbeta);
            }
            let batch = sums
                .as_ref()
                .filter(|_| record.batch)
                .map(|(dbeta, dgamma)| (dbeta.as_slice(), dgamma.as_slice()));
            if !wants(x) {
                pool.give(dy);
            } else if let Some(dx) = &mut gradients[x] {
                norm::add_input_gradient(&dy, data, &saved, batch, dx);
                pool.give(dy);
            } else {
                norm::input_gradient_in_place(&mut dy, data, &saved, batch);
                gradients[x] = Some(dy);
            }
        }
        Op::Add { a, b, relu, .. } => {
            if relu {
                map::gradient_in_place(map::Function::Relu, tape.data(out), &mut dy);
            }
            if wants(b) {
                pool.join_copy(&mut gradients[b], &dy);
            }
            give_on(pool, gradients, a, wants(a), dy);
        }
        Op::Map { x, function, .. } => {
            // A scaling needs nothing of the forward pass.
            let y = match function {
                map::Function::Affine { .. } => &[],
                _ => tape.data(out),
            };
            map::gradient_in_place(function, y, &mut dy);
            give_on(pool, gradients, x, wants(x), dy);
        }
        Op::Dropout {
            x,
            probability,
            layer,
            ..
        } => match tape.mask(layer) {
            Some(mask) => {
                let mut dx = pool.take(dy.len());
                dropout::apply(&dy, shape.len() / shape.n, probability, mask, &mut dx);
                pool.give(dy);
                give_on(pool, gradients, x, wants(x), dx);
            }
            None => give_on(pool, gradients, x, wants(x), dy),
        },
        Op::Reshape { x, .. } => give_on(pool, gradients, x, wants(x), dy),
        Op::Concat { a, b, c, .. } => {
            let mut from = 0;
            for v in [Some(a), Some(b), c].into_iter().flatten() {
                let part = tape.shapes[v].c;
                if wants(v) {
                    let mut dx = pool.take(tape.shapes[v].len());
                    image::take_channels(&dy, shape.c, from, part, &mut dx);
                    pool.join(&mut gradients[v], dx);
                }
                from += part;
            }
            pool.give(dy);
        }
        Op::Linear {
            x, weight, bias, ..
        } => {
            if let Some(grads) = grads {
                assert_eq!(weight + 1, bias, "the bias follows its weight");
                let (dw, db) = grads.pair_mut(weight);
                linear::weight_gradient(tape.data(x), &dy, dw, db);
            }
            if wants(x) {
                let mut dx = pool.take(tape.shapes[x].len());
                linear::input_gradient(params.tensor(weight), &dy, shape.c, &mut dx);
                pool.join(&mut gradients[x], dx);
            }
            pool.give(dy);
        }
        Op::MaxPool { x, .. }
        | Op::GlobalAveragePool { x, .. }
        | Op::AveragePool { x, .. }
        | Op::Upsample { x, .. }
        | Op::PadEnd { x, .. } => {
            if wants(x) {
                let mut dx = pool.take(tape.shapes[x].len());
                match *op {
                    Op::MaxPool { window, .. } => {
                        let places = tape.places[out]
                            .as_deref()
                            .expect("the forward pass kept its places");
                        pool::max_gradient(&dy, places, sizes(x), window, &mut dx);
                    }
                    Op::AveragePool { rows, cols, .. } => {
                        pool::adaptive_average_gradient(&dy, sizes(x), (rows, cols), &mut dx);
                    }
                    Op::Upsample { smooth: true, .. } => {
                        image::double_gradient(&dy, sizes(x), &mut dx);
                    }
                    Op::Upsample { factor, .. } => {
                        image::repeat_gradient(&dy, sizes(x), factor, &mut dx);
                    }
                    Op::PadEnd { .. } => image::pad_end_gradient(&dy, sizes(x), &mut dx),
                    _ => {
                        let (h, w, c) = sizes(x);
                        pool::global_average_gradient(&dy, h * w, c, &mut dx);
                    }
                }
                pool.join(&mut gradients[x], dx);
            }
            pool.give(dy);
        }
    }
    let name = || format!("backward {} {} @{}", op.label(), shape.c, shape.h);
    pool.note(start, name, 0);
}

/// Gives a gradient on where it is wanted, and its buffer back where it is not.
fn give_on(
    pool: &mut Pool,
    gradients: &mut [Option<Vec<f32>>],
    to: Value,
    wanted: bool,
    gradient: Vec<f32>,
) {
    if wanted {
        pool.join(&mut gradients[to], gradient);
    } else {
        pool.give(gradient);
    }
}
