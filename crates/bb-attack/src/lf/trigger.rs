//! The LF trigger on 8-bit images: a pattern that is added.

/// Adds the pattern to an image of the same size: `trunc(clip(image + pattern, 0, 255))`, in `f32` as in the bench.
pub fn apply(image: &mut [u8], pattern: &[f32]) {
    debug_assert_eq!(image.len(), pattern.len());
    for (v, &t) in image.iter_mut().zip(pattern) {
        *v = (f32::from(*v) + t).clamp(0.0, 255.0) as u8;
    }
}

/// The same, in `f64` if `double` says so and in `f32` otherwise; NumPy adds bytes to floats in the precision of the floats.
pub fn add(image: &mut [u8], pattern: &[f64], double: bool) {
    debug_assert_eq!(image.len(), pattern.len());
    for (v, &t) in image.iter_mut().zip(pattern) {
        let sum = if double {
            f64::from(*v) + t
        } else {
            f64::from(f32::from(*v) + t as f32)
        };
        *v = sum.clamp(0.0, 255.0) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sums_are_clipped_and_truncated() {
        let mut image = [0, 10, 100, 250, 255, 3];
        apply(&mut image, &[0.9, 0.5, 51.0, 51.0, -5.5, -10.0]);
        assert_eq!(image, [0, 10, 151, 255, 249, 0]);
    }

    proptest! {
        #[test]
        fn a_pattern_of_bytes_only_brightens(image in prop::collection::vec(any::<u8>(), 12), level in any::<u8>()) {
            let mut out = image.clone();
            apply(&mut out, &[f32::from(level); 12]);
            for (&before, &after) in image.iter().zip(&out) {
                prop_assert_eq!(after, before.saturating_add(level));
            }
        }
    }
}
