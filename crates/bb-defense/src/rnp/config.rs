//! Settings of RNP; the defaults are the benchmark's.

use bb_core::settings::{Idle, SettingsError, Validate};
use serde::{Deserialize, Serialize};

use crate::channels::{self, Choose, PruneConfig, usual_thresholds};
use crate::data::CleanBudget;
use crate::settings::{above_zero, batch_size, idle_sweep, momentum, rate, rounds};
use crate::unlearning::UnlearnConfig;

/// Settings of RNP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RnpConfig {
    /// Make the models of `sweep_thresholds` as well.
    pub sweep: bool,
    /// Thresholds of the sweep, in ascending order, each 0 to 1.
    pub sweep_thresholds: Vec<f64>,
    /// Measure the masked network after every n-th epoch of recovering, counted from the first; 0 measures only the
    /// pruned models.
    pub probe_every: usize,
    /// Clip gradients before there are any, so that `unlearn.clip` does nothing.
    pub clip_before_backward: bool,
    /// The clean images the defender has.
    pub clean: CleanBudget,
    /// Stage 1.
    pub unlearn: UnlearnConfig,
    /// Stage 2.
    pub recover: RecoverConfig,
    /// Which channels are pruned.
    pub prune: PruneConfig,
}

/// Table `[recover]`: the training of masks on the unlearned network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecoverConfig {
    /// Epochs, at least 1.
    pub epochs: usize,
    /// Learning rate of the masks, above 0.
    pub lr: f64,
    /// Momentum, 0 up to but not including 1.
    pub momentum: f64,
    /// Factor of the cross-entropy, above 0.
    pub alpha: f64,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Shuffle the clean images before each epoch.
    pub shuffle: bool,
    /// Crop and mirror the clean images as in training.
    pub augment: bool,
}

impl Default for RnpConfig {
    fn default() -> Self {
        Self {
            sweep: true,
            sweep_thresholds: usual_thresholds(),
            probe_every: 10,
            clip_before_backward: true,
            clean: CleanBudget {
                ratio: 0.01,
                ..CleanBudget::default()
            },
            unlearn: UnlearnConfig::usual(256),
            recover: RecoverConfig {
                epochs: 20,
                lr: 0.2,
                momentum: 0.9,
                alpha: 0.2,
                batch_size: 256,
                shuffle: true,
                augment: true,
            },
            prune: PruneConfig {
                threshold: 0.7,
                choose: Choose::Fixed,
                tolerance: 0.1,
            },
        }
    }
}

impl Validate for RnpConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        self.clean.validate()?;
        self.unlearn.validate()?;
        let recover = &self.recover;
        rounds("recover.epochs", recover.epochs)?;
        rate("recover.lr", recover.lr)?;
        momentum("recover.momentum", recover.momentum)?;
        above_zero("recover.alpha", recover.alpha)?;
        batch_size("recover.batch_size", recover.batch_size)?;
        channels::validate(&self.prune, self.sweep, &self.sweep_thresholds)
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = self.clean.idle();
        idle.extend(idle_sweep(self.sweep, "sweep_thresholds"));
        if self.clip_before_backward {
            idle.push(("unlearn.clip", "`clip_before_backward` is true"));
        }
        idle
    }
}
