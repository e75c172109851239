//! Checks that the settings of several defenses share.

use std::fmt::Display;

use bb_core::settings::SettingsError;

/// An error naming `key` unless `ok`.
pub fn check(
    key: &str,
    found: impl Display,
    expected: &str,
    ok: bool,
) -> Result<(), SettingsError> {
    if ok {
        return Ok(());
    }
    Err(SettingsError::Value {
        key: key.to_owned(),
        found: found.to_string(),
        expected: expected.to_owned(),
    })
}

/// Checks a share: 0 to 1, both included.
pub fn share(key: &str, value: f64) -> Result<(), SettingsError> {
    check(
        key,
        value,
        "a share of 0 to 1",
        (0.0..=1.0).contains(&value),
    )
}
