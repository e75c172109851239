//! Published numbers, to stand beside ours.
//!
//! A table of a paper is two files of `docs/papers/<paper>/`: `table<N>.csv` has the numbers, typed from the paper, and
//! `table<N>.toml` says where they are from and how they were made. Those that come with the program are compiled in;
//! `bb-eval table --paper FILE.toml` reads another.
//!
//! The numbers are compared only where the task is the same (dataset and architecture).
//! A paper prints few of its settings, so what it does not print is taken from the published code, by a [`Profile`]: where
//! a run differs from that in anything, the table shows the number in parentheses and says what differs. Our recipes are
//! no measure of it.
//!
//! ```toml
//! [paper]
//! short = "TSBD Table 1"              # names it in notes
//! citation = "Lin et al., NeurIPS 2024, arXiv 2405.20291, Table 1"
//! values = "table1.csv"               # relative to this file
//! profiles = ["backdoorbench"]        # optional: what comes with the program, by name, or files relative to this one
//!
//! [setting]
//! dataset = "cifar10"
//! arch = "preactresnet18"
//! width = 64
//! precision = ["f32", "tf32"]         # those that it may have been
//! ratio = 0.1                         # of poisoned images
//! label = "all2one"
//! epochs = 100
//! clean_ratio = 0.05                  # of images that a defender has
//!
//! [[tolerance]]                       # optional: how far a model without a defense may be off, in percentage points
//! acc = 1
//! asr = 3
//!
//! [[tolerance]]                       # the same for one attack
//! attack = "wanet"
//! acc = 3.5
//! asr = 10
//!
//! [[broken]]                          # optional: a number that cannot be right; it is printed, and nothing compared
//! attack = "badnets"
//! defense = "tsbd"                    # without: no defense
//! metrics = ["der"]
//! why = "it does not follow from the printed ACC and ASR"
//! ```
//!
//! `[[attack]]` and `[[defense]]` add to the profiles, see [`profile`].
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bb_core::cell::Kind;
use bb_core::cli::{Coded, DEFAULT_WIDTH, exit};
use bb_core::files::{self, Links};
use bb_core::settings::did_you_mean;
use bb_zoo::strict::{Document, StrictError, Table};

use crate::table::COLUMNS;

pub mod profile;
mod values;

pub use profile::{Profile, Published, PublishedFile};
use values::{AVERAGE, PrintedRow, canonical};
pub use values::{Printed, ValuesError};

/// Most bytes of a file of numbers.
const MOST_BYTES: u64 = 1 << 20;

/// A table that comes with the program.
struct BuiltIn {
    name: &'static str,
    path: &'static str,
    about: &'static str,
    values: &'static str,
}

macro_rules! built_in {
    ($name:literal, $path:literal) => {
        BuiltIn {
            name: $name,
            path: concat!("docs/papers/", $path, ".toml"),
            about: include_str!(concat!("../../../../docs/papers/", $path, ".toml")),
            values: include_str!(concat!("../../../../docs/papers/", $path, ".csv")),
        }
    };
}

/// The paper that is compared with if none is named.
pub const DEFAULT_PAPER: &str = "tsbd";

/// Those that come with the program.
const BUILT_IN: [BuiltIn; 3] = [
    built_in!("tsbd", "tsbd/table1"),
    built_in!("ftsam", "ftsam/table1"),
    built_in!("leaderboard", "backdoorbench/cifar10"),
];

/// Profiles that come with the program: name, path, text.
const PROFILES: [(&str, &str, &str); 1] = [(
    "backdoorbench",
    "docs/papers/backdoorbench/profile.toml",
    include_str!("../../../../docs/papers/backdoorbench/profile.toml"),
)];

/// Why the numbers of a paper cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PaperError {
    /// No paper has this name.
    #[error("there is no paper `{name}`, expected one of `{}` or a file that ends in `.toml`", names().join("`, `"))]
    Unknown {
        /// The name that was given.
        name: String,
    },
    /// The description is not what it should be.
    #[error(transparent)]
    Strict(#[from] StrictError),
    /// The numbers are not what they should be.
    #[error(transparent)]
    Values(#[from] ValuesError),
    /// A file cannot be read; the source names it.
    #[error(transparent)]
    Read(#[from] std::io::Error),
}

impl Coded for PaperError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Unknown { .. } | Self::Values(_) => exit::USAGE,
            Self::Strict(error) => error.exit_code(),
            Self::Read(error) => error.exit_code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { name } => did_you_mean(name, names()),
            Self::Strict(error) => error.hint(),
            _ => None,
        }
    }
}

