//! The comparison table: one model, and six writers that only print it.
//!
//! The decision this module embodies: every number is computed once, here, from numerators and denominators.
//! The writers ([`text`], [`markdown`], [`latex`], [`html`], [`csv`], [`json`]) choose digits and markup and nothing else,
//! so they cannot disagree. [`View`] says which numbers the first four show, and how they are laid out.
//!
//! Rows of a table are the attacks, each with one row per defense; [`Layout::Wide`] puts the defenses side by side, and
//! [`Layout::Paper`] some of them at a time, as papers do.
//! Within one attack the best defended value of each metric is marked. Neither the undefended model nor an oracle row
//! (something was chosen on the poisoned test set) takes part in that.
//!
//! A number can look well and mean nothing, see [`Marks`]: a low ASR of a defense where the attack never worked, a high
//! DER of a model that was destroyed. Such rows carry a sign in every format, and none of them is best.
//! An attack that did not plant its backdoor, or whose model is at chance, is in no average, since that is so for all
//! defenses alike. A defense that destroyed one model stays in its average, which would otherwise be better for it; the
//! average carries the sign.
pub mod csv;
pub mod html;
pub mod json;
pub mod latex;
pub mod markdown;
mod sheet;
pub mod text;

use std::collections::{BTreeMap, BTreeSet};

use bb_core::cli::{Coded, exit};
use bb_core::data::NamedClass;
use bb_core::metrics::{self, Metric, Ratio, Scores, Summary};

use crate::paper::{Facts, Paper, Printed, RepairFacts};
pub(crate) use sheet::duration;
pub use sheet::{Layout, View};

/// The metrics of a table, in the order of its columns.
pub const COLUMNS: [&str; 4] = ["acc", "asr", "ra", "der"];

/// Number of metrics.
const N: usize = COLUMNS.len();

/// The description of column `i`: title, unit and which way is better.
///
/// # Panics
/// If `i` is not below the number of [`COLUMNS`].
pub fn metric(i: usize) -> &'static Metric {
    metrics::metric(COLUMNS[i]).expect("bb-core describes ACC, ASR, RA and DER")
}

/// A value of column `i` as it is shown, e.g. 95.03 for a fraction of 0.9503.
pub(crate) fn shown(i: usize, value: f64) -> f64 {
    metric(i).unit.shown(value)
}

/// What a row says about the model it measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The attacked model as it is.
    Undefended,
    /// A defense under its threat model.
    Defended,
    /// A defense with something chosen on the poisoned test set, which no defender has.
    Oracle,
}

impl Role {
    /// The word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undefended => "undefended",
            Self::Defended => "defended",
            Self::Oracle => "oracle",
        }
    }
}

/// The ASR under which an attack did not plant its backdoor, unless a grid says otherwise.
pub const DEFAULT_ASR_FLOOR: f64 = 0.5;
/// Sign at an attack that did not plant its backdoor.
pub const NOT_PLANTED: &str = "†";
/// Sign at a model at chance.
pub const AT_CHANCE: &str = "‡";
/// Sign at an average over attacks with different seeds.
pub const SEEDS_DIFFER: &str = "§";

/// What a reader must know of a row before comparing it with others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    /// The attack did not plant its backdoor: the ASR without a defense is below [`Input::asr_floor`].
    pub not_planted: bool,
    /// The model is at chance: its ACC is less than [`LEARNED`] of the way from guessing (one divided by the number of
    /// classes) to 1, or not significantly above guessing. An average is marked if one of its rows is.
    pub at_chance: bool,
    /// An average over attacks with different seeds.
    pub seeds_differ: bool,
}

impl Marks {
    /// The marks as words for programs.
    fn words(self, fewer_seeds: bool) -> Vec<&'static str> {
        let all = [
            (self.not_planted, "not_planted"),
            (self.at_chance, "at_chance"),
            (fewer_seeds, "fewer_seeds"),
            (self.seeds_differ, "seeds_differ"),
        ];
        let there = all.into_iter().filter(|(has, _)| *has);
        there.map(|(_, word)| word).collect()
    }

    fn any(self) -> bool {
        self.not_planted || self.at_chance || self.seeds_differ
    }
}

/// The least share of what there is to learn, beyond guessing, of a model that has learned something.
///
/// It lies above what a constant answer reaches where the classes are as unequal as those of GTSRB (6 % in the largest).
pub const LEARNED: f64 = 0.05;
/// Standard deviations above guessing that happen by chance once in a hundred times, one-sided.
const SIGNIFICANT: f64 = 2.326;

/// Whether this many hits among images of so many classes may come from guessing; see [`Marks::at_chance`].
fn is_at_chance(acc: Ratio, classes: usize) -> bool {
    let Some(value) = acc.value().filter(|_| classes > 1) else {
        return false;
    };
    let guess = 1.0 / classes as f64;
    let spread = (guess * (1.0 - guess) / acc.total as f64).sqrt();
    value <= guess + f64::max(LEARNED * (1.0 - guess), SIGNIFICANT * spread)
}

