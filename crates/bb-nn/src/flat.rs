//! Many named tensors in one vector.
//!
//! Parameters, gradients and optimiser state of a network have the same [`Layout`], so that an optimiser step, a
//! perturbation or a norm is one pass over contiguous memory, whatever the number of tensors.

#[cfg(feature = "cuda")]
use crate::cuda::resident::{self as cuda, Held};
use crate::kernels::vector;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// How a tensor's elements are ordered inside the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As in PyTorch.
    Plain,
    /// A convolution's weight: PyTorch's `[out, in, kh, kw]`, kept as `[kh, kw, in, out]`.
    Hwio,
    /// The weight of a linear layer behind an image of this many pixels: PyTorch's columns `[channel, pixel]`, kept as
    /// `[pixel, channel]`.
    Flattened {
        /// Rows times columns of the image.
        pixels: usize,
    },
}

/// Name, shape and place of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// PyTorch's name.
    pub name: String,
    /// PyTorch's shape.
    pub shape: Vec<usize>,
    /// Order of the elements.
    pub order: Order,
    /// Place in the vector.
    pub range: Range<usize>,
}

/// The tensors of a [`Flat`] vector, in PyTorch's registration order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Layout {
    entries: Vec<Entry>,
    len: usize,
}

impl Layout {
    /// Tensors of these names and shapes, in this order: for variables that are no network's.
    pub fn plain(tensors: &[(&str, &[usize])]) -> Self {
        let mut layout = Self::default();
        for (name, shape) in tensors {
            layout.push(name, shape, Order::Plain);
        }
        layout
    }

    pub(crate) fn push(&mut self, name: &str, shape: &[usize], order: Order) -> usize {
        let size: usize = shape.iter().product();
        self.entries.push(Entry {
            name: name.to_owned(),
            shape: shape.to_vec(),
            order,
            range: self.len..self.len + size,
        });
        self.len += size;
        self.entries.len() - 1
    }

    /// The tensors in order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Index of the tensor called `name`.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|e| e.name == name)
    }
}

/// Over what the norm of a direction is taken when a step of given length is made along it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormScope {
    /// Each tensor moves by the length.
    PerTensor,
    /// All tensors together move by the length.
    Global,
}

/// The factor on each tensor of a direction that makes it `length` long.
///
/// `norms[i]` is the L2 norm of tensor `i`. A tensor of norm 0 gets 0, where a plain division would give NaN.
fn normalising_factors(norms: &[f64], length: f64, scope: NormScope) -> Vec<f32> {
    let factor = |norm: f64| {
        if norm == 0.0 {
            0.0
        } else {
            (length / norm) as f32
        }
    };
    match scope {
        NormScope::PerTensor => norms.iter().map(|&norm| factor(norm)).collect(),
        NormScope::Global => {
            let total = norms.iter().map(|norm| norm * norm).sum::<f64>().sqrt();
            vec![factor(total); norms.len()]
        }
    }
}

/// The elements of a [`Flat`].
#[cfg(not(feature = "cuda"))]
#[derive(Debug)]
struct Held(Vec<f32>);

#[cfg(not(feature = "cuda"))]
impl Held {
    fn new(data: Vec<f32>) -> Self {
        Self(data)
    }

    fn get(&self, _: &Layout) -> &[f32] {
        &self.0
    }

    fn get_mut(&mut self, _: &Layout) -> &mut [f32] {
        &mut self.0
    }
}

/// One contiguous `f32` vector of named tensors.
///
/// Where it is used on a GPU it lives there, and comes to the host when somebody looks at it.
#[derive(Debug)]
pub struct Flat {
    layout: Arc<Layout>,
    data: Held,
}

impl Clone for Flat {
    fn clone(&self) -> Self {
        Self::from_vec(&self.layout, self.data().to_vec())
    }
}

impl Flat {
    /// A vector of zeros.
    pub fn zeros(layout: &Arc<Layout>) -> Self {
        Self::from_vec(layout, vec![0.0; layout.len])
    }

    fn from_vec(layout: &Arc<Layout>, data: Vec<f32>) -> Self {
        Self {
            layout: Arc::clone(layout),
            data: Held::new(data),
        }
    }

