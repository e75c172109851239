//! The layouts in which people have these datasets, and what is said about others.

use std::path::Path;

use bb_core::cli::Coded as _;
use bb_core::data::{DataError, Dataset, Note, OpenOptions, open};

use super::data_files::*;

/// A batch as Python 2 pickles it: a dictionary with an array `[n, 3072]` and two lists.
fn batch(field: &str, rows: &[(u8, u8)]) -> Vec<u8> {
    let text = |text: &str| [&[b'U', text.len() as u8], text.as_bytes()].concat();
    let data: Vec<u8> = rows.iter().flat_map(|(_, fill)| [*fill; 3072]).collect();
    let labels: Vec<u8> = rows.iter().flat_map(|(label, _)| [b'K', *label]).collect();
    [
        b"\x80\x02}q\x01(".to_vec(),
        text("data"),
        b"q\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\0\x85U\x01b\x87Rq\x05(K\x01M".to_vec(),
        (rows.len() as u16).to_le_bytes().to_vec(),
        b"M\0\x0c\x86cnumpy\ndtype\nq\x06U\x02u1K\0K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T".to_vec(),
        (data.len() as u32).to_le_bytes().to_vec(),
        data,
        b"tb".to_vec(),
        text(field),
        b"q\x08]q\x09(".to_vec(),
        labels,
        b"e".to_vec(),
        text("coarse_labels"),
        b"]".to_vec(),
        b"u.".to_vec(),
    ]
    .concat()
}

fn names(field: &str, names: &[String]) -> Vec<u8> {
    let text = |text: &str| [&[b'U', text.len() as u8], text.as_bytes()].concat();
    let list = names.iter().flat_map(|name| text(name)).collect();
    [
        b"\x80\x02}(".to_vec(),
        text(field),
        b"](".to_vec(),
        list,
        b"eu.".to_vec(),
    ]
    .concat()
}

/// Files below `folder` in a gzipped archive.
fn tar_gz(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(gzip);
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive
            .append_data(&mut header, name, &bytes[..])
            .expect("memory");
    }
    archive
        .into_inner()
        .and_then(flate2::write::GzEncoder::finish)
        .expect("memory")
}

/// The error and its hint, with the root cut out.
fn refused(id: &str, root: &Path) -> (String, Option<String>) {
    let error = plain(id, root).expect_err("refused");
    let place = root.display().to_string();
    let hint = error.hint().map(|hint| hint.replace(&place, "ROOT"));
    (message(&error, root).replace(&place, "ROOT"), hint)
}

fn info(text: &str) -> Note {
    Note::Info(text.to_owned())
}

fn warning(text: &str) -> Note {
    Note::Warning(text.to_owned())
}

/// The red value of the first pixel of each training image.
fn reds(data: &Dataset) -> Vec<u8> {
    (0..data.train.len())
        .map(|i| data.train.images.image(i)[0])
        .collect()
}

