//! Two-dimensional convolution: forward, input gradient and weight gradient.
//!
//! One routine serves the forward pass and the input gradient.
//! Both are written as *phases*: sub-convolutions in which every output pixel reads a dense window of a zero-padded
//! source. A forward pass is one phase; the input gradient of a convolution of stride `s` splits into `s * s` phases,
//! one for each residue of the output position, so that no product with an inserted zero is ever formed.
//! Inside a phase a tile of eight pixels times two vectors of output channels stays in registers, the window of a
//! pixel is `rows x (columns * channels)` contiguous floats, and the packed weights of the tile's channels are
//! streamed from the second-level cache.
//!
//! Layouts: images `[n, h, w, c]` (NHWC), weights `[k, k, cin, cout]` (HWIO), all `f32`.
//! Work is cut by shape alone and partial sums are added in a fixed order, so results do not depend on the number of
//! threads.

use super::scratch;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Sizes of a square convolution with equal padding on all sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images in the batch.
    pub n: usize,
    /// Input height in pixels.
    pub h: usize,
    /// Input width in pixels.
    pub w: usize,
    /// Input channels.
    pub cin: usize,
    /// Output channels.
    pub cout: usize,
    /// Kernel side.
    pub k: usize,
    /// Stride in both directions.
    pub stride: usize,
    /// Zero padding on each side.
    pub pad: usize,
}

impl ConvShape {
    /// Output height in pixels.
    pub fn oh(&self) -> usize {
        (self.h + 2 * self.pad - self.k) / self.stride + 1
    }
    /// Output width in pixels.
    pub fn ow(&self) -> usize {
        (self.w + 2 * self.pad - self.k) / self.stride + 1
    }
    /// Floats of the input `[n, h, w, cin]`.
    pub fn input_len(&self) -> usize {
        self.n * self.h * self.w * self.cin
    }
    /// Floats of the output `[n, oh, ow, cout]`.
    pub fn output_len(&self) -> usize {
        self.n * self.oh() * self.ow() * self.cout
    }
    /// Floats of the weights `[k, k, cin, cout]`.
    pub fn weight_len(&self) -> usize {
        self.k * self.k * self.cin * self.cout
    }
    /// Multiply-adds times two of one forward pass in direct form.
    pub fn flops(&self) -> usize {
        2 * self.output_len() * self.k * self.k * self.cin
    }
    /// Whether the sizes describe a convolution this module computes.
    pub fn is_valid(&self) -> bool {
        let Self {
            n,
            h,
            w,
            cin,
            cout,
            k,
            stride,
            pad,
        } = *self;
        [n, h, w, cin, cout, k, stride].iter().all(|&v| v > 0)
            && h + 2 * pad >= k
            && w + 2 * pad >= k
            && pad < k
    }
}

/// What a kernel adds to the result it writes.
#[derive(Clone, Copy, Debug)]
pub enum Add<'a> {
    /// Nothing: the destination is overwritten.
    Nothing,
    /// Another tensor of the destination's shape.
    Other(&'a [f32]),
    /// What the destination holds already.
    Destination,
}

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
struct Plan {
    src: (usize, usize, usize),
    dst: (usize, usize, usize),
    /// Rows and columns of zeros before the source.
    lead: (usize, usize),
    /// Height and width of the padded source.
    padded: (usize, usize),
    /// Source pixels between neighbouring destination pixels of a phase.
    src_step: usize,
    /// Destination pixels between neighbouring destination pixels of a phase.
    dst_step: usize,
    phases: Vec<Phase>,
    /// Window elements (rows of packed weights) of all phases together.
    depth: usize,
}

impl Plan {
    fn forward(s: &ConvShape) -> Self {
        let (oh, ow) = (s.oh(), s.ow());
        let taps: Vec<usize> = (0..s.k).collect();
        Self {
            src: (s.h, s.w, s.cin),
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
            depth: s.k * s.k * s.cin,
        }
    }

