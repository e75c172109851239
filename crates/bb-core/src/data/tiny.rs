//! Tiny ImageNet as it is published: class folders to train on, and a table of classes for the images to measure on.
//!
//! Classes are the sorted ids (`n01443537`), as the hub's files and torchvision number them.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::Path;

use super::batches::read_at_most;
use super::classes::is_wordnet_id;
use super::folder::{classified, test_folder};
use super::listing::{LeftOut, Listing, folders, named};
use super::locate::{Found, Source};
use super::{DataError, DatasetSpec, Note, table};

/// Most bytes of `words.txt`, which has 2.6 MB.
const MOST_BYTES: u64 = 16 << 20;
/// Most bytes of `wnids.txt`, which has 2 KB.
const MOST_IDS: u64 = 1 << 20;

/// The dataset in `place`, if class folders of its kind are there.
pub(super) fn find(
    spec: &'static DatasetSpec,
    place: &Path,
    test_split: Option<&str>,
) -> Result<Option<Found>, DataError> {
    let Some(train) = named(place, &["train"]) else {
        return Ok(None);
    };
    let there = folders(&train)?;
    let is_id = |name: &OsString| name.to_str().is_some_and(is_wordnet_id);
    if there.is_empty() || !there.iter().all(is_id) {
        return Ok(None);
    }
    let mut notes = Vec::new();
    let ids = place.join("wnids.txt");
    let ids: Vec<OsString> = if ids.is_file() {
        let text = String::from_utf8_lossy(&read_at_most(&ids, MOST_IDS)?).into_owned();
        let listed: Vec<&str> = text.split_whitespace().collect();
        let mut sorted = listed.clone();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted != listed {
            notes.push(Note::Info(
                "classes are the sorted WordNet ids; BackdoorBench numbers them in the order of `wnids.txt`".to_owned(),
            ));
        }
        sorted.into_iter().map(OsString::from).collect()
    } else {
        there.clone()
    };
    if ids.len() > spec.classes {
        return Err(DataError::ClassCount {
            path: train,
            expected: spec.classes,
            found: ids.len(),
        });
    }
    if ids.len() < spec.classes {
        notes.push(Note::Warning(format!(
            "{} classes of {} are there; labels are places among these, and not those of the whole dataset",
            ids.len(),
            spec.classes
        )));
    }
    let mut left_out = LeftOut::default();
    let train_images = classified(&train, &place.join("wnids.txt"), &ids, &mut left_out)?;
    let chosen = match test_split {
        Some(chosen) => named(place, &[chosen]),
        None => named(place, &["val"]),
    };
    let annotated = chosen.filter(|folder| folder.join("val_annotations.txt").is_file());
    let test_images = if let Some(folder) = annotated {
        by_table(&folder, &ids)?
    } else {
        let (folder, note) = test_folder(place, &train, &ids, test_split)?;
        notes.extend(note);
        classified(&folder, &train, &ids, &mut left_out)?
    };
    notes.extend(left_out.note());
    Ok(Some(Found {
        spec: spec.clone(),
        place: place.to_path_buf(),
        train: Source::Images(train_images),
        test: Source::Images(test_images),
        class_names: Some(names(place, &ids, spec.classes)?),
        notes,
    }))
}

/// The images of `val_annotations.txt`, in its order.
fn by_table(folder: &Path, ids: &[OsString]) -> Result<Listing, DataError> {
    let path = folder.join("val_annotations.txt");
    let numbers: HashMap<&str, u32> = (0..)
        .zip(ids)
        .filter_map(|(i, id)| Some((id.to_str()?, i)))
        .collect();
    let below = named(folder, &["images"]).unwrap_or_else(|| folder.to_path_buf());
    let mut images = Listing::default();
    for (row, entry) in table::tabs(&path)?.into_iter().enumerate() {
        let Some(label) = numbers.get(&*entry.class) else {
            return Err(DataError::Table {
                path,
                line: row + 1,
                expected: "one of the WordNet ids of the classes",
                found: entry.class,
            });
        };
        images.push(below.join(entry.file), *label);
    }
    Ok(images)
}

/// The first word of `words.txt` for each id, the id itself where there is none or two classes have the same.
fn names(place: &Path, ids: &[OsString], classes: usize) -> Result<Vec<String>, DataError> {
    let path = place.join("words.txt");
    let text = if path.is_file() {
        String::from_utf8_lossy(&read_at_most(&path, MOST_BYTES)?).into_owned()
    } else {
        String::new()
    };
    let ids: Vec<&str> = ids.iter().filter_map(|id| id.to_str()).collect();
    let wanted: HashSet<&str> = ids.iter().copied().collect();
    let words: HashMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter(|(id, _)| wanted.contains(id))
        .map(|(id, words)| (id, words.split(',').next().unwrap_or_default().trim()))
        .collect();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for word in ids.iter().filter_map(|id| words.get(id)) {
        *counts.entry(word).or_default() += 1;
    }
    let name = |id: &&str| match words.get(id) {
        Some(word) if counts[word] == 1 && !word.is_empty() => (*word).to_owned(),
        _ => (*id).to_owned(),
    };
    let unknown = (ids.len()..classes).map(|class| class.to_string());
    Ok(ids.iter().map(name).chain(unknown).collect())
}