#[test]
fn python_batches_are_read_unpacked_and_packed() {
    let files: Vec<(String, Vec<u8>)> = (1..=5)
        .map(|i| {
            (
                format!("data_batch_{i}"),
                batch("labels", &[(i, 10 * i), (9 - i, 7)]),
            )
        })
        .chain([("test_batch".to_owned(), batch("labels", &[(3, 200)]))])
        .map(|(name, bytes)| (format!("cifar-10-batches-py/{name}"), bytes))
        .collect();
    let loose = tempfile::tempdir().expect("a folder");
    for (name, bytes) in &files {
        put(loose.path(), name, bytes);
    }
    let read = plain("cifar10", loose.path()).expect("opens");
    assert_eq!(&*read.train.labels, &[1, 8, 2, 7, 3, 6, 4, 5, 5, 4]);
    assert_eq!(reds(&read), [10, 7, 20, 7, 30, 7, 40, 7, 50, 7]);
    assert_eq!(
        (&*read.test.labels, read.test.images.image(0)),
        (&[3][..], &[200; 3072][..])
    );
    assert_eq!(read.class_names[9], "truck");
    let inner = plain("cifar10", &loose.path().join("cifar-10-batches-py"));
    assert_eq!(inner.expect("opens").digest, read.digest);

    // In the archive in another order, with other files between.
    let packed = tempfile::tempdir().expect("a folder");
    let mut members: Vec<_> = files.iter().rev().cloned().collect();
    members.insert(
        2,
        (
            "cifar-10-batches-py/readme.html".to_owned(),
            b"<html>".to_vec(),
        ),
    );
    members.insert(0, ("elsewhere/test_batch".to_owned(), b"another".to_vec()));
    let archive = packed.path().join("cifar-10-python.tar.gz");
    fs_err::write(&archive, tar_gz(&members)).expect("write");
    for root in [packed.path(), &archive] {
        assert_eq!(plain("cifar10", root).expect("opens").digest, read.digest);
    }
    let limited = OpenOptions {
        train_limit: Some(3),
        cache_dir: Some(packed.path().join("cache")),
        ..OpenOptions::default()
    };
    let part = open("cifar10", Some(packed.path()), &limited).expect("opens");
    assert_eq!(part.train, read.train.take(3));

    // What is unpacked goes before the archive, and names that contradict the dataset are refused.
    put(packed.path(), "cifar-10-batches-py/test_batch", b"x");
    assert!(matches!(
        plain("cifar10", packed.path()),
        Err(DataError::Io { .. })
    ));
    let mut swapped = read.class_names.clone();
    swapped.swap(0, 1);
    put(
        loose.path(),
        "cifar-10-batches-py/batches.meta",
        &names("label_names", &read.class_names),
    );
    assert_eq!(
        plain("cifar10", loose.path()).expect("opens").digest,
        read.digest
    );
    put(
        loose.path(),
        "cifar-10-batches-py/batches.meta",
        &names("label_names", &swapped),
    );
    assert_eq!(
        refused("cifar10", &loose.path().join("cifar-10-batches-py")).0,
        "`batches.meta` numbers the classes of `cifar10` otherwise: class 0 is `automobile`, expected `airplane`"
    );
}

#[test]
fn a_hostile_archive_or_batch_is_refused() {
    let root = tempfile::tempdir().expect("a folder");
    let archive = root.path().join("cifar-10-python.tar.gz");
    let path = |name: &str| format!("cifar-10-batches-py/{name}");
    let one = |name: &str, bytes: &[u8]| tar_gz(&[(path(name), bytes.to_vec())]);
    // A file far beyond what a batch has: zeros pack well.
    let huge = one("data_batch_1", &vec![0; 80 << 20]);
    for (bytes, expect) in [
        (
            b"no archive".to_vec(),
            "`cifar-10-python.tar.gz` is not a readable `.tar.gz` archive: invalid gzip header",
        ),
        (
            one("data_batch_1", b"x"),
            "`cifar-10-python.tar.gz` has no file `cifar-10-batches-py/data_batch_2`",
        ),
        (
            huge,
            "`cifar-10-python.tar.gz/data_batch_1` has 83886080 bytes, expected at most 64065536",
        ),
    ] {
        fs_err::write(&archive, &bytes).expect("write");
        assert_eq!(refused("cifar10", root.path()).0, expect);
    }
    for name in [
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
    ] {
        put(root.path(), &path(name), &batch("labels", &[(1, 1)]));
    }
    for (bytes, expect) in [
        (
            b"cos\nsystem\n(U\x02idtR.".to_vec(),
            "`test_batch` is no readable CIFAR batch: `os.system` is not allowed at byte 0 of the pickle",
        ),
        (
            batch("labels", &[(10, 1)]),
            "row 0 of `test_batch` has label 10, expected 0 to 9",
        ),
        (
            batch("fine_labels", &[(1, 1)]),
            "`test_batch` is no readable CIFAR batch: the pickle is no dictionary with labels",
        ),
        (
            Vec::new(),
            "`test_batch` is no readable CIFAR batch: 1 bytes expected, 0 left at byte 0 of the pickle",
        ),
    ] {
        put(root.path(), &path("test_batch"), &bytes);
        assert_eq!(
            refused("cifar10", &root.path().join("cifar-10-batches-py")).0,
            expect
        );
    }
}

