//! The weight gradient, F(3x3, 4x4).
//!
//! The tiles of a part of the batch are transformed once and kept in the third-level cache; then each frequency is one
//! product `[cin, tiles] x [tiles, cout]`, summed over the parts. The sums go back to 3x3 weights at the end only.

use super::super::weight::Strip;
use super::super::{ConvShape, Source};
use super::axis::to_weights;
use super::tiles::{Summed, with_gradients, with_inputs};
use super::{FREQUENCIES, Job, SIDE, Shared, gather, put};
use crate::kernels::precision::{Kernel, Precision, Product, dispatch};
use crate::kernels::scratch;
use pulp::Simd;
use rayon::prelude::*;
use std::ops::Range;

/// Floats of transformed inputs and gradients of one part of the batch.
const PART: usize = 5 << 20;
/// Words of tiles whose gradients stay in the first-level cache.
const STRIP: usize = 128;

/// `dw = d/dw conv(x, w) * dy`; a 3x3 kernel of stride 1, channels in multiples of [`CHANNELS`]. Overwrites `dw`.
pub(in super::super) fn gradient(
    s: &ConvShape,
    precision: Precision,
    x: Source<'_>,
    dy: &[f32],
    dw: &mut [f32],
) {
    let job = Job::forward(s, precision);
    let (tile_rows, tile_cols) = job.tiles();
    let rows = s.n * tile_rows;
    // An even number of rows, so that no word joins tiles of two parts.
    let per_row = FREQUENCIES * tile_cols * (s.cin + s.cout);
    let part = (PART / per_row).max(1).next_multiple_of(2).min(rows);
    let sum_len = s.cin * s.cout;
    scratch::with(FREQUENCIES * sum_len, |sums| {
        for first in (0..rows).step_by(part) {
            let rows = first..(first + part).min(rows);
            with_inputs(&job, Summed::Tiles, &x, rows.clone(), |inputs| {
                with_gradients(&job, dy, rows.clone(), |gradients| {
                    sums.par_chunks_mut(sum_len)
                        .enumerate()
                        .for_each(|(frequency, sums)| {
                            if first == 0 {
                                sums.fill(0.0);
                            }
                            let products = Products {
                                s,
                                x: inputs.frequency(frequency),
                                dy: gradients.frequency(frequency),
                                sums,
                            };
                            dispatch(precision, products);
                        });
                });
            });
        }
        let sums = &*sums;
        let target = Shared::new(dw);
        let piece = (4096 / s.cout).max(1);
        (0..s.cin.div_ceil(piece)).into_par_iter().for_each(|p| {
            let channels = p * piece..((p + 1) * piece).min(s.cin);
            let to_weights = ToWeights {
                s,
                channels,
                sums,
                target: &target,
            };
            dispatch(Precision::F32, to_weights);
        });
    });
}

/// `sums += x^T dy` of one frequency; `x` is `[words of tiles, cin]`, `dy` is `[words of tiles, cout]`, `sums` is
/// `[cin, cout]`.
struct Products<'a> {
    s: &'a ConvShape,
    x: &'a [f32],
    dy: &'a [f32],
    sums: &'a mut [f32],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Product<S>>(self, simd: S, product: P) {
        let Self { s, x, dy, sums } = self;
        let tiles = x.len() / s.cin;
        let block = 2 * S::F32_LANES;
        for first in (0..tiles).step_by(STRIP) {
            let count = STRIP.min(tiles - first);
            for c0 in (0..s.cout).step_by(block) {
                for m in (0..s.cin).step_by(8) {
                    let strip = Strip {
                        images: 1,
                        rows: 1,
                        cols: count,
                        x: &x[first * s.cin + m..],
                        x_pitch: (0, 0, s.cin),
                        dy: &dy[first * s.cout + c0..],
                        dy_pitch: (0, 0, s.cout),
                    };
                    let out = &mut sums[m * s.cout + c0..];
                    if s.cout - c0 < block {
                        strip.add::<S, P, 8, 1>(simd, product, s.cout, S::F32_LANES, out);
                    } else if S::F32_LANES >= 16 {
                        strip.add::<S, P, 8, 2>(simd, product, s.cout, block, out);
                    } else {
                        strip.add::<S, P, 4, 2>(simd, product, s.cout, block, out);
                        let upper = Strip {
                            x: &strip.x[4..],
                            ..strip
                        };
                        upper.add::<S, P, 4, 2>(
                            simd,
                            product,
                            s.cout,
                            block,
                            &mut out[4 * s.cout..],
                        );
                    }
                }
            }
        }
    }
}

/// The weight gradient of some input channels from the sums of all frequencies, `[frequency][cin][cout]`.
struct ToWeights<'a> {
    s: &'a ConvShape,
    channels: Range<usize>,
    sums: &'a [f32],
    target: &'a Shared,
}

impl Kernel for ToWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Product<S>>(self, simd: S, _: P) {
        let Self {
            s,
            channels,
            sums,
            target,
        } = self;
        let len = s.cin * s.cout;
        assert!(sums.len() == FREQUENCIES * len && target.len == 9 * len);
        assert!(channels.end <= s.cin && s.cout.is_multiple_of(S::F32_LANES));
        let zero = simd.splat_f32s(0.0);
        for at in (channels.start * s.cout..channels.end * s.cout).step_by(S::F32_LANES) {
            let mut columns = [[zero; SIDE]; 3];
            for q in 0..SIDE {
                // SAFETY: `at` is inside a matrix of `len` floats, of which there are 36.
                let m =
                    unsafe { gather::<S, SIDE>(simd, sums.as_ptr().add(q * len + at), SIDE * len) };
                let f = to_weights(simd, m);
                for r in 0..3 {
                    columns[r][q] = f[r];
                }
            }
            for r in 0..3 {
                let f = to_weights(simd, columns[r]);
                for (q, f) in f.into_iter().enumerate() {
                    // SAFETY: inside the nine matrices of `len` floats; no other worker has these channels.
                    unsafe { put::<S>(target.data.add((r * 3 + q) * len + at), f) };
                }
            }
        }
    }
}
