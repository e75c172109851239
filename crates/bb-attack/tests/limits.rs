//! The edges of what can be run: trainings that diverge, images of a pixel, sets of one image. Each ends well or with one
//! clear error, and never with a score of a network that gives no numbers.

use std::path::Path;

use bb_attack::AttackError;
use bb_attack::harness::{AttackRequest, plan, run};
use bb_attack::method::Given;
use bb_attack::picture::Picture;
use bb_attack::preview::{self, PreviewRequest};
use bb_attack::registry::ATTACKS;
use bb_core::cell::{Cell, MANIFEST};
use bb_core::cli::{Coded, exit};
use bb_core::precision::Precision;
use bb_core::rng::{self, RngCore as _};
use bb_nn::Compute;
use bb_nn::train::TrainError;

fn request(method: &str, out: &Path, set: &[&str]) -> AttackRequest {
    AttackRequest {
        method: method.to_owned(),
        dataset: "synthetic".to_owned(),
        data: None,
        train_limit: Some(64),
        test_limit: Some(20),
        test_split: None,
        arch: "preactresnet18".to_owned(),
        width: 2,
        precision: Precision::F32,
        compute: Compute::Cpu,
        given: Given {
            files: Vec::new(),
            set: set.iter().map(|&text| text.to_owned()).collect(),
        },
        seed: 0,
        out: out.to_owned(),
        quiet: true,
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Image folders with `counts[c]` noisy images of class c in both splits.
fn images(data: &Path, (height, width): (usize, usize), counts: &[usize]) {
    for split in ["train", "test"] {
        for (class, &count) in counts.iter().enumerate() {
            let dir = data.join(split).join(class.to_string());
            fs_err::create_dir_all(&dir).expect("a writable folder");
            for i in 0..count {
                let mut stream = rng::stream(i as u64, split, class as u64, 0);
                let pixels = (0..height * width * 3).map(|_| stream.next_u32() as u8);
                let png = Picture::new(height, width, pixels.collect()).to_png();
                fs_err::write(dir.join(format!("{i}.png")), png).expect("a writable folder");
            }
        }
    }
}

/// Whether a cell below `out` is complete.
fn complete(out: &Path) -> bool {
    let mut folders = vec![out.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.file_name().is_some_and(|name| name == MANIFEST) {
                return true;
            }
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    false
}

/// One step, which the whole training is.
const ONE_STEP: [&str; 3] = [
    "train.epochs=1",
    "train.batch_size=64",
    "train.schedule.kind=constant",
];

/// What keeps the networks of an attack small.
fn small(method: &str) -> &'static [&'static str] {
    match method {
        "ssba" => &["trigger.steps=1", "trigger.width=2", "trigger.bits=4"],
        "inputaware" => &["generator.width=2", "mask.clean_train_epochs=1"],
        "trojan" => &["trigger.neurons=1", "trigger.iterations=2"],
        _ => &[],
    }
}

#[test]
fn a_training_whose_last_step_diverges_ends_with_its_epoch_and_no_cell() {
    for attack in ATTACKS {
        let id = attack.info().id;
        // The trigger of Trojan is made on a network that is trained with the same recipe.
        let clean = ["trigger.clean_epochs=1"];
        let own: &[&str] = if id == "trojan" { &clean } else { &[] };
        for rate in ["train.lr=1e10", "train.lr=1e300"] {
            let out = folder();
            let set = [&ONE_STEP[..], small(id), own, &[rate]].concat();
            let error = run(&request(id, out.path(), &set)).expect_err(id);
            assert_eq!(error.exit_code(), exit::NUMERICAL, "{id}: {error}");
            assert!(!complete(out.path()), "{id}");
            match &error {
                AttackError::Scores {
                    done,
                    total,
                    source,
                } => {
                    assert_eq!((*done, *total), (1, 1), "{id}");
                    let text = source.to_string();
                    assert!(
                        text.starts_with("20 of 20 clean test images have"),
                        "{text}"
                    );
                }
                AttackError::Train(TrainError::NotFinite { epoch, .. }) => assert_eq!(*epoch, 1),
                AttackError::CleanDiverged { .. } | AttackError::OwnNetwork { .. } => {
                    assert_eq!(id, "trojan", "{error}");
                }
                other => panic!("{id}: {other}"),
            }
        }
    }
}

#[test]
fn networks_of_an_attack_that_diverge_in_their_last_step_are_no_result() {
    let cases: [(&str, &[&str]); 3] = [
        ("ssba", &["trigger.lr=1e30", "trigger.bits=4"]),
        ("inputaware", &["generator.lr=1", "lambda_div=1e38"]),
        ("inputaware", &["mask.lr=1", "mask.lambda_norm=1e38"]),
    ];
    for (method, own) in cases {
        let out = folder();
        let set = [&ONE_STEP[..], small(method), own].concat();
        let error = run(&request(method, out.path(), &set)).expect_err("it diverges");
        assert_eq!(
            error.exit_code(),
            exit::NUMERICAL,
            "{method} {own:?}: {error}"
        );
        assert!(!complete(out.path()), "{method} {own:?}");
    }
}

fn in_training(cell: &Cell) -> [u64; 4] {
    let counts = &cell.manifest.results["poison"]["in_training"];
    ["backdoored", "cross", "batches", "clean_batches"]
        .map(|name| counts[name].as_u64().expect(name))
}

#[test]
fn an_attack_in_the_loop_counts_what_it_poisoned_and_refuses_to_poison_nothing() {
    let batches = ["train.epochs=2", "train.batch_size=24"];
    let attacks: [(&str, &[&str], u64); 2] = [
        ("wanet", &["ratio=0.1", "cross=2"], 2),
        ("inputaware", &["ratio=0.1"], 1),
    ];
    for (method, shares, cross) in attacks {
        let out = folder();
        // 24, 24 and 16 images, of which a tenth is 2, 2 and 1.
        let set = [&batches[..], small(method), shares].concat();
        let cell = run(&request(method, out.path(), &set)).expect("a run");
        assert_eq!(in_training(&cell), [10, 10 * cross, 6, 0], "{method}");

        let none = [&set[..], &["ratio=1e-7"]].concat();
        for refuse in [
            |request: &AttackRequest| plan(request).map(|_| ()),
            |request: &AttackRequest| run(request).map(|_| ()),
        ] {
            let out = folder();
            let error = refuse(&request(method, out.path(), &none)).expect_err("no image");
            assert_eq!(error.exit_code(), exit::USAGE);
            assert_eq!(
                error.to_string(),
                "`ratio` 0.0000001 selects no image of any batch of the run (up to 24 images each, 6 in all), \
                 expected at least one"
            );
            assert!(!out.path().join("attack").exists(), "nothing was begun");
        }

        // Half an image of each batch: some get one.
        let some = [&set[..], &["ratio=0.02", "train.batch_size=8"]].concat();
        let cell = run(&request(method, out.path(), &some)).expect("a run");
        let [backdoored, _, batches, clean] = in_training(&cell);
        assert_eq!((batches, backdoored + clean), (16, 16), "{method}");
        assert!(backdoored > 0 && clean > 0, "{method}: {backdoored}");
        let log = fs_err::read_to_string(cell.file("log.jsonl")).expect("a log");
        let warning = format!("{clean} of 16 batches have no poisoned image");
        assert!(log.contains(&warning), "{method}: {log}");
    }
    // Attacks that poison the data have their images in the set.
    let out = folder();
    let cell = run(&request("badnets", out.path(), &ONE_STEP)).expect("a run");
    assert!(cell.manifest.results["poison"]["in_training"].is_null());
}

#[test]
fn images_that_are_too_small_for_the_network_are_refused_before_anything_is_computed() {
    let (data, out) = (folder(), folder());
    images(data.path(), (28, 28), &[2; 2]);
    for attack in ATTACKS {
        let id = attack.info().id;
        let mut request = request(id, out.path(), small(id));
        request.dataset = "folder".to_owned();
        request.data = Some(data.path().to_owned());
        request.arch = "vgg19_bn".to_owned();
        let check = |error: AttackError| {
            assert_eq!(error.exit_code(), exit::USAGE, "{id}");
            assert_eq!(
                error.to_string(),
                "`vgg19_bn` needs images of at least 32 x 32 pixels, the dataset has 28 x 28",
                "{id}"
            );
            assert!(error.hint().is_some());
        };
        check(run(&request).expect_err(id));
        check(plan(&request).expect_err(id));
        let sheet = PreviewRequest {
            method: request.method,
            dataset: request.dataset,
            data: request.data,
            test_split: None,
            arch: request.arch,
            width: request.width,
            given: request.given,
            seed: 0,
            images: 1,
            out: out.path().join("sheet.png"),
        };
        check(preview::run(&sheet).expect_err(id));
    }
    assert!(!out.path().join("attack").exists());
}

#[test]
fn sets_of_few_and_tiny_images_give_a_cell_or_one_clear_error() {
    let sets: [(&str, (usize, usize), &[usize]); 8] = [
        ("one pixel", (1, 1), &[5, 5]),
        ("odd sides", (7, 5), &[3, 3, 3]),
        ("very wide", (3, 100), &[3, 3]),
        ("very high", (100, 3), &[3, 3]),
        ("one class", (8, 8), &[6]),
        ("one image of each class", (8, 8), &[1, 1]),
        ("one image of one class", (32, 32), &[1, 8]),
        ("sides beyond a multiple", (33, 33), &[2, 2]),
    ];
    for (name, size, counts) in sets {
        let data = folder();
        images(data.path(), size, counts);
        for attack in ATTACKS {
            let id = attack.info().id;
            for batch in [
                "train.batch_size=1",
                "train.batch_size=4",
                "train.batch_size=1000",
            ] {
                let out = folder();
                let ratio = if id == "clean" {
                    [].as_slice()
                } else {
                    &["ratio=0.3"]
                };
                let usual = [
                    "train.epochs=1",
                    "train.lr=1e-5",
                    "train.drop_last=false",
                    "train.augment=false",
                    batch,
                ];
                let set = [&usual[..], small(id), ratio].concat();
                let mut request = request(id, out.path(), &set);
                request.dataset = "folder".to_owned();
                request.data = Some(data.path().to_owned());
                (request.train_limit, request.test_limit) = (None, None);
                match run(&request) {
                    Ok(cell) => {
                        let total = cell.manifest.results["acc"]["total"].as_u64();
                        let images: usize = counts.iter().sum();
                        assert_eq!(total, Some(images as u64), "{name}, {id}");
                    }
                    Err(error) => {
                        let code = error.exit_code();
                        assert_eq!(code, exit::USAGE, "{name}, {id}, {batch}: {error}");
                        assert!(!complete(out.path()), "{name}, {id}");
                    }
                }
            }
        }
    }
}

#[test]
fn limits_of_one_image_give_a_cell_or_one_clear_error() {
    for attack in ATTACKS {
        let id = attack.info().id;
        let out = folder();
        let ratio = if id == "clean" {
            [].as_slice()
        } else {
            &["ratio=0.5", "target=1"]
        };
        let usual = ["train.epochs=1", "train.batch_size=1"];
        let set = [&usual[..], small(id), ratio].concat();
        let mut request = request(id, out.path(), &set);
        (request.train_limit, request.test_limit) = (Some(1), Some(1));
        match run(&request) {
            Ok(cell) => assert_eq!(cell.manifest.results["acc"]["total"], 1, "{id}"),
            Err(error) => assert_eq!(error.exit_code(), exit::USAGE, "{id}: {error}"),
        }
    }
}
