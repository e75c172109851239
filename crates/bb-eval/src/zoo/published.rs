//! The models of the index (`model_zoo/index.toml`): listing, fetching, and measuring them again.
//!
//! A model is measured quickly on the first [`QUICK`] clean and poisoned test images, which have to agree with the
//! published figures as a sample of all images does, or on all images, which have to agree but for single images that
//! another processor's rounding may flip.

use std::path::{Path, PathBuf};

use bb_attack::method::{Ctx, Given, Poisoned};
use bb_attack::prep::Prep;
use bb_attack::registry;
use bb_core::cell::POISON_TEST;
use bb_core::cli::{Coded, Failure, exit};
use bb_core::data::{self, Dataset, OpenOptions};
use bb_core::events::Progress;
use bb_core::metrics::Ratio;
use bb_core::poison::PoisonSet;
use bb_nn::{ArchSpec, Compute, eval};
use bb_zoo::fetch::{self, FetchError, Source};
use bb_zoo::index::{Entry, Expected, Index, IndexError, Listed, Poison};
use serde_json::json;

use super::Rules;
use super::import::{fitted, renamed};
use super::source::Wanted;
use crate::network;

/// The index of this repository, seen from its root. Its text is a part of the program; the files that it lists lie beside
/// it in the repository only.
pub const INDEX: &str = "model_zoo/index.toml";
const BUILT_IN: &str = include_str!("../../../../model_zoo/index.toml");
/// Folder for fetched models.
pub const DIR: &str = "runs/zoo";
/// Images of each kind that are measured unless all are wanted.
pub const QUICK: usize = 200;

/// Why a published model cannot be measured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishedError {
    /// It is not there.
    #[error("`{id}` has not been fetched into `{}`", dir.display())]
    Absent {
        /// The model.
        id: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// It is published in the repository only, and this is another folder.
    #[error("`{id}` lies in the project's repository as `{}`, and nowhere else", path.display())]
    Elsewhere {
        /// The model.
        id: String,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Its poisoned images cannot be made from the recipe.
    #[error(
        "`{id}`: the poisoned images of `{attack}` are made during training, so a recipe does not give them"
    )]
    Recipe {
        /// The model.
        id: String,
        /// The attack.
        attack: String,
    },
}

impl Coded for PublishedError {
    fn exit_code(&self) -> u8 {
        exit::INPUT
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Absent { id, .. } => Some(format!("`bb-eval zoo get {id}`")),
            Self::Elsewhere { .. } => Some(
                "run this in the root of the repository, or name a copy of the file with `--from`"
                    .to_owned(),
            ),
            Self::Recipe { .. } => None,
        }
    }
}

/// An index file, or the one that is built in.
fn open(index: Option<&Path>) -> Result<Index, IndexError> {
    match index {
        Some(path) => Index::load(path),
        None => Index::parse(INDEX, BUILT_IN),
    }
}

