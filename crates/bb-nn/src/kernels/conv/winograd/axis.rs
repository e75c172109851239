//! The transforms of one axis.
//!
//! For the points 0, ±A, ±B and infinity, with `N_i` the product of the differences of point `i` to the other finite
//! ones: rows of `B^T` are the coefficients of the polynomial that vanishes at all other points, rows of `G` the powers
//! of the point over `N_i`, columns of `A^T` the powers of the point.

use super::{SIDE, TILE};
use pulp::Simd;

/// The larger finite interpolation point, and the smaller one.
const B: f32 = std::f32::consts::SQRT_2;
const A: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// `k * x`.
#[inline(always)]
fn scaled<S: Simd>(simd: S, k: f32, x: S::f32s) -> S::f32s {
    simd.mul_f32s(simd.splat_f32s(k), x)
}

/// `k * x + y`.
#[inline(always)]
fn axpy<S: Simd>(simd: S, k: f32, x: S::f32s, y: S::f32s) -> S::f32s {
    simd.mul_add_e_f32s(simd.splat_f32s(k), x, y)
}

/// Six values of one axis to the frequency domain: `B^T d`.
#[inline(always)]
pub(super) fn to_frequencies<S: Simd>(simd: S, d: [S::f32s; SIDE]) -> [S::f32s; SIDE] {
    let (even_a, odd_a) = (
        axpy(simd, -B * B, d[2], d[4]),
        axpy(simd, -B * B, d[1], d[3]),
    );
    let (even_b, odd_b) = (
        axpy(simd, -A * A, d[2], d[4]),
        axpy(simd, -A * A, d[1], d[3]),
    );
    let middle = -(A * A + B * B);
    [
        simd.add_f32s(axpy(simd, middle, d[2], d[0]), d[4]),
        axpy(simd, A, odd_a, even_a),
        axpy(simd, -A, odd_a, even_a),
        axpy(simd, B, odd_b, even_b),
        axpy(simd, -B, odd_b, even_b),
        simd.add_f32s(axpy(simd, middle, d[3], d[1]), d[5]),
    ]
}

/// Sums and differences of the frequencies of the points ±A and ±B.
#[inline(always)]
fn even_odd<S: Simd>(simd: S, m: [S::f32s; SIDE]) -> [(S::f32s, S::f32s); 2] {
    [
        (simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[1], m[2])),
        (simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4])),
    ]
}

/// Six frequencies of one axis to four outputs: `A^T m`.
#[inline(always)]
pub(super) fn to_outputs<S: Simd>(simd: S, m: [S::f32s; SIDE]) -> [S::f32s; TILE] {
    let [a, b] = even_odd(simd, m);
    [
        simd.add_f32s(m[0], simd.add_f32s(a.0, b.0)),
        axpy(simd, A, a.1, scaled(simd, B, b.1)),
        axpy(simd, A * A, a.0, scaled(simd, B * B, b.0)),
        axpy(simd, A * A * A, a.1, axpy(simd, B * B * B, b.1, m[5])),
    ]
}

/// Six frequencies of one axis to three weights.
#[inline(always)]
pub(super) fn to_weights<S: Simd>(simd: S, m: [S::f32s; SIDE]) -> [S::f32s; 3] {
    let [a, b] = even_odd(simd, m);
    [
        simd.add_f32s(m[0], simd.add_f32s(a.0, b.0)),
        axpy(simd, A, a.1, scaled(simd, B, b.1)),
        axpy(simd, A * A, a.0, axpy(simd, B * B, b.0, m[5])),
    ]
}

/// `1 / product of the differences to the other points`, for the points 0, ±A and ±B.
const SCALE: [f32; 3] = {
    let (a2, b2) = (A * A, B * B);
    [
        1.0 / (a2 * b2),
        1.0 / (2.0 * a2 * (a2 - b2)),
        1.0 / (2.0 * b2 * (b2 - a2)),
    ]
};

/// `scale * (even[0] + even[1] p^2 + odd p)` at `p` and at `-p`.
#[inline(always)]
fn at_points<S: Simd>(
    simd: S,
    p: f32,
    scale: f32,
    even: [S::f32s; 2],
    odd: S::f32s,
) -> [S::f32s; 2] {
    let even = scaled(simd, scale, axpy(simd, p * p, even[1], even[0]));
    let odd = scaled(simd, scale * p, odd);
    [simd.add_f32s(even, odd), simd.sub_f32s(even, odd)]
}

/// Three weights of one axis to the frequency domain: `G g`.
#[inline(always)]
pub(super) fn weights_to_frequencies<S: Simd>(simd: S, g: [S::f32s; 3]) -> [S::f32s; SIDE] {
    let a = at_points(simd, A, SCALE[1], [g[0], g[2]], g[1]);
    let b = at_points(simd, B, SCALE[2], [g[0], g[2]], g[1]);
    [scaled(simd, SCALE[0], g[0]), a[0], a[1], b[0], b[1], g[2]]
}

/// Four output gradients of one axis to the frequency domain.
#[inline(always)]
pub(super) fn gradient_to_frequencies<S: Simd>(simd: S, g: [S::f32s; TILE]) -> [S::f32s; SIDE] {
    let even = [g[0], g[2]];
    let a = at_points(simd, A, SCALE[1], even, axpy(simd, A * A, g[3], g[1]));
    let b = at_points(simd, B, SCALE[2], even, axpy(simd, B * B, g[3], g[1]));
    [scaled(simd, SCALE[0], g[0]), a[0], a[1], b[0], b[1], g[3]]
}