#[test]
fn both_forms_of_cifar100_are_read() {
    let root = tempfile::tempdir().expect("a folder");
    put(
        root.path(),
        "cifar-100-python/train",
        &batch("fine_labels", &[(99, 5), (0, 6)]),
    );
    put(
        root.path(),
        "cifar-100-python/test",
        &batch("fine_labels", &[(42, 7)]),
    );
    let python = plain("cifar100", root.path()).expect("opens");
    assert_eq!(
        (&*python.train.labels, &*python.test.labels),
        (&[99, 0][..], &[42][..])
    );
    assert_eq!(python.class_names[99], "worm");

    // The binary form has whole files only, coarse label first.
    let root = tempfile::tempdir().expect("a folder");
    let folder = root.path().join("cifar-100-binary");
    fs_err::create_dir_all(&folder).expect("create");
    for (name, rows) in [("train.bin", 50_000_u64), ("test.bin", 10_000)] {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = fs_err::File::create(folder.join(name)).expect("create");
        file.set_len(rows * 3074).expect("grows");
        file.seek(SeekFrom::Start(3074)).expect("seeks");
        file.write_all(&[[19, 98, 1].as_slice(), &[2; 1023], &[3; 1024], &[4; 1024]].concat())
            .expect("writes");
    }
    let limits = OpenOptions {
        train_limit: Some(2),
        test_limit: Some(2),
        ..OpenOptions::default()
    };
    let binary = open("cifar100", Some(root.path()), &limits).expect("opens");
    assert_eq!(&*binary.train.labels, &[0, 98]);
    assert_eq!(&binary.train.images.image(1)[..6], &[1, 3, 4, 2, 3, 4]);
    let file = fs_err::OpenOptions::new()
        .write(true)
        .open(folder.join("test.bin"))
        .expect("opens");
    file.set_len(7).expect("shrinks");
    assert_eq!(
        refused("cifar100", &folder).0,
        "`test.bin` has 7 bytes, expected 30740000"
    );
}

/// A PPM file of one colour.
fn ppm(h: usize, w: usize, value: u8) -> Vec<u8> {
    [
        format!("P6\n{w} {h}\n255\n").into_bytes(),
        vec![value; h * w * 3],
    ]
    .concat()
}

const FILENAME: &str = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\r\n";

#[test]
fn the_signs_are_read_in_the_order_of_their_tables() {
    // The archives unpacked, BackdoorBench's folders, and torchvision's, whose table lies above.
    for (train, test, table) in [
        (
            "GTSRB/Final_Training/Images",
            "GTSRB/Final_Test/Images",
            "GTSRB/Final_Test/Images",
        ),
        ("Train", "Test", "Test"),
        (
            "gtsrb/GTSRB/Training",
            "gtsrb/GTSRB/Final_Test/Images",
            "gtsrb",
        ),
    ] {
        let root = tempfile::tempdir().expect("a folder");
        for (class, first, second) in [(0, 10, 20), (42, 30, 40)] {
            let folder = format!("{train}/{class:05}");
            put(
                root.path(),
                &format!("{folder}/00000_00000.ppm"),
                &ppm(40, 36, first),
            );
            put(
                root.path(),
                &format!("{folder}/00000_00001.ppm"),
                &ppm(32, 32, second),
            );
        }
        // Without a table the names decide, with one its rows do.
        let csv = format!(
            "{FILENAME}00000_00001.ppm;32;32;5;5;26;26;42\r\n00000_00000.ppm;36;40;5;5;30;34;42\r\n"
        );
        put(
            root.path(),
            &format!("{train}/00042/GT-00042.csv"),
            csv.as_bytes(),
        );
        put(root.path(), &format!("{test}/00000.ppm"), &ppm(32, 32, 1));
        put(root.path(), &format!("{test}/00001.ppm"), &ppm(32, 32, 2));
        // The table in the archive of the images has no classes.
        put(
            root.path(),
            &format!("{test}/GT-final_test.test.csv"),
            b"Filename;Width\n00000.ppm;32\n",
        );
        let csv = format!("{FILENAME}00001.ppm;32;32;5;5;26;26;7\n00000.ppm;32;32;5;5;26;26;8\n");
        put(
            root.path(),
            &format!("{table}/GT-final_test.csv"),
            csv.as_bytes(),
        );
        let data = plain("gtsrb", root.path()).unwrap_or_else(|e| panic!("{train}: {e:?}"));
        assert_eq!(
            (&*data.train.labels, reds(&data)),
            (&[0, 0, 42, 42][..], vec![10, 20, 40, 30]),
            "{train}"
        );
        assert_eq!(
            (&*data.test.labels, data.test.images.image(0)[0]),
            (&[7, 8][..], 2),
            "{train}"
        );
        assert_eq!(
            data.notes,
            [info(
                "2 training images of another size resized to 32x32, bilinear as in Pillow"
            )]
        );
        assert_eq!(data.class_names[7], "Speed limit (100km/h)");
    }
}

