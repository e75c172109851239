//! The formulas of Input-aware, each with its gradient, on plain numbers.

/// Keeps a quotient finite where two patterns are equal.
const EPSILON: f64 = 1e-7;

/// How sharply the mask is cut to 0 or 1.
const STEEP: f32 = 10.0;

/// `tanh(20 m - 10) / 2 + 1/2`: a mask that is nearly 0 or 1.
pub fn threshold(mask: &[f32]) -> Vec<f32> {
    let cut = |m: &f32| 0.5 * (STEEP * (2.0 * m - 1.0)).tanh() + 0.5;
    mask.iter().map(cut).collect()
}

/// From the gradient by a cut mask to that by the mask, in place.
pub fn threshold_gradient(cut: &[f32], gradient: &mut [f32]) {
    for (g, m) in gradient.iter_mut().zip(cut) {
        let tanh = 2.0 * m - 1.0;
        *g *= STEEP * (1.0 - tanh * tanh);
    }
}

/// `x + (pattern - x) * mask` for images `[n, h, w, 3]` and masks `[n, h, w, 1]`.
pub fn mix(images: &mut [f32], patterns: &[f32], mask: &[f32]) {
    let pixels = images.chunks_exact_mut(3).zip(patterns.chunks_exact(3));
    for ((x, p), m) in pixels.zip(mask) {
        for (x, p) in x.iter_mut().zip(p) {
            *x += (p - *x) * m;
        }
    }
}

/// Mean over pairs of images of `distance(images) / (distance(made) + 1e-7)`, each distance the root of the mean square of
/// the differences: it is small where what was made for two images differs as much as they do.
///
/// Adds `weight` times its gradient by the first and by the second made ones to `gradients`.
///
/// # Panics
/// If there is no pair or lengths disagree.
pub fn diversity(
    pairs: usize,
    images: (&[f32], &[f32]),
    made: (&[f32], &[f32]),
    weight: f64,
    gradients: (&mut [f32], &mut [f32]),
) -> f64 {
    assert!(pairs > 0 && images.0.len() == images.1.len() && made.0.len() == made.1.len());
    let (first, second) = gradients;
    let (image, size) = (images.0.len() / pairs, made.0.len() / pairs);
    let mut sum = 0.0;
    for i in 0..pairs {
        let range = i * size..(i + 1) * size;
        let (a, b) = (&made.0[range.clone()], &made.1[range.clone()]);
        let apart = distance(
            &images.0[i * image..(i + 1) * image],
            &images.1[i * image..(i + 1) * image],
        );
        let near = distance(a, b);
        sum += apart / (near + EPSILON);
        // The distance has no gradient where it is 0.
        if near > 0.0 {
            let by_distance = -apart / ((near + EPSILON) * (near + EPSILON)) / pairs as f64;
            let factor = (weight * by_distance / (near * size as f64)) as f32;
            for (k, j) in range.enumerate() {
                let g = factor * (a[k] - b[k]);
                first[j] += g;
                second[j] -= g;
            }
        }
    }
    sum / pairs as f64
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| {
        let d = f64::from(a - b);
        d * d
    });
    (squares.sum::<f64>() / a.len() as f64).sqrt()
}

/// Mean of what of the mask is above `density`; adds `weight` times its gradient to `gradient`.
pub fn excess(mask: &[f32], density: f32, weight: f64, gradient: &mut [f32]) -> f64 {
    let share = (weight / mask.len() as f64) as f32;
    let mut sum = 0.0;
    for (g, m) in gradient.iter_mut().zip(mask) {
        if *m > density {
            sum += f64::from(m - density);
            *g += share;
        }
    }
    sum / mask.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, salt: u64) -> Vec<f32> {
        let mut stream = bb_core::rng::stream(salt, "test", 0, 0);
        (0..len)
            .map(|_| bb_core::rng::unit_f32(&mut stream))
            .collect()
    }

    /// The gradient of `f` at `x` by differences.
    fn check(x: &[f32], gradient: &[f32], f: impl Fn(&[f32]) -> f64) {
        for i in 0..x.len() {
            let at = |step: f32| {
                let mut moved = x.to_vec();
                moved[i] += step;
                f(&moved)
            };
            let step = 1e-3;
            let slope = (at(step) - at(-step)) / f64::from(2.0 * step);
            let found = f64::from(gradient[i]);
            assert!(
                (slope - found).abs() < 1e-3 * (1.0 + slope.abs()),
                "{i}: {found}, by differences {slope}"
            );
        }
    }

    #[test]
    fn gradients_are_those_of_the_formulas() {
        let (x1, x2) = (numbers(18, 1), numbers(18, 2));
        let (p1, p2) = (numbers(12, 3), numbers(12, 4));
        let loss = |p1: &[f32], p2: &[f32]| {
            let (mut g1, mut g2) = (vec![0.0; 12], vec![0.0; 12]);
            let loss = diversity(3, (&x1, &x2), (p1, p2), 2.0, (&mut g1, &mut g2));
            (2.0 * loss, g1, g2)
        };
        let (_, g1, g2) = loss(&p1, &p2);
        check(&p1, &g1, |p| loss(p, &p2).0);
        check(&p2, &g2, |p| loss(&p1, p).0);

        let cut = |m: &[f32]| {
            let sharp = threshold(m);
            let mut gradient = vec![0.0; sharp.len()];
            let loss = 3.0 * excess(&sharp, 0.2, 3.0, &mut gradient);
            threshold_gradient(&sharp, &mut gradient);
            (loss, gradient)
        };
        let mask: Vec<f32> = numbers(20, 5).iter().map(|v| 0.35 + 0.3 * v).collect();
        check(&mask, &cut(&mask).1, |m| cut(m).0);
    }

    #[test]
    fn equal_patterns_cost_much_and_have_no_gradient() {
        let (mut g1, mut g2) = (vec![0.0; 4], vec![0.0; 4]);
        let p = [0.5; 4];
        let loss = diversity(2, (&[0.0; 4], &[1.0; 4]), (&p, &p), 1.0, (&mut g1, &mut g2));
        assert!((loss - 1e7).abs() < 1.0);
        assert!(g1.iter().chain(&g2).all(|g| g.to_bits() == 0));
    }

    #[test]
    fn a_mask_chooses_between_image_and_pattern() {
        assert!((threshold(&[0.5])[0] - 0.5).abs() < 1e-6);
        assert!(threshold(&[0.119])[0] < 1e-3 && threshold(&[0.881])[0] > 0.999);
        let mut images = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        mix(&mut images, &[0.0; 9], &[0.0, 1.0, 0.5]);
        assert_eq!(
            images.to_vec(),
            [1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 3.5, 4.0, 4.5]
        );
    }
}
