//! The direct form: forward pass and input gradient of any shape.
//!
//! Both are written as *phases*: sub-convolutions in which every output pixel reads a dense window of a zero-padded
//! source. A forward pass is one phase; the input gradient of a convolution of stride `s` splits into `s * s` phases,
//! one for each residue of the output position, so that no product with an inserted zero is ever formed.
//! Inside a phase a tile of eight pixels times two vectors of output channels stays in registers, the window of a
//! pixel is `rows x (columns * channels)` contiguous floats, and the packed weights of the tile's channels are
//! streamed from the second-level cache.
//! Source and weights are laid out in words (see [`precision`](crate::kernels::precision)), so one code serves all
//! precisions.

use super::{Add, ConvShape, Source, check_add};
use crate::kernels::precision::{Kernel, Precision, Product, dispatch, lanes, per_word};
use crate::kernels::{norm, scratch};
use pulp::Simd;
use rayon::prelude::*;

/// A sub-convolution with dense windows; see the module's head.
#[derive(Debug)]
struct Phase {
    /// First destination row and column.
    dst: (usize, usize),
    /// Destination rows and columns of this phase.
    rows: usize,
    cols: usize,
    /// Window origin of the first destination pixel, in the padded source.
    src: (usize, usize),
    /// Kernel indices of the window's rows and columns, in window order.
    ky: Vec<usize>,
    kx: Vec<usize>,
    /// Where this phase's weights begin inside one packed block of output channels, in units of the block's width.
    weights_at: usize,
}

/// How a convolution (or its input gradient) runs over a padded source.
#[derive(Debug)]
pub(super) struct Plan {
    /// Source channels.
    channels: usize,
    /// Source rows, columns and words of a pixel.
    src: (usize, usize, usize),
    dst: (usize, usize, usize),
    /// Rows and columns of zeros before the source.
    lead: (usize, usize),
    /// Height and width of the padded source.
    pub(super) padded: (usize, usize),
    /// Source pixels between neighbouring destination pixels of a phase.
    src_step: usize,
    /// Destination pixels between neighbouring destination pixels of a phase.
    dst_step: usize,
    phases: Vec<Phase>,
    /// Window words (rows of packed weights) of all phases together.
    depth: usize,
}

impl Plan {
    pub(super) fn forward(s: &ConvShape, precision: Precision) -> Self {
        let (oh, ow) = (s.oh(), s.ow());
        let words = s.cin.div_ceil(per_word(precision));
        let taps: Vec<usize> = (0..s.k).collect();
        Self {
            channels: s.cin,
            src: (s.h, s.w, words),
            dst: (oh, ow, s.cout),
            lead: (s.pad, s.pad),
            padded: (
                ((oh - 1) * s.stride + s.k).max(s.h + s.pad),
                ((ow - 1) * s.stride + s.k).max(s.w + s.pad),
            ),
            src_step: s.stride,
            dst_step: 1,
            phases: vec![Phase {
                dst: (0, 0),
                rows: oh,
                cols: ow,
                src: (0, 0),
                ky: taps.clone(),
                kx: taps,
                weights_at: 0,
            }],
            depth: s.k * s.k * words,
        }
    }