#[test]
fn the_signs_of_kaggle_are_read() {
    let root = tempfile::tempdir().expect("a folder");
    for class in [0, 2, 10] {
        put(
            root.path(),
            &format!("Train/{class}/000_0.png"),
            &png(&[class; 32 * 32 * 3], 32, 32),
        );
    }
    put(
        root.path(),
        "Test/00000.png",
        &png(&[5; 32 * 32 * 3], 32, 32),
    );
    put(root.path(), "Meta/0.png", b"an icon");
    put(
        root.path(),
        "Test.csv",
        b"\xef\xbb\xbfWidth,Height,Roi.X1,Roi.Y1,Roi.X2,Roi.Y2,ClassId,Path\n53,54,6,5,48,49,16,Test/00000.png\n",
    );
    let data = plain("gtsrb", root.path()).expect("opens");
    assert_eq!(
        (&*data.train.labels, reds(&data)),
        (&[0, 2, 10][..], vec![0, 2, 10])
    );
    assert_eq!(&*data.test.labels, &[16]);
    for (csv, expect) in [
        (
            "ClassId,Path\n43,Test/00000.png\n",
            "line 2 of `Test.csv` has `43`, expected a class from 0 to 42",
        ),
        (
            "ClassId,Path\n1,../00000.png\n",
            "line 2 of `Test.csv` has `1,../00000.png`, expected a file below this folder and its class",
        ),
        (
            "ClassId,Path\n1\n",
            "line 2 of `Test.csv` has `1`, expected a file below this folder and its class",
        ),
        (
            "Class,Path\n1,x\n",
            "line 1 of `Test.csv` has `Class,Path`, expected ClassId",
        ),
        ("", "line 1 of `Test.csv` has ``, expected Path"),
        ("ClassId,Path\n", "the test split of `gtsrb` has no image"),
        (
            "ClassId,Path\n1,Test/1.png\n",
            "cannot read `Test/1.png`: failed to open file `Test/1.png`: No such file or directory (os error 2)",
        ),
    ] {
        put(root.path(), "Test.csv", csv.as_bytes());
        let found = refused("gtsrb", root.path()).0;
        assert!(
            found.starts_with(expect),
            "expected {expect}, found {found}"
        );
    }
    fs_err::remove_file(root.path().join("Test.csv")).expect("removes");
    assert_eq!(
        refused("gtsrb", root.path()).0,
        "the images in `Test` have no table with their classes, expected `GT-final_test.csv` or `Test.csv`"
    );
    put(root.path(), "Train/43/0.png", &picture(1));
    assert_eq!(
        refused("gtsrb", root.path()).0,
        "`Train/43` is no class folder, expected a number from 0 to 42"
    );
}

/// The official folders of three classes of Tiny ImageNet.
fn tiny(root: &Path) {
    for (i, id) in ["n01443537", "n01629819", "n02124075"].iter().enumerate() {
        for (number, shade) in [(0, 10), (10, 12), (2, 11)] {
            let name = format!("tiny-imagenet-200/train/{id}/images/{id}_{number}.JPEG");
            put(
                root,
                &name,
                &jpeg(&[shade + 100 * (i as u8 % 2); 64 * 64 * 3], 64, 64),
            );
        }
        put(
            root,
            &format!("tiny-imagenet-200/train/{id}/{id}_boxes.txt"),
            b"x",
        );
        put(
            root,
            &format!("tiny-imagenet-200/val/images/val_{i}.JPEG"),
            &jpeg(&[7; 64 * 64 * 3], 64, 64),
        );
    }
    put(
        root,
        "tiny-imagenet-200/test/images/test_0.JPEG",
        &jpeg(&[7; 64 * 64 * 3], 64, 64),
    );
    put(
        root,
        "tiny-imagenet-200/val/val_annotations.txt",
        b"val_1.JPEG\tn02124075\t0\t0\t62\t62\nval_0.JPEG\tn01443537\t0\t0\t62\t62\n",
    );
}

