//! Finding the files of a dataset under the folder that the user names.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::batches::{Batches, Form};
use super::listing::{self, Listing};
use super::{DataError, DatasetSpec, Decoded, Note, shards, signs, tiny};

/// Names of the train split, before the dash of a shard or as a folder.
const TRAIN: [&str; 1] = ["train"];
/// Names of the test split in order of preference.
///
/// Where a dataset has several, `test` is the one with labels in all datasets known here; Tiny `ImageNet` on the hub has
/// only `valid`.
pub(super) const TEST: [&str; 5] = ["test", "val", "valid", "validation", "testing"];

/// Where a dataset lies and what is known of it without reading images.
#[derive(Debug)]
pub(super) struct Found {
    /// The constants; for `folder` with the number of classes and the size found.
    pub(super) spec: DatasetSpec,
    /// The folder that all files lie below.
    pub(super) place: PathBuf,
    pub(super) train: Source,
    pub(super) test: Source,
    /// Names of the classes, where the names of folders tell.
    pub(super) class_names: Option<Vec<String>>,
    pub(super) notes: Vec<Note>,
}

/// The files of one split.
#[derive(Debug)]
pub(super) enum Source {
    /// Parquet shards, in the order of their rows.
    Parquet(Vec<PathBuf>),
    /// The official files of CIFAR, of which some may be missing.
    Batches(Batches),
    /// Image files.
    Images(Listing),
}

impl Source {
    /// The files, in order.
    pub(super) fn files(&self) -> &[PathBuf] {
        match self {
            Self::Parquet(files) => files,
            Self::Batches(batches) => &batches.files,
            Self::Images(listing) => &listing.files,
        }
    }

    /// The labels, where they do not stand in the files.
    pub(super) fn labels(&self) -> &[u32] {
        match self {
            Self::Images(listing) => &listing.labels,
            _ => &[],
        }
    }

    /// Reads the split, whole or as many images as are enough.
    pub(super) fn read(
        &self,
        spec: &DatasetSpec,
        limit: Option<usize>,
    ) -> Result<Decoded, DataError> {
        match self {
            Self::Parquet(files) => shards::read(files, spec, limit),
            Self::Batches(batches) => batches.read(spec, limit),
            Self::Images(listing) => listing.load(spec.height, spec.width, limit),
        }
    }
}

/// Looks for the files of `spec` in `root` and in the sub-folders that usual tools create.
///
/// `test_split` names the test split where it is chosen.
pub(super) fn find(
    spec: &'static DatasetSpec,
    root: &Path,
    test_split: Option<&str>,
) -> Result<Found, DataError> {
    let found = |place: &Path, train, test| {
        Ok(Found {
            spec: spec.clone(),
            place: place.to_path_buf(),
            train,
            test,
            class_names: None,
            notes: Vec::new(),
        })
    };
    let batches = |place: &Path, (train, test): (Batches, Batches)| match test_split {
        Some(chosen) if !chosen.eq_ignore_ascii_case("test") => Err(DataError::NoSplit {
            wanted: chosen.to_owned(),
            place: place.to_path_buf(),
            found: vec!["train".to_owned(), "test".to_owned()],
            advice: None,
        }),
        _ => found(place, Source::Batches(train), Source::Batches(test)),
    };
    // The archive itself may be named.
    if let (true, Some(folder)) = (root.is_file(), root.parent()) {
        let named = Form::of(spec.id).find(|form| root.file_name() == Some(form.archive.as_ref()));
        if let Some(both) = named.and_then(|form| form.in_archive(folder)) {
            return batches(folder, both);
        }
    }
    check_root(root)?;
    let places = places(spec, root);
    for place in &places {
        if let Some((train, test)) = shards_in(place, test_split)? {
            return found(place, Source::Parquet(train), Source::Parquet(test));
        }
        if let Some(both) = Form::of(spec.id).find_map(|form| form.in_folder(place)) {
            return batches(place, both);
        }
        let official = match spec.id {
            "gtsrb" => signs::find(spec, place, test_split)?,
            "tiny" => tiny::find(spec, place, test_split)?,
            _ => None,
        };
        if let Some(official) = official {
            return Ok(official);
        }
    }
    // Last, because whoever has unpacked an archive mostly keeps it.
    for place in &places {
        if let Some(both) = Form::of(spec.id).find_map(|form| form.in_archive(place)) {
            return batches(place, both);
        }
    }
    Err(not_found(spec, root)?)
}

