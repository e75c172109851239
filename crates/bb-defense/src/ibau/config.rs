//! Settings of i-BAU; the defaults are the benchmark's.

use bb_core::settings::{Idle, SettingsError, Validate};
use serde::{Deserialize, Serialize};

use super::hypergradient::HypergradientConfig;
use crate::data::CleanBudget;
use crate::settings::{above_zero, batch_size, not_negative, rate, rounds, share};

/// Settings of i-BAU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IbauConfig {
    /// How often a perturbation is sought and then unlearned, at least 1.
    pub rounds: usize,
    /// Measure the model after every n-th round, counted from the first, but not after the last; 0 measures only at the
    /// end.
    pub probe_every: usize,
    /// The clean images the defender has.
    pub clean: CleanBudget,
    /// How the perturbation is sought.
    pub perturb: PerturbConfig,
    /// How its dependence on the network is followed.
    pub hypergradient: HypergradientConfig,
    /// How the network unlearns it.
    pub unlearn: UnlearnConfig,
}

/// Table `[perturb]`: the perturbation that all images share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerturbConfig {
    /// Learning rate of its SGD, above 0.
    pub lr: f64,
    /// Factor of its squared L2 norm in the loss that it lowers, at least 0.
    pub penalty: f64,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Shuffle the clean images before each pass.
    pub shuffle: bool,
    /// Crop and mirror the clean images as in training.
    pub augment: bool,
}

/// Table `[unlearn]`: the network's steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlearnConfig {
    /// Learning rate of Adam, above 0.
    pub lr: f64,
    /// Divide by the largest mean square so far.
    pub amsgrad: bool,
    /// Share of a batch that is perturbed, 0 to 1; the count is cut to a whole number.
    pub patched: f64,
    /// Images in a batch, at least 1.
    pub batch_size: usize,
    /// Shuffle the clean images before they are cut into batches.
    pub shuffle: bool,
    /// Crop and mirror the clean images as in training.
    pub augment: bool,
}

impl Default for IbauConfig {
    fn default() -> Self {
        Self {
            rounds: 5,
            probe_every: 1,
            clean: CleanBudget::default(),
            perturb: PerturbConfig {
                lr: 10.0,
                penalty: 0.001,
                batch_size: 256,
                shuffle: true,
                augment: true,
            },
            hypergradient: HypergradientConfig {
                rate: 0.1,
                terms: 5,
                tolerance: 1e-10,
                step: 0.03,
            },
            unlearn: UnlearnConfig {
                lr: 1e-4,
                amsgrad: true,
                patched: 0.01,
                batch_size: 256,
                shuffle: true,
                augment: true,
            },
        }
    }
}

impl Validate for IbauConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        rounds("rounds", self.rounds)?;
        self.clean.validate()?;
        rate("perturb.lr", self.perturb.lr)?;
        not_negative("perturb.penalty", self.perturb.penalty)?;
        batch_size("perturb.batch_size", self.perturb.batch_size)?;
        rate("hypergradient.rate", self.hypergradient.rate)?;
        not_negative("hypergradient.tolerance", self.hypergradient.tolerance)?;
        above_zero("hypergradient.step", self.hypergradient.step)?;
        rate("unlearn.lr", self.unlearn.lr)?;
        share("unlearn.patched", self.unlearn.patched)?;
        batch_size("unlearn.batch_size", self.unlearn.batch_size)
    }

    fn idle(&self) -> Vec<Idle> {
        self.clean.idle()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `config/defense/i-bau/cifar10.yaml` of the benchmark, and what its code itself sets.
    #[test]
    fn the_defaults_are_the_benchmarks() {
        let own = serde_json::to_value(IbauConfig::default()).expect("plain settings");
        let reference = json!({
            "rounds": 5,
            "probe_every": 1,
            "clean": { "ratio": 0.05, "seed": 0, "index_file": "" },
            "perturb": { "lr": 10.0, "penalty": 0.001, "batch_size": 256, "shuffle": true, "augment": true },
            // The step is ours: the reference differentiates twice.
            "hypergradient": { "rate": 0.1, "terms": 5, "tolerance": 1e-10, "step": 0.03 },
            "unlearn": {
                "lr": 1e-4, "amsgrad": true, "patched": 0.01, "batch_size": 256, "shuffle": true, "augment": true,
            },
        });
        assert_eq!(own, reference);
    }
}