/// One attack of a table.
#[derive(Debug, Clone)]
pub struct AttackRow {
    /// Method id, by which the paper's row is found.
    pub method: String,
    /// What the table prints; unique within the table.
    pub label: String,
    /// What was trained, for the comparison with the paper's setting.
    pub facts: Facts,
    /// The class that poisoned images are to be given, where there is one and the cells say it.
    pub target: Option<NamedClass>,
    /// Its network, if that is another than the table's.
    pub arch: Option<String>,
}

/// One defense of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct DefenseColumn {
    /// Method id, by which the paper's column is found; empty for the undefended model.
    pub method: String,
    /// What the table prints; unique within the table.
    pub label: String,
    /// What kind of row this is.
    pub role: Role,
    /// What it worked with, for the comparison with the paper's setting; `None` for the undefended model.
    pub facts: Option<RepairFacts>,
}

/// What a table prints for the undefended model.
pub const UNDEFENDED: &str = "No defense";
/// What a table prints for the mean over its attacks.
pub const AVERAGE: &str = "Average";

/// What a table prints for the oracle beside the defense of this label.
pub fn oracle_label(defense: &str) -> String {
    format!("{defense} (oracle)")
}

impl DefenseColumn {
    /// The attacked model as it is.
    pub fn undefended() -> Self {
        Self {
            method: String::new(),
            label: UNDEFENDED.to_owned(),
            role: Role::Undefended,
            facts: None,
        }
    }

    /// What differs from the paper's setting; the undefended model has none of its own.
    fn differences(&self, paper: &Paper) -> Vec<String> {
        let facts = self.facts.as_ref();
        facts.map_or_else(Vec::new, |facts| paper.repair_differences(facts))
    }
}

/// What one cell measured.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Index of the attack.
    pub attack: usize,
    /// Index of the defense.
    pub defense: usize,
    /// The seed of the run.
    pub seed: u64,
    /// What was counted.
    pub scores: Scores,
    /// What was counted on the attacked model before the defense; DER needs it.
    pub before: Option<Scores>,
    /// How long the run took.
    pub seconds: Option<f64>,
    /// Most main memory that it had, in KiB.
    pub peak_kib: Option<u64>,
}

/// A cell that is there and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// Index of the attack.
    pub attack: usize,
    /// Index of the defense.
    pub defense: usize,
    /// The seed of the run.
    pub seed: u64,
    /// What is wrong with it.
    pub reason: String,
}

/// Everything a table is made of.
#[derive(Debug, Clone, Default)]
pub struct Input {
    /// What all cells have in common, e.g. `CIFAR-10, preactresnet18-w64`.
    pub title: String,
    /// Id of the dataset.
    pub dataset: String,
    /// Name of the network.
    pub arch: String,
    /// Digest of the data.
    pub data: String,
    /// The attacks, in the order of the rows.
    pub attacks: Vec<AttackRow>,
    /// The defenses, in the order of the columns.
    pub defenses: Vec<DefenseColumn>,
    /// The seeds that are expected of every pair.
    pub seeds: Vec<u64>,
    /// What was measured, at most one per attack, defense and seed.
    pub observations: Vec<Observation>,
    /// Expected cells that are there and cannot be used.
    pub damaged: Vec<Damage>,
    /// Expected cells whose last run failed for good.
    pub failed: Vec<Damage>,
    /// The paper to compare with, if there is one.
    pub paper: Option<Paper>,
    /// How many classes there are; without it no model is found to be at chance.
    pub classes: Option<usize>,
    /// The ASR, 0 to 1, under which an attack did not plant its backdoor.
    pub asr_floor: f64,
}

/// Which attacks and defenses of a table are shown, by method id or label; an empty list is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// The attacks.
    pub attacks: Vec<String>,
    /// The defenses; the attacked models are always there.
    pub defenses: Vec<String>,
}

/// A name that no attack, or no defense, of a table has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the table has no {kind} `{name}`, expected one of {known}")]
pub struct SelectionError {
    /// `attack` or `defense`.
    kind: &'static str,
    /// The name that was given.
    name: String,
    /// The names that there are.
    known: String,
}

impl Coded for SelectionError {
    fn exit_code(&self) -> u8 {
        exit::USAGE
    }
}

