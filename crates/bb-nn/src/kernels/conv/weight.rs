//! The weight gradient of any shape.
//!
//! Strips of output pixels stay in the first-level cache while tiles of eight input elements times two vectors of
//! output channels pass over them; parts of the batch have their own sums, added in a fixed order.

use super::direct::{Plan, accumulate, block_width, pad_image, vector_at};
use super::{ConvShape, Source};
use crate::kernels::precision::{Kernel, Precision, Product, dispatch, per_word};
use crate::kernels::scratch;
use pulp::Simd;
use rayon::prelude::*;

/// Output pixels whose gradient stays in the first-level cache while the weight gradient's tiles pass over it.
const STRIP_PIXELS: usize = 256;
/// Above this many weights the batch is cut into few parts, because each part owns a full set of partial sums.
const LARGE_WEIGHTS: usize = 1 << 18;

/// `dw = d/dw conv(x, w) * dy`; the lengths must have been checked. Overwrites `dw`.
pub(super) fn gradient(
    s: &ConvShape,
    precision: Precision,
    x: Source<'_>,
    dy: &[f32],
    dw: &mut [f32],
) {
    // Images are padded as `f32`; words join neighbouring pixels, not channels.
    let plan = Plan::forward(s, Precision::F32);
    let parts = s.n.min(if dw.len() > LARGE_WEIGHTS { 4 } else { 16 });
    let slabs = if dw.len() > LARGE_WEIGHTS { s.k } else { 1 };
    let slab_len = dw.len() / slabs;
    let geometry = StripGeometry::new(s, &plan, precision);
    scratch::with(parts * dw.len(), |partial| {
        partial
            .par_chunks_mut(slab_len)
            .enumerate()
            .for_each(|(task, sums)| {
                let (part, slab) = (task / slabs, task % slabs);
                let images = (part * s.n / parts)..((part + 1) * s.n / parts);
                let ky = (slab * s.k / slabs)..((slab + 1) * s.k / slabs);
                sums.fill(0.0);
                // The buffer is taken outside the dispatched code: a closure inside it would lose the vector features.
                scratch::with(geometry.buffer_len(), |buffer| {
                    let part = WeightPart {
                        s,
                        plan: &plan,
                        geometry: &geometry,
                        images,
                        ky,
                        x,
                        dy,
                        sums,
                        buffer,
                    };
                    dispatch(precision, part);
                });
            });
        let partial = &*partial;
        let chunk = dw.len().div_ceil(64).max(1024);
        let total = dw.len();
        dw.par_chunks_mut(chunk).enumerate().for_each(|(c, out)| {
            out.copy_from_slice(&partial[c * chunk..][..out.len()]);
            for part in 1..parts {
                let add = &partial[part * total + c * chunk..][..out.len()];
                for (o, a) in out.iter_mut().zip(add) {
                    *o += a;
                }
            }
        });
    });
}

/// How the weight gradient cuts a batch into strips.
struct StripGeometry {
    /// Images whose pixels are taken together.
    together: usize,
    /// Output rows of a strip.
    rows: usize,
    /// Floats of one padded input image.
    padded_image: usize,
    /// Output channels rounded up to whole vectors.
    cout_padded: usize,
    /// Words of one image's input, 0 where they are the padded image itself.
    paired_image: usize,
    /// Words of one image's output gradient, 0 where they are the gradient itself.
    wide_image: usize,
}

impl StripGeometry {
    fn new(s: &ConvShape, plan: &Plan, precision: Precision) -> Self {
        let (oh, ow) = (s.oh(), s.ow());
        let together = (STRIP_PIXELS / (oh * ow)).max(1);
        let cout_padded = s.cout.next_multiple_of(block_width(precision, s.cout));
        let padded_image = plan.padded.0 * plan.padded.1 * s.cin;
        let single = per_word(precision) == 1;
        Self {
            together,
            rows: (STRIP_PIXELS / ow).clamp(1, oh),
            padded_image,
            cout_padded,
            paired_image: if single { 0 } else { padded_image },
            wide_image: if single && cout_padded == s.cout {
                0
            } else {
                oh * ow.div_ceil(per_word(precision)) * cout_padded
            },
        }
    }

    fn buffer_len(&self) -> usize {
        self.together * (self.padded_image + self.paired_image + self.wide_image)
    }
}

/// The weight gradient of some images and some kernel rows.
struct WeightPart<'a> {
    s: &'a ConvShape,
    plan: &'a Plan,
    geometry: &'a StripGeometry,
    images: std::ops::Range<usize>,
    ky: std::ops::Range<usize>,
    x: Source<'a>,
    dy: &'a [f32],
    /// `[kernel row][k * cin][cout]`.
    sums: &'a mut [f32],
    buffer: &'a mut [f32],
}

