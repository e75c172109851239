//! Winograd's minimal filtering for 3x3 convolutions of stride 1 (Lavin and Gray, CVPR 2016).
//!
//! A tile of 4x4 outputs comes from 6x6 inputs by 36 products per pair of channels, where the direct form needs 144.
//! The products of all tiles are 36 matrix products, one for each *frequency*.
//! Forward pass and input gradient are F(4x4, 3x3); the weight gradient is F(3x3, 4x4), with 3x3 weights as outputs and
//! 4x4 output gradients as the filter.
//!
//! Interpolation points are 0, ±1/√2, ±√2 and infinity. With the usual 0, ±1, ±2 the rounding error is about twice as
//! large. Both forms use the same points and therefore the same input transform.

pub(super) mod weight;

use super::direct::{store, tile};
use super::{Add, ConvShape, Source};
use crate::kernels::scratch;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Outputs per side of a tile.
const TILE: usize = 4;
/// Inputs per side of a tile.
const SIDE: usize = 6;
/// Products of a tile.
const FREQUENCIES: usize = SIDE * SIDE;
/// Channels come in multiples of this, so that every vector width divides them.
const CHANNELS: usize = 16;
/// Floats between the matrices of two frequencies, so that the 36 stores of a tile fall into different cache sets.
const SKEW: usize = 16;
/// Tiles that one pass of the products takes together: their weights stay in the cache meanwhile.
const ROWS: usize = 8;

