//! How visible a trigger is: distances between triggered images and the images they were made from.

use bb_core::data::Images;
use bb_core::poison::PoisonSet;
use serde::{Deserialize, Serialize};

/// Distances over a poisoned set, in grey levels of 0 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stealth {
    /// Peak signal-to-noise ratio in dB, mean over the images that the trigger changed; higher is less visible.
    ///
    /// Rounded to four decimals. `None` if no image was changed.
    pub psnr: Option<f64>,
    /// Largest change of any value of any image, in grey levels.
    pub l_inf: u8,
    /// Number of images compared.
    pub images: usize,
    /// Number of images that the trigger left as they were.
    pub unchanged: usize,
}

/// Compares a poisoned set with the split it was made from.
pub fn measure(originals: &Images, poison: &PoisonSet) -> Stealth {
    let mut stealth = Stealth {
        psnr: None,
        l_inf: 0,
        images: poison.indices.len(),
        unchanged: 0,
    };
    let mut sum = 0.0;
    for (k, &i) in poison.indices.iter().enumerate() {
        let (before, after) = (originals.image(i), poison.images.image(k));
        let mut squares = 0u64;
        for (&a, &b) in before.iter().zip(after) {
            let difference = a.abs_diff(b);
            stealth.l_inf = stealth.l_inf.max(difference);
            squares += u64::from(difference).pow(2);
        }
        if squares == 0 {
            stealth.unchanged += 1;
        } else {
            sum += 10.0 * (255.0 * 255.0 * before.len() as f64 / squares as f64).log10();
        }
    }
    let changed = stealth.images - stealth.unchanged;
    if changed > 0 {
        stealth.psnr = Some((sum / changed as f64 * 1e4).round() / 1e4);
    }
    stealth
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: [u8; 3], after: [u8; 3], psnr: Option<f64>, l_inf: u8) {
        let originals = Images::new(1, 1, 1, before.to_vec()).expect("one pixel");
        let poison = PoisonSet {
            indices: vec![0],
            images: Images::new(1, 1, 1, after.to_vec()).expect("one pixel"),
            labels: vec![0],
            original_labels: vec![1],
        };
        let unchanged = usize::from(before == after);
        assert_eq!(
            measure(&originals, &poison),
            Stealth {
                psnr,
                l_inf,
                images: 1,
                unchanged
            }
        );
    }

    #[test]
    fn distances_of_one_pixel() {
        check([0, 0, 0], [255, 255, 255], Some(0.0), 255);
        check([9, 9, 9], [10, 8, 10], Some(48.1308), 1);
        check([7, 8, 9], [7, 8, 9], None, 0);
    }
}