/// Refuses what is no folder.
pub(super) fn check_root(root: &Path) -> Result<(), DataError> {
    if root.is_dir() {
        return Ok(());
    }
    let root = root.to_path_buf();
    Err(if root.exists() {
        DataError::RootIsFile { root }
    } else {
        DataError::NoSuchRoot { root }
    })
}

/// What lies in `root` instead of the dataset, and what to do about it.
fn not_found(spec: &DatasetSpec, root: &Path) -> Result<DataError, DataError> {
    let names = file_names(root)?;
    let zip = names.iter().find(|name| {
        Path::new(name)
            .extension()
            .is_some_and(|ending| ending.eq_ignore_ascii_case("zip"))
    });
    let advice = if let Some(zip) = zip {
        Some(format!("unpack `{zip}`, then name the same folder"))
    } else if listing::named(root, &["train"]).is_some() {
        Some("class folders with images are read with `--dataset folder`".to_owned())
    } else {
        None
    };
    Ok(DataError::NotFound {
        id: spec.id,
        place: root.to_path_buf(),
        found: listing::entries(root)?,
        layouts: layouts(spec.id),
        advice,
    })
}

/// The layouts of a dataset that are read, for people.
fn layouts(id: &str) -> &'static str {
    match id {
        "cifar10" => {
            "`train-*.parquet`, `train/*.parquet`, `cifar-10-batches-py/`, `cifar-10-batches-bin/`, `cifar-10-python.tar.gz` and `cifar-10-binary.tar.gz`"
        }
        "cifar100" => {
            "`train-*.parquet`, `train/*.parquet`, `cifar-100-python/`, `cifar-100-binary/`, `cifar-100-python.tar.gz` and `cifar-100-binary.tar.gz`"
        }
        "gtsrb" => {
            "`train-*.parquet`, `train/*.parquet`, `Final_Training/Images/00000/` and `Train/00000/` with the test images and their `GT-final_test.csv`, and `Train/0/` with `Test.csv`"
        }
        "tiny" => {
            "`train-*.parquet`, `train/*.parquet`, and `train/n01443537/images/` with `val/val_annotations.txt` or `val/n01443537/`"
        }
        _ => "`train-*.parquet` and `train/*.parquet`",
    }
}

/// The folders that may hold the dataset, those that exist, most direct first.
pub(super) fn places(spec: &DatasetSpec, root: &Path) -> Vec<PathBuf> {
    // Names without case and separators, as `cifar-10`, `CIFAR10` and `uoft-cs___cifar10` differ in nothing else.
    let names: &[&str] = match spec.id {
        "cifar10" => &["cifar10", "uoftcscifar10"],
        "cifar100" => &["cifar100", "uoftcscifar100"],
        "gtsrb" => &["gtsrb", "tangankegtsrb"],
        "tiny" => &[
            "tiny",
            "tinyimagenet",
            "tinyimagenet200",
            "zhplustinyimagenet",
            "mayseetinyimagenet",
        ],
        _ => &[],
    };
    let plain = |name: &OsStr| -> String {
        let name = name.to_string_lossy();
        let letters = name.chars().filter(char::is_ascii_alphanumeric);
        letters.map(|c| c.to_ascii_lowercase()).collect()
    };
    let bases = |folder: &Path| -> Vec<PathBuf> {
        let found = listing::folders(folder).unwrap_or_default();
        let found = found.iter().filter(|name| names.contains(&&*plain(name)));
        found.map(|name| folder.join(name)).collect()
    };
    let inner = ["plain_text", "data", "default"].into_iter();
    let inner: Vec<&str> = inner
        .chain(Form::of(spec.id).map(|form| form.folder))
        .collect();
    let mut places = Vec::new();
    for base in std::iter::once(root.to_path_buf()).chain(bases(root)) {
        let below = inner.iter().map(|name| base.join(name));
        // `cifar100/cifar100` on the hub, `gtsrb/GTSRB` of torchvision.
        let below: Vec<PathBuf> = below
            .chain(bases(&base))
            .filter(|folder| folder.is_dir())
            .collect();
        places.push(base);
        places.extend(below);
    }
    // `root/cifar10` is reached both as a name and as an inner folder.
    let mut seen = Vec::new();
    places.retain(|place| {
        let new = !seen.contains(place);
        seen.push(place.clone());
        new
    });
    places
}

