//! The data of a model that is imported, and the poisoned pictures of a record beside them.
//!
//! A record names images by their rows in the benchmark's order. Labels and pixels are compared with the dataset, so that
//! no picture is taken for another image's; [`ImportRequest::match_rows`] looks for the row of each picture instead.
//!
//! The network of a record that was trained on the first images has a training split of these only. How many of the test
//! images a record poisoned says nothing about the clean ones, which are all measured.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bb_attack::picture::Picture;
use bb_attack::results;
use bb_core::cli::{Coded, Failure, exit};
use bb_core::data::{self, Dataset, Images, OpenOptions, Split};
use bb_core::events::Log;
use bb_core::poison::{PoisonFault, PoisonSet};
use bb_core::rows;
use bb_zoo::torch::DatasetState;

use super::source::Found;
use super::{ImportRequest, ZooError};
use crate::network;

/// Why the pictures of a record cannot be used with a dataset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A row has another label than the record says.
    #[error("`{}`: `{set}: label of image {index}` is {found}, the dataset has {expected}", path.display())]
    Label {
        /// The checkpoint.
        path: PathBuf,
        /// The field of the poisoned set.
        set: &'static str,
        /// Index of the image.
        index: usize,
        /// Label in the record.
        found: u32,
        /// Label in the dataset.
        expected: u32,
        /// Which order fits, if one does.
        order: String,
    },
    /// Pictures show other images than the rows that they name.
    #[error("`{}`: the pictures of `{set}` are not of the rows that they name: {fault}", path.display())]
    Rows {
        /// The checkpoint.
        path: PathBuf,
        /// The field of the poisoned set.
        set: &'static str,
        /// How many pictures.
        fault: Box<PoisonFault>,
        /// Which order fits, if one does.
        order: String,
    },
    /// Pictures whose images cannot be found.
    #[error("`{}`: {lost} of {pictures} pictures of `{set}` resemble no image of their class clearly, such as that of image {index}", path.display())]
    NoRow {
        /// The checkpoint.
        path: PathBuf,
        /// The field of the poisoned set.
        set: &'static str,
        /// Pictures without a row.
        lost: usize,
        /// All pictures.
        pictures: usize,
        /// The index of the first one in the record.
        index: usize,
    },
    /// A limit that cuts poisoned images off.
    #[error("`--test-limit {limit}` leaves out image {index}, which is poisoned, expected at least {}", index + 1)]
    TestLimit {
        /// The limit.
        limit: usize,
        /// The last poisoned image.
        index: usize,
    },
    /// A limit that leaves nothing out.
    #[error("`--test-limit {limit}` leaves nothing out: the test split has {images} images")]
    WideLimit {
        /// The limit.
        limit: usize,
        /// Images of the test split.
        images: usize,
    },
    /// Rows of pictures that do not exist.
    #[error("`{}` has no poisoned pictures, so `--match-rows` has nothing to do", path.display())]
    NoPictures {
        /// The file.
        path: PathBuf,
    },
}

impl Coded for RecordError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Label { .. } | Self::Rows { .. } | Self::NoRow { .. } => exit::INPUT,
            Self::TestLimit { .. } | Self::WideLimit { .. } | Self::NoPictures { .. } => {
                exit::USAGE
            }
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Label { order, .. } | Self::Rows { order, .. } => Some(format!(
                "the rows of the dataset must stand in the order that the record was made with, the benchmark's: {order}"
            )),
            Self::NoRow { .. } => {
                Some("this may be another copy, split or size of the dataset".to_owned())
            }
            Self::TestLimit { .. } => None,
            Self::WideLimit { .. } | Self::NoPictures { .. } => Some("leave it out".to_owned()),
        }
    }
}

/// The data of a model.
pub(super) struct Data {
    /// All of it.
    whole: Dataset,
    /// What the model was trained on, and what it is measured on.
    pub(super) dataset: Dataset,
    /// Limits on the first images of the training and the test split.
    pub(super) limits: (Option<usize>, Option<usize>),
}

