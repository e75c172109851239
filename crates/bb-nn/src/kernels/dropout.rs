//! Dropout, whose masks are named random streams.

use bb_core::rng;
use rayon::prelude::*;

/// Which masks a dropout draws: streams of (`seed`, `dropout/<layer>`, `step`, image).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mask {
    /// Seed of the streams.
    pub seed: u64,
    /// Number of the forward pass.
    pub step: u64,
    /// Number of the dropout in its network.
    pub layer: usize,
}

/// `y = x * mask / (1 - probability)` for the images of a batch, each of `image` elements, where an element of the mask
/// is 0 with this probability and 1 otherwise. The gradient is the same function of the output's gradient.
///
/// An image's mask depends on its place in the batch alone, so the number of threads changes nothing.
pub fn apply(x: &[f32], image: usize, probability: f32, mask: Mask, y: &mut [f32]) {
    assert!((0.0..1.0).contains(&probability) && image > 0);
    assert!(x.len() == y.len() && x.len().is_multiple_of(image));
    let scale = 1.0 / (1.0 - probability);
    let purpose = format!("dropout/{}", mask.layer);
    y.par_chunks_mut(image)
        .zip(x.par_chunks(image))
        .enumerate()
        .for_each(|(i, (y, x))| {
            let mut stream = rng::stream(mask.seed, &purpose, mask.step, i as u64);
            for (y, x) in y.iter_mut().zip(x) {
                // Multiplied, so that NaN stays NaN.
                let kept = rng::unit_f32(&mut stream) >= probability;
                *y = x * if kept { scale } else { 0.0 };
            }
        });
}
