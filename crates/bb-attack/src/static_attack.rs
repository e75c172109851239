//! The flow of every attack that poisons the data once, before training: BadNets, Blended, LF, SIG and their kin.
//!
//! The trigger works on 8-bit images and comes before the augmentation, so what is stored in the cell is exactly what
//! training reads.

use bb_core::data::{Images, Split};
use bb_core::poison::PoisonSet;

use crate::error::AttackError;
use crate::labels::LabelMap;
use crate::method::{Ctx, Poisoned};
use crate::poison_index;

/// The training and the test images that get the trigger, both ascending.
fn choose(
    ctx: &Ctx<'_>,
    map: &LabelMap,
    ratio: f64,
) -> Result<(Vec<usize>, Vec<usize>), AttackError> {
    let (train, test) = (&ctx.dataset.train.labels, &ctx.dataset.test.labels);
    let chosen = poison_index::train(train, map, ratio, ctx.seed)?;
    Ok((chosen, poison_index::test(test, map)?))
}

/// Refuses settings by which no image could be chosen, before an attack trains a network for its trigger.
///
/// # Errors
/// Those of the choice that [`poison`] and [`replace`] make.
pub fn check_choice(ctx: &Ctx<'_>, map: &LabelMap, ratio: f64) -> Result<(), AttackError> {
    choose(ctx, map, ratio).map(|_| ())
}

/// Chooses the images, puts the triggers on them (in place, layout `[h, w, 3]`) and relabels them.
pub fn poison(
    ctx: &Ctx<'_>,
    map: &LabelMap,
    ratio: f64,
    train_trigger: impl Fn(&mut [u8]),
    test_trigger: impl Fn(&mut [u8]),
) -> Result<Poisoned, AttackError> {
    let (train, test) = (&ctx.dataset.train, &ctx.dataset.test);
    let (train_indices, test_indices) = choose(ctx, map, ratio)?;
    Ok(Poisoned {
        train: triggered(train, train_indices, map, train_trigger)?,
        test: triggered(test, test_indices, map, test_trigger)?,
        artefacts: Vec::new(),
        warnings: Vec::new(),
        hook: None,
    })
}

/// [`poison`] for triggers that differ from image to image: both functions give the images that stand at some indices of
/// their split with the trigger, one after the other.
pub fn replace(
    ctx: &Ctx<'_>,
    map: &LabelMap,
    ratio: f64,
    train_images: impl FnOnce(&[usize]) -> Result<Vec<u8>, AttackError>,
    test_images: impl FnOnce(&[usize]) -> Result<Vec<u8>, AttackError>,
) -> Result<Poisoned, AttackError> {
    let (train, test) = (&ctx.dataset.train, &ctx.dataset.test);
    let (train_indices, test_indices) = choose(ctx, map, ratio)?;
    let (train_pixels, test_pixels) = (train_images(&train_indices)?, test_images(&test_indices)?);
    Ok(Poisoned {
        train: relabelled(train, train_indices, map, train_pixels)?,
        test: relabelled(test, test_indices, map, test_pixels)?,
        artefacts: Vec::new(),
        warnings: Vec::new(),
        hook: None,
    })
}

/// Poisons no image.
pub fn nothing(ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
    let none =
        |split: &Split| triggered(split, Vec::new(), &LabelMap::AllToOne { target: 0 }, |_| ());
    Ok(Poisoned {
        train: none(&ctx.dataset.train)?,
        test: none(&ctx.dataset.test)?,
        artefacts: Vec::new(),
        warnings: Vec::new(),
        hook: None,
    })
}

/// Copies the chosen images and puts the trigger on each.
fn triggered(
    split: &Split,
    indices: Vec<usize>,
    map: &LabelMap,
    trigger: impl Fn(&mut [u8]),
) -> Result<PoisonSet, AttackError> {
    let (height, width) = (split.images.height(), split.images.width());
    let mut pixels = Vec::with_capacity(indices.len() * height * width * 3);
    for &i in &indices {
        let start = pixels.len();
        pixels.extend_from_slice(split.images.image(i));
        trigger(&mut pixels[start..]);
    }
    relabelled(split, indices, map, pixels)
}

/// The poison set of the images at `indices` with these pixels.
fn relabelled(
    split: &Split,
    indices: Vec<usize>,
    map: &LabelMap,
    pixels: Vec<u8>,
) -> Result<PoisonSet, AttackError> {
    let (height, width) = (split.images.height(), split.images.width());
    let original_labels: Vec<u32> = indices.iter().map(|&i| split.labels[i]).collect();
    let labels = original_labels.iter().map(|&y| map.attacked(y)).collect();
    let images = Images::new(indices.len(), height, width, pixels)?;
    Ok(PoisonSet::new(indices, images, labels, original_labels)?)
}

/// The training split with the poisoned images and labels in their places.
///
/// Holds a copy of all pixels if any is poisoned, because training reads images in random order from one block.
pub fn mixed(split: &Split, poison: &PoisonSet) -> Result<Split, AttackError> {
    if poison.is_empty() {
        return Ok(split.clone());
    }
    let (height, width) = (split.images.height(), split.images.width());
    let mut pixels = split.images.as_bytes().to_vec();
    let mut labels = split.labels.to_vec();
    let size = height * width * 3;
    for (k, &i) in poison.indices.iter().enumerate() {
        pixels[i * size..(i + 1) * size].copy_from_slice(poison.images.image(k));
        labels[i] = poison.labels[k];
    }
    Ok(Split {
        images: Images::new(split.len(), height, width, pixels)?,
        labels: labels.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What training reads: triggers and attacked labels in their places, everything else as it was.
    #[test]
    fn poisoned_images_and_labels_take_the_places_of_the_clean_ones() {
        let split = Split {
            images: Images::new(5, 1, 2, (0..30).collect()).expect("five images"),
            labels: vec![4, 3, 2, 1, 0].into(),
        };
        let map = LabelMap::AllToOne { target: 7 };
        let brighter = |image: &mut [u8]| image.iter_mut().for_each(|v| *v += 100);
        let poison = triggered(&split, vec![1, 3], &map, brighter).expect("two images");
        let found = mixed(&split, &poison).expect("a split");
        assert_eq!(found.labels[..], [4, 7, 2, 7, 0]);
        for i in 0..5u8 {
            let more = if i == 1 || i == 3 { 100 } else { 0 };
            let expected: Vec<u8> = (6 * i..6 * i + 6).map(|v| v + more).collect();
            assert_eq!(found.images.image(usize::from(i)), expected, "image {i}");
        }
        let none = triggered(&split, Vec::new(), &map, brighter).expect("no image");
        assert_eq!(mixed(&split, &none).expect("a split"), split);
    }
}