    /// The input gradient: `dx[i] = sum over ky with (i + pad - ky) divisible by stride of dy[(i + pad - ky) / stride] * w[ky]`.
    fn input_gradient(s: &ConvShape) -> Self {
        let (oh, ow) = (s.oh(), s.ow());
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
                depth += row.taps.len() * col.taps.len() * s.cout;
            }
        }
        Self {
            src: (oh, ow, s.cout),
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

/// `y = conv(x, w) [+ add]`.
///
/// `x` is `[n, h, w, cin]`, `w` is `[k, k, cin, cout]`, `y` and what is added are `[n, oh, ow, cout]`.
pub fn forward(s: &ConvShape, x: &[f32], w: &[f32], add: Add<'_>, y: &mut [f32]) {
    check(s, x.len(), w.len(), y.len());
    run(&Plan::forward(s), s, false, x, w, add, y);
}

/// `dx = d/dx conv(x, w) * dy [+ add]`; shapes as in [`forward`].
pub fn input_gradient(s: &ConvShape, dy: &[f32], w: &[f32], add: Add<'_>, dx: &mut [f32]) {
    check(s, dx.len(), w.len(), dy.len());
    run(&Plan::input_gradient(s), s, true, dy, w, add, dx);
}

fn check(s: &ConvShape, x: usize, w: usize, y: usize) {
    assert!(s.is_valid(), "not a convolution: {s:?}");
    assert_eq!(x, s.input_len(), "input length of {s:?}");
    assert_eq!(w, s.weight_len(), "weight length of {s:?}");
    assert_eq!(y, s.output_len(), "output length of {s:?}");
}

/// Bytes of padded source a worker keeps at a time: half of a common second-level cache.
const GROUP_BYTES: usize = 384 * 1024;

fn run(
    plan: &Plan,
    s: &ConvShape,
    transposed: bool,
    src: &[f32],
    w: &[f32],
    add: Add<'_>,
    dst: &mut [f32],
) {
    if let Add::Other(other) = add {
        assert_eq!(other.len(), dst.len(), "length of the tensor to add");
    }
    let arch = Arch::new();
    let block = arch.dispatch(BlockWidth(plan.dst.2));
    let packed_len = plan.dst.2.div_ceil(block) * plan.depth * block;
    scratch::with(packed_len, |packed| {
        pack_weights(plan, s, transposed, w, block, packed);
        let image = plan.dst.0 * plan.dst.1 * plan.dst.2;
        let src_image = plan.src.0 * plan.src.1 * plan.src.2;
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
                        pad_image(
                            plan,
                            &src[(first + i) * src_image..][..src_image],
                            &mut padded[i * padded_image..][..padded_image],
                        );
                    }
                    let add = match add {
                        Add::Other(other) => Add::Other(&other[first * image..][..out.len()]),
                        same => same,
                    };
                    Arch::new().dispatch(Group {
                        plan,
                        images,
                        padded,
                        packed,
                        block,
                        add,
                        out,
                    });
                });
            });
    });
}

/// Output channels of one packed block: two vectors, or one when the channels fit into it.
struct BlockWidth(usize);
impl WithSimd for BlockWidth {
    type Output = usize;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> usize {
        if self.0 <= S::F32_LANES {
            S::F32_LANES
        } else {
            2 * S::F32_LANES
        }
    }
}

/// Packs the weights as `[block][phase][window row][window column][source channel][lane]`, zero where a lane has no channel.
fn pack_weights(
    plan: &Plan,
    s: &ConvShape,
    transposed: bool,
    w: &[f32],
    block: usize,
    packed: &mut [f32],
) {
    let (src_c, dst_c) = (plan.src.2, plan.dst.2);
    let hwio = |ky: usize, kx: usize| &w[(ky * s.k + kx) * s.cin * s.cout..][..s.cin * s.cout];
    packed
        .par_chunks_mut(plan.depth * block)
        .enumerate()
        .for_each(|(b, out)| {
            let c0 = b * block;
            let lanes = block.min(dst_c - c0);
            let mut rows = out.chunks_exact_mut(src_c * block);
            for phase in &plan.phases {
                for &ky in &phase.ky {
                    for &kx in &phase.kx {
                        let tap = hwio(ky, kx);
                        let out = rows
                            .next()
                            .expect("the packed block holds every tap of every phase");
                        for (c, lane) in out.chunks_exact_mut(block).enumerate() {
                            if transposed {
                                // Source channels are the convolution's outputs.
                                for (l, v) in lane[..lanes].iter_mut().enumerate() {
                                    *v = tap[(c0 + l) * s.cout + c];
                                }
                            } else {
                                lane[..lanes].copy_from_slice(&tap[c * s.cout + c0..][..lanes]);
                            }
                            lane[lanes..].fill(0.0);
                        }
                    }
                }
            }
        });
}

