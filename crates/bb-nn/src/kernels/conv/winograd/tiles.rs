//! Transformed tiles and how they are made from images.

use super::super::Source;
use super::axis::{gradient_to_frequencies, to_frequencies};
use super::{CHANNELS, FREQUENCIES, Job, SIDE, SKEW, Shared, TILE, gather, load, put};
use crate::kernels::precision::{Kernel, Product, dispatch, per_word};
use crate::kernels::scratch;
use pulp::Simd;
use rayon::prelude::*;
use std::ops::Range;

/// The axis over which products of tiles are summed, whose neighbours therefore share a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Summed {
    /// Forward pass and input gradient: words of `[tile][channel / values per word]`.
    Channels,
    /// Weight gradient: words of `[tile / values per word][channel]`.
    Tiles,
}

/// How the tiles of one frequency lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileLayout {
    pub(super) summed: Summed,
    pub(super) channels: usize,
    /// Words of a frequency in use.
    pub(super) words: usize,
    /// Words from frequency to frequency.
    pub(super) pitch: usize,
}

impl TileLayout {
    pub(super) fn new(job: &Job, summed: Summed, tiles: usize, channels: usize) -> Self {
        let per_word = per_word(job.precision);
        let words = match summed {
            Summed::Channels => tiles * channels / per_word,
            Summed::Tiles => tiles.div_ceil(per_word) * channels,
        };
        Self {
            summed,
            channels,
            words,
            pitch: words + SKEW,
        }
    }

    /// Words of all frequencies.
    pub(super) fn len(&self) -> usize {
        FREQUENCIES * self.pitch
    }

    /// Whether `tiles` tiles have room.
    fn holds<S: Simd, P: Product<S>>(&self, tiles: usize) -> bool {
        self.channels.is_multiple_of(S::F32_LANES)
            && match self.summed {
                Summed::Channels => tiles * self.channels / P::PER_WORD <= self.words,
                Summed::Tiles => tiles.div_ceil(P::PER_WORD) * self.channels <= self.words,
            }
    }

    /// Writes six of the 36 frequencies of a vector of channels, from `c` on, of one tile.
    ///
    /// # Safety
    /// `v` must have [`TileLayout::len`] words, tile and channels must be of the layout, and nobody else may write the
    /// words of the tile (of the pair of tiles, where words join tiles). Where words join tiles, they must be written in
    /// ascending order.
    #[inline(always)]
    unsafe fn put_row<S: Simd, P: Product<S>>(
        &self,
        simd: S,
        product: P,
        v: *mut f32,
        (tile, c): (usize, usize),
        row: usize,
        f: [S::f32s; SIDE],
    ) {
        for (q, f) in f.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let v = v.add((row * SIDE + q) * self.pitch);
                if self.summed == Summed::Channels || P::PER_WORD == 1 {
                    product.put_neighbours(
                        simd,
                        f,
                        v.add((tile * self.channels + c) / P::PER_WORD),
                    );
                } else {
                    let at = v.add(tile / P::PER_WORD * self.channels + c);
                    let words = if tile.is_multiple_of(P::PER_WORD) {
                        product.words(simd, &[f, simd.splat_f32s(0.0)])
                    } else {
                        product.with_second(simd, load::<S>(at), f)
                    };
                    put::<S>(at, words);
                }
            }
        }
    }
}

/// Transformed tiles, `[frequency]` and then as the layout says.
pub(super) struct Tiles<'a> {
    pub(super) v: &'a [f32],
    pub(super) layout: TileLayout,
}

impl Tiles<'_> {
    /// The words of one frequency.
    pub(super) fn frequency(&self, f: usize) -> &[f32] {
        &self.v[f * self.layout.pitch..][..self.layout.words]
    }
}

