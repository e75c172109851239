//! Files are written whole or not at all, and equal content gives equal bits.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use bb_core::artifact::{
    ArtifactError, Header, LARGEST_FILE, atomic, sha256_file, sha256_hex, to_safetensors,
};
use bb_core::cli::{Coded as _, exit};
use bb_core::files::Links;
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};

fn names(folder: &Path) -> BTreeSet<String> {
    fs_err::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| {
            let name = entry.expect("the entry can be read").file_name();
            name.into_string().expect("all names here are UTF-8")
        })
        .collect()
}

#[test]
fn a_file_replaces_another_and_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("result.json");
    for content in ["first, and longer", "second", ""] {
        atomic::write(&path, content).expect("the folder can be written");
        assert_eq!(fs_err::read_to_string(&path).expect("it is there"), content);
        assert_eq!(names(folder.path()), ["result.json".into()].into());
    }
}

#[test]
fn an_abandoned_file_vanishes_and_the_old_one_stays() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("result.json");
    atomic::write(&path, "old").expect("the folder can be written");
    let mut file = atomic::File::create(&path).expect("the folder can be written");
    file.write_all(b"new").expect("the file can be written");
    let during = names(folder.path());
    assert_eq!(during.len(), 2);
    assert_eq!(
        during
            .iter()
            .filter(|name| atomic::is_temporary(name.as_ref()))
            .count(),
        1
    );
    drop(file);
    assert_eq!(names(folder.path()), ["result.json".into()].into());
    assert_eq!(fs_err::read_to_string(&path).expect("it is there"), "old");
}

#[test]
fn two_files_on_the_way_to_one_name_do_not_meet() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("x".repeat(255));
    let mut one = atomic::File::create(&path).expect("the folder can be written");
    let mut two = atomic::File::create(&path).expect("the folder can be written");
    one.write_all(b"one").expect("the file can be written");
    two.write_all(b"two").expect("the file can be written");
    two.commit().expect("the file can be renamed");
    one.commit().expect("the file can be renamed");
    assert_eq!(fs_err::read(&path).expect("it is there"), b"one");
    assert_eq!(names(folder.path()).len(), 1);
}

#[test]
fn a_folder_appears_when_it_is_whole() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("new/result");
    let mut begun = atomic::Folder::create(&path).expect("the folder can be written");
    begun
        .write("top.txt", "a")
        .expect("the file can be written");
    begun
        .write("one/two/deep.txt", "b")
        .expect("the file can be written");
    assert!(!path.exists());
    begun.commit().expect("the folder can be renamed");
    let deep = fs_err::read(path.join("one/two/deep.txt")).expect("it is there");
    assert_eq!(deep, b"b");
    assert_eq!(names(&folder.path().join("new")), ["result".into()].into());

    // Neither a folder nor a file that is there is touched, and what is given up vanishes.
    assert!(matches!(
        atomic::Folder::create(&path),
        Err(ArtifactError::Exists { path: found }) if found == path
    ));
    let other = folder.path().join("new/other");
    let mut begun = atomic::Folder::create(&other).expect("the folder can be written");
    begun.write("x", "y").expect("the file can be written");
    assert!(matches!(
        begun.write("x", "again"),
        Err(ArtifactError::Write { path, .. }) if path == other.join("x")
    ));
    fs_err::write(&other, "in the way").expect("the folder can be written");
    assert!(matches!(begun.commit(), Err(ArtifactError::Exists { .. })));
    assert_eq!(fs_err::read(&other).expect("it is there"), b"in the way");
    fs_err::remove_file(&other).expect("it is ours");
    drop(atomic::Folder::create(&other).expect("the folder can be written"));
    assert_eq!(names(&folder.path().join("new")), ["result".into()].into());
}

