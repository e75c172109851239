//! A picture of what a trigger does: a few images before, after, and the difference.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};

use bb_core::artifact::atomic;
use bb_core::data::{Images, OpenOptions};
use bb_core::events::Log;
use bb_core::poison::PoisonSet;
use bb_nn::ArchSpec;
use serde_json::Value;

use crate::error::AttackError;
use crate::method::{Ctx, Given, Poisoned};
use crate::picture::Picture;
use crate::prep::Prep;
use crate::registry;
use crate::stealth::{self, Stealth};

/// Images of a sheet unless another number is asked for.
pub const IMAGES: usize = 8;
/// Most images of a sheet.
pub const MOST_IMAGES: u64 = 32;
/// How much the difference is magnified.
pub const GAIN: i16 = 10;
/// Least side of an image on the sheet; smaller ones are magnified.
const LEAST_SIDE: usize = 128;
/// White pixels between and around the images.
const GAP: usize = 4;

/// What to show.
#[derive(Clone, Debug)]
pub struct PreviewRequest {
    /// Name of the attack.
    pub method: String,
    /// Name of the dataset.
    pub dataset: String,
    /// Folder with the datasets; not needed for `synthetic`.
    pub data: Option<PathBuf>,
    /// The split whose images are shown, where it is not the usual one.
    pub test_split: Option<String>,
    /// Architecture of the network that an attack makes its trigger for.
    pub arch: String,
    /// Channels of its first stage.
    pub width: usize,
    /// Settings on top of the defaults and the committed recipe.
    pub given: Given,
    /// Seed of the attack.
    pub seed: u64,
    /// How many images to show.
    pub images: usize,
    /// The PNG file to write.
    pub out: PathBuf,
}

/// Writes the sheet of an attack: the first poisoned test images, and what the trigger does to all of them.
///
/// The attacked network is not trained. An attack that makes its trigger with a network trains that one first, on the
/// CPU, unless its settings name a ready one or a ready trigger.
///
/// # Errors
/// As [`crate::run`]; [`AttackError::NoPreview`] for an attack that poisons no image, or none before training.
pub fn run(request: &PreviewRequest) -> Result<Stealth, AttackError> {
    check_ending(&request.out)?;
    let attack = registry::find(&request.method)?;
    let mut ready = attack.resolve(&request.dataset, &request.given)?;
    // The data are opened as for a run, but nothing beside the sheet is written, so there is no cache.
    let options = OpenOptions {
        test_split: request.test_split.clone(),
        ..OpenOptions::default()
    };
    let dataset = bb_core::data::open(&request.dataset, request.data.as_deref(), &options)?;
    let arch = ArchSpec::for_dataset(&request.arch, request.width, &dataset.spec)?;
    let named = ready.bind(&dataset)?;
    ready.check(&dataset, request.seed)?;
    let Poisoned {
        test,
        hook,
        warnings,
        ..
    } = ready.prepare(&Ctx {
        dataset: &dataset,
        arch: &arch,
        seed: request.seed,
        prep: Prep {
            quiet: !std::io::stderr().is_terminal(),
            ..Prep::default()
        },
    })?;
    let none = |reason| {
        Err(AttackError::NoPreview {
            method: attack.info().id,
            reason,
        })
    };
    if test.is_empty() {
        return match hook {
            Some(_) => none("its trigger is made during training"),
            None => none("it poisons no image"),
        };
    }
    let log = Log::new(true);
    for warning in named.iter().chain(&warnings) {
        log.warn("setting", warning, &Value::Null)
            .map_err(AttackError::log(&request.out))?;
    }
    let originals = &dataset.test.images;
    atomic::write(
        &request.out,
        to_png(&sheet(originals, &test, request.images)),
    )?;
    Ok(stealth::measure(originals, &test))
}

