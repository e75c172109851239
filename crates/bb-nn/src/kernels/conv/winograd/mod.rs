//! Winograd's minimal filtering for 3x3 convolutions of stride 1 (Lavin and Gray, CVPR 2016).
//!
//! A tile of 4x4 outputs comes from 6x6 inputs by 36 products per pair of channels, where the direct form needs 144.
//! The products of all tiles are 36 matrix products, one for each *frequency*.
//! Forward pass and input gradient are F(4x4, 3x3); the weight gradient is F(3x3, 4x4), with 3x3 weights as outputs and
//! 4x4 output gradients as the filter.
//!
//! Interpolation points are 0, ±1/√2, ±√2 and infinity. With the usual 0, ±1, ±2 the rounding error is about twice as
//! large. Both forms use the same points and therefore the same input transform.

mod axis;
mod image;
mod tiles;
pub(super) mod weight;

pub(super) use image::{forward, input_gradient};

use super::ConvShape;
use crate::kernels::precision::Precision;
use pulp::Simd;

/// Outputs per side of a tile.
const TILE: usize = 4;
/// Inputs per side of a tile.
const SIDE: usize = 6;
/// Products of a tile.
const FREQUENCIES: usize = SIDE * SIDE;
/// Channels come in multiples of this, so that every vector width divides them.
const CHANNELS: usize = 16;
/// Words between the matrices of two frequencies, so that the 36 stores of a tile fall into different cache sets.
const SKEW: usize = 16;

/// Floating-point operations (of the direct form) below which little time is to be gained, so that the direct form,
/// which rounds less, is kept.
const WORTHWHILE: usize = 1 << 25;

/// Whether this module is the one to compute convolutions of this shape.
pub(super) fn serves(s: &ConvShape) -> bool {
    s.k == 3
        && s.stride == 1
        && s.cin.is_multiple_of(CHANNELS)
        && s.cout.is_multiple_of(CHANNELS)
        && s.flops() >= WORTHWHILE
}

/// A convolution of stride 1 as both directions see it: the input gradient is one of the output gradient with
/// transposed, flipped weights.
#[derive(Clone, Copy, Debug)]
struct Job {
    precision: Precision,
    n: usize,
    /// Source rows, columns and channels.
    h: usize,
    w: usize,
    ci: usize,
    /// Destination rows, columns and channels.
    oh: usize,
    ow: usize,
    co: usize,
    /// Zeros before the source.
    pad: usize,
}

impl Job {
    fn forward(s: &ConvShape, precision: Precision) -> Self {
        Self {
            precision,
            n: s.n,
            h: s.h,
            w: s.w,
            ci: s.cin,
            oh: s.oh(),
            ow: s.ow(),
            co: s.cout,
            pad: s.pad,
        }
    }

    fn input_gradient(s: &ConvShape, precision: Precision) -> Self {
        Self {
            precision,
            n: s.n,
            h: s.oh(),
            w: s.ow(),
            ci: s.cout,
            oh: s.h,
            ow: s.w,
            co: s.cin,
            pad: s.k - 1 - s.pad,
        }
    }

    /// Rows of tiles in an image, and tiles in a row.
    fn tiles(&self) -> (usize, usize) {
        (self.oh.div_ceil(TILE), self.ow.div_ceil(TILE))
    }
}

/// Floats that several workers write at different places.
struct Shared {
    data: *mut f32,
    len: usize,
}

// SAFETY: the workers that share it write disjoint elements, which every user of `data` argues for itself.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(data: &mut [f32]) -> Self {
        Self {
            data: data.as_mut_ptr(),
            len: data.len(),
        }
    }
}

/// The vector at `at`.
///
/// # Safety
/// A vector of floats must be readable there.
#[inline(always)]
unsafe fn load<S: Simd>(at: *const f32) -> S::f32s {
    // SAFETY: the caller's promise.
    unsafe { at.cast::<S::f32s>().read_unaligned() }
}

/// `N` vectors from `at` on, `stride` floats apart.
///
/// # Safety
/// A vector of floats must be readable at each of these places.
#[inline(always)]
unsafe fn gather<S: Simd, const N: usize>(simd: S, at: *const f32, stride: usize) -> [S::f32s; N] {
    let mut out = [simd.splat_f32s(0.0); N];
    for (i, out) in out.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        *out = unsafe { load::<S>(at.add(i * stride)) };
    }
    out
}

/// Writes `value` at `at`.
///
/// # Safety
/// A vector of floats must be writable there.
#[inline(always)]
unsafe fn put<S: Simd>(at: *mut f32, value: S::f32s) {
    // SAFETY: the caller's promise.
    unsafe { at.cast::<S::f32s>().write_unaligned(value) };
}