/// The larger finite interpolation point, and the smaller one.
const B: f32 = std::f32::consts::SQRT_2;
const A: f32 = std::f32::consts::FRAC_1_SQRT_2;

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
    fn forward(s: &ConvShape) -> Self {
        Self {
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

    fn input_gradient(s: &ConvShape) -> Self {
        Self {
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

/// How the transformed weights lie: `[block][frequency][source channel][lane]`.
struct Weights {
    /// Channels of a block: two vectors.
    block: usize,
    /// Floats from frequency to frequency.
    pitch: usize,
    blocks: usize,
}

impl Weights {
    fn new(job: &Job) -> Self {
        let block = Arch::new().dispatch(Lanes) * 2;
        Self {
            block,
            pitch: job.ci * block + SKEW,
            blocks: job.co.div_ceil(block),
        }
    }

    fn len(&self) -> usize {
        self.blocks * FREQUENCIES * self.pitch
    }
}

struct Lanes;
impl WithSimd for Lanes {
    type Output = usize;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        S::F32_LANES
    }
}

/// Above this many floats of transformed weights a batch is multiplied block by block of output channels, so that they
/// are read once; below it tile by tile, so that the tiles stay in the second-level cache.
const LARGE_WEIGHTS: usize = 1 << 21;
/// Floats of transformed tiles that stay in the second-level cache.
const NEAR: usize = 96 << 10;
/// Floats of transformed tiles that stay in the third-level cache.
const FAR: usize = 5 << 20;

/// `y = conv(x, w) [+ add]`; 3x3, stride 1, channels in multiples of [`CHANNELS`].
pub(super) fn forward(s: &ConvShape, x: Source<'_>, w: &[f32], add: Add<'_>, y: &mut [f32]) {
    run(&Job::forward(s), false, x, w, add, y);
}

/// `dx = d/dx conv(x, w) * dy [+ add]`; 3x3, stride 1, channels in multiples of [`CHANNELS`].
pub(super) fn input_gradient(s: &ConvShape, dy: &[f32], w: &[f32], add: Add<'_>, dx: &mut [f32]) {
    run(&Job::input_gradient(s), true, dy.into(), w, add, dx);
}

fn run(job: &Job, transposed: bool, x: Source<'_>, w: &[f32], add: Add<'_>, dst: &mut [f32]) {
    let layout = Weights::new(job);
    let (tile_rows, tile_cols) = job.tiles();
    let rows = job.n * tile_rows;
    let target = Target::new(dst, add);
    scratch::with(layout.len(), |u| {
        u.par_chunks_mut(FREQUENCIES * layout.pitch)
            .enumerate()
            .for_each(|(block, u)| {
                Arch::new().dispatch(TransformWeights {
                    job,
                    transposed,
                    w,
                    first: block * layout.block,
                    lanes: layout.block.min(job.co - block * layout.block),
                    pitch: layout.pitch,
                    u,
                });
            });
        let u = &*u;
        let per_row = FREQUENCIES * tile_cols * job.ci;
        if layout.len() > LARGE_WEIGHTS {
            let chunk = (FAR / per_row).clamp(1, rows);
            let group = (64 / tile_cols).clamp(1, chunk);
            for first in (0..rows).step_by(chunk) {
                let chunk = first..(first + chunk).min(rows);
                with_tiles(job, &x, chunk.clone(), |tiles| {
                    let groups = chunk.len().div_ceil(group);
                    (0..layout.blocks * groups)
                        .into_par_iter()
                        .for_each(|task| {
                            let (block, g) = (task / groups, task % groups);
                            let rows = g * group..((g + 1) * group).min(chunk.len());
                            multiply(
                                job,
                                tiles,
                                rows,
                                first,
                                &layout,
                                block..block + 1,
                                u,
                                &target,
                            );
                        });
                });
            }
        } else {
            let near = (NEAR / (FREQUENCIES * job.ci))
                .next_multiple_of(ROWS)
                .max(32);
            let group = (near / tile_cols).clamp(1, rows.div_ceil(8));
            (0..rows.div_ceil(group)).into_par_iter().for_each(|g| {
                let rows = g * group..((g + 1) * group).min(rows);
                let tiles = rows.len() * tile_cols;
                let pitch = tiles * job.ci + SKEW;
                scratch::with(FREQUENCIES * pitch, |v| {
                    transform_input(job, &x, rows.clone(), 0, pitch, &Shared::new(v));
                    let tiles = Tiles { v, pitch };
                    let all = 0..layout.blocks;
                    multiply(
                        job,
                        &tiles,
                        0..rows.len(),
                        rows.start,
                        &layout,
                        all,
                        u,
                        &target,
                    );
                });
            });
        }
    });
}

/// Transformed tiles, `[frequency][tile][channel]`.
struct Tiles<'a> {
    v: &'a [f32],
    /// Floats from frequency to frequency.
    pitch: usize,
}

/// Transforms the tiles of `rows` on all cores and hands them to `f`.
fn with_tiles<T>(
    job: &Job,
    x: &Source<'_>,
    rows: Range<usize>,
    f: impl FnOnce(&Tiles<'_>) -> T,
) -> T {
    let tile_cols = job.tiles().1;
    let pitch = rows.len() * tile_cols * job.ci + SKEW;
    scratch::with(FREQUENCIES * pitch, |v| {
        let shared = Shared::new(v);
        let piece = (16 / tile_cols).max(1);
        (0..rows.len().div_ceil(piece))
            .into_par_iter()
            .for_each(|p| {
                let part = p * piece..((p + 1) * piece).min(rows.len());
                let at = part.start * tile_cols;
                let part = rows.start + part.start..rows.start + part.end;
                transform_input(job, x, part, at, pitch, &shared);
            });
        f(&Tiles { v, pitch })
    })
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

/// Where results go, and what is added to them.
struct Target<'a> {
    dst: Shared,
    add: Add<'a>,
}

impl<'a> Target<'a> {
    fn new(dst: &mut [f32], add: Add<'a>) -> Self {
        if let Add::Other(other) = add {
            assert_eq!(other.len(), dst.len(), "length of the tensor to add");
        }
        Self {
            dst: Shared::new(dst),
            add,
        }
    }
}

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
fn to_frequencies<S: Simd>(simd: S, d: [S::f32s; SIDE]) -> [S::f32s; SIDE] {
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
fn to_outputs<S: Simd>(simd: S, m: [S::f32s; SIDE]) -> [S::f32s; TILE] {
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
fn to_weights<S: Simd>(simd: S, m: [S::f32s; SIDE]) -> [S::f32s; 3] {
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
fn weights_to_frequencies<S: Simd>(simd: S, g: [S::f32s; 3]) -> [S::f32s; SIDE] {
    let a = at_points(simd, A, SCALE[1], [g[0], g[2]], g[1]);
    let b = at_points(simd, B, SCALE[2], [g[0], g[2]], g[1]);
    [scaled(simd, SCALE[0], g[0]), a[0], a[1], b[0], b[1], g[2]]
}

/// Four output gradients of one axis to the frequency domain.
#[inline(always)]
fn gradient_to_frequencies<S: Simd>(simd: S, g: [S::f32s; TILE]) -> [S::f32s; SIDE] {
    let even = [g[0], g[2]];
    let a = at_points(simd, A, SCALE[1], even, axpy(simd, A * A, g[3], g[1]));
    let b = at_points(simd, B, SCALE[2], even, axpy(simd, B * B, g[3], g[1]));
    [scaled(simd, SCALE[0], g[0]), a[0], a[1], b[0], b[1], g[3]]
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

/// Transforms the weights of one block of destination channels.
struct TransformWeights<'a> {
    job: &'a Job,
    transposed: bool,
    w: &'a [f32],
    /// First destination channel, and how many.
    first: usize,
    lanes: usize,
    pitch: usize,
    u: &'a mut [f32],
}

/// Most lanes of a block: two vectors of 16.
const MAX_BLOCK: usize = 32;

impl WithSimd for TransformWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            job,
            transposed,
            w,
            first,
            lanes,
            pitch,
            u,
        } = self;
        assert!(lanes <= MAX_BLOCK && lanes.is_multiple_of(S::F32_LANES));
        assert!(u.len() >= (FREQUENCIES - 1) * pitch + job.ci * lanes);
        let tap_len = job.ci * job.co;
        assert_eq!(w.len(), 9 * tap_len);
        const TAP: usize = CHANNELS * MAX_BLOCK;
        let mut taps = [0f32; 9 * TAP];
        for c0 in (0..job.ci).step_by(CHANNELS) {
            // `[channel][lane]` of the nine taps, flipped and transposed for the input gradient.
            for (t, out) in taps.chunks_exact_mut(TAP).enumerate() {
                if transposed {
                    let tap = &w[(8 - t) * tap_len..][..tap_len];
                    for l in 0..lanes {
                        let row = &tap[(first + l) * job.ci + c0..][..CHANNELS];
                        for (c, v) in row.iter().enumerate() {
                            out[c * lanes + l] = *v;
                        }
                    }
                } else {
                    let tap = &w[t * tap_len..][..tap_len];
                    for (c, out) in out.chunks_exact_mut(lanes).take(CHANNELS).enumerate() {
                        out.copy_from_slice(&tap[(c0 + c) * job.co + first..][..lanes]);
                    }
                }
            }
            for c in 0..CHANNELS {
                for v in (0..lanes).step_by(S::F32_LANES) {
                    let zero = simd.splat_f32s(0.0);
                    let mut columns = [[zero; 3]; SIDE];
                    for x in 0..3 {
                        // SAFETY: `c < CHANNELS` and `v + vector <= lanes <= MAX_BLOCK`.
                        let g = unsafe {
                            gather::<S, 3>(
                                simd,
                                taps.as_ptr().add(x * TAP + c * lanes + v),
                                3 * TAP,
                            )
                        };
                        let f = weights_to_frequencies(simd, g);
                        for r in 0..SIDE {
                            columns[r][x] = f[r];
                        }
                    }
                    for r in 0..SIDE {
                        let f = weights_to_frequencies(simd, columns[r]);
                        for q in 0..SIDE {
                            let at = (r * SIDE + q) * pitch + (c0 + c) * lanes + v;
                            // SAFETY: the assertion on `u` covers every frequency, channel and lane.
                            unsafe { put::<S>(u.as_mut_ptr().add(at), f[q]) };
                        }
                    }
                }
            }
        }
    }
}

/// Transforms the tiles of tile rows `rows` (counted over the batch) into tiles `at..` of `v`.
fn transform_input(
    job: &Job,
    x: &Source<'_>,
    rows: Range<usize>,
    at: usize,
    pitch: usize,
    v: &Shared,
) {
    let width = job.tiles().1 * TILE + 2;
    scratch::with(SIDE * width * CHANNELS, |lines| {
        Arch::new().dispatch(TransformInput {
            job,
            x,
            rows,
            at,
            pitch,
            v,
            lines,
        });
    });
}

struct TransformInput<'a> {
    job: &'a Job,
    x: &'a Source<'a>,
    rows: Range<usize>,
    at: usize,
    pitch: usize,
    v: &'a Shared,
    /// `[frequency of the row axis][column][lane]` of one tile row and one vector of channels.
    lines: &'a mut [f32],
}

impl WithSimd for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            job,
            x,
            rows,
            at,
            pitch,
            v,
            lines,
        } = self;
        let (tile_rows, tile_cols) = job.tiles();
        let width = tile_cols * TILE + 2;
        let line = width * S::F32_LANES;
        let row_len = job.w * job.ci;
        assert_eq!(x.data.len(), job.n * job.h * row_len);
        assert!(lines.len() >= SIDE * line && job.ci.is_multiple_of(S::F32_LANES));
        assert!(rows.end <= job.n * tile_rows);
        assert!((FREQUENCIES - 1) * pitch + (at + rows.len() * tile_cols) * job.ci <= v.len);
        let affine = x.channels(job.ci);
        let zero = simd.splat_f32s(0.0);
        lines.fill(0.0);
        // Columns of the source that any tile reads.
        let cols = job.w.min(width.saturating_sub(job.pad));
        for (i, row) in rows.enumerate() {
            let (image, top) = (row / tile_rows, row % tile_rows * TILE);
            let mut sources = [None; SIDE];
            for (j, source) in sources.iter_mut().enumerate() {
                let y = (top + j).wrapping_sub(job.pad);
                if y < job.h {
                    *source = Some((image * job.h + y) * row_len);
                }
            }
            for c in (0..job.ci).step_by(S::F32_LANES) {
                let affine = affine.map(|affine| affine.lanes(simd, c));
                let out = lines[job.pad * S::F32_LANES..].as_mut_ptr();
                for col in 0..cols {
                    let mut d = [zero; SIDE];
                    for (d, start) in d.iter_mut().zip(&sources) {
                        if let Some(start) = start {
                            // SAFETY: `start` is the beginning of a row of the source, whose length was checked.
                            let value =
                                unsafe { load::<S>(x.data.as_ptr().add(start + col * job.ci + c)) };
                            *d = match &affine {
                                Some(affine) => affine.apply(simd, value),
                                None => value,
                            };
                        }
                    }
                    let f = to_frequencies(simd, d);
                    for r in 0..SIDE {
                        // SAFETY: `pad + cols <= width`, and a line has `width` vectors.
                        unsafe { put::<S>(out.add(r * line + col * S::F32_LANES), f[r]) };
                    }
                }
                for tile in 0..tile_cols {
                    let place = (at + i * tile_cols + tile) * job.ci + c;
                    for r in 0..SIDE {
                        let start = r * line + tile * TILE * S::F32_LANES;
                        // SAFETY: a tile's six columns lie inside the line.
                        let d = unsafe {
                            gather::<S, SIDE>(simd, lines.as_ptr().add(start), S::F32_LANES)
                        };
                        let f = to_frequencies(simd, d);
                        for q in 0..SIDE {
                            // SAFETY: inside `v` by the assertion above, and no other worker has these tiles.
                            unsafe { put::<S>(v.data.add((r * SIDE + q) * pitch + place), f[q]) };
                        }
                    }
                }
            }
        }
    }
}

