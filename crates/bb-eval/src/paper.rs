//! Published numbers, to stand beside ours.
//!
//! The numbers are facts typed from the paper into `docs/papers/<paper>/table<N>.csv`, and compiled in so that a table
//! needs no other file.
//! They are compared only where the task is the same (dataset and architecture); where width, poisoning, training or
//! the defense differ, the table shows them in parentheses and says what differs.
//!
//! A paper prints few of its settings. The committed recipes follow the code that the papers ran, and say where they do
//! not, so what the paper does not print is compared with the recipe.
use std::collections::BTreeSet;

use crate::table::COLUMNS;

/// Percentages as printed, in the order of [`COLUMNS`]; `None` where the paper prints none.
pub type Printed = [Option<f64>; COLUMNS.len()];

/// What a cell was made with, as far as the paper states it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Facts {
    /// Dataset id.
    pub dataset: String,
    /// Architecture id without the width.
    pub arch: String,
    /// Channels of the first stage.
    pub width: usize,
    /// How convolutions multiplied in training.
    pub precision: String,
    /// Share of poisoned training images.
    pub ratio: Option<f64>,
    /// How labels are changed, e.g. `all2one`; nothing for a clean-label attack, which has no such setting.
    pub label: Option<String>,
    /// Epochs of training.
    pub epochs: Option<u64>,
    /// Images of the training set, if it was cut down.
    pub train_limit: Option<u64>,
    /// Images of the test set, if it was cut down.
    pub test_limit: Option<u64>,
    /// The other settings that are not those of the method's recipe for the dataset, by key; `None` if that is unknown.
    pub unlike_recipe: Option<Vec<String>>,
}

/// What a defense worked with, as far as the paper states it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RepairFacts {
    /// How convolutions multiplied while networks were trained.
    pub precision: String,
    /// Share of the training images that the defender has; nothing for a data-free method.
    pub clean_ratio: Option<f64>,
    /// See [`Facts::unlike_recipe`].
    pub unlike_recipe: Option<Vec<String>>,
}

/// One table of one paper.
#[derive(Debug, Clone)]
pub struct Paper {
    /// A short name, e.g. `TSBD Table 1`.
    pub short: String,
    /// Authors, title, place.
    pub citation: String,
    facts: Facts,
    repair: RepairFacts,
    rows: Vec<(String, String, Printed)>,
}

impl Paper {
    /// Table 1 of the TSBD paper: CIFAR-10, `PreActResNet18`, 8 attacks and 9 defenses.
    pub fn tsbd_table1() -> Self {
        Self {
            short: "TSBD Table 1".into(),
            citation: "Lin et al., NeurIPS 2024, arXiv 2405.20291, Table 1".into(),
            facts: Facts {
                dataset: "cifar10".into(),
                arch: "preactresnet18".into(),
                width: 64,
                precision: PYTORCHS_OWN.into(),
                ratio: Some(0.1),
                label: Some("all2one".into()),
                epochs: Some(100),
                train_limit: None,
                test_limit: None,
                unlike_recipe: Some(Vec::new()),
            },
            repair: RepairFacts {
                precision: PYTORCHS_OWN.into(),
                clean_ratio: Some(0.05),
                unlike_recipe: Some(Vec::new()),
            },
            rows: read(include_str!("../../../docs/papers/tsbd/table1.csv")),
        }
    }

    /// Whether dataset and architecture agree, without which the numbers say nothing about ours.
    pub fn same_task(&self, ours: &Facts) -> bool {
        (&self.facts.dataset, &self.facts.arch) == (&ours.dataset, &ours.arch)
    }