impl Input {
    /// Leaves out what is not selected, before anything is computed: averages and best values are of what is shown.
    ///
    /// # Errors
    /// If a name is none of the table's.
    pub fn select(&mut self, selection: &Selection) -> Result<(), SelectionError> {
        let attacks = self.attacks.iter();
        let names = attacks.map(|a| [a.method.as_str(), a.label.as_str()]);
        let attacks = kept("attack", &selection.attacks, &names.collect::<Vec<_>>())?;
        let (undefended, defenses): (Vec<_>, Vec<_>) = self
            .defenses
            .iter()
            .partition(|d| d.role == Role::Undefended);
        let names = defenses
            .iter()
            .map(|d| [d.method.as_str(), d.label.as_str()]);
        let wanted = kept("defense", &selection.defenses, &names.collect::<Vec<_>>())?;
        let wanted: BTreeSet<usize> = wanted.iter().map(|i| undefended.len() + i).collect();
        let defenses: Vec<usize> = (0..self.defenses.len())
            .filter(|i| *i < undefended.len() || wanted.contains(i))
            .collect();
        let place = |kept: &[usize], i: usize| kept.iter().position(|k| *k == i);
        self.observations = self
            .observations
            .drain(..)
            .filter_map(|o| {
                Some(Observation {
                    attack: place(&attacks, o.attack)?,
                    defense: place(&defenses, o.defense)?,
                    ..o
                })
            })
            .collect();
        for damage in [&mut self.damaged, &mut self.failed] {
            *damage = damage
                .drain(..)
                .filter_map(|d| {
                    Some(Damage {
                        attack: place(&attacks, d.attack)?,
                        defense: place(&defenses, d.defense)?,
                        ..d
                    })
                })
                .collect();
        }
        self.attacks = attacks.iter().map(|i| self.attacks[*i].clone()).collect();
        self.defenses = defenses.iter().map(|i| self.defenses[*i].clone()).collect();
        Ok(())
    }

    fn at_chance(&self, acc: Ratio) -> bool {
        self.classes.is_some_and(|n| is_at_chance(acc, n))
    }

    fn not_planted(&self, asr: f64) -> bool {
        asr < self.asr_floor
    }
}

/// The places of those that are wanted, each known by a method id and a label; all of them if none is named.
fn kept(
    kind: &'static str,
    wanted: &[String],
    known: &[[&str; 2]],
) -> Result<Vec<usize>, SelectionError> {
    let is = |name: &String, own: &[&str; 2]| own.iter().any(|own| own.eq_ignore_ascii_case(name));
    for name in wanted {
        if !known.iter().any(|own| is(name, own)) {
            let labels = known.iter().map(|[_, label]| format!("`{label}`"));
            let known = labels.collect::<Vec<_>>().join(", ");
            return Err(SelectionError {
                kind,
                name: name.clone(),
                known,
            });
        }
    }
    let chosen = |own: &[&str; 2]| wanted.is_empty() || wanted.iter().any(|name| is(name, own));
    let places = known.iter().enumerate().filter(|(_, own)| chosen(own));
    Ok(places.map(|(place, _)| place).collect())
}

/// The paper's numbers beside a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PaperRow {
    /// Percentages as printed, in the order of [`COLUMNS`].
    pub values: Printed,
    /// Whether nothing differs between the published setting and ours; if something does, the difference means little.
    pub same_setting: bool,
    /// Which of the values cannot be right; nothing is compared with them.
    pub broken: [bool; N],
    /// Of a model without a defense in the published setting: whether ACC and ASR are within the paper's tolerance.
    pub agrees: Option<bool>,
}

impl PaperRow {
    /// `agrees` or `differs`, where that can be said.
    fn verdict(&self) -> Option<&'static str> {
        let word = |agrees| if agrees { "agrees" } else { "differs" };
        self.agrees.map(word)
    }
}

/// One attack with one defense (or an average over attacks with one defense).
#[derive(Debug, Clone)]
pub struct Row {
    /// What the table prints for the defense.
    pub defense: String,
    /// What kind of row this is.
    pub role: Role,
    /// Mean over seeds in the order of [`COLUMNS`]; `None` where nothing was measured.
    pub values: [Option<Summary>; N],
    /// Which of the values are the best of the defended rows of this attack.
    pub best: [bool; N],
    /// Which of the values are the best of those after these.
    pub second: [bool; N],
    /// What to know before comparing the row.
    pub marks: Marks,
    /// Number of seeds that were expected, if there are fewer.
    pub expected: Option<usize>,
    /// The seeds of its runs; of an average those that all attacks have, none if they differ.
    pub seeds: Vec<u64>,
    /// What each seed measured, in the order of the seeds.
    pub cells: Vec<SeedCell>,
    /// The paper's numbers.
    pub paper: Option<PaperRow>,
    /// Mean run time in seconds.
    pub seconds: Option<f64>,
    /// Most main memory of a run, in KiB.
    pub peak_kib: Option<u64>,
}

impl Row {
    /// Ours minus the paper's, in percentage points, in the order of [`COLUMNS`].
    pub fn delta(&self) -> [Option<f64>; N] {
        std::array::from_fn(|i| {
            let paper = self.paper.filter(|paper| !paper.broken[i])?;
            Some(shown(i, self.values[i]?.mean) - paper.values[i]?)
        })
    }
}

