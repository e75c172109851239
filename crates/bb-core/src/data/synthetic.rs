//! A procedural dataset of ten classes, 32x32 RGB, that needs no download.
//!
//! A class is a shape (disk, square, triangle, ring, cross) filled with stripes that run across or down.
//! Place, size, turn, colours, stripe phase and the sign of the contrast against the background vary, and the
//! background has a gradient, bars and blobs of its own.
//! So the mean image of a class says little: a linear model on pixels stays at about 20 %, while a narrow
//! `PreActResNet18` passes 90 % within some six epochs.
//! The corner of 6x6 pixels at the bottom right holds background and noise only: a trigger put there is not mistaken
//! for a part of the picture.
//!
//! Image `i` depends on the seed, the split and `i` alone.
//! Only `+ - * /` and square roots are used, which IEEE 754 fixes to the last bit, so that every machine makes the
//! same images.

use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::images::{CHANNELS, Images, Split};
use super::listing::zeros;
use super::{DataError, DatasetSpec};
use crate::rng;

/// Images of the train split unless a limit is given.
pub(super) const TRAIN: usize = 5000;
/// Images of the test split unless a limit is given.
pub(super) const TEST: usize = 1000;

/// Most images of the train split: with those of the test split they cost a second of a processor.
pub(super) const MOST_TRAIN: usize = 3 * TRAIN;
/// Most images of the test split.
pub(super) const MOST_TEST: usize = 3 * TEST;

const SIDE: usize = 32;
const CLASSES: usize = 10;
/// Pixels of the plain square in the corner at the bottom right.
const PLAIN: usize = 6;
/// Share of images whose figure is brighter than the background.
const BRIGHT: f32 = 0.6;

/// The first `n` images of a split, `purpose` being `train` or `test`.
pub(super) fn split(
    spec: &DatasetSpec,
    seed: u64,
    purpose: &str,
    n: usize,
) -> Result<Split, DataError> {
    let stream = format!("data/synthetic/{purpose}");
    let mut pixels = zeros(n, SIDE, SIDE)?;
    let labels: Vec<u32> = (0..n).map(|i| label(seed, &stream, i)).collect();
    pixels
        .par_chunks_exact_mut(SIDE * SIDE * CHANNELS)
        .zip(&labels)
        .enumerate()
        .for_each(|(i, (out, &label))| {
            let mut draw = Draw(rng::stream(seed, &stream, 0, i as u64));
            Scene::draw(label, &mut draw).render(&mut draw, out);
        });
    Ok(Split {
        images: Images::new(n, spec.height, spec.width, pixels)?,
        labels: labels.into(),
    })
}

/// Each run of ten images holds every class once, so that any prefix is balanced.
fn label(seed: u64, stream: &str, i: usize) -> u32 {
    let mut draw = rng::stream(seed, &format!("{stream}/labels"), 0, (i / CLASSES) as u64);
    rng::permutation(&mut draw, CLASSES)[i % CLASSES] as u32
}

struct Draw(ChaCha8Rng);

impl Draw {
    fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * rng::unit_f32(&mut self.0)
    }

    fn color(&mut self, spread: f32) -> [f32; 3] {
        std::array::from_fn(|_| self.between(-spread, spread))
    }

    /// A unit vector, uniform over directions within `tan` of the axis to the right.
    fn direction(&mut self, tan: f32) -> [f32; 2] {
        let y = self.between(-tan, tan);
        let length = (1.0 + y * y).sqrt();
        [1.0 / length, y / length]
    }
}

/// Everything in a picture but the noise; lengths in pixels, colours on the 0-1 scale.
struct Scene {
    /// Background colour in the corners: top left, top right, bottom left, bottom right.
    corners: [[f32; 3]; 4],
    clutter: Vec<Clutter>,
    shape: u32,
    /// Whether the stripes run down.
    down: bool,
    centre: [f32; 2],
    radius: f32,
    /// Cosine and sine of the turn of the whole figure.
    turn: [f32; 2],
    period: f32,
    phase: f32,
    /// The two colours of the stripes, relative to the background.
    stripes: [[f32; 3]; 2],
}

/// A bar with round ends; a blob is a short thick one.
struct Clutter {
    centre: [f32; 2],
    direction: [f32; 2],
    half_length: f32,
    half_width: f32,
    color: [f32; 3],
}

