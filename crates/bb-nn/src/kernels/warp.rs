//! Images `[n, h, w, c]` sampled at other places, for attacks that warp or turn them.

use rayon::prelude::*;

/// Bilinear samples of `x` at the places of `grid`, as PyTorch's `grid_sample` with zeros beyond the border and
/// `align_corners=True`.
///
/// `grid` is `[oh, ow, 2]` for all images or `[n, oh, ow, 2]`: column and row, from -1 (centre of the first pixel) to 1
/// (of the last one). `y` is `[n, oh, ow, c]`.
pub fn grid_sample(
    x: &[f32],
    (h, w, c): (usize, usize, usize),
    grid: &[f32],
    (oh, ow): (usize, usize),
    y: &mut [f32],
) {
    let (image, target) = (h * w * c, oh * ow * c);
    assert!(image > 0 && target > 0 && x.len().is_multiple_of(image));
    let n = x.len() / image;
    assert_eq!(y.len(), n * target, "length of the result");
    let places = oh * ow * 2;
    assert!(
        grid.len() == places || grid.len() == n * places,
        "a grid for all images or one for each"
    );
    y.par_chunks_mut(ow * c).enumerate().for_each(|(row, y)| {
        let (i, row) = (row / oh, row % oh);
        let x = &x[i * image..][..image];
        let grid = if grid.len() == places {
            grid
        } else {
            &grid[i * places..][..places]
        };
        let grid = &grid[row * ow * 2..][..ow * 2];
        for (place, y) in grid.chunks_exact(2).zip(y.chunks_exact_mut(c)) {
            let at_x = (place[0] + 1.0) / 2.0 * (w - 1) as f32;
            let at_y = (place[1] + 1.0) / 2.0 * (h - 1) as f32;
            y.fill(0.0);
            let (left, top) = (at_x.floor(), at_y.floor());
            let (right, bottom) = (left + 1.0, top + 1.0);
            let corners = [
                (left, top, (right - at_x) * (bottom - at_y)),
                (right, top, (at_x - left) * (bottom - at_y)),
                (left, bottom, (right - at_x) * (at_y - top)),
                (right, bottom, (at_x - left) * (at_y - top)),
            ];
            for (column, row, weight) in corners {
                if let (Some(column), Some(row)) = (inside(column, w), inside(row, h)) {
                    let pixel = &x[(row * w + column) * c..][..c];
                    for (y, v) in y.iter_mut().zip(pixel) {
                        *y += v * weight;
                    }
                }
            }
        }
    });
}

/// Images turned around their centre by `degrees`, counterclockwise, nearest pixels, zeros from beyond the border;
/// as torchvision's rotation of a tensor without `expand`.
pub fn rotate(x: &[f32], (h, w, c): (usize, usize, usize), degrees: f64, y: &mut [f32]) {
    assert!(h * w * c > 0 && x.len() == y.len() && x.len().is_multiple_of(h * w * c));
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (sin, cos) = (sin as f32, cos as f32);
    let (half_w, half_h) = (0.5 * w as f32, 0.5 * h as f32);
    // Where an output pixel reads, in units of half an image, then in pixels: the rounding is PyTorch's.
    let source = |along_x: f32, along_y: f32, size: usize, row: usize, col: usize| {
        let (at_x, at_y) = (col as f32 - half_w + 0.5, row as f32 - half_h + 0.5);
        let place = at_x * along_x + at_y * along_y;
        (((place + 1.0) * size as f32 - 1.0) / 2.0).round_ties_even()
    };
    y.par_chunks_mut(w * c).enumerate().for_each(|(line, y)| {
        let (image, row) = (line / h, line % h);
        for (col, y) in y.chunks_exact_mut(c).enumerate() {
            let column = source(cos / half_w, -sin / half_w, w, row, col);
            let line = source(sin / half_h, cos / half_h, h, row, col);
            match (inside(column, w), inside(line, h)) {
                (Some(column), Some(line)) => {
                    y.copy_from_slice(&x[((image * h + line) * w + column) * c..][..c]);
                }
                _ => y.fill(0.0),
            }
        }
    });
}

/// A whole number as a place on an axis of `size` pixels, if it is one.
fn inside(at: f32, size: usize) -> Option<usize> {
    (at >= 0.0 && at < size as f32).then_some(at as usize)
}