    /// The tensors' names, shapes and places.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// All elements, tensor after tensor, in the engine's order.
    pub fn data(&self) -> &[f32] {
        self.data.get(&self.layout)
    }

    /// See [`Flat::data`].
    pub fn data_mut(&mut self) -> &mut [f32] {
        self.data.get_mut(&self.layout)
    }

    /// Where it is held.
    #[cfg(feature = "cuda")]
    pub(crate) fn held(&self) -> &Held {
        &self.data
    }

    /// See [`Flat::held`].
    #[cfg(feature = "cuda")]
    pub(crate) fn held_mut(&mut self) -> &mut Held {
        &mut self.data
    }

    /// Number of tensors.
    pub fn tensors(&self) -> usize {
        self.layout.entries.len()
    }

    /// Elements of tensor `i`, in the engine's order.
    pub fn tensor(&self, i: usize) -> &[f32] {
        &self.data()[self.layout.entries[i].range.clone()]
    }

    /// See [`Flat::tensor`].
    pub fn tensor_mut(&mut self, i: usize) -> &mut [f32] {
        let range = self.layout.entries[i].range.clone();
        &mut self.data_mut()[range]
    }

    /// Tensors `i` and `i + 1` at once.
    pub(crate) fn pair_mut(&mut self, i: usize) -> (&mut [f32], &mut [f32]) {
        let (first, second) = (
            self.layout.entries[i].range.clone(),
            self.layout.entries[i + 1].range.clone(),
        );
        self.data_mut()[first.start..second.end].split_at_mut(first.len())
    }

    /// Copies all elements of `other`, which must have the same layout.
    pub fn copy_from(&mut self, other: &Self) {
        self.check(other);
        #[cfg(feature = "cuda")]
        if let Some(device) = other.data.current_device() {
            device.keep(cuda::copy(
                &device,
                &self.layout,
                &mut self.data,
                &other.data,
            ));
            return;
        }
        self.data_mut().copy_from_slice(other.data());
    }

    /// `self += a * other`.
    pub fn add_scaled(&mut self, a: f32, other: &Self) {
        self.check(other);
        #[cfg(feature = "cuda")]
        if let Some(device) = self.data.current_device() {
            let (layout, data) = (&self.layout, &mut self.data);
            device.keep(cuda::add_scaled(&device, layout, data, a, &other.data));
            return;
        }
        vector::add_scaled(self.data_mut(), a, other.data());
    }

    /// `self += length * direction / |direction|`.
    ///
    /// Where the direction is 0 nothing moves. The length is taken by [`NormScope`].
    pub fn add_normalised(&mut self, direction: &Self, length: f64, scope: NormScope) {
        self.check(direction);
        #[cfg(feature = "cuda")]
        if let Some(device) = self.data.current_device() {
            let (layout, data) = (&self.layout, &mut self.data);
            let whole = scope == NormScope::Global;
            let moved =
                cuda::add_normalised(&device, layout, data, &direction.data, length as f32, whole);
            device.keep(moved);
            return;
        }
        let factors = normalising_factors(&direction.norm_l2_per_tensor(), length, scope);
        for (i, factor) in factors.into_iter().enumerate() {
            vector::add_scaled(self.tensor_mut(i), factor, direction.tensor(i));
        }
    }

    /// Scales all elements by `min(1, max_norm / (norm + 1e-6))` with their L2 norm, as PyTorch's `clip_grad_norm_`.
    pub fn clip_norm(&mut self, max_norm: f64) {
        #[cfg(feature = "cuda")]
        if let Some(device) = self.data.current_device() {
            let (layout, data) = (&self.layout, &mut self.data);
            device.keep(cuda::clip_norm(&device, layout, data, max_norm as f32));
            return;
        }
        let factor = max_norm / (self.norm_l2() + 1e-6);
        if factor < 1.0 {
            vector::scale(self.data_mut(), factor as f32);
        }
    }

    /// Moves every element into `lo..=hi`; NaN stays NaN.
    pub fn clamp(&mut self, lo: f32, hi: f32) {
        #[cfg(feature = "cuda")]
        if let Some(device) = self.data.current_device() {
            device.keep(cuda::clamp(&device, &self.layout, &mut self.data, lo, hi));
            return;
        }
        for v in self.data_mut() {
            *v = v.clamp(lo, hi);
        }
    }

