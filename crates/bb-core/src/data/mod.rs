//! Datasets: from files of several kinds to 8-bit images in memory, all of them alike.
//!
//! The decision embodied here: everything is decoded once to u8 pixels of one size, and nothing downstream ever sees a
//! file format.
//! Triggers are put on these pixels, and the transforms of training (crop, mirror, normalisation) belong to the
//! assembly of batches, so this module only carries their constants in [`DatasetSpec`].
//!
//! | id | from |
//! |---|---|
//! | `cifar10`, `cifar100` | Parquet shards, the official files (binary or Python's, also in their archives), or for `cifar10` the hub (`--data hub`, feature `hub`) |
//! | `gtsrb` | Parquet shards, the official folders and tables, BackdoorBench's and Kaggle's |
//! | `tiny` | Parquet shards, the official folders |
//! | `folder` | `train/<class>/` and `test/<class>/` with images, or Parquet shards |
//! | `synthetic` | nothing: made by the program |
//!
//! Files are looked for in the folder given, in its sub-folder named after the dataset, and in the sub-folders of both
//! that usual tools make (`plain_text`, `data`, `default`, `cifar-10-batches-py`); docs/guide/datasets.md shows all
//! layouts.
//! Parquet files have one image per row: a column of PNG or JPEG files, as bytes or as `struct<bytes, path>`, and a column
//! of whole numbers.
//! Subsets are welcome: no number of rows is expected.

use std::path::{Path, PathBuf};

mod batches;
mod budget;
mod cache;
mod classes;
mod decode;
mod error;
mod folder;
#[cfg(feature = "hub")]
mod hub;
mod images;
mod listing;
mod locate;
mod named;
mod pages;
mod pickled;
pub mod resize;
mod shards;
mod signs;
mod spec;
mod synthetic;
mod table;
mod thrift;
mod tiny;

pub use classes::known as known_classes;
pub use decode::{ImageFault, without_profile};
pub use error::DataError;
pub use images::{Images, Split};
pub use named::NamedClass;
pub use pickled::PickleFault;
pub use spec::{DATASETS, DatasetSpec, spec};

use crate::artifact::sha256_hex;
use crate::events::Log;
use cache::{Digested, Key};
use locate::Source;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The word that stands for the Hugging Face hub where a folder is expected.
const HUB: &str = "hub";

/// A decoded dataset.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// Its constants; for `folder` with the number of classes and the size found.
    pub spec: DatasetSpec,
    /// The images to train on.
    pub train: Split,
    /// The images to measure on.
    pub test: Split,
    /// SHA-256 over the pixels and labels of both splits, in hexadecimal: equal for equal content, wherever it came
    /// from.
    pub digest: String,
    /// The names of the classes in label order, one for each; the number as text where nobody named them. They are no
    /// part of the digest, so that no cell depends on how a file spells them.
    pub class_names: Vec<String>,
    /// What people should know of these data beside that.
    pub notes: Vec<Note>,
}

/// Something about the data that the log of a run should say, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// As one would expect.
    Info(String),
    /// Perhaps not what was meant; said even when quiet.
    Warning(String),
}

impl Dataset {
    /// Says what these data are: how many images, the classes in label order, and the notes.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub fn describe(&self, log: &Log) -> std::io::Result<()> {
        let (spec, names) = (&self.spec, &self.class_names);
        let classes = if names.len() == 1 { "class" } else { "classes" };
        let text = format!(
            "{}: {} training and {} test images of {}x{}, {} {classes}: {}",
            spec.title,
            self.train.len(),
            self.test.len(),
            spec.height,
            spec.width,
            names.len(),
            shortened(names),
        );
        log.info("data", &text, &json!({ "classes": names }))?;
        for note in &self.notes {
            match note {
                Note::Info(text) => log.info("data", text, &Value::Null)?,
                Note::Warning(text) => log.warn("data", text, &Value::Null)?,
            }
        }
        Ok(())
    }
}

