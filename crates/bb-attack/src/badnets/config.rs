//! Settings of BadNets.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use bb_nn::train::Recipe;
use serde::{Deserialize, Serialize};

use super::trigger::{Patch, Pattern, Position};
use crate::labels::LabelRule;
use crate::settings;

/// Settings of BadNets; the defaults are the bench's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BadNetsConfig {
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

/// Table `[trigger]` of BadNets.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerConfig {
    /// A picture to use as mask and pattern; empty draws the patch that the other settings describe.
    pub file: String,
    /// What the patch shows.
    pub pattern: Pattern,
    /// Where it sits.
    pub position: Position,
    /// Side of the patch in pixels.
    pub size: usize,
    /// Distance from the edges in pixels.
    pub margin: usize,
    /// Grey level, 1 to 255.
    pub value: u8,
    /// At which size the patch is drawn.
    pub scaling: Scaling,
}

/// The setting `trigger.scaling`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scaling {
    /// Drawn at 32 x 32 and resized to the dataset with Pillow's bilinear filter, as the bench does.
    #[default]
    Resize,
    /// Drawn at the size of the dataset.
    Native,
}

impl TriggerConfig {
    /// The patch that these settings describe.
    pub fn patch(&self) -> Patch {
        Patch {
            pattern: self.pattern,
            position: self.position,
            size: self.size,
            margin: self.margin,
            value: self.value,
        }
    }
}

impl Default for BadNetsConfig {
    fn default() -> Self {
        Self {
            target: 0,
            ratio: 0.1,
            label: LabelRule::All2One,
            shift: 1,
            eval_every: 1,
            trigger: TriggerConfig {
                file: String::new(),
                pattern: Pattern::Solid,
                position: Position::LowerRight,
                size: 3,
                margin: 0,
                value: 255,
                scaling: Scaling::Resize,
            },
            train: Recipe::default(),
        }
    }
}

impl Validate for BadNetsConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        settings::check_ratio(self.ratio)?;
        check(
            "trigger.size",
            self.trigger.size,
            "a side of at least 1 pixel",
            self.trigger.size >= 1,
        )?;
        check(
            "trigger.value",
            self.trigger.value,
            "a grey level of 1 to 255",
            self.trigger.value >= 1,
        )?;
        settings::check_train(&self.train)
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = settings::idle_train(&self.train);
        idle.push(settings::idle_label(self.label));
        if !self.trigger.file.is_empty() {
            let why = "`trigger.file` names a picture";
            let keys = [
                "trigger.pattern",
                "trigger.position",
                "trigger.size",
                "trigger.margin",
                "trigger.value",
                "trigger.scaling",
            ];
            idle.extend(keys.map(|key| (key, why)));
        }
        idle
    }
}