    /// `self += a * sign(direction)`, then into `-limit..=limit`; the sign of 0 is 0.
    ///
    /// The step of adversarial perturbations of neurons or inputs (Wu and Wang, NeurIPS 2021).
    pub fn sign_step(&mut self, direction: &Self, a: f32, limit: f32) {
        self.check(direction);
        #[cfg(feature = "cuda")]
        if let Some(device) = self.data.current_device() {
            let (layout, data) = (&self.layout, &mut self.data);
            let moved = cuda::sign_step(&device, layout, data, &direction.data, a, limit);
            device.keep(moved);
            return;
        }
        for (v, d) in self.data_mut().iter_mut().zip(direction.data()) {
            // `signum` of 0 is 1.
            let sign = if *d == 0.0 { 0.0 } else { d.signum() };
            *v = (*v + a * sign).clamp(-limit, limit);
        }
    }

    /// `self = a * self + b * other`.
    pub fn mix(&mut self, a: f32, other: &Self, b: f32) {
        self.check(other);
        #[cfg(feature = "cuda")]
        if let Some(device) = self.data.current_device() {
            let (layout, data) = (&self.layout, &mut self.data);
            device.keep(cuda::mix(&device, layout, data, a, &other.data, b));
            return;
        }
        vector::mix(self.data_mut(), a, other.data(), b);
    }

    /// `self *= a`.
    pub fn scale(&mut self, a: f32) {
        #[cfg(feature = "cuda")]
        if let Some(device) = self.data.current_device() {
            device.keep(cuda::scale(&device, &self.layout, &mut self.data, a));
            return;
        }
        vector::scale(self.data_mut(), a);
    }

    /// L2 norm over all elements.
    pub fn norm_l2(&self) -> f64 {
        #[cfg(feature = "cuda")]
        if let Some(device) = self.data.current_device() {
            let sum = cuda::sum_of_squares(&device, &self.layout, &self.data);
            return device.keep(sum).unwrap_or(f64::NAN).sqrt();
        }
        vector::sum_of_squares(self.data()).sqrt()
    }

    /// L2 norm of each tensor.
    pub fn norm_l2_per_tensor(&self) -> Vec<f64> {
        #[cfg(feature = "cuda")]
        if let Some(device) = self.data.current_device() {
            let sums = cuda::sums_of_squares(&device, &self.layout, &self.data);
            let sums = device.keep(sums);
            let sums = sums.unwrap_or_else(|| vec![f64::NAN; self.tensors()]);
            return sums.into_iter().map(f64::sqrt).collect();
        }
        (0..self.tensors())
            .map(|i| vector::sum_of_squares(self.tensor(i)).sqrt())
            .collect()
    }

    /// Name of the first tensor that holds NaN or an infinity.
    pub fn first_not_finite(&self) -> Option<&str> {
        #[cfg(feature = "cuda")]
        if let Some(device) = self.data.current_device() {
            let finite = cuda::all_finite(&device, &self.layout, &self.data);
            if device.keep(finite) == Some(true) {
                return None;
            }
        }
        (0..self.tensors())
            .find(|&i| !vector::all_finite(self.tensor(i)))
            .map(|i| self.layout.entries[i].name.as_str())
    }

    /// Sum of absolute values of each output channel (the first axis in PyTorch's shape) of tensor `i`.
    pub fn channel_l1(&self, i: usize) -> Vec<f32> {
        let entry = &self.layout.entries[i];
        let channels = entry.shape.first().copied().unwrap_or(1);
        #[cfg(feature = "cuda")]
        if let Some(device) = self.data.current_device() {
            let sums = device.keep(crate::cuda::neurons::l1(&device, self, i));
            return sums.unwrap_or_else(|| vec![f32::NAN; channels]);
        }
        let data = self.tensor(i);
        match entry.order {
            Order::Plain | Order::Flattened { .. } => data
                .chunks_exact(data.len() / channels)
                .map(|row| row.iter().map(|v| v.abs()).sum())
                .collect(),
            Order::Hwio => {
                let mut sums = vec![0f32; channels];
                for row in data.chunks_exact(channels) {
                    for (s, v) in sums.iter_mut().zip(row) {
                        *s += v.abs();
                    }
                }
                sums
            }
        }
    }