    /// The input gradient: `dx[i] = sum over ky with (i + pad - ky) divisible by stride of dy[(i + pad - ky) / stride] * w[ky]`.
    fn input_gradient(s: &ConvShape, precision: Precision) -> Self {
        let (oh, ow) = (s.oh(), s.ow());
        let words = s.cout.div_ceil(per_word(precision));
        let axis = |size: usize, out: usize| -> (usize, usize, Vec<AxisPhase>) {
            let parts: Vec<AxisPhase> = (0..s.stride.min(size))
                .map(|a| AxisPhase::new(a, size, s.k, s.stride, s.pad))
                .collect();
            let lead = parts
                .iter()
                .map(|p| (-p.first).max(0))
                .max()
                .unwrap_or(0)
                .unsigned_abs();
            let end = parts
                .iter()
                .map(|p| (p.len - 1 + p.taps.len() + lead).saturating_add_signed(p.first))
                .max()
                .unwrap_or(0)
                .max(out + lead);
            (lead, end, parts)
        };
        let (lead_h, pad_h, rows) = axis(s.h, oh);
        let (lead_w, pad_w, cols) = axis(s.w, ow);
        let mut phases = Vec::with_capacity(rows.len() * cols.len());
        let mut depth = 0;
        for (a, row) in rows.iter().enumerate() {
            for (b, col) in cols.iter().enumerate() {
                phases.push(Phase {
                    dst: (a, b),
                    rows: row.len,
                    cols: col.len,
                    src: (
                        lead_h.saturating_add_signed(row.first),
                        lead_w.saturating_add_signed(col.first),
                    ),
                    ky: row.taps.clone(),
                    kx: col.taps.clone(),
                    weights_at: depth,
                });
                depth += row.taps.len() * col.taps.len() * words;
            }
        }
        Self {
            channels: s.cout,
            src: (oh, ow, words),
            dst: (s.h, s.w, s.cin),
            lead: (lead_h, lead_w),
            padded: (pad_h, pad_w),
            src_step: 1,
            dst_step: s.stride,
            phases,
            depth,
        }
    }
}

/// One residue of one axis of an input gradient.
struct AxisPhase {
    len: usize,
    /// Source offset of the window's first element relative to the phase's own index.
    first: isize,
    /// Kernel indices in window order.
    taps: Vec<usize>,
}

impl AxisPhase {
    fn new(a: usize, size: usize, k: usize, stride: usize, pad: usize) -> Self {
        let mut taps: Vec<usize> = (0..k)
            .filter(|&t| (a + pad + k * stride - t).is_multiple_of(stride))
            .collect();
        taps.reverse(); // The source offset (a + pad - t) / stride grows as t falls.
        let first = taps
            .first()
            .map_or(0, |&t| ((a + pad) as isize - t as isize) / stride as isize);
        Self {
            len: (size - a).div_ceil(stride),
            first,
            taps,
        }
    }
}

/// `y = conv(x, w) [+ add]`; the lengths must have been checked.
pub(super) fn forward(
    s: &ConvShape,
    precision: Precision,
    x: Source<'_>,
    w: &[f32],
    add: Add<'_>,
    y: &mut [f32],
) {
    let plan = Plan::forward(s, precision);
    run(&plan, precision, s, false, x, w, add, y);
}

/// `dx = d/dx conv(x, w) * dy [+ add]`; the lengths must have been checked.
pub(super) fn input_gradient(
    s: &ConvShape,
    precision: Precision,
    dy: &[f32],
    w: &[f32],
    add: Add<'_>,
    dx: &mut [f32],
) {
    let plan = Plan::input_gradient(s, precision);
    run(&plan, precision, s, true, dy.into(), w, add, dx);
}

/// Bytes of padded source a worker keeps at a time: half of a common second-level cache.
const GROUP_BYTES: usize = 384 * 1024;

#[allow(clippy::too_many_arguments)] // private, and all of it differs between the two callers
fn run(
    plan: &Plan,
    precision: Precision,
    s: &ConvShape,
    transposed: bool,
    src: Source<'_>,
    w: &[f32],
    add: Add<'_>,
    dst: &mut [f32],
) {
    check_add(add, dst.len(), plan.dst.2);
    let block = block_width(precision, plan.dst.2);
    let packed_len = plan.dst.2.div_ceil(block) * plan.depth * block;
    scratch::with(packed_len, |packed| {
        packed
            .par_chunks_mut(plan.depth * block)
            .enumerate()
            .for_each(|(b, out)| {
                let pack = Pack {
                    plan,
                    s,
                    transposed,
                    w,
                    first: b * block,
                    block,
                    out,
                };
                dispatch(precision, pack);
            });
        let image = plan.dst.0 * plan.dst.1 * plan.dst.2;
        let src_image = plan.src.0 * plan.src.1 * plan.channels;
        let padded_image = plan.padded.0 * plan.padded.1 * plan.src.2;
        // Small batches are cut finer so that every core has work.
        let group = (GROUP_BYTES / (4 * padded_image)).clamp(1, s.n.div_ceil(8).max(1));
        let packed = &*packed;
        dst.par_chunks_mut(group * image)
            .enumerate()
            .for_each(|(g, out)| {
                let images = out.len() / image;
                let first = g * group;
                scratch::with(images * padded_image, |padded| {
                    for i in 0..images {
                        let src = src.part((first + i) * src_image, src_image);
                        let padded = &mut padded[i * padded_image..][..padded_image];
                        pad_image(plan, precision, &src, padded);
                    }
                    let add = match add {
                        Add::Other(other) => Add::Other(&other[first * image..][..out.len()]),
                        same => same,
                    };
                    let group = Group {
                        plan,
                        images,
                        padded,
                        packed,
                        block,
                        add,
                        out,
                    };
                    dispatch(precision, group);
                });
            });
    });
}