/// Multiplies the tiles of `rows` (counted in `tiles`) with some blocks of weights and writes the outputs.
#[allow(clippy::too_many_arguments)] // one call site's worth of geometry
fn multiply(
    job: &Job,
    tiles: &Tiles<'_>,
    rows: Range<usize>,
    first_row: usize,
    layout: &Weights,
    blocks: Range<usize>,
    u: &[f32],
    target: &Target<'_>,
) {
    let count = (rows.len() * job.tiles().1).next_multiple_of(ROWS);
    let pitch = count * layout.block + SKEW;
    scratch::with(FREQUENCIES * pitch, |m| {
        Arch::new().dispatch(Multiply {
            job,
            tiles,
            rows,
            first_row,
            layout,
            blocks,
            u,
            m,
            pitch,
            target,
        });
    });
}

struct Multiply<'a> {
    job: &'a Job,
    tiles: &'a Tiles<'a>,
    rows: Range<usize>,
    first_row: usize,
    layout: &'a Weights,
    blocks: Range<usize>,
    u: &'a [f32],
    /// Products `[frequency][tile][lane]` of one block.
    m: &'a mut [f32],
    pitch: usize,
    target: &'a Target<'a>,
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        for block in self.blocks.clone() {
            if self.job.co - block * self.layout.block >= self.layout.block {
                self.block::<S, 2>(simd, block);
            } else {
                self.block::<S, 1>(simd, block);
            }
        }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn block<S: Simd, const V: usize>(&mut self, simd: S, block: usize) {
        if S::F32_LANES >= 16 {
            self.products::<S, ROWS, V>(simd, block);
        } else {
            self.products::<S, 4, V>(simd, block);
        }
        self.outputs::<S, V>(simd, block);
    }

    #[inline(always)]
    fn products<S: Simd, const P: usize, const V: usize>(&mut self, simd: S, block: usize) {
        let ci = self.job.ci;
        let lanes = V * S::F32_LANES;
        let tile_cols = self.job.tiles().1;
        let (first, last) = (self.rows.start * tile_cols, self.rows.end * tile_cols);
        assert!((FREQUENCIES - 1) * self.tiles.pitch + last * ci <= self.tiles.v.len());
        let u =
            &self.u[block * FREQUENCIES * self.layout.pitch..][..FREQUENCIES * self.layout.pitch];
        assert!((FREQUENCIES - 1) * self.layout.pitch + ci * lanes <= u.len());
        for f in 0..FREQUENCIES {
            let v = &self.tiles.v[f * self.tiles.pitch..];
            let m = &mut self.m[f * self.pitch..][..self.pitch];
            for (i, out) in (first..last).step_by(P).zip(m.chunks_exact_mut(P * lanes)) {
                // Tiles behind the last one repeat it; nobody reads their products.
                let mut rows = [v.as_ptr(); P];
                for (p, row) in rows.iter_mut().enumerate() {
                    *row = v[(i + p).min(last - 1) * ci..][..ci].as_ptr();
                }
                // SAFETY: each row has `ci` floats (sliced above), and `u` has `ci` rows of `V` vectors (asserted).
                let sums = unsafe {
                    tile::<S, P, V, 1>(simd, &rows, 1, ci, 0, u.as_ptr().add(f * self.layout.pitch))
                };
                for (p, sums) in sums.into_iter().enumerate() {
                    store::<S, V>(simd, sums, &mut out[p * lanes..(p + 1) * lanes]);
                }
            }
        }
    }

    #[inline(always)]
    fn outputs<S: Simd, const V: usize>(&self, simd: S, block: usize) {
        let Job { n, oh, ow, co, .. } = *self.job;
        let (tile_rows, tile_cols) = self.job.tiles();
        let lanes = V * S::F32_LANES;
        let c0 = block * self.layout.block;
        assert!(
            (FREQUENCIES - 1) * self.pitch + self.rows.len() * tile_cols * lanes <= self.m.len()
        );
        assert!(self.target.dst.len == n * oh * ow * co && c0 + lanes <= co);
        assert!(self.first_row + self.rows.end <= n * tile_rows);
        let zero = simd.splat_f32s(0.0);
        for (i, row) in self.rows.clone().enumerate() {
            let (image, top) = (
                (self.first_row + row) / tile_rows,
                (self.first_row + row) % tile_rows * TILE,
            );
            for t in 0..tile_cols {
                for v in (0..lanes).step_by(S::F32_LANES) {
                    let at = (i * tile_cols + t) * lanes + v;
                    let mut columns = [[zero; SIDE]; TILE];
                    for q in 0..SIDE {
                        // SAFETY: asserted above for the last frequency and tile.
                        let m = unsafe {
                            gather::<S, SIDE>(
                                simd,
                                self.m.as_ptr().add(q * self.pitch + at),
                                SIDE * self.pitch,
                            )
                        };
                        let y = to_outputs(simd, m);
                        for r in 0..TILE {
                            columns[r][q] = y[r];
                        }
                    }
                    for r in 0..TILE.min(oh - top) {
                        let y = to_outputs(simd, columns[r]);
                        let start = ((image * oh + top + r) * ow + t * TILE) * co + c0 + v;
                        for (q, y) in y.into_iter().enumerate().take(ow - t * TILE) {
                            // SAFETY: row, column and channels are inside the destination, whose length was
                            // asserted, and no other worker writes these tiles of this block.
                            unsafe {
                                let place = start + q * co;
                                let dst = self.target.dst.data.add(place);
                                let y = match self.target.add {
                                    Add::Nothing => y,
                                    Add::Other(o) => {
                                        simd.add_f32s(y, load::<S>(o.as_ptr().add(place)))
                                    }
                                    Add::Destination => simd.add_f32s(load::<S>(dst), y),
                                };
                                put::<S>(dst, y);
                            }
                        }
                    }
                }
            }
        }
    }
}
