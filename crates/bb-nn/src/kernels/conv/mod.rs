//! Two-dimensional convolution: forward, input gradient and weight gradient.
//!
//! Three forms: `direct` (any shape), `weight` (its weight gradient) and `winograd` (3x3 of stride 1, where it is
//! faster). The shape alone decides which one runs.
//!
//! Layouts: images `[n, h, w, c]` (NHWC), weights `[k, k, cin, cout]` (HWIO), all `f32`.
//! Work is cut by shape alone and partial sums are added in a fixed order, so results do not depend on the number of
//! threads.

mod direct;
#[cfg(test)]
mod tests;
mod weight;
mod winograd;

use super::precision::Precision;
use pulp::Simd;

/// Sizes of a square convolution with equal padding on all sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images in the batch.
    pub n: usize,
    /// Input height in pixels.
    pub h: usize,
    /// Input width in pixels.
    pub w: usize,
    /// Input channels.
    pub cin: usize,
    /// Output channels.
    pub cout: usize,
    /// Kernel side.
    pub k: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zero padding on each side.
    pub pad: usize,
}

impl ConvShape {
    /// Output height in pixels.
    pub fn oh(&self) -> usize {
        (self.h + 2 * self.pad - self.k) / self.stride + 1
    }
    /// Output width in pixels.
    pub fn ow(&self) -> usize {
        (self.w + 2 * self.pad - self.k) / self.stride + 1
    }
    /// Floats of the input `[n, h, w, cin]`.
    pub fn input_len(&self) -> usize {
        self.n * self.h * self.w * self.cin
    }
    /// Floats of the output `[n, oh, ow, cout]`.
    pub fn output_len(&self) -> usize {
        self.n * self.oh() * self.ow() * self.cout
    }
    /// Floats of the weights `[k, k, cin, cout]`.
    pub fn weight_len(&self) -> usize {
        self.k * self.k * self.cin * self.cout
    }
    /// Multiply-adds times two of one forward pass in direct form.
    pub fn flops(&self) -> usize {
        2 * self.output_len() * self.k * self.k * self.cin
    }
    /// Whether the sizes describe a convolution this module computes.
    pub fn is_valid(&self) -> bool {
        let Self {
            n,
            h,
            w,
            cin,
            cout,
            k,
            stride,
            pad,
        } = *self;
        [n, h, w, cin, cout, k, stride].iter().all(|&v| v > 0)
            && h + 2 * pad >= k
            && w + 2 * pad >= k
            && pad < k
    }
}

impl std::fmt::Display for ConvShape {
    /// `conv KxK/stride cin->cout @side`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            k,
            stride,
            cin,
            cout,
            h,
            ..
        } = self;
        write!(f, "conv {k}x{k}/{stride} {cin}->{cout} @{h}")
    }
}

/// What a kernel adds to the result it writes.
#[derive(Clone, Copy, Debug)]
pub enum Add<'a> {
    /// Nothing: the destination is overwritten.
    Nothing,
    /// Another tensor of the destination's shape.
    Other(&'a [f32]),
    /// One number for each channel of the destination.
    Bias(&'a [f32]),
    /// What the destination holds already.
    Destination,
}

/// What a convolution reads: a tensor, or what batch normalisation (and ReLU) make of it.
///
/// Normalising while the convolution lays out its input saves a pass over memory and the tensor it would fill.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// `[n, h, w, c]`.
    pub data: &'a [f32],
    /// What is applied to each element first.
    pub affine: Option<Affine<'a>>,
}

/// `x * scale + shift` per channel, then ReLU if `relu`.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// Factor of each channel.
    pub scale: &'a [f32],
    /// Summand of each channel.
    pub shift: &'a [f32],
    /// Whether negative results become 0.
    pub relu: bool,
}

impl<'a> From<&'a [f32]> for Source<'a> {
    fn from(data: &'a [f32]) -> Self {
        Self { data, affine: None }
    }
}

impl<'a> From<&'a Vec<f32>> for Source<'a> {
    fn from(data: &'a Vec<f32>) -> Self {
        data.as_slice().into()
    }
}

impl<'a> Source<'a> {
    /// `len` elements from `start` on, which must be the first of a pixel.
    fn part(&self, start: usize, len: usize) -> Self {
        Self {
            data: &self.data[start..][..len],
            affine: self.affine,
        }
    }

    /// The affine map, after checking that it has `c` channels.
    fn channels(&self, c: usize) -> Option<Affine<'a>> {
        if let Some(a) = self.affine {
            assert!(
                a.scale.len() == c && a.shift.len() == c,
                "an affine map of {c} channels"
            );
        }
        self.affine
    }
}

