//! The printed numbers of a table.
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bb_zoo::torch::pickle::short;

use crate::table::COLUMNS;

/// Percentages as printed, in the order of [`COLUMNS`]; `None` where the paper prints none.
pub type Printed = [Option<f64>; COLUMNS.len()];

/// The name of the row over all attacks.
pub(super) const AVERAGE: &str = "average";

/// A file of printed numbers that cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{found}, expected {expected}\n  in {}, line {line}", path.display())]
pub struct ValuesError {
    /// The file.
    pub path: PathBuf,
    /// Line, counted from 1.
    pub line: usize,
    /// What is wrong.
    pub found: String,
    /// What would be accepted.
    pub expected: &'static str,
}

/// One attack with one defense.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PrintedRow {
    pub(super) attack: String,
    pub(super) defense: String,
    /// Both names as printed, fit for a terminal.
    pub(super) printed: [String; 2],
    pub(super) values: Printed,
}

/// One spelling for `Input-aware`, `inputaware` and `input_aware`; "No Defense" is the empty name.
pub(super) fn canonical(name: &str) -> String {
    let name: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect::<String>()
        .to_lowercase();
    match name.as_str() {
        "nodefense" => String::new(),
        // Names of the same attack: the papers' and the benchmark's.
        "trojannn" => "trojan".to_owned(),
        "badnet" | "badnetsa2o" => "badnets".to_owned(),
        "lowfrequency" => "lf".to_owned(),
        _ => name,
    }
}

/// Reads a line with the names of the columns, `attack` and `defense` before metrics, and the rows below it.
///
/// Lines that begin with `#` are comments, an empty field is a number that is not printed.
pub(super) fn read(path: &Path, text: &str) -> Result<Vec<PrintedRow>, ValuesError> {
    let wrong = |line: usize, found: String, expected| ValuesError {
        path: path.to_owned(),
        line,
        found,
        expected,
    };
    let mut lines = text
        .lines()
        .enumerate()
        .map(|(i, text)| (i + 1, text))
        .filter(|(_, text)| !text.starts_with('#') && !text.trim().is_empty());
    let header = "a line `attack,defense` and then some of `acc,asr,ra,der`";
    let (at, names) = lines.next().ok_or_else(|| {
        wrong(
            1,
            "no line with the names of the columns".to_owned(),
            header,
        )
    })?;
    let metrics = names
        .strip_prefix("attack,defense,")
        .and_then(|names| {
            let place = |name| COLUMNS.iter().position(|column| *column == name);
            names.split(',').map(place).collect::<Option<Vec<usize>>>()
        })
        .ok_or_else(|| wrong(at, format!("the columns are `{}`", short(names)), header))?;
    let mut rows: Vec<PrintedRow> = Vec::new();
    // A file of a megabyte has a hundred thousand rows.
    let mut seen = BTreeSet::new();
    for (at, line) in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let line = short(line);
        let (names, numbers) = fields.split_at(fields.len().min(2));
        let [attack, defense] = names else {
            return Err(wrong(at, format!("`{line}`"), "an attack and a defense"));
        };
        if numbers.len() != metrics.len() {
            let found = format!("`{line}` has {} numbers", numbers.len());
            return Err(wrong(at, found, "as many as there are columns"));
        }
        let mut values: Printed = [None; COLUMNS.len()];
        for (place, text) in metrics.iter().zip(numbers) {
            values[*place] = match text.trim() {
                "" => None,
                text => Some(
                    text.parse()
                        .ok()
                        .filter(|value| (0.0..=100.0).contains(value))
                        .ok_or_else(|| wrong(at, format!("`{}`", short(text)), "a percentage"))?,
                ),
            };
        }
        let printed = [short(attack.trim()), short(defense.trim())];
        let (attack, defense) = (canonical(attack), canonical(defense));
        if !seen.insert((attack.clone(), defense.clone())) {
            return Err(wrong(
                at,
                format!("`{line}` is there twice"),
                "one row for each pair",
            ));
        }
        rows.push(PrintedRow {
            attack,
            defense,
            printed,
            values,
        });
    }
    Ok(rows)
}
