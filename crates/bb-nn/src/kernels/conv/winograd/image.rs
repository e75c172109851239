//! Forward pass and input gradient, F(4x4, 3x3).

use super::super::direct::{MAX_BLOCK, store, tile};
use super::super::{Add, ConvShape, Source, check_add};
use super::axis::{to_outputs, weights_to_frequencies};
use super::tiles::{Summed, TileLayout, Tiles, transform_input, with_inputs};
use super::{CHANNELS, FREQUENCIES, Job, SIDE, SKEW, Shared, TILE, gather, load, put};
use crate::kernels::precision::{Kernel, Precision, Product, dispatch, lanes, per_word};
use crate::kernels::scratch;
use pulp::Simd;
use rayon::prelude::*;
use std::ops::Range;

/// Tiles that one pass of the products takes together: their weights stay in the cache meanwhile.
const ROWS: usize = 8;
/// Above this many words of transformed weights a batch is multiplied block by block of output channels, so that they
/// are read once; below it tile by tile, so that the tiles stay in the second-level cache.
const LARGE_WEIGHTS: usize = 1 << 21;
/// Floats of transformed tiles that stay in the second-level cache.
const NEAR: usize = 96 << 10;
/// Floats of transformed tiles that stay in the third-level cache.
const FAR: usize = 5 << 20;

/// How the transformed weights lie: `[block][frequency][source word][lane]`.
struct Weights {
    /// Channels of a block: two vectors.
    block: usize,
    /// Words from frequency to frequency.
    pitch: usize,
    blocks: usize,
}

impl Weights {
    fn new(job: &Job) -> Self {
        let block = 2 * lanes(job.precision);
        Self {
            block,
            pitch: job.ci / per_word(job.precision) * block + SKEW,
            blocks: job.co.div_ceil(block),
        }
    }

    /// Words of one block.
    fn block_len(&self) -> usize {
        FREQUENCIES * self.pitch
    }

    fn len(&self) -> usize {
        self.blocks * self.block_len()
    }
}

/// `y = conv(x, w) [+ add]`; 3x3, stride 1, channels in multiples of [`CHANNELS`].
///
/// Always in `f32`: products of `bf16` would err by 1 % of the result's size here (the direct form: 0.2 %), which is
/// little for a gradient beside the noise of the batch, but shifts every following layer. And with a quarter of the
/// products, `f32` is as fast as the direct form in `bf16` could be.
pub(in super::super) fn forward(
    s: &ConvShape,
    x: Source<'_>,
    w: &[f32],
    add: Add<'_>,
    y: &mut [f32],
) {
    run(&Job::forward(s, Precision::F32), false, x, w, add, y);
}

/// `dx = d/dx conv(x, w) * dy [+ add]`; 3x3, stride 1, channels in multiples of [`CHANNELS`].
pub(in super::super) fn input_gradient(
    s: &ConvShape,
    precision: Precision,
    dy: &[f32],
    w: &[f32],
    add: Add<'_>,
    dx: &mut [f32],
) {
    run(
        &Job::input_gradient(s, precision),
        true,
        dy.into(),
        w,
        add,
        dx,
    );
}

fn run(job: &Job, transposed: bool, x: Source<'_>, w: &[f32], add: Add<'_>, dst: &mut [f32]) {
    let layout = Weights::new(job);
    let target = Target::new(dst, job.co, add);
    let transform = |block: usize, u: &mut [f32]| {
        let first = block * layout.block;
        let transform = TransformWeights {
            job,
            transposed,
            w,
            first,
            lanes: layout.block.min(job.co - first),
            pitch: layout.pitch,
            u,
        };
        dispatch(job.precision, transform);
    };
    if layout.len() > LARGE_WEIGHTS {
        by_blocks(job, &x, &layout, transform, &target);
    } else {
        by_tiles(job, &x, &layout, transform, &target);
    }
}

