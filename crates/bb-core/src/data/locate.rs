//! Finding the files of a dataset under the folder that the user names.

use std::path::{Path, PathBuf};

use super::{DataError, DatasetSpec, binary};

/// Names before the dash of a shard: the train split, and the test split in order of preference.
///
/// Where a dataset has both, `test` is the one with labels in all datasets known here; Tiny `ImageNet` on the hub has
/// only `valid`.
const TRAIN: &[&str] = &["train"];
const TEST: &[&str] = &["test", "valid", "validation", "val"];

/// Where a dataset lies.
#[derive(Debug, PartialEq)]
pub(super) enum Files {
    /// Parquet shards of both splits, in the order of their rows.
    Parquet {
        train: Vec<PathBuf>,
        test: Vec<PathBuf>,
    },
    /// The official binary batches of CIFAR-10, of which some may be missing.
    Binary {
        train: Vec<PathBuf>,
        test: Vec<PathBuf>,
    },
}

impl Files {
    fn binary(folder: &Path) -> Self {
        Self::Binary {
            train: binary::TRAIN.map(|name| folder.join(name)).to_vec(),
            test: binary::TEST.map(|name| folder.join(name)).to_vec(),
        }
    }
}

/// Looks for the files of `spec` in `root` and in the sub-folders that the hub's tools create.
pub(super) fn find(spec: &DatasetSpec, root: &Path) -> Result<Files, DataError> {
    if !root.is_dir() {
        return Err(DataError::NoSuchRoot {
            root: root.to_path_buf(),
        });
    }
    let places = places(spec, root);
    for place in &places {
        let names = file_names(place)?;
        if let Some(train) = shards(place, &names, TRAIN)? {
            let test = shards(place, &names, TEST)?.ok_or_else(|| DataError::NotFound {
                id: spec.id,
                wanted: "`test-*.parquet` or `valid*-*.parquet`".to_owned(),
                looked: vec![place.clone()],
            })?;
            return Ok(Files::Parquet { train, test });
        }
        let is_batch =
            |name: &String| binary::TRAIN.contains(&&**name) || binary::TEST.contains(&&**name);
        if spec.id == "cifar10" && names.iter().any(is_batch) {
            return Ok(Files::binary(place));
        }
    }
    Err(DataError::NotFound {
        id: spec.id,
        wanted: if spec.id == "cifar10" {
            "`train-*.parquet` or `data_batch_1.bin`".to_owned()
        } else {
            "`train-*.parquet`".to_owned()
        },
        looked: places,
    })
}

/// The folders that may hold the dataset, those that exist, most direct first.
fn places(spec: &DatasetSpec, root: &Path) -> Vec<PathBuf> {
    let names: &[&str] = match spec.id {
        "cifar10" => &["cifar10", "uoft-cs___cifar10", "cifar-10"],
        "cifar100" => &["cifar100", "uoft-cs___cifar100", "cifar-100"],
        "gtsrb" => &["gtsrb", "GTSRB", "tanganke___gtsrb"],
        "tiny" => &[
            "tiny",
            "tiny_imagenet",
            "tiny-imagenet",
            "zh-plus___tiny-imagenet",
            "Maysee___tiny-imagenet",
        ],
        _ => &[],
    };
    let inner = [
        "plain_text",
        "data",
        "default",
        spec.id,
        "cifar-10-batches-bin",
    ];
    let mut places = Vec::new();
    for base in std::iter::once(root.to_path_buf()).chain(names.iter().map(|name| root.join(name)))
    {
        if base.is_dir() {
            let below = inner.map(|name| base.join(name));
            places.push(base);
            places.extend(below.into_iter().filter(|folder| folder.is_dir()));
        }
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
fn shards(
    folder: &Path,
    names: &[String],
    splits: &[&str],
) -> Result<Option<Vec<PathBuf>>, DataError> {
    for split in splits {
        let found: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|name| is_shard(name, split))
            .collect();
        if let Some(&first) = found.first() {
            check_set(folder, first, &found)?;
            return Ok(Some(found.iter().map(|name| folder.join(name)).collect()));
        }
    }
    Ok(None)
}

/// `train.parquet`, `train-00000-of-00003.parquet`, `train-00000-of-00001-0a1b2c3d.parquet`, `train-a.parquet`.
fn is_shard(name: &str, split: &str) -> bool {
    name.strip_suffix(".parquet")
        .and_then(|stem| stem.strip_prefix(split))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
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
        find(spec(id).expect("known"), &root.path().join(below))
            .map(|found| {
                let (Files::Parquet { train, test } | Files::Binary { train, test }) = found;
                let paths = [train, test].concat();
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
    fn what_is_absent_is_named_with_the_places_looked_at() {
        let error = found("gtsrb", &["gtsrb/data/readme.md"], "").expect_err("nothing there");
        assert!(
            error.starts_with("no `train-*.parquet` of `gtsrb` in `"),
            "{error}"
        );
        assert!(error.ends_with("`gtsrb`, `gtsrb/data`"), "{error}");
        assert_eq!(
            found("cifar10", &["cifar10/train.parquet"], ""),
            Err("no `test-*.parquet` or `valid*-*.parquet` of `cifar10` in `cifar10`".to_owned())
        );
        assert_eq!(
            found("cifar10", &[], "nowhere"),
            Err("the data folder `nowhere` does not exist".to_owned())
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