/// The dataset, its training split cut to the images that a record was made from, its test split as asked for.
pub(super) fn open(request: &ImportRequest, found: &Found) -> Result<Data, Failure> {
    let open = |train_limit, test_limit| {
        let options = OpenOptions {
            cache_dir: Some(request.out.join("cache")),
            train_limit,
            test_limit,
            test_split: request.test_split.clone(),
            seed: 0,
        };
        data::open(&request.dataset, request.data.as_deref(), &options)
    };
    let whole = open(None, None)?;
    whole.describe(&Log::new(request.quiet))?;
    let images = whole.test.len();
    if let Some(limit) = request.test_limit.filter(|&limit| limit > images) {
        return Err(RecordError::WideLimit { limit, images }.into());
    }
    let mut limits = (None, request.test_limit.filter(|&limit| limit < images));
    if let Some(sets) = &found.sets {
        let fit = |field: &str, found_there: String, expected: String| ZooError::Fit {
            path: found.file.clone(),
            field: field.to_owned(),
            found: found_there,
            expected,
        };
        let spec = &whole.spec;
        if sets.image != (spec.height, spec.width) {
            let size = |(h, w): (usize, usize)| format!("{h} x {w}");
            let expected = size((spec.height, spec.width));
            return Err(fit("img_size", size(sets.image), expected).into());
        }
        for (field, state, split) in [
            ("bd_train", sets.train.as_ref(), &whole.train),
            ("bd_test", Some(&sets.test), &whole.test),
        ] {
            // Where the rows stand in another order, it is not known which are the first.
            let Some(state) = state.filter(|_| !request.match_rows) else {
                continue;
            };
            let (images, all) = (state.images, split.len());
            if images > all {
                let images = format!("{images} images");
                return Err(fit(field, images, all.to_string()).into());
            }
            if field == "bd_train" && images < all {
                limits.0 = Some(images);
            }
        }
    } else if request.match_rows {
        return Err(RecordError::NoPictures {
            path: found.file.clone(),
        }
        .into());
    }
    let dataset = match limits {
        (None, None) => whole.clone(),
        (train, test) => open(train, test)?,
    };
    Ok(Data {
        whole,
        dataset,
        limits,
    })
}

/// The poisoned training and test images, each beside its row.
pub(super) fn sets(
    request: &ImportRequest,
    found: &Found,
    data: &Data,
) -> Result<(PoisonSet, PoisonSet), Failure> {
    let (whole, dataset) = (&data.whole, &data.dataset);
    let empty = |split: &Split| {
        let images = Images::new(0, split.images.height(), split.images.width(), Vec::new())?;
        Ok::<_, Failure>(PoisonSet::new(Vec::new(), images, Vec::new(), Vec::new())?)
    };
    let Some(sets) = &found.sets else {
        return Ok((empty(&dataset.train)?, empty(&dataset.test)?));
    };
    let read = |field, state: &DatasetState, split: &Split| {
        let set = pictures(found, state, split)?;
        if request.match_rows {
            matched(found, field, &set, split)
        } else {
            check(found, field, &set, split)?;
            Ok(set)
        }
    };
    let train = match &sets.train {
        Some(state) => read("bd_train", state, &whole.train)?,
        None => empty(&whole.train)?,
    };
    let test = read("bd_test", &sets.test, &whole.test)?;
    if let (Some(limit), Some(&index)) = (data.limits.1, test.indices.iter().max())
        && index >= limit
    {
        return Err(RecordError::TestLimit { limit, index }.into());
    }
    // The attack success rate is defined over the other classes; the benchmark leaves these images out, too.
    let mut labels = test.labels.iter().zip(&test.original_labels);
    if let Some(row) = labels.position(|(attacked, is)| attacked == is) {
        return Err(ZooError::Target {
            path: found.file.clone(),
            index: test.indices[row],
            label: test.labels[row],
        }
        .into());
    }
    for (set, split) in [(&train, &dataset.train), (&test, &dataset.test)] {
        set.check(split.len(), dataset.spec.classes)
            .map_err(network::images_in(&found.file))?;
    }
    Ok((train, test))
}

/// The pictures of a set, with what the record says of them.
fn pictures(found: &Found, state: &DatasetState, split: &Split) -> Result<PoisonSet, Failure> {
    let folder = found.file.parent().unwrap_or(Path::new("."));
    let (height, width) = (split.images.height(), split.images.width());
    let mut pixels = Vec::new();
    for record in &state.records {
        let path = folder.join(record.file());
        let picture = Picture::read_sized(&path, height, width).map_err(ZooError::from)?;
        pixels.extend_from_slice(picture.pixels());
    }
    let records = &state.records;
    Ok(PoisonSet::new(
        records.iter().map(|r| r.index).collect(),
        Images::new(records.len(), height, width, pixels)?,
        records.iter().map(|r| r.label).collect(),
        records.iter().map(|r| r.original).collect(),
    )?)
}