/// A part of the batch at a time, one block of output channels per worker: its weights are transformed where they are
/// used, and never fill more than the third-level cache.
fn by_blocks(
    job: &Job,
    x: &Source<'_>,
    layout: &Weights,
    transform: impl Fn(usize, &mut [f32]) + Sync,
    target: &Target<'_>,
) {
    let (tile_rows, tile_cols) = job.tiles();
    let rows = job.n * tile_rows;
    let part = (FAR / (FREQUENCIES * tile_cols * job.ci)).clamp(1, rows);
    let group = (64 / tile_cols).clamp(1, part);
    for first in (0..rows).step_by(part) {
        let part = first..(first + part).min(rows);
        with_inputs(job, Summed::Channels, x, part.clone(), |tiles| {
            (0..layout.blocks).into_par_iter().for_each(|block| {
                scratch::with(layout.block_len(), |u| {
                    transform(block, u);
                    for g in (0..part.len()).step_by(group) {
                        let rows = g..(g + group).min(part.len());
                        multiply(job, tiles, rows, first, (layout, u), block, target);
                    }
                });
            });
        });
    }
}

/// All weights transformed first, then a few tiles per worker at a time, which stay in the second-level cache.
fn by_tiles(
    job: &Job,
    x: &Source<'_>,
    layout: &Weights,
    transform: impl Fn(usize, &mut [f32]) + Sync,
    target: &Target<'_>,
) {
    let (tile_rows, tile_cols) = job.tiles();
    let rows = job.n * tile_rows;
    scratch::with(layout.len(), |u| {
        u.par_chunks_mut(layout.block_len())
            .enumerate()
            .for_each(|(block, u)| transform(block, u));
        let u = &*u;
        let near = (NEAR / (FREQUENCIES * job.ci))
            .next_multiple_of(ROWS)
            .max(32);
        let group = (near / tile_cols).clamp(1, rows.div_ceil(8));
        (0..rows.div_ceil(group)).into_par_iter().for_each(|g| {
            let rows = g * group..((g + 1) * group).min(rows);
            let count = rows.len() * tile_cols;
            let of_tiles = TileLayout::new(job, Summed::Channels, count, job.ci);
            scratch::with(of_tiles.len(), |v| {
                transform_input(job, x, rows.clone(), 0, &of_tiles, &Shared::new(v));
                let tiles = Tiles {
                    v,
                    layout: of_tiles,
                };
                for (block, u) in u.chunks_exact(layout.block_len()).enumerate() {
                    let all = 0..rows.len();
                    multiply(job, &tiles, all, rows.start, (layout, u), block, target);
                }
            });
        });
    });
}

/// Where results go, and what is added to them.
struct Target<'a> {
    dst: Shared,
    add: Add<'a>,
}

impl<'a> Target<'a> {
    fn new(dst: &mut [f32], channels: usize, add: Add<'a>) -> Self {
        check_add(add, dst.len(), channels);
        Self {
            dst: Shared::new(dst),
            add,
        }
    }
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

impl Kernel for TransformWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Product<S>>(self, simd: S, product: P) {
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
        assert!(u.len() >= (FREQUENCIES - 1) * pitch + job.ci / P::PER_WORD * lanes);
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
            for c in (0..CHANNELS).step_by(P::PER_WORD) {
                for v in (0..lanes).step_by(S::F32_LANES) {
                    let zero = simd.splat_f32s(0.0);
                    // `[row frequency][value of the word][kernel column]`.
                    let mut columns = [[[zero; 3]; 2]; SIDE];
                    for i in 0..P::PER_WORD {
                        for x in 0..3 {
                            let at = x * TAP + (c + i) * lanes + v;
                            // SAFETY: `c + i < CHANNELS` and `v + vector <= lanes <= MAX_BLOCK`.
                            let g = unsafe { gather::<S, 3>(simd, taps.as_ptr().add(at), 3 * TAP) };
                            let f = weights_to_frequencies(simd, g);
                            for r in 0..SIDE {
                                columns[r][i][x] = f[r];
                            }
                        }
                    }
                    for r in 0..SIDE {
                        let mut f = [[zero; SIDE]; 2];
                        for i in 0..P::PER_WORD {
                            f[i] = weights_to_frequencies(simd, columns[r][i]);
                        }
                        for q in 0..SIDE {
                            let words = product.words(simd, &[f[0][q], f[1][q]][..P::PER_WORD]);
                            let at = (r * SIDE + q) * pitch + (c0 + c) / P::PER_WORD * lanes + v;
                            // SAFETY: the assertion on `u` covers every frequency, word and lane.
                            unsafe { put::<S>(u.as_mut_ptr().add(at), words) };
                        }
                    }
                }
            }
        }
    }
}

