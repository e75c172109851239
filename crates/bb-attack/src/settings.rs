//! Checks that the settings of several attacks share.

use std::path::PathBuf;

use bb_core::settings::{Idle, SettingsError, check};
use bb_nn::schedule::Kind;
use bb_nn::train::Recipe;

use crate::labels::LabelRule;

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

/// What a rule for labels leaves without effect.
pub fn idle_label(rule: LabelRule) -> Idle {
    match rule {
        LabelRule::All2One => ("shift", "`label` is `all2one`"),
        LabelRule::All2All => ("target", "`label` is `all2all`"),
    }
}

/// What the schedule of the table `[train]` leaves without effect.
pub fn idle_train(recipe: &Recipe) -> Vec<Idle> {
    use Kind::{Cosine, Multistep, Plateau, Step, Triangle};
    let kind = recipe.schedule.kind;
    let parts: [(&str, &[Kind]); 7] = [
        ("train.schedule.t_max", &[Cosine]),
        ("train.schedule.step_size", &[Step]),
        ("train.schedule.milestones", &[Multistep]),
        ("train.schedule.gamma", &[Step, Multistep, Plateau]),
        ("train.schedule.patience", &[Plateau]),
        ("train.schedule.warmup", &[Triangle]),
        ("train.schedule.min_lr", &[Cosine, Triangle, Plateau]),
    ];
    let idle = parts
        .into_iter()
        .filter(|(_, kinds)| !kinds.contains(&kind));
    idle.map(|(key, _)| (key, "`train.schedule.kind` is another one"))
        .collect()
}