/// The models of an index, or of the one that is built in, one line each, for people.
pub fn list(index: Option<&Path>) -> Result<String, Failure> {
    let index = open(index)?;
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    let head = [
        "id", "dataset", "network", "attack", "ACC", "ASR", "bytes", "licence",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    for entry in index.list() {
        rows.push([
            entry.id.clone(),
            entry.dataset.clone(),
            format!("{}-w{}", entry.arch, entry.width),
            entry.attack.clone(),
            percent(entry.expected.acc),
            percent(entry.expected.asr),
            entry.file.bytes.to_string(),
            entry.licence.clone(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).filter_map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths);
        let line: Vec<String> = cells.map(|(cell, w)| format!("{cell:w$}")).collect();
        text.push_str(line.join("  ").trim_end());
        text.push('\n');
    }
    Ok(text)
}

/// What is to be fetched.
#[derive(Clone, Debug)]
pub struct GetRequest {
    /// Name of the model.
    pub id: String,
    /// The index file; the one that is built in without.
    pub index: Option<PathBuf>,
    /// Where the checkpoint is to come from, instead of from where the index says.
    pub from: Option<String>,
    /// Folder for fetched models.
    pub dir: PathBuf,
    /// No progress on standard error.
    pub quiet: bool,
}

/// Fetches a model of the index, and its poisoned images where they are published; gives its folder.
///
/// # Errors
/// [`FetchError`] with what was wrong with each source.
pub fn get(request: &GetRequest) -> Result<PathBuf, Failure> {
    let index = open(request.index.as_deref())?;
    let entry = index.find(&request.id)?;
    let dir = request.dir.join(&entry.id);
    let from = request.from.as_deref().map(Source::parse).transpose()?;
    let mut files = vec![(file_name(&entry.file), &entry.file, from)];
    if let Some(Poison::File(file)) = &entry.poison {
        files.push((POISON_TEST, file, None));
    }
    for (name, file, from) in files {
        let sources = match from {
            Some(source) => vec![source],
            None => sources(request.index.as_deref(), file),
        };
        if request.index.is_none()
            && let [Source::Path(path)] = &sources[..]
            && !path.exists()
            && !dir.join(name).exists()
        {
            return Err(PublishedError::Elsewhere {
                id: entry.id.clone(),
                path: path.clone(),
            }
            .into());
        }
        fs_err::create_dir_all(&dir)?;
        let progress = Progress::new("fetching", "bytes", file.bytes, request.quiet);
        let mut told = 0;
        fetch::fetch(&sources, file, &dir.join(name), &mut |bytes| {
            // A source that begins anew tells fewer; the bar waits for it.
            progress.add(bytes.saturating_sub(told));
            told = told.max(bytes);
        })?;
        progress.finish();
    }
    Ok(dir)
}

/// Where a listed file is: beside the index, then its mirrors.
fn sources(index: Option<&Path>, file: &Listed) -> Vec<Source> {
    let beside = beside(index, file).map(Source::Path);
    let mirrors = file.mirrors.iter().cloned().map(Source::Address);
    beside.into_iter().chain(mirrors).collect()
}

fn beside(index: Option<&Path>, file: &Listed) -> Option<PathBuf> {
    let index = index.unwrap_or(Path::new(INDEX));
    Some(index.with_file_name(file.path.as_ref()?))
}

/// The name that a checkpoint gets; what it is, its content says.
fn file_name(file: &Listed) -> &'static str {
    let named = file.path.as_ref().or(file.mirrors.first());
    match named {
        Some(name) if name.ends_with(".safetensors") => "model.safetensors",
        _ => "model.pt",
    }
}

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct CheckRequest {
    /// Name of the model.
    pub id: String,
    /// The index file; the one that is built in without.
    pub index: Option<PathBuf>,
    /// Folder for fetched models.
    pub dir: PathBuf,
    /// Folder with the datasets.
    pub data: Option<PathBuf>,
    /// Dotted keys that lead to the network in a file with more than one.
    pub key: Option<String>,
    /// All images, not the first [`QUICK`].
    pub full: bool,
}

/// What was measured of a published model, and what its index says.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// Name of the model.
    pub id: String,
    /// Clean accuracy.
    pub acc: Ratio,
    /// Attack success rate; nothing without poisoned images.
    pub asr: Option<Ratio>,
    /// Test images of each kind that there are.
    pub all: (u64, u64),
    /// The published figures.
    pub expected: Expected,
}

impl Checked {
    /// Whether what was measured is what was published.
    pub fn agrees(&self) -> bool {
        agrees(self.acc, self.expected.acc, self.all.0)
            && self
                .asr
                .is_none_or(|asr| agrees(asr, self.expected.asr, self.all.1))
    }

    /// One line of JSON.
    pub fn to_json(&self) -> String {
        let line = json!({
            "id": self.id,
            "acc": self.acc,
            "asr": self.asr,
            "expected": { "acc": self.expected.acc, "asr": self.expected.asr },
            "agrees": self.agrees(),
        });
        format!("{line}\n")
    }
}

/// Whether `found`, of `all` images or of some of them, is a share of `expected` of all.
///
/// Of all images one in a thousand, and at least one, may differ: figures are published rounded, and another processor
/// rounds otherwise. A sample may be four standard errors off, and one image.
fn agrees(found: Ratio, expected: f64, all: u64) -> bool {
    let (n, all) = (found.total as f64, all as f64);
    let off = (found.hits as f64 - expected * n).abs();
    let finite = if all > 1.0 {
        (all - n) / (all - 1.0)
    } else {
        0.0
    };
    let error = (expected * (1.0 - expected) * n * finite).max(0.0).sqrt();
    // Half an image more, since a published share of all images is rounded itself.
    off <= 4.0 * error + (n / 1000.0).max(1.0) + 0.5
}