/// The files of the train and of the test split.
pub(super) type Shards = (Vec<PathBuf>, Vec<PathBuf>);

/// The shards of the train and the test split in a folder, whole and in order; nothing if there is no train split.
pub(super) fn shards_in(
    folder: &Path,
    test_split: Option<&str>,
) -> Result<Option<Shards>, DataError> {
    let Some(train) = TRAIN
        .iter()
        .find_map(|split| shards(folder, split).transpose())
    else {
        return Ok(None);
    };
    let train = train?;
    let chosen = test_split.as_slice();
    let names = if chosen.is_empty() { &TEST } else { chosen };
    if let Some(test) = names
        .iter()
        .find_map(|split| shards(folder, split).transpose())
    {
        return Ok(Some((train, test?)));
    }
    let mut found: Vec<String> = Vec::new();
    for name in file_names(folder)? {
        let split = match name.strip_suffix(".parquet") {
            Some(stem) => stem.split('-').next().unwrap_or_default().to_owned(),
            None if !parquet_files(&folder.join(&name)).is_empty() => name,
            None => continue,
        };
        if !found.contains(&split) {
            found.push(split);
        }
    }
    Err(DataError::NoSplit {
        wanted: test_split.unwrap_or("test").to_owned(),
        place: folder.to_path_buf(),
        found,
        advice: None,
    })
}

/// The names of the Parquet files in a folder, sorted; none if it is no folder that can be read.
fn parquet_files(folder: &Path) -> Vec<String> {
    let names = if folder.is_dir() {
        file_names(folder)
    } else {
        Ok(Vec::new())
    };
    let mut names = names.unwrap_or_default();
    names.retain(|name| name.ends_with(".parquet") && !name.starts_with('.'));
    names
}

