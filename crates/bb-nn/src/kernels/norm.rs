//! Batch normalisation over the rows of `[rows, c]`, with an optional ReLU behind it.
//!
//! Forward is `y = relu(x * scale + shift)` with `scale = gamma * invstd` and `shift = beta - mean * scale`.
//! Backward recomputes the sign of the pre-activation from `x` by the same expression, so `y` need not be kept for
//! it, and the gradient of ReLU at exactly 0 is 0, as in PyTorch.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Floats of one parallel piece: fits the second-level cache together with its gradient.
const PIECE: usize = 1 << 15;

/// Rows whose sums stay in `f32` before they go to `f64`; a block of two tensors fits the first-level cache.
fn block(c: usize) -> usize {
    (4096 / c).clamp(4, 64)
}

/// Adds `sum` to `total` and clears it.
#[inline(always)]
fn flush(sum: &mut [f32], total: &mut [f64]) {
    for (t, s) in total.iter_mut().zip(sum) {
        *t += f64::from(*s);
        *s = 0.0;
    }
}

fn piece(c: usize) -> usize {
    (PIECE / c).max(1) * c
}

/// Mean and biased variance of each channel over the rows of `x` (`[rows, c]`).
///
/// Blocks of rows are summed in `f32`, everything above them in `f64`, and each piece is reduced around its own mean
/// (joined by Chan et al.'s update), so the variance does not cancel for channels with a large mean.
pub fn statistics(x: &[f32], c: usize) -> (Vec<f32>, Vec<f32>) {
    assert!(
        c > 0 && !x.is_empty() && x.len().is_multiple_of(c),
        "rows of {c} channels"
    );
    let parts: Vec<(usize, Vec<f64>, Vec<f64>)> = x
        .par_chunks(piece(c))
        .map(|x| Arch::new().dispatch(PieceStatistics { x, c }))
        .collect();
    let mut count = 0f64;
    let mut mean = vec![0f64; c];
    let mut m2 = vec![0f64; c];
    for (rows, part_mean, part_m2) in &parts {
        let rows = *rows as f64;
        let total = count + rows;
        for i in 0..c {
            let delta = part_mean[i] - mean[i];
            mean[i] += delta * rows / total;
            m2[i] += part_m2[i] + delta * delta * count * rows / total;
        }
        count = total;
    }
    (
        mean.iter().map(|v| *v as f32).collect(),
        m2.iter().map(|v| (v / count) as f32).collect(),
    )
}

/// Rows, mean and sum of squared deviations of one piece.
struct PieceStatistics<'a> {
    x: &'a [f32],
    c: usize,
}

impl WithSimd for PieceStatistics<'_> {
    type Output = (usize, Vec<f64>, Vec<f64>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let Self { x, c } = self;
        let rows = x.len() / c;
        let lanes = Lanes::new::<S>(c);
        let mut sum = vec![0f32; c];
        let mut mean = vec![0f64; c];
        let mut m2 = vec![0f64; c];
        let zero = simd.splat_f32s(0.0);
        for x in x.chunks(block(c) * c) {
            for i in 0..lanes.vectors {
                let mut s = zero;
                for row in x.chunks_exact(c) {
                    s = simd.add_f32s(s, vector::<S>(row, i));
                }
                sum[i * S::F32_LANES..(i + 1) * S::F32_LANES]
                    .copy_from_slice(bytemuck::cast_slice(&[s]));
            }
            for i in lanes.first_left..c {
                sum[i] = x.iter().skip(i).step_by(c).sum();
            }
            flush(&mut sum, &mut mean);
        }
        for m in &mut mean {
            *m /= rows as f64;
        }
        let centre: Vec<f32> = mean.iter().map(|m| *m as f32).collect();
        for x in x.chunks(block(c) * c) {
            for i in 0..lanes.vectors {
                let centre = vector::<S>(&centre, i);
                let mut s = zero;
                for row in x.chunks_exact(c) {
                    let d = simd.sub_f32s(vector::<S>(row, i), centre);
                    s = simd.mul_add_e_f32s(d, d, s);
                }
                sum[i * S::F32_LANES..(i + 1) * S::F32_LANES]
                    .copy_from_slice(bytemuck::cast_slice(&[s]));
            }
            for i in lanes.first_left..c {
                sum[i] = x
                    .iter()
                    .skip(i)
                    .step_by(c)
                    .map(|v| (v - centre[i]) * (v - centre[i]))
                    .sum();
            }
            flush(&mut sum, &mut m2);
        }
        (rows, mean, m2)
    }
}

