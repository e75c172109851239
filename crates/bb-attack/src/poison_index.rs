//! Which images are poisoned: the bench's choice, bit for bit.
//!
//! Source: BackdoorBench `utils/backdoor_generate_poison_index.py`. The draw is NumPy's legacy `RandomState.choice`
//! without replacement, so for one seed and one dataset every dirty-label attack poisons the same images, and a
//! smaller ratio poisons a subset of a larger one.
//!
//! A dirty-label attack draws from all images. Where all labels go to one target class, images of that class are among
//! those drawn and keep their label. With K classes of equal size the share of the training set that is relabelled is
//! therefore about `ratio * (1 - 1 / K)`, 9 % for a ratio of 0.1 on CIFAR-10, as in the bench. The attacks inside the
//! training loop take the first images of each batch, whatever their class, so the same holds there.

use bb_core::rng::numpy::RandomState;
use serde::{Deserialize, Serialize};

use crate::labels::LabelMap;

/// A choice of images that cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PoisonIndexError {
    /// The ratio rounds to no image at all.
    #[error("`ratio` {ratio} of {len} training images selects no image, expected at least one")]
    NoTrainImage {
        /// The setting.
        ratio: f64,
        /// Number of training images.
        len: usize,
    },
    /// No test image has a label that the trigger could change.
    #[error("no image of the {len} test images has a label that the attack changes")]
    NoTestImage {
        /// Number of test images.
        len: usize,
    },
    /// A clean-label attack asks for more images than the target class has.
    #[error(
        "`ratio` {ratio} selects {wanted} of {len} training images, but only {available} are of the target class \
         {target}, which is all that a clean-label attack may poison; expected `ratio` of at most {}",
        (*available as f64) / (*len as f64)
    )]
    ClassTooSmall {
        /// The setting.
        ratio: f64,
        /// How many images the ratio selects.
        wanted: usize,
        /// How many images are of the target class.
        available: usize,
        /// The target class.
        target: u32,
        /// Number of training images.
        len: usize,
    },
    /// NumPy's legacy generator takes 32-bit seeds only.
    #[error("seed {0} does not fit the poison choice, expected a seed below 4294967296")]
    Seed(u64),
}

/// The setting `oversize` of clean-label attacks: what to do if `ratio` selects more images than the target class has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Oversize {
    /// Refuse, since a smaller ratio is another experiment.
    #[default]
    Error,
    /// Poison all images of the target class.
    Cap,
}

/// The ratio to draw with, and what the user should know of it if that is not the one that was set.
pub fn fitting(
    labels: &[u32],
    map: &LabelMap,
    ratio: f64,
    oversize: Oversize,
) -> (f64, Option<String>) {
    let (LabelMap::CleanLabel { target }, Oversize::Cap) = (*map, oversize) else {
        return (ratio, None);
    };
    let (len, wanted) = (labels.len(), count(ratio, labels.len()));
    let available = labels.iter().filter(|&&y| y == target).count();
    if available == 0 || wanted <= available {
        return (ratio, None);
    }
    let capped = available as f64 / len as f64;
    let warning = format!(
        "`ratio` {ratio} selects {wanted} of {len} training images, but only {available} are of the target class \
         {target}; all of these are poisoned, a ratio of {capped}"
    );
    (capped, Some(warning))
}

/// Number of images that `ratio` selects of `len`: rounded to nearest, ties to even, as Python rounds.
pub fn count(ratio: f64, len: usize) -> usize {
    (ratio * len as f64).round_ties_even() as usize
}

