//! Any images with classes: class folders as torchvision's `ImageFolder` has them, or the hub's Parquet files.
//!
//! Classes are the names of the class folders of the train split in sorted order, or those that a Parquet file names.
//! Folders that are all named by natural numbers are sorted as numbers: `2` is class 2, whatever else is there.
//! All images get the size of the first one.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::listing::{LeftOut, Listing, entries, folders, named};
use super::locate::{Found, Source, TEST, check_root, places, shards_in};
use super::{DataError, DatasetSpec, Note, shards};

/// Names of the train split's folder.
const TRAIN: [&str; 2] = ["train", "training"];

/// Finds the images below `root`; `test_split` names the folder or shards of the test split where it is chosen.
pub(super) fn find(
    spec: &'static DatasetSpec,
    root: &Path,
    test_split: Option<&str>,
) -> Result<Found, DataError> {
    check_root(root)?;
    let Some(train) = named(root, &TRAIN).filter(|train| !has_parquet(train)) else {
        for place in places(spec, root) {
            if let Some((train, test)) = shards_in(&place, test_split)? {
                return from_parquet(spec, place, train, test);
            }
        }
        return Err(no_train(root)?);
    };
    let classes = class_folders(&train)?;
    let Classes { names, note } = &classes;
    if names.is_empty() {
        return Err(DataError::NoClasses { path: train });
    }
    let (mut notes, mut left_out) = (Vec::from_iter(note.clone()), LeftOut::default());
    let mut train_images = Listing::default();
    for (label, class) in names.iter().enumerate() {
        let folder = train.join(class);
        if train_images.add(&folder, label as u32, &mut left_out)? == 0 {
            return Err(DataError::NoImages { path: folder });
        }
    }
    let (test, note) = test_folder(root, &train, names, test_split)?;
    notes.extend(note);
    let test_images = classified(&test, &train, names, &mut left_out)?;
    notes.extend(left_out.note());
    let (height, width) = train_images.size().expect("every class has an image")?;
    Ok(Found {
        spec: DatasetSpec {
            classes: names.len(),
            height,
            width,
            ..spec.clone()
        },
        place: root.to_path_buf(),
        train: Source::Images(train_images),
        test: Source::Images(test_images),
        class_names: Some(
            names
                .iter()
                .map(|name| name.to_string_lossy().into_owned())
                .collect(),
        ),
        notes,
    })
}

/// Class folders in label order.
pub(super) struct Classes {
    pub(super) names: Vec<OsString>,
    /// Says so where torchvision would take another order.
    pub(super) note: Option<Note>,
}

/// The class folders of a split.
pub(super) fn class_folders(split: &Path) -> Result<Classes, DataError> {
    let names = folders(split)?;
    let digits = |name: &OsString| -> Option<(usize, String)> {
        let digits = name.to_str()?;
        let number = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.is_empty();
        // Of numbers without zeros in front the longer one is the greater one, however long they are.
        let value = digits.trim_start_matches('0');
        number.then(|| (value.len(), value.to_owned()))
    };
    let mut sorted = names.clone();
    if names.iter().all(|name| digits(name).is_some()) {
        sorted.sort_by_cached_key(digits);
    }
    let moved = sorted
        .iter()
        .zip(&names)
        .position(|(number, text)| number != text);
    let note = moved.map(|label| {
        let [number, text] = [&sorted[label], &names[label]].map(|name| name.to_string_lossy());
        Note::Warning(format!(
            "class folders are ordered as numbers: label {label} is `{number}`, where torchvision's order as text has `{text}`"
        ))
    });
    Ok(Classes {
        names: sorted,
        note,
    })
}

/// The images of a split by the classes of the train split.
pub(super) fn classified(
    split: &Path,
    train: &Path,
    classes: &[OsString],
    left_out: &mut LeftOut,
) -> Result<Listing, DataError> {
    let mut images = Listing::default();
    let labels: HashMap<&OsString, u32> = classes.iter().zip(0..).collect();
    let mut found = folders(split)?;
    // In label order, as the train split is.
    found.sort_by_key(|name| labels.get(name));
    for class in found {
        let folder = split.join(&class);
        let Some(label) = labels.get(&class) else {
            return Err(DataError::UnknownClass {
                path: folder,
                train: train.to_path_buf(),
            });
        };
        images.add(&folder, *label, left_out)?;
    }
    Ok(images)
}

