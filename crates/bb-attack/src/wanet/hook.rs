//! WaNet's part in the training loop.

use bb_core::rng;
use bb_nn::data::Batch;
use bb_nn::kernels::warp::rotate;
use bb_nn::train::StepAt;
use rayon::prelude::*;

use super::config::{Augmentation, WanetConfig};
use super::trigger::{Field, disturbance};
use crate::error::AttackError;
use crate::in_loop::{Counts, Share};
use crate::labels::LabelMap;
use crate::method::TrainHook;

/// Warps the first images of each batch and augments what came of it. It learns nothing, so it has no state.
pub(super) struct WanetHook {
    pub(super) cfg: WanetConfig,
    pub(super) map: LabelMap,
    pub(super) field: Field,
    /// Whether the dataset's images may be mirrored.
    pub(super) flip: bool,
    pub(super) seed: u64,
    pub(super) counts: Counts,
}

/// The images of a batch that are warped.
fn share(cfg: &WanetConfig, seed: u64, images: usize, at: StepAt) -> Share {
    Share::of(images, (cfg.ratio, cfg.cross), (seed, "wanet/count"), at)
}

/// Those of all batches of a run on `images` images.
pub(super) fn counts(cfg: &WanetConfig, seed: u64, images: usize) -> Counts {
    Counts::of(images, &cfg.train, |batch, at| share(cfg, seed, batch, at))
}

impl TrainHook for WanetHook {
    fn loader_augments(&self) -> bool {
        false
    }

    fn counts(&self) -> Option<Counts> {
        Some(self.counts)
    }

    fn batch(&mut self, at: StepAt, batch: &mut Batch) -> Result<(), AttackError> {
        let StepAt { epoch, step } = at;
        let share = share(&self.cfg, self.seed, batch.labels.len(), at);
        let (height, width) = (batch.input.h, batch.input.w);
        let size = height * width * 3;
        let middle = share.backdoored;
        let end = middle + share.cross;
        if middle > 0 {
            let images = &mut batch.input.data[..middle * size];
            images.copy_from_slice(&self.field.warp(images));
            for label in &mut batch.labels[..middle] {
                *label = self.map.attacked(*label);
            }
        }
        if end > middle {
            let stream = (self.seed, "wanet/noise");
            let indices = &batch.indices[middle..end];
            let noise = disturbance(stream, epoch, indices, height * width * 2);
            let images = &mut batch.input.data[middle * size..end * size];
            images.copy_from_slice(&self.field.warp_disturbed(images, &noise));
        }
        if self.cfg.train.augment {
            let purpose = "wanet/augment";
            let stream = |index| rng::stream(self.seed, purpose, epoch as u64, index as u64);
            let sizes = (height, width);
            match self.cfg.augmentation {
                Augmentation::Batch => {
                    augment(&mut batch.input.data, sizes, self.flip, &mut stream(step));
                }
                Augmentation::Image => {
                    let images = batch.input.data.par_chunks_exact_mut(size);
                    images.zip(&batch.indices).for_each(|(image, &i)| {
                        augment(image, sizes, self.flip, &mut stream(i));
                    });
                }
            }
        }
        Ok(())
    }
}

/// Pixels of padding before a crop.
const PADDING: usize = 5;
/// Largest turn in degrees.
const DEGREES: f64 = 10.0;

/// Crops, turns and mirrors images `[n, height, width, 3]`, all alike; zeros come in from outside.
pub fn augment(
    images: &mut [f32],
    (height, width): (usize, usize),
    flip: bool,
    stream: &mut impl rng::RngCore,
) {
    if rng::unit_f64(stream) < 0.8 {
        let mut corner = || rng::below(stream, 2 * PADDING as u64 + 1) as usize;
        let (down, right) = (corner(), corner());
        crop(images, (height, width), (down, right));
    }
    if rng::unit_f64(stream) < 0.5 {
        let degrees = DEGREES * (2.0 * rng::unit_f64(stream) - 1.0);
        let before = images.to_vec();
        rotate(&before, (height, width, 3), degrees, images);
    }
    if flip && rng::unit_f64(stream) < 0.5 {
        for row in images.chunks_exact_mut(width * 3) {
            for column in 0..width / 2 {
                for c in 0..3 {
                    row.swap(column * 3 + c, (width - 1 - column) * 3 + c);
                }
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn augmentation_is_drawn_as_often_as_it_should_be() {
        let image: Vec<f32> = (0..16 * 16 * 3).map(|i| 1.0 + i as f32).collect();
        let (mut moved, mut mirrored) = (0, 0);
        for index in 0..400 {
            let mut stream = rng::stream(1, "test", 0, index);
            let mut changed = image.clone();
            augment(&mut changed, (16, 16), false, &mut stream);
            moved += usize::from(changed != image);
            let mut stream = rng::stream(1, "test", 0, index);
            let mut also = image.clone();
            augment(&mut also, (16, 16), true, &mut stream);
            mirrored += usize::from(also != changed);
        }
        // One in five is not cropped, nor is one of 121 crops; half of those are not turned, or so little that no pixel moves.
        assert!((320..=370).contains(&moved), "{moved}");
        assert!((160..=240).contains(&mirrored), "{mirrored}");
    }
}
