//! Settings of NAD; the defaults are the benchmark's for CIFAR-10.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use serde::{Deserialize, Serialize};

use crate::data::CleanBudget;
use crate::finetuning::FinetuneConfig;
use crate::settings::{batch_size, epochs, momentum, not_negative, rate};

/// Settings of NAD.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NadConfig {
    /// Measure the model of a stage after every n-th epoch, counted from the first; 0 measures only at the end.
    pub probe_every: usize,
    /// The clean images the defender has.
    pub clean: CleanBudget,
    /// How the teacher is trained.
    pub finetune: FinetuneConfig,
    /// How the student is trained.
    pub distill: DistillConfig,
}

/// Which layers of which architecture are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layers {
    /// Three in PreActResNet-18, `avgpool` alone in any other architecture.
    Reference,
    /// `avgpool`, and `layer3` and `layer4` of every architecture that has them.
    Stages,
}

/// Table `[distill]`: how the student is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillConfig {
    /// Epochs; 0 leaves the suspect model as it is.
    pub epochs: usize,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Shuffle the clean images before each epoch.
    pub shuffle: bool,
    /// Crop and mirror the clean images as in training.
    pub augment: bool,
    /// Base learning rate, above 0.
    pub lr: f64,
    /// Momentum, 0 up to but not including 1.
    pub momentum: f64,
    /// L2 penalty on every parameter.
    pub weight_decay: f64,
    /// Epochs at which the rate falls.
    pub milestones: Vec<usize>,
    /// Factor by which it falls, above 0 and at most 1.
    pub gamma: f64,
    /// Weight of the distance at `layer3`, at least 0.
    pub beta1: f64,
    /// Weight of the distance at `layer4`, at least 0.
    pub beta2: f64,
    /// Weight of the distance at `avgpool`, at least 0.
    pub beta3: f64,
    /// Exponent of the activations in an attention map, at least 1.
    pub power: f64,
    /// Which layers are compared.
    pub layers: Layers,
    /// Move the running statistics once more for each layer compared.
    pub repeat_bn: bool,
}

impl Default for NadConfig {
    fn default() -> Self {
        Self {
            probe_every: 10,
            clean: CleanBudget::default(),
            finetune: FinetuneConfig {
                epochs: 10,
                ..FinetuneConfig::default()
            },
            distill: DistillConfig {
                epochs: 10,
                batch_size: 256,
                shuffle: true,
                augment: true,
                lr: 0.01,
                momentum: 0.9,
                weight_decay: 5e-4,
                milestones: vec![20],
                gamma: 0.01,
                beta1: 500.0,
                beta2: 1000.0,
                beta3: 1000.0,
                power: 2.0,
                layers: Layers::Reference,
                repeat_bn: true,
            },
        }
    }
}

impl Validate for NadConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        self.clean.validate()?;
        self.finetune.validate()?;
        let distill = &self.distill;
        epochs("distill.epochs", distill.epochs)?;
        batch_size("distill.batch_size", distill.batch_size)?;
        rate("distill.lr", distill.lr)?;
        momentum("distill.momentum", distill.momentum)?;
        not_negative("distill.weight_decay", distill.weight_decay)?;
        check(
            "distill.gamma",
            distill.gamma,
            "above 0 and at most 1",
            distill.gamma > 0.0 && distill.gamma <= 1.0,
        )?;
        not_negative("distill.beta1", distill.beta1)?;
        not_negative("distill.beta2", distill.beta2)?;
        not_negative("distill.beta3", distill.beta3)?;
        check(
            "distill.power",
            distill.power,
            "a finite number of at least 1",
            distill.power.is_finite() && distill.power >= 1.0,
        )
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = self.clean.idle();
        idle.extend(self.finetune.idle());
        idle
    }
}