#[test]
fn tiny_imagenet_is_read_as_it_is_published() {
    let root = tempfile::tempdir().expect("a folder");
    tiny(root.path());
    let data = plain("tiny", root.path()).expect("opens");
    assert_eq!(&*data.train.labels, &[0, 0, 0, 1, 1, 1, 2, 2, 2]);
    assert_eq!(
        reds(&data)[..4],
        [10, 12, 11, 110],
        "in the order of the paths"
    );
    assert_eq!(&*data.test.labels, &[2, 0]);
    assert_eq!(
        data.class_names[..4],
        ["n01443537", "n01629819", "n02124075", "3"]
    );
    assert_eq!(
        data.notes,
        [
            warning(
                "3 classes of 200 are there; labels are places among these, and not those of the whole dataset"
            ),
            info("left out 3 files that are no images (3 `.txt`)"),
        ]
    );

    // The list of all classes gives labels of the whole dataset, and the words give names.
    let mut ids: Vec<String> = (0..197)
        .map(|i| format!("n0{:07}", 9_000_000 + i))
        .collect();
    ids.extend(["n02124075", "n01443537", "n01629819"].map(str::to_owned));
    ids.swap(0, 1);
    put(
        root.path(),
        "tiny-imagenet-200/wnids.txt",
        ids.join("\n").as_bytes(),
    );
    put(
        root.path(),
        "tiny-imagenet-200/words.txt",
        b"n01443537\tgoldfish, Carassius auratus\nn09000000\tcrane\nn09000001\tcrane\nn02124075\tEgyptian cat\n",
    );
    let data = plain("tiny", root.path()).expect("opens");
    assert_eq!(&*data.train.labels, &[0, 0, 0, 1, 1, 1, 2, 2, 2]);
    assert_eq!(
        data.class_names[..4],
        ["goldfish", "n01629819", "Egyptian cat", "n09000000"]
    );
    assert_eq!(
        data.notes[0],
        info(
            "classes are the sorted WordNet ids; BackdoorBench numbers them in the order of `wnids.txt`"
        )
    );

    let place = root.path().join("tiny-imagenet-200");
    put(
        &place,
        "val/val_annotations.txt",
        b"val_0.JPEG\tn99999999\n",
    );
    assert_eq!(
        refused("tiny", &place).0,
        "line 1 of `val/val_annotations.txt` has `n99999999`, expected one of the WordNet ids of the classes"
    );
    // Sorted into classes, as people do, with the images without labels still there.
    fs_err::remove_dir_all(place.join("val")).expect("removes");
    put(
        &place,
        "val/n01629819/images/val_0.JPEG",
        &jpeg(&[7; 64 * 64 * 3], 64, 64),
    );
    let sorted = plain("tiny", &place).expect("opens");
    assert_eq!(&*sorted.test.labels, &[1]);
    assert!(
        sorted.notes.contains(&warning(
            "the test split is `val`, since `test` has no folder of a class"
        )),
        "{:?}",
        sorted.notes
    );
}

/// Two classes of images in each of the splits.
fn classes(root: &Path, splits: &[&str]) {
    for split in splits {
        for class in ["cat", "dog"] {
            put(root, &format!("{split}/{class}/0.png"), &picture(3));
        }
    }
}

#[test]
fn the_usual_names_of_splits_are_taken_and_others_can_be_chosen() {
    for splits in [
        ["train", "test"],
        ["train", "val"],
        ["train", "validation"],
        ["Train", "Test"],
        ["training", "testing"],
        ["TRAIN", "VALID"],
    ] {
        let root = tempfile::tempdir().expect("a folder");
        classes(root.path(), &splits);
        let data = plain("folder", root.path()).unwrap_or_else(|e| panic!("{splits:?}: {e:?}"));
        assert_eq!(
            (data.test.len(), &data.notes[..]),
            (2, &[][..]),
            "{splits:?}"
        );
    }
    let root = tempfile::tempdir().expect("a folder");
    classes(root.path(), &["train", "test", "val", "held_out"]);
    put(root.path(), "held_out/cat/1.png", &picture(4));
    let chosen = |name: &str| {
        let options = OpenOptions {
            test_split: Some(name.to_owned()),
            cache_dir: Some(root.path().join("cache")),
            ..OpenOptions::default()
        };
        open("folder", Some(root.path()), &options)
    };
    for _ in 0..2 {
        assert_eq!(chosen("held_out").expect("opens").test.len(), 3);
        assert_eq!(chosen("val").expect("opens").test.len(), 2);
    }
    let error = chosen("nowhere").expect_err("no such split");
    assert_eq!(
        message(&error, root.path()).split(" in `").next(),
        Some("no split `nowhere`")
    );
    assert!(
        error
            .to_string()
            .ends_with("found `cache`, `held_out`, `test`, `train`, `val`"),
        "{error}"
    );
    let options = OpenOptions {
        test_split: Some("val".to_owned()),
        ..OpenOptions::default()
    };
    let error = open("synthetic", None, &options).expect_err("there is only one");
    assert_eq!(
        error.to_string(),
        "no split `val` in `synthetic`, found `train`, `test`"
    );
}