/// Refuses a file name that promises another format than PNG, before anything is computed.
fn check_ending(out: &Path) -> Result<(), AttackError> {
    match out.extension() {
        Some(ending) if !ending.eq_ignore_ascii_case("png") => Err(AttackError::NotPng {
            path: out.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// The sheet of the first poisoned images, at most `images` of them.
///
/// Three rows: the images as they were, with the trigger, and grey 128 + 10 * (with - without), clipped. Small images are
/// magnified by a whole factor, so that each pixel is a square.
///
/// # Panics
/// If there is no image to show, or one that the originals do not have.
pub fn sheet(originals: &Images, poison: &PoisonSet, images: usize) -> Picture {
    let (height, width) = (originals.height(), originals.width());
    let zoom = LEAST_SIDE.div_ceil(height.min(width));
    let (cell_height, cell_width) = (height * zoom + GAP, width * zoom + GAP);
    let columns = poison.len().min(images);
    let (sheet_height, sheet_width) = (3 * cell_height + GAP, columns * cell_width + GAP);
    let mut pixels = vec![255; sheet_height * sheet_width * 3];
    for k in 0..columns {
        let (before, after) = (originals.image(poison.indices[k]), poison.images.image(k));
        let pairs = before.iter().zip(after);
        let difference: Vec<u8> = pairs.map(|(&a, &b)| magnified(a, b)).collect();
        for (row, image) in [before, after, &difference].into_iter().enumerate() {
            let (top, left) = (GAP + row * cell_height, GAP + k * cell_width);
            for r in 0..height * zoom {
                for c in 0..width * zoom {
                    let from = ((r / zoom) * width + c / zoom) * 3;
                    let to = ((top + r) * sheet_width + left + c) * 3;
                    pixels[to..to + 3].copy_from_slice(&image[from..from + 3]);
                }
            }
        }
    }
    Picture::new(sheet_height, sheet_width, pixels)
}

/// The difference of two values around mid-grey.
pub(crate) fn magnified(before: u8, after: u8) -> u8 {
    let difference = i16::from(after) - i16::from(before);
    (128 + GAIN * difference).clamp(0, 255) as u8
}

/// The sheet as a small PNG file, since sheets are put in documents.
fn to_png(sheet: &Picture) -> Vec<u8> {
    use image::codecs::png::{CompressionType, FilterType, PngEncoder};
    let mut bytes = Vec::new();
    let encoder =
        PngEncoder::new_with_quality(&mut bytes, CompressionType::Best, FilterType::Adaptive);
    let (width, height) = (sheet.width() as u32, sheet.height() as u32);
    image::ImageEncoder::write_image(
        encoder,
        sheet.pixels(),
        width,
        height,
        image::ExtendedColorType::Rgb8,
    )
    .expect("encoding an RGB image of checked size into memory cannot fail");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sheet_shows_before_after_and_difference() {
        let mut originals = vec![0u8; 2 * 4 * 4 * 3];
        originals[48..].fill(100);
        let originals = Images::new(2, 4, 4, originals).expect("two images");
        let mut after = vec![100u8; 48];
        after[..3].copy_from_slice(&[103, 99, 200]);
        let poison = PoisonSet {
            indices: vec![1],
            images: Images::new(1, 4, 4, after).expect("one image"),
            labels: vec![0],
            original_labels: vec![1],
        };
        let sheet = sheet(&originals, &poison, IMAGES);
        let zoom = 32;
        assert_eq!((sheet.height(), sheet.width()), (3 * 132 + 4, 136));
        let pixel = |row: usize, r: usize, c: usize| {
            let at = ((4 + row * 132 + r) * 136 + 4 + c) * 3;
            sheet.pixels()[at..at + 3].to_vec()
        };
        for (r, c) in [(0, 0), (zoom - 1, zoom - 1)] {
            assert_eq!(pixel(0, r, c), [100; 3]);
            assert_eq!(pixel(1, r, c), [103, 99, 200]);
            assert_eq!(pixel(2, r, c), [158, 118, 255]);
        }
        assert_eq!(pixel(2, zoom, 0), [128; 3]);
        assert_eq!(sheet.pixels()[..3], [255; 3]);
        let read = image::load_from_memory(&to_png(&sheet)).expect("our own PNG");
        assert_eq!(read.into_rgb8().into_raw(), sheet.pixels());
    }
}