/// The names for a line of text; of many the first and the last.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 12;
    match names {
        [first @ .., last] if names.len() > SHOWN => {
            format!("{}, ..., {last}", first[..SHOWN - 2].join(", "))
        }
        _ => names.join(", "),
    }
}

/// A split as its reader delivers it.
struct Decoded {
    split: Split,
    facts: Facts,
}

/// What a reader learns beside images and labels; kept with them in the cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    /// The names of the classes in label order, where the files have them.
    class_names: Option<Vec<String>>,
    /// Images that were resized.
    resized: usize,
    /// Images of 16-bit grey with values that were cut at 255.
    clipped: usize,
}

impl Facts {
    fn counted(tally: &decode::Tally) -> Self {
        Self {
            class_names: None,
            resized: tally.resized(),
            clipped: tally.clipped(),
        }
    }
}

/// How to open a dataset.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// Folder for decoded images; without one, images are decoded at each opening and kept in memory.
    pub cache_dir: Option<PathBuf>,
    /// Use the first images of the train split only; for `synthetic`, the number to make.
    pub train_limit: Option<usize>,
    /// Use the first images of the test split only; for `synthetic`, the number to make.
    pub test_limit: Option<usize>,
    /// The split to measure on, where it is not the usual one: the name of its folder or shards.
    pub test_split: Option<String>,
    /// Seed of `synthetic`; the others do not depend on it.
    pub seed: u64,
}

/// Opens the dataset `id` whose files lie below `root`.
///
/// `root` is the folder that holds the dataset's folder, or that folder itself; the word `hub` stands for a download
/// (`cifar10` only); `synthetic` ignores it.
///
/// # Errors
/// Whatever is wrong with the files, see [`DataError`]; a split without images is an error, too.
pub fn open(id: &str, root: Option<&Path>, opts: &OpenOptions) -> Result<Dataset, DataError> {
    let spec = spec(id)?;
    if spec.id == "synthetic" {
        only_test(Path::new(spec.id), opts)?;
        let train = opts.train_limit.unwrap_or(synthetic::TRAIN);
        let test = opts.test_limit.unwrap_or(synthetic::TEST);
        // A limit is a promise that is kept here: who asks for more gets them.
        for (split, asked, most) in [
            ("training", train, synthetic::MOST_TRAIN),
            ("test", test, synthetic::MOST_TEST),
        ] {
            if asked > most {
                return Err(DataError::TooMany { split, asked, most });
            }
        }
        let make = |split, n| -> Result<Digested, DataError> {
            Ok(Digested::new(Decoded {
                split: synthetic::split(spec, opts.seed, split, n)?,
                facts: Facts::default(),
            }))
        };
        let (train, test) = (make("train", train)?, make("test", test)?);
        return finish(spec.clone(), None, Vec::new(), train, test);
    }
    let root = root.ok_or(DataError::NoRoot { id: spec.id })?;
    if root == Path::new(HUB) && spec.id != "folder" {
        only_test(root, opts)?;
        return open_hub(spec, opts);
    }
    let test_split = opts.test_split.as_deref();
    let found = match spec.id {
        "folder" => folder::find(spec, root, test_split)?,
        _ => locate::find(spec, root, test_split)?,
    };
    let open = |split, source: &Source, limit| {
        let key = Key {
            spec: &found.spec,
            split,
            chosen: opts.test_split.as_deref().filter(|_| split == "test"),
            place: &found.place,
            sources: source.files(),
            labels: source.labels(),
        };
        cache::open(opts.cache_dir.as_deref(), &key, limit, |enough| {
            source.read(&found.spec, enough)
        })
    };
    let train = open("train", &found.train, opts.train_limit)?;
    let test = open("test", &found.test, opts.test_limit)?;
    if let (Some(a), Some(b)) = (&train.facts.class_names, &test.facts.class_names) {
        classes::check_same((&found.train.files()[0], a), (&found.test.files()[0], b))?;
    }
    finish(found.spec, found.class_names, found.notes, train, test)
}