/// The names in a folder, sorted; names that are not UTF-8 are none of ours.
pub(super) fn file_names(folder: &Path) -> Result<Vec<String>, DataError> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(folder).map_err(DataError::io(folder))? {
        let entry = entry.map_err(DataError::io(folder))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The shards of one split, whole and in order, or nothing if there is none.
///
/// They are `train.parquet`, `train-00000-of-00003.parquet`, `train-00000-of-00001-0a1b2c3d.parquet`, `train-a.parquet`
/// or, as the hub converts datasets, all files of the folder `train`.
fn shards(folder: &Path, split: &str) -> Result<Option<Vec<PathBuf>>, DataError> {
    let is_shard = |name: &&str| {
        let stem = name.strip_suffix(".parquet").unwrap_or_default();
        let rest = stem.get(split.len()..).unwrap_or("x");
        stem.get(..split.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(split))
            && (rest.is_empty() || rest.starts_with('-'))
    };
    let beside = parquet_files(folder);
    let mut found: Vec<&str> = beside.iter().map(String::as_str).filter(is_shard).collect();
    let mut place = folder.to_path_buf();
    let inner = listing::named(folder, &[split]);
    let inside = inner.as_deref().map(parquet_files).unwrap_or_default();
    if let (true, Some(inner)) = (found.is_empty(), inner) {
        (place, found) = (inner, inside.iter().map(String::as_str).collect());
    }
    let Some(&first) = found.first() else {
        return Ok(None);
    };
    check_set(&place, first, &found)?;
    Ok(Some(found.iter().map(|name| place.join(name)).collect()))
}

/// Position and size of the set, from `…-00001-of-00003…`, with the byte range of the position.
struct Number {
    index: usize,
    total: usize,
    digits: std::ops::Range<usize>,
}

fn number(name: &str) -> Option<Number> {
    let middle = name.find("-of-")?;
    let start = name[..middle].rfind('-')? + 1;
    let end = name[middle + 4..]
        .find(|c: char| !c.is_ascii_digit())
        .map_or(name.len(), |length| middle + 4 + length);
    Some(Number {
        index: name[start..middle].parse().ok()?,
        total: name[middle + 4..end].parse().ok()?,
        digits: start..middle,
    })
}

/// Checks that numbered shards are `0..total`, each there once.
fn check_set(folder: &Path, first: &str, names: &[&str]) -> Result<(), DataError> {
    let mixed = |name: &str| DataError::MixedShards {
        a: folder.join(first),
        b: folder.join(name),
    };
    let Some(set) = number(first) else {
        return match names.iter().find(|name| number(name).is_some()) {
            Some(name) => Err(mixed(name)),
            None => Ok(()),
        };
    };
    for (expected, name) in names.iter().enumerate() {
        let found = number(name)
            .filter(|number| number.total == set.total && number.index < set.total)
            .ok_or_else(|| mixed(name))?;
        if found.index < expected {
            return Err(mixed(name)); // the same position twice
        }
        if found.index > expected {
            return Err(missing(folder, name, &found, expected, names.len()));
        }
    }
    if names.len() < set.total {
        return Err(missing(folder, first, &set, names.len(), names.len()));
    }
    Ok(())
}

/// The error for position `index`, its name made from that of a shard that is there.
///
/// A hash at the end of the name differs per shard and cannot be known, so it is left out.
fn missing(folder: &Path, like: &str, number: &Number, index: usize, found: usize) -> DataError {
    let (start, width) = (&like[..number.digits.start], number.digits.len());
    let total = number.total;
    DataError::MissingShard {
        path: folder.join(format!("{start}{index:0width$}-of-{total:0width$}.parquet")),
        total,
        found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::spec;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a temporary folder");
        for file in files {
            let path = root.path().join(file);
            fs_err::create_dir_all(path.parent().expect("a file has a folder")).expect("create");
            fs_err::write(path, b"").expect("write");
        }
        root
    }

    /// The files of both splits relative to the root, or the error's message with the root cut out.
    fn found(id: &str, files: &[&str], below: &str) -> Result<Vec<String>, String> {
        let root = tree(files);
        let prefix = format!("{}/", root.path().display());
        find(spec(id).expect("known"), &root.path().join(below), None)
            .map(|found| {
                let paths = [found.train.files(), found.test.files()].concat();
                paths
                    .iter()
                    .map(|path| path.display().to_string().replace(&prefix, ""))
                    .collect()
            })
            .map_err(|error| error.to_string().replace(&prefix, ""))
    }

    #[test]
    fn the_layouts_of_the_hub_are_found() {
        let (train, test) = (
            "train-00000-of-00001.parquet",
            "test-00000-of-00001.parquet",
        );
        for (id, folder, below) in [
            ("cifar10", "cifar10/plain_text", ""),
            ("cifar10", "cifar10/plain_text", "cifar10"),
            ("cifar10", "cifar10/plain_text", "cifar10/plain_text"),
            ("cifar10", "uoft-cs___cifar10/plain_text", ""),
            ("cifar100", "cifar100/cifar100", ""),
            ("gtsrb", "gtsrb/data", ""),
            ("gtsrb", "gtsrb", ""),
            ("tiny", "tiny_imagenet", ""),
            ("tiny", "zh-plus___tiny-imagenet/data", ""),
        ] {
            let (train, test) = (format!("{folder}/{train}"), format!("{folder}/{test}"));
            assert_eq!(
                found(id, &[&train, &test, "README.md"], below),
                Ok(vec![train.clone(), test.clone()])
            );
        }
    }

    #[test]
    fn shards_come_in_order_and_the_test_split_has_several_names() {
        assert_eq!(
            found(
                "tiny",
                &[
                    "train-00001-of-00002-77aa.parquet",
                    "train-00000-of-00002-99ff.parquet",
                    "valid-00000-of-00001-12ab.parquet",
                    "trainer-00000-of-00001.parquet",
                ],
                ""
            ),
            Ok(vec![
                "train-00000-of-00002-99ff.parquet".to_owned(),
                "train-00001-of-00002-77aa.parquet".to_owned(),
                "valid-00000-of-00001-12ab.parquet".to_owned(),
            ])
        );
        assert_eq!(
            found(
                "gtsrb",
                &[
                    "train-b.parquet",
                    "train-a.parquet",
                    "validation-x.parquet",
                    "test.parquet"
                ],
                ""
            ),
            Ok(vec![
                "train-a.parquet".to_owned(),
                "train-b.parquet".to_owned(),
                "test.parquet".to_owned()
            ])
        );
    }

    #[test]
    fn incomplete_and_mixed_sets_are_refused() {
        for (files, expect) in [
            (
                &[
                    "train-00000-of-00003.parquet",
                    "train-00002-of-00003.parquet",
                    "test-00000-of-00001.parquet",
                ][..],
                "`train-00001-of-00003.parquet` is missing, the set has 3 files and 2 are there",
            ),
            (
                &["train-00001-of-00002.parquet"],
                "`train-00000-of-00002.parquet` is missing, the set has 2 files and 1 are there",
            ),
            (
                &["train-00000-of-00002-ab.parquet"],
                "`train-00001-of-00002.parquet` is missing, the set has 2 files and 1 are there",
            ),
            (
                &[
                    "train-00000-of-00001.parquet",
                    "train-00000-of-00002.parquet",
                ],
                "`train-00000-of-00001.parquet` and `train-00000-of-00002.parquet` do not belong to one set of shards",
            ),
            (
                &[
                    "train-00000-of-00001-aa.parquet",
                    "train-00000-of-00001-bb.parquet",
                ],
                "`train-00000-of-00001-aa.parquet` and `train-00000-of-00001-bb.parquet` do not belong to one set of shards",
            ),
            (
                &["train-00000-of-00001.parquet", "train.parquet"],
                "`train-00000-of-00001.parquet` and `train.parquet` do not belong to one set of shards",
            ),
        ] {
            assert_eq!(found("cifar10", files, ""), Err(expect.to_owned()));
        }
    }

    #[test]
    fn what_is_absent_is_named_with_what_is_there() {
        assert_eq!(
            found("gtsrb", &["a/readme.md", "b.txt"], "")
                .expect_err("nothing there")
                .split_once(" in `")
                .map(|(text, _)| text.to_owned()),
            Some("no `gtsrb`".to_owned())
        );
        let error = found("gtsrb", &["x/a/readme.md", "x/b.txt"], "x");
        assert_eq!(
            error,
            Err("no `gtsrb` in `x` in a layout that is read, found `a/`, `b.txt`".to_owned())
        );
        assert_eq!(
            found(
                "cifar10",
                &["cifar10/train.parquet", "cifar10/extra-1.parquet"],
                ""
            ),
            Err("no split `test` in `cifar10`, found `extra`, `train`".to_owned())
        );
        assert_eq!(
            found("cifar10", &[], "nowhere"),
            Err("the data folder `nowhere` does not exist".to_owned())
        );
    }

    #[test]
    fn the_hub_s_converted_files_are_found() {
        for (id, folder) in [
            ("cifar10", "plain_text"),
            ("cifar10", "cifar10/plain_text"),
            ("gtsrb", "default"),
            ("tiny", "Maysee___tiny-imagenet/default"),
            ("cifar100", "CIFAR-100"),
        ] {
            let [b, a, c, test] = ["train/0001", "train/0000", "train/0002", "validation/0000"]
                .map(|name| format!("{folder}/{name}.parquet"));
            assert_eq!(found(id, &[&b, &a, &c, &test], ""), Ok(vec![a, b, c, test]));
        }
    }

    #[test]
    fn the_test_split_can_be_chosen() {
        let root = tree(&[
            "train.parquet",
            "test.parquet",
            "Extra-a.parquet",
            "held/0.parquet",
        ]);
        let chosen = |name| {
            let found = find(spec("gtsrb").expect("known"), root.path(), Some(name));
            found
                .map(|found| {
                    found.test.files()[0]
                        .strip_prefix(root.path())
                        .expect("below")
                        .display()
                        .to_string()
                })
                .map_err(|e| {
                    e.to_string()
                        .replace(&root.path().display().to_string(), "x")
                })
        };
        assert_eq!(chosen("extra"), Ok("Extra-a.parquet".to_owned()));
        assert_eq!(chosen("held"), Ok("held/0.parquet".to_owned()));
        assert_eq!(chosen("TEST"), Ok("test.parquet".to_owned()));
        assert_eq!(
            chosen("other"),
            Err("no split `other` in `x`, found `Extra`, `held`, `test`, `train`".to_owned())
        );
    }

    #[test]
    fn the_binary_batches_are_found_for_cifar10_only() {
        let files = ["cifar10/cifar-10-batches-bin/test_batch.bin"];
        let batches = found("cifar10", &files, "").expect("found");
        assert_eq!(batches.len(), 6);
        assert_eq!(batches[0], "cifar10/cifar-10-batches-bin/data_batch_1.bin");
        assert_eq!(batches[5], files[0]);
        assert!(found("cifar100", &files, "cifar10").is_err());
    }
}