impl Affine<'_> {
    /// The map of the channels from `c` on, as vectors.
    #[inline(always)]
    fn lanes<S: Simd>(&self, simd: S, c: usize) -> AffineLanes<S> {
        AffineLanes {
            scale: bytemuck::pod_read_unaligned(bytemuck::cast_slice(
                &self.scale[c..c + S::F32_LANES],
            )),
            shift: bytemuck::pod_read_unaligned(bytemuck::cast_slice(
                &self.shift[c..c + S::F32_LANES],
            )),
            floor: simd.splat_f32s(if self.relu { 0.0 } else { f32::NEG_INFINITY }),
        }
    }
}

/// An affine map of one vector of channels.
struct AffineLanes<S: Simd> {
    scale: S::f32s,
    shift: S::f32s,
    floor: S::f32s,
}

impl<S: Simd> AffineLanes<S> {
    #[inline(always)]
    fn apply(&self, simd: S, x: S::f32s) -> S::f32s {
        let y = simd.mul_add_e_f32s(x, self.scale, self.shift);
        // A comparison, so that NaN stays NaN.
        simd.select_f32s(simd.less_than_f32s(y, self.floor), self.floor, y)
    }
}

/// `y = conv(x, w) [+ add]`.
///
/// `x` is `[n, h, w, cin]`, `w` is `[k, k, cin, cout]`, `y` and what is added are `[n, oh, ow, cout]`.
///
/// In `bf16` the products of Winograd's form and of inputs with few channels stay in `f32`.
pub fn forward<'a>(
    s: &ConvShape,
    precision: Precision,
    x: impl Into<Source<'a>>,
    w: &[f32],
    add: Add<'_>,
    y: &mut [f32],
) {
    let x = x.into();
    check(s, x.data.len(), w.len(), y.len());
    if winograd::serves(s) {
        winograd::forward(s, x, w, add, y);
    } else {
        direct::forward(s, direct_precision(s, precision), x, w, add, y);
    }
}

/// `dx = d/dx conv(x, w) * dy [+ add]`; shapes as in [`forward`].
pub fn input_gradient(
    s: &ConvShape,
    precision: Precision,
    dy: &[f32],
    w: &[f32],
    add: Add<'_>,
    dx: &mut [f32],
) {
    check(s, dx.len(), w.len(), dy.len());
    if winograd::serves(s) {
        winograd::input_gradient(s, precision, dy, w, add, dx);
    } else {
        direct::input_gradient(s, direct_precision(s, precision), dy, w, add, dx);
    }
}

/// `dw = d/dw conv(x, w) * dy`; shapes as in [`forward`]. Overwrites `dw`.
pub fn weight_gradient<'a>(
    s: &ConvShape,
    precision: Precision,
    x: impl Into<Source<'a>>,
    dy: &[f32],
    dw: &mut [f32],
) {
    let x = x.into();
    check(s, x.data.len(), dw.len(), dy.len());
    if winograd::serves(s) {
        winograd::weight::gradient(s, precision, x, dy, dw);
    } else {
        weight::gradient(s, direct_precision(s, precision), x, dy, dw);
    }
}

/// `db`, the gradient of a bias: the sum of `dy` (`[rows, channels]`) over its rows. Overwrites `db`.
pub fn bias_gradient(dy: &[f32], db: &mut [f32]) {
    db.copy_from_slice(&super::norm::column_sums(dy, db.len()));
}

/// Images as inputs stay in `f32`: three channels fill half of their words only, which costs more than it gains.
fn direct_precision(s: &ConvShape, precision: Precision) -> Precision {
    if s.cin < 8 { Precision::F32 } else { precision }
}

/// The length of what is added to `len` results of `channels` channels.
fn check_add(add: Add<'_>, len: usize, channels: usize) {
    match add {
        Add::Nothing | Add::Destination => {}
        Add::Other(other) => assert_eq!(other.len(), len, "length of the tensor to add"),
        Add::Bias(bias) => assert_eq!(bias.len(), channels, "length of the bias"),
    }
}

fn check(s: &ConvShape, x: usize, w: usize, y: usize) {
    assert!(s.is_valid(), "not a convolution: {s:?}");
    assert_eq!(x, s.input_len(), "input length of {s:?}");
    assert_eq!(w, s.weight_len(), "weight length of {s:?}");
    assert_eq!(y, s.output_len(), "output length of {s:?}");
}
