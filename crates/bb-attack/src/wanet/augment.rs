//! The augmentation of WaNet's batches, which comes after the trigger: a crop, a turn, a mirror image.

use bb_core::rng;
use bb_nn::kernels::warp::{grid_sample, rotate};
use rayon::prelude::*;

/// Pixels of padding before a crop.
const PADDING: usize = 5;
/// Largest turn in degrees.
const DEGREES: f64 = 10.0;
/// Probability of a crop.
const CROP: f64 = 0.8;
/// Probability of a turn, and of a mirror image.
const HALF: f64 = 0.5;

/// How images are changed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Change {
    /// Row and column at which the crop begins in the padded image.
    pub corner: Option<(usize, usize)>,
    /// Angle of the turn, counterclockwise.
    pub degrees: Option<f64>,
    /// Whether left and right change places.
    pub mirror: bool,
}

/// What a turned image takes of the image before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The nearest pixel.
    Nearest,
    /// A mean of four pixels, weighted by their nearness.
    Bilinear,
}

/// Whether the images of a batch are cropped and turned, each in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    crop: bool,
    turn: bool,
}

impl Decision {
    /// That of a batch, the authors' way.
    pub fn draw(stream: &mut impl rng::RngCore) -> Self {
        Self {
            crop: rng::unit_f64(stream) < CROP,
            turn: rng::unit_f64(stream) < HALF,
        }
    }

    /// The change of an image of that batch; half of the images of a turned batch are turned.
    pub fn image(self, flip: bool, stream: &mut impl rng::RngCore) -> Change {
        Change {
            corner: self.crop.then(|| corner(stream)),
            degrees: (self.turn && rng::unit_f64(stream) < HALF).then(|| angle(stream)),
            mirror: flip && rng::unit_f64(stream) < HALF,
        }
    }
}

impl Change {
    /// The change of a whole batch, the benchmark's way.
    pub fn draw(flip: bool, stream: &mut impl rng::RngCore) -> Self {
        Self {
            corner: (rng::unit_f64(stream) < CROP).then(|| corner(stream)),
            degrees: (rng::unit_f64(stream) < HALF).then(|| angle(stream)),
            mirror: flip && rng::unit_f64(stream) < HALF,
        }
    }

    /// Changes images `[n, height, width, 3]`, all alike: crop, turn, mirror. Zeros come in from outside.
    pub fn apply(self, images: &mut [f32], (height, width): (usize, usize), turn: Turn) {
        if let Some(corner) = self.corner {
            crop(images, (height, width), corner);
        }
        if let Some(degrees) = self.degrees {
            let before = images.to_vec();
            match turn {
                Turn::Nearest => rotate(&before, (height, width, 3), degrees, images),
                Turn::Bilinear => {
                    let grid = turned((height, width), degrees);
                    let size = (height, width);
                    grid_sample(&before, (height, width, 3), &grid, size, images);
                }
            }
        }
        if self.mirror {
            for row in images.chunks_exact_mut(width * 3) {
                for column in 0..width / 2 {
                    for c in 0..3 {
                        row.swap(column * 3 + c, (width - 1 - column) * 3 + c);
                    }
                }
            }
        }
    }
}

fn corner(stream: &mut impl rng::RngCore) -> (usize, usize) {
    let mut place = || rng::below(stream, 2 * PADDING as u64 + 1) as usize;
    (place(), place())
}

fn angle(stream: &mut impl rng::RngCore) -> f64 {
    DEGREES * (2.0 * rng::unit_f64(stream) - 1.0)
}

/// The part of images padded by [`PADDING`] that begins at this row and column.
fn crop(images: &mut [f32], (height, width): (usize, usize), (down, right): (usize, usize)) {
    let inside = |at: usize, size: usize| at.checked_sub(PADDING).filter(|&at| at < size);
    images
        .par_chunks_exact_mut(height * width * 3)
        .for_each(|image| {
            let before = image.to_vec();
            for (at, pixel) in image.chunks_exact_mut(3).enumerate() {
                let row = inside(at / width + down, height);
                match row.zip(inside(at % width + right, width)) {
                    Some((row, column)) => {
                        pixel.copy_from_slice(&before[(row * width + column) * 3..][..3]);
                    }
                    None => pixel.fill(0.0),
                }
            }
        });
}

