//! Where in a checkpoint state dictionaries lie.
//!
//! People save them by themselves, or below a key of their choice beside counters, optimizers and options.

use std::collections::{HashSet, VecDeque};

use super::file::{Checkpoint, TorchError};
use super::pickle::{Object, Tensor, Value, short};

/// Dictionaries in one another that are looked into.
const LEVELS: usize = 4;
/// Longest key that is looked behind; nobody types a longer one.
const LONGEST_KEY: usize = 200;
/// Most places that are told.
const MOST_PLACES: usize = 1000;

/// A dictionary that holds tensors and nothing else.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// Dotted keys that lead to it, empty for the whole file.
    pub key: String,
    /// The dictionary.
    pub value: &'a Value,
    /// Names and tensors in the order of the file.
    pub tensors: Vec<(&'a str, &'a Tensor)>,
}

/// All dictionaries of tensors below keys that are texts, the upper ones first. One that lies at several places is
/// told once.
pub fn places(checkpoint: &Checkpoint) -> Vec<Place<'_>> {
    let pickle = checkpoint.pickle();
    let mut found = Vec::new();
    // Each once, however often it is referred to.
    let mut seen = HashSet::new();
    let mut waiting = VecDeque::from([(String::new(), &pickle.root, 0)]);
    while let Some((key, value, level)) = waiting.pop_front() {
        let (Value::Object(i), Some(entries)) = (value, pickle.dict(value)) else {
            continue;
        };
        if !seen.insert(*i) {
            continue;
        }
        let is_empty = entries.is_empty();
        if !is_empty && let Ok(place) = place(checkpoint, &key, value) {
            found.push(place);
            if found.len() == MOST_PLACES {
                break;
            }
            continue;
        }
        if level == LEVELS {
            continue;
        }
        for (name, value) in entries {
            if let Value::Text(name) = name
                && name.len() <= LONGEST_KEY
                && pickle.dict(value).is_some()
            {
                let key = if key.is_empty() {
                    name.to_string()
                } else {
                    format!("{key}.{name}")
                };
                waiting.push_back((key, value, level + 1));
            }
        }
    }
    found
}

/// The dictionary of tensors that a value below `key` is.
///
/// # Errors
/// [`TorchError::Field`] for the first value in it that is no tensor, or has no name.
pub fn place<'a>(
    checkpoint: &'a Checkpoint,
    key: &str,
    value: &'a Value,
) -> Result<Place<'a>, TorchError> {
    let pickle = checkpoint.pickle();
    let entries = pickle.dict(value);
    let entries = entries.ok_or_else(|| checkpoint.wrong(key, value, "a dictionary"))?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, value) in entries {
        let Value::Text(name) = name else {
            return Err(checkpoint.wrong(key, name, "names of tensors as keys"));
        };
        let Some(Object::Tensor(tensor)) = pickle.object(value) else {
            let dot = if key.is_empty() { "" } else { "." };
            let field = format!("{key}{dot}{}", short(name));
            return Err(checkpoint.wrong(&field, value, "a tensor"));
        };
        tensors.push((&**name, &**tensor));
    }
    Ok(Place {
        key: key.to_owned(),
        value,
        tensors,
    })
}

/// The value that dotted keys lead to. Where a key has dots itself, the longest one that fits is followed.
pub fn at<'a>(checkpoint: &'a Checkpoint, key: &str) -> Option<&'a Value> {
    let pickle = checkpoint.pickle();
    let mut value = &pickle.root;
    let mut rest = key;
    loop {
        // What is left behind a key: nothing, or a dot and more keys.
        let behind = |name: &Value| {
            let rest = match name {
                Value::Text(name) => rest.strip_prefix(&**name)?,
                Value::Int(n) => rest.strip_prefix(n.to_string().as_str())?,
                _ => return None,
            };
            (rest.is_empty() || rest.starts_with('.')).then_some(rest)
        };
        let entries = pickle.dict(value)?;
        let fitting = entries
            .iter()
            .filter_map(|(name, value)| Some((behind(name)?, value)));
        // Of equal keys the last one, as in Python.
        let (left, found) =
            fitting.min_by(|a, b| a.0.len().cmp(&b.0.len()).then(std::cmp::Ordering::Greater))?;
        let Some(left) = left.strip_prefix('.') else {
            return Some(found);
        };
        (value, rest) = (found, left);
    }
}
