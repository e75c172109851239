//! Settings of OTBR; the defaults are the authors' code.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use serde::{Deserialize, Serialize};

use crate::nwc::{LayerConfig, NwcConfig};
use crate::settings::{
    ascending_shares, batch_size, choice_needs_sweep, idle_sweep, momentum, rate, share, steps,
};

/// Settings of OTBR.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OtbrConfig {
    /// Repair with every ratio of `sweep_ratios`, and choose one as `select` says.
    pub sweep: bool,
    /// Pruning ratios of the sweep, in ascending order, each above 0 and at most 1.
    pub sweep_ratios: Vec<f64>,
    /// Which layers are scored, pruned and fused.
    pub layers: LayerConfig,
    /// Stage 1a.
    pub unlearn: UnlearnConfig,
    /// Stage 1b: the ranking.
    pub nwc: NwcConfig,
    /// Stage 1b: the pruning.
    pub prune: PruneConfig,
    /// Stage 2.
    pub fusion: FusionConfig,
    /// How a sweep chooses.
    pub select: SelectConfig,
}

/// Which classes random labels come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Labels {
    /// All but the last one, as the authors' bounds give it.
    AllButLast,
    /// All.
    All,
}

/// What random images are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Noise {
    /// Numbers of `[0, 1)` given to the network as they are.
    Raw,
    /// Numbers of `[0, 1)` taken for colours and normalised as images are.
    Normalised,
}

/// Table `[unlearn]`: random unlearning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlearnConfig {
    /// Learning rate of the ascent, above 0.
    pub lr: f64,
    /// Momentum, 0 up to but not including 1.
    pub momentum: f64,
    /// Steps, at least 1.
    pub steps: usize,
    /// Random images in a step, at least 1.
    pub batch_size: usize,
    /// Which classes their labels come from.
    pub labels: Labels,
    /// What they are.
    pub noise: Noise,
}

/// Table `[prune]`: what is pruned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneConfig {
    /// Share of all target neurons that is pruned, 0 to 1.
    pub gamma: f64,
}

/// Between which weights distances are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CostKind {
    /// The pruned neurons as they are.
    Unaligned,
    /// The pruned neurons with their inputs brought to those of the whole network.
    Aligned,
}

/// Table `[fusion]`: pruned-to-backdoored fusion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FusionConfig {
    /// Share of the transported weights, 0 (the suspect model) to 1.
    pub lambda: f64,
    /// Between which weights the distances of the transport are taken.
    pub cost: CostKind,
    /// Least weight change as mass in a layer where some is 0, above 0.
    pub floor: f64,
}

/// How the defender chooses the ratio.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choose {
    /// It is `prune.gamma`.
    Fixed,
    /// The largest of the sweep up to which the model agrees with the suspect's well enough on noise.
    Agreement,
}

/// Table `[select]`: the data-free choice among the ratios of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectConfig {
    /// How the defender chooses.
    pub choose: Choose,
    /// Random images that the models are compared on, at least 1.
    pub images: usize,
    /// Share of the smallest ratio's agreement with the suspect model that a choice must keep, 0 to 1.
    pub agreement: f64,
}

impl Default for OtbrConfig {
    fn default() -> Self {
        Self {
            sweep: false,
            sweep_ratios: vec![0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3],
            layers: LayerConfig::default(),
            unlearn: UnlearnConfig {
                lr: 1e-4,
                momentum: 0.9,
                steps: 20,
                batch_size: 256,
                labels: Labels::AllButLast,
                noise: Noise::Raw,
            },
            nwc: NwcConfig::default(),
            prune: PruneConfig { gamma: 0.15 },
            fusion: FusionConfig {
                lambda: 0.5,
                cost: CostKind::Unaligned,
                floor: 1e-6,
            },
            select: SelectConfig {
                choose: Choose::Fixed,
                images: 256,
                agreement: 0.98,
            },
        }
    }
}

impl Validate for OtbrConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        ascending_shares("sweep_ratios", &self.sweep_ratios)?;
        self.layers.validate()?;
        let unlearn = &self.unlearn;
        rate("unlearn.lr", unlearn.lr)?;
        momentum("unlearn.momentum", unlearn.momentum)?;
        steps("unlearn.steps", unlearn.steps)?;
        batch_size("unlearn.batch_size", unlearn.batch_size)?;
        self.nwc.validate()?;
        share("prune.gamma", self.prune.gamma)?;
        share("fusion.lambda", self.fusion.lambda)?;
        let floor = self.fusion.floor;
        check(
            "fusion.floor",
            floor,
            "a finite number above 0",
            floor.is_finite() && floor > 0.0,
        )?;
        batch_size("select.images", self.select.images)?;
        share("select.agreement", self.select.agreement)?;
        choice_needs_sweep(
            "select.choose",
            "agreement",
            self.sweep || self.select.choose == Choose::Fixed,
        )
    }

    fn idle(&self) -> Vec<Idle> {
        let mut idle = Vec::from_iter(idle_sweep(self.sweep, "sweep_ratios"));
        if self.select.choose == Choose::Fixed {
            let keys = ["select.images", "select.agreement"];
            idle.extend(keys.map(|key| (key, "`select.choose` is `fixed`")));
        }
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `otbr/config.yaml` of the authors' code, and what the code itself sets.
    #[test]
    fn the_defaults_are_the_authors_but_for_the_choice() {
        let own = serde_json::to_value(OtbrConfig::default()).expect("plain settings");
        let authors = json!({
            "sweep": false,
            "sweep_ratios": [0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3],
            // The second name is ours: the reference knows the first one alone, and ends with an error where there is
            // the other.
            "layers": { "exclude": ["shortcut", "downsample"] },
            "unlearn": {
                "lr": 1e-4, "momentum": 0.9, "steps": 20, "batch_size": 256, "labels": "all-but-last", "noise": "raw",
            },
            "nwc": { "precision": "rounded", "decimals": 4 },
            // The ratio is ours: the reference tries all and takes none.
            "prune": { "gamma": 0.15 },
            // The floor is ours: the reference divides by zero.
            "fusion": { "lambda": 0.5, "cost": "unaligned", "floor": 1e-6 },
            "select": { "choose": "fixed", "images": 256, "agreement": 0.98 },
        });
        assert_eq!(own, authors);
    }
}