/// Draws the training images to poison, in the order of the draw (indices into `labels`).
///
/// `count(ratio, labels.len())` images, from all images for a dirty-label map (images of the target class included),
/// from the images of the target class for a clean-label map.
pub fn draw_train(
    labels: &[u32],
    map: &LabelMap,
    ratio: f64,
    seed: u64,
) -> Result<Vec<usize>, PoisonIndexError> {
    let len = labels.len();
    let wanted = count(ratio, len);
    if wanted == 0 {
        return Err(PoisonIndexError::NoTrainImage { ratio, len });
    }
    let pool: Vec<usize> = match *map {
        LabelMap::AllToOne { .. } | LabelMap::AllToAll { .. } => (0..len).collect(),
        LabelMap::CleanLabel { target } => {
            let pool: Vec<usize> = (0..len).filter(|&i| labels[i] == target).collect();
            if wanted > pool.len() {
                let available = pool.len();
                return Err(PoisonIndexError::ClassTooSmall {
                    ratio,
                    wanted,
                    available,
                    target,
                    len,
                });
            }
            pool
        }
    };
    let seed = u32::try_from(seed).map_err(|_| PoisonIndexError::Seed(seed))?;
    Ok(RandomState::new(seed).choice_without_replacement(&pool, wanted))
}

/// The training images to poison, ascending (the bench keeps an indicator over the dataset, which is the same thing).
pub fn train(
    labels: &[u32],
    map: &LabelMap,
    ratio: f64,
    seed: u64,
) -> Result<Vec<usize>, PoisonIndexError> {
    let mut indices = draw_train(labels, map, ratio, seed)?;
    indices.sort_unstable();
    Ok(indices)
}

