//! Settings of FP; the defaults follow the benchmark's, but for what it decides on the test set.

use bb_core::settings::{Idle, SettingsError, Validate};
use serde::{Deserialize, Serialize};

use crate::data::CleanBudget;
use crate::finetuning::FinetuneConfig;
use crate::settings::{ascending_shares, batch_size, idle_sweep, part, share};
use crate::tsbd::config::{TsbdConfig, UnlearnConfig};

/// Settings of FP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FpConfig {
    /// Make models with the shares of `sweep_ratios` pruned as well; the choice stays that of `prune`.
    pub sweep: bool,
    /// Shares of the features that a sweep prunes, in ascending order, each above 0 and at most 1.
    pub sweep_ratios: Vec<f64>,
    /// Measure the model after every n-th epoch, counted from the first; 0 measures only at the end.
    pub probe_every: usize,
    /// The clean images the defender has.
    pub clean: CleanBudget,
    /// Which features are pruned.
    pub prune: PruneConfig,
    /// Clean unlearning, for the order of weight changes.
    pub unlearn: UnlearnConfig,
    /// How the pruned model is trained on.
    pub finetune: FinetuneConfig,
}

/// In which order features are pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// The least active on clean images first.
    Activation,
    /// Those first whose neurons' weights clean unlearning moves most.
    Nwc,
}

/// Which mask is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keep {
    /// The last one within the tolerance.
    Within,
    /// The last one tried, which broke it.
    LastTried,
}

/// Table `[prune]`: which features are pruned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneConfig {
    /// In which order features are pruned.
    pub order: Order,
    /// Share of the features pruned in one step, above 0 and below 1.
    pub step: f64,
    /// Relative loss of accuracy that ends the pruning, 0 to 1.
    pub tolerance: f64,
    /// Which mask is kept.
    pub keep: Keep,
    /// Mask one feature less than the step says.
    pub one_less: bool,
    /// Crop and mirror the clean images whose activations are averaged.
    pub augment: bool,
    /// Images in a batch of them, at least 1.
    pub batch_size: usize,
}

impl Default for FpConfig {
    fn default() -> Self {
        Self {
            sweep: false,
            sweep_ratios: vec![0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95],
            probe_every: 10,
            clean: CleanBudget::default(),
            prune: PruneConfig {
                order: Order::Activation,
                step: 0.01,
                tolerance: 0.1,
                keep: Keep::Within,
                one_less: false,
                augment: true,
                batch_size: 256,
            },
            unlearn: TsbdConfig::default().unlearn,
            finetune: FinetuneConfig::default(),
        }
    }
}

impl Validate for FpConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        ascending_shares("sweep_ratios", &self.sweep_ratios)?;
        self.clean.validate()?;
        part("prune.step", self.prune.step)?;
        share("prune.tolerance", self.prune.tolerance)?;
        batch_size("prune.batch_size", self.prune.batch_size)?;
        self.unlearn.validate()?;
        self.finetune.validate()
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = self.clean.idle();
        idle.extend(self.finetune.idle());
        idle.extend(idle_sweep(self.sweep, "sweep_ratios"));
        if self.prune.order == Order::Activation {
            idle.push(("unlearn", "`prune.order` is `activation`"));
        }
        idle
    }
}
