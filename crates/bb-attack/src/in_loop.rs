//! What the attacks that poison batches inside the training loop share: how many images of a batch are theirs, which ones
//! stand for that in the cell, and the way back from normalised values to 8-bit pixels.

use bb_core::data::{DatasetSpec, Images, Split};
use bb_core::poison::PoisonSet;
use bb_core::rng;
use bb_nn::data::{Input, LoaderOptions, batch_count, gather};
use bb_nn::schedule::{Kind, Schedule};
use bb_nn::train::{Recipe, StepAt};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::AttackError;
use crate::labels::LabelMap;

/// The setting `rounding`: how normalised values become grey levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rounding {
    /// To the nearest level, so that an image that was not changed comes back as it was.
    #[default]
    Nearest,
    /// Down, as in the bench, where a sixth to a third of all levels come back one lower (none without normalisation).
    Truncate,
}

/// The bench's recipe for attacks that poison inside the loop: a constant rate within 100 epochs, last batch kept.
pub fn loop_recipe() -> Recipe {
    Recipe {
        drop_last: false,
        schedule: Schedule {
            kind: Kind::Multistep,
            milestones: vec![100, 200, 300, 400],
            ..Schedule::default()
        },
        ..Recipe::default()
    }
}

/// Normalised pixels (R, G, B) as fractions of 1.
///
/// As the bench does it, since which levels truncation lowers hangs on that: divided by the reciprocal of the deviation,
/// less the negative of the mean, in `f32`.
pub fn fractions(values: &[f32], spec: &DatasetSpec) -> Vec<f32> {
    let scale = spec.std.map(|std| (1.0 / plain(std)) as f32);
    let value = |k: usize, v: &f32| v / scale[k % 3] - -spec.mean[k % 3];
    let values = values.par_iter().enumerate();
    values.map(|(k, v)| value(k, v)).collect()
}

/// The images behind normalised values `[n, h, w, 3]`.
pub fn to_images(
    values: &Input,
    spec: &DatasetSpec,
    rounding: Rounding,
) -> Result<Images, AttackError> {
    // A conversion to bytes clips.
    let level = |v: f32| match rounding {
        Rounding::Nearest => (v * 255.0).round() as u8,
        Rounding::Truncate => (v * 255.0) as u8,
    };
    let pixels = fractions(&values.data, spec).into_par_iter().map(level);
    Ok(Images::new(values.n, values.h, values.w, pixels.collect())?)
}

/// The number that was written down: the shortest decimal that gives this `f32`.
fn plain(value: f32) -> f64 {
    value
        .to_string()
        .parse()
        .expect("a number prints as a number")
}

/// The images `indices` of a split, normalised, without augmentation.
pub fn plain_input(split: &Split, spec: &DatasetSpec, indices: &[usize]) -> Input {
    let options = LoaderOptions {
        batch_size: 1,
        shuffle: false,
        drop_last: false,
        augment: false,
        seed: 0,
        purpose: "",
    };
    gather(split, spec, &options, 0, indices).input
}

/// How many images of a batch an attack takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Images that get the trigger and the attacked label; the first ones of the batch.
    pub backdoored: usize,
    /// Images that get a disturbed trigger and keep their label; those behind them.
    pub cross: usize,
}

impl Share {
    /// `floor(ratio * batch)` images and `floor(cross * that)`, if there are so many. Where the first would always be 0 it is 1 with probability
    /// `ratio * batch`, drawn from the stream (`seed`, `purpose`, `epoch`, `step`).
    pub fn of(
        batch: usize,
        (ratio, cross): (f64, f64),
        (seed, purpose): (u64, &str),
        StepAt { epoch, step }: StepAt,
    ) -> Self {
        let expected = ratio * batch as f64;
        let backdoored = if expected < 1.0 {
            let mut stream = rng::stream(seed, purpose, epoch as u64, step as u64);
            usize::from(rng::unit_f64(&mut stream) < expected)
        } else {
            expected as usize
        };
        Self {
            backdoored,
            cross: ((cross * backdoored as f64) as usize).min(batch - backdoored),
        }
    }
}