/// Output channels of one packed block: two vectors, or one when the channels fit into it.
pub(super) fn block_width(precision: Precision, channels: usize) -> usize {
    let lanes = lanes(precision);
    if channels <= lanes { lanes } else { 2 * lanes }
}

/// Most lanes of a block: two vectors of 16.
pub(super) const MAX_BLOCK: usize = 32;

/// Packs the weights of one block of destination channels as `[phase][window row][window column][source word][lane]`,
/// zero where a lane has no channel.
struct Pack<'a> {
    plan: &'a Plan,
    s: &'a ConvShape,
    transposed: bool,
    w: &'a [f32],
    /// First destination channel.
    first: usize,
    block: usize,
    out: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Product<S>>(self, simd: S, product: P) {
        let Self {
            plan,
            s,
            transposed,
            w,
            first,
            block,
            out,
        } = self;
        let lanes = block.min(plan.dst.2 - first);
        let mut rows = out.chunks_exact_mut(plan.src.2 * block);
        for phase in &plan.phases {
            for &ky in &phase.ky {
                for &kx in &phase.kx {
                    let tap = &w[(ky * s.k + kx) * s.cin * s.cout..][..s.cin * s.cout];
                    let out = rows
                        .next()
                        .expect("the packed block holds every tap of every phase");
                    for (word, out) in out.chunks_exact_mut(block).enumerate() {
                        let mut values = [[0f32; MAX_BLOCK]; 2];
                        for (i, values) in values.iter_mut().enumerate().take(P::PER_WORD) {
                            let c = word * P::PER_WORD + i;
                            if c >= plan.channels {
                                continue;
                            }
                            if transposed {
                                // Source channels are the convolution's outputs.
                                for (l, v) in values[..lanes].iter_mut().enumerate() {
                                    *v = tap[(first + l) * s.cout + c];
                                }
                            } else {
                                let row = &tap[c * s.cout + first..][..lanes];
                                values[..lanes].copy_from_slice(row);
                            }
                        }
                        for (v, out) in out.chunks_exact_mut(S::F32_LANES).enumerate() {
                            let at = v * S::F32_LANES;
                            let mut vectors = [simd.splat_f32s(0.0); 2];
                            for (vector, values) in vectors.iter_mut().zip(&values) {
                                *vector = vector_at::<S>(values, at);
                            }
                            let words = product.words(simd, &vectors[..P::PER_WORD]);
                            out.copy_from_slice(bytemuck::cast_slice(&[words]));
                        }
                    }
                }
            }
        }
    }
}

/// The vector that begins at element `at`.
#[inline(always)]
pub(super) fn vector_at<S: Simd>(values: &[f32], at: usize) -> S::f32s {
    bytemuck::pod_read_unaligned(bytemuck::cast_slice(&values[at..at + S::F32_LANES]))
}

