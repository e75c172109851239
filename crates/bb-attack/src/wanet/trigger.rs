//! The WaNet trigger: a smooth field of displacements, by which images are sampled elsewhere.

use bb_core::rng;
use bb_nn::data::Input;
use bb_nn::kernels::image::bicubic;
use bb_nn::kernels::warp::grid_sample;
use rayon::prelude::*;

/// Where each pixel of a warped image comes from, for images of one size.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    height: usize,
    width: usize,
    /// `[height, width, 2]`: column and row, -1 to 1 from the first to the last pixel's centre.
    grid: Vec<f32>,
}

impl Field {
    /// The field of displacements `noise` (`[height, width, 2]`, columns then rows):
    /// `clamp((identity + strength * noise / size) * rescale, -1, 1)`.
    ///
    /// # Panics
    /// If `noise` has another length.
    pub fn new(
        noise: &[f32],
        (height, width): (usize, usize),
        strength: f32,
        rescale: f32,
    ) -> Self {
        assert_eq!(
            noise.len(),
            height * width * 2,
            "two numbers for each pixel"
        );
        let mut grid = identity(height, width);
        let sizes = [width as f32, height as f32];
        for (place, noise) in grid.chunks_exact_mut(2).zip(noise.chunks_exact(2)) {
            for axis in 0..2 {
                let moved = (place[axis] + strength * noise[axis] / sizes[axis]) * rescale;
                place[axis] = moved.clamp(-1.0, 1.0);
            }
        }
        Self {
            height,
            width,
            grid,
        }
    }

    /// The grid, `[height, width, 2]`.
    pub fn grid(&self) -> &[f32] {
        &self.grid
    }

    /// Images `[n, height, width, 3]` sampled by the field.
    pub fn warp(&self, images: &[f32]) -> Vec<f32> {
        self.sample(images, &self.grid)
    }

    /// The same by the field and a disturbance of each image: `clamp(grid + noise / size, -1, 1)`, with `noise` `[n, height,
    /// width, 2]` in -1 to 1.
    pub fn warp_disturbed(&self, images: &[f32], noise: &[f32]) -> Vec<f32> {
        let sizes = [self.width as f32, self.height as f32];
        let mut grids = noise.to_vec();
        for grid in grids.chunks_exact_mut(self.grid.len()) {
            for (k, (place, at)) in grid.iter_mut().zip(&self.grid).enumerate() {
                *place = (at + *place / sizes[k % 2]).clamp(-1.0, 1.0);
            }
        }
        self.sample(images, &grids)
    }

    fn sample(&self, images: &[f32], grid: &[f32]) -> Vec<f32> {
        let mut warped = vec![0.0; images.len()];
        let size = (self.height, self.width);
        grid_sample(images, (size.0, size.1, 3), grid, size, &mut warped);
        warped
    }

    /// What the field does to a net of lines, as grey levels `[height, width, 3]`.
    pub fn picture(&self) -> Vec<u8> {
        let step = (self.height.min(self.width) / 8).max(2);
        let line = |at: usize| at % step == step / 2;
        let mut net = Input {
            n: 1,
            h: self.height,
            w: self.width,
            data: vec![255.0; self.height * self.width * 3],
        };
        for (at, pixel) in net.data.chunks_exact_mut(3).enumerate() {
            if line(at / self.width) || line(at % self.width) {
                pixel.fill(0.0);
            }
        }
        let warped = self.warp(&net.data);
        warped.iter().map(|v| v.round() as u8).collect()
    }
}

/// `[k, k, 2]` numbers in -1 to 1 from the stream (`seed`, `wanet/field`).
pub fn draw(seed: u64, k: usize) -> Vec<f32> {
    let mut stream = rng::stream(seed, "wanet/field", 0, 0);
    uniform(&mut stream, k * k * 2)
}

/// A disturbance `[height, width, 2]` for each image `indices`, from the streams (`seed`, `purpose`, `epoch`, index).
pub fn disturbance(
    (seed, purpose): (u64, &str),
    epoch: usize,
    indices: &[usize],
    values: usize,
) -> Vec<f32> {
    indices
        .par_iter()
        .flat_map_iter(|&i| {
            let mut stream = rng::stream(seed, purpose, epoch as u64, i as u64);
            uniform(&mut stream, values)
        })
        .collect()
}

fn uniform(stream: &mut impl rng::RngCore, len: usize) -> Vec<f32> {
    (0..len)
        .map(|_| 2.0 * rng::unit_f32(stream) - 1.0)
        .collect()
}

/// `[k, k, 2]` displacements, divided by their mean size, made smooth at the size of the images.
pub fn smooth(raw: &[f32], k: usize, size: (usize, usize)) -> Vec<f32> {
    assert_eq!(raw.len(), k * k * 2, "two numbers for each place");
    let sum: f64 = raw.iter().map(|v| f64::from(v.abs())).sum();
    let mean = (sum / raw.len() as f64) as f32;
    let even: Vec<f32> = raw.iter().map(|v| v / mean).collect();
    let mut noise = vec![0.0; size.0 * size.1 * 2];
    bicubic(&even, (k, k, 2), size, &mut noise);
    noise
}

/// Each pixel from its own place.
pub fn identity(height: usize, width: usize) -> Vec<f32> {
    let (rows, columns) = (evenly(height), evenly(width));
    let mut grid = Vec::with_capacity(height * width * 2);
    for row in &rows {
        for column in &columns {
            grid.extend([column, row]);
        }
    }
    grid
}

/// `count` numbers from -1 to 1, each half counted from its own end as PyTorch does.
fn evenly(count: usize) -> Vec<f32> {
    let step = 2.0 / (count.max(2) - 1) as f32;
    let at = |i: usize| {
        if i < count / 2 {
            -1.0 + step * i as f32
        } else {
            1.0 - step * (count - 1 - i) as f32
        }
    };
    (0..count).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_without_strength_changes_nothing() {
        let size = (8, 12);
        let noise = smooth(&draw(3, 4), 4, size);
        let image: Vec<f32> = (0..8 * 12 * 3).map(|i| (i % 31) as f32).collect();
        let still = Field::new(&noise, size, 0.0, 1.0);
        for (found, expect) in still.warp(&image).iter().zip(&image) {
            assert!((found - expect).abs() < 1e-4, "{found} {expect}");
        }
        let moved = Field::new(&noise, size, 0.5, 1.0).warp(&image);
        let most = moved
            .iter()
            .zip(&image)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(most > 1.0, "{most}");
    }

    #[test]
    fn displacements_have_mean_size_one_before_they_are_made_smooth() {
        for k in [2, 4, 7] {
            let raw = draw(0, k);
            assert!(raw.iter().all(|v| (-1.0..1.0).contains(v)));
            // At the size of the draw nothing is between the places.
            let even = smooth(&raw, k, (k, k));
            let mean = even.iter().map(|v| v.abs()).sum::<f32>() / even.len() as f32;
            assert!((mean - 1.0).abs() < 1e-5, "{mean}");
        }
    }
}