/// What one seed measured.
#[derive(Debug, Clone)]
pub struct SeedCell {
    /// The seed.
    pub seed: u64,
    /// What was counted.
    pub scores: Scores,
    /// What was counted before the defense; `None` for the undefended model.
    pub before: Option<Scores>,
    /// Run time in seconds.
    pub seconds: Option<f64>,
    /// Most main memory of the run, in KiB.
    pub peak_kib: Option<u64>,
    /// What to know of this run alone.
    pub marks: Marks,
}

impl SeedCell {
    fn value(&self, i: usize) -> Option<f64> {
        metric(i).value(self.before.as_ref(), &self.scores)
    }

    /// Numerator and denominator of column `i`; nothing where no image was measured, and DER has none.
    pub fn ratio(&self, i: usize) -> Option<Ratio> {
        let Scores { acc, asr, ra } = self.scores;
        [Some(acc), Some(asr), Some(ra), None][i].filter(|ratio| ratio.total > 0)
    }
}

/// One attack with all its defenses.
#[derive(Debug, Clone)]
pub struct Block {
    /// What the table prints for the attack.
    pub attack: String,
    /// Whether this is the average over the attacks.
    pub average: bool,
    /// Whether it is known that no image was poisoned, so that this is no attack.
    pub clean: bool,
    /// The class that poisoned images are to be given, where there is one and it is known.
    pub target: Option<NamedClass>,
    /// Its network, if that is another than the table's.
    pub arch: Option<String>,
    /// What to know of the attacked model, and so of all its rows.
    pub marks: Marks,
    /// One row per defense, the same defenses in every block.
    pub rows: Vec<Row>,
}

impl Block {
    /// The marks of one of its rows, with those of the attack, as words for programs.
    fn words(&self, row: &Row) -> Vec<&'static str> {
        let marks = Marks {
            not_planted: self.marks.not_planted,
            ..row.marks
        };
        marks.words(row.expected.is_some())
    }
}

/// A finished table.
#[derive(Debug, Clone)]
pub struct Table {
    /// What all cells have in common.
    pub title: String,
    /// Id of the dataset.
    pub dataset: String,
    /// Name of the network.
    pub arch: String,
    /// Digest of the data.
    pub data: String,
    /// One block per attack, then the average.
    pub blocks: Vec<Block>,
    /// What was expected and is not there, one line each.
    pub missing: Vec<String>,
    /// What is there and not shown, one line each: `damaged: ...`, or a repair of a model that is elsewhere.
    pub left_out: Vec<String>,
    /// What a reader needs to know, one line each.
    pub notes: Vec<String>,
    /// The same for the comparison with the paper.
    pub paper_notes: Vec<String>,
    /// The paper's name, if it was compared with.
    pub paper: Option<String>,
}

impl Table {
    /// Computes the table.
    ///
    /// Of two observations with the same attack, defense and seed the first one counts.
    pub fn new(input: &Input) -> Self {
        let (mut missing, mut left_out) = (Vec::new(), Vec::new());
        let mut blocks: Vec<Block> = (0..input.attacks.len())
            .map(|attack| block(input, attack, &mut missing, &mut left_out))
            .collect();
        if attacks(&blocks).count() > 1 {
            let average = average(input, &blocks);
            blocks.push(average);
        }
        for block in blocks.iter_mut().filter(|block| !block.marks.any()) {
            mark_best(&mut block.rows);
        }
        let notes = notes(input, &blocks);
        let paper_notes = paper_notes(input, &blocks);
        let paper = input
            .paper
            .as_ref()
            .filter(|_| {
                blocks
                    .iter()
                    .flat_map(|b| &b.rows)
                    .any(|r| r.paper.is_some())
            })
            .map(|p| p.short.clone());
        let Input {
            title,
            dataset,
            arch,
            data,
            ..
        } = input.clone();
        Self {
            title,
            dataset,
            arch,
            data,
            blocks,
            missing,
            left_out,
            notes,
            paper_notes,
            paper,
        }
    }

    /// Whether any row stands beside numbers of a paper.
    pub fn has_paper(&self) -> bool {
        self.paper.is_some()
    }
}

