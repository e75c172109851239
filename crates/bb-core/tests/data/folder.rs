//! Image folders and the official binary batches.

use std::path::Path;

use bb_core::data::{DataError, OpenOptions, open};

use super::data_files::*;

/// Two classes, three train images and two test images, of 20x24 pixels but one.
fn good(root: &Path) {
    let image = |seed| png(&pixels(seed, 20, 24), 20, 24);
    put(root, "train/dog/b.PNG", &image(2));
    put(
        root,
        "train/cat/deep/a.jpeg",
        &jpeg(&[200; 20 * 24 * 3], 20, 24),
    );
    put(root, "train/cat/a.png", &image(1));
    put(root, "train/cat/notes.txt", b"not an image");
    put(root, "train/cat/._a.png", b"left by a Mac");
    put(root, "val/dog/x.png", &png(&[5; 40 * 40 * 3], 40, 40));
    put(root, "val/cat/y.png", &image(4));
}

#[test]
fn classes_are_the_sorted_names_and_the_first_image_gives_the_size() {
    let root = tempfile::tempdir().expect("a folder");
    good(root.path());
    let data = plain("folder", root.path()).expect("opens");
    assert_eq!(
        (data.spec.classes, data.spec.height, data.spec.width),
        (2, 20, 24)
    );
    assert_eq!(data.class_names, ["cat", "dog"]);
    assert_eq!(
        (data.spec.id, data.spec.crop_padding, data.spec.flip),
        ("folder", 4, false)
    );
    assert_eq!(&*data.train.labels, &[0, 0, 1]);
    assert_eq!(data.train.images.image(0), pixels(1, 20, 24));
    assert_eq!(data.train.images.image(1), [200; 20 * 24 * 3]);
    assert_eq!(data.train.images.image(2), pixels(2, 20, 24));
    assert_eq!(&*data.test.labels, &[0, 1]);
    assert_eq!(data.test.images.image(1), [5; 20 * 24 * 3]);

    let opts = OpenOptions {
        cache_dir: Some(root.path().join("cache")),
        ..OpenOptions::default()
    };
    for _ in 0..2 {
        let cached = open("folder", Some(root.path()), &opts).expect("opens");
        assert_eq!(
            (cached.train, cached.digest),
            (data.train.clone(), data.digest.clone())
        );
    }
    put(
        root.path(),
        "train/dog/c.png",
        &png(&pixels(9, 20, 24), 20, 24),
    );
    let grown = open("folder", Some(root.path()), &opts).expect("opens");
    assert_eq!(grown.train.len(), 4);
}

#[test]
fn every_defect_of_a_folder_has_its_error() {
    type Damage = fn(&Path);
    let cases: [(Damage, &str); 9] = [
        (
            |root| fs_err::remove_dir_all(root.join("train")).expect("remove"),
            "no split `train` in",
        ),
        (
            |root| fs_err::remove_dir_all(root.join("val")).expect("remove"),
            "no split `test` in",
        ),
        (
            |root| {
                fs_err::remove_dir_all(root.join("train")).expect("remove");
                put(root, "train/a.png", &picture(0));
            },
            "`train` has no class folders",
        ),
        (
            |root| put(root, "train/eel/readme.md", b"no image"),
            "class folder `train/eel` has no image (png, jpg, ppm, pgm, pbm or bmp)",
        ),
        (
            |root| put(root, "val/eel/a.png", &picture(0)),
            "class folder `val/eel` has no counterpart in `train`",
        ),
        (
            |root| put(root, "train/dog/c.tiff", b"II*\0"),
            "`train/dog/c.tiff` has an image format that is not read, expected png, jpg, ppm, pgm, pbm or bmp",
        ),
        (
            |root| put(root, "train/dog/c.png", b"GIF89a.."),
            "`train/dog/c.png` is not a usable image: not a PNG, JPEG, BMP or PNM image: the bytes begin with `4749463839612e2e`",
        ),
        (
            |root| put(root, "train/cat/a.png", &picture(0)[..60]),
            "`train/cat/a.png` is not a usable image: the image bytes cannot be decoded",
        ),
        (
            |root| {
                fs_err::remove_dir_all(root.join("val")).expect("remove");
                fs_err::create_dir_all(root.join("val/cat")).expect("create");
            },
            "the test split of `folder` has no image",
        ),
    ];
    for (damage, expect) in cases {
        let root = tempfile::tempdir().expect("a folder");
        good(root.path());
        damage(root.path());
        let error = plain("folder", root.path()).expect_err(expect);
        let found = message(&error, root.path());
        assert!(
            found.starts_with(expect),
            "expected {expect}, found {found}"
        );
    }
}

