//! Stage 2 on plain slices: which classes' rows changed unlike the others.

use serde::{Deserialize, Serialize};

use super::config::{DetectConfig, Keep};
use crate::robust::{deviation, median_and_mad};

/// What the changes of all classes say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outliers {
    /// Lower median of the changes.
    pub median: f64,
    /// Lower median of their distances from it.
    pub mad: f64,
    /// All suspicious classes, in ascending order.
    pub found: Vec<usize>,
    /// Those that are kept, in ascending order.
    pub kept: Vec<usize>,
}

/// How much each row of a matrix changed: the sum of absolute differences.
///
/// # Panics
/// If the matrices have different sizes or no column.
pub fn row_changes(before: &[f32], after: &[f32], columns: usize) -> Vec<f64> {
    assert_eq!(before.len(), after.len(), "matrices of one size");
    before
        .chunks_exact(columns)
        .zip(after.chunks_exact(columns))
        .map(|(b, a)| b.iter().zip(a).map(|(b, a)| f64::from((a - b).abs())).sum())
        .collect()
}

/// The classes whose change lies above the median by more than the threshold.
///
/// # Panics
/// If there is no class.
pub fn outliers(changes: &[f64], cfg: &DetectConfig) -> Outliers {
    let (median, mad) = median_and_mad(changes);
    // Where all distances but a few are 0 the deviation is infinite, and NaN, which is above nothing, at the median.
    let found: Vec<usize> = (0..changes.len())
        .filter(|&class| {
            let own = changes[class];
            own > median && deviation(own, median, mad, cfg.scale) > cfg.threshold
        })
        .collect();
    let mut kept = found.clone();
    if cfg.keep == Keep::Largest {
        kept.sort_by(|&a, &b| changes[b].total_cmp(&changes[a]));
    }
    kept.truncate(cfg.max);
    kept.sort_unstable();
    Outliers {
        median,
        mad,
        found,
        kept,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ulrl::config::UlrlConfig;

    fn of(changes: &[f64]) -> Outliers {
        outliers(changes, &UlrlConfig::default().detect)
    }

    #[test]
    fn outliers_by_hand() {
        // Without any spread every larger change is one.
        let mut flat = [1.0; 10];
        flat[9] = 9.0;
        let found = of(&flat);
        assert_eq!((found.median, found.mad), (1.0, 0.0));
        assert_eq!(found.kept, [9]);
        let rising = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 30.0];
        let found = of(&rising);
        assert_eq!((found.median, found.mad), (5.0, 2.0), "lower medians");
        assert_eq!(found.kept, [9]);
        assert!((deviation(9.0, 5.0, 2.0, 1.4826) - 1.35).abs() < 5e-3);
        // A change far below the median is none.
        let mut low = rising;
        low[9] = -30.0;
        assert!(of(&low).found.is_empty());
        assert!(of(&[2.0; 7]).found.is_empty());
        assert!(of(&[2.0]).found.is_empty());
    }

    #[test]
    fn of_too_many_the_first_or_the_largest_are_kept() {
        let changes = [1.0, 50.0, 1.0, 60.0, 1.1, 0.9, 1.0, 70.0, 1.0, 1.2];
        let found = of(&changes);
        assert_eq!((found.found, found.kept), (vec![1, 3, 7], vec![1, 3]));
        let cfg = DetectConfig {
            keep: Keep::Largest,
            ..UlrlConfig::default().detect
        };
        assert_eq!(outliers(&changes, &cfg).kept, [3, 7]);
    }

    #[test]
    fn rows_change_by_the_sum_of_their_weights() {
        assert_eq!(
            row_changes(&[1.0, 2.0, 3.0, 4.0], &[0.5, 2.0, 4.0, 6.0], 2),
            [0.5, 3.0]
        );
    }
}
