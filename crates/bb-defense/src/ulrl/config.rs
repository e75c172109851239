//! Settings of ULRL; the defaults are the authors' code for CIFAR-10.

use bb_core::settings::{SettingsError, Validate, check};
use serde::{Deserialize, Serialize};

use crate::data::CleanBudget;
use crate::settings::{batch_size, momentum, not_negative, rate, share};

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

/// Table `[unlearn]`: clean unlearning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlearnConfig {
    /// Cap on the epochs, at least 1.
    pub max_epochs: usize,
    /// Base learning rate of the ascent, above 0.
    pub lr: f64,
    /// Momentum, 0 up to but not including 1.
    pub momentum: f64,
    /// L2 penalty on every parameter.
    pub weight_decay: f64,
    /// Epochs at which the rate falls.
    pub milestones: Vec<usize>,
    /// Factor by which it falls, above 0 and at most 1.
    pub gamma: f64,
    /// Largest L2 norm of a gradient over all parameters, above 0.
    pub clip: f64,
    /// Stop once the share of images that were right during an epoch is at most this, 0 to 1.
    pub stop_accuracy: f64,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Shuffle the clean images before each epoch.
    pub shuffle: bool,
    /// Crop and mirror the clean images as in training.
    pub augment: bool,
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
            unlearn: UnlearnConfig {
                max_epochs: 20,
                lr: 0.01,
                momentum: 0.9,
                weight_decay: 5e-4,
                milestones: vec![10, 20],
                gamma: 0.1,
                clip: 20.0,
                stop_accuracy: 0.2,
                batch_size: 128,
                shuffle: true,
                augment: true,
            },
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
        let above = |key: &str, value: f64| {
            let good = value.is_finite() && value > 0.0;
            check(key, value, "a finite number above 0", good)
        };
        let unlearn = &self.unlearn;
        check(
            "unlearn.max_epochs",
            unlearn.max_epochs,
            "at least 1",
            unlearn.max_epochs >= 1,
        )?;
        rate("unlearn.lr", unlearn.lr)?;
        momentum("unlearn.momentum", unlearn.momentum)?;
        not_negative("unlearn.weight_decay", unlearn.weight_decay)?;
        check(
            "unlearn.gamma",
            unlearn.gamma,
            "above 0 and at most 1",
            unlearn.gamma > 0.0 && unlearn.gamma <= 1.0,
        )?;
        above("unlearn.clip", unlearn.clip)?;
        share("unlearn.stop_accuracy", unlearn.stop_accuracy)?;
        batch_size("unlearn.batch_size", unlearn.batch_size)?;
        not_negative("detect.threshold", self.detect.threshold)?;
        above("detect.scale", self.detect.scale)?;
        let relearn = &self.relearn;
        above("relearn.gain", relearn.gain)?;
        rate("relearn.lr", relearn.lr)?;
        momentum("relearn.momentum", relearn.momentum)?;
        not_negative("relearn.alpha", relearn.alpha)?;
        batch_size("relearn.batch_size", relearn.batch_size)
    }
}