/// Multiplies the tiles of `rows` (counted in `tiles`) with the weights `u` of one block and writes the outputs.
fn multiply(
    job: &Job,
    tiles: &Tiles<'_>,
    rows: Range<usize>,
    first_row: usize,
    (layout, u): (&Weights, &[f32]),
    block: usize,
    target: &Target<'_>,
) {
    let count = (rows.len() * job.tiles().1).next_multiple_of(ROWS);
    let pitch = count * layout.block + SKEW;
    scratch::with(FREQUENCIES * pitch, |m| {
        let multiply = Multiply {
            job,
            tiles,
            rows,
            first_row,
            layout,
            block,
            u,
            m,
            pitch,
            target,
        };
        dispatch(job.precision, multiply);
    });
}

struct Multiply<'a> {
    job: &'a Job,
    tiles: &'a Tiles<'a>,
    rows: Range<usize>,
    first_row: usize,
    layout: &'a Weights,
    block: usize,
    u: &'a [f32],
    /// Products `[frequency][tile][lane]` of one block.
    m: &'a mut [f32],
    pitch: usize,
    target: &'a Target<'a>,
}

impl Kernel for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Product<S>>(mut self, simd: S, product: P) {
        if self.job.co - self.block * self.layout.block >= self.layout.block {
            self.vectors::<S, P, 2>(simd, product);
        } else {
            self.vectors::<S, P, 1>(simd, product);
        }
    }
}

impl Multiply<'_> {
    #[inline(always)]
    fn vectors<S: Simd, P: Product<S>, const V: usize>(&mut self, simd: S, product: P) {
        if S::F32_LANES >= 16 {
            self.products::<S, P, ROWS, V>(simd, product);
        } else {
            self.products::<S, P, 4, V>(simd, product);
        }
        self.outputs::<S, V>(simd);
    }

    #[inline(always)]
    fn products<S: Simd, R: Product<S>, const P: usize, const V: usize>(
        &mut self,
        simd: S,
        product: R,
    ) {
        let words = self.job.ci / R::PER_WORD;
        let lanes = V * S::F32_LANES;
        let tile_cols = self.job.tiles().1;
        let (first, last) = (self.rows.start * tile_cols, self.rows.end * tile_cols);
        let u = self.u;
        assert!((FREQUENCIES - 1) * self.layout.pitch + words * lanes <= u.len());
        for f in 0..FREQUENCIES {
            let v = self.tiles.frequency(f);
            let m = &mut self.m[f * self.pitch..][..self.pitch];
            for (i, out) in (first..last).step_by(P).zip(m.chunks_exact_mut(P * lanes)) {
                // Tiles behind the last one repeat it; nobody reads their products.
                let mut rows = [v.as_ptr(); P];
                for (p, row) in rows.iter_mut().enumerate() {
                    *row = v[(i + p).min(last - 1) * words..][..words].as_ptr();
                }
                // SAFETY: each row has `words` words (sliced above), and `u` has as many rows of `V` vectors (asserted).
                let sums = unsafe {
                    tile::<S, R, P, V, 1>(
                        simd,
                        product,
                        &rows,
                        1,
                        words,
                        0,
                        u.as_ptr().add(f * self.layout.pitch),
                    )
                };
                for (p, sums) in sums.into_iter().enumerate() {
                    store::<S, V>(simd, sums, &mut out[p * lanes..(p + 1) * lanes]);
                }
            }
        }
    }

    #[inline(always)]
    fn outputs<S: Simd, const V: usize>(&self, simd: S) {
        let Job { n, oh, ow, co, .. } = *self.job;
        let (tile_rows, tile_cols) = self.job.tiles();
        let lanes = V * S::F32_LANES;
        let c0 = self.block * self.layout.block;
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
                                    Add::Bias(b) => {
                                        simd.add_f32s(y, load::<S>(b.as_ptr().add(c0 + v)))
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