/// The names of the papers that come with the program.
pub fn names() -> [&'static str; 3] {
    BUILT_IN.map(|paper| paper.name)
}

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
    pub train_limit: Option<usize>,
    /// Images of the test set, if it was cut down.
    pub test_limit: Option<usize>,
    /// What else is not as for the published number, in words, see [`Published::differences`]; `None` if that is unknown.
    pub unlike: Option<Vec<String>>,
}

/// What a defense worked with, as far as the paper states it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RepairFacts {
    /// How convolutions multiplied while networks were trained.
    pub precision: String,
    /// Share of the training images that the defender has; nothing for a data-free method.
    pub clean_ratio: Option<f64>,
    /// See [`Facts::unlike`].
    pub unlike: Option<Vec<String>>,
}

/// One table of one paper.
#[derive(Debug, Clone)]
pub struct Paper {
    /// A short name, e.g. `TSBD Table 1`.
    pub short: String,
    /// Authors, title, place.
    pub citation: String,
    /// Under which settings the numbers were made, beside those that the paper prints.
    pub profile: Profile,
    facts: Facts,
    repair: RepairFacts,
    rows: Vec<PrintedRow>,
    broken: Vec<Broken>,
    tolerances: Vec<Tolerance>,
}

/// How far a model without a defense may be off, in percentage points.
#[derive(Debug, Clone, PartialEq)]
struct Tolerance {
    /// Of which attack; of all others without.
    attack: Option<String>,
    acc: f64,
    asr: f64,
}

/// A printed number that cannot be right.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Broken {
    attack: String,
    defense: String,
    metrics: Vec<usize>,
    why: String,
}

impl Paper {
    /// The paper of this name, or that of a file that ends in `.toml`.
    ///
    /// # Errors
    /// If no paper has this name, or the file is not as [`crate::paper`] says.
    pub fn open(name: &str) -> Result<Self, PaperError> {
        if is_file(name) {
            let document = Document::read(Path::new(name))?;
            return Self::read(&document, None);
        }
        let Some(paper) = BUILT_IN.iter().find(|paper| paper.name == name) else {
            let name = name.to_owned();
            return Err(PaperError::Unknown { name });
        };
        Self::read(&Document::new(paper.path, paper.about), Some(paper.values))
    }

    /// Table 1 of the TSBD paper: CIFAR-10, `PreActResNet18`, 8 attacks and 9 defenses.
    pub fn tsbd_table1() -> Self {
        Self::open(DEFAULT_PAPER).expect("a test reads what is compiled in")
    }

    fn read(document: &Document, values: Option<&str>) -> Result<Self, PaperError> {
        let folder = document.path().parent().unwrap_or(Path::new(""));
        document.parse(|top| {
            top.only(&[
                "paper",
                "setting",
                "tolerance",
                "broken",
                "attack",
                "defense",
            ])?;
            let about = needed(&top, "paper")?;
            about.only(&["short", "citation", "values", "profiles"])?;
            let mut profile = Profile::default();
            for field in about.strs("profiles")?.unwrap_or_default() {
                if is_file(&field.value) {
                    profile.read(&Document::read(&folder.join(&field.value))?)?;
                    continue;
                }
                let known = PROFILES.iter().find(|(name, ..)| *name == field.value);
                let (_, path, text) = known.ok_or_else(|| {
                    let names = PROFILES.map(|(name, ..)| name).join("`, `");
                    field.refuse(format_args!("`{names}`, or a file that ends in `.toml`"))
                })?;
                profile.read(&Document::new(*path, *text))?;
            }
            profile.add(&top)?;
            let csv = word(&about, "values")?;
            let path = folder.join(&csv);
            let text = match values {
                Some(text) => text.to_owned(),
                None => files::read_text(&path, Links::Follow, MOST_BYTES)?,
            };
            let (facts, repair) = setting(&needed(&top, "setting")?)?;
            Ok(Self {
                short: word(&about, "short")?,
                citation: word(&about, "citation")?,
                profile,
                facts,
                repair,
                rows: values::read(&path, &text)?,
                broken: top
                    .tables("broken")?
                    .iter()
                    .map(broken)
                    .collect::<Result<_, _>>()?,
                tolerances: top
                    .tables("tolerance")?
                    .iter()
                    .map(tolerance)
                    .collect::<Result<_, _>>()?,
            })
        })
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
        found.extend(unlike(ours.unlike.as_deref()));
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
        found.extend(unlike(ours.unlike.as_deref()));
        found
    }

