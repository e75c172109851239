//! Checks that the settings of several attacks share.

use std::path::PathBuf;

use bb_core::settings::{SettingsError, check};
use bb_nn::train::Recipe;

/// Checks the share of the training set that is poisoned.
pub fn check_ratio(ratio: f64) -> Result<(), SettingsError> {
    check(
        "ratio",
        ratio,
        "a share above 0 and at most 1",
        ratio > 0.0 && ratio <= 1.0,
    )
}

/// The file that a setting names; a setting that is the empty string names none.
pub fn optional_file(key: &'static str, path: &str) -> Vec<(&'static str, PathBuf)> {
    if path.is_empty() {
        Vec::new()
    } else {
        vec![(key, PathBuf::from(path))]
    }
}

/// Checks the epochs of the attacker's clean network.
pub fn check_clean_epochs(epochs: usize) -> Result<(), SettingsError> {
    let expected = "at most 100000";
    check("trigger.clean_epochs", epochs, expected, epochs <= 100_000)
}

/// Checks the table `[train]`.
pub fn check_train(recipe: &Recipe) -> Result<(), SettingsError> {
    match recipe.first_invalid() {
        None => Ok(()),
        Some((key, found, expected)) => {
            Err(SettingsError::value(key, found, expected).within("train"))
        }
    }
}
