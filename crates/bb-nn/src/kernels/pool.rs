//! Global average pooling over `[n, pixels, c]`.

use rayon::prelude::*;

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