    /// The printed numbers of an attack (or `average`) with a defense (empty for none); names are method ids.
    pub fn find(&self, attack: &str, defense: &str) -> Option<Printed> {
        let key = (canonical(attack), canonical(defense));
        self.rows
            .iter()
            .find(|row| (&row.attack, &row.defense) == (&key.0, &key.1))
            .map(|row| row.values)
    }

    /// Which of the printed numbers cannot be right, in the order of [`COLUMNS`], and why.
    pub fn broken(&self, attack: &str, defense: &str) -> ([bool; COLUMNS.len()], Option<&str>) {
        let (attack, defense) = (canonical(attack), canonical(defense));
        let here = |broken: &&Broken| (&broken.attack, &broken.defense) == (&attack, &defense);
        let found = self.broken.iter().find(here);
        let which = |i| found.is_some_and(|broken| broken.metrics.contains(&i));
        (
            std::array::from_fn(which),
            found.map(|broken| broken.why.as_str()),
        )
    }

    /// How far ACC and ASR of an attack's model without a defense may be off, in percentage points, if that is known.
    pub fn tolerance(&self, attack: &str) -> Option<[f64; 2]> {
        let attack = canonical(attack);
        let own = |t: &&Tolerance| t.attack.as_ref() == Some(&attack);
        let all = |t: &&Tolerance| t.attack.is_none();
        let tolerances = || self.tolerances.iter();
        let found = tolerances().find(own).or_else(|| tolerances().find(all))?;
        Some([found.acc, found.asr])
    }

    /// The names of attacks, or of defenses, that have printed rows and are none of `ours`.
    pub fn others(&self, kind: Kind, ours: &[&str]) -> Vec<&str> {
        let ours: BTreeSet<String> = ours.iter().map(|name| canonical(name)).collect();
        let names = self.rows.iter().map(|row| match kind {
            Kind::Attack => (&row.attack, row.printed[0].as_str()),
            Kind::Defense => (&row.defense, row.printed[1].as_str()),
        });
        let other = |(name, _): &(&String, &str)| {
            !matches!(name.as_str(), "" | AVERAGE) && !ours.contains(*name)
        };
        let names: BTreeMap<&String, &str> = names.filter(other).collect();
        names.into_values().collect()
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
            .map(|row| row.attack.as_str())
            .filter(|attack| *attack != AVERAGE)
            .collect();
        unique.len() == ours.len() && unique == theirs
    }
}

/// `width 16 instead of 64`, if they differ.
fn unequal(what: &str, ours: &str, theirs: &str) -> Option<String> {
    (ours != theirs).then(|| format!("{what} {ours} instead of {theirs}"))
}

/// [`unequal`], where the paper leaves several open.
fn unlike_precision(ours: &str, theirs: &str) -> Option<String> {
    let fits = theirs.split(" or ").any(|one| one == ours);
    unequal("precision", ours, if fits { ours } else { theirs })
}

/// What is [`Facts::unlike`], or that nobody knows.
fn unlike(found: Option<&[String]>) -> Vec<String> {
    found.map_or_else(|| vec!["settings unknown".to_owned()], <[String]>::to_vec)
}

fn known(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "unknown".to_owned(), |v| v.to_string())
}

fn all(limit: Option<usize>) -> String {
    limit.map_or_else(|| "all".to_owned(), |v| v.to_string())
}

/// Whether this is the path of a file, and not the name of what comes with the program.
pub(crate) fn is_file(name: &str) -> bool {
    let ending = Path::new(name).extension();
    ending.is_some_and(|ending| ending.eq_ignore_ascii_case("toml"))
}

fn needed<'a>(top: &Table<'a>, name: &str) -> Result<Table<'a>, StrictError> {
    top.table(name)?.ok_or_else(|| top.missing(name, "a table"))
}

