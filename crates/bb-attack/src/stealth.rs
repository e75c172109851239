//! How visible a trigger is: distances between triggered images and the images they were made from.

use bb_core::data::Images;
use bb_core::poison::PoisonSet;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Distances over a poisoned set, in grey levels of 0 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stealth {
    /// Peak signal-to-noise ratio in dB, mean over the images that the trigger changed; higher is less visible.
    ///
    /// Rounded to four decimals. `None` if no image was changed.
    pub psnr: Option<f64>,
    /// Structural similarity (see [`ssim`]), mean over the images that the trigger changed; 1 is invisible.
    ///
    /// Rounded to four decimals. `None` if no image was changed or the images are too small.
    pub ssim: Option<f64>,
    /// Largest change of any value of any image, in grey levels.
    pub l_inf: u8,
    /// Number of images compared.
    pub images: usize,
    /// Number of images that the trigger left as they were.
    pub unchanged: usize,
}

/// Compares a poisoned set with the split it was made from.
pub fn measure(originals: &Images, poison: &PoisonSet) -> Stealth {
    let (height, width) = (originals.height(), originals.width());
    // Collected in the order of the images, so that the sums do not depend on the number of threads.
    let each: Vec<Option<Distance>> = (0..poison.len())
        .into_par_iter()
        .map(|k| {
            let before = originals.image(poison.indices[k]);
            distance(before, poison.images.image(k), height, width)
        })
        .collect();
    let changed = || each.iter().flatten();
    let mean = |values: Option<Vec<f64>>| {
        let mean = bb_core::metrics::mean(&values?)?;
        Some((mean * 1e4).round() / 1e4)
    };
    Stealth {
        psnr: mean(Some(changed().map(|d| d.psnr).collect())),
        ssim: mean(changed().map(|d| d.ssim).collect()),
        l_inf: changed().map(|d| d.l_inf).max().unwrap_or(0),
        images: each.len(),
        unchanged: each.len() - changed().count(),
    }
}

/// How far one image is from another.
struct Distance {
    psnr: f64,
    ssim: Option<f64>,
    l_inf: u8,
}

/// `None` if both are equal.
fn distance(before: &[u8], after: &[u8], height: usize, width: usize) -> Option<Distance> {
    let differences = || before.iter().zip(after).map(|(&a, &b)| a.abs_diff(b));
    let l_inf = differences().max().filter(|&largest| largest > 0)?;
    let squares: u64 = differences().map(|d| u64::from(d).pow(2)).sum();
    Some(Distance {
        psnr: 10.0 * (255.0 * 255.0 * before.len() as f64 / squares as f64).log10(),
        ssim: ssim(before, after, height, width),
        l_inf,
    })
}

/// Side of the window of [`ssim`].
const WINDOW: usize = 11;
/// Width of its bell in pixels.
const SIGMA: f64 = 1.5;

/// Structural similarity of two images `[height, width, 3]`: computed for each channel, mean over the three.
///
/// Wang, Bovik, Sheikh, Simoncelli: Image Quality Assessment, IEEE Transactions on Image Processing, 2004: a Gaussian
/// window of 11 x 11 pixels with a standard deviation of 1.5, K1 = 0.01, K2 = 0.03, mean over all places at which the
/// window lies in the image. `None` if it lies in it nowhere.
///
/// # Panics
/// If an image has another length.
pub fn ssim(a: &[u8], b: &[u8], height: usize, width: usize) -> Option<f64> {
    assert_eq!((a.len(), b.len()), (height * width * 3, height * width * 3));
    if height < WINDOW || width < WINDOW {
        return None;
    }
    let weights = window();
    let mut sum = 0.0;
    for channel in 0..3 {
        let plane = |image: &[u8]| -> Vec<f64> {
            let values = image.iter().skip(channel).step_by(3);
            values.map(|&v| f64::from(v)).collect()
        };
        let (a, b) = (plane(a), plane(b));
        let mean = |f: fn(f64, f64) -> f64| {
            let values: Vec<f64> = a.iter().zip(&b).map(|(&a, &b)| f(a, b)).collect();
            windowed(&values, width, &weights)
        };
        let (mean_a, mean_b) = (mean(|a, _| a), mean(|_, b| b));
        let (square_a, square_b, product) =
            (mean(|a, _| a * a), mean(|_, b| b * b), mean(|a, b| a * b));
        let (c1, c2) = ((0.01f64 * 255.0).powi(2), (0.03f64 * 255.0).powi(2));
        let places = mean_a.len();
        let mut channel_sum = 0.0;
        for i in 0..places {
            let (mu_a, mu_b) = (mean_a[i], mean_b[i]);
            let (var_a, var_b) = (square_a[i] - mu_a * mu_a, square_b[i] - mu_b * mu_b);
            let covariance = product[i] - mu_a * mu_b;
            channel_sum += (2.0 * mu_a * mu_b + c1) * (2.0 * covariance + c2)
                / ((mu_a * mu_a + mu_b * mu_b + c1) * (var_a + var_b + c2));
        }
        sum += channel_sum / places as f64;
    }
    Some(sum / 3.0)
}

