//! What was probably meant.

use serde_json::{Map, Value};

/// Below this likeness (1 is equal) a suggestion is more confusing than none.
const ALIKE: f64 = 0.6;
/// Longer names, in bytes, are like nothing: to compare them costs the product of both lengths.
const LONGEST: usize = 200;

/// How alike two names are, from 0 to 1; an abbreviation and what it stands for are close to equal.
fn likeness(a: &str, b: &str) -> f64 {
    let stands_for = |short: &str, long: &str| !short.is_empty() && short == initials(long);
    if stands_for(a, b) || stands_for(b, a) {
        return 0.95;
    }
    likeness_of_letters(a, b)
}

fn likeness_of_letters(a: &str, b: &str) -> f64 {
    if a.len().max(b.len()) > LONGEST {
        return 0.0;
    }
    strsim::normalized_damerau_levenshtein(a, b)
}

/// `lr` for `learning_rate`; nothing for a single word, of which every other word is no abbreviation.
fn initials(name: &str) -> String {
    let words: Vec<_> = name
        .split(['_', '-'])
        .filter(|word| !word.is_empty())
        .collect();
    if words.len() < 2 {
        return String::new();
    }
    words
        .iter()
        .filter_map(|word| word.chars().next())
        .collect()
}

/// The known name that `name` was probably meant to be; of equally good ones the first.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    best(
        known
            .into_iter()
            .map(|known| (likeness(&name, &known.to_lowercase()), known)),
    )
}

/// The hint that names the known name that `name` was probably meant to be.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(name, known).map(|nearest| format!("did you mean `{nearest}`?"))
}

/// The known setting that the dotted `key` was probably meant to be.
///
/// Either the whole key is close to it, or its last part is: somewhere else counts, the same table counts more.
pub(super) fn nearest_setting(key: &str, settings: &Map<String, Value>) -> Option<String> {
    let (table, name) = split(key);
    let mut known = Vec::new();
    keys(settings, "", &mut known);
    best(known.into_iter().map(|known| {
        let (known_table, known_name) = split(&known);
        let here = if known_table == table { 0.1 } else { 0.0 };
        let whole = likeness_of_letters(key, &known);
        // The whole key of a short name in a long table is always close, so it has to differ less.
        let whole = if known_table == table { 0.0 } else { whole };
        let score = (likeness(name, known_name) + here).max(whole);
        (
            if likeness(name, known_name).max(whole) < ALIKE {
                0.0
            } else {
                score
            },
            known,
        )
    }))
}

/// The best of those that are good enough, the first of equals.
fn best<T>(scored: impl Iterator<Item = (f64, T)>) -> Option<T> {
    let mut best: Option<(f64, T)> = None;
    for (score, known) in scored {
        if score >= ALIKE && best.as_ref().is_none_or(|(highest, _)| score > *highest) {
            best = Some((score, known));
        }
    }
    best.map(|(_, known)| known)
}

/// The table and the name of a dotted key.
fn split(key: &str) -> (&str, &str) {
    key.rsplit_once('.').unwrap_or(("", key))
}

/// The dotted keys of all settings and tables.
fn keys(table: &Map<String, Value>, prefix: &str, into: &mut Vec<String>) {
    for (name, value) in table {
        let key = super::write::join(prefix, name);
        into.push(key.clone());
        if let Value::Object(below) = value {
            keys(below, &key, into);
        }
    }
}

/// The names in backticks, with commas; not more of them than a reader takes in.
pub(super) fn list(names: &[String]) -> String {
    const MOST: usize = 12;
    let shown: Vec<_> = names
        .iter()
        .take(MOST)
        .map(|name| format!("`{name}`"))
        .collect();
    let rest = if names.len() > MOST {
        format!(" and {} more", names.len() - MOST)
    } else {
        String::new()
    };
    shown.join(", ") + &rest
}
