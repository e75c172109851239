//! Parquet: what is accepted, and one clear error for each thing that is not.

use std::path::Path;

use bb_core::cli::Coded as _;
use bb_core::data::{DataError, OpenOptions, open};
use proptest::prelude::*;

use super::data_files::*;

const TRAIN: &str = "train-00000-of-00001.parquet";
const TEST: &str = "test-00000-of-00001.parquet";

#[test]
fn shards_and_row_groups_are_one_table_in_order() {
    let root = tempfile::tempdir().expect("a folder");
    let folder = root.path().join("cifar10/plain_text");
    hub_file(&folder.join("train-00001-of-00003.parquet"), 7, 4);
    hub_file(&folder.join("train-00000-of-00003.parquet"), 0, 7);
    let rows = |range: std::ops::Range<usize>| {
        let labels = labels(range.clone());
        hub_rows(range.map(picture).collect(), &labels)
    };
    let groups = [rows(11..20), rows(20..21), rows(21..33)];
    parquet(
        &folder.join("train-00002-of-00003.parquet"),
        HUB,
        None,
        &groups,
    );
    hub_file(&folder.join(TEST), 50, 3);

    let data = plain("cifar10", root.path()).expect("opens");
    assert_eq!((data.train.len(), data.test.len()), (33, 3));
    for i in 0..33 {
        assert_eq!(data.train.images.image(i), pixels(i, 32, 32), "image {i}");
        assert_eq!(data.train.labels[i], (i % 10) as u32);
    }
    assert_eq!(data.test.images.image(2), pixels(52, 32, 32));

    let limited = OpenOptions {
        train_limit: Some(15),
        test_limit: Some(99),
        ..OpenOptions::default()
    };
    let part = open("cifar10", Some(root.path()), &limited).expect("opens");
    assert_eq!(part.train, data.train.take(15));
    assert_eq!(part.test, data.test);
    assert_ne!(part.digest, data.digest);
}

#[test]
fn column_names_types_and_encodings_may_vary() {
    let (image, narrow) = (picture(1), png(&[9; 16 * 8 * 3], 16, 8));
    let photo = jpeg(&[77; 32 * 32 * 3], 32, 32);
    let images = || vec![image.clone(), photo.clone(), narrow.clone()];
    let cases = [
        ("cifar10", HUB, hub_rows(images(), &[3, 0, 9])),
        (
            "gtsrb", // required columns have no definition levels; columns in another order; other columns beside
            "message m { required int32 label (INTEGER(8,true)); required double weight; required group image { required binary path; required binary bytes; } }",
            vec![
                Column::Int32(vec![0; 3], vec![3, 0, 42]),
                Column::Double(vec![0; 3], vec![0.5; 3]),
                Column::bytes(0, vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]),
                Column::bytes(0, images()),
            ],
        ),
        (
            "cifar100", // the fine label counts
            "message m { optional group img { required binary bytes; } optional int64 coarse_label; optional int64 label; required int64 fine_label; }",
            vec![
                Column::bytes(1, images()),
                Column::int64(&[0, 0, 0]),
                Column::int64(&[5, 5, 5]),
                Column::Int64(vec![0; 3], vec![3, 0, 99]),
            ],
        ),
    ];
    for (id, schema, columns) in cases {
        let root = tempfile::tempdir().expect("a folder");
        for name in [TRAIN, TEST] {
            parquet(
                &root.path().join(name),
                schema,
                None,
                std::slice::from_ref(&columns),
            );
        }
        let data = plain(id, root.path()).unwrap_or_else(|e| panic!("{id}: {e:?}"));
        assert_eq!(&data.train.labels[..2], &[3, 0], "{id}");
        assert_eq!(data.train.images.image(0), pixels(1, 32, 32), "{id}");
        assert_eq!(data.train.images.image(1), [77; 32 * 32 * 3], "{id}");
        assert_eq!(data.train.images.image(2), [9; 32 * 32 * 3], "{id}");
        assert_eq!(data.train, data.test, "{id}");
    }
}

/// Opens a dataset whose train file is built by `build`, and returns the message of the error.
fn refused(id: &str, build: impl FnOnce(&Path)) -> String {
    let root = tempfile::tempdir().expect("a folder");
    hub_file(&root.path().join(TEST), 0, 2);
    build(&root.path().join(TRAIN));
    match plain(id, root.path()) {
        Ok(_) => "no error".to_owned(),
        Err(error) => message(&error, root.path()),
    }
}