/// Refuses a chosen test split where there is one only.
fn only_test(place: &Path, opts: &OpenOptions) -> Result<(), DataError> {
    match &opts.test_split {
        Some(chosen) if chosen != "test" => Err(DataError::NoSplit {
            wanted: chosen.as_str().into(),
            place: place.to_path_buf(),
            found: vec!["train".to_owned(), "test".to_owned()],
            advice: None,
        }),
        _ => Ok(()),
    }
}

/// Opens what the hub has; its loader delivers both splits at once and is called at most once.
#[cfg(feature = "hub")]
fn open_hub(spec: &'static DatasetSpec, opts: &OpenOptions) -> Result<Dataset, DataError> {
    if spec.id != "cifar10" {
        return Err(DataError::NotOnHub { id: spec.id });
    }
    let both = std::cell::OnceCell::new();
    let fetch = || -> Result<(Split, Split), DataError> {
        if both.get().is_none() {
            both.set(hub::fetch(spec)?)
                .expect("it was empty a line ago");
        }
        Ok(both.get().cloned().expect("it was filled above"))
    };
    let open = |split, limit, pick: fn((Split, Split)) -> Split| {
        // Without source files the key never changes: what was once fetched stays.
        let key = Key {
            spec,
            split,
            chosen: None,
            place: Path::new(HUB),
            sources: &[],
            labels: &[],
        };
        cache::open(opts.cache_dir.as_deref(), &key, limit, |_| {
            fetch().map(pick).map(|split| Decoded {
                split,
                facts: Facts::default(),
            })
        })
    };
    let train = open("train", opts.train_limit, |both| both.0)?;
    let test = open("test", opts.test_limit, |both| both.1)?;
    finish(spec.clone(), None, Vec::new(), train, test)
}

#[cfg(not(feature = "hub"))]
fn open_hub(spec: &'static DatasetSpec, _: &OpenOptions) -> Result<Dataset, DataError> {
    if spec.id != "cifar10" {
        return Err(DataError::NotOnHub { id: spec.id });
    }
    Err(DataError::FeatureOff)
}

/// Joins the splits; `class_names` are those of the layout, if it has some.
fn finish(
    spec: DatasetSpec,
    class_names: Option<Vec<String>>,
    mut notes: Vec<Note>,
    train: Digested,
    test: Digested,
) -> Result<Dataset, DataError> {
    for (split, side) in [("train", &train), ("test", &test)] {
        if side.split.is_empty() {
            return Err(DataError::EmptySplit { id: spec.id, split });
        }
    }
    let digest = [b"bb-dataset-1".as_slice(), &train.digest, &test.digest].concat();
    for (split, side) in [("training", &train), ("test", &test)] {
        let images = |n: usize| match n {
            1 => format!("1 {split} image"),
            _ => format!("{n} {split} images"),
        };
        if side.facts.resized > 0 {
            notes.push(Note::Info(format!(
                "{} of another size resized to {}x{}, bilinear as in Pillow",
                images(side.facts.resized),
                spec.height,
                spec.width
            )));
        }
        if side.facts.clipped > 0 {
            notes.push(Note::Warning(format!(
                "{} of 16-bit grey with values above 255, which become white as in Pillow; scale them to 8 bits before",
                images(side.facts.clipped),
            )));
        }
    }
    let known =
        || classes::known(spec.id).map(|names| names.iter().map(ToString::to_string).collect());
    let class_names = class_names
        .or(train.facts.class_names)
        .or(test.facts.class_names)
        .or_else(known)
        .unwrap_or_else(|| {
            (0..spec.classes)
                .map(|class| class.to_string())
                .collect::<Vec<_>>()
        });
    // Names of strangers are shown in terminals and tables, where nothing but their letters should count.
    let class_names = class_names
        .iter()
        .map(|name| name.replace(char::is_control, "\u{fffd}"))
        .collect();
    Ok(Dataset {
        spec,
        train: train.split,
        test: test.split,
        digest: sha256_hex(digest),
        class_names,
        notes,
    })
}