fn block(
    input: &Input,
    attack: usize,
    missing: &mut Vec<String>,
    left_out: &mut Vec<String>,
) -> Block {
    let named = &input.attacks[attack];
    let attacked = attacked(input, attack);
    let rows: Vec<Row> = input
        .defenses
        .iter()
        .enumerate()
        .map(|(defense, column)| {
            let mut cells = BTreeMap::new();
            for o in input
                .observations
                .iter()
                .filter(|o| (o.attack, o.defense) == (attack, defense))
            {
                cells.entry(o.seed).or_insert_with(|| SeedCell {
                    seed: o.seed,
                    scores: o.scores,
                    before: o.before,
                    seconds: o.seconds,
                    peak_kib: o.peak_kib,
                    marks: Marks {
                        at_chance: input.at_chance(o.scores.acc),
                        not_planted: attacked
                            .get(&o.seed)
                            .is_some_and(|asr| input.not_planted(*asr)),
                        seeds_differ: false,
                    },
                });
            }
            let here = |d: &&Damage| (d.attack, d.defense) == (attack, defense);
            let mut unusable = BTreeSet::new();
            for (word, all) in [("failed", &input.failed), ("damaged", &input.damaged)] {
                for Damage { seed, reason, .. } in all.iter().filter(here) {
                    unusable.insert(*seed);
                    left_out.push(format!(
                        "{word}: {} / {}: seed {seed}: {reason}",
                        named.label, column.label
                    ));
                }
            }
            let lacking = |s: &&u64| !cells.contains_key(s);
            let expected = input
                .seeds
                .iter()
                .any(|s| lacking(&s))
                .then_some(input.seeds.len());
            let absent: Vec<_> = input
                .seeds
                .iter()
                .filter(lacking)
                .filter(|s| !unusable.contains(s))
                .map(u64::to_string)
                .collect();
            if !absent.is_empty() {
                missing.push(format!(
                    "{} / {}: seed {}",
                    named.label,
                    column.label,
                    absent.join(", ")
                ));
            }
            let cells: Vec<_> = cells.into_values().collect();
            let values: [Option<Summary>; N] = std::array::from_fn(|i| {
                Summary::of(&cells.iter().filter_map(|c| c.value(i)).collect::<Vec<_>>())
            });
            let paper = input.paper.as_ref().and_then(|p| {
                let printed = p
                    .find(&named.method, &column.method)
                    .filter(|_| p.same_task(&named.facts))?;
                let same_setting =
                    p.differences(&named.facts).is_empty() && column.differences(p).is_empty();
                let broken = p.broken(&named.method, &column.method).0;
                let judged = same_setting && column.role == Role::Undefended;
                let tolerance = p.tolerance(&named.method).filter(|_| judged);
                let agrees = tolerance.and_then(|tolerance| {
                    let off = |i: usize| {
                        let printed = printed[i].filter(|_| !broken[i])?;
                        Some((shown(i, values[i]?.mean) - printed).abs())
                    };
                    // Binary dust is no difference.
                    let within = |i: usize| Some(off(i)? <= tolerance[i] + 1e-9);
                    Some(within(0)? & within(1)?)
                });
                Some(PaperRow {
                    values: printed,
                    same_setting,
                    broken,
                    agrees,
                })
            });
            let seconds = Summary::of(&cells.iter().filter_map(|c| c.seconds).collect::<Vec<_>>());
            let mut acc = Ratio::default();
            for cell in &cells {
                acc += cell.scores.acc;
            }
            let marks = Marks {
                at_chance: input.at_chance(acc),
                ..Marks::default()
            };
            Row {
                defense: column.label.clone(),
                role: column.role,
                values,
                best: [false; N],
                second: [false; N],
                marks,
                seeds: cells.iter().map(|cell| cell.seed).collect(),
                expected: expected.filter(|_| !cells.is_empty()),
                peak_kib: cells.iter().filter_map(|cell| cell.peak_kib).max(),
                cells,
                paper,
                seconds: seconds.map(|s| s.mean),
            }
        })
        .collect();
    let mut cells = rows.iter().flat_map(|row| &row.cells).peekable();
    let asr: Vec<f64> = attacked.into_values().collect();
    let undefended = |row: &Row| row.role == Role::Undefended && row.marks.at_chance;
    let marks = Marks {
        not_planted: metrics::mean(&asr).is_some_and(|asr| input.not_planted(asr)),
        at_chance: rows.iter().any(undefended),
        seeds_differ: false,
    };
    Block {
        attack: named.label.clone(),
        average: false,
        clean: cells.peek().is_some() && cells.all(|cell| cell.scores.asr.total == 0),
        target: named.target.clone(),
        arch: named.arch.clone(),
        marks,
        rows,
    }
}

/// The ASR of the attacked model by seed; where its own cell is absent, what its defenses say of it.
fn attacked(input: &Input, attack: usize) -> BTreeMap<u64, f64> {
    let mut found = BTreeMap::new();
    let here = || input.observations.iter().filter(|o| o.attack == attack);
    let own = |o: &&Observation| {
        let column = input.defenses.get(o.defense);
        column.is_some_and(|column| column.role == Role::Undefended)
    };
    let undefended = here().filter(own).map(|o| (o.seed, Some(o.scores)));
    for (seed, scores) in undefended.chain(here().map(|o| (o.seed, o.before))) {
        if let Some(asr) = scores.and_then(|scores| scores.asr.value()) {
            found.entry(seed).or_insert(asr);
        }
    }
    found
}

/// The blocks that an average is over, with the places of their attacks; a clean model is no attack, and a marked block
/// is of none that worked.
fn attacks(blocks: &[Block]) -> impl Iterator<Item = (usize, &Block)> {
    let places = blocks.iter().enumerate();
    places.filter(|(_, block)| !block.average && !block.clean && !block.marks.any())
}