/// `y = x * scale + shift`, then ReLU if `relu`; `x` and `y` are `[rows, c]`.
pub fn apply(x: &[f32], scale: &[f32], shift: &[f32], relu: bool, y: &mut [f32]) {
    let c = scale.len();
    assert!(shift.len() == c && x.len() == y.len() && x.len().is_multiple_of(c));
    y.par_chunks_mut(piece(c))
        .zip(x.par_chunks(piece(c)))
        .for_each(|(y, x)| apply_piece(x, scale, shift, relu, y));
}

/// [`apply`] on this thread.
pub(super) fn apply_piece(x: &[f32], scale: &[f32], shift: &[f32], relu: bool, y: &mut [f32]) {
    let c = scale.len();
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let floor = if relu { 0.0 } else { f32::NEG_INFINITY };
            for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(c)) {
                for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(scale).zip(shift) {
                    let z = x.mul_add(*scale, *shift);
                    // Written as a comparison so that NaN stays NaN.
                    *y = if z < floor { floor } else { z };
                }
            }
        },
    );
}

/// What the backward pass needs to know of the forward pass, per channel.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// `gamma * invstd`.
    pub scale: &'a [f32],
    /// `beta - mean * scale`.
    pub shift: &'a [f32],
    /// Mean used in the forward pass.
    pub mean: &'a [f32],
    /// `1 / sqrt(variance + eps)` used in the forward pass.
    pub invstd: &'a [f32],
    /// Whether a ReLU followed.
    pub relu: bool,
}

/// Sum of each column of `x` (`[rows, c]`), blocks of rows in `f32`, everything above them in `f64`.
pub fn column_sums(x: &[f32], c: usize) -> Vec<f32> {
    assert!(c > 0 && x.len().is_multiple_of(c), "rows of {c} channels");
    let parts: Vec<Vec<f64>> = x
        .par_chunks(piece(c))
        .map(|x| {
            let mut sum = vec![0f32; c];
            let mut sums = vec![0f64; c];
            for x in x.chunks(block(c) * c) {
                add_rows(x, &mut sum);
                flush(&mut sum, &mut sums);
            }
            sums
        })
        .collect();
    let mut sums = vec![0f64; c];
    for part in &parts {
        for (sum, v) in sums.iter_mut().zip(part) {
            *sum += v;
        }
    }
    sums.iter().map(|s| *s as f32).collect()
}

/// Adds every row of `x` to `sum`.
fn add_rows(x: &[f32], sum: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for row in x.chunks_exact(sum.len()) {
                for (s, v) in sum.iter_mut().zip(row) {
                    *s += v;
                }
            }
        },
    );
}

/// Gradients of `beta` (sum of `g`) and `gamma` (sum of `g * x_hat`), where `g` is `dy` masked by the ReLU.
pub fn parameter_gradients(dy: &[f32], x: &[f32], saved: &Saved<'_>) -> (Vec<f32>, Vec<f32>) {
    let c = saved.check(dy, x);
    let parts: Vec<(Vec<f64>, Vec<f64>)> = dy
        .par_chunks(piece(c))
        .zip(x.par_chunks(piece(c)))
        .map(|(dy, x)| Arch::new().dispatch(GradientSums { dy, x, saved }))
        .collect();
    let mut sum = vec![0f64; c];
    let mut dot = vec![0f64; c];
    for (s, d) in &parts {
        for i in 0..c {
            sum[i] += s[i];
            dot[i] += d[i];
        }
    }
    let dgamma = dot
        .iter()
        .zip(saved.invstd)
        .map(|(d, i)| (d * f64::from(*i)) as f32)
        .collect();
    (sum.iter().map(|s| *s as f32).collect(), dgamma)
}

