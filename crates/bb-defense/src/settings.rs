//! Checks that the settings of several defenses share.

use bb_core::settings::{SettingsError, check};

/// Checks a share: 0 to 1, both included.
pub fn share(key: &str, value: f64) -> Result<(), SettingsError> {
    check(
        key,
        value,
        "a share of 0 to 1",
        (0.0..=1.0).contains(&value),
    )
}