/// The folder of the test split: the chosen one, or the first of the usual ones that has a class of the train split.
pub(super) fn test_folder(
    root: &Path,
    train: &Path,
    classes: &[OsString],
    test_split: Option<&str>,
) -> Result<(PathBuf, Option<Note>), DataError> {
    let no_split = |wanted: &str| -> Result<DataError, DataError> {
        let found = folders(root)?;
        Ok(DataError::NoSplit {
            wanted: wanted.to_owned(),
            place: root.to_path_buf(),
            found: found
                .iter()
                .map(|name| name.to_string_lossy().into_owned())
                .collect(),
            advice: None,
        })
    };
    if let Some(chosen) = test_split {
        return match named(root, &[chosen]) {
            Some(folder) => Ok((folder, None)),
            None => Err(no_split(chosen)?),
        };
    }
    let usual = TEST.iter().filter_map(|name| named(root, &[name]));
    let usual: Vec<PathBuf> = usual.collect();
    let Some(first) = usual.first() else {
        return Err(no_split("test")?);
    };
    let mut fitting = None;
    for folder in &usual {
        if folders(folder)?.iter().any(|name| classes.contains(name)) {
            fitting = Some(folder);
            break;
        }
    }
    let name = |folder: &Path| {
        folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    match fitting {
        Some(folder) => {
            let note = (folder != first).then(|| {
                Note::Warning(format!(
                    "the test split is `{}`, since `{}` has no folder of a class",
                    name(folder),
                    name(first),
                ))
            });
            Ok((folder.clone(), note))
        }
        None if folders(first)?.is_empty() => Err(DataError::NoClasses {
            path: first.clone(),
        }),
        None => Err(DataError::UnknownClass {
            path: first.join(&folders(first)?[0]),
            train: train.to_path_buf(),
        }),
    }
}

fn has_parquet(folder: &Path) -> bool {
    let files = fs_err::read_dir(folder).into_iter().flatten().flatten();
    files
        .into_iter()
        .any(|file| file.path().extension() == Some(OsStr::new("parquet")))
}

/// Why `root` is no folder of images, with the nearest thing that may have been meant.
fn no_train(root: &Path) -> Result<DataError, DataError> {
    let found = entries(root)?;
    let below = folders(root)?.into_iter().map(|name| root.join(name));
    let mut meant = below.filter(|folder| {
        named(folder, &TRAIN).is_some() || !matches!(shards_in(folder, None), Ok(None))
    });
    let advice = match meant.next() {
        Some(folder) => Some(format!("did you mean `--data {}`?", folder.display())),
        None if found.iter().any(|name| name.contains("-ubyte")) => Some(
            "MNIST's own files are not read; its Parquet files on the Hugging Face hub are"
                .to_owned(),
        ),
        None => None,
    };
    Ok(DataError::NoSplit {
        wanted: "train".to_owned(),
        place: root.to_path_buf(),
        found,
        advice,
    })
}

/// Classes and size from the files themselves: what they name, or else the greatest label, and the first image.
fn from_parquet(
    spec: &'static DatasetSpec,
    place: PathBuf,
    train: Vec<PathBuf>,
    test: Vec<PathBuf>,
) -> Result<Found, DataError> {
    let first = shards::first(&train[0])?;
    let classes = match &first.class_names {
        Some(names) => names.len(),
        None => shards::classes(train.iter().chain(&test))?,
    };
    let (height, width) = first.size;
    Ok(Found {
        spec: DatasetSpec {
            classes,
            height,
            width,
            ..spec.clone()
        },
        place,
        train: Source::Parquet(train),
        test: Source::Parquet(test),
        class_names: None,
        notes: Vec::new(),
    })
}
