//! Settings of norm pruning.

use bb_core::settings::{SettingsError, Validate, check};
use bb_defense::data::CleanBudget;
use bb_defense::nwc::LayerConfig;
use bb_defense::settings::share;
use serde::{Deserialize, Serialize};

/// Settings of norm pruning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormPruneConfig {
    /// Deviations above its layer's mean norm from which a neuron is pruned; one model for each, the mildest first.
    pub deviations: Vec<f64>,
    /// Accuracy on the clean images that the chosen model may lack to the suspect's, 0 to 1.
    pub tolerance: f64,
    /// The clean images the defender has.
    pub clean: CleanBudget,
    /// Which layers are pruned.
    pub layers: LayerConfig,
}

impl Default for NormPruneConfig {
    fn default() -> Self {
        Self {
            deviations: vec![4.0, 3.0, 2.0, 1.5],
            tolerance: 0.02,
            clean: CleanBudget::default(),
            layers: LayerConfig::default(),
        }
    }
}

impl Validate for NormPruneConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        let descending = self.deviations.windows(2).all(|pair| pair[0] > pair[1]);
        let inside = self.deviations.iter().all(|u| u.is_finite() && *u >= 0.0);
        check(
            "deviations",
            format!("{:?}", self.deviations),
            "one or more descending finite numbers of at least 0",
            !self.deviations.is_empty() && descending && inside,
        )?;
        share("tolerance", self.tolerance)?;
        self.clean.validate()?;
        self.layers.validate()
    }
}