#[test]
fn what_cannot_be_written_is_named_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let absent = folder.path().join("absent/file");
    assert!(matches!(
        atomic::write(&absent, "x"),
        Err(ArtifactError::Write { path, .. }) if path == absent
    ));
    assert!(matches!(
        atomic::write("..", "x"),
        Err(ArtifactError::NoName { .. })
    ));
    // A folder cannot be replaced by a file.
    let taken = folder.path().join("taken");
    fs_err::create_dir(&taken).expect("the folder can be made");
    let error = atomic::write(&taken, "x").expect_err("a folder has the name");
    assert_eq!(
        error.to_string(),
        format!("cannot write `{}`", taken.display())
    );
    assert_eq!(names(folder.path()), ["taken".into()].into());
    assert!(matches!(
        sha256_file(&absent),
        Err(ArtifactError::Read { path, .. }) if path == absent
    ));
}

#[test]
fn a_device_a_pipe_or_a_link_is_not_replaced_by_a_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let place = |name: &str| folder.path().join(name);
    fs_err::write(place("file"), "old").expect("written");
    std::os::unix::fs::symlink(place("file"), place("link")).expect("linked");
    std::os::unix::fs::symlink(place("absent"), place("nowhere")).expect("linked");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, place("pipe"), kind, mode, 0).expect("a pipe");
    let before = names(folder.path());
    for (path, what) in [
        (place("link"), "a link"),
        (place("nowhere"), "a link"),
        (place("pipe"), "a named pipe"),
        ("/dev/null".into(), "a device"),
    ] {
        let error = atomic::write(&path, "new").expect_err("it is no file");
        let expected = format!(
            "`{}` is {what}, expected a regular file or nothing",
            path.display()
        );
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.exit_code(), exit::INPUT);
    }
    assert_eq!(names(folder.path()), before);
    let kept = fs_err::read_to_string(place("file")).expect("it is there");
    assert_eq!(kept, "old");
}

#[test]
fn what_killed_processes_left_goes_after_a_day() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // No process has so great a number.
    let (gone, ours) = (i32::MAX, std::process::id());
    let all = [
        (format!(".tmp-{gone}-0"), true),
        (format!(".tmp-{gone}-1"), false),
        (format!(".tmp-{ours}-0"), true),
        (".tmp-mine".to_owned(), true),
        (format!("x.tmp-{gone}-0"), true),
        (format!(".tmp-{gone}-0-1"), true),
    ];
    let yesterday = std::time::SystemTime::now() - std::time::Duration::from_hours(25);
    let age = |path: &Path| {
        let file = fs_err::File::open(path).expect("it is there");
        file.file().set_modified(yesterday).expect("it is ours");
    };
    for (name, old) in &all {
        let path = folder.path().join(name);
        fs_err::create_dir(&path).expect("made");
        fs_err::write(path.join("half"), "a file").expect("written");
        if *old {
            age(&path);
        }
    }
    let file = folder.path().join(format!(".tmp-{gone}-7"));
    fs_err::write(&file, "half a file").expect("written");
    age(&file);
    atomic::Folder::create(folder.path().join("new"))
        .expect("begun")
        .commit()
        .expect("whole");
    let mut left: BTreeSet<String> = all.iter().skip(1).map(|(name, _)| name.clone()).collect();
    left.insert("new".into());
    assert_eq!(names(folder.path()), left);
}

#[test]
fn digests_are_those_of_fips_180() {
    let million = vec![b'a'; 1_000_000];
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("file");
    for (bytes, digest) in [
        (
            &b""[..],
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ),
        (
            b"abc",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ),
        (
            &million,
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
        ),
    ] {
        assert_eq!(sha256_hex(bytes), digest);
        atomic::write(&path, bytes).expect("the folder can be written");
        assert_eq!(sha256_file(&path).expect("it is there"), digest);
    }
}