/// The methods of these attacks.
fn methods<'a>(input: &'a Input, blocks: &'a [Block]) -> impl Iterator<Item = &'a str> {
    attacks(blocks).map(|(place, _)| input.attacks[place].method.as_str())
}

/// The mean over the attacks, of unrounded values; the mean of the DERs, not the DER of the means.
///
/// A defense that lacks an attack has no average: a mean over fewer attacks would look comparable and would not be.
fn average(input: &Input, blocks: &[Block]) -> Block {
    let rows = input.defenses.iter().enumerate().map(|(defense, column)| {
        let rows: Vec<&Row> = attacks(blocks).map(|(_, b)| &b.rows[defense]).collect();
        let values = std::array::from_fn(|i| average_of(&rows, i));
        let printed: Option<Vec<PaperRow>> = rows.iter().map(|r| r.paper).collect();
        let paper = printed.map(|printed| PaperRow {
            values: paper_average(input, blocks, &column.method, &printed),
            same_setting: printed.iter().all(|p| p.same_setting),
            // A number that cannot be right is one of many here.
            broken: [false; N],
            agrees: None,
        });
        let seconds: Option<Vec<f64>> = rows.iter().map(|r| r.seconds).collect();
        let complete = rows.iter().all(|r| !r.cells.is_empty());
        let marks = Marks {
            not_planted: false,
            at_chance: complete && rows.iter().any(|r| r.marks.at_chance),
            seeds_differ: complete && common_seeds(&rows).is_none(),
        };
        Row {
            defense: column.label.clone(),
            role: column.role,
            values,
            best: [false; N],
            second: [false; N],
            marks,
            seeds: common_seeds(&rows).unwrap_or_default().to_vec(),
            expected: None,
            cells: Vec::new(),
            paper,
            seconds: seconds.and_then(|s| Summary::of(&s)).map(|s| s.mean),
            peak_kib: rows.iter().filter_map(|r| r.peak_kib).max(),
        }
    });
    Block {
        attack: AVERAGE.to_owned(),
        average: true,
        clean: false,
        target: None,
        arch: None,
        marks: Marks::default(),
        rows: rows.collect(),
    }
}

fn average_of(rows: &[&Row], i: usize) -> Option<Summary> {
    let stats: Vec<Summary> = rows.iter().map(|r| r.values[i]).collect::<Option<_>>()?;
    let means: Vec<f64> = stats.iter().map(|s| s.mean).collect();
    let mean = Summary::of(&means)?.mean;
    let n = stats.iter().map(|s| s.n).min()?;
    let mut std = None;
    // The spread is that of the average from seed to seed, which needs every attack to have the same seeds.
    if common_seeds(rows).is_some() && stats.iter().all(|s| s.n == rows[0].cells.len()) {
        let per_seed: Option<Vec<f64>> = (0..n)
            .map(|k| {
                let column: Option<Vec<f64>> = rows.iter().map(|r| r.cells[k].value(i)).collect();
                Summary::of(&column?).map(|s| s.mean)
            })
            .collect();
        std = Summary::of(&per_seed?)?.std;
    }
    Some(Summary { mean, std, n })
}

/// The seeds of rows that all have the same ones.
fn common_seeds<'a>(rows: &[&'a Row]) -> Option<&'a [u64]> {
    let (first, others) = rows.split_first()?;
    let same = others.iter().all(|row| row.seeds == first.seeds);
    same.then_some(&first.seeds)
}

/// The paper's own average if ours is over the same attacks; otherwise the mean of its printed rows.
fn paper_average(input: &Input, blocks: &[Block], defense: &str, printed: &[PaperRow]) -> Printed {
    if let Some(paper) = &input.paper
        && paper.is_all(methods(input, blocks))
        && let Some(values) = paper.find("average", defense)
    {
        return values;
    }
    std::array::from_fn(|i| {
        let values: Vec<f64> = printed.iter().map(|p| p.values[i]).collect::<Option<_>>()?;
        Summary::of(&values).map(|s| s.mean)
    })
}

/// Marks the best and the second best value of each metric among at least two defended rows; equal as printed is equally
/// good, and what has a mark is never best.
fn mark_best(rows: &mut [Row]) {
    for i in 0..N {
        let sign = if metric(i).higher_is_better { 1 } else { -1 };
        let rounded = |row: &Row| -> Option<i64> {
            let value = row.values[i].filter(|_| row.role == Role::Defended)?;
            Some(sign * hundredths(shown(i, value.mean)))
        };
        let comparable = |row: &Row| rounded(row).filter(|_| !row.marks.any());
        let defended = rows.iter().filter_map(rounded).count();
        let Some(best) = rows
            .iter()
            .filter_map(comparable)
            .max()
            .filter(|_| defended > 1)
        else {
            continue;
        };
        let after = rows.iter().filter_map(comparable);
        let second = after.filter(|value| *value < best).max();
        for row in rows.iter_mut() {
            row.best[i] = comparable(row) == Some(best);
            row.second[i] = second.is_some() && comparable(row) == second;
        }
    }
}

