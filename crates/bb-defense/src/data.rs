//! What a defense may reach besides the suspect model, decided when it is compiled.
//!
//! A method names its data as a type ([`Defense::Data`](crate::method::Defense::Data)). The types are made here and
//! nowhere else ([`FromNeeds`] is sealed), and none of them holds a trigger, a poison index or a test image, so the
//! promise of a threat model is a fact about types and not about good behaviour.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bb_core::artifact::sha256_hex;
use bb_core::cli::shorten;
use bb_core::data::{Dataset, Split};
use bb_core::files::{self, Links};
use bb_core::method::Needs;
use bb_core::rng::python::Random;
use bb_core::settings::{Idle, SettingsError, check};
use serde::{Deserialize, Serialize};

use crate::error::DefenseError;

/// Data that the harness can hand to a method.
///
/// The types that implement it are those of this module. No other crate can add one that holds more:
///
/// ```compile_fail,E0277
/// use bb_core::data::{Dataset, Split};
/// use bb_core::method::Needs;
/// use bb_defense::DefenseError;
/// use bb_defense::data::{FromNeeds, Granted};
///
/// struct TestImages(Split);
///
/// impl FromNeeds for TestImages {
///     const NEEDS: Needs = Needs::CleanFraction;
///     type Budget = ();
///     fn grant(dataset: &Dataset, _: &()) -> Result<(Self, Option<Granted>), DefenseError> {
///         Ok((Self(dataset.test.clone()), None))
///     }
/// }
/// ```
pub trait FromNeeds: sealed::Sealed + Sized {
    /// What [`MethodInfo`](bb_core::method::MethodInfo) must say of a method with this data.
    const NEEDS: Needs;
    /// Settings that fix how much of the data there is.
    type Budget: Default;

    /// Takes the data out of a dataset. Only the harness has one.
    #[doc(hidden)]
    fn grant(
        dataset: &Dataset,
        budget: &Self::Budget,
    ) -> Result<(Self, Option<Granted>), DefenseError>;
}

/// No image at all, for data-free methods.
#[derive(Clone, Copy, Debug)]
pub struct NoImages(());

/// Clean images of the training split with their true labels, chosen by a [`CleanBudget`].
#[derive(Clone, Debug)]
pub struct CleanImages {
    split: Split,
}

impl CleanImages {
    /// The images, in the order in which they were drawn.
    pub(crate) fn split(&self) -> &Split {
        &self.split
    }

    /// Images for a method that runs outside the harness, such as in a test.
    pub fn from_split(split: Split) -> Self {
        Self { split }
    }
}

/// The clean images in two parts, for a choice among models.
#[derive(Clone, Debug)]
pub struct HeldOut {
    /// What models may be trained on.
    pub train: Split,
    /// What they are judged by.
    pub test: Split,
}

impl HeldOut {
    /// Holds the last `share` of the clean images out. They are in the random order of their draw, so its end is a
    /// random part of them.
    ///
    /// # Errors
    /// [`DefenseError::HoldOut`] if one side is left without an image.
    pub fn new(clean: &Split, share: f64) -> Result<Self, DefenseError> {
        let images = clean.len();
        let tested = (images as f64 * share) as usize;
        if tested == 0 || tested == images {
            return Err(DefenseError::HoldOut { images, share });
        }
        let tail: Vec<usize> = (images - tested..images).collect();
        Ok(Self {
            train: clean.take(images - tested),
            test: clean.select(&tail),
        })
    }
}

/// What was handed out, for the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// Clean images given.
    pub images: usize,
    /// Images in the training split.
    pub of: usize,
    /// SHA-256 of the chosen indices as decimal text, one a line.
    pub indices_sha256: String,
}

impl FromNeeds for NoImages {
    const NEEDS: Needs = Needs::DataFree;
    type Budget = ();

    fn grant(_: &Dataset, (): &()) -> Result<(Self, Option<Granted>), DefenseError> {
        Ok((Self(()), None))
    }
}

impl FromNeeds for CleanImages {
    const NEEDS: Needs = Needs::CleanFraction;
    type Budget = CleanBudget;

    fn grant(
        dataset: &Dataset,
        budget: &CleanBudget,
    ) -> Result<(Self, Option<Granted>), DefenseError> {
        let indices = budget.indices(dataset.train.len())?;
        let granted = Granted {
            images: indices.len(),
            of: dataset.train.len(),
            indices_sha256: digest(&indices),
        };
        Ok((
            Self {
                split: dataset.train.select(&indices),
            },
            Some(granted),
        ))
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::NoImages {}
    impl Sealed for super::CleanImages {}
}

/// Table `[clean]`: which images of the clean training split the defender has.
///
/// The default is the bench's: 5 % of the split, drawn without replacement by Python's `random.sample` right after
/// `random.seed(0)`, not balanced over the classes. Images that were poisoned in training may be among them, with
/// their clean pixels and their true label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CleanBudget {
    /// Share of the training split, above 0 and at most 1; the count is cut to a whole number.
    pub ratio: f64,
    /// Seed of the draw.
    pub seed: u32,
    /// Text file with the indices instead, separated by white space; empty draws them.
    pub index_file: String,
}

impl Default for CleanBudget {
    fn default() -> Self {
        Self {
            ratio: 0.05,
            seed: 0,
            index_file: String::new(),
        }
    }
}

