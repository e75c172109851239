//! Settings of WaNet.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use bb_nn::train::Recipe;
use serde::{Deserialize, Serialize};

use crate::in_loop::{Rounding, loop_recipe};
use crate::labels::LabelRule;
use crate::settings;

/// Settings of WaNet; the defaults are the bench's, but for the rounding.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WanetConfig {
    /// The attacker's class, for all-to-one.
    pub target: u32,
    /// Share of each batch that is warped and relabelled, above 0 and at most 1.
    pub ratio: f64,
    /// Images warped with noise for each of those.
    pub cross: f64,
    /// How the attacked label follows from the true one.
    pub label: LabelRule,
    /// Distance between true and attacked class, for all-to-all.
    pub shift: u32,
    /// How warped images become 8-bit.
    pub rounding: Rounding,
    /// Whose choice the augmentation is.
    pub augmentation: Augmentation,
    /// Measure after every n-th epoch; 0 measures only after the last.
    pub eval_every: usize,
    /// The trigger.
    pub trigger: TriggerConfig,
    /// The training recipe.
    pub train: Recipe,
}

/// Table `[trigger]` of WaNet.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerConfig {
    /// Places of the field along each side, before it is made smooth.
    pub k: usize,
    /// Strength of the warp.
    pub s: f64,
    /// Factor on the whole grid.
    pub grid_rescale: f64,
}

/// The setting `augmentation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Augmentation {
    /// All images of a batch are cropped, turned and mirrored alike, as in the bench.
    #[default]
    Batch,
    /// Whether to crop and turn is drawn for the batch, where and how far for each image, as by the authors.
    Image,
}

impl Default for WanetConfig {
    fn default() -> Self {
        Self {
            target: 0,
            ratio: 0.1,
            cross: 2.0,
            label: LabelRule::All2One,
            shift: 1,
            rounding: Rounding::Nearest,
            augmentation: Augmentation::Batch,
            eval_every: 1,
            trigger: TriggerConfig {
                k: 4,
                s: 0.5,
                grid_rescale: 1.0,
            },
            train: loop_recipe(),
        }
    }
}

impl Validate for WanetConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        settings::check_ratio(self.ratio)?;
        check(
            "cross",
            self.cross,
            "a number of at least 0, with `ratio * (1 + cross)` at most 1",
            self.cross >= 0.0 && self.ratio * (1.0 + self.cross) <= 1.0,
        )?;
        let TriggerConfig { k, s, grid_rescale } = self.trigger;
        check("trigger.k", k, "2 to 64 places", (2..=64).contains(&k))?;
        check(
            "trigger.s",
            s,
            "a strength above 0 and at most 100",
            s > 0.0 && s <= 100.0,
        )?;
        check(
            "trigger.grid_rescale",
            grid_rescale,
            "a factor above 0 and at most 10",
            grid_rescale > 0.0 && grid_rescale <= 10.0,
        )?;
        settings::check_train(&self.train)
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = settings::idle_train(&self.train);
        idle.push(settings::idle_label(self.label));
        idle
    }
}