    /// Tensor `i` in PyTorch's order and shape.
    pub fn to_tensor(&self, i: usize) -> Result<Tensor, candle_core::Error> {
        let entry = &self.layout.entries[i];
        Tensor::from_vec(self.to_plain(i), entry.shape.as_slice(), &Device::Cpu)
    }

    /// Elements of tensor `i` in PyTorch's order.
    pub fn to_plain(&self, i: usize) -> Vec<f32> {
        let entry = &self.layout.entries[i];
        let data = self.tensor(i);
        match (entry.order, entry.shape.as_slice()) {
            (Order::Hwio, &[out, inp, kh, kw]) => reorder(data, out, inp, kh * kw, true),
            (Order::Flattened { pixels }, &[_, columns]) => {
                transposed_rows(data, columns, columns / pixels)
            }
            _ => data.to_vec(),
        }
    }

    /// Sets tensor `i` from elements in PyTorch's order.
    ///
    /// # Panics
    /// If the length differs.
    pub fn set_plain(&mut self, i: usize, plain: &[f32]) {
        let entry = &self.layout.entries[i];
        assert_eq!(
            plain.len(),
            entry.range.len(),
            "elements of `{}`",
            entry.name
        );
        let range = entry.range.clone();
        match (entry.order, entry.shape.as_slice()) {
            (Order::Hwio, &[out, inp, kh, kw]) => {
                let values = reorder(plain, out, inp, kh * kw, false);
                self.data_mut()[range].copy_from_slice(&values);
            }
            (Order::Flattened { pixels }, &[_, columns]) => {
                let values = transposed_rows(plain, columns, pixels);
                self.data_mut()[range].copy_from_slice(&values);
            }
            _ => self.data_mut()[range].copy_from_slice(plain),
        }
    }

    fn check(&self, other: &Self) {
        assert!(
            Arc::ptr_eq(&self.layout, &other.layout) || self.layout == other.layout,
            "two vectors of different networks"
        );
    }
}

/// `[out, in, taps]` to `[taps, in, out]`, or back.
fn reorder(src: &[f32], out: usize, inp: usize, taps: usize, to_plain: bool) -> Vec<f32> {
    let mut dst = vec![0f32; src.len()];
    for o in 0..out {
        for i in 0..inp {
            for t in 0..taps {
                let plain = (o * inp + i) * taps + t;
                let hwio = (t * inp + i) * out + o;
                if to_plain {
                    dst[plain] = src[hwio];
                } else {
                    dst[hwio] = src[plain];
                }
            }
        }
    }
    dst
}

/// Each row of `columns` elements, seen as a matrix of lines of `width` elements, transposed.
fn transposed_rows(src: &[f32], columns: usize, width: usize) -> Vec<f32> {
    let mut dst = vec![0f32; src.len()];
    let height = columns / width;
    dst.par_chunks_exact_mut(columns)
        .zip(src.par_chunks_exact(columns))
        .for_each(|(dst, src)| {
            for (y, line) in src.chunks_exact(width).enumerate() {
                for (x, v) in line.iter().enumerate() {
                    dst[x * height + y] = *v;
                }
            }
        });
    dst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_no_network_have_names_shapes_and_places() {
        let layout = Layout::plain(&[("mask", &[1, 2]), ("pattern", &[3, 1, 2])]);
        let mut flat = Flat::zeros(&Arc::new(layout));
        assert_eq!((flat.tensors(), flat.data().len()), (2, 8));
        assert_eq!(flat.layout().position("pattern"), Some(1));
        flat.set_plain(1, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(flat.data(), [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let tensor = flat.to_tensor(1).expect("on the CPU");
        assert_eq!(tensor.dims(), [3, 1, 2]);
    }

    #[test]
    fn a_tensor_without_direction_does_not_move() {
        assert_eq!(
            normalising_factors(&[2.0, 0.0], 0.5, NormScope::PerTensor),
            [0.25, 0.0]
        );
        assert_eq!(
            normalising_factors(&[3.0, 4.0, 0.0], 0.5, NormScope::Global),
            [0.1, 0.1, 0.1]
        );
        assert_eq!(
            normalising_factors(&[0.0, 0.0], 0.5, NormScope::Global),
            [0.0, 0.0]
        );
    }
}