/// One line of text, which notes print.
fn word(table: &Table<'_>, name: &str) -> Result<String, StrictError> {
    let field = table
        .str(name)?
        .ok_or_else(|| table.missing(name, "a string"))?;
    let line = |text: &String| !text.trim().is_empty() && !text.contains(char::is_control);
    Ok(field.check(line, "one line of text")?.value)
}

fn setting(table: &Table<'_>) -> Result<(Facts, RepairFacts), StrictError> {
    table.only(&[
        "dataset",
        "arch",
        "width",
        "precision",
        "ratio",
        "label",
        "epochs",
        "clean_ratio",
    ])?;
    let share = |name| {
        let field = table.number(name)?.map(|field| {
            let share = |share: &f64| (0.0..=1.0).contains(share);
            field.check(share, "a share of 0 to 1")
        });
        Ok::<_, StrictError>(field.transpose()?.map(|field| field.value))
    };
    let count = |name| {
        let field = table.int(name)?.map(|field| {
            u64::try_from(field.value).map_err(|_| field.refuse("a number that is not negative"))
        });
        field.transpose()
    };
    let precisions = table
        .strs("precision")?
        .ok_or_else(|| table.missing("precision", "an array of strings"))?;
    let precisions: Vec<String> = precisions.into_iter().map(|field| field.value).collect();
    let precision = precisions.join(" or ");
    let facts = Facts {
        dataset: word(table, "dataset")?,
        arch: word(table, "arch")?,
        width: count("width")?.unwrap_or(DEFAULT_WIDTH as u64) as usize,
        precision: precision.clone(),
        ratio: share("ratio")?,
        label: table.str("label")?.map(|field| field.value),
        epochs: count("epochs")?,
        train_limit: None,
        test_limit: None,
        unlike: Some(Vec::new()),
    };
    let repair = RepairFacts {
        precision,
        clean_ratio: share("clean_ratio")?,
        unlike: Some(Vec::new()),
    };
    Ok((facts, repair))
}

fn tolerance(table: &Table<'_>) -> Result<Tolerance, StrictError> {
    table.only(&["attack", "acc", "asr"])?;
    let points = |name| {
        let field = table
            .number(name)?
            .ok_or_else(|| table.missing(name, "a number"))?;
        let points = |points: &f64| (0.0..=100.0).contains(points);
        Ok::<_, StrictError>(
            field
                .check(points, "percentage points from 0 to 100")?
                .value,
        )
    };
    Ok(Tolerance {
        attack: table.str("attack")?.map(|field| canonical(&field.value)),
        acc: points("acc")?,
        asr: points("asr")?,
    })
}

fn broken(table: &Table<'_>) -> Result<Broken, StrictError> {
    table.only(&["attack", "defense", "metrics", "why"])?;
    let metrics = table
        .strs("metrics")?
        .ok_or_else(|| table.missing("metrics", "an array of strings"))?;
    let place = |name: &str| COLUMNS.iter().position(|column| *column == name);
    let expected = format!("one of `{}`", COLUMNS.join("`, `"));
    let metrics = metrics
        .iter()
        .map(|field| place(&field.value).ok_or_else(|| field.refuse(&expected)));
    Ok(Broken {
        attack: canonical(&word(table, "attack")?),
        defense: canonical(
            &table
                .str("defense")?
                .map(|field| field.value)
                .unwrap_or_default(),
        ),
        metrics: metrics.collect::<Result<_, _>>()?,
        why: word(table, "why")?,
    })
}

#[cfg(test)]
mod tests {
    use bb_core::cell::Kind;
    use bb_core::metrics::{Ratio, Scores, der};

    use super::*;

    fn all() -> Vec<Paper> {
        names()
            .map(|name| Paper::open(name).unwrap_or_else(|e| panic!("{name}: {e}")))
            .into()
    }

    #[test]
    fn what_comes_with_the_program_can_be_read() {
        let papers = all();
        assert_eq!(papers.len(), BUILT_IN.len());
        for paper in &papers {
            for (method, defense) in [("badnets", ""), ("blended", "ft"), ("wanet", "ibau")] {
                let printed = paper.find(method, defense);
                let printed = printed.unwrap_or_else(|| panic!("{}: {method}", paper.short));
                assert!(
                    printed[0].is_some() && printed[1].is_some(),
                    "{}",
                    paper.short
                );
            }
        }
        let error = Paper::open("leaderbord").expect_err("a slip");
        assert_eq!(
            (error.to_string().as_str(), error.hint().as_deref()),
            (
                "there is no paper `leaderbord`, expected one of `tsbd`, `ftsam`, `leaderboard` or a file that ends in `.toml`",
                Some("did you mean `leaderboard`?")
            )
        );
    }

