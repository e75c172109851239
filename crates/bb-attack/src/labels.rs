//! Label maps: which class a triggered image is meant to be taken for.
//!
//! Source: BackdoorBench's label transforms. There are two of them, `all2one` and `all2all`; clean-label is not a
//! label transform but `all2one` applied only to images that already have the target label.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The setting `label`: how the attacked label follows from the true one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelRule {
    /// Every image goes to the class `target`.
    #[default]
    All2One,
    /// Class `y` goes to class `(y + shift) mod K`.
    All2All,
}

/// A label rule that is checked against a number of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelMap {
    /// `y -> target`, on images of any class.
    AllToOne {
        /// The attacker's class.
        target: u32,
    },
    /// `y -> (y + shift) mod classes`, on images of any class.
    AllToAll {
        /// Distance between the true and the attacked class, `1..classes`.
        shift: u32,
        /// Number of classes.
        classes: u32,
    },
    /// `y -> target`, where the training set is poisoned only on images that are of class `target` already.
    CleanLabel {
        /// The attacker's class.
        target: u32,
    },
}

/// A label setting that does not fit the dataset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// The target class does not exist.
    #[error("`target` is {found}, expected a class of 0..={} (the dataset has {classes} classes)", classes - 1)]
    Target {
        /// The setting.
        found: u32,
        /// Number of classes of the dataset.
        classes: u32,
    },
    /// The shift maps every class to itself, or is not below the number of classes.
    #[error("`shift` is {found}, expected 1..={} (the dataset has {classes} classes)", classes - 1)]
    Shift {
        /// The setting.
        found: u32,
        /// Number of classes of the dataset.
        classes: u32,
    },
}

/// Refuses a class that the dataset does not have.
pub fn check_target(target: u32, classes: usize) -> Result<(), LabelError> {
    let classes = u32::try_from(classes).unwrap_or(u32::MAX);
    if target < classes {
        Ok(())
    } else {
        Err(LabelError::Target {
            found: target,
            classes,
        })
    }
}

impl LabelMap {
    /// The map of an attack with these settings, checked against the number of classes of the dataset; `None` for one
    /// without a target (clean training), or whose target is the name of a class.
    pub fn of_settings(settings: &Value, classes: usize) -> Result<Option<Self>, LabelError> {
        let number = |name: &str| {
            let number = settings[name].as_u64();
            number.and_then(|number| u32::try_from(number).ok())
        };
        let Some(target) = number("target") else {
            return Ok(None);
        };
        let map = match serde_json::from_value::<LabelRule>(settings["label"].clone()) {
            Ok(rule) => Self::new(rule, target, number("shift").unwrap_or_default(), classes)?,
            // An attack that keeps the labels has no rule for them.
            Err(_) => Self::clean_label(target, classes)?,
        };
        Ok(Some(map))
    }

    /// The one class that triggered images are meant to be taken for, if it is one.
    pub fn target(&self) -> Option<u32> {
        match *self {
            Self::AllToOne { target } | Self::CleanLabel { target } => Some(target),
            Self::AllToAll { .. } => None,
        }
    }

    /// Checks a dirty-label rule against the dataset's number of classes (at least two).
    pub fn new(
        rule: LabelRule,
        target: u32,
        shift: u32,
        classes: usize,
    ) -> Result<Self, LabelError> {
        if rule == LabelRule::All2One {
            check_target(target, classes)?;
        }
        let classes = u32::try_from(classes).unwrap_or(u32::MAX);
        match rule {
            LabelRule::All2One => Ok(Self::AllToOne { target }),
            LabelRule::All2All if shift == 0 || shift >= classes => Err(LabelError::Shift {
                found: shift,
                classes,
            }),
            LabelRule::All2All => Ok(Self::AllToAll { shift, classes }),
        }
    }

    /// Checks a clean-label target against the dataset's number of classes.
    pub fn clean_label(target: u32, classes: usize) -> Result<Self, LabelError> {
        match Self::new(LabelRule::All2One, target, 0, classes)? {
            Self::AllToOne { target } => Ok(Self::CleanLabel { target }),
            other => Ok(other),
        }
    }

    /// The class that a triggered image of class `label` is meant to be taken for.
    pub fn attacked(&self, label: u32) -> u32 {
        match *self {
            Self::AllToOne { target } | Self::CleanLabel { target } => target,
            Self::AllToAll { shift, classes } => {
                u32::try_from((u64::from(label) + u64::from(shift)) % u64::from(classes))
                    .expect("a remainder of a u32 fits in a u32")
            }
        }
    }

    /// Whether the trigger could change the class of an image of class `label`, so that a test image tells something.
    pub fn tells(&self, label: u32) -> bool {
        self.attacked(label) != label
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: LabelRule, target: u32, shift: u32, expect: Result<&[u32], &str>) {
        let map = LabelMap::new(rule, target, shift, 4);
        match (map, expect) {
            (Ok(map), Ok(labels)) => {
                let got: Vec<u32> = (0..4).map(|y| map.attacked(y)).collect();
                assert_eq!(got, labels);
            }
            (Err(error), Err(text)) => assert_eq!(error.to_string(), text),
            (map, expect) => panic!("{map:?} is not {expect:?}"),
        }
    }

    #[test]
    fn maps_follow_the_bench() {
        check(LabelRule::All2One, 0, 1, Ok(&[0, 0, 0, 0]));
        check(LabelRule::All2One, 3, 1, Ok(&[3, 3, 3, 3]));
        check(LabelRule::All2All, 0, 1, Ok(&[1, 2, 3, 0]));
        check(LabelRule::All2All, 9, 3, Ok(&[3, 0, 1, 2]));
        let target = "`target` is 4, expected a class of 0..=3 (the dataset has 4 classes)";
        check(LabelRule::All2One, 4, 1, Err(target));
        let shift = "`shift` is 4, expected 1..=3 (the dataset has 4 classes)";
        check(LabelRule::All2All, 0, 4, Err(shift));
        let zero = "`shift` is 0, expected 1..=3 (the dataset has 4 classes)";
        check(LabelRule::All2All, 0, 0, Err(zero));
    }

    #[test]
    fn clean_label_keeps_the_label_of_what_it_may_poison() {
        let map = LabelMap::clean_label(2, 4).expect("2 is a class of 4");
        assert_eq!(map, LabelMap::CleanLabel { target: 2 });
        assert!(!map.tells(2));
        assert!(map.tells(1));
        assert!(LabelMap::clean_label(4, 4).is_err());
    }

    #[test]
    fn settings_are_written_as_in_the_bench() {
        let rule: LabelRule = serde_json::from_str("\"all2all\"").expect("a documented spelling");
        assert_eq!(rule, LabelRule::All2All);
        assert_eq!(
            serde_json::to_string(&LabelRule::All2One).expect("a unit variant"),
            "\"all2one\""
        );
    }
}