/// Input gradient, added to `dx` (`[rows, c]`).
///
/// `batch` holds the two sums of [`parameter_gradients`] when the forward pass used batch statistics, so that
/// `dx = scale * (g - (sum + x_hat * dot) / rows)`; with running statistics (`None`) `dx = scale * g`.
pub fn add_input_gradient(
    dy: &[f32],
    x: &[f32],
    saved: &Saved<'_>,
    batch: Option<(&[f32], &[f32])>,
    dx: &mut [f32],
) {
    let c = saved.check(dy, x);
    assert_eq!(dx.len(), x.len());
    let (constant, slope) = batch_terms(saved, batch, x.len() / c);
    let (constant, slope) = (constant.as_slice(), slope.as_slice());
    let chunks = dx.par_chunks_mut(piece(c)).zip(dy.par_chunks(piece(c)));
    chunks
        .zip(x.par_chunks(piece(c)))
        .for_each(|((dx, dy), x)| {
            Arch::new().dispatch(InputGradient {
                dy: Some(dy),
                x,
                dx,
                saved,
                constant,
                slope,
            });
        });
}

/// Input gradient in place: `dy` becomes what [`add_input_gradient`] would add.
pub fn input_gradient_in_place(
    dy: &mut [f32],
    x: &[f32],
    saved: &Saved<'_>,
    batch: Option<(&[f32], &[f32])>,
) {
    let c = saved.check(dy, x);
    let (constant, slope) = batch_terms(saved, batch, x.len() / c);
    let (constant, slope) = (constant.as_slice(), slope.as_slice());
    dy.par_chunks_mut(piece(c))
        .zip(x.par_chunks(piece(c)))
        .for_each(|(dx, x)| {
            Arch::new().dispatch(InputGradient {
                dy: None,
                x,
                dx,
                saved,
                constant,
                slope,
            });
        });
}

/// The two per-channel terms through which the batch's statistics enter the input gradient:
/// `dx = scale * g - constant - slope * (x - mean)`.
fn batch_terms(
    saved: &Saved<'_>,
    batch: Option<(&[f32], &[f32])>,
    rows: usize,
) -> (Vec<f32>, Vec<f32>) {
    let c = saved.scale.len();
    let (mut constant, mut slope) = (vec![0f32; c], vec![0f32; c]);
    if let Some((sum, dot)) = batch {
        for i in 0..c {
            let scale = f64::from(saved.scale[i]) / rows as f64;
            slope[i] = (scale * f64::from(dot[i]) * f64::from(saved.invstd[i])) as f32;
            constant[i] = (scale * f64::from(sum[i])) as f32;
        }
    }
    (constant, slope)
}

impl Saved<'_> {
    /// The number of channels, after checking that everything has it.
    fn check(&self, dy: &[f32], x: &[f32]) -> usize {
        let c = self.scale.len();
        assert!(self.shift.len() == c && self.mean.len() == c && self.invstd.len() == c);
        assert!(c > 0 && dy.len() == x.len() && x.len().is_multiple_of(c));
        c
    }

    /// The value below which the pre-activation stops the gradient.
    fn floor(&self) -> f32 {
        if self.relu { 0.0 } else { f32::NEG_INFINITY }
    }
}

/// The vectors of a row: whole ones, and the channels left over.
struct Lanes {
    vectors: usize,
    first_left: usize,
}

impl Lanes {
    fn new<S: Simd>(c: usize) -> Self {
        Self {
            vectors: c / S::F32_LANES,
            first_left: c / S::F32_LANES * S::F32_LANES,
        }
    }
}

/// Vector `i` of a slice whose length the caller has checked.
#[inline(always)]
fn vector<S: Simd>(values: &[f32], i: usize) -> S::f32s {
    bytemuck::pod_read_unaligned(bytemuck::cast_slice(
        &values[i * S::F32_LANES..(i + 1) * S::F32_LANES],
    ))
}

/// Sums of `g` and of `g * (x - mean)` over the rows of a piece.
struct GradientSums<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    saved: &'a Saved<'a>,
}