#[test]
fn a_split_without_the_classes_is_passed_over() {
    let root = tempfile::tempdir().expect("a folder");
    classes(root.path(), &["train", "val"]);
    put(root.path(), "test/0001.png", &picture(1));
    let passed = [warning(
        "the test split is `val`, since `test` has no folder of a class",
    )];
    assert_eq!(plain("folder", root.path()).expect("opens").notes, passed);
    put(root.path(), "test/images/0001.png", &picture(1));
    assert_eq!(plain("folder", root.path()).expect("opens").notes, passed);
    // One that has a class of its own beside those is no accident.
    put(root.path(), "test/cat/0001.png", &picture(1));
    assert_eq!(
        refused("folder", root.path()).0,
        "class folder `test/images` has no counterpart in `train`"
    );
    let root = tempfile::tempdir().expect("a folder");
    classes(root.path(), &["train"]);
    put(root.path(), "test/0001.png", &picture(1));
    assert_eq!(
        refused("folder", root.path()).0,
        "`test` has no class folders"
    );
}

#[test]
fn numbers_sort_as_numbers_with_a_warning() {
    let root = tempfile::tempdir().expect("a folder");
    for class in 0..12_u8 {
        for split in ["train", "test"] {
            put(
                root.path(),
                &format!("{split}/{class}/0.png"),
                &png(&[class; 12], 2, 2),
            );
        }
    }
    let data = plain("folder", root.path()).expect("opens");
    assert_eq!(reds(&data), (0..12).collect::<Vec<u8>>());
    assert_eq!(&*data.test.labels, &(0..12).collect::<Vec<u32>>()[..]);
    assert_eq!(data.class_names[2], "2");
    let warned = "class folders are ordered as numbers: label 2 is `2`, where torchvision's order as text has `10`";
    assert_eq!(data.notes, [warning(warned)]);
    // With a name among them it is text, and zeros in front make both orders the same.
    put(root.path(), "train/other/0.png", &png(&[99; 12], 2, 2));
    assert_eq!(
        plain("folder", root.path()).expect("opens").class_names[2],
        "10"
    );
    let root = tempfile::tempdir().expect("a folder");
    for class in ["00", "01", "10"] {
        put(root.path(), &format!("train/{class}/0.png"), &picture(1));
        put(root.path(), &format!("test/{class}/0.png"), &picture(1));
    }
    assert!(
        plain("folder", root.path())
            .expect("opens")
            .notes
            .is_empty()
    );
}

#[test]
fn hidden_and_foreign_files_are_left_out_at_every_depth_and_counted() {
    let root = tempfile::tempdir().expect("a folder");
    classes(root.path(), &["train", "test"]);
    for name in [
        "train/.git/a.png",
        "train/cat/.ipynb_checkpoints/0-checkpoint.png",
        "train/cat/deep/@eaDir/0.png",
        "train/dog/.thumbnails/0.png",
        "train/dog/__MACOSX/0.png",
        "train/dog/._0.png",
        "test/@eaDir/0.png",
    ] {
        put(root.path(), name, &picture(9));
    }
    put(
        root.path(),
        "train/cat/photo.jfif",
        &jpeg(&[9; 32 * 32 * 3], 32, 32),
    );
    put(
        root.path(),
        "train/cat/photo.JPEG",
        &jpeg(&[9; 32 * 32 * 3], 32, 32),
    );
    put(root.path(), "train/cat/scan.ppm", &ppm(32, 32, 4));
    put(root.path(), "train/cat/Thumbs.db", b"x");
    put(root.path(), "train/cat/notes.txt", b"x");
    put(root.path(), "train/dog/more.txt", b"x");
    put(root.path(), "test/cat/LICENSE", b"x");
    let data = plain("folder", root.path()).expect("opens");
    assert_eq!(&*data.train.labels, &[0, 0, 0, 0, 1]);
    assert_eq!(
        data.notes,
        [info(
            "left out 4 files that are no images (1 without an ending, 1 `.db`, 2 `.txt`) and 5 hidden files or folders"
        )]
    );
}

