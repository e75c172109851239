//! Settings of ANP; the defaults are the benchmark's, but for what it decides on the test set.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use serde::{Deserialize, Serialize};

use crate::channels::{self, Choose, PruneConfig, usual_thresholds};
use crate::data::CleanBudget;
use crate::settings::{above_zero, batch_size, idle_sweep, momentum, rate, share, steps};

/// Settings of ANP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnpConfig {
    /// Make the models of `sweep_thresholds` as well.
    pub sweep: bool,
    /// Thresholds of the sweep, in ascending order, each 0 to 1.
    pub sweep_thresholds: Vec<f64>,
    /// Measure the masked network after every n-th round, counted from the first; 0 measures only the pruned models.
    pub probe_every: usize,
    /// The clean images the defender has.
    pub clean: CleanBudget,
    /// How the masks are trained.
    pub mask: MaskConfig,
    /// Which channels are pruned.
    pub prune: PruneConfig,
}

/// Table `[mask]`: the training of the masks against noise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskConfig {
    /// Steps, at least 1; each has a batch of its own.
    pub iterations: usize,
    /// Steps between two rows and checkpoints, at least 1.
    pub round: usize,
    /// Images in a batch, at least 1; they are drawn with replacement.
    pub batch_size: usize,
    /// Crop and mirror the clean images as in training.
    pub augment: bool,
    /// Learning rate of the masks, above 0.
    pub lr: f64,
    /// Momentum, 0 up to but not including 1.
    pub momentum: f64,
    /// Weight of the loss without noise, 0 to 1; the rest is that of the loss with noise.
    pub alpha: f64,
    /// Bound of the noise's start, and length of its ascent in all steps together; above 0.
    pub eps: f64,
    /// Steps of the noise's ascent; 0 leaves it random.
    pub steps: usize,
}

impl Default for AnpConfig {
    fn default() -> Self {
        Self {
            sweep: true,
            sweep_thresholds: usual_thresholds(),
            probe_every: 5,
            clean: CleanBudget::default(),
            mask: MaskConfig {
                iterations: 2000,
                round: 100,
                batch_size: 256,
                augment: true,
                lr: 0.01,
                momentum: 0.9,
                alpha: 0.2,
                eps: 0.4,
                steps: 1,
            },
            prune: PruneConfig {
                threshold: 0.2,
                choose: Choose::Fixed,
                tolerance: 0.1,
            },
        }
    }
}

impl Validate for AnpConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        self.clean.validate()?;
        let mask = &self.mask;
        steps("mask.iterations", mask.iterations)?;
        steps("mask.round", mask.round)?;
        check("mask.steps", mask.steps, "at most 1000", mask.steps <= 1000)?;
        batch_size("mask.batch_size", mask.batch_size)?;
        rate("mask.lr", mask.lr)?;
        momentum("mask.momentum", mask.momentum)?;
        share("mask.alpha", mask.alpha)?;
        above_zero("mask.eps", mask.eps)?;
        channels::validate(&self.prune, self.sweep, &self.sweep_thresholds)
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = self.clean.idle();
        idle.extend(idle_sweep(self.sweep, "sweep_thresholds"));
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `config/defense/anp/cifar10.yaml` of the benchmark, and what its code itself sets.
    #[test]
    fn the_defaults_are_the_benchmarks() {
        let own = serde_json::to_value(AnpConfig::default()).expect("plain settings");
        let reference = json!({
            "sweep": true,
            "sweep_thresholds": (0..19).map(|i| f64::from(i) / 20.0).collect::<Vec<_>>(),
            "probe_every": 5,
            "clean": { "ratio": 0.05, "seed": 0, "index_file": "" },
            "mask": {
                "iterations": 2000, "round": 100, "batch_size": 256, "augment": true, "lr": 0.01, "momentum": 0.9,
                "alpha": 0.2, "eps": 0.4, "steps": 1,
            },
            // The threshold is ours: the reference chooses it on the test set.
            "prune": { "threshold": 0.2, "choose": "fixed", "tolerance": 0.1 },
        });
        assert_eq!(own, reference);
    }
}