/// Copies one source image into its zero-padded place, as words.
pub(super) fn pad_image(plan: &Plan, precision: Precision, src: &Source<'_>, padded: &mut [f32]) {
    let row = plan.src.1 * plan.channels;
    let line = if precision == Precision::Bf16 { row } else { 0 };
    scratch::with(line, |line| {
        let pitch = plan.padded.1 * plan.src.2;
        let lead = plan.lead.1 * plan.src.2;
        let words = plan.src.1 * plan.src.2;
        let (above, rest) = padded.split_at_mut(plan.lead.0 * pitch);
        above.fill(0.0);
        let (inside, below) = rest.split_at_mut(plan.src.0 * pitch);
        below.fill(0.0);
        for (out, values) in inside
            .chunks_exact_mut(pitch)
            .zip(src.data.chunks_exact(row))
        {
            out[..lead].fill(0.0);
            let inner = &mut out[lead..lead + words];
            let affine = src.channels(plan.channels);
            if precision == Precision::Bf16 {
                let values = affine.map_or(values, |a| {
                    norm::apply_piece(values, a.scale, a.shift, a.relu, line);
                    line
                });
                let c = plan.channels;
                let out = inner;
                dispatch(precision, ToWords { values, c, out });
            } else if let Some(a) = affine {
                norm::apply_piece(values, a.scale, a.shift, a.relu, inner);
            } else {
                inner.copy_from_slice(values);
            }
            out[lead + words..].fill(0.0);
        }
    });
}

/// Pixels of `c` channels as words; the last word of a pixel is filled up with zero.
struct ToWords<'a> {
    values: &'a [f32],
    c: usize,
    out: &'a mut [f32],
}

impl Kernel for ToWords<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, P: Product<S>>(self, simd: S, product: P) {
        let Self { values, c, out } = self;
        // Without a gap at the end of a pixel, all pixels are one.
        let c = if c.is_multiple_of(P::PER_WORD) {
            values.len()
        } else {
            c
        };
        let chunk = S::F32_LANES / P::PER_WORD;
        let mut full = [0f32; 16];
        let mut words = [0f32; 16];
        for (values, out) in values
            .chunks_exact(c)
            .zip(out.chunks_exact_mut(c.div_ceil(P::PER_WORD)))
        {
            for (values, out) in values.chunks(S::F32_LANES).zip(out.chunks_mut(chunk)) {
                full.fill(0.0);
                full[..values.len()].copy_from_slice(values);
                // SAFETY: `words` has room for a whole vector.
                unsafe {
                    product.put_neighbours(simd, vector_at::<S>(&full, 0), words.as_mut_ptr())
                };
                out.copy_from_slice(&words[..out.len()]);
            }
        }
    }
}

/// A group of padded images against all packed weights.
struct Group<'a> {
    plan: &'a Plan,
    images: usize,
    padded: &'a [f32],
    packed: &'a [f32],
    block: usize,
    add: Add<'a>,
    out: &'a mut [f32],
}

impl Kernel for Group<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd, P: Product<S>>(self, simd: S, product: P) {
        // Two vectors times eight pixels fill the 32 registers of AVX-512; AVX2 has 16.
        if self.block == S::F32_LANES {
            if S::F32_LANES >= 16 {
                self.tiles::<S, P, 8, 1, 2>(simd, product)
            } else {
                self.tiles::<S, P, 4, 1, 2>(simd, product)
            }
        } else if S::F32_LANES >= 16 {
            self.tiles::<S, P, 8, 2, 1>(simd, product);
        } else {
            self.tiles::<S, P, 4, 2, 1>(simd, product);
        }
    }
}

