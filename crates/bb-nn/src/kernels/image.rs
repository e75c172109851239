//! Images `[n, h, w, c]` made larger or put side by side, with the backward passes.

use rayon::prelude::*;

/// Sizes of an image: rows, columns, channels.
pub type Sizes = (usize, usize, usize);

/// Each pixel repeated `factor` times in both directions.
pub fn repeat(x: &[f32], (h, w, c): Sizes, factor: usize, y: &mut [f32]) {
    assert!(h * w * c * factor > 0 && y.len() == x.len() * factor * factor);
    let (oh, ow) = (h * factor, w * factor);
    y.par_chunks_mut(ow * c).enumerate().for_each(|(row, y)| {
        let (image, row) = (row / oh, row % oh);
        let x = &x[(image * h + row / factor) * w * c..][..w * c];
        for (y, x) in y.chunks_exact_mut(factor * c).zip(x.chunks_exact(c)) {
            for y in y.chunks_exact_mut(c) {
                y.copy_from_slice(x);
            }
        }
    });
}

/// Gradient of [`repeat`]: `dx` is overwritten.
pub fn repeat_gradient(dy: &[f32], (h, w, c): Sizes, factor: usize, dx: &mut [f32]) {
    assert!(h * w * c * factor > 0 && dy.len() == dx.len() * factor * factor);
    let (oh, ow) = (h * factor, w * factor);
    dx.par_chunks_mut(w * c).enumerate().for_each(|(row, dx)| {
        let (image, row) = (row / h, row % h);
        dx.fill(0.0);
        for line in 0..factor {
            let dy = &dy[(image * oh + row * factor + line) * ow * c..][..ow * c];
            for (dx, dy) in dx.chunks_exact_mut(c).zip(dy.chunks_exact(factor * c)) {
                for dy in dy.chunks_exact(c) {
                    add(dx, 1.0, dy);
                }
            }
        }
    });
}

/// The two neighbours of a pixel of an axis that doubles, and the share of the second one (pixel centres at halves).
fn neighbours(i: usize, size: usize) -> (usize, usize, f32) {
    let at = (0.5 * (i as f32 + 0.5) - 0.5).max(0.0);
    let first = at as usize;
    (first, (first + 1).min(size - 1), at - first as f32)
}

/// Twice as many rows and columns, bilinear, pixel centres at halves (`align_corners=false`).
pub fn double(x: &[f32], (h, w, c): Sizes, y: &mut [f32]) {
    assert!(h * w * c > 0 && y.len() == 4 * x.len());
    y.par_chunks_mut(2 * w * c)
        .enumerate()
        .for_each(|(row, y)| {
            let (image, row) = (row / (2 * h), row % (2 * h));
            let (top, bottom, down) = neighbours(row, h);
            let line = |row: usize| &x[(image * h + row) * w * c..][..w * c];
            let (top, bottom) = (line(top), line(bottom));
            for (col, y) in y.chunks_exact_mut(c).enumerate() {
                let (left, right, across) = neighbours(col, w);
                let (left, right) = (left * c, right * c);
                for (i, y) in y.iter_mut().enumerate() {
                    let upper = (1.0 - across) * top[left + i] + across * top[right + i];
                    let lower = (1.0 - across) * bottom[left + i] + across * bottom[right + i];
                    *y = (1.0 - down) * upper + down * lower;
                }
            }
        });
}

/// Gradient of [`double`]: `dx` is overwritten.
pub fn double_gradient(dy: &[f32], (h, w, c): Sizes, dx: &mut [f32]) {
    assert!(h * w * c > 0 && dy.len() == 4 * dx.len());
    dx.par_chunks_mut(h * w * c)
        .zip(dy.par_chunks(4 * h * w * c))
        .for_each(|(dx, dy)| {
            dx.fill(0.0);
            for (i, dy) in dy.chunks_exact(c).enumerate() {
                let (top, bottom, down) = neighbours(i / (2 * w), h);
                let (left, right, across) = neighbours(i % (2 * w), w);
                for (row, vertical) in [(top, 1.0 - down), (bottom, down)] {
                    for (col, horizontal) in [(left, 1.0 - across), (right, across)] {
                        add(
                            &mut dx[(row * w + col) * c..][..c],
                            vertical * horizontal,
                            dy,
                        );
                    }
                }
            }
        });
}