    /// Of every method that a profile names the settings are valid, on every dataset that has a recipe.
    #[test]
    fn profiles_name_settings_that_exist() {
        for paper in all() {
            for (kind, method) in paper.profile.methods() {
                for dataset in ["cifar10", "cifar100", "gtsrb", "tiny"] {
                    let resolved = if kind == Kind::Attack.as_str() {
                        let published = paper.profile.method(Kind::Attack, method);
                        let given = bb_attack::method::Given {
                            set: published.given(dataset, "preactresnet18"),
                            ..Default::default()
                        };
                        let attack = bb_attack::registry::find(method).expect("an attack of ours");
                        attack
                            .resolve(dataset, &given)
                            .map(drop)
                            .map_err(|e| e.to_string())
                    } else {
                        let published = paper.profile.method(Kind::Defense, method);
                        let given = bb_defense::method::Given {
                            set: published.given(dataset, "preactresnet18"),
                            ..Default::default()
                        };
                        let defense = bb_defense::registry::find(method, &[]);
                        let defense = defense.expect("a defense of ours");
                        defense
                            .resolve(dataset, &given)
                            .map(drop)
                            .map_err(|e| e.to_string())
                    };
                    assert_eq!(
                        resolved,
                        Ok(()),
                        "{}: {kind} {method} on {dataset}",
                        paper.short
                    );
                }
            }
        }
    }

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
        for row in &paper.rows {
            let (attack, defense) = (&row.attack, &row.defense);
            if attack == AVERAGE || defense.is_empty() {
                continue;
            }
            let before = paper
                .find(attack, "")
                .expect("every attack has an undefended row");
            let ours =
                der(&scores(&before), &scores(&row.values)).expect("nothing is empty") * 100.0;
            if (ours - row.values[3].expect("printed")).abs() > 0.0051 {
                off.push((
                    attack.as_str(),
                    defense.as_str(),
                    (ours * 100.0).round() / 100.0,
                ));
            }
        }
        assert_eq!(off, [("badnets", "tsbd", 96.56)]);
        let (broken, why) = paper.broken("badnets", "tsbd");
        assert_eq!(broken, [false, false, false, true]);
        assert!(why.is_some_and(|why| why.contains("96.56")), "{why:?}");
        assert_eq!(paper.broken("badnets", ""), ([false; 4], None));
    }

    #[test]
    fn the_average_is_the_mean_of_the_rows() {
        let paper = Paper::tsbd_table1();
        for average in paper.rows.iter().filter(|row| row.attack == AVERAGE) {
            for i in [0, 1, 3] {
                let Some(printed) = average.values[i] else {
                    continue;
                };
                let defense = &average.defense;
                let rows: Vec<f64> = paper
                    .rows
                    .iter()
                    .filter(|row| row.attack != AVERAGE && row.defense == *defense)
                    .filter_map(|row| row.values[i])
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
    fn differences_of_a_defense_are_named() {
        let paper = Paper::tsbd_table1();
        let mut ours = RepairFacts {
            precision: "tf32".into(),
            ..paper.repair.clone()
        };
        assert_eq!(paper.repair_differences(&ours), [""; 0]);
        ours.precision = "bf16".into();
        ours.clean_ratio = Some(0.01);
        ours.unlike = Some(vec!["finetune.epochs 5 instead of 21".into()]);
        assert_eq!(
            paper.repair_differences(&ours),
            [
                "precision bf16 instead of f32 or tf32",
                "share of clean images 0.01 instead of 0.05",
                "finetune.epochs 5 instead of 21"
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
            unlike: None,
            ..ours
        };
        assert_eq!(paper.repair_differences(&unknown), ["settings unknown"]);
    }

    /// A paper of the user's, with a profile beside it.
    fn written(about: &str, values: &str) -> Result<Paper, PaperError> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("table.toml");
        fs_err::write(&path, about).expect("written");
        fs_err::write(dir.path().join("v.csv"), values).expect("written");
        fs_err::write(
            dir.path().join("own.toml"),
            "[[defense]]\nmethod = \"fp\"\ndepartures = [\"ours\"]\n",
        )
        .expect("written");
        Paper::open(path.to_str().expect("plain"))
    }

    const ABOUT: &str = "\
[paper]
short = \"P\"
citation = \"C\"
values = \"v.csv\"
profiles = [\"backdoorbench\", \"own.toml\"]
[setting]
dataset = \"gtsrb\"
arch = \"vgg19_bn\"
precision = [\"bf16\"]
";
    const VALUES: &str =
        "# a comment\n\nattack,defense,asr,acc\nBadNet,No Defense,99,\nBadNet,FP,1.5,90\n";

    #[test]
    fn a_tolerance_is_that_of_the_attack_or_of_all() {
        let paper = Paper::tsbd_table1();
        for (attack, expect) in [
            ("sig", [1.0, 3.0]),
            ("badnets", [1.0, 6.0]),
            ("Input-aware", [3.5, 3.0]),
            ("wanet", [3.5, 10.0]),
        ] {
            assert_eq!(paper.tolerance(attack), Some(expect), "{attack}");
        }
        let paper = written(ABOUT, VALUES).expect("a paper");
        assert_eq!(paper.tolerance("sig"), None);
    }

    #[test]
    fn anybody_can_write_one() {
        let paper = written(ABOUT, VALUES).expect("a paper");
        assert_eq!(
            paper.find("badnets", ""),
            Some([None, Some(99.0), None, None])
        );
        assert_eq!(
            paper.find("badnets", "fp"),
            Some([Some(90.0), Some(1.5), None, None])
        );
        let fp = paper.profile.method(Kind::Defense, "fp");
        assert!(fp.set.len() == 2 && fp.departures.last().is_some_and(|last| last == "ours"));
        assert_eq!(paper.facts.width, DEFAULT_WIDTH, "the published network");
    }

    #[test]
    fn each_mistake_has_one_clear_error() {
        let about = |from: &str, to: &str| {
            assert!(ABOUT.contains(from), "{from}");
            written(&ABOUT.replace(from, to), VALUES)
        };
        let values = |text: &str| written(ABOUT, text);
        for (result, expect) in [
            (about("short = \"P\"\n", ""), "`paper.short` is missing"),
            (about("citation", "citaton"), "unknown key `paper.citaton`"),
            (
                about("\"bf16\"", "16"),
                "`setting.precision[0]` is an integer",
            ),
            (about("own.toml", "no.toml"), "no.toml"),
            (
                about("\"own.toml\"", "\"other\""),
                "`paper.profiles[1]` is `other`, expected `backdoorbench`, or a file",
            ),
            (about("v.csv", "w.csv"), "w.csv"),
            (
                about(
                    "[setting]",
                    "[[broken]]\nattack = \"a\"\nmetrics = [\"acr\"]\nwhy = \"w\"\n[setting]",
                ),
                "expected one of `acc`, `asr`, `ra`, `der`",
            ),
            (
                about(
                    "[setting]",
                    "[[attack]]\nmethod = \"lf\"\nfiles = [{ setting = \"a\", name = \"b\", sha256 = \"12\" }]\n[setting]",
                ),
                "expected a SHA-256 of 64 hexadecimal digits",
            ),
            (
                values(""),
                "no line with the names of the columns, expected a line `attack,defense`",
            ),
            (
                values("attack,defense,accuracy\n"),
                "the columns are `attack,defense,accuracy`",
            ),
            (
                values("attack,defense,acc\nBadNet,FT,91,5\n"),
                "`BadNet,FT,91,5` has 2 numbers, expected as many as there are columns",
            ),
            (
                values("attack,defense,acc\nBadNet\n"),
                "`BadNet`, expected an attack and a defense",
            ),
            (
                values("attack,defense,acc\nBadNet,FT,913\n"),
                "`913`, expected a percentage",
            ),
            (
                values("attack,defense,acc\nBadNet,FT,9\nbadnets,ft,9\n"),
                "`badnets,ft,9` is there twice",
            ),
        ] {
            let error = result.expect_err(expect).to_string();
            assert!(error.contains(expect), "{error}\n{expect}");
        }
    }
}