/// Copies one source image into its zero-padded place.
fn pad_image(plan: &Plan, src: &[f32], padded: &mut [f32]) {
    let row = plan.src.1 * plan.src.2;
    let pitch = plan.padded.1 * plan.src.2;
    let lead = plan.lead.1 * plan.src.2;
    let (above, rest) = padded.split_at_mut(plan.lead.0 * pitch);
    above.fill(0.0);
    let (inside, below) = rest.split_at_mut(plan.src.0 * pitch);
    below.fill(0.0);
    for (out, src) in inside.chunks_exact_mut(pitch).zip(src.chunks_exact(row)) {
        out[..lead].fill(0.0);
        out[lead..lead + row].copy_from_slice(src);
        out[lead + row..].fill(0.0);
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

impl WithSimd for Group<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        // Two vectors times eight pixels fill the 32 registers of AVX-512; AVX2 has 16.
        if self.block == S::F32_LANES {
            if S::F32_LANES >= 16 {
                self.tiles::<S, 8, 1, 2>(simd)
            } else {
                self.tiles::<S, 4, 1, 2>(simd)
            }
        } else if S::F32_LANES >= 16 {
            self.tiles::<S, 8, 2, 1>(simd);
        } else {
            self.tiles::<S, 4, 2, 1>(simd);
        }
    }
}