/// The reader of candle-datasets sees the same bytes; it gives them as f32 from 0 to 1 in planes.
#[cfg(feature = "hub")]
fn agrees_with_candle(data: &bb_core::data::Dataset, folder: &Path) {
    let loaded = candle_datasets::vision::cifar::load_dir(folder).expect("loads");
    for (split, images, labels) in [
        (&data.train, loaded.train_images, loaded.train_labels),
        (&data.test, loaded.test_images, loaded.test_labels),
    ] {
        let n = split.len();
        let images = images.narrow(0, 0, n).and_then(|t| t.permute((0, 2, 3, 1)));
        let values = images.and_then(|t| t.flatten_all()?.to_vec1::<f32>());
        let bytes = values
            .expect("values")
            .into_iter()
            .map(|v| (v * 255.0).round() as u8);
        assert!(bytes.eq(split.images.as_bytes().iter().copied()));
        let labels = labels.narrow(0, 0, n).and_then(|t| t.to_vec1::<u8>());
        assert!(
            labels
                .expect("labels")
                .into_iter()
                .map(u32::from)
                .eq(split.labels.iter().copied())
        );
    }
}

/// The six batches as files with holes, which take no space, and a few rows in them.
fn batches(folder: &Path) {
    use std::io::{Seek, SeekFrom, Write};
    fs_err::create_dir_all(folder).expect("create");
    for i in 1..=6_u8 {
        let name = if i == 6 {
            "test_batch.bin".to_owned()
        } else {
            format!("data_batch_{i}.bin")
        };
        let mut file = fs_err::File::create(folder.join(name)).expect("create");
        file.set_len(30_730_000).expect("grows");
        for row in [0_u64, 1, 9_999] {
            let planes: Vec<u8> = (0..3072)
                .map(|at| ((at * 5 + usize::from(i)) % 256) as u8)
                .collect();
            file.seek(SeekFrom::Start(row * 3073)).expect("seeks");
            file.write_all(&[i]).expect("writes");
            file.write_all(&planes).expect("writes");
        }
    }
}

#[test]
fn the_official_batches_are_read_as_they_are() {
    let root = tempfile::tempdir().expect("a folder");
    let folder = root.path().join("cifar-10-batches-bin");
    batches(&folder);
    let opts = OpenOptions {
        train_limit: Some(11_000),
        test_limit: Some(2),
        ..OpenOptions::default()
    };
    let data = open("cifar10", Some(root.path()), &opts).expect("opens");
    assert_eq!((data.train.len(), data.test.len()), (11_000, 2));
    for (split, row, batch) in [
        (&data.train, 0, 1),
        (&data.train, 9_999, 1),
        (&data.train, 10_001, 2),
        (&data.test, 1, 6),
    ] {
        assert_eq!(split.labels[row], batch);
        // Planes of red, green and blue become pixels of three values.
        for (place, pixel) in split.images.image(row).chunks_exact(3).enumerate() {
            let expect = [0, 1, 2].map(|c| ((c * 1024 + place) * 5 + batch as usize) % 256);
            let pixel = [0, 1, 2].map(|c: usize| usize::from(pixel[c]));
            assert_eq!(pixel, expect, "row {row}, pixel {place}");
        }
    }
    assert_eq!(data.train.images.image(5000), [0; 3072]);
    #[cfg(feature = "hub")]
    agrees_with_candle(&data, &folder);

    let batch = folder.join("data_batch_2.bin");
    let mut bytes = fs_err::read(&batch).expect("reads");
    bytes[3073 * 7] = 10;
    fs_err::write(&batch, &bytes).expect("writes");
    let error = open("cifar10", Some(root.path()), &opts).expect_err("a label out of range");
    assert_eq!(
        message(&error, &folder),
        "row 7 of `data_batch_2.bin` has label 10, expected 0 to 9"
    );
    bytes[3073 * 7] = 0;
    fs_err::write(&batch, &bytes).expect("writes");
    assert!(open("cifar10", Some(root.path()), &opts).is_ok());

    let short = folder.join("data_batch_3.bin");
    let file = fs_err::OpenOptions::new()
        .write(true)
        .open(&short)
        .expect("opens");
    file.set_len(30_729_999).expect("shrinks");
    let error = open("cifar10", Some(root.path()), &opts).expect_err("a short file");
    assert_eq!(
        message(&error, &folder),
        "`data_batch_3.bin` has 30729999 bytes, expected 30730000"
    );
    fs_err::remove_file(&short).expect("removes");
    let error = open("cifar10", Some(root.path()), &opts).expect_err("a missing file");
    assert!(
        matches!(&error, DataError::Io { path, .. } if path == &short),
        "{error:?}"
    );
}
