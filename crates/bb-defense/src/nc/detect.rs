//! Which classes have a trigger so small that it cannot be what the class looks like.

use serde::{Deserialize, Serialize};

use super::config::DetectConfig;
use crate::robust::{deviation, median_and_mad};

/// What the masks of all classes say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outliers {
    /// Lower median of the norms, in pixels.
    pub median: f64,
    /// Robust deviation of the norms, in pixels: `scale` times the lower median of the distances from the median.
    pub deviation: f64,
    /// Anomaly index of the model: the distance of the smallest norm from the median, in robust deviations. Absent if
    /// the deviation is 0.
    pub anomaly: Option<f64>,
    /// Classes below the median by more than the threshold, the smallest norm first.
    pub flagged: Vec<usize>,
}

/// The outliers among the L1 norms of the masks, one for each class.
///
/// # Panics
/// If there is no class.
pub fn outliers(norms: &[f64], cfg: &DetectConfig) -> Outliers {
    let (median, mad) = median_and_mad(norms);
    let index = |norm: f64| deviation(norm, median, mad, cfg.scale);
    // Where all distances but a few are 0 the deviation is infinite, and NaN, which is above nothing, at the median.
    let mut flagged: Vec<usize> = (0..norms.len())
        .filter(|&class| norms[class] <= median && index(norms[class]) > cfg.threshold)
        .collect();
    flagged.sort_by(|&a, &b| norms[a].total_cmp(&norms[b]));
    let smallest = norms.iter().copied().fold(f64::INFINITY, f64::min);
    Outliers {
        median,
        deviation: cfg.scale * mad,
        anomaly: Some(index(smallest)).filter(|index| index.is_finite()),
        flagged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nc::config::NcConfig;

    #[test]
    fn outliers_by_hand() {
        let cfg = NcConfig::default().detect;
        // Lower median 55, distances 50 15 10 5 0 5 10 15 20 35: lower median 10.
        let norms = [5.0, 40.0, 45.0, 50.0, 55.0, 60.0, 65.0, 70.0, 75.0, 90.0];
        let found = outliers(&norms, &cfg);
        assert_eq!(
            (found.median, found.flagged.as_slice()),
            (55.0, [0].as_slice())
        );
        assert!((found.deviation - 14.826).abs() < 1e-9);
        assert!((found.anomaly.expect("a number") - 50.0 / 14.826).abs() < 1e-9);
        // A large norm is no sign of a backdoor.
        let mut large = norms;
        large[0] = 500.0;
        assert!(outliers(&large, &cfg).flagged.is_empty());
        // Several stand in the order of their norms.
        let several = [5.0, 48.0, 49.0, 50.0, 51.0, 52.0, 53.0, 54.0, 3.0, 4.0];
        assert_eq!(outliers(&several, &cfg).flagged, [8, 9, 0]);
    }

    #[test]
    fn without_spread_every_smaller_norm_is_flagged() {
        let cfg = NcConfig::default().detect;
        let found = outliers(&[7.0, 7.0, 6.5, 7.0, 7.0, 8.0], &cfg);
        assert_eq!((found.anomaly, found.flagged), (None, vec![2]));
        let same = outliers(&[7.0; 5], &cfg);
        assert_eq!((same.anomaly, same.flagged), (None, vec![]));
    }
}
