//! A class with its name.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Dataset;
use crate::poison::PoisonSet;

/// A class of a dataset, for logs and results. Displayed as ``2 (`10`)``, or without a name that is the number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedClass {
    /// Its number, from 0.
    pub class: u32,
    /// Its name in the data.
    pub name: String,
}

impl fmt::Display for NamedClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { class, name } = self;
        if *name == class.to_string() {
            write!(f, "{class}")
        } else {
            write!(f, "{class} (`{name}`)")
        }
    }
}

impl Dataset {
    /// The class of this number, if there is one.
    pub fn class(&self, class: u32) -> Option<NamedClass> {
        let name = self.class_names.get(class as usize)?.clone();
        Some(NamedClass { class, name })
    }

    /// The class that poisoned images are to be given, where all are to be given the same.
    pub fn target_of(&self, poisoned: &PoisonSet) -> Option<NamedClass> {
        let (&first, others) = poisoned.labels.split_first()?;
        let same = others.iter().all(|&label| label == first);
        self.class(first).filter(|_| same)
    }

    /// The names that settings may use, with the numbers: those of the data and, where the classes of the dataset are
    /// known, the official ones, which have the same order.
    pub fn class_numbers(&self) -> Vec<(&str, usize)> {
        let own = self.class_names.iter().map(String::as_str).zip(0..);
        let mut numbers: Vec<(&str, usize)> = own.collect();
        let official = super::known_classes(self.spec.id).unwrap_or_default();
        for (name, number) in official.iter().copied().zip(0..) {
            if !self.class_names.iter().any(|own| own == name) {
                numbers.push((name, number));
            }
        }
        numbers
    }
}
