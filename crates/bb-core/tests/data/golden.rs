//! Against Pillow's resizing and the published facts of CIFAR-10.

use std::path::PathBuf;

use bb_core::data::{OpenOptions, Split, open, resize};
use safetensors::SafeTensors;

fn shared() -> PathBuf {
    std::env::var_os("BB_SHARED")
        .expect("BB_SHARED names the folder of goldens and data")
        .into()
}

/// Fails unless `to` is Pillow's picture of the size that it has.
fn check_resize(file: &SafeTensors<'_>, from: &str, to: &str) {
    let source = file.tensor(from).expect("there");
    let expect = file.tensor(to).expect("there");
    let (&[h, w, 3], &[oh, ow, 3]) = (source.shape(), expect.shape()) else {
        panic!("RGB images")
    };
    let found = resize::pil_bilinear(source.data(), h, w, oh, ow);
    let off = found
        .iter()
        .zip(expect.data())
        .filter(|(a, b)| a != b)
        .count();
    assert_eq!((off, found.len()), (0, expect.data().len()), "{to}");
}

#[test]
fn golden_data_resize_gives_the_bits_of_pillow() {
    let folder = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let path = PathBuf::from(folder).join("tests/golden_data/resize.safetensors");
    let file = fs_err::read(path).expect("reads");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    let cases = tensors.len() / 2;
    assert_eq!(cases, 7);
    for case in 0..cases {
        check_resize(&tensors, &format!("{case}.in"), &format!("{case}.out"));
    }
}

#[test]
#[ignore = "needs BB_SHARED"]
fn golden_data_resize_of_a_photograph_gives_the_bits_of_pillow() {
    let file = fs_err::read(shared().join("golden/d_transform.safetensors")).expect("reads");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    for name in ["odd.resize32_u8", "odd.resize64_u8"] {
        check_resize(&tensors, "odd.in_u8", name);
    }
}

/// Mean and deviation per channel on the 0-1 scale.
fn statistics(split: &Split) -> [[f64; 3]; 2] {
    let n = (split.len() * split.images.height() * split.images.width()) as f64;
    let (mut sum, mut squares) = ([0_u64; 3], [0_u64; 3]);
    for pixel in split.images.as_bytes().chunks_exact(3) {
        for c in 0..3 {
            sum[c] += u64::from(pixel[c]);
            squares[c] += u64::from(pixel[c]).pow(2);
        }
    }
    let mean = sum.map(|s| s as f64 / n);
    let std = std::array::from_fn(|c| (squares[c] as f64 / n - mean[c] * mean[c]).sqrt() / 255.0);
    [mean.map(|m| m / 255.0), std]
}

fn assert_statistics(split: &Split, mean: [f64; 3], std: [f64; 3]) {
    let found = statistics(split);
    for (found, expect) in found.iter().flatten().zip(mean.iter().chain(&std)) {
        assert!((found - expect).abs() < 1e-4, "{found} instead of {expect}");
    }
}

#[test]
#[ignore = "needs BB_SHARED"]
fn golden_data_cifar10_has_its_published_facts() {
    let shared = shared();
    let root = shared.join("data");
    let data = open("cifar10", Some(&root), &OpenOptions::default()).expect("opens");
    assert_eq!((data.train.len(), data.test.len()), (50_000, 10_000));
    assert_eq!(&data.train.labels[..10], &[6, 9, 9, 4, 1, 1, 2, 7, 8, 3]);
    assert_eq!(&data.test.labels[..10], &[3, 8, 8, 0, 6, 6, 1, 6, 3, 1]);
    for (split, each) in [(&data.train, 5000), (&data.test, 1000)] {
        for class in 0..10 {
            assert_eq!(split.labels.iter().filter(|l| **l == class).count(), each);
        }
    }
    // The first pixel of the official data_batch_1 (the frog) and its last one.
    assert_eq!(data.train.images.image(0)[..3], [59, 62, 63]);
    assert_eq!(data.train.images.image(0)[3069..], [123, 92, 72]);
    assert_statistics(
        &data.train,
        [0.4914, 0.4822, 0.4465],
        [0.2470, 0.2435, 0.2616],
    );
    assert_statistics(
        &data.test,
        [0.4942, 0.4851, 0.4504],
        [0.2467, 0.2429, 0.2616],
    );

    let few = OpenOptions {
        train_limit: Some(70),
        test_limit: Some(30),
        ..OpenOptions::default()
    };
    for below in ["cifar10", "cifar10/plain_text"] {
        let part = open("cifar10", Some(&root.join(below)), &few).expect("opens");
        assert_eq!(part.train, data.train.take(70));
        assert_eq!(part.test, data.test.take(30));
    }
}

#[test]
#[ignore = "needs BB_SHARED"]
fn golden_data_the_other_datasets_open_with_every_class() {
    let shared = shared();
    let root = shared.join("data");
    for (id, train, test) in [
        ("cifar100", 2000, 500),
        ("gtsrb", 4300, 1290),
        ("tiny", 4000, 1000),
    ] {
        let data = open(id, Some(&root), &OpenOptions::default()).expect("opens");
        assert_eq!((data.train.len(), data.test.len()), (train, test), "{id}");
        for split in [&data.train, &data.test] {
            let classes = data.spec.classes;
            assert_eq!(split.images.height(), data.spec.height, "{id}");
            for class in 0..classes as u32 {
                let count = split.labels.iter().filter(|l| **l == class).count();
                assert_eq!(count * classes, split.len(), "{id}, class {class}");
            }
        }
    }
    // One dataset is not taken for another, even where the labels would fit.
    let wrong = open(
        "gtsrb",
        Some(&root.join("cifar10/plain_text")),
        &OpenOptions::default(),
    );
    assert!(
        wrong
            .expect_err("another dataset")
            .to_string()
            .ends_with("holds a dataset of 10 classes, expected 43")
    );
}