/// Hundredths of a percent, as printed.
///
/// Half a hundredth counts as reached if only binary dust is missing, so that two equal numbers that were computed in
/// different ways print alike.
fn hundredths(percent: f64) -> i64 {
    (percent * 100.0 + 1e-7_f64.copysign(percent)).round() as i64
}

/// What the signs at rows mean, and which single runs deserve one where the mean over the seeds does not.
fn marks(input: &Input, blocks: &[Block]) -> Vec<String> {
    let mut notes = Vec::new();
    let rows = || {
        blocks
            .iter()
            .flat_map(|b| b.rows.iter().map(move |r| (b, r)))
    };
    if blocks.iter().any(|b| b.marks.not_planted) {
        let floor = sheet::percent(100.0 * input.asr_floor);
        notes.push(format!(
            "{NOT_PLANTED}: the backdoor was not planted (ASR without defense under {floor} %); never best, not in the average"
        ));
    }
    if rows().any(|(_, r)| r.marks.at_chance) {
        let classes = input.classes.unwrap_or_default();
        notes.push(format!(
            "{AT_CHANCE}: at chance (ACC hardly above guessing among {classes} classes); never best; \
             not in the average if it is the attacked model, otherwise the average has the sign, too"
        ));
    }
    if rows().any(|(_, r)| r.marks.seeds_differ) {
        notes.push(format!(
            "{SEEDS_DIFFER}: an average over attacks with different seeds; never best"
        ));
    }
    let mut single = |what: &str, title: String, seeds: Vec<String>| {
        if !seeds.is_empty() {
            let seeds = seeds.join(", ");
            notes.push(format!("{title}: {what} with seed {seeds}"));
        }
    };
    for (block, row) in rows() {
        let title = format!("{} / {}", block.attack, row.defense);
        let seeds = |has: fn(Marks) -> bool, all: bool| -> Vec<String> {
            let with = row.cells.iter().filter(|c| !all && has(c.marks));
            with.map(|c| c.seed.to_string()).collect()
        };
        if row.role == Role::Undefended {
            let seeds = seeds(|m| m.not_planted, block.marks.not_planted);
            single("not planted", title.clone(), seeds);
        }
        single(
            "at chance",
            title,
            seeds(|m| m.at_chance, row.marks.at_chance),
        );
    }
    notes
}

/// The classes that are attacked; `airplane` says more than 0, and which class is 0 is the dataset's choice.
fn targets(blocks: &[Block]) -> Option<String> {
    let targets: Vec<(&str, &NamedClass)> = blocks
        .iter()
        .filter_map(|b| Some((b.attack.as_str(), b.target.as_ref()?)))
        .collect();
    let (_, first) = targets.first()?;
    let attacks = blocks.iter().filter(|b| !b.average).count();
    if targets.len() == attacks && targets.iter().all(|(_, target)| target == first) {
        return Some(format!("target class: {first}"));
    }
    let each = targets.iter().map(|(attack, t)| format!("{attack} {t}"));
    Some(format!(
        "target classes: {}",
        each.collect::<Vec<_>>().join(", ")
    ))
}

fn notes(input: &Input, blocks: &[Block]) -> Vec<String> {
    let mut notes = marks(input, blocks);
    let rows = || blocks.iter().flat_map(|b| &b.rows);
    let n: BTreeSet<usize> = rows()
        .flat_map(|r| r.values.iter().flatten())
        .map(|s| s.n)
        .collect();
    if let (Some(least), Some(most)) = (n.first(), n.last())
        && *most > 1
    {
        let n = if least == most {
            most.to_string()
        } else {
            format!("{least} to {most}")
        };
        notes.push(format!(
            "mean ± standard deviation (divisor n - 1) over n = {n} seeds"
        ));
    }
    notes.extend(targets(blocks));
    let others = blocks.iter().filter_map(|b| {
        let arch = b.arch.as_ref()?;
        Some(format!("{} {arch}", b.attack))
    });
    let others: Vec<String> = others.collect();
    if !others.is_empty() {
        notes.push(format!("other networks: {}", others.join(", ")));
    }
    if rows().any(|r| r.role == Role::Oracle && r.values[0].is_some()) {
        notes.push("(oracle): chosen on the poisoned test set, which no defender has; never marked as best".into());
    }
    let clean: Vec<&str> = blocks
        .iter()
        .filter(|b| b.clean)
        .map(|b| b.attack.as_str())
        .collect();
    if !clean.is_empty() {
        notes.push(format!(
            "{}: no image is poisoned, so there is no ASR, RA or DER; not in the average",
            clean.join(", ")
        ));
    }
    let timed: Vec<f64> = blocks
        .iter()
        .filter(|b| !b.average)
        .flat_map(|b| &b.rows)
        .flat_map(|r| &r.cells)
        .filter_map(|c| c.seconds)
        .collect();
    if rows().any(|r| r.role == Role::Undefended && r.seconds.is_some()) {
        notes.push(format!(
            "time: the attack in the rows without defense, the repair in the others; {} together",
            duration(timed.iter().sum())
        ));
    }
    notes
}