/// Where each pixel of a turned image comes from, `[height, width, 2]`: column and row, from -1 to 1.
fn turned((height, width): (usize, usize), degrees: f64) -> Vec<f32> {
    let (sin, cos) = degrees.to_radians().sin_cos();
    let middle = |size: usize| (size as f64 - 1.0) / 2.0;
    let (half_h, half_w) = (middle(height), middle(width));
    let mut grid = Vec::with_capacity(height * width * 2);
    for row in 0..height {
        for column in 0..width {
            let (y, x) = (row as f64 - half_h, column as f64 - half_w);
            let place = [(x * cos - y * sin) / half_w, (x * sin + y * cos) / half_h];
            grid.extend(place.map(|v| v as f32));
        }
    }
    grid
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{Golden, close, spec};
    use crate::in_loop::plain_input;
    use bb_core::data::Split;

    #[test]
    fn a_crop_moves_all_images_alike_and_lets_zeros_in() {
        let mut images: Vec<f32> = (0..2 * 4 * 4 * 3).map(|i| 1.0 + i as f32).collect();
        let before = images.clone();
        crop(&mut images, (4, 4), (PADDING + 1, PADDING - 2));
        for image in 0..2 {
            for row in 0..4 {
                for column in 0..4 {
                    let at = |r: usize, c: usize| ((image * 4 + r) * 4 + c) * 3;
                    let expect = if row == 3 || column < 2 {
                        0.0
                    } else {
                        before[at(row + 1, column - 2)]
                    };
                    assert_eq!(images[at(row, column)].to_bits(), f32::to_bits(expect));
                }
            }
        }
    }

    /// Places of 0 to 10 and angles of -10 to 10, as torchvision draws for 5 pixels of padding and 10 degrees.
    #[test]
    fn changes_are_drawn_as_often_and_as_far_as_they_should_be() {
        let (batches, images) = (400, 20);
        let drawn = |index, flip| Change::draw(flip, &mut rng::stream(1, "test", 0, index));
        let batch: Vec<Change> = (0..batches).map(|index| drawn(index, true)).collect();
        let own = |index| {
            let decision = Decision::draw(&mut rng::stream(2, "test", 0, index));
            let mut stream = rng::stream(3, "test", 0, index);
            let of = move |_| decision.image(true, &mut stream);
            (0..images).map(of).collect::<Vec<_>>()
        };
        let each: Vec<Vec<Change>> = (0..batches).map(own).collect();
        let all: Vec<Change> = each.concat();

        let share = |changes: &[Change], which: fn(&Change) -> bool| {
            changes.iter().filter(|c| which(c)).count() as f64 / changes.len() as f64
        };
        let near = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 0.08, "{found}, {expected}");
        };
        near(share(&batch, |c| c.corner.is_some()), 0.8);
        near(share(&batch, |c| c.degrees.is_some()), 0.5);
        near(share(&batch, |c| c.mirror), 0.5);
        near(share(&all, |c| c.corner.is_some()), 0.8);
        near(share(&all, |c| c.degrees.is_some()), 0.25);
        near(share(&all, |c| c.mirror), 0.5);
        for changes in &each {
            // One decision for the batch, places and angles of each image's own.
            let cropped = changes.iter().filter(|c| c.corner.is_some()).count();
            assert!(cropped == 0 || cropped == images);
            let places: std::collections::BTreeSet<_> = changes.iter().map(|c| c.corner).collect();
            assert!(cropped == 0 || places.len() > images / 2);
        }
        assert!(!drawn(0, false).mirror && (0..batches).any(|index| drawn(index, true).mirror));
        for changes in [&batch, &all] {
            let places = || changes.iter().filter_map(|c| c.corner);
            let ends =
                |of: fn((usize, usize)) -> usize| (places().map(of).min(), places().map(of).max());
            assert_eq!(ends(|c| c.0), (Some(0), Some(10)));
            assert_eq!(ends(|c| c.1), (Some(0), Some(10)));
            let angles = || changes.iter().filter_map(|c| c.degrees);
            let (low, high) = (angles().fold(0.0, f64::min), angles().fold(0.0, f64::max));
            assert!((-10.0..-9.5).contains(&low) && (9.5..10.0).contains(&high));
        }
    }

    /// The authors' augmentation of 6 images, with kornia's draws.
    #[test]
    fn golden_augmentation_of_the_authors() {
        let golden = Golden::load("wanet_authors");
        let images = golden.images("x");
        let (size, count) = ((images.height(), images.width()), images.len());
        let split = Split {
            labels: vec![0; count].into(),
            images,
        };
        let all: Vec<usize> = (0..count).collect();
        let mut input = plain_input(&split, &spec(size.0), &all);
        let corners = golden.indices("draw.crop");
        let (degrees, mirror) = (golden.doubles("draw.degrees"), golden.bytes("draw.mirror"));
        assert!(degrees.iter().any(|&d| d > 1.0) && degrees.iter().any(|&d| d < -1.0));
        let expected = golden.input("output");
        for (i, image) in input.data.chunks_exact_mut(size.0 * size.1 * 3).enumerate() {
            let change = Change {
                corner: Some((corners[2 * i], corners[2 * i + 1])),
                degrees: (degrees[i] != 0.0).then_some(degrees[i]),
                mirror: mirror[i] == 1,
            };
            change.apply(image, size, Turn::Bilinear);
            let expected = &expected.data[i * image.len()..][..image.len()];
            close(&format!("image {i}"), image, expected, 1e-5);
        }
    }
}
