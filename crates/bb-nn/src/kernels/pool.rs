//! Pooling of images `[n, h, w, c]`: largest values, and means.

use pulp::Arch;
use rayon::prelude::*;
use std::ops::Range;

/// A square window that moves over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Side in pixels.
    pub k: usize,
    /// Pixels between neighbouring windows.
    pub stride: usize,
    /// Pixels that the first window reaches beyond the image; they never hold the largest value.
    pub pad: usize,
}

impl Window {
    /// How many windows fit on `size` pixels.
    ///
    /// # Panics
    /// If none does.
    pub fn outputs(&self, size: usize) -> usize {
        let reach = size + 2 * self.pad;
        assert!(
            reach >= self.k && self.stride > 0 && 2 * self.pad <= self.k,
            "{self:?} does not fit on {size} pixels"
        );
        (reach - self.k) / self.stride + 1
    }

    /// The pixels of window `i`, and which of the window's own pixels is the first of them.
    fn pixels(&self, i: usize, size: usize) -> (Range<usize>, usize) {
        let start = i * self.stride;
        let end = (start + self.k).saturating_sub(self.pad).min(size);
        (
            start.saturating_sub(self.pad)..end,
            self.pad.saturating_sub(start),
        )
    }
}

/// Largest value of each window, `y` `[n, oh, ow, c]`, and its place in the window (row by row); the first of equal
/// values and the last NaN count, as in PyTorch.
pub fn max(
    x: &[f32],
    (h, w, c): (usize, usize, usize),
    window: Window,
    y: &mut [f32],
    places: &mut [u8],
) {
    let (oh, ow) = (window.outputs(h), window.outputs(w));
    assert!(window.k * window.k <= 256, "a place must fit a byte");
    assert!(c > 0 && x.len() * oh * ow == y.len() * h * w && places.len() == y.len());
    y.par_chunks_mut(ow * c)
        .zip(places.par_chunks_mut(ow * c))
        .enumerate()
        .for_each(|(row, (y, places))| {
            let (image, row) = (row / oh, row % oh);
            let x = &x[image * h * w * c..][..h * w * c];
            let (rows, first_row) = window.pixels(row, h);
            for (col, (y, places)) in y
                .chunks_exact_mut(c)
                .zip(places.chunks_exact_mut(c))
                .enumerate()
            {
                let (cols, first_col) = window.pixels(col, w);
                y.fill(f32::NEG_INFINITY);
                places.fill((first_row * window.k + first_col) as u8);
                for (i, row) in rows.clone().enumerate() {
                    for (j, col) in cols.clone().enumerate() {
                        let place = ((first_row + i) * window.k + first_col + j) as u8;
                        largest(&x[(row * w + col) * c..][..c], place, y, places);
                    }
                }
            }
        });
}

/// Keeps the larger of `x` and `y` in `y`, and where it came from.
fn largest(x: &[f32], place: u8, y: &mut [f32], places: &mut [u8]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for ((y, p), x) in y.iter_mut().zip(places).zip(x) {
                let larger = *x > *y || x.is_nan();
                *p = if larger { place } else { *p };
                *y = if larger { *x } else { *y };
            }
        },
    );
}

/// Gradient of [`max`]: `dx` `[n, h, w, c]` is overwritten.
pub fn max_gradient(
    dy: &[f32],
    places: &[u8],
    (h, w, c): (usize, usize, usize),
    window: Window,
    dx: &mut [f32],
) {
    let (oh, ow) = (window.outputs(h), window.outputs(w));
    assert!(c > 0 && dx.len() * oh * ow == dy.len() * h * w && places.len() == dy.len());
    dx.par_chunks_mut(h * w * c)
        .zip(dy.par_chunks(oh * ow * c))
        .zip(places.par_chunks(oh * ow * c))
        .for_each(|((dx, dy), places)| {
            dx.fill(0.0);
            for (i, (dy, places)) in dy.chunks_exact(c).zip(places.chunks_exact(c)).enumerate() {
                let (row, col) = (i / ow * window.stride, i % ow * window.stride);
                for (channel, (dy, place)) in dy.iter().zip(places).enumerate() {
                    let (y, x) = (
                        row + usize::from(*place) / window.k - window.pad,
                        col + usize::from(*place) % window.k - window.pad,
                    );
                    dx[(y * w + x) * c + channel] += dy;
                }
            }
        });
}

