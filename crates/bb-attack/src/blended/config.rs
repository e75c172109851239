//! Settings of Blended.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use bb_nn::train::Recipe;
use serde::{Deserialize, Serialize};

use crate::labels::LabelRule;
use crate::settings;

/// Settings of Blended; the defaults are the bench's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlendedConfig {
    /// The attacker's class, for all-to-one.
    pub target: u32,
    /// Share of the training set that is poisoned, above 0 and at most 1.
    pub ratio: f64,
    /// How the attacked label follows from the true one.
    pub label: LabelRule,
    /// Distance between true and attacked class, for all-to-all.
    pub shift: u32,
    /// Measure after every n-th epoch; 0 measures only after the last.
    pub eval_every: usize,
    /// The trigger.
    pub trigger: TriggerConfig,
    /// The training recipe.
    pub train: Recipe,
}

/// Table `[trigger]` of Blended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerConfig {
    /// The picture to blend in; empty uses the built-in landscape.
    pub file: String,
    /// Weight of the picture in poisoned training images, above 0 and at most 1.
    pub alpha_train: f64,
    /// Weight of the picture in poisoned test images, above 0 and at most 1.
    pub alpha_test: f64,
}

impl Default for BlendedConfig {
    fn default() -> Self {
        Self {
            target: 0,
            ratio: 0.1,
            label: LabelRule::All2One,
            shift: 1,
            eval_every: 1,
            trigger: TriggerConfig {
                file: String::new(),
                alpha_train: 0.2,
                alpha_test: 0.2,
            },
            train: Recipe::default(),
        }
    }
}

impl Validate for BlendedConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        settings::check_ratio(self.ratio)?;
        for (key, alpha) in [
            ("trigger.alpha_train", self.trigger.alpha_train),
            ("trigger.alpha_test", self.trigger.alpha_test),
        ] {
            check(
                key,
                alpha,
                "a weight above 0 and at most 1",
                alpha > 0.0 && alpha <= 1.0,
            )?;
        }
        settings::check_train(&self.train)
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = settings::idle_train(&self.train);
        idle.push(settings::idle_label(self.label));
        idle
    }
}
