//! Settings of SIG.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use bb_nn::train::Recipe;
use serde::{Deserialize, Serialize};

use crate::poison_index::Oversize;
use crate::settings;

/// Settings of SIG; the defaults are the bench's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigConfig {
    /// The attacker's class, and the only one whose training images are poisoned.
    pub target: u32,
    /// Share of the whole training set that is poisoned, above 0 and at most 1.
    pub ratio: f64,
    /// What to do if the ratio selects more images than the target class has.
    pub oversize: Oversize,
    /// Measure after every n-th epoch; 0 measures only after the last.
    pub eval_every: usize,
    /// The trigger.
    pub trigger: TriggerConfig,
    /// The training recipe.
    pub train: Recipe,
}

/// Table `[trigger]` of SIG.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerConfig {
    /// Height of the wave in grey levels.
    pub delta: f64,
    /// Periods over the width of the image.
    pub frequency: f64,
}

impl Default for SigConfig {
    fn default() -> Self {
        Self {
            target: 0,
            ratio: 0.1,
            oversize: Oversize::Error,
            eval_every: 1,
            trigger: TriggerConfig {
                delta: 40.0,
                frequency: 6.0,
            },
            train: Recipe::default(),
        }
    }
}

impl Validate for SigConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        settings::check_ratio(self.ratio)?;
        check(
            "trigger.delta",
            self.trigger.delta,
            "a height of 1 to 255 grey levels",
            (1.0..=255.0).contains(&self.trigger.delta),
        )?;
        check(
            "trigger.frequency",
            self.trigger.frequency,
            "a number of periods above 0",
            self.trigger.frequency > 0.0 && self.trigger.frequency.is_finite(),
        )?;
        settings::check_train(&self.train)
    }

    fn idle(&self) -> Vec<Idle> {
        settings::idle_train(&self.train)
    }
}