    /// What differs between our setting of an attack and the paper's, in words; empty if nothing does.
    pub fn differences(&self, ours: &Facts) -> Vec<String> {
        let theirs = &self.facts;
        let mut found = Vec::new();
        let mut differ =
            |what: &str, ours: &str, theirs: &str| found.extend(unequal(what, ours, theirs));
        differ("dataset", &ours.dataset, &theirs.dataset);
        differ("network", &ours.arch, &theirs.arch);
        differ("width", &ours.width.to_string(), &theirs.width.to_string());
        found.extend(unlike_precision(&ours.precision, &theirs.precision));
        let mut differ =
            |what: &str, ours: &str, theirs: &str| found.extend(unequal(what, ours, theirs));
        differ("poisoning ratio", &known(ours.ratio), &known(theirs.ratio));
        // An attack without this setting leaves no choice of labels, neither to us nor to the paper.
        if ours.label.is_some() {
            let labels = |facts: &Facts| known(facts.label.as_ref());
            differ("labels", &labels(ours), &labels(theirs));
        }
        differ(
            "training epochs",
            &known(ours.epochs),
            &known(theirs.epochs),
        );
        differ(
            "training images",
            &all(ours.train_limit),
            &all(theirs.train_limit),
        );
        differ(
            "test images",
            &all(ours.test_limit),
            &all(theirs.test_limit),
        );
        found.extend(unlike(ours.unlike_recipe.as_deref()));
        found
    }

    /// What differs between our setting of a defense and the paper's, in words; empty if nothing does.
    pub fn repair_differences(&self, ours: &RepairFacts) -> Vec<String> {
        let theirs = &self.repair;
        let mut found = Vec::new();
        found.extend(unlike_precision(&ours.precision, &theirs.precision));
        // A method without data has no share of them, neither ours nor the paper's.
        if ours.clean_ratio.is_some() {
            let (ours, theirs) = (known(ours.clean_ratio), known(theirs.clean_ratio));
            found.extend(unequal("share of clean images", &ours, &theirs));
        }
        found.extend(unlike(ours.unlike_recipe.as_deref()));
        found
    }

    /// The printed numbers of an attack (or `average`) with a defense (empty for none); names are method ids.
    pub fn find(&self, attack: &str, defense: &str) -> Option<Printed> {
        let key = (canonical(attack), canonical(defense));
        self.rows
            .iter()
            .find(|(a, d, _)| (a, d) == (&key.0, &key.1))
            .map(|(.., values)| *values)
    }

    /// Whether the paper has this attack.
    pub fn has(&self, attack: &str) -> bool {
        self.find(attack, "").is_some()
    }

    /// Whether these are exactly the attacks of the paper's table.
    pub fn is_all<'a>(&self, attacks: impl Iterator<Item = &'a str>) -> bool {
        let ours: Vec<String> = attacks.map(canonical).collect();
        let unique: BTreeSet<&str> = ours.iter().map(String::as_str).collect();
        let theirs: BTreeSet<&str> = self
            .rows
            .iter()
            .map(|(attack, ..)| attack.as_str())
            .filter(|a| *a != "average")
            .collect();
        unique.len() == ours.len() && unique == theirs
    }
}

/// `width 16 instead of 64`, if they differ.
fn unequal(what: &str, ours: &str, theirs: &str) -> Option<String> {
    (ours != theirs).then(|| format!("{what} {ours} instead of {theirs}"))
}

/// What a paper that names no precision ran: PyTorch multiplies convolutions in TF32 where its GPU can, unless told not to.
const PYTORCHS_OWN: &str = "f32 or tf32";

/// [`unequal`], where the paper leaves several open.
fn unlike_precision(ours: &str, theirs: &str) -> Option<String> {
    let fits = theirs.split(" or ").any(|one| one == ours);
    unequal("precision", ours, if fits { ours } else { theirs })
}

/// Settings that a note names; of more it gives the number.
const NAMED: usize = 4;

/// What [`Facts::unlike_recipe`] says, in words.
fn unlike(keys: Option<&[String]>) -> Option<String> {
    let Some(keys) = keys else {
        return Some("settings unknown".to_owned());
    };
    if keys.is_empty() {
        return None;
    }
    let named = keys[..keys.len().min(NAMED)].join(", ");
    let more = match keys.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!("not as in the recipe: {named}{more}"))
}