/// The test images that get the trigger, ascending: every image whose label the map changes.
///
/// For a target class these are the images of all other classes; for all-to-all these are all images.
pub fn test(labels: &[u32], map: &LabelMap) -> Result<Vec<usize>, PoisonIndexError> {
    let indices: Vec<usize> = (0..labels.len())
        .filter(|&i| map.tells(labels[i]))
        .collect();
    if indices.is_empty() {
        return Err(PoisonIndexError::NoTestImage { len: labels.len() });
    }
    Ok(indices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: LabelMap = LabelMap::AllToOne { target: 0 };

    fn cycle(len: usize, classes: u32) -> Vec<u32> {
        (0..classes).cycle().take(len).collect()
    }

    #[test]
    fn golden_dirty_label_choice_of_seed_0() {
        // Values of NumPy's legacy generator at the sizes of the bench's datasets.
        struct Case {
            len: usize,
            ratio: f64,
            count: usize,
            first: [usize; 8],
            smallest: [usize; 8],
            sum: usize,
        }
        let first_cifar = [11841, 19602, 45519, 25747, 42642, 31902, 30346, 12363];
        let cases = [
            Case {
                len: 50_000,
                ratio: 0.1,
                count: 5000,
                first: first_cifar,
                smallest: [14, 22, 24, 28, 64, 76, 84, 91],
                sum: 126_459_119,
            },
            Case {
                len: 50_000,
                ratio: 0.01,
                count: 500,
                first: first_cifar,
                smallest: [166, 212, 271, 338, 786, 913, 949, 1083],
                sum: 12_671_404,
            },
            Case {
                len: 50_000,
                ratio: 0.05,
                count: 2500,
                first: first_cifar,
                smallest: [28, 76, 134, 154, 156, 159, 166, 187],
                sum: 63_054_358,
            },
            Case {
                len: 50_000,
                ratio: 0.001,
                count: 50,
                first: first_cifar,
                smallest: [271, 1399, 2838, 4150, 5140, 6338, 7346, 8346],
                sum: 1_255_322,
            },
            Case {
                len: 39_209,
                ratio: 0.05,
                count: 1960,
                first: [19138, 21703, 32087, 19762, 13970, 32376, 4487, 9075],
                smallest: [6, 18, 22, 62, 86, 151, 154, 188],
                sum: 38_851_910,
            },
            Case {
                len: 100_000,
                ratio: 0.001,
                count: 100,
                first: [3582, 60498, 53227, 21333, 3885, 51521, 84261, 10685],
                smallest: [822, 1066, 1331, 2216, 3026, 3582, 3885, 4655],
                sum: 4_857_459,
            },
            Case {
                len: 39_209,
                ratio: 0.1,
                count: 3921,
                first: [19138, 21703, 32087, 19762, 13970, 32376, 4487, 9075],
                smallest: [6, 18, 22, 24, 62, 67, 83, 86],
                sum: 77_219_889,
            },
            Case {
                len: 100_000,
                ratio: 0.1,
                count: 10_000,
                first: [3582, 60498, 53227, 21333, 3885, 51521, 84261, 10685],
                smallest: [6, 9, 17, 23, 25, 26, 36, 48],
                sum: 499_851_984,
            },
        ];
        for case in cases {
            let labels = cycle(case.len, 10);
            let drawn = draw_train(&labels, &ONE, case.ratio, 0).expect("a valid choice");
            assert_eq!(drawn.len(), case.count);
            assert_eq!(drawn[..8], case.first);
            assert_eq!(drawn.iter().sum::<usize>(), case.sum);
            let sorted = train(&labels, &ONE, case.ratio, 0).expect("a valid choice");
            assert_eq!(sorted[..8], case.smallest);
        }
    }

    #[test]
    fn golden_clean_label_choice_of_seed_0() {
        let map = LabelMap::CleanLabel { target: 0 };
        for (ratio, count, sum) in [
            (0.1, 5000, 124_975_000),
            (0.05, 2500, 62_371_740),
            (0.01, 500, 12_725_560),
            (0.001, 50, 1_247_010),
        ] {
            let drawn = draw_train(&cycle(50_000, 10), &map, ratio, 0).expect("a valid choice");
            assert_eq!(drawn.len(), count);
            assert_eq!(drawn[..5], [3980, 38330, 48360, 45720, 6360]);
            assert_eq!(drawn.iter().sum::<usize>(), sum);
        }
    }

    #[test]
    fn counts_round_half_to_even() {
        for (ratio, len, expect) in [
            (0.1, 25, 2),
            (0.1, 35, 4),
            (0.5, 1, 0),
            (0.5, 3, 2),
            (0.1, 39_209, 3921),
            (0.001, 50_000, 50),
        ] {
            assert_eq!(count(ratio, len), expect, "{ratio} of {len}");
        }
    }

    #[test]
    fn a_choice_that_cannot_be_made_is_one_clear_error() {
        let check = |labels: &[u32], map: LabelMap, ratio: f64, seed: u64, expect: &str| {
            let error =
                draw_train(labels, &map, ratio, seed).expect_err("the choice is impossible");
            assert_eq!(error.to_string(), expect);
        };
        let none = "`ratio` 0.001 of 100 training images selects no image, expected at least one";
        check(&cycle(100, 10), ONE, 0.001, 0, none);
        let small = "`ratio` 0.2 selects 20 of 100 training images, but only 10 are of the target class 3, which is all \
                     that a clean-label attack may poison; expected `ratio` of at most 0.1";
        check(
            &cycle(100, 10),
            LabelMap::CleanLabel { target: 3 },
            0.2,
            0,
            small,
        );
        let seed =
            "seed 4294967296 does not fit the poison choice, expected a seed below 4294967296";
        check(&cycle(100, 10), ONE, 0.1, 1 << 32, seed);
        let error = test(&[0, 0], &ONE).expect_err("only the target class");
        assert_eq!(
            error.to_string(),
            "no image of the 2 test images has a label that the attack changes"
        );
    }

    #[test]
    fn the_whole_target_class_may_be_poisoned() {
        let map = LabelMap::CleanLabel { target: 3 };
        let chosen = train(&cycle(100, 10), &map, 0.1, 5).expect("exactly the class");
        assert_eq!(chosen, (0..10).map(|i| 10 * i + 3).collect::<Vec<_>>());
    }

    #[test]
    fn a_ratio_is_capped_only_where_that_was_asked_for_and_is_possible() {
        let labels = cycle(103, 10);
        let map = LabelMap::CleanLabel { target: 3 };
        let check = |map: &LabelMap, ratio, oversize, expect: Option<usize>| {
            let (found, warning) = fitting(&labels, map, ratio, oversize);
            assert_eq!(warning.is_some(), expect.is_some());
            match expect {
                None => assert_eq!(found.to_bits(), f64::to_bits(ratio)),
                Some(images) => {
                    let chosen = train(&labels, map, found, 0).expect("it fits now");
                    assert_eq!(chosen.len(), images);
                }
            }
        };
        check(&map, 0.5, Oversize::Error, None);
        check(&map, 0.05, Oversize::Cap, None);
        check(&map, 0.5, Oversize::Cap, Some(10));
        check(
            &LabelMap::CleanLabel { target: 2 },
            0.5,
            Oversize::Cap,
            Some(11),
        );
        check(
            &LabelMap::CleanLabel { target: 11 },
            0.5,
            Oversize::Cap,
            None,
        );
        check(&ONE, 0.5, Oversize::Cap, None);
        let (_, warning) = fitting(&cycle(100, 10), &map, 0.2, Oversize::Cap);
        assert_eq!(
            warning.expect("capped"),
            "`ratio` 0.2 selects 20 of 100 training images, but only 10 are of the target class 3; all of these are \
             poisoned, a ratio of 0.1"
        );
    }

    proptest! {
        #[test]
        fn a_capped_ratio_selects_the_whole_class(len in 1usize..3000, classes in 1u32..40) {
            let labels = cycle(len, classes);
            let (ratio, _) = fitting(&labels, &LabelMap::CleanLabel { target: 0 }, 1.0, Oversize::Cap);
            prop_assert_eq!(count(ratio, len), labels.iter().filter(|&&y| y == 0).count());
        }

        #[test]
        fn the_count_is_exact_and_nothing_is_chosen_twice(
            len in 1usize..400, ratio in 0.001f64..=1.0, seed in 0u64..100, clean in any::<bool>(),
        ) {
            let labels = cycle(len, 3);
            let map = if clean { LabelMap::CleanLabel { target: 1 } } else { ONE };
            match train(&labels, &map, ratio, seed) {
                Ok(chosen) => {
                    prop_assert_eq!(chosen.len(), count(ratio, len));
                    prop_assert!(chosen.windows(2).all(|w| w[0] < w[1]));
                    prop_assert!(chosen.iter().all(|&i| i < len && (!clean || labels[i] == 1)));
                }
                Err(PoisonIndexError::NoTrainImage { .. }) => prop_assert_eq!(count(ratio, len), 0),
                Err(PoisonIndexError::ClassTooSmall { wanted, available, .. }) => {
                    prop_assert!(clean && wanted > available);
                }
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
        }

        #[test]
        fn a_smaller_ratio_is_a_prefix(len in 50usize..400, seed in 0u64..100) {
            let labels = cycle(len, 10);
            let large = draw_train(&labels, &ONE, 0.5, seed).expect("at least 25 images");
            let small = draw_train(&labels, &ONE, 0.1, seed).expect("at least 5 images");
            prop_assert_eq!(&large[..small.len()], &small[..]);
        }

        #[test]
        fn the_test_set_never_holds_the_target_class(labels in prop::collection::vec(0u32..5, 1..200), target in 0u32..5) {
            for map in [LabelMap::AllToOne { target }, LabelMap::CleanLabel { target }] {
                match test(&labels, &map) {
                    Ok(chosen) => {
                        prop_assert!(chosen.iter().all(|&i| labels[i] != target));
                        let others = labels.iter().filter(|&&y| y != target).count();
                        prop_assert_eq!(chosen.len(), others);
                    }
                    Err(_) => prop_assert!(labels.iter().all(|&y| y == target)),
                }
            }
            let all = LabelMap::AllToAll { shift: 1, classes: 5 };
            prop_assert_eq!(test(&labels, &all).expect("every image").len(), labels.len());
        }
    }
}