/// What an attack inside the training loop does to the batches of a whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Images that get the trigger and the attacked label, over all epochs.
    pub backdoored: u64,
    /// Images that get a disturbed trigger and keep their label, over all epochs.
    pub cross: u64,
    /// Batches of all epochs.
    pub batches: u64,
    /// Those of them without a backdoored image.
    pub clean_batches: u64,
}

impl Counts {
    /// Counts what `share` takes of each batch, told its images, epoch and step, in a training with `recipe` on `images`
    /// images.
    ///
    /// Shares follow from the settings and the seed alone, so this is known before training, and is the same for a run
    /// that was interrupted.
    pub fn of(images: usize, recipe: &Recipe, share: impl Fn(usize, StepAt) -> Share) -> Self {
        let mut counts = Self::default();
        let size = recipe.batch_size;
        let steps = batch_count(images, size, recipe.drop_last);
        for epoch in 0..recipe.epochs {
            for step in 0..steps {
                let batch = size.min(images - step * size);
                let Share { backdoored, cross } = share(batch, StepAt { epoch, step });
                counts.backdoored += backdoored as u64;
                counts.cross += cross as u64;
                counts.batches += 1;
                counts.clean_batches += u64::from(backdoored == 0);
            }
        }
        counts
    }

    /// Refuses a run that poisons no image.
    pub fn check(&self, ratio: f64, recipe: &Recipe) -> Result<(), AttackError> {
        // A run without a batch says so itself.
        if self.batches > 0 && self.backdoored == 0 {
            return Err(AttackError::NoPoisonedBatch {
                ratio,
                batch_size: recipe.batch_size,
                batches: self.batches,
            });
        }
        Ok(())
    }

    /// What the user should know of a run of which only some batches are poisoned.
    pub fn warnings(&self, ratio: f64) -> Vec<String> {
        let Self {
            batches,
            clean_batches,
            ..
        } = self;
        let text = || {
            format!(
                "{clean_batches} of {batches} batches have no poisoned image, since `ratio` {ratio} of their images is less than one"
            )
        };
        (*clean_batches > 0).then(text).into_iter().collect()
    }
}

/// Which training images stand for the attack in the cell: the backdoored and the cross images of each batch, if the
/// images came in their own order, as in the bench.
pub fn recorded(
    images: usize,
    batch_size: usize,
    shares: (f64, f64),
    (seed, purpose): (u64, &str),
) -> (Vec<usize>, Vec<usize>) {
    let (mut backdoored, mut cross) = (Vec::new(), Vec::new());
    for (block, first) in (0..images).step_by(batch_size).enumerate() {
        let batch = batch_size.min(images - first);
        let at = StepAt {
            epoch: 0,
            step: block,
        };
        let share = Share::of(batch, shares, (seed, purpose), at);
        let middle = first + share.backdoored;
        backdoored.extend(first..middle);
        cross.extend(middle..middle + share.cross);
    }
    (backdoored, cross)
}