impl Group<'_> {
    #[inline(always)]
    fn tiles<S: Simd, R: Product<S>, const P: usize, const V: usize, const U: usize>(
        self,
        simd: S,
        product: R,
    ) {
        let Self {
            plan,
            images,
            padded,
            packed,
            block,
            add,
            out,
        } = self;
        let (src_c, dst_c) = (plan.src.2, plan.dst.2);
        let pitch = plan.padded.1 * src_c;
        let padded_image = plan.padded.0 * pitch;
        let image = plan.dst.0 * plan.dst.1 * dst_c;
        assert_eq!(padded.len(), images * padded_image);
        assert_eq!(out.len(), images * image);
        assert_eq!(block, V * S::F32_LANES);
        let width = plan.depth * block;
        for b in 0..dst_c.div_ceil(block) {
            let weights = &packed[b * width..][..width];
            let c0 = b * block;
            let lanes = block.min(dst_c - c0);
            for phase in &plan.phases {
                let (ty, tx) = (phase.ky.len(), phase.kx.len() * src_c);
                let weights = &weights[phase.weights_at * block..][..ty * tx * block];
                let per_image = phase.rows * phase.cols;
                let pixels = images * per_image;
                // The window of the last pixel must end inside the padded image.
                assert!((phase.rows - 1) * plan.src_step + phase.src.0 + ty <= plan.padded.0);
                assert!(((phase.cols - 1) * plan.src_step + phase.src.1) * src_c + tx <= pitch);
                let mut at = Cursor {
                    image: 0,
                    row: 0,
                    col: 0,
                };
                let mut done = 0;
                while done < pixels {
                    let count = P.min(pixels - done);
                    let mut windows = [padded.as_ptr(); P];
                    let mut targets = [0usize; P];
                    for p in 0..P {
                        let y = at.row * plan.src_step + phase.src.0;
                        let x = at.col * plan.src_step + phase.src.1;
                        // SAFETY: image < images, and the asserts above bound the window's origin for every row
                        // and column of the phase.
                        windows[p] = unsafe {
                            padded
                                .as_ptr()
                                .add(at.image * padded_image + y * pitch + x * src_c)
                        };
                        let y = at.row * plan.dst_step + phase.dst.0;
                        let x = at.col * plan.dst_step + phase.dst.1;
                        targets[p] = at.image * image + (y * plan.dst.1 + x) * dst_c + c0;
                        if p + 1 < count {
                            at.step(phase.rows, phase.cols);
                        }
                    }
                    // SAFETY: every window is `ty` rows of `tx` floats at distance `pitch` inside `padded` (asserted
                    // above), and `weights` holds `ty * tx` rows of `V` vectors.
                    let sums = unsafe {
                        tile::<S, R, P, V, U>(
                            simd,
                            product,
                            &windows,
                            ty,
                            tx,
                            pitch,
                            weights.as_ptr(),
                        )
                    };
                    for p in 0..count {
                        let target = &mut out[targets[p]..][..lanes];
                        match add {
                            Add::Nothing => store::<S, V>(simd, sums[p], target),
                            Add::Other(other) => {
                                let mut sum = sums[p];
                                add_to::<S, V>(simd, &mut sum, &other[targets[p]..][..lanes]);
                                store::<S, V>(simd, sum, target);
                            }
                            Add::Bias(bias) => {
                                let mut sum = sums[p];
                                add_to::<S, V>(simd, &mut sum, &bias[c0..][..lanes]);
                                store::<S, V>(simd, sum, target);
                            }
                            Add::Destination => accumulate::<S, V>(simd, sums[p], target),
                        }
                    }
                    done += count;
                    at.step(phase.rows, phase.cols);
                }
            }
        }
    }
}

/// Walks the pixels of a phase over a group of images.
struct Cursor {
    image: usize,
    row: usize,
    col: usize,
}

impl Cursor {
    #[inline(always)]
    fn step(&mut self, rows: usize, cols: usize) {
        self.col += 1;
        if self.col == cols {
            self.col = 0;
            self.row += 1;
            if self.row == rows {
                self.row = 0;
                self.image += 1;
            }
        }
    }
}

/// Dot products of `P` windows with `V` vectors of output channels, `U` partial sums each; windows and weights are
/// words.
///
/// # Safety
/// Each of `windows` must be readable for `rows` runs of `len` words, `pitch` apart; `weights` for
/// `rows * len * V` vectors.
#[inline(always)]
pub(super) unsafe fn tile<
    S: Simd,
    R: Product<S>,
    const P: usize,
    const V: usize,
    const U: usize,