/// The pixels whose mean is pixel `i` of `outputs`, as in PyTorch's adaptive pooling.
fn share(i: usize, outputs: usize, size: usize) -> Range<usize> {
    i * size / outputs..((i + 1) * size).div_ceil(outputs)
}

/// Means over windows whose sizes give `oh x ow` pixels; there may be more of them than pixels.
pub fn adaptive_average(
    x: &[f32],
    (h, w, c): (usize, usize, usize),
    (oh, ow): (usize, usize),
    y: &mut [f32],
) {
    assert!(h * w * c > 0 && oh * ow > 0 && x.len() * oh * ow == y.len() * h * w);
    y.par_chunks_mut(ow * c).enumerate().for_each(|(row, y)| {
        let (image, row) = (row / oh, row % oh);
        let x = &x[image * h * w * c..][..h * w * c];
        let rows = share(row, oh, h);
        for (col, y) in y.chunks_exact_mut(c).enumerate() {
            let cols = share(col, ow, w);
            y.fill(0.0);
            for row in rows.clone() {
                for x in x[(row * w + cols.start) * c..(row * w + cols.end) * c].chunks_exact(c) {
                    for (y, v) in y.iter_mut().zip(x) {
                        *y += v;
                    }
                }
            }
            let count = (rows.len() * cols.len()) as f32;
            for y in y {
                *y /= count;
            }
        }
    });
}

/// Gradient of [`adaptive_average`]: `dx` `[n, h, w, c]` is overwritten.
pub fn adaptive_average_gradient(
    dy: &[f32],
    (h, w, c): (usize, usize, usize),
    (oh, ow): (usize, usize),
    dx: &mut [f32],
) {
    assert!(h * w * c > 0 && oh * ow > 0 && dx.len() * oh * ow == dy.len() * h * w);
    dx.par_chunks_mut(h * w * c)
        .zip(dy.par_chunks(oh * ow * c))
        .for_each(|(dx, dy)| {
            dx.fill(0.0);
            for (i, dy) in dy.chunks_exact(c).enumerate() {
                let (rows, cols) = (share(i / ow, oh, h), share(i % ow, ow, w));
                let count = (rows.len() * cols.len()) as f32;
                for row in rows {
                    let at = (row * w + cols.start) * c..(row * w + cols.end) * c;
                    for dx in dx[at].chunks_exact_mut(c) {
                        for (dx, v) in dx.iter_mut().zip(dy) {
                            *dx += v / count;
                        }
                    }
                }
            }
        });
}

/// `y[n, c] = mean over pixels of x[n, pixels, c]`.
pub fn global_average(x: &[f32], pixels: usize, c: usize, y: &mut [f32]) {
    assert!(pixels > 0 && c > 0 && y.len().is_multiple_of(c) && x.len() == y.len() * pixels);
    let inverse = 1.0 / pixels as f32;
    y.par_chunks_mut(c)
        .zip(x.par_chunks(pixels * c))
        .for_each(|(y, x)| {
            y.fill(0.0);
            for row in x.chunks_exact(c) {
                for (y, v) in y.iter_mut().zip(row) {
                    *y += v;
                }
            }
            for y in y {
                *y *= inverse;
            }
        });
}

/// Gradient of [`global_average`]: every pixel of a channel gets `dy / pixels`.
pub fn global_average_gradient(dy: &[f32], pixels: usize, c: usize, dx: &mut [f32]) {
    assert!(pixels > 0 && c > 0 && dy.len().is_multiple_of(c) && dx.len() == dy.len() * pixels);
    let inverse = 1.0 / pixels as f32;
    dx.par_chunks_mut(pixels * c)
        .zip(dy.par_chunks(c))
        .for_each(|(dx, dy)| {
            for row in dx.chunks_exact_mut(c) {
                for (dx, v) in row.iter_mut().zip(dy) {
                    *dx = v * inverse;
                }
            }
        });
}
