//! Attention maps on plain activations, the distance between two of them, and its gradient.

use bb_nn::net::Activation;

/// Added to the norm of a map, so that a feature of zeros can be divided by it.
const EPS: f64 = 1e-6;

/// Where a batch of images is looked at: for each image and pixel the sum over channels of `|F|^p`, divided by the
/// image's L2 norm of these sums.
///
/// Sums go to `f64`: they are over as many as 512 channels, and the loss multiplies what is left of their difference
/// by 1000.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// The map, `[n, h * w]`; a unit vector for each image but for the small number added to its norm.
    pub map: Vec<f64>,
    /// The sums before the division, `[n, h * w]`.
    sums: Vec<f64>,
    /// L2 norm of each image's sums.
    norms: Vec<f64>,
}

/// `|x|^p`.
fn raised(x: f32, power: f64) -> f64 {
    let x = f64::from(x);
    if is_two(power) {
        x * x
    } else {
        x.abs().powf(power)
    }
}

/// The slope of `|x|^p`, which is 0 at 0.
fn slope(x: f32, power: f64) -> f64 {
    let x = f64::from(x);
    if is_two(power) {
        2.0 * x
    } else if x == 0.0 {
        0.0
    } else {
        power * x.abs().powf(power - 1.0) * x.signum()
    }
}

/// Whether the exponent is the usual one, for which no power has to be computed.
fn is_two(power: f64) -> bool {
    power.total_cmp(&2.0).is_eq()
}

impl Attention {
    /// The attention of a feature with exponent `power`.
    ///
    /// # Panics
    /// If the feature has no channel or no pixel.
    pub fn of(feature: &Activation, power: f64) -> Self {
        let shape = feature.shape;
        let sums: Vec<f64> = feature
            .data
            .chunks_exact(shape.c)
            .map(|pixel| pixel.iter().map(|&x| raised(x, power)).sum())
            .collect();
        let images = || sums.chunks_exact(shape.h * shape.w);
        let norms: Vec<f64> = images()
            .map(|sums| sums.iter().map(|a| a * a).sum::<f64>().sqrt())
            .collect();
        let map = images()
            .zip(&norms)
            .flat_map(|(sums, norm)| sums.iter().map(move |a| a / (norm + EPS)))
            .collect();
        Self { map, sums, norms }
    }

    /// Mean over images and pixels of the squared difference of two maps.
    ///
    /// # Panics
    /// If they are of different sizes.
    pub fn distance(&self, other: &Self) -> f64 {
        assert_eq!(self.map.len(), other.map.len(), "maps of one size");
        let pairs = self.map.iter().zip(&other.map);
        let squares: f64 = pairs.map(|(a, b)| (a - b) * (a - b)).sum();
        squares / self.map.len() as f64
    }

    /// The gradient of `weight * self.distance(fixed)` by the `feature` that this is the attention of, in the
    /// feature's order.
    ///
    /// # Panics
    /// If `feature` has another size than the one this was made of, or `fixed` has.
    pub fn distance_gradient(
        &self,
        fixed: &Self,
        feature: &Activation,
        power: f64,
        weight: f64,
    ) -> Vec<f32> {
        let shape = feature.shape;
        let pixels = shape.h * shape.w;
        assert_eq!(self.map.len(), shape.n * pixels, "attention of the feature");
        assert_eq!(self.map.len(), fixed.map.len(), "maps of one size");
        let factor = 2.0 * weight / self.map.len() as f64;
        let mut gradient = Vec::with_capacity(shape.len());
        for (image, &norm) in self.norms.iter().enumerate() {
            let range = image * pixels..(image + 1) * pixels;
            let (map, fixed) = (&self.map[range.clone()], &fixed.map[range.clone()]);
            let sums = &self.sums[range.clone()];
            let by_map = |i: usize| factor * (map[i] - fixed[i]);
            let along: f64 = (0..pixels).map(|i| by_map(i) * sums[i]).sum();
            // The slope of the norm, which is 0 where the norm is.
            let pull = if norm > 0.0 {
                along / (norm * (norm + EPS) * (norm + EPS))
            } else {
                0.0
            };
            let start = range.start * shape.c;
            let values = feature.data[start..].chunks_exact(shape.c);
            for (i, pixel) in values.take(pixels).enumerate() {
                let by_sum = by_map(i) / (norm + EPS) - pull * sums[i];
                gradient.extend(pixel.iter().map(|&x| (by_sum * slope(x, power)) as f32));
            }
        }
        gradient
    }