>(
    simd: S,
    product: R,
    windows: &[*const f32; P],
    rows: usize,
    len: usize,
    pitch: usize,
    weights: *const f32,
) -> [[S::f32s; V]; P] {
    let lanes = S::F32_LANES;
    let zero = simd.splat_f32s(0.0);
    let mut acc = [[[zero; V]; P]; U];
    let mut weights = weights;
    for row in 0..rows {
        let mut at = *windows;
        for p in &mut at {
            // SAFETY: the caller grants `rows` runs at distance `pitch`.
            *p = unsafe { p.add(row * pitch) };
        }
        let mut i = 0;
        while i + U <= len {
            for u in 0..U {
                let mut vector = [zero; V];
                for (v, out) in vector.iter_mut().enumerate() {
                    // SAFETY: within the `rows * len * V` vectors of `weights`.
                    *out = unsafe {
                        weights
                            .add((u * V + v) * lanes)
                            .cast::<S::f32s>()
                            .read_unaligned()
                    };
                }
                for p in 0..P {
                    // SAFETY: `i + u < len`.
                    let x = simd.splat_f32s(unsafe { *at[p].add(i + u) });
                    for v in 0..V {
                        acc[u][p][v] = product.mul_add(simd, x, vector[v], acc[u][p][v]);
                    }
                }
            }
            // SAFETY: stays within (or one past) the granted vectors.
            weights = unsafe { weights.add(U * V * lanes) };
            i += U;
        }
        // Said for `U` = 1 as well, so that no second loop keeps the sums from their registers.
        while U > 1 && i < len {
            for v in 0..V {
                // SAFETY: as above.
                let vector = unsafe { weights.add(v * lanes).cast::<S::f32s>().read_unaligned() };
                for p in 0..P {
                    // SAFETY: `i < len`.
                    let x = simd.splat_f32s(unsafe { *at[p].add(i) });
                    acc[0][p][v] = product.mul_add(simd, x, vector, acc[0][p][v]);
                }
            }
            // SAFETY: as above.
            weights = unsafe { weights.add(V * lanes) };
            i += 1;
        }
    }
    let mut sums = acc[0];
    for part in acc.iter().skip(1) {
        for p in 0..P {
            for v in 0..V {
                sums[p][v] = simd.add_f32s(sums[p][v], part[p][v]);
            }
        }
    }
    sums
}

/// Writes the first `target.len()` lanes of `sums`.
#[inline(always)]
pub(super) fn store<S: Simd, const V: usize>(_: S, sums: [S::f32s; V], target: &mut [f32]) {
    if target.len() == V * S::F32_LANES {
        let (out, _) = S::as_mut_simd_f32s(target);
        out[..V].copy_from_slice(&sums);
    } else {
        let values: &[f32] = bytemuck::cast_slice(&sums);
        target.copy_from_slice(&values[..target.len()]);
    }
}

/// Adds `values` to the first lanes of `sums`.
#[inline(always)]
pub(super) fn add_to<S: Simd, const V: usize>(simd: S, sums: &mut [S::f32s; V], values: &[f32]) {
    if values.len() == V * S::F32_LANES {
        let (values, _) = S::as_simd_f32s(values);
        for v in 0..V {
            sums[v] = simd.add_f32s(sums[v], values[v]);
        }
    } else {
        let sums: &mut [f32] = bytemuck::cast_slice_mut(sums);
        for (s, v) in sums.iter_mut().zip(values) {
            *s += v;
        }
    }
}

/// Adds the first `target.len()` lanes of `sums` to `target`.
#[inline(always)]
pub(super) fn accumulate<S: Simd, const V: usize>(simd: S, sums: [S::f32s; V], target: &mut [f32]) {
    if target.len() == V * S::F32_LANES {
        let (out, _) = S::as_mut_simd_f32s(target);
        for v in 0..V {
            out[v] = simd.add_f32s(out[v], sums[v]);
        }
    } else {
        let values: &[f32] = bytemuck::cast_slice(&sums);
        for (t, v) in target.iter_mut().zip(values) {
            *t += v;
        }
    }
}