#[test]
fn every_defect_of_a_table_has_its_error() {
    let pictures = |n: usize| (0..n).map(picture).collect::<Vec<_>>();
    let names = |n: usize| Column::bytes(2, vec![b"x".to_vec(); n]);
    let with = |bad: Vec<u8>| {
        let mut images = pictures(7);
        images[5] = bad;
        hub_rows(images, &[0; 7])
    };
    let announced = {
        // A header of a 5000x1 image: the width of a real one is overwritten, its checksum made anew.
        let mut image = picture(0);
        image[16..20].copy_from_slice(&5000_u32.to_be_bytes());
        let crc = !image[12..29].iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
            })
        });
        image[29..33].copy_from_slice(&crc.to_be_bytes());
        image
    };
    let whole = jpeg(&pixels(3, 32, 32), 32, 32);
    let half = whole[..whole.len() / 2].to_vec();
    let cases: Vec<(&str, &str, Vec<Column>, &str)> = vec![
        (
            "no image column",
            "message m { optional group picture { optional binary bytes; } optional int64 label; }",
            vec![Column::bytes(2, pictures(1)), Column::int64(&[1])],
            "`train-00000-of-00001.parquet` has no column `img`, `image`, `images`, `image_bytes` or `bytes`, found `picture.bytes`, `label`",
        ),
        (
            "no label column",
            "message m { optional group img { optional binary bytes; } optional int64 coarse_label; }",
            vec![Column::bytes(2, pictures(1)), Column::int64(&[1])],
            "`train-00000-of-00001.parquet` has no column `label`, `labels`, `fine_label`, `fine_labels`, `target` or `class`, found `img.bytes`, `coarse_label`",
        ),
        (
            "paths instead of images",
            "message m { optional binary image (UTF8); optional int64 label; }",
            vec![Column::bytes(1, pictures(1)), Column::int64(&[1])],
            "column `image` of `train-00000-of-00001.parquet` is text, expected image files as bytes, or a struct with them as `bytes`",
        ),
        (
            "bytes that are numbers",
            "message m { optional group img { optional int64 bytes; } optional int64 label; }",
            vec![Column::Int64(vec![2], vec![1]), Column::int64(&[1])],
            "column `img.bytes` of `train-00000-of-00001.parquet` is INT64, expected image files as bytes, or a struct with them as `bytes`",
        ),
        (
            "labels that are words",
            "message m { optional group img { optional binary bytes; } optional binary label (UTF8); }",
            vec![
                Column::bytes(2, pictures(1)),
                Column::bytes(1, vec![b"cat".to_vec()]),
            ],
            "column `label` of `train-00000-of-00001.parquet` is text, expected a column of integers",
        ),
        (
            "labels that are fractions",
            "message m { optional group img { optional binary bytes; } optional double label; }",
            vec![
                Column::bytes(2, pictures(1)),
                Column::Double(vec![1], vec![1.0]),
            ],
            "column `label` of `train-00000-of-00001.parquet` is DOUBLE, expected a column of integers",
        ),
        (
            "lists of labels",
            "message m { optional group img { optional binary bytes; } repeated int64 label; }",
            vec![Column::bytes(2, pictures(1)), Column::List(vec![1])],
            "column `label` of `train-00000-of-00001.parquet` is a list of INT64, expected a column of integers",
        ),
        (
            "an image struct that is null",
            HUB,
            vec![
                Column::Bytes(vec![2, 2, 0], pictures(2)),
                Column::Bytes(vec![2, 2, 0], vec![b"x".to_vec(); 2]),
                Column::int64(&[1, 2, 3]),
            ],
            "row 2 of `train-00000-of-00001.parquet` has no value in column `img.bytes`",
        ),
        (
            "image bytes that are null",
            HUB,
            vec![
                Column::Bytes(vec![1, 2, 2], pictures(2)),
                names(3),
                Column::int64(&[1, 2, 3]),
            ],
            "row 0 of `train-00000-of-00001.parquet` has no value in column `img.bytes`",
        ),
        (
            "a label that is null",
            HUB,
            vec![
                Column::bytes(2, pictures(3)),
                names(3),
                Column::Int64(vec![1, 0, 1], vec![1, 2]),
            ],
            "row 1 of `train-00000-of-00001.parquet` has no value in column `label`",
        ),
        (
            "a label too large",
            HUB,
            hub_rows(pictures(4), &[0, 9, 1, 10]),
            "row 3 of `train-00000-of-00001.parquet` has label 10, expected 0 to 9",
        ),
        (
            "a negative label",
            HUB,
            hub_rows(pictures(2), &[-1, 0]),
            "row 0 of `train-00000-of-00001.parquet` has label -1, expected 0 to 9",
        ),
        (
            "no bytes at all",
            HUB,
            with(Vec::new()),
            "row 5 of `train-00000-of-00001.parquet` has an unusable image: not a PNG, JPEG, BMP or PNM image: the bytes begin with ``",
        ),
        (
            "a web page",
            HUB,
            with(b"<html><body>404".to_vec()),
            "row 5 of `train-00000-of-00001.parquet` has an unusable image: not a PNG, JPEG, BMP or PNM image: the bytes begin with `3c68746d6c3e3c62`",
        ),
        (
            "half a JPEG",
            HUB,
            with(half),
            "row 5 of `train-00000-of-00001.parquet` has an unusable image: the JPEG data ends before its end marker",
        ),
        (
            "an announced giant",
            HUB,
            with(announced),
            "row 5 of `train-00000-of-00001.parquet` has an unusable image: the image has 32x5000 pixels, the limit is 4096x4096",
        ),
        (
            "no rows",
            HUB,
            hub_rows(Vec::new(), &[]),
            "the train split of `cifar10` has no image",
        ),
    ];
    for (what, schema, columns, expect) in cases {
        let found = refused("cifar10", |path| parquet(path, schema, None, &[columns]));
        assert_eq!(found, expect, "{what}");
    }
    let mut damaged = picture(0);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x55;
    let found = refused("cifar10", |path| parquet(path, HUB, None, &[with(damaged)]));
    assert!(
        found.starts_with("row 5 of `train-00000-of-00001.parquet` has an unusable image: the image bytes cannot be decoded: "),
        "{found}"
    );
}

