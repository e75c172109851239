//! The file of poisoned images: it comes back as it was, and nothing else is taken for one.

use std::collections::BTreeMap;

use bb_core::artifact::to_safetensors;
use bb_core::data::Images;
use bb_core::poison::{PoisonError, PoisonFault, PoisonSet};
use proptest::prelude::*;
use safetensors::{Dtype, tensor::TensorView};

fn images(n: usize, h: usize, w: usize) -> Images {
    let pixels = (0..n * h * w * 3).map(|i| (i * 7 % 256) as u8).collect();
    Images::new(n, h, w, pixels).expect("the length fits")
}

fn sample() -> PoisonSet {
    PoisonSet::new(
        vec![7, 2, 40],
        images(3, 2, 4),
        vec![0, 0, 0],
        vec![5, 0, 9],
    )
    .expect("the parts fit")
}

/// A tensor as it is declared in the header, and its bytes.
#[derive(Clone)]
struct Part(&'static str, Dtype, Vec<usize>, Vec<u8>);

fn i64s(values: &[i64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn parts() -> Vec<Part> {
    vec![
        Part("index", Dtype::I64, vec![2], i64s(&[3, 1])),
        Part("label", Dtype::I64, vec![2], i64s(&[0, 0])),
        Part("original_label", Dtype::I64, vec![2], i64s(&[4, 9])),
        Part("image", Dtype::U8, vec![2, 1, 2, 3], (0..12).collect()),
    ]
}

fn file(parts: &[Part], format: Option<&str>) -> Vec<u8> {
    let metadata: BTreeMap<String, String> = format
        .map(|format| ("format".to_owned(), format.to_owned()))
        .into_iter()
        .collect();
    let views = parts.iter().map(|Part(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data);
        (*name, view.expect("the length fits"))
    });
    to_safetensors(views, &metadata).expect("this is a safetensors file")
}

fn fault(bytes: &[u8]) -> String {
    PoisonSet::from_bytes(bytes)
        .expect_err("the file must be refused")
        .to_string()
}

#[test]
fn a_set_comes_back_as_it_was_and_is_written_alike() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("poison_train.safetensors");
    let empty = PoisonSet::new(vec![], images(0, 2, 2), vec![], vec![]).expect("the parts fit");
    for set in [sample(), empty] {
        let bytes = set.to_bytes();
        fs_err::write(&path, &bytes).expect("the folder can be written");
        let loaded = PoisonSet::load(&path).expect("the file is valid");
        assert_eq!(loaded, set);
        assert_eq!(loaded.to_bytes(), bytes);
    }
}

#[test]
fn the_files_of_these_tests_are_valid_before_they_are_broken() {
    let set = PoisonSet::from_bytes(&file(&parts(), Some("bb-poison-1"))).expect("it is valid");
    assert_eq!(set.indices, [3, 1]);
    assert_eq!(set.original_labels, [4, 9]);
    assert_eq!(set.images.image(1), [6, 7, 8, 9, 10, 11]);
}

#[test]
fn every_wrong_part_is_named() {
    type Change = fn(&mut Vec<Part>);
    let cases: [(Change, &str); 17] = [
        (|p| drop(p.remove(0)), "tensor `index` is missing"),
        (|p| drop(p.remove(3)), "tensor `image` is missing"),
        (
            |p| p.push(Part("extra", Dtype::U8, vec![0], vec![])),
            "tensor `extra` is unknown, expected `image`, `index`, `label` and `original_label` only",
        ),
        (
            |p| p[0] = Part("index", Dtype::F64, vec![2], vec![0; 16]),
            "tensor `index` has type `F64`, expected `I64`",
        ),
        (
            |p| p[1] = Part("label", Dtype::U64, vec![2], vec![0; 16]),
            "tensor `label` has type `U64`, expected `I64`",
        ),
        (
            |p| p[1] = Part("label", Dtype::I32, vec![2], vec![0; 8]),
            "tensor `label` has type `I32`, expected `I64`",
        ),
        (
            |p| p[3].1 = Dtype::I8,
            "tensor `image` has type `I8`, expected `U8`",
        ),
        (
            |p| p[3].2 = vec![2, 3, 1, 2],
            "tensor `image` has shape [2, 3, 1, 2], expected [n, h, w, 3]",
        ),
        (
            |p| p[3].2 = vec![2, 6],
            "tensor `image` has shape [2, 6], expected [n, h, w, 3]",
        ),
        (
            |p| p[3] = Part("image", Dtype::U8, vec![2, 0, 2, 3], vec![]),
            "tensor `image` has shape [2, 0, 2, 3], expected [n, h, w, 3] with pixels",
        ),
        (
            |p| p[0] = Part("index", Dtype::I64, vec![3], i64s(&[1, 2, 3])),
            "tensor `index` has shape [3], expected [2]",
        ),
        (
            |p| p[2].2 = vec![2, 1],
            "tensor `original_label` has shape [2, 1], expected [2]",
        ),
        (
            |p| p[3] = Part("image", Dtype::U8, vec![1, 1, 4, 3], vec![0; 12]),
            "tensor `index` has shape [2], expected [1]",
        ),
        (
            |p| p[0].3 = i64s(&[3, -1]),
            "index -1 in row 1 is not in a split of any number of images",
        ),
        (
            |p| p[0].3 = i64s(&[3, 3]),
            "index 3 in row 1 has come before",
        ),
        (
            |p| p[1].3 = i64s(&[-7, 0]),
            "`label` -7 in row 0 is not a class, expected 0 to 4294967295",
        ),
        (
            |p| p[2].3 = i64s(&[0, 1 << 32]),
            "`original_label` 4294967296 in row 1 is not a class, expected 0 to 4294967295",
        ),
    ];
    for (change, message) in cases {
        let mut parts = parts();
        change(&mut parts);
        assert_eq!(fault(&file(&parts, Some("bb-poison-1"))), message);
    }
    assert_eq!(
        fault(&file(&parts(), None)),
        "metadata `format` is absent, expected `bb-poison-1`"
    );
    assert_eq!(
        fault(&file(&parts(), Some("bb-poison-2"))),
        "metadata `format` is `bb-poison-2`, expected `bb-poison-1`"
    );
}

#[test]
fn a_set_that_does_not_fit_the_dataset_is_refused() {
    let set = sample();
    set.check(41, 10).expect("it fits exactly");
    let message = |samples, classes| {
        let fault = set.check(samples, classes).expect_err("it does not fit");
        fault.to_string()
    };
    assert_eq!(
        message(40, 10),
        "index 40 in row 2 is not in a split of 40 images"
    );
    assert_eq!(
        message(41, 9),
        "`original_label` 9 in row 2 is not a class, expected 0 to 8"
    );
    assert_eq!(
        message(41, 0),
        "`label` 0 in row 0 is not a class, expected 0 to 0"
    );
    assert!(matches!(
        PoisonSet::new(vec![0], images(2, 1, 1), vec![0, 0], vec![0, 0]),
        Err(PoisonFault::Shape { name: "index", .. })
    ));
}

#[test]
fn a_truncated_or_prolonged_file_is_refused() {
    let bytes = sample().to_bytes();
    for length in (0..bytes.len()).step_by(37).chain([bytes.len() - 1]) {
        assert!(
            matches!(
                PoisonSet::from_bytes(&bytes[..length]),
                Err(PoisonFault::Safetensors { .. })
            ),
            "the first {length} bytes"
        );
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(fault(&longer), "not a safetensors file");
}

#[test]
fn declared_sizes_are_not_believed() {
    let bytes = sample().to_bytes();
    for length in [
        1 << 20,
        100_000_000,
        100_000_001,
        1 << 40,
        u64::MAX - 7,
        u64::MAX,
    ] {
        let mut hostile = bytes.clone();
        hostile[..8].copy_from_slice(&length.to_le_bytes());
        assert_eq!(
            fault(&hostile),
            "not a safetensors file",
            "header of {length}"
        );
    }
    let with_header = |header: &str, data: &[u8]| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        bytes
    };
    let i64s = r#""index":{"dtype":"I64","shape":[0],"data_offsets":[0,0]},
        "label":{"dtype":"I64","shape":[0],"data_offsets":[0,0]},
        "original_label":{"dtype":"I64","shape":[0],"data_offsets":[0,0]}"#;
    for (shape, end, message) in [
        // The product overflows.
        (
            "[4294967296,4294967296,1,3]",
            0_u64,
            "not a safetensors file",
        ),
        // More than there is.
        (
            "[1000000,1000,1000,3]",
            3_000_000_000_000,
            "not a safetensors file",
        ),
        ("[1000000,1000,1000,3]", 0, "not a safetensors file"),
        // No bytes at all, but a size that overflows when it is asked for.
        ("[0,4294967296,4294967296,3]", 0, "not a safetensors file"),
        (
            "[0,8589934592,1,3]",
            0,
            "tensor `image` has shape [0, 8589934592, 1, 3], expected [n, h, w, 3] with pixels",
        ),
    ] {
        let header = format!(
            r#"{{"__metadata__":{{"format":"bb-poison-1"}},{i64s},"image":{{"dtype":"U8","shape":{shape},"data_offsets":[0,{end}]}}}}"#
        );
        assert_eq!(fault(&with_header(&header, &[])), message, "{shape}");
    }
    for header in [
        "",
        "null",
        "[]",
        "{",
        "{\"a\":1}",
        "\u{0}",
        &"[".repeat(100_000),
    ] {
        assert_eq!(fault(&with_header(header, &[])), "not a safetensors file");
    }
    // An object without tensors is a safetensors file, only not one of ours.
    assert_eq!(
        fault(&with_header("{}", &[])),
        "metadata `format` is absent, expected `bb-poison-1`"
    );
}

#[test]
fn errors_name_the_file() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("poison_test.safetensors");
    assert!(matches!(
        PoisonSet::load(&path),
        Err(PoisonError::Read { path: named, .. }) if named == path
    ));
    fs_err::write(&path, "no tensors").expect("the folder can be written");
    let error = PoisonSet::load(&path).expect_err("this is text");
    assert_eq!(
        error.to_string(),
        format!("`{}` holds no valid set of poisoned images", path.display())
    );
}

