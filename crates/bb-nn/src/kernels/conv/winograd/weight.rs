//! The weight gradient, F(3x3, 4x4).
//!
//! The tiles of a part of the batch are transformed once and kept in the third-level cache; then each frequency is one
//! product `[cin, tiles] x [tiles, cout]`, summed over the parts. The sums go back to 3x3 weights at the end only.

use super::super::weight::Strip;
use super::*;

/// Floats of transformed inputs and gradients of one part of the batch.
const PART: usize = 5 << 20;
/// Tiles whose gradients stay in the first-level cache.
const STRIP: usize = 128;

/// `dw = d/dw conv(x, w) * dy`; a 3x3 kernel of stride 1, channels in multiples of [`CHANNELS`]. Overwrites `dw`.
pub(in super::super) fn gradient(s: &ConvShape, x: Source<'_>, dy: &[f32], dw: &mut [f32]) {
    let job = Job::forward(s);
    let (tile_rows, tile_cols) = job.tiles();
    let rows = s.n * tile_rows;
    let per_row = FREQUENCIES * tile_cols * (s.cin + s.cout);
    let part = (PART / per_row).clamp(1, rows);
    let sum_len = s.cin * s.cout;
    scratch::with(FREQUENCIES * sum_len, |sums| {
        for first in (0..rows).step_by(part) {
            let rows = first..(first + part).min(rows);
            let tiles = rows.len() * tile_cols;
            let pitch = tiles * s.cout + SKEW;
            with_tiles(&job, &x, rows.clone(), |inputs| {
                scratch::with(FREQUENCIES * pitch, |d| {
                    transform_gradients(&job, dy, rows.clone(), pitch, d);
                    let gradients = Tiles { v: d, pitch };
                    sums.par_chunks_mut(sum_len)
                        .enumerate()
                        .for_each(|(frequency, sums)| {
                            if first == 0 {
                                sums.fill(0.0);
                            }
                            Arch::new().dispatch(Products {
                                s,
                                x: &inputs.v[frequency * inputs.pitch..][..tiles * s.cin],
                                dy: &gradients.v[frequency * pitch..][..tiles * s.cout],
                                sums,
                            });
                        });
                });
            });
        }
        let sums = &*sums;
        let target = Shared::new(dw);
        let piece = (4096 / s.cout).max(1);
        (0..s.cin.div_ceil(piece)).into_par_iter().for_each(|p| {
            let channels = p * piece..((p + 1) * piece).min(s.cin);
            Arch::new().dispatch(ToWeights {
                s,
                channels,
                sums,
                target: &target,
            });
        });
    });
}

fn transform_gradients(job: &Job, dy: &[f32], rows: Range<usize>, pitch: usize, d: &mut [f32]) {
    let tile_cols = job.tiles().1;
    let d = Shared::new(d);
    let piece = (16 / tile_cols).max(1);
    (0..rows.len().div_ceil(piece))
        .into_par_iter()
        .for_each(|p| {
            let part = p * piece..((p + 1) * piece).min(rows.len());
            let at = part.start * tile_cols;
            let rows = rows.start + part.start..rows.start + part.end;
            Arch::new().dispatch(TransformGradients {
                job,
                dy,
                rows,
                at,
                pitch,
                d: &d,
            });
        });
}

/// Transforms the output gradients of tile rows `rows` (counted over the batch) into tiles `at..` of `d`.
struct TransformGradients<'a> {
    job: &'a Job,
    dy: &'a [f32],
    rows: Range<usize>,
    at: usize,
    pitch: usize,
    d: &'a Shared,
}

impl WithSimd for TransformGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            job,
            dy,
            rows,
            at,
            pitch,
            d,
        } = self;
        let Job { n, oh, ow, co, .. } = *job;
        let (tile_rows, tile_cols) = job.tiles();
        assert_eq!(dy.len(), n * oh * ow * co);
        assert!(co.is_multiple_of(S::F32_LANES) && rows.end <= n * tile_rows);
        assert!((FREQUENCIES - 1) * pitch + (at + rows.len() * tile_cols) * co <= d.len);
        let zero = simd.splat_f32s(0.0);
        for (i, row) in rows.enumerate() {
            let (image, top) = (row / tile_rows, row % tile_rows * TILE);
            for tile in 0..tile_cols {
                let left = tile * TILE;
                let (height, width) = (TILE.min(oh - top), TILE.min(ow - left));
                let start = ((image * oh + top) * ow + left) * co;
                let place = (at + i * tile_cols + tile) * co;
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
                        for q in 0..SIDE {
                            let at = (r * SIDE + q) * pitch + place + c;
                            // SAFETY: inside `d` by the assertion above, and no other worker has this tile.
                            unsafe { put::<S>(d.data.add(at), f[q]) };
                        }
                    }
                }
            }
        }
    }
}

/// `sums += x^T dy` of one frequency; `x` is `[tiles, cin]`, `dy` is `[tiles, cout]`, `sums` is `[cin, cout]`.
struct Products<'a> {
    s: &'a ConvShape,
    x: &'a [f32],
    dy: &'a [f32],
    sums: &'a mut [f32],
}

impl WithSimd for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
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
                        strip.add::<S, 8, 1>(simd, s.cout, S::F32_LANES, out);
                    } else if S::F32_LANES >= 16 {
                        strip.add::<S, 8, 2>(simd, s.cout, block, out);
                    } else {
                        strip.add::<S, 4, 2>(simd, s.cout, block, out);
                        let upper = Strip {
                            x: &strip.x[4..],
                            ..strip
                        };
                        upper.add::<S, 4, 2>(simd, s.cout, block, &mut out[4 * s.cout..]);
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

impl WithSimd for ToWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
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
