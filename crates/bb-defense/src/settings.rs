//! Checks that the settings of several defenses share.

use bb_core::settings::{Idle, SettingsError, check};

/// Checks a share: 0 to 1, both included.
pub fn share(key: &str, value: f64) -> Result<(), SettingsError> {
    check(
        key,
        value,
        "a share of 0 to 1",
        (0.0..=1.0).contains(&value),
    )
}

/// Checks a share that leaves something on both sides: above 0 and below 1.
pub fn part(key: &str, value: f64) -> Result<(), SettingsError> {
    check(
        key,
        value,
        "a share above 0 and below 1",
        value > 0.0 && value < 1.0,
    )
}

/// Checks the ratios of a sweep: one or more, ascending, each above 0 and at most 1.
pub fn ascending_shares(key: &str, ratios: &[f64]) -> Result<(), SettingsError> {
    let ascending = ratios.windows(2).all(|pair| pair[0] < pair[1]);
    let inside = ratios.iter().all(|&n| n > 0.0 && n <= 1.0);
    check(
        key,
        format!("{ratios:?}"),
        "one or more ascending shares above 0 and at most 1",
        !ratios.is_empty() && ascending && inside,
    )
}

/// Checks that whoever chooses a model has several: any way to choose but `fixed` needs a sweep.
pub fn choice_needs_sweep(key: &str, value: &str, good: bool) -> Result<(), SettingsError> {
    check(
        key,
        value,
        "`fixed` without a sweep, since there is nothing to choose from",
        good,
    )
}

/// What is left without effect where nothing is swept: the values of the sweep.
pub fn idle_sweep(sweep: bool, key: &'static str) -> Option<Idle> {
    (!sweep).then_some((key, "`sweep` is false"))
}

/// The values for which a method makes a model: those of a sweep and the fixed one, ascending, each once; and the place
/// of the fixed one, or else of the first.
pub fn tried(sweep: Option<&[f64]>, fixed: Option<f64>) -> (Vec<f64>, usize) {
    let mut values = sweep.unwrap_or_default().to_vec();
    values.extend(fixed);
    values.sort_by(f64::total_cmp);
    values.dedup_by(|a, b| a.total_cmp(b).is_eq());
    let place = values
        .iter()
        .position(|value| fixed.is_some_and(|fixed| fixed.total_cmp(value).is_eq()));
    (values, place.unwrap_or(0))
}

/// Checks a learning rate.
pub fn rate(key: &str, lr: f64) -> Result<(), SettingsError> {
    check(key, lr, "a finite rate above 0", lr.is_finite() && lr > 0.0)
}

/// Checks the momentum of SGD.
pub fn momentum(key: &str, value: f64) -> Result<(), SettingsError> {
    check(
        key,
        value,
        "0 up to but not including 1",
        (0.0..1.0).contains(&value),
    )
}

/// Checks a number that must be positive.
pub fn above_zero(key: &str, value: f64) -> Result<(), SettingsError> {
    check(
        key,
        value,
        "a finite number above 0",
        value.is_finite() && value > 0.0,
    )
}

/// Checks a number that may be 0 but not negative.
pub fn not_negative(key: &str, value: f64) -> Result<(), SettingsError> {
    check(
        key,
        value,
        "a finite number of at least 0",
        value.is_finite() && value >= 0.0,
    )
}

/// Checks the images in a batch.
pub fn batch_size(key: &str, value: usize) -> Result<(), SettingsError> {
    check(key, value, "1 to 65536", (1..=65_536).contains(&value))
}

/// The most passes that a training may have, as in the training of attacks.
const MOST_EPOCHS: usize = 100_000;

/// Checks passes over the images, of which there may be none.
pub fn epochs(key: &str, value: usize) -> Result<(), SettingsError> {
    check(key, value, "at most 100000", value <= MOST_EPOCHS)
}

/// Checks passes over the images, or other work that is done at least once.
pub fn rounds(key: &str, value: usize) -> Result<(), SettingsError> {
    check(
        key,
        value,
        "1 to 100000",
        (1..=MOST_EPOCHS).contains(&value),
    )
}

/// Checks steps of an optimiser.
pub fn steps(key: &str, value: usize) -> Result<(), SettingsError> {
    check(
        key,
        value,
        "1 to 10000000",
        (1..=10_000_000).contains(&value),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts that progress is reckoned in stay far from what an integer holds.
    #[test]
    fn counts_have_bounds() {
        type Check = fn(&str, usize) -> Result<(), SettingsError>;
        let cases: [(Check, usize, usize); 4] = [
            (batch_size, 1, 65_536),
            (epochs, 0, 100_000),
            (rounds, 1, 100_000),
            (steps, 1, 10_000_000),
        ];
        for (check, least, most) in cases {
            check("key", least).expect("inside");
            check("key", most).expect("inside");
            check("key", most + 1).expect_err("too many");
            check("key", usize::MAX).expect_err("too many");
            if least > 0 {
                check("key", 0).expect_err("none");
            }
        }
    }

    #[test]
    fn a_fixed_value_is_tried_whether_the_sweep_has_it_or_not() {
        let sweep = [0.1, 0.3];
        assert_eq!(tried(None, Some(0.2)), (vec![0.2], 0));
        assert_eq!(tried(Some(&sweep), Some(0.2)), (vec![0.1, 0.2, 0.3], 1));
        assert_eq!(tried(Some(&sweep), Some(0.3)), (vec![0.1, 0.3], 1));
        assert_eq!(tried(Some(&sweep), None), (vec![0.1, 0.3], 0));
    }
}