impl WithSimd for GradientSums<'_> {
    type Output = (Vec<f64>, Vec<f64>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let Self { dy, x, saved } = self;
        let c = saved.scale.len();
        let lanes = Lanes::new::<S>(c);
        let (mut sum, mut dot) = (vec![0f32; c], vec![0f32; c]);
        let (mut sums, mut dots) = (vec![0f64; c], vec![0f64; c]);
        let zero = simd.splat_f32s(0.0);
        let floor = simd.splat_f32s(saved.floor());
        for (dy, x) in dy.chunks(block(c) * c).zip(x.chunks(block(c) * c)) {
            // Channels outside, rows inside: sums and factors of a vector of channels stay in registers.
            for i in 0..lanes.vectors {
                let (scale, shift) = (vector::<S>(saved.scale, i), vector::<S>(saved.shift, i));
                let mean = vector::<S>(saved.mean, i);
                let (mut s, mut d) = (zero, zero);
                for (dy, x) in dy.chunks_exact(c).zip(x.chunks_exact(c)) {
                    let (dy, x) = (vector::<S>(dy, i), vector::<S>(x, i));
                    let open = simd.greater_than_f32s(simd.mul_add_e_f32s(x, scale, shift), floor);
                    let g = simd.select_f32s(open, dy, zero);
                    s = simd.add_f32s(s, g);
                    d = simd.mul_add_e_f32s(g, simd.sub_f32s(x, mean), d);
                }
                let at = i * S::F32_LANES..(i + 1) * S::F32_LANES;
                sum[at.clone()].copy_from_slice(bytemuck::cast_slice(&[s]));
                dot[at].copy_from_slice(bytemuck::cast_slice(&[d]));
            }
            for i in lanes.first_left..c {
                for (dy, x) in dy.chunks_exact(c).zip(x.chunks_exact(c)) {
                    let open = x[i].mul_add(saved.scale[i], saved.shift[i]) > saved.floor();
                    let g = if open { dy[i] } else { 0.0 };
                    sum[i] += g;
                    dot[i] = g.mul_add(x[i] - saved.mean[i], dot[i]);
                }
            }
            flush(&mut sum, &mut sums);
            flush(&mut dot, &mut dots);
        }
        (sums, dots)
    }
}

/// The input gradient of one piece.
struct InputGradient<'a> {
    /// The output gradient; `None` takes it from `dx` and overwrites it.
    dy: Option<&'a [f32]>,
    x: &'a [f32],
    dx: &'a mut [f32],
    saved: &'a Saved<'a>,
    constant: &'a [f32],
    slope: &'a [f32],
}

impl WithSimd for InputGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            dy,
            x,
            dx,
            saved,
            constant,
            slope,
        } = self;
        let c = saved.scale.len();
        let lanes = Lanes::new::<S>(c);
        let zero = simd.splat_f32s(0.0);
        let floor = simd.splat_f32s(saved.floor());
        let rows = block(c);
        let add = dy.is_some();
        for (b, dx) in dx.chunks_mut(rows * c).enumerate() {
            let at = b * rows * c;
            let x = &x[at..][..dx.len()];
            let dy = dy.map(|dy| &dy[at..][..dx.len()]);
            for i in 0..lanes.vectors {
                let (scale, shift) = (vector::<S>(saved.scale, i), vector::<S>(saved.shift, i));
                let mean = vector::<S>(saved.mean, i);
                let (constant, slope) = (vector::<S>(constant, i), vector::<S>(slope, i));
                for (r, (dx, x)) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)).enumerate() {
                    let at = i * S::F32_LANES..(i + 1) * S::F32_LANES;
                    let x = vector::<S>(x, i);
                    let old = vector::<S>(dx, i);
                    let dy = dy.map_or(old, |dy| vector::<S>(&dy[r * c..][..c], i));
                    let open = simd.greater_than_f32s(simd.mul_add_e_f32s(x, scale, shift), floor);
                    let g = simd.select_f32s(open, dy, zero);
                    let drift = simd.mul_add_e_f32s(slope, simd.sub_f32s(x, mean), constant);
                    let mut v = simd.sub_f32s(simd.mul_f32s(scale, g), drift);
                    if add {
                        v = simd.add_f32s(old, v);
                    }
                    dx[at].copy_from_slice(bytemuck::cast_slice(&[v]));
                }
            }
            for i in lanes.first_left..c {
                for (r, (dx, x)) in dx.chunks_exact_mut(c).zip(x.chunks_exact(c)).enumerate() {
                    let dy = dy.map_or(dx[i], |dy| dy[r * c + i]);
                    let open = x[i].mul_add(saved.scale[i], saved.shift[i]) > saved.floor();
                    let g = if open { dy } else { 0.0 };
                    let drift = slope[i].mul_add(x[i] - saved.mean[i], constant[i]);
                    let mut v = saved.scale[i] * g - drift;
                    if add {
                        v += dx[i];
                    }
                    dx[i] = v;
                }
            }
        }
    }
}