/// Checks that the rows of a dataset have the labels of a set and show the same images; no index is beyond its end.
fn check(
    found: &Found,
    set_name: &'static str,
    set: &PoisonSet,
    split: &Split,
) -> Result<(), RecordError> {
    let mut labels = set.indices.iter().zip(&set.original_labels);
    let path = || found.file.clone();
    if let Some((&index, &said)) = labels.find(|&(&i, &said)| said != split.labels[i]) {
        return Err(RecordError::Label {
            path: path(),
            set: set_name,
            index,
            found: said,
            expected: split.labels[index],
            order: fitting_order(set, split),
        });
    }
    rows::check(set, split).map_err(|fault| RecordError::Rows {
        path: path(),
        set: set_name,
        fault: Box::new(fault),
        order: fitting_order(set, split),
    })
}

/// What is to be said of the order that the pictures of a set have in a split.
fn fitting_order(set: &PoisonSet, split: &Split) -> String {
    const MOST: usize = 200;
    let step = set.len().div_ceil(MOST).max(1);
    let sample = set.select(&(0..set.len()).step_by(step).collect::<Vec<_>>());
    let found = rows::find(&sample, split);
    let pairs: Vec<(usize, usize)> = sample
        .indices
        .iter()
        .zip(found)
        .filter_map(|(&index, row)| Some((index, row?)))
        .collect();
    // A few pictures may look like several rows in any order.
    if pairs.len() * 20 < sample.len() * 19 {
        return "its pictures were not found in other rows either, so this may be another copy, split or size of the dataset"
            .to_owned();
    }
    let found = "`--match-rows` gives each picture the row that it was found in";
    match rows::order(&pairs, &split.labels) {
        Some(order) => format!("{order}; {found}"),
        None => format!("here the order is another one; {found}"),
    }
}

/// The same set with the rows that its pictures are found in, ascending.
fn matched(
    found: &Found,
    set_name: &'static str,
    set: &PoisonSet,
    split: &Split,
) -> Result<PoisonSet, Failure> {
    let rows = rows::find(set, split);
    if let Some(first) = rows.iter().position(Option::is_none) {
        return Err(RecordError::NoRow {
            path: found.file.clone(),
            set: set_name,
            lost: rows.iter().filter(|row| row.is_none()).count(),
            pictures: set.len(),
            index: set.indices[first],
        }
        .into());
    }
    let rows: Vec<usize> = rows.into_iter().flatten().collect();
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_unstable_by_key(|&place| rows[place]);
    let mut set = set.select(&order);
    set.indices = order.into_iter().map(|place| rows[place]).collect();
    Ok(set)
}

/// How many images of each kind a cell's scores are of, for its manifest.
pub(super) fn counts(data: &Data, test: &PoisonSet) -> results::Images {
    let labels = &data.dataset.test.labels;
    // One attacked label for all is the attack's target, whose own images cannot be poisoned.
    let target = test.labels.first().copied();
    let target = target.filter(|target| test.labels.iter().all(|label| label == target));
    let possible = match target {
        Some(target) => labels.iter().filter(|&&label| label != target).count(),
        None if test.is_empty() => 0,
        None => labels.len(),
    };
    let alike = rows::resemblance(test, &data.dataset.test);
    results::Images {
        train: data.dataset.train.len() as u64,
        train_all: data.whole.train.len() as u64,
        test: labels.len() as u64,
        test_all: data.whole.test.len() as u64,
        test_poisoned: test.len() as u64,
        test_possible: possible as u64,
        test_compared: alike.judged as u64,
        test_unlike: alike.unlike.len() as u64,
    }
}

/// The same in words.
pub fn say(images: &results::Images) -> String {
    let results::Images {
        train,
        train_all,
        test,
        test_all,
        test_poisoned,
        test_possible,
        test_compared,
        test_unlike,
    } = *images;
    let mut text = if test == test_all {
        format!("{test} clean test images")
    } else {
        format!("the first {test} of {test_all} clean test images")
    };
    if test_poisoned > 0 {
        let _ = write!(
            text,
            "; {test_poisoned} poisoned of {test_possible} possible"
        );
    }
    if u128::from(test_unlike) * 4 > u128::from(test_compared) {
        let _ = write!(
            text,
            "; {test_unlike} of {test_compared} pictures are hidden by the trigger, so that their rows are not sure"
        );
    }
    if train < train_all {
        let _ = write!(text, "; trained on the first {train} of {train_all} images");
    }
    text
}
