//! Names of classes: where they come from, that they survive the cache, and what they must not change.

use std::path::Path;

use bb_core::data::{Dataset, Note, OpenOptions, open};

use super::data_files::*;

const TRAIN: &str = "train-00000-of-00001.parquet";
const TEST: &str = "test-00000-of-00001.parquet";

/// What the hub's tools write into a file about its label column.
fn description(column: &str, names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    format!(
        r#"{{"info": {{"features": {{"{column}": {{"names": [{}], "_type": "ClassLabel"}}}}}}}}"#,
        names.join(", ")
    )
}

const OWN: [&str; 10] = ["plane", "car", "b", "c", "d", "e", "f", "g", "h", "i"];
const OFFICIAL: [&str; 10] = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
];

fn hub(path: &Path, names: Option<&[&str]>) {
    let text = names.map(|names| description("label", names));
    let rows = hub_rows(vec![picture(1), picture(2)], &[1, 2]);
    parquet(path, HUB, text.as_deref(), &[rows]);
}

fn cached(id: &str, root: &Path) -> Dataset {
    let opts = OpenOptions {
        cache_dir: Some(root.join("cache")),
        ..OpenOptions::default()
    };
    open(id, Some(root), &opts).expect("opens")
}

#[test]
fn names_come_from_the_file_or_the_dataset_and_survive_the_cache() {
    let numbers: Vec<String> = (0..200).map(|i| i.to_string()).collect();
    let numbers: Vec<&str> = numbers.iter().map(String::as_str).collect();
    let mut digests = Vec::new();
    for (id, train, test, expect) in [
        ("cifar10", None, None, &OFFICIAL[..]),
        ("cifar10", Some(&OWN[..]), None, &OWN),
        ("cifar10", None, Some(&OWN[..]), &OWN),
        (
            "cifar10",
            Some(&OFFICIAL[..]),
            Some(&OFFICIAL[..]),
            &OFFICIAL,
        ),
        ("tiny", None, None, &numbers),
    ] {
        let root = tempfile::tempdir().expect("a folder");
        hub(&root.path().join(TRAIN), train);
        hub(&root.path().join(TEST), test);
        let fresh = plain(id, root.path()).expect("opens");
        assert_eq!(fresh.class_names, expect, "{id}");
        for _ in 0..2 {
            let cached = cached(id, root.path());
            assert_eq!(cached.class_names, expect, "{id}, cached");
            assert_eq!(cached.notes, fresh.notes);
        }
        digests.push(fresh.digest);
    }
    // How a file spells its classes is no part of a dataset's identity.
    assert!(digests[1..4].iter().all(|digest| *digest == digests[0]));
}

#[test]
fn the_other_datasets_have_names_too() {
    for (id, expect) in [
        ("cifar100", [(0, "apple"), (99, "worm")]),
        (
            "gtsrb",
            [
                (14, "Stop"),
                (42, "End of no passing by vehicles over 3.5 metric tons"),
            ],
        ),
    ] {
        let root = tempfile::tempdir().expect("a folder");
        hub(&root.path().join(TRAIN), None);
        hub(&root.path().join(TEST), None);
        let data = plain(id, root.path()).expect("opens");
        assert_eq!(data.class_names.len(), data.spec.classes);
        for (class, name) in expect {
            assert_eq!(data.class_names[class], name, "{id}");
        }
    }
    let options = OpenOptions {
        train_limit: Some(10),
        test_limit: Some(10),
        ..OpenOptions::default()
    };
    let data = open("synthetic", None, &options).expect("needs no file");
    assert_eq!(data.class_names[3], "square striped down");
    assert!(data.notes.is_empty());
}

#[test]
fn files_that_contradict_each_other_or_the_dataset_are_refused() {
    let mut swapped = OFFICIAL;
    swapped.swap(3, 5);
    let mut renamed = OWN;
    renamed[9] = "z";
    for (train, test, expect) in [
        (
            &swapped,
            &swapped,
            "`train-00000-of-00001.parquet` numbers the classes of `cifar10` otherwise: class 3 is `dog`, expected `cat`",
        ),
        (
            &OWN,
            &renamed,
            "class 9 is `i` in `train-00000-of-00001.parquet` and `z` in `test-00000-of-00001.parquet`",
        ),
    ] {
        let root = tempfile::tempdir().expect("a folder");
        hub(&root.path().join(TRAIN), Some(train));
        hub(&root.path().join(TEST), Some(test));
        let error = plain("cifar10", root.path()).expect_err(expect);
        assert_eq!(message(&error, root.path()), expect);
    }
    let root = tempfile::tempdir().expect("a folder");
    hub(
        &root.path().join("train-00000-of-00002.parquet"),
        Some(&OWN),
    );
    hub(
        &root.path().join("train-00001-of-00002.parquet"),
        Some(&renamed),
    );
    hub(&root.path().join(TEST), None);
    let error = plain("cifar10", root.path()).expect_err("two shards");
    assert_eq!(
        message(&error, root.path()),
        "class 9 is `i` in `train-00000-of-00002.parquet` and `z` in `train-00001-of-00002.parquet`"
    );
}

#[test]
fn the_notes_count_what_was_resized_and_what_was_cut() {
    let grey = |values: &[u16]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_ne_bytes()).collect();
        let mut out = Vec::new();
        image::ImageEncoder::write_image(
            image::codecs::png::PngEncoder::new(&mut out),
            &bytes,
            2,
            1,
            image::ExtendedColorType::L16,
        )
        .expect("a small image can be encoded");
        out
    };
    let root = tempfile::tempdir().expect("a folder");
    let rows = hub_rows(vec![picture(1), grey(&[3, 9]), grey(&[3, 256])], &[1, 2, 3]);
    parquet(&root.path().join(TRAIN), HUB, None, &[rows]);
    hub(&root.path().join(TEST), None);
    let expect = [
        Note::Info(
            "2 training images of another size resized to 32x32, bilinear as in Pillow".to_owned(),
        ),
        Note::Warning(
            "1 training image of 16-bit grey with values above 255, which become white as in Pillow; scale them to 8 bits before".to_owned(),
        ),
    ];
    assert_eq!(plain("cifar10", root.path()).expect("opens").notes, expect);
    assert_eq!(cached("cifar10", root.path()).notes, expect);
    let again = cached("cifar10", root.path());
    assert_eq!(again.notes, expect);
    assert_eq!(&again.train.images.image(1)[..3], &[3; 3]);
    assert_eq!(again.train.images.image(2)[3071], 255);
}