/// Measures a model of the index again. Size and hash of its files are checked before they are read.
///
/// # Errors
/// A model that has not been fetched, is another one, or does not fit its entry.
pub fn check(request: &CheckRequest, compute: &Compute) -> Result<Checked, Failure> {
    let index = open(request.index.as_deref())?;
    let entry = index.find(&request.id)?;
    let dir = request.dir.join(&entry.id);
    let place = |name: &str, file: &Listed| -> Result<PathBuf, Failure> {
        let fetched = dir.join(name);
        let path = match beside(request.index.as_deref(), file) {
            _ if fetched.exists() => fetched,
            Some(beside) if beside.exists() => beside,
            _ => {
                return Err(PublishedError::Absent {
                    id: entry.id.clone(),
                    dir: request.dir.clone(),
                }
                .into());
            }
        };
        match fetch::check(&path, file)? {
            None => Ok(path),
            Some(fault) => Err(FetchError::Other { path, fault }.into()),
        }
    };
    let path = place(file_name(&entry.file), &entry.file)?;
    let poison_file = match &entry.poison {
        Some(Poison::File(file)) => Some(place(POISON_TEST, file)?),
        _ => None,
    };

    let options = OpenOptions::default();
    let dataset = data::open(&entry.dataset, request.data.as_deref(), &options)?;
    let arch = ArchSpec::for_dataset(&entry.arch, entry.width, &dataset.spec)?;
    let rules = Rules::default();
    let wanted = Wanted {
        key: request.key.as_deref(),
        arch: Some(&entry.arch),
        rules: Some(&rules),
    };
    let (found, ignored) = renamed(&path, wanted)?;
    let (_, net, _) = fitted(&found, &arch, (&rules, ignored), None)?;
    let mut net = net.on(compute)?;
    let poisoned = match (&entry.poison, poison_file) {
        (_, Some(path)) => {
            let poisoned = PoisonSet::load(&path)?;
            poisoned
                .check(dataset.test.len(), dataset.spec.classes)
                .map_err(network::images_in(&path))?;
            Some(poisoned)
        }
        (Some(Poison::Recipe { seed, set }), None) => {
            Some(from_recipe(entry, *seed, set, &dataset, &arch)?)
        }
        _ => None,
    };
    let limit = if request.full { usize::MAX } else { QUICK };
    let acc = eval::accuracy(&mut net, &dataset.test.take(limit), &dataset.spec)
        .map_err(network::scores_of(&path))?;
    let asr = match &poisoned {
        None => None,
        Some(poisoned) => {
            let images = poisoned.images.take(limit);
            let predictions = eval::predict(&mut net, &images, &dataset.spec)
                .map_err(network::scores_of(&path))?;
            let labels = &poisoned.labels[..images.len()];
            Some(eval::agreement(&predictions, labels))
        }
    };
    let count = poisoned.map_or(0, |poisoned| poisoned.len());
    Ok(Checked {
        id: entry.id.clone(),
        acc,
        asr,
        all: (dataset.test.len() as u64, count as u64),
        expected: entry.expected,
    })
}

/// The poisoned test images as the attack makes them.
fn from_recipe(
    entry: &Entry,
    seed: u64,
    set: &[String],
    dataset: &Dataset,
    arch: &ArchSpec,
) -> Result<PoisonSet, Failure> {
    let given = Given {
        files: Vec::new(),
        set: set.to_vec(),
    };
    let ready = registry::find(&entry.attack)?.resolve(&entry.dataset, &given)?;
    let Poisoned { test, hook, .. } = ready.prepare(&Ctx {
        dataset,
        arch,
        seed,
        prep: Prep {
            quiet: true,
            ..Prep::default()
        },
    })?;
    if hook.is_some() {
        return Err(PublishedError::Recipe {
            id: entry.id.clone(),
            attack: entry.attack.clone(),
        }
        .into());
    }
    Ok(test)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_may_differ_as_samples_do_and_all_images_may_not() {
        let of = |hits, total| Ratio { hits, total };
        for (found, expected, all, agree) in [
            (of(912, 1000), 0.912, 1000, true),
            (of(911, 1000), 0.912, 1000, true),
            (of(910, 1000), 0.912, 1000, false),
            (of(9110, 10_000), 0.912, 10_000, true),
            (of(9108, 10_000), 0.912, 10_000, false),
            // Standard error of 200 of 10,000 images: 0.02.
            (of(168, 200), 0.912, 10_000, true),
            (of(160, 200), 0.912, 10_000, false),
            (of(200, 200), 1.0, 9000, true),
            (of(198, 200), 1.0, 9000, false),
            (of(0, 0), 0.5, 0, true),
        ] {
            assert_eq!(agrees(found, expected, all), agree, "{found:?} {expected}");
        }
    }
}