impl CleanBudget {
    /// Checks the settings, which stand in the table `clean`.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let ratio = self.ratio;
        check(
            "clean.ratio",
            ratio,
            "a share above 0 and at most 1",
            ratio > 0.0 && ratio <= 1.0,
        )
    }

    /// What a file of indices leaves without effect.
    pub fn idle(&self) -> Vec<Idle> {
        if self.index_file.is_empty() {
            return Vec::new();
        }
        let why = "`clean.index_file` names the images";
        ["clean.ratio", "clean.seed"].map(|key| (key, why)).into()
    }

    /// The indices into a training split of `images` images, in the order of the draw.
    ///
    /// # Errors
    /// [`DefenseError::NoCleanImages`] if the share comes to no image, [`DefenseError::IndexFile`] and
    /// [`DefenseError::IndexLine`] if the file is not a list of different indices below `images`.
    pub fn indices(&self, images: usize) -> Result<Vec<usize>, DefenseError> {
        if !self.index_file.is_empty() {
            return read_indices(Path::new(&self.index_file), images);
        }
        let count = ((images as f64 * self.ratio) as usize).min(images);
        if count == 0 {
            return Err(DefenseError::NoCleanImages {
                ratio: self.ratio,
                images,
            });
        }
        Ok(Random::new(u64::from(self.seed)).sample(images, count))
    }
}

/// Most bytes of a list of indices: a million of them, one a line, have seven million.
const LONGEST_INDEX: u64 = 32 << 20;

fn read_indices(path: &Path, images: usize) -> Result<Vec<usize>, DefenseError> {
    let text = files::read_text(path, Links::Follow, LONGEST_INDEX).map_err(|source| {
        DefenseError::IndexFile {
            path: path.to_owned(),
            source,
        }
    })?;
    let mut seen = BTreeSet::new();
    let mut indices = Vec::new();
    for (line, words) in text.lines().enumerate() {
        for word in words.split_whitespace() {
            let index = word
                .parse()
                .ok()
                .filter(|&index: &usize| index < images && seen.insert(index));
            let index = index.ok_or_else(|| DefenseError::IndexLine {
                path: path.to_owned(),
                line: line + 1,
                found: shorten(word),
                images,
            })?;
            indices.push(index);
        }
    }
    if indices.is_empty() {
        return Err(DefenseError::NoIndices {
            path: PathBuf::from(path),
        });
    }
    Ok(indices)
}

fn digest(indices: &[usize]) -> String {
    let mut text = String::new();
    for index in indices {
        writeln!(text, "{index}").expect("strings take all");
    }
    sha256_hex(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(ratio: f64) -> CleanBudget {
        CleanBudget {
            ratio,
            ..CleanBudget::default()
        }
    }

    #[test]
    fn the_draw_is_the_bench_one() {
        let cases: [(usize, usize, &[usize]); 3] = [
            (
                50_000,
                2500,
                &[25_247, 49_673, 27_562, 2653, 16_968, 33_506],
            ),
            (39_209, 1960, &[25_247, 27_562, 2653, 16_968]),
            (100_000, 5000, &[50_494, 99_346, 55_125, 5306]),
        ];
        for (images, count, first) in cases {
            let indices = budget(0.05).indices(images).expect("a draw");
            assert_eq!(indices.len(), count);
            assert_eq!(&indices[..first.len()], first);
            // A smaller share of the same set is a prefix.
            let percent = budget(0.01).indices(images).expect("a draw");
            assert_eq!(percent, indices[..percent.len()]);
        }
    }

    #[test]
    fn a_share_of_nothing_is_an_error() {
        let error = budget(0.05).indices(19).expect_err("0.95 images are none");
        assert_eq!(
            error.to_string(),
            "`clean.ratio` 0.05 of 19 training images gives no clean image"
        );
        assert_eq!(budget(1.0).indices(3).expect("all").len(), 3);
        for ratio in [0.0, -0.1, 1.1, f64::NAN] {
            assert!(budget(ratio).validate().is_err(), "{ratio}");
        }
    }

    #[test]
    fn an_index_file_is_read_in_order_and_checked() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("index.txt");
        let read = |text: &str| {
            fs_err::write(&path, text).expect("written");
            let index_file = path.to_str().expect("a plain path").to_owned();
            CleanBudget {
                index_file,
                ..budget(0.5)
            }
            .indices(10)
            .map_err(|error| error.to_string())
        };
        assert_eq!(read("3\n1 2\n\n9"), Ok(vec![3, 1, 2, 9]));
        let shown = path.display();
        let wrong = |line: usize, found: &str| {
            Err(format!(
                "`{shown}`, line {line}: expected a new index below 10, found `{found}`"
            ))
        };
        assert_eq!(read("3\n10"), wrong(2, "10"));
        assert_eq!(read("3\n3"), wrong(2, "3"));
        assert_eq!(read("-1"), wrong(1, "-1"));
        assert_eq!(read("1,2"), wrong(1, "1,2"));
        assert_eq!(
            read(&"x".repeat(99)),
            wrong(1, &format!("{}…", "x".repeat(60)))
        );
        assert_eq!(read(" \n"), Err(format!("`{shown}` holds no index")));
        fs_err::remove_file(&path).expect("removed");
        let index_file = path.to_str().expect("a plain path").to_owned();
        let missing = CleanBudget {
            index_file,
            ..budget(0.5)
        }
        .indices(10)
        .expect_err("no file");
        assert_eq!(
            missing.to_string(),
            format!("cannot read the index file `{shown}`")
        );
    }
}