impl Kernel for WeightPart<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd, P: Product<S>>(self, simd: S, product: P) {
        if self.s.cout <= S::F32_LANES {
            self.strips::<S, P, 1>(simd, product)
        } else {
            self.strips::<S, P, 2>(simd, product)
        }
    }
}

impl WeightPart<'_> {
    #[inline(always)]
    fn strips<S: Simd, P: Product<S>, const V: usize>(self, simd: S, product: P) {
        let Self {
            s,
            plan,
            geometry,
            images,
            ky,
            x,
            dy,
            sums,
            buffer,
        } = self;
        let StripGeometry {
            together,
            rows: strip_rows,
            padded_image,
            cout_padded,
            paired_image,
            wide_image,
        } = *geometry;
        let block = V * S::F32_LANES;
        let (oh, ow) = (s.oh(), s.ow());
        let pitch = plan.padded.1 * s.cin;
        let out_pixels = oh * ow;
        // Words of a row of output pixels, and input floats from word to word.
        let cols = ow.div_ceil(P::PER_WORD);
        let step = P::PER_WORD * s.stride * s.cin;
        let run = s.k * s.cin;
        let (padded, rest) = buffer.split_at_mut(together * padded_image);
        let (paired, wide_dy) = rest.split_at_mut(together * paired_image);
        let mut first = images.start;
        while first < images.end {
            let count = together.min(images.end - first);
            for i in 0..count {
                let len = s.h * s.w * s.cin;
                let image = x.part((first + i) * len, len);
                let padded = &mut padded[i * padded_image..][..padded_image];
                pad_image(plan, Precision::F32, &image, padded);
            }
            let x_words = if paired_image > 0 {
                let padded = &padded[..count * padded_image];
                pair_neighbours(simd, product, padded, s.stride * s.cin, paired);
                &paired[..padded.len()]
            } else {
                &padded[..count * padded_image]
            };
            let mut dy = &dy[first * out_pixels * s.cout..][..count * out_pixels * s.cout];
            if wide_image > 0 {
                let wide = &mut wide_dy[..count * wide_image];
                for (out, src) in wide
                    .chunks_exact_mut(cols * cout_padded)
                    .zip(dy.chunks_exact(ow * s.cout))
                {
                    widen_row(simd, product, src, s.cout, cout_padded, out);
                }
                dy = wide;
            }
            let mut row0 = 0;
            while row0 < oh {
                let rows = strip_rows.min(oh - row0);
                let mut c0 = 0;
                while c0 < s.cout {
                    let lanes = block.min(s.cout - c0);
                    let mut slab = 0;
                    while slab < ky.len() {
                        let mut m = 0;
                        while m < run {
                            let left = run - m;
                            let strip = Strip {
                                images: count,
                                rows,
                                cols,
                                x: &x_words[(row0 * s.stride + ky.start + slab) * pitch + m..],
                                x_pitch: (padded_image, s.stride * pitch, step),
                                dy: &dy[row0 * cols * cout_padded + c0..],
                                dy_pitch: (
                                    oh * cols * cout_padded,
                                    cols * cout_padded,
                                    cout_padded,
                                ),
                            };
                            let out = &mut sums[(slab * run + m) * s.cout + c0..];
                            m += if left >= 16 && V == 1 && S::F32_LANES >= 16 {
                                strip.add::<S, P, 16, V>(simd, product, s.cout, lanes, out)
                            } else if left >= 8 && S::F32_LANES >= 16 {
                                strip.add::<S, P, 8, V>(simd, product, s.cout, lanes, out)
                            } else if left >= 4 {
                                strip.add::<S, P, 4, V>(simd, product, s.cout, lanes, out)
                            } else {
                                strip.add::<S, P, 1, V>(simd, product, s.cout, lanes, out)
                            };
                        }
                        slab += 1;
                    }
                    c0 += block;
                }
                row0 += rows;
            }
            first += count;
        }
    }
}

