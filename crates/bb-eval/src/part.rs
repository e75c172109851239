//! Which cells of a grid one run computes.
use std::str::FromStr;

use bb_core::cli::{Coded, exit};
use bb_core::settings::did_you_mean;

use crate::plan::Step;
use crate::prepare::Prepared;

/// Names that are no attack and no defense of a grid.
#[derive(Debug, thiserror::Error)]
#[error("the grid has no `{name}`, expected one of `{}`", known.join("`, `"))]
pub struct PartError {
    /// The name that was given.
    name: String,
    /// What the table prints for its attacks and defenses.
    known: Vec<String>,
}

impl Coded for PartError {
    fn exit_code(&self) -> u8 {
        exit::USAGE
    }

    fn hint(&self) -> Option<String> {
        did_you_mean(&self.name, self.known.iter().map(String::as_str))
    }
}

/// A part of a grid's cells; all of them by default.
#[derive(Debug, Clone, Default)]
pub struct Part {
    /// Attacks and defenses by label or method, case aside: only cells of one of these attacks, if some are named, and of
    /// one of these defenses.
    pub only: Vec<String>,
    /// Of what is left every `n`-th attacked model with its repairs.
    pub shard: Option<Shard>,
}

/// One of `n` parts that have no cell in common and together are the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which one, from 1.
    i: usize,
    /// How many there are.
    n: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/');
        let numbers = numbers.and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((i, n)) if (1..=n).contains(&i) => Ok(Self { i, n }),
            _ => Err("expected I/N with I from 1 to N, such as 1/4".to_owned()),
        }
    }
}

impl Part {
    /// For each step of a plan, whether it belongs to the part.
    ///
    /// # Errors
    /// For a name that the grid does not have.
    pub fn of(&self, prepared: &Prepared, steps: &[Step]) -> Result<Vec<bool>, PartError> {
        let attacks = prepared.attacks.iter();
        let attacks: Vec<[&str; 2]> = attacks.map(|a| [a.label.as_str(), a.method()]).collect();
        let defenses = prepared.defenses.iter();
        let defenses: Vec<[&str; 2]> = defenses
            .map(|d| [d.label.as_str(), d.defense.info().id])
            .collect();
        let is = |name: &str, names: &[&str; 2]| {
            let name = name.to_lowercase();
            names.iter().any(|known| known.to_lowercase() == name)
        };
        for name in &self.only {
            if !attacks.iter().chain(&defenses).any(|names| is(name, names)) {
                let known = attacks.iter().chain(&defenses);
                return Err(PartError {
                    name: name.clone(),
                    known: known.map(|names| names[0].to_owned()).collect(),
                });
            }
        }
        let named = |all: &[[&str; 2]]| -> Vec<bool> {
            let named = |names| self.only.iter().any(|name| is(name, names));
            all.iter().map(named).collect()
        };
        let (attacks, defenses) = (named(&attacks), named(&defenses));
        let any = |all: &[bool]| all.contains(&true);
        let wanted = |step: &Step| {
            let attack = !any(&attacks) || attacks[step.attack];
            // Where only defenses are named, attacks are computed as they are needed.
            let defense = !any(&defenses) || step.defense.is_some_and(|d| defenses[d]);
            attack && defense
        };
        // An attack and its repairs stay together, so that no two parts train the same model.
        let mut models: Vec<(usize, u64)> = Vec::new();
        let mut asked = Vec::new();
        for step in steps {
            let mut here = wanted(step);
            if let Some(Shard { i, n }) = self.shard.filter(|_| here) {
                let model = (step.attack, step.seed);
                let known = models.iter().position(|known| *known == model);
                let number = known.unwrap_or_else(|| {
                    models.push(model);
                    models.len() - 1
                });
                here = number % n == i - 1;
            }
            asked.push(here);
        }
        Ok(asked)
    }
}
