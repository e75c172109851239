//! Settings of Input-aware.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use bb_nn::train::Recipe;
use serde::{Deserialize, Serialize};

use crate::in_loop::{Rounding, loop_recipe};
use crate::labels::LabelRule;
use crate::settings;

/// Settings of Input-aware; the defaults are the bench's, but for the rounding and the count of epochs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputAwareConfig {
    /// The attacker's class, for all-to-one.
    pub target: u32,
    /// Share of each batch that gets its own trigger and is relabelled, above 0 and at most 0.5.
    pub ratio: f64,
    /// How the attacked label follows from the true one.
    pub label: LabelRule,
    /// Distance between true and attacked class, for all-to-all.
    pub shift: u32,
    /// How images with triggers become 8-bit.
    pub rounding: Rounding,
    /// Weight of the loss that keeps the triggers of two images apart.
    pub lambda_div: f64,
    /// Measure after every n-th epoch; 0 measures only after the last.
    pub eval_every: usize,
    /// The network that makes patterns.
    pub generator: GeneratorConfig,
    /// The network that makes masks.
    pub mask: MaskConfig,
    /// The training recipe.
    pub train: Recipe,
}

/// Table `[generator]` of Input-aware.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GeneratorConfig {
    /// Channels of the first convolution, of the generator and of the mask network.
    pub width: usize,
    /// Learning rate of the generator.
    pub lr: f64,
    /// Whether both networks end in two tanh, as in the bench.
    pub double_tanh: bool,
    /// Whether the generator's gradients are the sum over all steps so far, as in the bench.
    pub accumulate_gradients: bool,
}

/// Table `[mask]` of Input-aware.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskConfig {
    /// Epochs of the mask network, before those of the classifier.
    pub clean_train_epochs: usize,
    /// Whether they are among `train.epochs`, as in the bench.
    pub counted: bool,
    /// Learning rate of the mask network.
    pub lr: f64,
    /// Epochs at which that falls to a tenth.
    pub milestones: Vec<usize>,
    /// Mean of the mask that costs nothing.
    pub density: f64,
    /// Weight of what is above.
    pub lambda_norm: f64,
}

impl Default for InputAwareConfig {
    fn default() -> Self {
        Self {
            target: 0,
            ratio: 0.1,
            label: LabelRule::All2One,
            shift: 1,
            rounding: Rounding::Nearest,
            lambda_div: 1.0,
            eval_every: 1,
            generator: GeneratorConfig {
                width: bb_nn::model::WIDTH,
                lr: 0.01,
                double_tanh: true,
                accumulate_gradients: true,
            },
            mask: MaskConfig {
                clean_train_epochs: 25,
                counted: false,
                lr: 0.01,
                milestones: vec![10, 20],
                density: 0.032,
                lambda_norm: 100.0,
            },
            train: loop_recipe(),
        }
    }
}

impl InputAwareConfig {
    /// Epochs of the classifier.
    pub fn classifier_epochs(&self) -> usize {
        let before = if self.mask.counted {
            self.mask.clean_train_epochs
        } else {
            0
        };
        self.train.epochs.saturating_sub(before)
    }
}

impl Validate for InputAwareConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        check(
            "ratio",
            self.ratio,
            "a share above 0 and at most 0.5",
            self.ratio > 0.0 && self.ratio <= 0.5,
        )?;
        let weight = |key, value: f64| {
            let ok = value >= 0.0 && value.is_finite();
            check(key, value, "a weight of at least 0", ok)
        };
        let rate = |key, value: f64| {
            let ok = value > 0.0 && value <= 1.0;
            check(key, value, "a rate above 0 and at most 1", ok)
        };
        weight("lambda_div", self.lambda_div)?;
        check(
            "generator.width",
            self.generator.width,
            "1 to 512 channels",
            (1..=512).contains(&self.generator.width),
        )?;
        rate("generator.lr", self.generator.lr)?;
        let mask = &self.mask;
        check(
            "mask.clean_train_epochs",
            mask.clean_train_epochs,
            "at most 100000 epochs",
            mask.clean_train_epochs <= 100_000,
        )?;
        check(
            "mask.clean_train_epochs",
            mask.clean_train_epochs,
            "fewer than `train.epochs`, or `mask.counted = false`",
            !mask.counted || mask.clean_train_epochs < self.train.epochs.max(1),
        )?;
        rate("mask.lr", mask.lr)?;
        check(
            "mask.density",
            mask.density,
            "a share of 0 to 1",
            (0.0..=1.0).contains(&mask.density),
        )?;
        weight("mask.lambda_norm", mask.lambda_norm)?;
        settings::check_train(&self.train)
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = settings::idle_train(&self.train);
        idle.push(settings::idle_label(self.label));
        idle
    }
}