impl Group<'_> {
    #[inline(always)]
    fn tiles<S: Simd, const P: usize, const V: usize, const U: usize>(self, simd: S) {
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
                        tile::<S, P, V, U>(simd, &windows, ty, tx, pitch, weights.as_ptr())
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

/// Dot products of `P` windows with `V` vectors of output channels, `U` partial sums each.
///
/// # Safety
/// Each of `windows` must be readable for `rows` runs of `len` floats, `pitch` apart; `weights` for
/// `rows * len * V` vectors.
#[inline(always)]
unsafe fn tile<S: Simd, const P: usize, const V: usize, const U: usize>(
    simd: S,
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
                        acc[u][p][v] = simd.mul_add_e_f32s(x, vector[v], acc[u][p][v]);
                    }
                }
            }
            // SAFETY: stays within (or one past) the granted vectors.
            weights = unsafe { weights.add(U * V * lanes) };
            i += U;
        }
        while i < len {
            for v in 0..V {
                // SAFETY: as above.
                let vector = unsafe { weights.add(v * lanes).cast::<S::f32s>().read_unaligned() };
                for p in 0..P {
                    // SAFETY: `i < len`.
                    let x = simd.splat_f32s(unsafe { *at[p].add(i) });
                    acc[0][p][v] = simd.mul_add_e_f32s(x, vector, acc[0][p][v]);
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
fn store<S: Simd, const V: usize>(_: S, sums: [S::f32s; V], target: &mut [f32]) {
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
fn add_to<S: Simd, const V: usize>(simd: S, sums: &mut [S::f32s; V], values: &[f32]) {
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
fn accumulate<S: Simd, const V: usize>(simd: S, sums: [S::f32s; V], target: &mut [f32]) {
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

/// Output pixels whose gradient stays in the first-level cache while the weight gradient's tiles pass over it.
const STRIP_PIXELS: usize = 256;
/// Above this many weights the batch is cut into few parts, because each part owns a full set of partial sums.
const LARGE_WEIGHTS: usize = 1 << 18;

/// `dw = d/dw conv(x, w) * dy`; shapes as in [`forward`]. Overwrites `dw`.
pub fn weight_gradient(s: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    check(s, x.len(), dw.len(), dy.len());
    let plan = Plan::forward(s);
    let parts = s.n.min(if dw.len() > LARGE_WEIGHTS { 4 } else { 16 });
    let slabs = if dw.len() > LARGE_WEIGHTS { s.k } else { 1 };
    let slab_len = dw.len() / slabs;
    let geometry = StripGeometry::new(s, &plan);
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
                    Arch::new().dispatch(WeightPart {
                        s,
                        plan: &plan,
                        geometry: &geometry,
                        images,
                        ky,
                        x,
                        dy,
                        sums,
                        buffer,
                    });
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
    /// Floats for the output gradient with padded channels, 0 where the channels are whole vectors already.
    copy: usize,
}

impl StripGeometry {
    fn new(s: &ConvShape, plan: &Plan) -> Self {
        let (oh, ow) = (s.oh(), s.ow());
        let together = (STRIP_PIXELS / (oh * ow)).max(1);
        let cout_padded = s
            .cout
            .next_multiple_of(Arch::new().dispatch(BlockWidth(s.cout)));
        Self {
            together,
            rows: (STRIP_PIXELS / ow).clamp(1, oh),
            padded_image: plan.padded.0 * plan.padded.1 * s.cin,
            cout_padded,
            copy: if cout_padded == s.cout {
                0
            } else {
                together * oh * ow * cout_padded
            },
        }
    }

    fn buffer_len(&self) -> usize {
        self.together * self.padded_image + self.copy
    }
}

/// The weight gradient of some images and some kernel rows.
struct WeightPart<'a> {
    s: &'a ConvShape,
    plan: &'a Plan,
    geometry: &'a StripGeometry,
    images: std::ops::Range<usize>,
    ky: std::ops::Range<usize>,
    x: &'a [f32],
    dy: &'a [f32],
    /// `[kernel row][k * cin][cout]`.
    sums: &'a mut [f32],
    buffer: &'a mut [f32],
}

impl WithSimd for WeightPart<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.s.cout <= S::F32_LANES {
            self.strips::<S, 1>(simd)
        } else {
            self.strips::<S, 2>(simd)
        }
    }
}

impl WeightPart<'_> {
    #[inline(always)]
    fn strips<S: Simd, const V: usize>(self, simd: S) {
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
            copy,
        } = *geometry;
        let block = V * S::F32_LANES;
        let (oh, ow) = (s.oh(), s.ow());
        let pitch = plan.padded.1 * s.cin;
        let out_pixels = oh * ow;
        let run = s.k * s.cin;
        let (padded, wide_dy) = buffer.split_at_mut(together * padded_image);
        let mut first = images.start;
        while first < images.end {
            let count = together.min(images.end - first);
            for i in 0..count {
                let image = &x[(first + i) * s.h * s.w * s.cin..][..s.h * s.w * s.cin];
                pad_image(plan, image, &mut padded[i * padded_image..][..padded_image]);
            }
            let mut dy = &dy[first * out_pixels * s.cout..][..count * out_pixels * s.cout];
            if copy > 0 {
                for (out, src) in wide_dy
                    .chunks_exact_mut(cout_padded)
                    .zip(dy.chunks_exact(s.cout))
                {
                    out[..s.cout].copy_from_slice(src);
                    out[s.cout..].fill(0.0);
                }
                dy = &wide_dy[..count * out_pixels * cout_padded];
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
                                cols: ow,
                                x: &padded[(row0 * s.stride + ky.start + slab) * pitch + m..],
                                x_pitch: (padded_image, s.stride * pitch, s.stride * s.cin),
                                dy: &dy[row0 * ow * cout_padded + c0..],
                                dy_pitch: (out_pixels * cout_padded, ow * cout_padded, cout_padded),
                            };
                            let out = &mut sums[(slab * run + m) * s.cout + c0..];
                            m += if left >= 16 && V == 1 && S::F32_LANES >= 16 {
                                strip.add::<S, 16, V>(simd, s.cout, lanes, out)
                            } else if left >= 8 && S::F32_LANES >= 16 {
                                strip.add::<S, 8, V>(simd, s.cout, lanes, out)
                            } else if left >= 4 {
                                strip.add::<S, 4, V>(simd, s.cout, lanes, out)
                            } else {
                                strip.add::<S, 1, V>(simd, s.cout, lanes, out)
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

/// Rows of some images of the padded input and of the output gradient, from the first element of a tile on.
struct Strip<'a> {
    images: usize,
    rows: usize,
    cols: usize,
    x: &'a [f32],
    /// Floats from image to image, row to row and column to column.
    x_pitch: (usize, usize, usize),
    dy: &'a [f32],
    dy_pitch: (usize, usize, usize),
}

impl Strip<'_> {
    /// Adds the products of `M` input elements with `V` vectors of output channels over all pixels; returns `M`.
    #[inline(always)]
    fn add<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
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
                            acc[m][v] = simd.mul_add_e_f32s(value, vector[v], acc[m][v]);
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
