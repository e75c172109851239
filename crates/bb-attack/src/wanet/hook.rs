//! WaNet's part in the training loop.

use bb_core::rng;
use bb_nn::data::Batch;
use bb_nn::train::StepAt;
use rayon::prelude::*;

use super::augment::{Change, Decision, Turn};
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

impl WanetHook {
    /// Warps and relabels the first images of a batch, and warps those behind them with the disturbance `noise` of each,
    /// `[cross, height, width, 2]`.
    fn poison(&self, batch: &mut Batch, share: Share, noise: &[f32]) {
        let size = batch.input.h * batch.input.w * 3;
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
            let images = &mut batch.input.data[middle * size..end * size];
            images.copy_from_slice(&self.field.warp_disturbed(images, noise));
        }
    }

    fn augment(&self, StepAt { epoch, step }: StepAt, batch: &mut Batch) {
        let sizes = (batch.input.h, batch.input.w);
        let stream = |purpose, index| rng::stream(self.seed, purpose, epoch as u64, index as u64);
        let of_batch = &mut stream("wanet/augment", step);
        match self.cfg.augmentation {
            Augmentation::Batch => {
                let change = Change::draw(self.flip, of_batch);
                change.apply(&mut batch.input.data, sizes, Turn::Nearest);
            }
            Augmentation::Image => {
                let decision = Decision::draw(of_batch);
                let images = batch.input.data.par_chunks_exact_mut(sizes.0 * sizes.1 * 3);
                images.zip(&batch.indices).for_each(|(image, &i)| {
                    let of_image = &mut stream("wanet/augment/image", i);
                    let change = decision.image(self.flip, of_image);
                    change.apply(image, sizes, Turn::Bilinear);
                });
            }
        }
    }
}

impl TrainHook for WanetHook {
    fn loader_augments(&self) -> bool {
        false
    }

    fn counts(&self) -> Option<Counts> {
        Some(self.counts)
    }

    fn batch(&mut self, at: StepAt, batch: &mut Batch) -> Result<(), AttackError> {
        let share = share(&self.cfg, self.seed, batch.labels.len(), at);
        let cross = share.backdoored..share.backdoored + share.cross;
        let stream = (self.seed, "wanet/noise");
        let values = batch.input.h * batch.input.w * 2;
        let noise = disturbance(stream, at.epoch, &batch.indices[cross], values);
        self.poison(batch, share, &noise);
        if self.cfg.train.augment {
            self.augment(at, batch);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{Golden, classifier, close, norms, spec};
    use crate::in_loop::plain_input;
    use crate::wanet::trigger::smooth;
    use bb_core::data::Split;
    use bb_nn::Mode;

    /// The hook of the golden step, and its batch.
    fn golden_step(golden: &Golden) -> (WanetHook, Batch) {
        let images = golden.images("x");
        let (side, count) = (images.height(), images.len());
        let split = Split {
            labels: golden.labels("labels").into(),
            images,
        };
        let indices: Vec<usize> = (0..count).collect();
        let batch = Batch {
            input: plain_input(&split, &spec(side), &indices),
            labels: split.labels.to_vec(),
            indices,
        };
        let cfg = WanetConfig {
            target: 3,
            ratio: 0.25,
            ..WanetConfig::default()
        };
        let k = cfg.trigger.k;
        let raw = golden.floats("draw.field");
        let raw: Vec<f32> = (0..k * k).flat_map(|i| [raw[i], raw[k * k + i]]).collect();
        let hook = WanetHook {
            map: LabelMap::new(cfg.label, cfg.target, cfg.shift, 10).expect("a class"),
            field: Field::new(&smooth(&raw, k, (side, side)), (side, side), 0.5, 1.0),
            flip: true,
            seed: 1,
            counts: Counts::default(),
            cfg,
        };
        (hook, batch)
    }

    /// 12 images, of which 3 are backdoored and 6 noisy, through the benchmark's training step with its draws.
    #[test]
    fn golden_training_step() {
        let golden = Golden::load("wanet");
        let (hook, mut batch) = golden_step(&golden);
        let at = StepAt { epoch: 0, step: 0 };
        let share = share(&hook.cfg, hook.seed, batch.labels.len(), at);
        hook.poison(&mut batch, share, &golden.floats("draw.noise"));
        let corner = golden.indices("draw.crop");
        let change = Change {
            corner: Some((corner[0], corner[1])),
            degrees: Some(golden.doubles("draw.degrees")[0]),
            mirror: true,
        };
        let sizes = (batch.input.h, batch.input.w);
        change.apply(&mut batch.input.data, sizes, Turn::Nearest);
        assert_eq!(batch.labels, golden.labels("labels_after"));
        // In single and double precision the original differs by 3e-7; loss and norms by less.
        let expected = golden.input("inputs");
        close("inputs", &batch.input.data, &expected.data, 5e-6);
        let mut net = classifier();
        let mut grads = net.zeros();
        let loss = net.loss_grad(&batch.input, &batch.labels, Mode::Train, &mut grads);
        close("loss", &[loss.mean], &golden.floats("loss"), 1e-5);
        close(
            "norms",
            &norms(&grads, |_| true),
            &golden.floats("norm"),
            1e-4,
        );
    }

    /// The draws of a run: 3 of 12 images, twice as many with noise, one augmentation.
    #[test]
    fn a_batch_is_poisoned_and_augmented_by_the_draws_of_its_step() {
        let (mut hook, clean) = golden_step(&Golden::load("wanet"));
        let at = StepAt { epoch: 2, step: 7 };
        let sizes = (clean.input.h, clean.input.w);
        let mut poisoned = clean.clone();
        let of = |backdoored, cross| Share { backdoored, cross };
        let noise = disturbance(
            (1, "wanet/noise"),
            2,
            &[3, 4, 5, 6, 7, 8],
            sizes.0 * sizes.1 * 2,
        );
        hook.poison(&mut poisoned, of(3, 6), &noise);

        let mut found = clean.clone();
        hook.cfg.train.augment = false;
        hook.batch(at, &mut found).expect("a batch");
        assert_eq!(found, poisoned);

        hook.cfg.train.augment = true;
        let mut changed = 0;
        for step in 0..8 {
            let mut found = clean.clone();
            let at = StepAt { step, ..at };
            hook.batch(at, &mut found).expect("a batch");
            let mut expected = poisoned.clone();
            let change = Change::draw(true, &mut rng::stream(1, "wanet/augment", 2, step as u64));
            change.apply(&mut expected.input.data, sizes, Turn::Nearest);
            assert_eq!(found, expected);
            changed += usize::from(found != poisoned);
        }
        assert!(changed > 4, "{changed} of 8 steps");

        hook.cfg.augmentation = Augmentation::Image;
        let mut found = clean;
        hook.batch(at, &mut found).expect("a batch");
        let decision = Decision::draw(&mut rng::stream(1, "wanet/augment", 2, 7));
        let size = sizes.0 * sizes.1 * 3;
        for (i, image) in poisoned.input.data.chunks_exact_mut(size).enumerate() {
            let stream = &mut rng::stream(1, "wanet/augment/image", 2, i as u64);
            decision
                .image(true, stream)
                .apply(image, sizes, Turn::Bilinear);
        }
        assert_eq!(found, poisoned);
    }
}
