//! Robust statistics: what lies in the middle of some values, and what lies apart.

/// The value in the middle, the lower one of two, as PyTorch's `median`.
///
/// # Panics
/// If there is no value.
pub fn lower_median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) / 2]
}

/// Lower median of some values, and the lower median of their distances from it.
///
/// # Panics
/// If there is no value.
pub fn median_and_mad(values: &[f64]) -> (f64, f64) {
    let median = lower_median(values);
    let distances: Vec<f64> = values.iter().map(|value| (value - median).abs()).collect();
    (median, lower_median(&distances))
}

/// The distance of a value from the median, in robust deviations of `scale` times the median distance: infinite where
/// only that is 0, NaN where both are.
pub fn deviation(value: f64, median: f64, mad: f64, scale: f64) -> f64 {
    (value - median).abs() / (scale * mad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_values_in_the_middle_the_lower_one_is_taken() {
        assert!(lower_median(&[4.0, 1.0, 3.0, 2.0]).total_cmp(&2.0).is_eq());
        assert_eq!(median_and_mad(&[1.0, 2.0, 3.0, 4.0, 30.0]), (3.0, 1.0));
        assert_eq!(median_and_mad(&[7.0]), (7.0, 0.0));
        assert!((deviation(30.0, 5.0, 2.0, 1.4826) - 8.43).abs() < 5e-3);
        assert!(deviation(6.0, 5.0, 0.0, 1.4826).is_infinite());
        assert!(deviation(5.0, 5.0, 0.0, 1.4826).is_nan());
    }
}