#[test]
fn a_file_of_another_kind_has_its_error() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:1e06\nsize 22790053\n";
    for (content, expect) in [
        (
            pointer,
            "`train-00000-of-00001.parquet` is a Git LFS pointer, not the data",
        ),
        (
            "<html>not found</html>",
            "`train-00000-of-00001.parquet` is not a readable Parquet file",
        ),
        (
            "",
            "`train-00000-of-00001.parquet` is not a readable Parquet file",
        ),
    ] {
        let found = refused("cifar10", |path| {
            fs_err::write(path, content).expect("write");
        });
        assert!(found.starts_with(expect), "{found}");
    }
}

#[test]
fn a_file_that_names_other_classes_is_not_taken_for_the_dataset() {
    let described = |n: usize| {
        let names: Vec<String> = (0..n).map(|i| format!("\"class {i}\"")).collect();
        format!(
            r#"{{"info": {{"features": {{"img": {{"_type": "Image"}}, "label": {{"names": [{}], "_type": "ClassLabel"}}}}}}}}"#,
            names.join(",")
        )
    };
    let found = |text: &str| {
        refused("cifar10", |path| {
            parquet(path, HUB, Some(text), &[hub_rows(vec![picture(0)], &[1])]);
        })
    };
    assert_eq!(found(&described(10)), "no error");
    assert_eq!(
        found(&described(43)),
        "`train-00000-of-00001.parquet` holds a dataset of 43 classes, expected 10"
    );
    for other in [
        "",
        "[1]",
        "{\"info\": 3}",
        "{\"info\": {\"features\": {\"label\": []}}}",
    ] {
        assert_eq!(found(other), "no error", "{other}");
    }
}

#[test]
fn a_missing_shard_and_a_missing_root_are_named() {
    let root = tempfile::tempdir().expect("a folder");
    hub_file(&root.path().join("train-00000-of-00002.parquet"), 0, 2);
    hub_file(&root.path().join(TEST), 0, 2);
    let error = plain("cifar10", root.path()).expect_err("a shard is missing");
    assert_eq!(
        message(&error, root.path()),
        "`train-00001-of-00002.parquet` is missing, the set has 2 files and 1 are there"
    );
    let error = open("gtsrb", None, &OpenOptions::default()).expect_err("no root");
    assert!(matches!(error, DataError::NoRoot { id: "gtsrb" }));
    assert!(error.hint().is_some_and(|hint| hint.contains("--data")));
    let error = plain("gtsrb", Path::new("hub")).expect_err("not on the hub");
    assert!(matches!(error, DataError::NotOnHub { id: "gtsrb" }));
}

/// The bytes of a small good file.
fn good() -> Vec<u8> {
    let root = tempfile::tempdir().expect("a folder");
    let path = root.path().join(TRAIN);
    hub_file(&path, 0, 12);
    fs_err::read(path).expect("reads")
}

#[test]
fn a_truncated_file_is_refused_at_each_37th_byte() {
    let whole = good();
    for length in (0..whole.len()).step_by(37) {
        let found = refused("cifar10", |path| {
            fs_err::write(path, &whole[..length]).expect("write");
        });
        assert!(
            found.starts_with("`train-00000-of-00001.parquet` is not a readable Parquet file: "),
            "{length} of {} bytes: {found}",
            whole.len()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Damage may go unseen (a name, a statistic) but never breaks the program.
    #[test]
    fn damaged_bytes_never_break_the_reader(changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4)) {
        static GOOD: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(good);
        let mut bytes = GOOD.clone();
        for (at, value) in &changes {
            // The table of contents at the end is where damage hurts most.
            let tail = if changes.len() == 3 { bytes.len() } else { 900 };
            let at = bytes.len() - 1 - at.index(tail);
            bytes[at] = *value;
        }
        let found = refused("cifar10", |path| fs_err::write(path, &bytes).expect("write"));
        prop_assert!(!found.is_empty());
    }
}
