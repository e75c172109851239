//! Settings of CLP; the defaults are the benchmark's code.

use bb_core::settings::{Idle, SettingsError, Validate, check};
use serde::{Deserialize, Serialize};

use crate::settings::{idle_sweep, not_negative};

/// Settings of CLP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClpConfig {
    /// Deviations above the mean of its layer from which a channel is pruned.
    pub u: f64,
    /// Repair with every value of `sweep_u` as well; `u` stays the choice.
    pub sweep: bool,
    /// Values of the sweep, in ascending order.
    pub sweep_u: Vec<f64>,
    /// Which convolution a batch normalisation is paired with.
    pub pairing: Pairing,
    /// Added to the running variance.
    pub eps: f64,
}

/// Which convolution a batch normalisation is paired with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pairing {
    /// The one seen last in the order of the parameters, which may be a shortcut's.
    LastSeen,
    /// The last one of the same branch: a shortcut's with its own, any other with the last one that is no shortcut's.
    MainBranch,
}

impl Default for ClpConfig {
    fn default() -> Self {
        Self {
            u: 3.0,
            sweep: false,
            sweep_u: (0..=20).map(|half| f64::from(half) / 2.0).collect(),
            pairing: Pairing::LastSeen,
            eps: 0.0,
        }
    }
}

impl Validate for ClpConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        not_negative("u", self.u)?;
        let ascending = self.sweep_u.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = self.sweep_u.iter().all(|u| u.is_finite() && *u >= 0.0);
        check(
            "sweep_u",
            format!("{:?}", self.sweep_u),
            "one or more ascending finite numbers of at least 0",
            !self.sweep_u.is_empty() && ascending && inside,
        )?;
        not_negative("eps", self.eps)
    }

    fn idle(&self) -> Vec<Idle> {
        Vec::from_iter(idle_sweep(self.sweep, "sweep_u"))
    }
}