proptest! {
    #[test]
    fn safetensors_keep_their_content_and_their_bits(
        tensors in prop::collection::btree_map("[a-z.]{1,12}", prop::collection::vec(any::<u8>(), 0..40), 0..6),
        metadata in prop::collection::btree_map(".{0,12}", ".{0,12}", 0..8),
    ) {
        let write = |order: &mut dyn Iterator<Item = (&String, &Vec<u8>)>| {
            let views: Vec<_> = order
                .map(|(name, data)| {
                    let view = TensorView::new(Dtype::U8, vec![data.len()], data);
                    (name, view.expect("the length fits"))
                })
                .collect();
            to_safetensors(views, &metadata).expect("this is a valid file")
        };
        let bytes = write(&mut tensors.iter());
        prop_assert_eq!(&bytes, &write(&mut tensors.iter().rev()));

        let (header, read) = SafeTensors::read_metadata(&bytes).expect("this is a valid file");
        prop_assert_eq!(header % 8, 0);
        let found: BTreeMap<_, _> = read.metadata().clone().unwrap_or_default().into_iter().collect();
        prop_assert_eq!(&found, &metadata);
        let read = SafeTensors::deserialize(&bytes).expect("this is a valid file");
        prop_assert_eq!(read.len(), tensors.len());
        for (name, data) in &tensors {
            prop_assert_eq!(read.tensor(name).expect("it was written").data(), &data[..]);
        }
    }
}

/// A safetensors file with this header and so many bytes behind it.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [length.as_slice(), header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn a_header_is_checked_before_anything_is_made_of_it() {
    let one = |shape: &str, end: usize| {
        format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
    };
    let empty =
        |name: &str| format!(r#""{name}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    let many = |n| (0..n).map(|i| empty(&format!("{i}"))).collect::<Vec<_>>();
    let all = |entries: Vec<String>| format!("{{{}}}", entries.join(","));
    let fine = Header::of(&with_header(&one("[2,3]", 24), 24)).expect("a file");
    assert_eq!(fine.tensors()[0].shape, [2, 3]);
    assert_eq!(fine.tensors()[0].place.len(), 24);
    assert!(Header::of(&with_header(&all(many(20_000)), 0)).is_ok());
    let long = "n".repeat(513);
    for (header, data, expected) in [
        (one("[2,3]", 24), 23, "it has 88 bytes, expected 89"),
        (one("[2,3]", 24), 25, "it has 90 bytes, expected 89"),
        (one("[2,3]", 20), 20, "`a` lies at 0..20 of the data, expected 0..24"),
        (one("[1,1,1,1,1,1,1,1,1]", 4), 4, "`a` has 9 axes, expected at most 8"),
        // No product fits, also where a size of 0 would make it 0: strides are products as well.
        (one("[4294967296,4294967296]", 0), 0, "expected fewer elements than memory"),
        (one("[4294967296,0,4294967296]", 0), 0, "expected fewer elements than memory"),
        (one("[18446744073709551615]", 0), 0, "expected fewer elements than memory"),
        (one("[-1]", 0), 0, "its header: invalid value"),
        (all(many(20_001)), 0, "20001 tensors, expected at most 20000"),
        (all(many(60_000)), 0, "more values than 400000"),
        (all(vec![empty("a"), empty("a")]), 0, r#"its header: \"a\" stands twice"#),
        (all(vec![empty(&long)]), 0, "has 513 bytes, expected at most 512"),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_owned(),
            4,
            "`b` lies at 0..4 of the data, expected 4..8",
        ),
    ] {
        let error = Header::of(&with_header(&header, data)).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().len() < 300, "{error}");
        assert_eq!(error.exit_code(), exit::INPUT);
    }
    let long = ((8u64 << 20) + 1).to_le_bytes();
    let error = Header::of(&long).expect_err("a long header").to_string();
    assert_eq!(
        error,
        "its header has 8388609 bytes, expected at most 8388608"
    );
    for cut in [&b""[..], b"1234567", &with_header("{}", 0)[..9]] {
        let error = Header::of(cut).expect_err("no whole header").to_string();
        assert_eq!(error, "it is cut off");
    }
}

#[test]
fn no_file_is_longer_than_its_tensors() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("holes.safetensors");
    fs_err::write(&path, with_header("{}", 0)).expect("written");
    let file = fs_err::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("it is there");
    // Nothing of the rest is read, so it takes no time.
    for (length, expected) in [
        (LARGEST_FILE + 1, "has more than 8589934592 bytes"),
        (LARGEST_FILE, "it has 8589934592 bytes, expected 10"),
    ] {
        file.set_len(length).expect("a file of holes");
        let error = Header::open(&path, Links::Follow).expect_err("too long");
        assert!(error.to_string().ends_with(expected), "{error}");
    }
}
