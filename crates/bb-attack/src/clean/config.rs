//! Settings of clean training.

use bb_core::settings::{Idle, SettingsError, Validate};
use bb_nn::train::Recipe;
use serde::{Deserialize, Serialize};

use crate::settings;

/// Settings of clean training; the defaults are the bench's.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CleanConfig {
    /// Measure after every n-th epoch; 0 measures only after the last.
    pub eval_every: usize,
    /// The training recipe.
    pub train: Recipe,
}

impl Default for CleanConfig {
    fn default() -> Self {
        Self {
            eval_every: 1,
            train: Recipe::default(),
        }
    }
}

impl Validate for CleanConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        settings::check_train(&self.train)
    }

    fn idle(&self) -> Vec<Idle> {
        settings::idle_train(&self.train)
    }
}