/// Transforms the input tiles of `rows` (tile rows of the batch) on all cores and hands them to `f`.
pub(super) fn with_inputs<T>(
    job: &Job,
    summed: Summed,
    x: &Source<'_>,
    rows: Range<usize>,
    f: impl FnOnce(&Tiles<'_>) -> T,
) -> T {
    let layout = TileLayout::new(job, summed, rows.len() * job.tiles().1, job.ci);
    scratch::with(layout.len(), |v| {
        let shared = Shared::new(v);
        pieces(job, rows, |rows, at| {
            transform_input(job, x, rows, at, &layout, &shared);
        });
        f(&Tiles { v, layout })
    })
}

/// Transforms the output gradients of `rows` (tile rows of the batch) on all cores and hands them to `f`.
pub(super) fn with_gradients<T>(
    job: &Job,
    dy: &[f32],
    rows: Range<usize>,
    f: impl FnOnce(&Tiles<'_>) -> T,
) -> T {
    let layout = TileLayout::new(job, Summed::Tiles, rows.len() * job.tiles().1, job.co);
    scratch::with(layout.len(), |v| {
        let shared = Shared::new(v);
        pieces(job, rows, |rows, at| {
            let transform = TransformGradients {
                job,
                dy,
                rows,
                at,
                layout: &layout,
                v: &shared,
            };
            dispatch(job.precision, transform);
        });
        f(&Tiles { v, layout })
    })
}

/// Calls `f` on pieces of `rows`, with the number of tiles before each, on all cores.
/// Pieces have an even number of rows, so that no word joins tiles of two pieces.
fn pieces(job: &Job, rows: Range<usize>, f: impl Fn(Range<usize>, usize) + Sync) {
    let tile_cols = job.tiles().1;
    let piece = (16 / tile_cols).max(1).next_multiple_of(2);
    (0..rows.len().div_ceil(piece))
        .into_par_iter()
        .for_each(|p| {
            let (first, last) = (p * piece, ((p + 1) * piece).min(rows.len()));
            f(rows.start + first..rows.start + last, first * tile_cols);
        });
}

/// Transforms the tiles of tile rows `rows` (counted over the batch) into tiles `at..` of `v`.
pub(super) fn transform_input(
    job: &Job,
    x: &Source<'_>,
    rows: Range<usize>,
    at: usize,
    layout: &TileLayout,
    v: &Shared,
) {
    let width = job.tiles().1 * TILE + 2;
    scratch::with(SIDE * width * CHANNELS, |lines| {
        let transform = TransformInput {
            job,
            x,
            rows,
            at,
            layout,
            v,
            lines,
        };
        dispatch(job.precision, transform);
    });
}

struct TransformInput<'a> {
    job: &'a Job,
    x: &'a Source<'a>,
    rows: Range<usize>,
    at: usize,
    layout: &'a TileLayout,
    v: &'a Shared,
    /// `[frequency of the row axis][column][lane]` of one tile row and one vector of channels.
    lines: &'a mut [f32],
}

impl Kernel for TransformInput<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Product<S>>(self, simd: S, product: P) {
        let Self {
            job,
            x,
            rows,
            at,
            layout,
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
        assert!(v.len >= layout.len() && layout.channels == job.ci);
        assert!(layout.holds::<S, P>(at + rows.len() * tile_cols));
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
                    let place = (at + i * tile_cols + tile, c);
                    for r in 0..SIDE {
                        let start = r * line + tile * TILE * S::F32_LANES;
                        // SAFETY: a tile's six columns lie inside the line.
                        let d = unsafe {
                            gather::<S, SIDE>(simd, lines.as_ptr().add(start), S::F32_LANES)
                        };
                        let f = to_frequencies(simd, d);
                        // SAFETY: the layout holds the tile, `v` has the layout's length (both asserted), and no
                        // other worker has these tiles.
                        unsafe { layout.put_row(simd, product, v.data, place, r, f) };
                    }
                }
            }
        }
    }
}

/// Transforms the output gradients of tile rows `rows` (counted over the batch) into tiles `at..` of `v`.
struct TransformGradients<'a> {
    job: &'a Job,
    dy: &'a [f32],
    rows: Range<usize>,
    at: usize,
    layout: &'a TileLayout,
    v: &'a Shared,
}

impl Kernel for TransformGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Product<S>>(self, simd: S, product: P) {
        let Self {
            job,
            dy,
            rows,
            at,
            layout,
            v,
        } = self;
        let Job { n, oh, ow, co, .. } = *job;
        let (tile_rows, tile_cols) = job.tiles();
        assert_eq!(dy.len(), n * oh * ow * co);
        assert!(co.is_multiple_of(S::F32_LANES) && rows.end <= n * tile_rows);
        assert!(v.len >= layout.len() && layout.channels == co);
        assert!(layout.holds::<S, P>(at + rows.len() * tile_cols));
        let zero = simd.splat_f32s(0.0);
        for (i, row) in rows.enumerate() {
            let (image, top) = (row / tile_rows, row % tile_rows * TILE);
            for tile in 0..tile_cols {
                let left = tile * TILE;
                let (height, width) = (TILE.min(oh - top), TILE.min(ow - left));
                let start = ((image * oh + top) * ow + left) * co;
                for c in (0..co).step_by(S::F32_LANES) {
                    let mut lines = [[zero; TILE]; SIDE];
                    for x in 0..width {
                        let mut g = [zero; TILE];
                        for (y, g) in g.iter_mut().enumerate().take(height) {
                            // SAFETY: `top + y < oh` and `left + x < ow`, and the length was checked.
                            *g = unsafe {
                                load::<S>(dy.as_ptr().add(start + (y * ow + x) * co + c))
                            };
                        }
                        let f = gradient_to_frequencies(simd, g);
                        for r in 0..SIDE {
                            lines[r][x] = f[r];
                        }
                    }
                    for r in 0..SIDE {
                        let f = gradient_to_frequencies(simd, lines[r]);
                        let place = (at + i * tile_cols + tile, c);
                        // SAFETY: the layout holds the tile, `v` has the layout's length (both asserted), and no
                        // other worker has these tiles.
                        unsafe { layout.put_row(simd, product, v.data, place, r, f) };
                    }
                }
            }
        }
    }
}