#[test]
fn parquet_files_of_other_writers_are_read() {
    let bytes = || Column::bytes(1, vec![picture(1), picture(2)]);
    let labels = || Column::int64(&[1, 2]);
    let hub = |label: &str| {
        format!(
            "message m {{ optional group img {{ optional binary bytes; optional binary path (UTF8); }} optional int64 {label}; }}"
        )
    };
    for (schema, columns) in [
        (
            "message m { optional binary img; optional int64 label; }".to_owned(),
            vec![bytes(), labels()],
        ),
        (
            "message m { optional int64 labels; optional binary image_bytes; }".to_owned(),
            vec![labels(), bytes()],
        ),
        (
            hub("labels"),
            hub_rows(vec![picture(1), picture(2)], &[1, 2]),
        ),
        (
            hub("target"),
            hub_rows(vec![picture(1), picture(2)], &[1, 2]),
        ),
    ] {
        let root = tempfile::tempdir().expect("a folder");
        for split in ["train", "test"] {
            let path = root.path().join(format!("plain_text/{split}/0000.parquet"));
            parquet(&path, &schema, None, std::slice::from_ref(&columns));
        }
        let data = plain("cifar10", root.path()).unwrap_or_else(|e| panic!("{schema}: {e:?}"));
        assert_eq!(&*data.train.labels, &[1, 2]);
        assert_eq!(data.train.images.image(1), pixels(2, 32, 32));
    }
}

/// A grey PNG.
fn grey(h: usize, w: usize, value: u8) -> Vec<u8> {
    let mut out = Vec::new();
    image::ImageEncoder::write_image(
        image::codecs::png::PngEncoder::new(&mut out),
        &vec![value; h * w],
        w as u32,
        h as u32,
        image::ExtendedColorType::L8,
    )
    .expect("a small image can be encoded");
    out
}

#[test]
fn any_parquet_dataset_is_read_as_a_folder_and_grey_becomes_rgb() {
    // MNIST as it is on the hub: 28x28 grey, ten names.
    let root = tempfile::tempdir().expect("a folder");
    let schema = "message m { optional group image { optional binary bytes; optional binary path (UTF8); } optional int64 label; }";
    let digits: Vec<String> = (0..10).map(|i| format!("\"{i}\"")).collect();
    let text = format!(
        r#"{{"info": {{"features": {{"label": {{"names": [{}]}}}}}}}}"#,
        digits.join(",")
    );
    for (name, description) in [("mnist", Some(&*text)), ("plain", None)] {
        let rows = [hub_rows(vec![grey(28, 28, 7), grey(28, 28, 9)], &[3, 6])];
        let folder = root.path().join(name);
        parquet(
            &folder.join("data/train-00000-of-00001.parquet"),
            schema,
            description,
            &rows,
        );
        parquet(
            &folder.join("data/test-00000-of-00001.parquet"),
            schema,
            description,
            &rows,
        );
    }
    let data = plain("folder", &root.path().join("mnist")).expect("opens");
    assert_eq!(
        (data.spec.classes, data.spec.height, data.spec.width),
        (10, 28, 28)
    );
    assert_eq!(data.class_names[6], "6");
    assert_eq!(data.train.images.image(1), [9; 28 * 28 * 3]);
    // Without names the labels say how many classes there are.
    let data = plain("folder", &root.path().join("plain")).expect("opens");
    assert_eq!(
        (
            data.spec.classes,
            data.class_names.len(),
            &*data.train.labels
        ),
        (7, 7, &[3, 6][..])
    );

    let huge = root.path().join("huge");
    let rows = [hub_rows(vec![grey(1, 1, 7)], &[i64::MAX])];
    parquet(&huge.join("train.parquet"), schema, None, &rows);
    parquet(&huge.join("test.parquet"), schema, None, &rows);
    assert_eq!(
        refused("folder", &huge).0,
        "row 0 of `train.parquet` has label 9223372036854775807, expected 0 to 99999"
    );
    parquet(&huge.join("train.parquet"), schema, None, &[]);
    assert_eq!(refused("folder", &huge).0, "`train.parquet` has no rows");
}

#[test]
fn the_smallest_datasets_are_read() {
    let root = tempfile::tempdir().expect("a folder");
    put(root.path(), "train/only/0.png", &grey(1, 1, 5));
    put(root.path(), "test/only/0.png", &grey(1, 1, 6));
    let data = plain("folder", root.path()).expect("opens");
    assert_eq!(
        (data.spec.classes, data.spec.height, data.spec.width),
        (1, 1, 1)
    );
    assert_eq!(
        (data.train.images.image(0), data.test.images.image(0)),
        (&[5; 3][..], &[6; 3][..])
    );
}