proptest! {
    #[test]
    fn any_set_comes_back_as_it_was(
        rows in prop::collection::btree_map(0_usize..1_000_000, (any::<u32>(), any::<u32>()), 0..20),
        h in 1_usize..5,
        w in 1_usize..5,
    ) {
        let (labels, original_labels) = rows.values().copied().unzip();
        let set = PoisonSet::new(
            rows.keys().rev().copied().collect(),
            images(rows.len(), h, w),
            labels,
            original_labels,
        ).expect("the parts fit");
        let bytes = set.to_bytes();
        let loaded = PoisonSet::from_bytes(&bytes).expect("the file is valid");
        prop_assert_eq!(&loaded, &set);
        prop_assert_eq!(loaded.to_bytes(), bytes);
    }

    #[test]
    fn no_bytes_make_it_panic(position in 0_usize..2_000, bytes in prop::collection::vec(any::<u8>(), 1..9)) {
        let mut file = sample().to_bytes();
        let position = position % file.len();
        let end = (position + bytes.len()).min(file.len());
        file[position..end].copy_from_slice(&bytes[..end - position]);
        if let Ok(set) = PoisonSet::from_bytes(&file) {
            prop_assert_eq!(PoisonSet::from_bytes(&set.to_bytes()).expect("it was valid"), set);
        }
    }
}
