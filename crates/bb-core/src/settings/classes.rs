//! Settings that stand for a class, by its number or by its name.
//!
//! A number is always a number, as in every recipe and record; a name is a string, so that of a folder that is called `2`
//! is written `"2"`. Names are replaced by numbers as soon as the names of the data are known, before anything follows
//! from the settings: how a class was given changes no cell.

use serde_json::{Map, Value};

use super::{Layers, SettingsError, origin_of};

/// Classes that were given by a name that is not known, as (setting, name).
pub type Unnumbered = Vec<(&'static str, String)>;

impl Layers {
    /// The same, with settings (dotted keys) that take the name of a class as well as its number.
    ///
    /// Those that are no settings here are passed over, since not every method has them all.
    #[must_use]
    pub fn with_classes(mut self, keys: &[&'static str]) -> Self {
        let known = keys
            .iter()
            .filter(|key| leaf(&mut self.tree, key).is_some());
        self.classes = known.copied().collect();
        self
    }

    /// The same with the number of each class that was given by one of `names`, which are pairs of name and number, and
    /// what was given by another name, as (key, name), with 0 in its place.
    ///
    /// # Errors
    /// If classes of different numbers have the name.
    pub fn numbered(
        mut self,
        names: &[(&str, usize)],
    ) -> Result<(Self, Unnumbered), SettingsError> {
        let mut left = Vec::new();
        for key in self.classes.clone() {
            let Some(value) = leaf(&mut self.tree, key) else {
                continue;
            };
            let Value::String(name) = value else { continue };
            let name = std::mem::take(name);
            let mut found = names.iter().filter(|(known, _)| *known == name);
            let number = found.next().map(|&(_, number)| number);
            *value = Value::from(number.unwrap_or_default());
            match number {
                None => left.push((key, name)),
                Some(number) => {
                    if let Some(&(_, other)) = found.find(|(_, other)| *other != number) {
                        let expected = format!(
                            "the number of a class, since {number} and {other} are both called so"
                        );
                        let origin = origin_of(&self.origins, key);
                        return Err(SettingsError::value(key, name, expected).at(origin));
                    }
                }
            }
        }
        Ok((self, left))
    }

    /// The error that no class of `known` is called `name`.
    pub fn unknown_class(&self, key: &str, name: &str, known: &[&str]) -> SettingsError {
        SettingsError::UnknownClass {
            key: key.to_owned(),
            name: name.to_owned(),
            origin: origin_of(&self.origins, key),
            known: known.iter().map(ToString::to_string).collect(),
        }
    }

    /// The classes that were given by their number, as (key, number).
    pub fn class_numbers(&self) -> Vec<(&'static str, u64)> {
        let mut tree = self.tree.clone();
        let number = |&key: &&'static str| Some((key, leaf(&mut tree, key)?.as_u64()?));
        self.classes.iter().filter_map(number).collect()
    }
}

/// The value at a dotted key.
fn leaf<'a>(tree: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Value> {
    match key.split_once('.') {
        None => tree.get_mut(key),
        Some((table, rest)) => leaf(tree.get_mut(table)?.as_object_mut()?, rest),
    }
}
