//! The cache of decoded images: it saves time and changes nothing.

use std::path::{Path, PathBuf};

use bb_core::data::{Dataset, OpenOptions, open};

use super::data_files::*;

const TRAIN: &str = "train-00000-of-00001.parquet";
const TEST: &str = "test-00000-of-00001.parquet";

/// A small dataset and an empty cache beside it.
fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let root = tempfile::tempdir().expect("a folder");
    let (data, cache) = (root.path().join("data"), root.path().join("cache/below"));
    hub_file(&data.join(TRAIN), 0, 40);
    hub_file(&data.join(TEST), 40, 9);
    (root, data, cache)
}

fn cached(data: &Path, cache: &Path) -> Dataset {
    let opts = OpenOptions {
        cache_dir: Some(cache.to_path_buf()),
        ..OpenOptions::default()
    };
    open("cifar10", Some(data), &opts).expect("opens")
}

fn entries(cache: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs_err::read_dir(cache)
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    found.sort();
    found
}

fn same(a: &Dataset, b: &Dataset) {
    assert_eq!(a.digest, b.digest);
    assert_eq!(a.train, b.train);
    assert_eq!(a.test, b.test);
}

#[test]
fn the_cache_gives_what_the_files_give() {
    let (_root, data, cache) = place();
    let fresh = plain("cifar10", &data).expect("opens");
    same(&cached(&data, &cache), &fresh);
    let files = entries(&cache);
    assert_eq!(files.len(), 2, "{files:?}");
    let kept = fs_err::read(&files[0]).expect("reads");
    same(&cached(&data, &cache), &fresh);
    assert_eq!(entries(&cache), files);
    assert_eq!(fs_err::read(&files[0]).expect("reads"), kept);

    let part = OpenOptions {
        cache_dir: Some(cache.clone()),
        train_limit: Some(11),
        ..OpenOptions::default()
    };
    let part = open("cifar10", Some(&data), &part).expect("opens");
    assert_eq!(part.train, fresh.train.take(11));
    let whole = OpenOptions {
        train_limit: Some(11),
        ..OpenOptions::default()
    };
    let uncached = open("cifar10", Some(&data), &whole).expect("opens");
    same(&part, &uncached);
}

#[test]
fn changed_files_are_decoded_again_under_the_same_name() {
    let (_root, data, cache) = place();
    let before = cached(&data, &cache);
    let files = entries(&cache);
    hub_file(&data.join(TRAIN), 1, 40);
    let after = cached(&data, &cache);
    same(&after, &plain("cifar10", &data).expect("opens"));
    assert_ne!(before.digest, after.digest);
    assert_eq!(entries(&cache), files);
    // What was read before the file was replaced is still whole.
    assert_eq!(before.train.images.image(39), pixels(39, 32, 32));
}

#[test]
fn a_picture_of_the_same_size_and_time_is_noticed() {
    let root = tempfile::tempdir().expect("a folder");
    let (data, cache) = (root.path().join("data"), root.path().join("cache"));
    let old = |seed: u8| [b"P6 2 2 255\n".as_slice(), &[seed; 12]].concat();
    for split in ["train", "test"] {
        put(&data, &format!("{split}/a/0.ppm"), &old(1));
    }
    let opts = OpenOptions {
        cache_dir: Some(cache),
        ..OpenOptions::default()
    };
    let opened = || open("folder", Some(&data), &opts).expect("opens");
    let before = opened();
    let path = data.join("train/a/0.ppm");
    let time = fs_err::metadata(&path)
        .and_then(|facts| facts.modified())
        .expect("a time");
    put(&data, "train/a/0.ppm", &old(2));
    let file = fs_err::OpenOptions::new().write(true).open(&path);
    file.expect("opens")
        .file()
        .set_modified(time)
        .expect("a time is set");
    let after = opened();
    assert_eq!(before.train.images.image(0), [1; 12]);
    assert_eq!(after.train.images.image(0), [2; 12]);
}

#[test]
fn a_cache_that_is_cut_harms_nobody_who_has_read_it() {
    let (_root, data, cache) = place();
    let fresh = cached(&data, &cache);
    let again = cached(&data, &cache);
    for file in entries(&cache) {
        let file = fs_err::OpenOptions::new().write(true).open(file);
        file.expect("opens").set_len(0).expect("cut");
    }
    same(&again, &fresh);
    assert_eq!(again.train.images.image(39), pixels(39, 32, 32));
}

#[test]
fn a_damaged_cache_is_made_anew() {
    let (_root, data, cache) = place();
    let fresh = cached(&data, &cache);
    for file in entries(&cache) {
        let good = fs_err::read(&file).expect("reads");
        let last = good.len() - 1;
        let flipped = [0, 9, 13, 24, 31, 40, 70, 130, good.len() / 2, last].map(|at| {
            let mut bytes = good.clone();
            bytes[at] ^= 0x80;
            bytes
        });
        let cut = [0, 1, 100, 128, last].map(|length| good[..length].to_vec());
        let longer = [&good[..], b"x"].concat();
        for bad in flipped.iter().chain(&cut).chain([&longer]) {
            fs_err::write(&file, bad).expect("write");
            same(&cached(&data, &cache), &fresh);
            assert!(fs_err::read(&file).expect("reads") == good);
        }
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    let (root, data, _) = place();
    let blocked = root.path().join("file");
    fs_err::write(&blocked, b"in the way").expect("write");
    let fresh = plain("cifar10", &data).expect("opens");
    same(&cached(&data, &blocked), &fresh);
    same(&cached(&data, &blocked.join("below")), &fresh);
}

#[test]
fn nothing_is_written_through_a_link() {
    let (root, data, cache) = place();
    let fresh = cached(&data, &cache);
    let elsewhere = root.path().join("elsewhere");
    fs_err::create_dir(&elsewhere).expect("a folder");
    let link = root.path().join("link");
    fs_err::os::unix::fs::symlink(&elsewhere, &link).expect("a link");
    same(&cached(&data, &link), &fresh);
    assert_eq!(entries(&elsewhere), [""; 0].map(PathBuf::from));

    // Nor is a file in the cache that is a link, and what it leads to stays.
    let file = entries(&cache).remove(0);
    let kept = elsewhere.join("kept");
    fs_err::rename(&file, &kept).expect("moved");
    let before = fs_err::metadata(&kept).and_then(|facts| facts.modified());
    fs_err::os::unix::fs::symlink(&kept, &file).expect("a link");
    same(&cached(&data, &cache), &fresh);
    let facts = fs_err::symlink_metadata(&file).expect("it is there");
    assert!(facts.is_symlink());
    let after = fs_err::metadata(&kept).and_then(|facts| facts.modified());
    assert_eq!(after.expect("a time"), before.expect("a time"));
}

#[test]
fn two_at_a_time_do_not_disturb_each_other() {
    let (_root, data, cache) = place();
    let fresh = plain("cifar10", &data).expect("opens");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| same(&cached(&data, &cache), &fresh));
        }
    });
    assert_eq!(entries(&cache).len(), 2);
}

#[test]
fn equal_content_has_an_equal_digest_wherever_it_lies() {
    let (root, data, cache) = place();
    let fresh = cached(&data, &cache);
    let copy = root.path().join("copy/cifar10/data");
    hub_file(&copy.join("train-00000-of-00002.parquet"), 0, 15);
    hub_file(&copy.join("train-00001-of-00002.parquet"), 15, 25);
    hub_file(&copy.join(TEST), 40, 9);
    same(&cached(&root.path().join("copy"), &cache), &fresh);
    assert_eq!(entries(&cache).len(), 4);
}