fn paper_notes(input: &Input, blocks: &[Block]) -> Vec<String> {
    let mut notes = Vec::new();
    let rows = || blocks.iter().flat_map(|b| &b.rows);
    let Some(paper) = &input.paper else {
        return notes;
    };
    if rows().any(|r| r.paper.is_some()) {
        notes.push(format!(
            "paper: {}; delta: ours - paper, in percentage points",
            paper.citation
        ));
        let attacks = input
            .attacks
            .iter()
            .filter(|attack| paper.same_task(&attack.facts) && paper.has(&attack.method))
            .map(|attack| (attack.label.as_str(), paper.differences(&attack.facts)));
        // The oracle has the settings of the defense that stands before it.
        let compared = |defense: usize| {
            input.defenses[defense].role != Role::Oracle
                && blocks.iter().any(|b| b.rows[defense].paper.is_some())
        };
        let defenses = (0..input.defenses.len())
            .filter(|defense| compared(*defense))
            .map(|defense| &input.defenses[defense])
            .map(|column| (column.label.as_str(), column.differences(paper)));
        let differing: Vec<String> = alike(attacks).chain(alike(defenses)).collect();
        if !differing.is_empty() {
            notes.push(
                "in parentheses: the paper's setting differs, so the delta is no verdict"
                    .to_owned(),
            );
            notes.extend(differing);
        }
        let averages = blocks
            .iter()
            .filter(|b| b.average)
            .flat_map(|b| &b.rows)
            .any(|r| r.paper.is_some());
        notes.extend(verdicts(input, paper, blocks));
        notes.extend(broken(input, paper, blocks));
        if averages && !paper.is_all(methods(input, blocks)) {
            let which = if blocks.iter().any(|b| b.marks.any()) {
                "in ours"
            } else {
                "shown here"
            };
            notes.push(format!(
                "the paper's average is recomputed over the attacks {which}"
            ));
        }
    } else if rows().any(|r| r.values[0].is_some()) {
        notes.push(format!(
            "no published numbers for this dataset and network in {}",
            paper.short
        ));
    }
    notes
}

/// Which models without a defense are as published; nothing is said of those in another setting.
fn verdicts(input: &Input, paper: &Paper, blocks: &[Block]) -> Vec<String> {
    let (mut same, mut other) = (Vec::new(), Vec::new());
    for (block, attack) in blocks.iter().zip(&input.attacks) {
        let verdict = block.rows.iter().find_map(|row| row.paper?.agrees);
        let Some([acc, asr]) = paper
            .tolerance(&attack.method)
            .filter(|_| verdict.is_some())
        else {
            continue;
        };
        let (acc, asr) = (sheet::percent(acc), sheet::percent(asr));
        let list = if verdict == Some(true) {
            &mut same
        } else {
            &mut other
        };
        list.push(format!("{} ({acc}, {asr})", attack.label));
    }
    let line = |what: &str, list: Vec<String>| {
        let list = (!list.is_empty()).then(|| list.join(", "));
        list.map(|list| format!("without defense {what} (in ACC, ASR): {list}"))
    };
    let lines = [
        line("as published, within", same),
        line("not as published, beyond", other),
    ];
    lines.into_iter().flatten().collect()
}

/// What is wrong with printed numbers that stand here.
fn broken(input: &Input, paper: &Paper, blocks: &[Block]) -> Vec<String> {
    let mut notes = Vec::new();
    for (block, attack) in blocks.iter().zip(&input.attacks) {
        for (row, defense) in block.rows.iter().zip(&input.defenses) {
            let (which, why) = paper.broken(&attack.method, &defense.method);
            let Some(why) = why.filter(|_| row.paper.is_some() && row.role != Role::Oracle) else {
                continue;
            };
            let metrics: Vec<&str> = (0..N)
                .filter(|i| which[*i])
                .map(|i| metric(i).title)
                .collect();
            notes.push(format!(
                "nothing is compared with the printed {} of {} / {}: {why}",
                metrics.join(" and "),
                attack.label,
                defense.label
            ));
        }
    }
    notes
}

/// `BadNets, Blended: width 16 instead of 64`: who differs in the same things, in the order of the table.
fn alike<'a>(all: impl Iterator<Item = (&'a str, Vec<String>)>) -> impl Iterator<Item = String> {
    let mut groups: Vec<(Vec<String>, Vec<&str>)> = Vec::new();
    for (label, differences) in all.filter(|(_, differences)| !differences.is_empty()) {
        match groups.iter_mut().find(|(known, _)| *known == differences) {
            Some((_, labels)) => labels.push(label),
            None => groups.push((differences, vec![label])),
        }
    }
    groups
        .into_iter()
        .map(|(differences, labels)| format!("{}: {}", labels.join(", "), differences.join(", ")))
}
