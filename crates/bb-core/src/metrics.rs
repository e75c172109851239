//! What is measured, with its numerators and denominators, and how a table is to show it.
//!
//! Counts are kept as long as possible: an accuracy of 0.95 does not say of how many images.
//! Everything derived is a fraction here and becomes a percentage only when it is shown.

use std::fmt;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Some of a number of images.
///
/// ```
/// use bb_core::metrics::Ratio;
///
/// // The published BadNets model of BackdoorBench, CIFAR-10.
/// let asr = Ratio { hits: 8553, total: 9000 };
/// assert_eq!(format!("{:.2} %", asr.percent().unwrap()), "95.03 %");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Counts")]
pub struct Ratio {
    /// Images for which it is so.
    pub hits: u64,
    /// Images looked at.
    pub total: u64,
}

/// A [`Ratio`] as it stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    hits: u64,
    total: u64,
}

/// Why two counts are no ratio.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RatioError {
    /// There are more hits than images.
    #[error("`hits` is {hits}, expected at most `total`, which is {total}")]
    TooManyHits {
        /// Images for which it is so.
        hits: u64,
        /// Images looked at.
        total: u64,
    },
}

impl TryFrom<Counts> for Ratio {
    type Error = RatioError;

    fn try_from(Counts { hits, total }: Counts) -> Result<Self, RatioError> {
        if hits > total {
            return Err(RatioError::TooManyHits { hits, total });
        }
        Ok(Self { hits, total })
    }
}

impl Ratio {
    /// Counts how often something is so.
    pub fn count(outcomes: impl IntoIterator<Item = bool>) -> Self {
        let mut ratio = Self::default();
        for hit in outcomes {
            ratio.hits += u64::from(hit);
            ratio.total += 1;
        }
        ratio
    }

    /// The fraction, 0 to 1; nothing if no image was looked at.
    pub fn value(self) -> Option<f64> {
        (self.total > 0).then(|| self.hits as f64 / self.total as f64)
    }

    /// The percentage, 0 to 100; nothing if no image was looked at.
    pub fn percent(self) -> Option<f64> {
        self.value().map(|value| 100.0 * value)
    }
}

/// Joins the counts of two batches.
impl AddAssign for Ratio {
    fn add_assign(&mut self, other: Self) {
        self.hits += other.hits;
        self.total += other.total;
    }
}

/// The two counts, `8553/9000`.
impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.hits, self.total)
    }
}

/// What is measured on one model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Clean test images that are classified rightly.
    pub acc: Ratio,
    /// Poisoned test images that are given the label of the attacker.
    pub asr: Ratio,
    /// Poisoned test images that are given their true label.
    pub ra: Ratio,
}

impl Scores {
    /// The three as fractions; nothing if there is no clean or no poisoned image.
    pub fn rates(&self) -> Option<Rates> {
        Some(Rates {
            acc: self.acc.value()?,
            asr: self.asr.value()?,
            ra: self.ra.value(),
        })
    }
}

/// Scores as fractions 0 to 1, for published numbers of which no counts are known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Clean accuracy.
    pub acc: f64,
    /// Attack success rate.
    pub asr: f64,
    /// Robust accuracy, where it was published.
    pub ra: Option<f64>,
}

impl Rates {
    /// From percentages, as tables print them.
    pub fn from_percent(acc: f64, asr: f64, ra: Option<f64>) -> Self {
        Self {
            acc: acc / 100.0,
            asr: asr / 100.0,
            ra: ra.map(|ra| ra / 100.0),
        }
    }

    /// The defense effectiveness rating of a defense that led from `before` to `self`, 0 to 1.
    ///
    /// DER = (max(0, ΔASR) − max(0, ΔACC) + 1) / 2 with Δ = before − after: a lower attack success rate counts for the
    /// defense, a lower accuracy against it, a rise of either is ignored, and an unchanged model has 0.5.
    ///
    /// BackdoorBench has a second version of this formula, on arrays of predictions, that adds the accuracy term; this
    /// is the one that made its tables.
    pub fn der(&self, before: &Self) -> f64 {
        f64::midpoint(
            (before.asr - self.asr).max(0.0) - (before.acc - self.acc).max(0.0),
            1.0,
        )
    }

    /// The robust improvement rating of a defense that led from `before` to `self`, 0 to 1; nothing without RA.
    ///
    /// RIR = (max(0, −ΔRA) − max(0, ΔACC) + 1) / 2 with Δ = before − after.
    pub fn rir(&self, before: &Self) -> Option<f64> {
        Some(f64::midpoint(
            (self.ra? - before.ra?).max(0.0) - (before.acc - self.acc).max(0.0),
            1.0,
        ))
    }
}