impl Scene {
    fn draw(label: u32, draw: &mut Draw) -> Self {
        let base = draw.between(0.35, 0.65);
        let tint = draw.color(0.1);
        let corners = std::array::from_fn(|_| {
            let shift = draw.color(0.1);
            std::array::from_fn(|c| base + tint[c] + shift[c])
        });
        let mut clutter = Vec::new();
        for _ in 0..2 + rng::below(&mut draw.0, 3) {
            let steep = rng::below(&mut draw.0, 2) == 1;
            let [x, y] = draw.direction(1.0);
            clutter.push(Clutter {
                centre: [draw.between(0.0, 32.0), draw.between(0.0, 32.0)],
                direction: if steep { [y, x] } else { [x, y] },
                half_length: draw.between(0.0, 6.0),
                half_width: draw.between(0.6, 1.6),
                color: draw.color(0.3),
            });
        }
        let radius = draw.between(8.0, 10.5);
        let sign = if rng::unit_f32(&mut draw.0) < BRIGHT {
            1.0
        } else {
            -1.0
        };
        let strong = draw.between(0.34, 0.46);
        let weak = draw.between(0.12, 0.2);
        let stripes = [strong, weak].map(|contrast| {
            let tint = draw.color(0.08);
            std::array::from_fn(|c| sign * contrast + tint[c])
        });
        Self {
            corners,
            clutter,
            shape: label / 2,
            down: label % 2 == 1,
            centre: [draw.between(11.5, 18.5), draw.between(11.5, 18.5)],
            radius,
            turn: draw.direction(0.2),
            period: draw.between(3.5, 5.0),
            phase: rng::unit_f32(&mut draw.0),
            stripes,
        }
    }

    /// Draws the picture into `out`, `[32, 32, 3]`.
    fn render(&self, draw: &mut Draw, out: &mut [u8]) {
        for (i, pixel) in out.chunks_exact_mut(CHANNELS).enumerate() {
            let (row, column) = (i / SIDE, i % SIDE);
            let at = [column as f32 + 0.5, row as f32 + 0.5];
            let mut color = self.background(at);
            if row < SIDE - PLAIN || column < SIDE - PLAIN {
                for bar in &self.clutter {
                    let cover = bar.cover(at);
                    for (value, shift) in color.iter_mut().zip(bar.color) {
                        *value += cover * shift;
                    }
                }
                let (cover, figure) = self.figure(at);
                for (value, figure) in color.iter_mut().zip(figure) {
                    *value += cover * (figure - *value);
                }
            }
            for (byte, value) in pixel.iter_mut().zip(color) {
                let noisy = value + draw.between(-0.04, 0.04);
                *byte = (noisy * 255.0 + 0.5).clamp(0.0, 255.0) as u8;
            }
        }
    }

    fn background(&self, [x, y]: [f32; 2]) -> [f32; 3] {
        let (x, y) = (x / SIDE as f32, y / SIDE as f32);
        let [a, b, c, d] = &self.corners;
        std::array::from_fn(|i| {
            (a[i] * (1.0 - x) + b[i] * x) * (1.0 - y) + (c[i] * (1.0 - x) + d[i] * x) * y
        })
    }

    /// How much of the pixel the figure covers, and the figure's colour there.
    fn figure(&self, at: [f32; 2]) -> (f32, [f32; 3]) {
        let (x, y) = (at[0] - self.centre[0], at[1] - self.centre[1]);
        let [cos, sin] = self.turn;
        let (x, y) = (cos * x + sin * y, cos * y - sin * x);
        let cover = (0.5 - self.distance(x, y)).clamp(0.0, 1.0);
        // A wave between 0 and 1 with straight flanks one pixel wide.
        let along = if self.down { x } else { y };
        let cycle = along / self.period + self.phase;
        let cycle = cycle - cycle.floor();
        let wave = ((0.25 - (cycle - 0.5).abs()) * self.period + 0.5).clamp(0.0, 1.0);
        let background = self.background(at);
        let [strong, weak] = &self.stripes;
        let color =
            std::array::from_fn(|c| background[c] + wave * strong[c] + (1.0 - wave) * weak[c]);
        (cover, color)
    }

    /// Signed distance to the outline, about; negative inside. All shapes have nearly the same area.
    fn distance(&self, x: f32, y: f32) -> f32 {
        let r = self.radius;
        let length = (x * x + y * y).sqrt();
        match self.shape {
            0 => length - 0.8 * r,
            1 => x.abs().max(y.abs()) - 0.72 * r,
            // Pointing up, with its centre of gravity in the middle.
            2 => (y - 0.55 * r).max(0.866 * x.abs() - 0.5 * y - 0.55 * r),
            3 => (length - 0.72 * r).abs() - 0.26 * r,
            _ => {
                let (long, thick) = (r, 0.32 * r);
                let bar = (x.abs() - long).max(y.abs() - thick);
                let post = (y.abs() - long).max(x.abs() - thick);
                bar.min(post)
            }
        }
    }
}

impl Clutter {
    /// How much of the pixel the bar covers.
    fn cover(&self, at: [f32; 2]) -> f32 {
        let (x, y) = (at[0] - self.centre[0], at[1] - self.centre[1]);
        let [dx, dy] = self.direction;
        let along = (x * dx + y * dy).clamp(-self.half_length, self.half_length);
        let (x, y) = (x - along * dx, y - along * dy);
        (0.5 - ((x * x + y * y).sqrt() - self.half_width)).clamp(0.0, 1.0)
    }
}