/// Any number of rows and columns, bicubic (`A = -0.75`), corners aligned, neighbours beyond the border clamped; as
/// PyTorch's `interpolate(mode="bicubic", align_corners=True)`.
pub fn bicubic(x: &[f32], (h, w, c): Sizes, (oh, ow): (usize, usize), y: &mut [f32]) {
    assert!(h * w * c * oh * ow > 0 && y.len() * h * w == x.len() * oh * ow);
    let (rows, cols) = (cubic_taps(h, oh), cubic_taps(w, ow));
    y.par_chunks_mut(ow * c).enumerate().for_each(|(row, y)| {
        let (image, row) = (row / oh, row % oh);
        let (lines, down) = &rows[row];
        for ((columns, across), y) in cols.iter().zip(y.chunks_exact_mut(c)) {
            for (i, y) in y.iter_mut().enumerate() {
                let value = |line: usize, column: usize| {
                    let row = image * h + lines[line];
                    x[(row * w + columns[column]) * c + i]
                };
                let along = |line: usize| weighted(across, |column| value(line, column));
                *y = weighted(down, along);
            }
        }
    });
}

fn weighted(weights: &[f32; 4], value: impl Fn(usize) -> f32) -> f32 {
    weights[0] * value(0) + weights[1] * value(1) + weights[2] * value(2) + weights[3] * value(3)
}

/// The four neighbours and their weights for each pixel of an axis that goes from `size` to `outputs` pixels.
fn cubic_taps(size: usize, outputs: usize) -> Vec<([usize; 4], [f32; 4])> {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = if outputs > 1 {
        (size - 1) as f32 / (outputs - 1) as f32
    } else {
        0.0
    };
    let taps = |i: usize| {
        let at = scale * i as f32;
        let first = (at as usize).min(size - 1);
        let t = at - first as f32;
        let clamped = |offset: usize| (first + offset).saturating_sub(1).min(size - 1);
        (
            [0, 1, 2, 3].map(clamped),
            [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)],
        )
    };
    (0..outputs).map(taps).collect()
}

/// Channels `from..from + part` of `y` (`[pixels, c]`) become `x` (`[pixels, part]`).
pub fn put_channels(x: &[f32], part: usize, from: usize, c: usize, y: &mut [f32]) {
    assert!(part > 0 && from + part <= c && x.len() * c == y.len() * part);
    let pixels = pixels_of_a_piece(c);
    y.par_chunks_mut(pixels * c)
        .zip(x.par_chunks(pixels * part))
        .for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(c).zip(x.chunks_exact(part)) {
                y[from..from + part].copy_from_slice(x);
            }
        });
}

/// `y` (`[pixels, part]`) becomes channels `from..from + part` of `x` (`[pixels, c]`).
pub fn take_channels(x: &[f32], c: usize, from: usize, part: usize, y: &mut [f32]) {
    assert!(part > 0 && from + part <= c && y.len() * c == x.len() * part);
    let pixels = pixels_of_a_piece(c);
    y.par_chunks_mut(pixels * part)
        .zip(x.par_chunks(pixels * c))
        .for_each(|(y, x)| {
            for (y, x) in y.chunks_exact_mut(part).zip(x.chunks_exact(c)) {
                y.copy_from_slice(&x[from..from + part]);
            }
        });
}

fn pixels_of_a_piece(c: usize) -> usize {
    ((1 << 15) / c).max(1)
}

/// `y` `[n, h + 1, w + 1, c]` is `x` with a row of zeros below and a column of zeros to the right.
pub fn pad_end(x: &[f32], (h, w, c): Sizes, y: &mut [f32]) {
    assert!(h * w * c > 0 && x.len() * (h + 1) * (w + 1) == y.len() * h * w);
    y.par_chunks_mut((w + 1) * c)
        .enumerate()
        .for_each(|(row, y)| {
            let (image, row) = (row / (h + 1), row % (h + 1));
            if row == h {
                y.fill(0.0);
            } else {
                y[..w * c].copy_from_slice(&x[(image * h + row) * w * c..][..w * c]);
                y[w * c..].fill(0.0);
            }
        });
}

/// Gradient of [`pad_end`]: `dx` is overwritten.
pub fn pad_end_gradient(dy: &[f32], (h, w, c): Sizes, dx: &mut [f32]) {
    assert!(h * w * c > 0 && dx.len() * (h + 1) * (w + 1) == dy.len() * h * w);
    dx.par_chunks_mut(w * c).enumerate().for_each(|(row, dx)| {
        let (image, row) = (row / h, row % h);
        dx.copy_from_slice(&dy[(image * (h + 1) + row) * (w + 1) * c..][..w * c]);
    });
}

/// `y += a * x`.
#[inline(always)]
fn add(y: &mut [f32], a: f32, x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}
