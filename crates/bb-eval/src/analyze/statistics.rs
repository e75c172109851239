//! Correlations, in double precision.

use bb_core::metrics::mean;

/// Pearson's correlation of two rows of numbers; nothing if one of them has no spread.
///
/// # Panics
/// If the rows differ in length.
pub fn pearson(x: &[f64], y: &[f64]) -> Option<f64> {
    assert_eq!(x.len(), y.len(), "numbers of each");
    let (mean_x, mean_y) = (mean(x)?, mean(y)?);
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in x.iter().zip(y) {
        let (dx, dy) = (x - mean_x, y - mean_y);
        xx += dx * dx;
        yy += dy * dy;
        xy += dx * dy;
    }
    // One square root for each, since the product of two sums may leave the range of numbers.
    let scale = xx.sqrt() * yy.sqrt();
    (scale > 0.0).then(|| (xy / scale).clamp(-1.0, 1.0))
}

/// Spearman's correlation: Pearson's of the [`ranks`].
///
/// # Panics
/// If the rows differ in length.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    pearson(&ranks(x), &ranks(y))
}

/// The rank of each value, 1 for the smallest; equal values share the mean of their ranks.
pub fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    for equal in order.chunk_by(|&a, &b| values[a].total_cmp(&values[b]).is_eq()) {
        // Ranks `first + 1` to `first + n` have the mean `first + (n + 1) / 2`.
        let rank = first as f64 + (equal.len() + 1) as f64 / 2.0;
        for &place in equal {
            ranks[place] = rank;
        }
        first += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn near(found: Option<f64>, expected: f64) {
        let found = found.expect("a correlation");
        assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
    }

    #[test]
    fn correlations_are_those_worked_out_by_hand() {
        // Means 3 and 3; sums of products 8, squares 10 and 10.
        near(pearson(&[1., 2., 3., 4., 5.], &[2., 1., 4., 3., 5.]), 0.8);
        near(pearson(&[1., 2., 3.], &[10., 20., 30.]), 1.0);
        near(pearson(&[1., 2., 3.], &[3., 2., 1.]), -1.0);
        // Means 2 and 4; products 3 + 0 + 4, squares 2 and 26.
        near(pearson(&[1., 2., 3.], &[1., 3., 8.]), 7.0 / 52f64.sqrt());
        // A monotone curve is a full correlation of ranks, and less than that of values.
        let (x, y) = ([1., 2., 3., 4.], [1., 8., 27., 64.]);
        near(spearman(&x, &y), 1.0);
        assert!(pearson(&x, &y).expect("spread") < 0.96);
        // Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: products 4.5, squares 4.5 and 5.
        near(
            spearman(&[7., 8., 8., 9.], &[1., 2., 3., 4.]),
            4.5 / 22.5f64.sqrt(),
        );
        assert_eq!(pearson(&[1., 1.], &[1., 2.]), None);
        assert_eq!(spearman(&[1., 2.], &[3., 3.]), None);
        assert_eq!(pearson(&[], &[]), None);
        assert_eq!(pearson(&[1.], &[2.]), None);
    }

    #[test]
    fn equal_values_share_their_ranks() {
        assert_eq!(ranks(&[0.3, 0.1, 0.3, 0.2, 0.3]), [4., 1., 4., 2., 4.]);
        assert_eq!(ranks(&[5.0; 3]), [2.0; 3]);
        assert_eq!(ranks(&[]), Vec::<f64>::new());
    }

    proptest! {
        #[test]
        fn a_correlation_ignores_scale_and_order(
            pairs in proptest::collection::vec((-1e3..1e3f64, -1e3..1e3f64), 3..40),
            scale in 0.1..10f64,
            shift in -10.0..10f64,
        ) {
            let (x, y): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
            let own = pearson(&x, &y);
            prop_assume!(own.is_some());
            let own = own.expect("it is there");
            prop_assert!((-1.0..=1.0).contains(&own));
            let moved: Vec<f64> = x.iter().map(|x| scale * x + shift).collect();
            prop_assert!((pearson(&moved, &y).expect("spread") - own).abs() < 1e-6);
            prop_assert_eq!(spearman(&moved, &y), spearman(&x, &y));
            prop_assert!((pearson(&y, &x).expect("spread") - own).abs() < 1e-12);
        }
    }
}