/// Words of each element and the one `distance` behind it, which belongs to the next output pixel of the row.
/// At the end of a row the second value is of no pixel; the output gradient's word has zero there.
#[inline(always)]
fn pair_neighbours<S: Simd, P: Product<S>>(
    simd: S,
    product: P,
    values: &[f32],
    distance: usize,
    words: &mut [f32],
) {
    let whole = values.len().saturating_sub(distance) / S::F32_LANES * S::F32_LANES;
    let (body, tail) = words[..values.len()].split_at_mut(whole);
    for (i, out) in body.chunks_exact_mut(S::F32_LANES).enumerate() {
        let at = i * S::F32_LANES;
        let pair = [
            vector_at::<S>(values, at),
            vector_at::<S>(values, at + distance),
        ];
        out.copy_from_slice(bytemuck::cast_slice(&[product.words(simd, &pair)]));
    }
    for (i, out) in tail.iter_mut().enumerate() {
        let at = whole + i;
        let second = values.get(at + distance).copied().unwrap_or(0.0);
        let pair = [simd.splat_f32s(values[at]), simd.splat_f32s(second)];
        let words: [S::f32s; 1] = [product.words(simd, &pair)];
        *out = bytemuck::cast_slice::<_, f32>(&words)[0];
    }
}

/// A row of output gradients as words of neighbouring pixels, with channels filled up with zeros.
#[inline(always)]
fn widen_row<S: Simd, P: Product<S>>(
    simd: S,
    product: P,
    row: &[f32],
    c: usize,
    c_padded: usize,
    out: &mut [f32],
) {
    for (pixels, out) in row
        .chunks(P::PER_WORD * c)
        .zip(out.chunks_exact_mut(c_padded))
    {
        for (v, out) in out.chunks_exact_mut(S::F32_LANES).enumerate() {
            let at = v * S::F32_LANES;
            let mut pair = [simd.splat_f32s(0.0); 2];
            for (value, pixel) in pair.iter_mut().zip(pixels.chunks_exact(c)) {
                if at + S::F32_LANES <= c {
                    *value = vector_at::<S>(pixel, at);
                } else if at < c {
                    let mut full = [0f32; 16];
                    full[..c - at].copy_from_slice(&pixel[at..]);
                    *value = vector_at::<S>(&full, 0);
                }
            }
            let words = product.words(simd, &pair[..P::PER_WORD]);
            out.copy_from_slice(bytemuck::cast_slice(&[words]));
        }
    }
}

/// Rows of some images of the padded input and of the output gradient, from the first element of a tile on.
pub(super) struct Strip<'a> {
    pub(super) images: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) x: &'a [f32],
    /// Floats from image to image, row to row and column to column.
    pub(super) x_pitch: (usize, usize, usize),
    pub(super) dy: &'a [f32],
    pub(super) dy_pitch: (usize, usize, usize),
}

impl Strip<'_> {
    /// Adds the products of `M` input elements with `V` vectors of output channels over all pixels; returns `M`.
    #[inline(always)]
    pub(super) fn add<S: Simd, P: Product<S>, const M: usize, const V: usize>(
        &self,
        simd: S,
        product: P,
        cout: usize,
        lanes: usize,
        out: &mut [f32],
    ) -> usize {
        let last = |p: (usize, usize, usize)| {
            (self.images - 1) * p.0 + (self.rows - 1) * p.1 + (self.cols - 1) * p.2
        };
        assert!(last(self.x_pitch) + M <= self.x.len(), "input strip");
        assert!(
            last(self.dy_pitch) + V * S::F32_LANES <= self.dy.len(),
            "gradient strip"
        );
        let zero = simd.splat_f32s(0.0);
        let mut acc = [[zero; V]; M];
        for image in 0..self.images {
            for row in 0..self.rows {
                // SAFETY: `last` above is the largest offset that these three loops reach.
                let (mut x, mut dy) = unsafe {
                    (
                        self.x
                            .as_ptr()
                            .add(image * self.x_pitch.0 + row * self.x_pitch.1),
                        self.dy
                            .as_ptr()
                            .add(image * self.dy_pitch.0 + row * self.dy_pitch.1),
                    )
                };
                for _ in 0..self.cols {
                    let mut vector = [zero; V];
                    for (v, out) in vector.iter_mut().enumerate() {
                        // SAFETY: `V` vectors from the pixel's offset lie inside `dy` (asserted).
                        *out =
                            unsafe { dy.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned() };
                    }
                    for m in 0..M {
                        // SAFETY: `M` floats from the pixel's offset lie inside `x` (asserted).
                        let value = simd.splat_f32s(unsafe { *x.add(m) });
                        for v in 0..V {
                            acc[m][v] = product.mul_add(simd, value, vector[v], acc[m][v]);
                        }
                    }
                    x = x.wrapping_add(self.x_pitch.2);
                    dy = dy.wrapping_add(self.dy_pitch.2);
                }
            }
        }
        for m in 0..M {
            accumulate::<S, V>(simd, acc[m], &mut out[m * cout..][..lanes]);
        }
        M
    }
}
