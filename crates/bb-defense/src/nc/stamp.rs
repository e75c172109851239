//! Triggers on 8-bit images, and the images that a backdoor is unlearned with.

use bb_core::data::{Images, Split};

use super::config::Stamping;
use super::invert::Trigger;
use crate::error::DefenseError;

/// A trigger as a picture editor would put it on an image: what is left of a pixel, and what is added.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamp {
    /// Share of each pixel that is left, `[h, w]`.
    left: Vec<f32>,
    /// Grey levels that are added, `[h, w, 3]`.
    added: Vec<f32>,
    /// Added before the fraction is dropped: one half to round, 0 to cut.
    round: f32,
}

/// Values stretched to 0..1 and rounded to a multiple of 1/255, as torchvision writes a picture with `normalize=True`.
///
/// A spread below 1e-5 is taken for 1e-5.
fn stretched(values: &[f32]) -> Vec<f32> {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let spread = (high - low).max(1e-5);
    let byte = |v: &f32| ((v - low) / spread * 255.0 + 0.5).clamp(0.0, 255.0).floor();
    values.iter().map(|v| byte(v) / 255.0).collect()
}

impl Stamp {
    /// The stamp of a trigger.
    pub fn new(trigger: &Trigger, stamping: Stamping) -> Self {
        let mask = trigger.mask();
        let pixels = mask.len();
        // The trigger's planes as pixels.
        let mut product = vec![0.0; 3 * pixels];
        for (c, plane) in trigger.pattern().chunks_exact(pixels).enumerate() {
            for (i, (pattern, mask)) in plane.iter().zip(mask).enumerate() {
                product[i * 3 + c] = pattern * mask;
            }
        }
        let (mask, product, round) = match stamping {
            Stamping::Normalised => (stretched(mask), stretched(&product), 0.0),
            Stamping::Raw => (mask.to_vec(), product, 0.5),
        };
        Self {
            left: mask.iter().map(|m| 1.0 - m).collect(),
            added: product.iter().map(|v| v * 255.0).collect(),
            round,
        }
    }

    /// Stamps an image of `[h, w, 3]` bytes.
    ///
    /// # Panics
    /// If it has another size than the trigger.
    pub fn apply(&self, image: &mut [u8]) {
        assert_eq!(image.len(), self.added.len(), "bytes of the image");
        for (i, value) in image.iter_mut().enumerate() {
            let stamped = f32::from(*value) * self.left[i / 3] + self.added[i];
            // The cast cuts the fraction and keeps what is above 255 at 255.
            *value = (stamped + self.round) as u8;
        }
    }
}

/// The clean images with the last `share` of them replaced by stamped copies with their true labels, one for each of
/// `stamps`.
///
/// # Errors
/// [`DefenseError::Data`] if the images are too many to be held.
pub fn unlearning_set(clean: &Split, stamps: &[Stamp], share: f64) -> Result<Split, DefenseError> {
    let kept = (clean.len() as f64 * (1.0 - share)) as usize;
    let images = &clean.images;
    let size = images.height() * images.width() * images.channels();
    let tail = clean.len() - kept;
    let mut bytes = images.as_bytes()[..kept * size].to_vec();
    let mut labels = clean.labels[..kept].to_vec();
    bytes.reserve(stamps.len() * tail * size);
    for stamp in stamps {
        let start = bytes.len();
        bytes.extend_from_slice(&images.as_bytes()[kept * size..clean.len() * size]);
        for image in bytes[start..].chunks_exact_mut(size) {
            stamp.apply(image);
        }
        labels.extend_from_slice(&clean.labels[kept..]);
    }
    let images = Images::new(labels.len(), images.height(), images.width(), bytes)?;
    Ok(Split {
        images,
        labels: labels.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pixels beside each other.
    fn trigger() -> Trigger {
        // Planes: red 0.5 0.2, green 1.0 0.2, blue 0.0 0.2.
        Trigger::from_parts((1, 2), &[0.8, 0.1], &[0.5, 0.2, 1.0, 0.2, 0.0, 0.2])
    }

    #[test]
    fn a_raw_stamp_by_hand() {
        let mut image = [100, 100, 100, 10, 20, 250];
        Stamp::new(&trigger(), Stamping::Raw).apply(&mut image);
        // 0.2 * 100 + 0.8 * 255 * (0.5, 1, 0) and 0.9 * (10, 20, 250) + 0.1 * 255 * 0.2, rounded.
        assert_eq!(image, [122, 224, 20, 14, 23, 230]);
    }

    #[test]
    fn a_normalised_stamp_by_hand() {
        // The mask becomes 1 and 0; the product 0.4 0.8 0 and 0.02 is divided by 0.8: 0.5, 1, 0 and 0.025, which are
        // the bytes 128, 255, 0 and 6.
        let mut image = [100, 100, 100, 10, 20, 250];
        Stamp::new(&trigger(), Stamping::Normalised).apply(&mut image);
        assert_eq!(image, [128, 255, 0, 16, 26, 255], "256 is kept at 255");
        // A flat mask is stretched to nothing.
        let flat = Trigger::from_parts((1, 2), &[0.5, 0.5], &[0.3; 6]);
        let stamp = Stamp::new(&flat, Stamping::Normalised);
        let mut image = [100, 100, 100, 10, 20, 250];
        stamp.apply(&mut image);
        assert_eq!(image, [100, 100, 100, 10, 20, 250]);
    }

    #[test]
    fn the_last_share_is_replaced_by_stamped_copies_with_their_labels() {
        let pixels: Vec<u8> = (0..10 * 6).collect();
        let clean = Split {
            images: Images::new(10, 1, 2, pixels.clone()).expect("ten images"),
            labels: (0..10).collect(),
        };
        let stamp = Stamp::new(&trigger(), Stamping::Raw);
        let other = Trigger::from_parts((1, 2), &[1.0, 0.0], &[1.0; 6]);
        let white = Stamp::new(&other, Stamping::Raw);
        let set = unlearning_set(&clean, &[stamp.clone(), white], 0.2).expect("small");
        let labels: Vec<u32> = (0..10).chain(8..10).collect();
        assert_eq!(*set.labels, *labels);
        assert_eq!(set.images.as_bytes()[..48], pixels[..48]);
        let mut wanted = pixels[48..54].to_vec();
        stamp.apply(&mut wanted);
        assert_eq!(set.images.image(8), wanted);
        assert_ne!(set.images.image(8), &pixels[48..54]);
        assert_eq!(set.images.image(11), [255, 255, 255, 57, 58, 59]);
        // With a share of 1 nothing is left as it was.
        let all = unlearning_set(&clean, &[stamp], 1.0).expect("small");
        assert_eq!(all.len(), 10);
        assert_ne!(all.images.image(0), &pixels[..6]);
    }
}
