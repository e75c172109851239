//! GTSRB as its authors publish it, as torchvision and BackdoorBench unpack it, and as Kaggle has it.
//!
//! Images are in the order of the tables beside them, class by class: this is BackdoorBench's order, by which its
//! records name images.

use std::path::{Path, PathBuf};

use super::listing::{LeftOut, Listing, folders, named};
use super::locate::{Found, Source};
use super::{DataError, DatasetSpec, Note, table};

/// Folders with one folder for each class, in order of preference.
const TRAIN: [&str; 3] = ["final_training", "training", "train"];
/// Folders with the test images.
const TEST: [&str; 2] = ["final_test", "test"];
/// Tables with the classes of the test images, and their column with the file; those without classes are passed over.
const TABLES: [(&str, &str); 3] = [
    ("GT-final_test.csv", "Filename"),
    ("Test.csv", "Path"),
    ("test.csv", "Path"),
];

/// The dataset in `place`, if its train folder is there.
pub(super) fn find(
    spec: &'static DatasetSpec,
    place: &Path,
    test_split: Option<&str>,
) -> Result<Option<Found>, DataError> {
    let Some(train) = TRAIN.iter().find_map(|name| split_folder(place, name)) else {
        return Ok(None);
    };
    let classes = class_folders(&train, spec)?;
    if classes.is_empty() {
        return Ok(None);
    }
    let (mut left_out, mut notes) = (LeftOut::default(), Vec::new());
    let train_images = by_class(&classes, spec, &mut left_out, &mut notes)?;
    let test = match test_split {
        Some(chosen) => split_folder(place, chosen),
        None => TEST.iter().find_map(|name| split_folder(place, name)),
    };
    let Some(test) = test else {
        return Err(DataError::NoSplit {
            wanted: test_split.unwrap_or("test").to_owned(),
            place: place.to_path_buf(),
            found: folders(place)?
                .iter()
                .map(|name| name.to_string_lossy().into_owned())
                .collect(),
            advice: None,
        });
    };
    let classes = class_folders(&test, spec)?;
    let test_images = if classes.is_empty() {
        by_table(place, &test, spec)?
    } else {
        by_class(&classes, spec, &mut left_out, &mut notes)?
    };
    notes.extend(left_out.note());
    Ok(Some(Found {
        spec: spec.clone(),
        place: place.to_path_buf(),
        train: Source::Images(train_images),
        test: Source::Images(test_images),
        class_names: None,
        notes,
    }))
}

/// `name` or, as in the archives, `name/Images`.
fn split_folder(place: &Path, name: &str) -> Option<PathBuf> {
    let folder = named(place, &[name])?;
    Some(named(&folder, &["images"]).unwrap_or(folder))
}

/// The folders named by a class, `00007` or `7`, with their number.
fn class_folders(split: &Path, spec: &DatasetSpec) -> Result<Vec<(u32, PathBuf)>, DataError> {
    let mut classes = Vec::new();
    for name in folders(split)? {
        let path = split.join(&name);
        let number = name.to_str().and_then(|name| class(name, spec));
        match number {
            Some(number) => classes.push((number, path)),
            // A split of another dataset, or something beside the classes, which must not be lost in silence.
            None if classes.is_empty() => return Ok(Vec::new()),
            None => {
                return Err(DataError::ClassFolder {
                    path,
                    classes: spec.classes,
                });
            }
        }
    }
    classes.sort();
    Ok(classes)
}

fn class(text: &str, spec: &DatasetSpec) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let number: u32 = text.parse().ok().filter(|_| digits)?;
    ((number as usize) < spec.classes).then_some(number)
}

/// The images of class folders, each in the order of its table if it has one.
fn by_class(
    classes: &[(u32, PathBuf)],
    spec: &DatasetSpec,
    left_out: &mut LeftOut,
    notes: &mut Vec<Note>,
) -> Result<Listing, DataError> {
    let mut images = Listing::default();
    let mut unlisted = 0;
    for (number, folder) in classes {
        let mut there = Listing::default();
        let path = folder.join(format!("GT-{number:05}.csv"));
        if !path.is_file() {
            images.add(folder, *number, left_out)?;
            continue;
        }
        there.add(folder, *number, &mut LeftOut::default())?;
        let rows = table::csv(&path, "Filename")?;
        unlisted += there.files.len().saturating_sub(rows.len());
        for (row, entry) in rows.into_iter().enumerate() {
            if class(&entry.class, spec) != Some(*number) {
                return Err(DataError::Table {
                    path,
                    line: row + 2,
                    expected: "the class of its folder",
                    found: entry.class,
                });
            }
            images.push(folder.join(entry.file), *number);
        }
    }
    if unlisted > 0 {
        notes.push(Note::Warning(format!(
            "{unlisted} images of the class folders are not in their `GT-*.csv` and are left out"
        )));
    }
    Ok(images)
}

/// The images of a table with classes, which lies beside them or in a folder above.
fn by_table(place: &Path, test: &Path, spec: &DatasetSpec) -> Result<Listing, DataError> {
    let parents = [Some(test), test.parent(), Some(place), place.parent()];
    let candidates = TABLES.iter().flat_map(|(name, column)| {
        parents
            .iter()
            .flatten()
            .map(move |folder| (folder.join(name), *column))
    });
    let found = candidates.into_iter().find(|(path, _)| path.is_file());
    let Some((path, column)) = found else {
        return Err(DataError::NoTable {
            path: test.to_path_buf(),
        });
    };
    let mut images = Listing::default();
    for (row, entry) in table::csv(&path, column)?.into_iter().enumerate() {
        let Some(number) = class(&entry.class, spec) else {
            return Err(DataError::Table {
                path,
                line: row + 2,
                expected: "a class from 0 to 42",
                found: entry.class,
            });
        };
        // Kaggle's table has paths from its own folder, the others names in the folder of the images.
        let from = if column == "Path" {
            path.parent().unwrap_or(place)
        } else {
            test
        };
        images.push(from.join(entry.file), number);
    }
    Ok(images)
}