/// The poisoned set of these images of a split: the attacked label with a map, their own without.
pub fn poison_set(
    split: &Split,
    indices: Vec<usize>,
    images: Images,
    map: Option<&LabelMap>,
) -> Result<PoisonSet, AttackError> {
    let original: Vec<u32> = indices.iter().map(|&i| split.labels[i]).collect();
    let labels = match map {
        Some(map) => original.iter().map(|&y| map.attacked(y)).collect(),
        None => original.clone(),
    };
    Ok(PoisonSet::new(indices, images, labels, original)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every level in all channels, through the normalisation and back.
    fn lowered(dataset: &str, rounding: Rounding) -> [usize; 3] {
        let spec = bb_core::data::spec(dataset).expect("a known dataset");
        let levels: Vec<u8> = (0..=255).flat_map(|v| [v; 3]).collect();
        let split = Split {
            images: Images::new(1, 16, 16, levels.clone()).expect("one image"),
            labels: vec![0].into(),
        };
        let input = plain_input(&split, spec, &[0]);
        let back = to_images(&input, spec, rounding).expect("one image");
        let mut count = [0; 3];
        for (k, (&found, &level)) in back.as_bytes().iter().zip(&levels).enumerate() {
            match level - found {
                0 => {}
                1 => count[k % 3] += 1,
                more => panic!("{dataset}: level {level} lost {more}"),
            }
        }
        count
    }

    #[test]
    fn truncation_loses_the_levels_that_the_bench_loses() {
        let known = [
            ("cifar10", [68, 40, 48]),
            ("cifar100", [49, 58, 61]),
            ("tiny", [90, 41, 34]),
            ("gtsrb", [0; 3]),
        ];
        for (dataset, count) in known {
            assert_eq!(lowered(dataset, Rounding::Truncate), count, "{dataset}");
            assert_eq!(lowered(dataset, Rounding::Nearest), [0; 3], "{dataset}");
        }
    }

    #[test]
    fn a_share_is_that_of_the_bench() {
        let share =
            |batch, shares, step| Share::of(batch, shares, (0, "test"), StepAt { epoch: 0, step });
        let of = |backdoored, cross| Share { backdoored, cross };
        assert_eq!(share(128, (0.1, 2.0), 0), of(12, 24));
        assert_eq!(share(80, (0.1, 2.0), 0), of(8, 16));
        assert_eq!(share(128, (0.1, 0.0), 0), of(12, 0));
        // A quarter of an image on average.
        let ones = (0..400).filter(|&step| share(5, (0.05, 2.0), step).backdoored == 1);
        assert!((70..130).contains(&ones.count()));
        let none = (0..400).find(|&step| share(5, (0.05, 2.0), step) == of(1, 2));
        assert!(none.is_some());
    }

    #[test]
    fn what_is_recorded_stands_first_in_each_block() {
        let (backdoored, cross) = recorded(50_000, 128, (0.1, 2.0), (0, "test"));
        assert_eq!((backdoored.len(), cross.len()), (4688, 9376));
        assert_eq!(backdoored[10..14], [10, 11, 128, 129]);
        assert_eq!(cross[..2], [12, 13]);
        assert_eq!(cross[23..25], [35, 140]);
        assert_eq!(cross.last(), Some(&(49_920 + 23)));
    }

    #[test]
    fn counts_are_those_of_the_batches_that_training_takes() {
        let recipe = Recipe {
            epochs: 3,
            batch_size: 8,
            drop_last: false,
            ..Recipe::default()
        };
        let share = |ratio| move |batch, at| Share::of(batch, (ratio, 2.0), (0, "test"), at);
        // 12 batches of 8 images and one of 4 in each epoch.
        let counts = Counts::of(100, &recipe, share(0.25));
        let expected = Counts {
            backdoored: 3 * (12 * 2 + 1),
            cross: 3 * (12 * 4 + 2),
            batches: 39,
            clean_batches: 0,
        };
        assert_eq!(counts, expected);
        assert!(counts.warnings(0.25).is_empty());
        counts.check(0.25, &recipe).expect("it poisons images");

        let some = Counts::of(100, &recipe, share(0.03));
        assert!(some.backdoored > 0 && some.clean_batches == 39 - some.backdoored);
        some.check(0.03, &recipe).expect("it poisons images");
        assert_eq!(some.warnings(0.03).len(), 1);

        let none = Counts::of(100, &recipe, share(1e-9));
        let error = none.check(1e-9, &recipe).expect_err("no image");
        let text = error.to_string();
        let expected = "`ratio` 0.000000001 selects no image of any batch of the run (up to 8 images each, 39 in all)";
        assert!(text.starts_with(expected), "{text}");
        // Without an epoch there is no batch that could have been poisoned.
        let idle = Recipe {
            epochs: 0,
            ..recipe
        };
        Counts::of(100, &idle, share(1e-9))
            .check(1e-9, &idle)
            .expect("nothing to refuse");
    }
}