    /// Whether every image's map has one value throughout, up to rounding, so that nothing can be learned from it.
    pub fn is_constant(&self) -> bool {
        let pixels = self.map.len() / self.norms.len().max(1);
        self.map.chunks_exact(pixels.max(1)).all(|map| {
            let (low, high) = map
                .iter()
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &a| {
                    (low.min(a), high.max(a))
                });
            high - low <= 1e-6 * high
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bb_core::rng;
    use bb_nn::net::Shape;

    fn activation(n: usize, h: usize, w: usize, c: usize, data: Vec<f32>) -> Activation {
        let shape = Shape { n, h, w, c };
        assert_eq!(shape.len(), data.len());
        Activation { shape, data }
    }

    /// Reproducible values of both signs, at least 0.1 from 0 so that small changes do not cross it.
    fn drawn(shape: (usize, usize, usize, usize), index: u64) -> Activation {
        let (n, h, w, c) = shape;
        let mut stream = rng::stream(0, "attention tests", 0, index);
        let data = (0..n * h * w * c)
            .map(|_| {
                let value = 2.0 * rng::unit_f32(&mut stream) - 1.0;
                value + 0.1 * value.signum()
            })
            .collect();
        activation(n, h, w, c, data)
    }

    fn close(found: f64, wanted: f64, tolerance: f64) {
        assert!((found - wanted).abs() <= tolerance, "{found} {wanted}");
    }

    #[test]
    fn a_map_by_hand() {
        // Two pixels with two channels: sums of squares 25 and 0, then 1 and 1.
        let feature = activation(2, 1, 2, 2, vec![3.0, -4.0, 0.0, 0.0, 1.0, 0.0, 0.0, -1.0]);
        let found = Attention::of(&feature, 2.0);
        for (found, wanted) in found
            .map
            .iter()
            .zip([1.0, 0.0, 0.5f64.sqrt(), 0.5f64.sqrt()])
        {
            close(*found, wanted, 1e-6);
        }
        // With exponent 1 they are 7 and 0, then 1 and 1; with 3, 91 and 0: the map is the same.
        for power in [1.0, 3.0] {
            let sum = Attention::of(&feature, power).sums[0];
            close(sum, 3f64.powf(power) + 4f64.powf(power), 1e-9);
        }
        // sqrt(0.5) from 1 and 0, and 0 from itself: ((1 - 0.7071)^2 + 0.7071^2) / 4.
        let other = activation(2, 1, 2, 2, vec![1.0, 0.0, 0.0, 1.0, 2.0, 0.0, 2.0, 0.0]);
        let distance = found.distance(&Attention::of(&other, 2.0));
        close(distance, (2.0 - 2f64.sqrt()) / 4.0, 1e-6);
        assert!(found.distance(&found).abs() < 1e-12);
        assert!(!found.is_constant());
    }

    #[test]
    fn the_map_of_one_pixel_is_one() {
        let feature = drawn((3, 1, 1, 8), 0);
        let found = Attention::of(&feature, 2.0);
        for (&map, &sum) in found.map.iter().zip(&found.sums) {
            close(map, 1.0 / (1.0 + EPS / sum), 1e-12);
            close(map, 1.0, 1e-5);
        }
        let other = Attention::of(&drawn((3, 1, 1, 8), 1), 2.0);
        assert!(1000.0 * found.distance(&other) < 1e-8);
        let gradient = found.distance_gradient(&other, &feature, 2.0, 1000.0);
        assert!(gradient.iter().all(|g| g.abs() < 1e-6), "{gradient:?}");
        assert!(found.is_constant());
        // One pixel repeated is looked at everywhere alike.
        let repeated = activation(1, 2, 2, 2, [0.3, -0.7].repeat(4));
        assert!(Attention::of(&repeated, 2.0).is_constant());
    }

    #[test]
    fn a_feature_of_zeros_has_a_map_and_a_gradient_of_zeros() {
        let feature = activation(1, 2, 2, 3, vec![0.0; 12]);
        let other = Attention::of(&drawn((1, 2, 2, 3), 0), 2.0);
        for power in [1.0, 1.5, 2.0] {
            let found = Attention::of(&feature, power);
            assert!(found.map.iter().all(|&a| a == 0.0));
            let gradient = found.distance_gradient(&other, &feature, power, 1000.0);
            assert!(gradient.iter().all(|&g| g == 0.0), "{gradient:?}");
        }
    }

    /// What small changes of each element do to the distance, as a check of the gradient.
    #[test]
    fn the_gradient_is_the_slope_of_the_distance() {
        const STEP: f32 = 1.0 / 1024.0;
        let shape = (2, 3, 2, 4);
        let fixed = drawn(shape, 0);
        for power in [1.0, 1.5, 2.0, 4.0] {
            let feature = drawn(shape, 1);
            let target = Attention::of(&fixed, power);
            let weight = 10.0;
            let gradient =
                Attention::of(&feature, power).distance_gradient(&target, &feature, power, weight);
            assert_eq!(gradient.len(), feature.data.len());
            let largest = gradient.iter().fold(0f32, |most, g| most.max(g.abs()));
            assert!(largest > 0.01, "there is something to compare: {largest}");
            for (i, found) in gradient.iter().enumerate() {
                let at = |change: f32| {
                    let mut moved = feature.clone();
                    moved.data[i] += change;
                    let distance = Attention::of(&moved, power).distance(&target);
                    (weight * distance, f64::from(moved.data[i]))
                };
                let ((above, high), (below, low)) = (at(STEP), at(-STEP));
                let slope = (above - below) / (high - low);
                close(f64::from(*found), slope, 1e-4 * f64::from(largest));
            }
        }
    }
}