fn known(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |v| v.to_string())
}

fn all(limit: Option<u64>) -> String {
    limit.map_or_else(|| "all".to_owned(), |v| v.to_string())
}

/// One spelling for `Input-aware`, `inputaware` and `input_aware`; "No Defense" is the empty name.
fn canonical(name: &str) -> String {
    let name: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect::<String>()
        .to_lowercase();
    match name.as_str() {
        "nodefense" => String::new(),
        // Two names of the same attack: the paper's and the bench's.
        "trojannn" => "trojan".to_owned(),
        _ => name,
    }
}

/// Reads `attack,defense,acc,asr,der`; the file is compiled in, so a mistake in it is a mistake in the program.
fn read(text: &str) -> Vec<(String, String, Printed)> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(
        lines.next(),
        Some("attack,defense,acc,asr,der"),
        "the header of a table of paper numbers"
    );
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let [attack, defense, acc, asr, der] = fields[..] else {
                panic!("five fields in `{line}`");
            };
            let number = |text: &str| {
                (!text.is_empty()).then(|| {
                    text.parse()
                        .unwrap_or_else(|_| panic!("a number in `{line}`"))
                })
            };
            (
                canonical(attack),
                canonical(defense),
                [number(acc), number(asr), None, number(der)],
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use bb_core::metrics::{Ratio, Scores, der};

    use super::*;

    #[test]
    fn the_table_is_whole_and_found_by_our_names() {
        let paper = Paper::tsbd_table1();
        assert_eq!(
            paper.rows.len(),
            90,
            "8 attacks and the average, 10 columns"
        );
        for (attack, defense, expect) in [
            ("badnets", "", [Some(91.32), Some(95.03), None, None]),
            (
                "inputaware",
                "ibau",
                [Some(89.17), Some(27.08), None, Some(84.84)],
            ),
            (
                "trojannn",
                "tsbd",
                [Some(91.76), Some(5.06), None, Some(96.64)],
            ),
            (
                "average",
                "tsbd",
                [Some(91.70), Some(2.18), None, Some(97.09)],
            ),
        ] {
            assert_eq!(
                paper.find(attack, defense),
                Some(expect),
                "{attack} {defense}"
            );
        }
        assert_eq!(paper.find("badnets", "otbr"), None);
        assert!(
            paper.is_all(
                [
                    "badnets",
                    "blended",
                    "inputaware",
                    "lf",
                    "sig",
                    "ssba",
                    "trojannn",
                    "wanet"
                ]
                .into_iter()
            )
        );
        assert!(!paper.is_all(["badnets", "blended"].into_iter()));
    }

    /// The printed DER follows from the printed ACC and ASR, but for one cell that the paper misprints.
    #[test]
    fn printed_der_follows_our_formula() {
        let paper = Paper::tsbd_table1();
        let scores = |p: &Printed| {
            let ratio = |v: Option<f64>| Ratio {
                hits: (v.expect("printed") * 100.0).round() as u64,
                total: 10_000,
            };
            Scores {
                acc: ratio(p[0]),
                asr: ratio(p[1]),
                ra: Ratio {
                    hits: 0,
                    total: 10_000,
                },
            }
        };
        let mut off = Vec::new();
        for (attack, defense, values) in &paper.rows {
            if attack == "average" || defense.is_empty() {
                continue;
            }
            let before = paper
                .find(attack, "")
                .expect("every attack has an undefended row");
            let ours = der(&scores(&before), &scores(values)).expect("nothing is empty") * 100.0;
            if (ours - values[3].expect("printed")).abs() > 0.0051 {
                off.push((
                    attack.as_str(),
                    defense.as_str(),
                    (ours * 100.0).round() / 100.0,
                ));
            }
        }
        assert_eq!(off, [("badnets", "tsbd", 96.56)]);
    }

    #[test]
    fn the_average_is_the_mean_of_the_rows() {
        let paper = Paper::tsbd_table1();
        for (attack, defense, average) in
            paper.rows.iter().filter(|(attack, ..)| attack == "average")
        {
            for i in [0, 1, 3] {
                let Some(printed) = average[i] else { continue };
                let rows: Vec<f64> = paper
                    .rows
                    .iter()
                    .filter(|(a, d, _)| a != attack && d == defense)
                    .filter_map(|(.., values)| values[i])
                    .collect();
                let mean = rows.iter().sum::<f64>() / 8.0;
                assert!(
                    (mean - printed).abs() < 0.01,
                    "{defense} {i}: {mean} {printed}"
                );
            }
        }
    }

    /// A cell with the facts of a paper's.
    fn as_printed(paper: &Paper) -> Facts {
        Facts {
            precision: "f32".into(),
            ..paper.facts.clone()
        }
    }

    #[test]
    fn differences_are_named() {
        let paper = Paper::tsbd_table1();
        let mut ours = as_printed(&paper);
        assert!(paper.differences(&ours).is_empty());
        ours.precision = "tf32".into();
        assert!(
            paper.differences(&ours).is_empty(),
            "PyTorch may have used it"
        );
        ours.width = 16;
        ours.precision = "bf16".into();
        ours.epochs = Some(20);
        ours.train_limit = Some(1000);
        assert_eq!(
            paper.differences(&ours),
            [
                "width 16 instead of 64",
                "precision bf16 instead of f32 or tf32",
                "training epochs 20 instead of 100",
                "training images 1000 instead of all"
            ]
        );
        assert!(paper.same_task(&ours));
        ours = as_printed(&paper);
        ours.label = None;
        assert!(paper.differences(&ours).is_empty(), "a clean-label attack");
        ours.dataset = "gtsrb".into();
        assert!(!paper.same_task(&ours));
    }

    #[test]
    fn settings_that_are_not_the_recipes_are_named_up_to_four() {
        let paper = Paper::tsbd_table1();
        let said = |keys: Option<&[&str]>| {
            let keys = keys.map(|keys| keys.iter().map(|&key| key.to_owned()).collect());
            let facts = Facts {
                unlike_recipe: keys,
                ..as_printed(&paper)
            };
            paper.differences(&facts)
        };
        assert_eq!(said(Some(&[])), [""; 0]);
        assert_eq!(
            said(Some(&["train.lr"])),
            ["not as in the recipe: train.lr"]
        );
        assert_eq!(
            said(Some(&["a", "b", "c", "d"])),
            ["not as in the recipe: a, b, c, d"]
        );
        assert_eq!(
            said(Some(&["a", "b", "c", "d", "e", "f"])),
            ["not as in the recipe: a, b, c, d and 2 more"]
        );
        assert_eq!(said(None), ["settings unknown"]);
    }

    #[test]
    fn differences_of_a_defense_are_named() {
        let paper = Paper::tsbd_table1();
        let mut ours = RepairFacts {
            precision: "tf32".into(),
            ..paper.repair.clone()
        };
        assert_eq!(paper.repair_differences(&ours), [""; 0]);
        ours.precision = "bf16".into();
        ours.clean_ratio = Some(0.01);
        ours.unlike_recipe = Some(vec!["finetune.epochs".into()]);
        assert_eq!(
            paper.repair_differences(&ours),
            [
                "precision bf16 instead of f32 or tf32",
                "share of clean images 0.01 instead of 0.05",
                "not as in the recipe: finetune.epochs"
            ]
        );
        let ours = RepairFacts {
            precision: "f32".into(),
            ..paper.repair.clone()
        };
        let data_free = RepairFacts {
            clean_ratio: None,
            ..ours.clone()
        };
        assert_eq!(paper.repair_differences(&data_free), [""; 0]);
        let unknown = RepairFacts {
            unlike_recipe: None,
            ..ours
        };
        assert_eq!(paper.repair_differences(&unknown), ["settings unknown"]);
    }
}