#[test]
fn special_files_and_names_do_no_harm() {
    let root = tempfile::tempdir().expect("a folder");
    classes(root.path(), &["train", "test"]);
    put(root.path(), "train/e\u{1b}[31m\nl/0.png", &picture(1));
    put(root.path(), "train/cat/album.png/1.png", &picture(1));
    #[cfg(unix)]
    {
        // A folder that is reached through itself, and a file that never ends.
        let loop_ = root.path().join("train/cat/loop");
        std::os::unix::fs::symlink(root.path().join("train"), loop_).expect("a link");
        std::os::unix::fs::symlink("/dev/zero", root.path().join("train/dog/zero.png"))
            .expect("a link");
    }
    let data = plain("folder", root.path()).expect("opens");
    assert_eq!(data.class_names, ["cat", "dog", "e\u{fffd}[31m\u{fffd}l"]);
    assert_eq!(data.train.len(), 4);
    #[cfg(unix)]
    {
        let gone = root.path().join("train/dog/gone.png");
        std::os::unix::fs::symlink("/nowhere", gone).expect("a link");
        assert!(
            refused("folder", root.path())
                .0
                .starts_with("cannot read `train/dog/gone.png`")
        );
    }
    let file = root.path().join("train/cat/0.png");
    for id in ["folder", "cifar10"] {
        let text = plain(id, &file).expect_err("a file").to_string();
        assert!(
            text.ends_with("0.png` is a file, expected the folder that holds the dataset"),
            "{text}"
        );
    }
}

#[test]
fn what_is_not_read_gets_a_hint_that_helps() {
    let root = tempfile::tempdir().expect("a folder");
    let path = |name: &str| root.path().join(name);
    fs_err::create_dir_all(path("empty")).expect("create");
    classes(&path("nested/inner"), &["train", "test"]);
    put(&path("unsplit"), "cat/0.png", &picture(1));
    put(&path("zipped"), "GTSRB_Final_Test_GT.zip", b"x");
    classes(&path("classes"), &["train", "test"]);
    classes(&path("only_train"), &["train", "other"]);
    hub_file(&path("above/mnist/train.parquet"), 0, 1);
    put(&path("idx"), "train-labels-idx1-ubyte", b"x");
    for (id, folder, error, hint) in [
        (
            "cifar10",
            "empty",
            "no `cifar10` in `empty` in a layout that is read, found nothing",
            "read are `train-*.parquet`, `train/*.parquet`, `cifar-10-batches-py/`, `cifar-10-batches-bin/`, `cifar-10-python.tar.gz` and `cifar-10-binary.tar.gz`",
        ),
        (
            "gtsrb",
            "zipped",
            "no `gtsrb` in `zipped` in a layout that is read, found `GTSRB_Final_Test_GT.zip`",
            "unpack `GTSRB_Final_Test_GT.zip`, then name the same folder",
        ),
        (
            "cifar100",
            "classes",
            "no `cifar100` in `classes` in a layout that is read, found `test/`, `train/`",
            "class folders with images are read with `--dataset folder`",
        ),
        (
            "folder",
            "nested",
            "no split `train` in `nested`, found `inner/`",
            "did you mean `--data ROOT/nested/inner`?",
        ),
        (
            "folder",
            "unsplit",
            "no split `train` in `unsplit`, found `cat/`",
            "the images of a class lie in `train/CLASS/` and `test/CLASS/`; split them into these two",
        ),
        (
            "folder",
            "above",
            "no split `train` in `above`, found `mnist/`",
            "did you mean `--data ROOT/above/mnist`?",
        ),
        (
            "folder",
            "idx",
            "no split `train` in `idx`, found `train-labels-idx1-ubyte`",
            "MNIST's own files are not read; its Parquet files on the Hugging Face hub are",
        ),
        (
            "folder",
            "only_train",
            "no split `test` in `only_train`, found `other`, `train`",
            "the test split is called `test`, `val`, `valid` or `validation`; `--test-split NAME` takes another one",
        ),
    ] {
        let found = plain(id, &path(folder)).expect_err(error);
        let place = root.path().display().to_string();
        assert_eq!(message(&found, root.path()), error);
        assert_eq!(
            found
                .hint()
                .map(|hint| hint.replace(&place, "ROOT"))
                .as_deref(),
            Some(hint)
        );
    }
}
