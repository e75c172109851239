//! Settings of Trojan.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use bb_nn::train::Recipe;
use serde::{Deserialize, Serialize};

use super::trigger::Addition;
use crate::labels::LabelRule;
use crate::settings;

/// Settings of Trojan; the defaults are the bench's, but where its code does not do what the paper says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrojanConfig {
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

/// Table `[trigger]` of Trojan.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TriggerConfig {
    /// A ready trigger picture; empty to make one.
    pub file: String,
    /// The mask; empty for the built-in drop.
    pub mask: String,
    /// The clean network; empty to train one.
    pub model: String,
    /// Epochs of the clean network's training; 0 for those of the recipe.
    pub clean_epochs: usize,
    /// The weights by which neurons are chosen.
    pub head: Head,
    /// Whether the network sees the mask normalised, as it sees images.
    pub normalised: bool,
    /// How many neurons are driven.
    pub neurons: usize,
    /// The value they are driven to.
    pub target_value: f64,
    /// Steps of the search.
    pub iterations: usize,
    /// Length of a step, as a fraction of white.
    pub step: f64,
    /// How far a value may move from the mask, as a fraction of white.
    pub radius: f64,
    /// Which step's picture is taken.
    pub iterate: Iterate,
    /// How the trigger is added.
    pub addition: Addition,
}

/// The setting `trigger.head`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// The last layer of the clean network.
    #[default]
    Own,
    /// A new layer of 1000 classes, drawn at random.
    Random,
}

/// The setting `trigger.iterate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Iterate {
    /// The one that drives the neurons best.
    #[default]
    Best,
    /// The last one.
    Last,
}

impl Default for TrojanConfig {
    fn default() -> Self {
        Self {
            target: 0,
            ratio: 0.1,
            label: LabelRule::All2One,
            shift: 1,
            eval_every: 1,
            trigger: TriggerConfig {
                file: String::new(),
                mask: String::new(),
                model: String::new(),
                clean_epochs: 0,
                head: Head::Own,
                normalised: true,
                neurons: 2,
                target_value: 100.0,
                iterations: 1000,
                step: 0.1,
                radius: 0.3,
                iterate: Iterate::Best,
                addition: Addition::Wrap,
            },
            train: Recipe::default(),
        }
    }
}

impl Validate for TrojanConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        settings::check_ratio(self.ratio)?;
        let t = &self.trigger;
        for (key, value) in [("trigger.model", &t.model), ("trigger.mask", &t.mask)] {
            check(
                key,
                value,
                "nothing beside `trigger.file`, for which no trigger is made",
                t.file.is_empty() || value.is_empty(),
            )?;
        }
        check("trigger.neurons", t.neurons, "at least 1", t.neurons >= 1)?;
        check(
            "trigger.target_value",
            t.target_value,
            "a number",
            t.target_value.is_finite(),
        )?;
        check(
            "trigger.iterations",
            t.iterations,
            "at most 1000000",
            t.iterations <= 1_000_000,
        )?;
        for (key, value) in [("trigger.step", t.step), ("trigger.radius", t.radius)] {
            let expected = "a fraction above 0 and at most 1";
            check(key, value, expected, value > 0.0 && value <= 1.0)?;
        }
        settings::check_clean_epochs(t.clean_epochs)?;
        settings::check_train(&self.train)
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = settings::idle_train(&self.train);
        idle.push(settings::idle_label(self.label));
        if !self.trigger.file.is_empty() {
            let keys = [
                "trigger.clean_epochs",
                "trigger.head",
                "trigger.normalised",
                "trigger.neurons",
                "trigger.target_value",
                "trigger.iterations",
                "trigger.step",
                "trigger.radius",
                "trigger.iterate",
            ];
            idle.extend(keys.map(|key| (key, "`trigger.file` names a trigger")));
        } else if !self.trigger.model.is_empty() {
            idle.push(("trigger.clean_epochs", "`trigger.model` names a network"));
        }
        idle
    }
}
