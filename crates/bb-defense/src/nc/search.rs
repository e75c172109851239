//! What is decided after each epoch of an inversion: which trigger is kept, what its size costs next, and when to stop.

use serde::{Deserialize, Serialize};

use super::config::InvertConfig;

/// How the search for a class's trigger stands, kept in its checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Search {
    /// Finished epochs.
    pub epochs: usize,
    /// Weight of the mask's norm in the loss.
    pub cost: f64,
    /// Lowest mean norm of an epoch with success.
    pub best: Option<f64>,
    /// [`Search::best`] as it was before the last epoch.
    best_before: Option<f64>,
    /// Epochs without progress.
    stale: usize,
    /// Epochs with success in a row since the cost changed.
    up: usize,
    /// Epochs without.
    down: usize,
    /// Whether the cost ever rose.
    rose: bool,
    /// Whether it ever fell.
    fell: bool,
}

/// What becomes of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its trigger is the one to keep so far.
    pub keep: bool,
    /// It was the last one.
    pub stop: bool,
}

impl Search {
    /// Before the first epoch.
    pub fn new(cfg: &InvertConfig) -> Self {
        Self {
            epochs: 0,
            cost: cfg.cost,
            best: None,
            best_before: None,
            stale: 0,
            up: 0,
            down: 0,
            rose: false,
            fell: false,
        }
    }

    /// Takes note of an epoch: the share of images that went to the class and the mean norm of the mask, both as means
    /// over its batches.
    ///
    /// The first trigger is kept whatever it does, until one succeeds.
    pub fn epoch(&mut self, cfg: &InvertConfig, success: f64, norm: f64) -> Verdict {
        let good = success >= cfg.success;
        let improved = good && self.best.is_none_or(|best| norm < best);
        let keep = improved || self.epochs == 0;
        self.epochs += 1;
        if improved {
            self.best = Some(norm);
        }
        if cfg.early_stop
            && let Some(best) = self.best
        {
            let stale = |before: f64| best >= cfg.stop_ratio * before;
            self.stale = if self.best_before.is_some_and(stale) {
                self.stale + 1
            } else {
                0
            };
            self.best_before = Some(best);
            if self.rose && self.fell && self.stale >= cfg.stop_patience {
                return Verdict { keep, stop: true };
            }
        }
        (self.up, self.down) = if good {
            (self.up + 1, 0)
        } else {
            (0, self.down + 1)
        };
        if self.up >= cfg.patience {
            self.up = 0;
            self.cost *= cfg.cost_factor;
            self.rose = true;
        } else if self.down >= cfg.patience {
            self.down = 0;
            self.cost /= cfg.cost_factor.powf(1.5);
            self.fell = true;
        }
        Verdict { keep, stop: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nc::config::NcConfig;

    const NOTHING: Verdict = Verdict {
        keep: false,
        stop: false,
    };
    const KEEP: Verdict = Verdict {
        keep: true,
        stop: false,
    };

    fn close(found: f64, wanted: f64) {
        assert!((found - wanted).abs() <= 1e-12 * wanted, "{found} {wanted}");
    }

    #[test]
    fn the_smallest_successful_trigger_is_kept() {
        let cfg = NcConfig::default().invert;
        let mut search = Search::new(&cfg);
        assert_eq!(search.epoch(&cfg, 0.5, 900.0), KEEP, "there is no other");
        assert_eq!(search.best, None, "and it is not good");
        assert_eq!(search.epoch(&cfg, 0.9799, 100.0), NOTHING);
        assert_eq!(search.epoch(&cfg, 0.98, 800.0), KEEP);
        assert_eq!(search.epoch(&cfg, 0.99, 800.0), NOTHING, "not smaller");
        assert_eq!(search.epoch(&cfg, 0.97, 10.0), NOTHING, "not good");
        assert_eq!(search.epoch(&cfg, 1.0, 799.0), KEEP);
        assert_eq!(search.best, Some(799.0));
    }

    #[test]
    fn the_cost_rises_with_success_and_falls_without() {
        let cfg = NcConfig::default().invert;
        let mut search = Search::new(&cfg);
        let mut after = |successes: usize, failures: usize| {
            for _ in 0..successes {
                search.epoch(&cfg, 1.0, 500.0);
            }
            for _ in 0..failures {
                search.epoch(&cfg, 0.0, 500.0);
            }
            search.cost
        };
        close(after(4, 0), 1e-3);
        close(after(1, 0), 2e-3);
        close(after(5, 0), 4e-3);
        // Only epochs in a row count, and the change starts the count anew.
        close(after(4, 4), 4e-3);
        close(after(0, 1), 4e-3 / 2f64.powf(1.5));
        close(after(4, 1), 4e-3 / 2f64.powf(1.5));
        close(after(4, 1), 4e-3 / 2f64.powf(1.5));
    }

    #[test]
    fn a_class_ends_when_its_norm_no_longer_falls_and_the_cost_went_both_ways() {
        let cfg = InvertConfig {
            patience: 2,
            stop_patience: 4,
            ..NcConfig::default().invert
        };
        let mut search = Search::new(&cfg);
        // Two without success: the cost falls. Two with success: it rises.
        for (success, norm) in [(0.0, 9.0), (0.0, 9.0), (1.0, 9.0), (1.0, 8.0)] {
            assert!(!search.epoch(&cfg, success, norm).stop);
        }
        assert!(search.rose && search.fell);
        // Progress of a hundredth or less is none, and nor is a failure.
        for (success, norm) in [(1.0, 7.99), (0.0, 1.0), (1.0, 7.98)] {
            assert!(!search.epoch(&cfg, success, norm).stop);
        }
        let mut other = search.clone();
        // Real progress starts the count anew.
        assert_eq!(other.epoch(&cfg, 1.0, 5.0), KEEP);
        for _ in 0..3 {
            assert!(!other.epoch(&cfg, 1.0, 5.0).stop);
        }
        assert!(other.epoch(&cfg, 1.0, 5.0).stop);
        // The last trigger counts too, and the cost is left as it is.
        let before = search.cost;
        let last = search.epoch(&cfg, 1.0, 7.97);
        assert_eq!((last.keep, last.stop), (true, true));
        assert!(search.cost.total_cmp(&before).is_eq());
    }

    #[test]
    fn nothing_ends_a_class_whose_cost_went_one_way_only() {
        let cfg = NcConfig::default().invert;
        let mut always = Search::new(&cfg);
        assert!((0..200).all(|_| !always.epoch(&cfg, 1.0, 5.0).stop));
        assert!(!always.fell);
        let mut never = Search::new(&cfg);
        let kept: Vec<bool> = (0..200).map(|_| never.epoch(&cfg, 0.0, 5.0).keep).collect();
        assert!(kept[0] && kept[1..].iter().all(|kept| !kept));
        assert_eq!(never.best, None);
        // Without early stop nothing ends it at all.
        let cfg = InvertConfig {
            early_stop: false,
            ..cfg
        };
        let mut both = Search::new(&cfg);
        let stopped = (0..300).any(|i| both.epoch(&cfg, f64::from(i / 10 % 2), 5.0).stop);
        assert!(!stopped && both.rose && both.fell);
    }
}