/// The weights of the window along one axis, of sum 1.
fn window() -> [f64; WINDOW] {
    let middle = (WINDOW / 2) as f64;
    let weights: [f64; WINDOW] =
        std::array::from_fn(|i| (-0.5 * ((i as f64 - middle) / SIGMA).powi(2)).exp());
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}

/// Weighted means at all places where the window lies in the plane.
fn windowed(plane: &[f64], width: usize, weights: &[f64; WINDOW]) -> Vec<f64> {
    let inside = width - WINDOW + 1;
    let across: Vec<f64> = plane
        .chunks_exact(width)
        .flat_map(|line| line.windows(WINDOW))
        .map(|part| part.iter().zip(weights).map(|(v, w)| v * w).sum())
        .collect();
    let places = across.len() - (WINDOW - 1) * inside;
    (0..places)
        .map(|i| {
            (0..WINDOW)
                .map(|j| weights[j] * across[i + j * inside])
                .sum()
        })
        .collect()
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
                ssim: None,
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

    /// A picture with gradients and edges, by rule.
    fn picture(height: usize, width: usize) -> Vec<u8> {
        let mut pixels = Vec::new();
        for r in 0..height {
            for c in 0..width {
                pixels.extend((0..3).map(|k| ((7 * r + 13 * c + 31 * k + r * c) % 256) as u8));
            }
        }
        pixels
    }

    /// scikit-image 0.26.0, `structural_similarity` with `gaussian_weights=True, sigma=1.5,
    /// use_sample_covariance=False, data_range=255, channel_axis=-1`.
    #[test]
    fn golden_similarities() {
        let check = |height: usize, width: usize, faded: f64, inverted: f64| {
            let a = picture(height, width);
            let b: Vec<u8> = a.iter().map(|v| v / 2 + 40).collect();
            let found = ssim(&a, &b, height, width).expect("large enough");
            assert!((found - faded).abs() < 1e-9, "{found} is not {faded}");
            let mut c = a.clone();
            for (i, pixel) in c.chunks_exact_mut(3).enumerate() {
                if (i / width + 2 * (i % width)).is_multiple_of(5) {
                    for v in pixel {
                        *v = 255 - *v;
                    }
                }
            }
            let found = ssim(&a, &c, height, width).expect("large enough");
            assert!((found - inverted).abs() < 1e-9, "{found} is not {inverted}");
            assert_eq!(ssim(&a, &a, height, width), Some(1.0));
        };
        check(32, 32, 0.784_936_160_657, 0.574_271_960_303);
        check(11, 11, 0.777_891_187_741, 0.507_189_302_632);
        check(16, 20, 0.784_646_676_681, 0.528_062_489_714);
    }

    #[test]
    fn similarity_of_two_greys_is_the_formula() {
        // Without variance only the means count: (2 ab + c1) / (a^2 + b^2 + c1) with c1 = 2.55^2.
        let (a, b) = (vec![100u8; 12 * 14 * 3], vec![140u8; 12 * 14 * 3]);
        let expect = (28_000.0 + 6.5025) / (29_600.0 + 6.5025);
        let found = ssim(&a, &b, 12, 14).expect("large enough");
        assert!((found - expect).abs() < 1e-9, "{found} is not {expect}");
        assert_eq!(ssim(&a[..10 * 14 * 3], &b[..10 * 14 * 3], 10, 14), None);
    }

    #[test]
    fn means_are_over_the_images_that_changed() {
        let a = picture(32, 32);
        let b: Vec<u8> = a.iter().map(|v| v / 2 + 40).collect();
        let originals = Images::new(2, 32, 32, [&a[..], &a].concat()).expect("two images");
        let poison = PoisonSet {
            indices: vec![0, 1],
            images: Images::new(2, 32, 32, [a, b].concat()).expect("two images"),
            labels: vec![0; 2],
            original_labels: vec![1; 2],
        };
        let stealth = measure(&originals, &poison);
        assert_eq!((stealth.images, stealth.unchanged), (2, 1));
        assert_eq!(stealth.ssim, Some(0.7849));
    }
}