/// The defense effectiveness rating, 0 to 1, see [`Rates::der`]; nothing if either model lacks images of either kind.
pub fn der(before: &Scores, after: &Scores) -> Option<f64> {
    Some(after.rates()?.der(&before.rates()?))
}

/// The robust improvement rating, 0 to 1, see [`Rates::rir`]; nothing if either model lacks images of either kind.
pub fn rir(before: &Scores, after: &Scores) -> Option<f64> {
    after.rates()?.rir(&before.rates()?)
}

/// The unit in which a value is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// A fraction in memory, hundredths of one when shown.
    Percent,
}

impl Unit {
    /// The sign beside the number.
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Percent => "%",
        }
    }

    /// A value as it is shown, such as 95.03 for a fraction of 0.9503.
    pub fn shown(self, value: f64) -> f64 {
        match self {
            Self::Percent => 100.0 * value,
        }
    }
}

/// A quantity that a table can have a column for.
#[derive(Debug)]
pub struct Metric {
    /// Its name in files and on the command line.
    pub id: &'static str,
    /// Its name in the head of a table.
    pub title: &'static str,
    /// What it says, in one sentence.
    pub summary: &'static str,
    /// How it is shown.
    pub unit: Unit,
    /// Whether the defender wants it high.
    pub higher_is_better: bool,
    /// Computes it from the scores of the undefended and of the defended model.
    value: fn(Option<&Scores>, &Scores) -> Option<f64>,
}

impl Metric {
    /// The value for a model, given the scores of the model it was made from where it was made by a defense.
    ///
    /// Nothing if there are no images for it, or no model to compare with.
    pub fn value(&self, before: Option<&Scores>, after: &Scores) -> Option<f64> {
        (self.value)(before, after)
    }

    /// The arrow that says which way is better.
    pub fn arrow(&self) -> char {
        if self.higher_is_better { '↑' } else { '↓' }
    }

    /// Whether `a` is better than `b`.
    pub fn is_better(&self, a: f64, b: f64) -> bool {
        if self.higher_is_better { a > b } else { a < b }
    }
}

/// All metrics, in the order of the columns of a table.
pub static METRICS: &[Metric] = &[
    Metric {
        id: "acc",
        title: "ACC",
        summary: "Share of the clean test images that are classified rightly.",
        unit: Unit::Percent,
        higher_is_better: true,
        value: |_, after| after.acc.value(),
    },
    Metric {
        id: "asr",
        title: "ASR",
        summary: "Share of the poisoned test images that are given the label of the attacker.",
        unit: Unit::Percent,
        higher_is_better: false,
        value: |_, after| after.asr.value(),
    },
    Metric {
        id: "ra",
        title: "RA",
        summary: "Share of the poisoned test images that are given their true label.",
        unit: Unit::Percent,
        higher_is_better: true,
        value: |_, after| after.ra.value(),
    },
    Metric {
        id: "der",
        title: "DER",
        summary: "Fall of ASR less fall of ACC, scaled so that an unchanged model has 50.",
        unit: Unit::Percent,
        higher_is_better: true,
        value: |before, after| der(before?, after),
    },
    Metric {
        id: "rir",
        title: "RIR",
        summary: "Rise of RA less fall of ACC, scaled so that an unchanged model has 50.",
        unit: Unit::Percent,
        higher_is_better: true,
        value: |before, after| rir(before?, after),
    },
];

/// The metric with this id.
pub fn metric(id: &str) -> Option<&'static Metric> {
    METRICS.iter().find(|metric| metric.id == id)
}

/// The arithmetic mean; nothing for no values.
///
/// Give it unrounded values: the mean of rounded ones is another number, and so is the DER of mean scores.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// The standard deviation of the population that the values are drawn from (division by `n - 1`); nothing for fewer
/// than two values.
pub fn std_dev(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let mean = mean(values)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// Several runs of one cell in one place of a table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Number of runs.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, see [`std_dev`]; nothing for a single run.
    pub std: Option<f64>,
}

impl Summary {
    /// Summarises unrounded values; nothing for none.
    pub fn of(values: &[f64]) -> Option<Self> {
        Some(Self {
            n: values.len(),
            mean: mean(values)?,
            std: std_dev(values),
        })
    }
}
