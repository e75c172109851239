//! Settings of NC; the defaults are the benchmark's for CIFAR-10.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use serde::{Deserialize, Serialize};

use crate::data::CleanBudget;
use crate::finetuning::FinetuneConfig;
use crate::settings::{batch_size, momentum, not_negative, rate, rounds, share};

/// Settings of NC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NcConfig {
    /// Measure the model after every n-th epoch of unlearning, counted from the first; 0 measures only at the end.
    pub probe_every: usize,
    /// The clean images the defender has.
    pub clean: CleanBudget,
    /// How triggers are found.
    pub invert: InvertConfig,
    /// Which of them are held for real.
    pub detect: DetectConfig,
    /// Which images the backdoor is unlearned with.
    pub unlearn: UnlearnConfig,
    /// How it is unlearned.
    pub finetune: FinetuneConfig,
}

/// How a pattern of 0 to 1 is brought to the scale of normalised images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalisation {
    /// Each channel by its mean and standard deviation, as images are.
    Channels,
    /// The first three rows of all channels, by the mean and standard deviation of the first, second and third channel;
    /// what is below them not at all.
    Rows,
}

impl Normalisation {
    /// The channel by whose mean and standard deviation a value of channel `c` and row `y` is normalised.
    pub fn channel(self, c: usize, y: usize) -> Option<usize> {
        match self {
            Self::Channels => Some(c),
            Self::Rows => (y < 3).then_some(y),
        }
    }
}

/// Table `[invert]`: how the trigger of each class is found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvertConfig {
    /// Most epochs for a class, at least 1.
    pub max_epochs: usize,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Shuffle the clean images before each epoch.
    pub shuffle: bool,
    /// Crop and mirror the clean images as in training.
    pub augment: bool,
    /// Learning rate of Adam, above 0.
    pub lr: f64,
    /// Share of the old mean gradient in the new one, 0 up to but not including 1.
    pub beta1: f64,
    /// Share of the old mean square in the new one, 0 up to but not including 1.
    pub beta2: f64,
    /// How the pattern is normalised.
    pub normalise: Normalisation,
    /// First weight of the mask's norm in the loss, above 0.
    pub cost: f64,
    /// Factor by which the weight rises; it falls by this to the power 1.5. Above 1.
    pub cost_factor: f64,
    /// Share of the images that must go to the class, 0 to 1.
    pub success: f64,
    /// Epochs of one kind in a row, with or without success, after which the weight changes; at least 1.
    pub patience: usize,
    /// End a class when its norm no longer falls.
    pub early_stop: bool,
    /// A norm of at least this share of the best one before is no progress, 0 to 1.
    pub stop_ratio: f64,
    /// Epochs without progress that end a class.
    pub stop_patience: usize,
}

/// Table `[detect]`: which masks are too small to be the class's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetectConfig {
    /// Robust deviations below the median from which a class is flagged, at least 0.
    pub threshold: f64,
    /// Robust deviations to a median absolute deviation, above 0.
    pub scale: f64,
}

/// How a trigger is stamped on images for unlearning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stamping {
    /// As read back from pictures that were stretched to the whole range when they were written.
    Normalised,
    /// As it was found.
    Raw,
}

/// Table `[unlearn]`: which images the backdoor is unlearned with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlearnConfig {
    /// Share of the clean images that are stamped, above 0 and at most 1.
    pub share: f64,
    /// How.
    pub stamp: Stamping,
}

impl Default for NcConfig {
    fn default() -> Self {
        Self {
            probe_every: 10,
            clean: CleanBudget::default(),
            invert: InvertConfig {
                max_epochs: 80,
                batch_size: 256,
                shuffle: true,
                augment: true,
                lr: 0.1,
                beta1: 0.5,
                beta2: 0.9,
                normalise: Normalisation::Channels,
                cost: 1e-3,
                cost_factor: 2.0,
                success: 0.98,
                patience: 5,
                early_stop: true,
                stop_ratio: 0.99,
                stop_patience: 25,
            },
            detect: DetectConfig {
                threshold: 2.0,
                scale: 1.4826,
            },
            unlearn: UnlearnConfig {
                share: 0.2,
                stamp: Stamping::Normalised,
            },
            finetune: FinetuneConfig::default(),
        }
    }
}

impl Validate for NcConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        self.clean.validate()?;
        let above = |key: &str, value: f64, least: f64, expected: &str| {
            check(key, value, expected, value.is_finite() && value > least)
        };
        let at_least_one = |key: &str, value: usize| check(key, value, "at least 1", value >= 1);
        let invert = &self.invert;
        rounds("invert.max_epochs", invert.max_epochs)?;
        batch_size("invert.batch_size", invert.batch_size)?;
        rate("invert.lr", invert.lr)?;
        momentum("invert.beta1", invert.beta1)?;
        momentum("invert.beta2", invert.beta2)?;
        above("invert.cost", invert.cost, 0.0, "a finite number above 0")?;
        let factor = invert.cost_factor;
        above("invert.cost_factor", factor, 1.0, "a finite number above 1")?;
        share("invert.success", invert.success)?;
        at_least_one("invert.patience", invert.patience)?;
        share("invert.stop_ratio", invert.stop_ratio)?;
        not_negative("detect.threshold", self.detect.threshold)?;
        let scale = self.detect.scale;
        above("detect.scale", scale, 0.0, "a finite number above 0")?;
        let stamped = self.unlearn.share;
        check(
            "unlearn.share",
            stamped,
            "a share above 0 and at most 1",
            stamped > 0.0 && stamped <= 1.0,
        )?;
        self.finetune.validate()
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = self.clean.idle();
        idle.extend(self.finetune.idle());
        if !self.invert.early_stop {
            let keys = ["invert.stop_ratio", "invert.stop_patience"];
            idle.extend(keys.map(|key| (key, "`invert.early_stop` is false")));
        }
        idle
    }
}
