//! Settings of ULRL; the defaults are the authors' code for CIFAR-10.

use bb_core::settings::{Idle, SettingsError, Validate};
use serde::{Deserialize, Serialize};

use crate::data::CleanBudget;
use crate::settings::{above_zero, batch_size, epochs, momentum, not_negative, rate};
use crate::unlearning::UnlearnConfig;

/// Settings of ULRL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UlrlConfig {
    /// Measure the model after every n-th epoch of relearning, counted from the first; 0 measures only at the end.
    pub probe_every: usize,
    /// The clean images the defender has.
    pub clean: CleanBudget,
    /// Stage 1.
    pub unlearn: UnlearnConfig,
    /// Stage 2.
    pub detect: DetectConfig,
    /// Stage 3.
    pub relearn: RelearnConfig,
}

/// Which candidates are kept where there are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// The first by class.
    First,
    /// Those that changed most.
    Largest,
}

/// Table `[detect]`: which classes are suspicious.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectConfig {
    /// Distance from the median, in robust deviations, above which a class is suspicious; at least 0.
    pub threshold: f64,
    /// Robust deviations to a median absolute deviation, above 0.
    pub scale: f64,
    /// Most classes that are kept.
    pub max: usize,
    /// Which ones.
    pub keep: Keep,
}

/// Table `[relearn]`: relearning with new rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a setting of its own"
)]
pub struct RelearnConfig {
    /// Draw the suspicious rows anew.
    pub init: bool,
    /// New weights are uniform within plus and minus `sqrt(gain / features)`; above 0.
    pub gain: f64,
    /// Epochs; 0 leaves the model with its new rows.
    pub epochs: usize,
    /// Base learning rate, above 0; it falls to 0 along a cosine.
    pub lr: f64,
    /// Momentum, 0 up to but not including 1.
    pub momentum: f64,
    /// Weight of the rows' similarity with what they were, at least 0.
    pub alpha: f64,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Shuffle the clean images before each epoch.
    pub shuffle: bool,
    /// Crop and mirror the clean images as in training.
    pub augment: bool,
    /// Move the running statistics by one more forward pass after each step.
    pub refresh_bn: bool,
}

impl Default for UlrlConfig {
    fn default() -> Self {
        Self {
            probe_every: 10,
            clean: CleanBudget {
                ratio: 0.01,
                ..CleanBudget::default()
            },
            unlearn: UnlearnConfig::usual(128),
            detect: DetectConfig {
                threshold: 3.5,
                scale: 1.4826,
                max: 2,
                keep: Keep::First,
            },
            relearn: RelearnConfig {
                init: true,
                gain: 2.0,
                epochs: 20,
                lr: 0.005,
                momentum: 0.9,
                alpha: 0.7,
                batch_size: 128,
                shuffle: true,
                augment: true,
                refresh_bn: true,
            },
        }
    }
}

impl Validate for UlrlConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        self.clean.validate()?;
        self.unlearn.validate()?;
        not_negative("detect.threshold", self.detect.threshold)?;
        above_zero("detect.scale", self.detect.scale)?;
        let relearn = &self.relearn;
        epochs("relearn.epochs", relearn.epochs)?;
        above_zero("relearn.gain", relearn.gain)?;
        rate("relearn.lr", relearn.lr)?;
        momentum("relearn.momentum", relearn.momentum)?;
        not_negative("relearn.alpha", relearn.alpha)?;
        batch_size("relearn.batch_size", relearn.batch_size)
    }

    fn idle(&self) -> Vec<Idle> {
        self.clean.idle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `config/defense/ulrl/config.yaml` of the authors' code, and what the code itself sets.
    #[test]
    fn the_defaults_are_the_authors() {
        let own = serde_json::to_value(UlrlConfig::default()).expect("plain settings");
        let authors = json!({
            "probe_every": 10,
            "clean": { "ratio": 0.01, "seed": 0, "index_file": "" },
            "unlearn": {
                "max_epochs": 20, "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "milestones": [10, 20],
                "gamma": 0.1, "clip": 20.0, "stop_accuracy": 0.2, "batch_size": 128, "shuffle": true, "augment": true,
            },
            "detect": { "threshold": 3.5, "scale": 1.4826, "max": 2, "keep": "first" },
            "relearn": {
                "init": true, "gain": 2.0, "epochs": 20, "lr": 0.005, "momentum": 0.9, "alpha": 0.7,
                "batch_size": 128, "shuffle": true, "augment": true, "refresh_bn": true,
            },
        });
        assert_eq!(own, authors);
    }
}
