//! Published models as cells, with BackdoorBench's own folders where `BB_SHARED` names them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bb_core::cell::{Cell, MODEL, POISON_TEST, POISON_TRAIN};
use bb_core::data::{self, OpenOptions, Split};
use bb_core::metrics::Ratio;
use bb_core::poison::PoisonSet;
use bb_core::rows;
use bb_eval::zoo::{ImportRequest, Rules, import};
use bb_nn::data::{Normaliser, plain_input};
use bb_nn::{ArchSpec, Compute, Mode, Net, StateDict};
use serde_json::json;

fn shared() -> PathBuf {
    std::env::var_os("BB_SHARED")
        .expect("BB_SHARED names the folder of the zoo and the data")
        .into()
}

fn request(shared: &Path, path: PathBuf, out: &Path) -> ImportRequest {
    ImportRequest {
        path,
        dataset: "cifar10".to_owned(),
        data: Some(shared.join("data")),
        arch: None,
        attack: None,
        key: None,
        rules: Rules::default(),
        report: None,
        test_split: None,
        test_limit: None,
        match_rows: false,
        quiet: true,
        out: out.to_owned(),
    }
}

fn ratio(cell: &Cell, field: &str) -> Ratio {
    serde_json::from_value(cell.manifest.results[field].clone()).expect("a ratio")
}

#[test]
#[ignore = "needs BB_SHARED"]
fn folders_of_backdoorbench_have_the_bench_own_figures() {
    let shared = shared();
    let out = tempfile::tempdir().expect("a temporary folder");
    for (folder, acc, acc_of_all, asr, ra) in [
        ("badnet_w16", 740, 7329, 816, 57),
        ("wanet_w16", 559, 5358, 48, 510),
    ] {
        let path = shared.join("zoo").join(folder);
        let whole = request(&shared, path.clone(), out.path());
        // The benchmark measured on the first 1,000 images.
        let request = ImportRequest {
            test_limit: Some(1000),
            ..whole.clone()
        };
        let (cell, report) = import(&request, &Compute::Cpu).expect("a genuine folder");
        assert_eq!(report.to_string(), "102 loaded", "{folder}");
        let hits = |field| (ratio(&cell, field).hits, ratio(&cell, field).total);
        assert_eq!(hits("acc"), (acc, 1000), "{folder}");
        assert_eq!(hits("asr"), (asr, 897), "{folder}");
        assert_eq!(hits("ra"), (ra, 897), "{folder}");

        // Of all images it says as much as the record's own figure of all.
        let (all, _) = import(&whole, &Compute::Cpu).expect("a genuine folder");
        let counted = |field| (ratio(&all, field).hits, ratio(&all, field).total);
        assert_eq!(counted("acc"), (acc_of_all, 10_000), "{folder}");
        assert_eq!(
            (counted("asr"), counted("ra")),
            ((asr, 897), (ra, 897)),
            "{folder}"
        );
        let images = &all.manifest.results["images"];
        assert_eq!(
            (&images["test_poisoned"], &images["test_possible"]),
            (&json!(897), &json!(9000))
        );

        // A second import finds the first one.
        let (again, _) = import(&request, &Compute::Cpu).expect("a complete cell");
        assert_eq!(again.manifest, cell.manifest);

        let state = StateDict::load(&cell.file(MODEL)).expect("a network");
        let spec = ArchSpec::new("preactresnet18", 16, 10).expect("a known one");
        let mut net = Net::from_state(&spec, &state).expect("its tensors");
        let options = OpenOptions {
            train_limit: Some(1),
            test_limit: Some(100),
            ..OpenOptions::default()
        };
        let data = data::open("cifar10", request.data.as_deref(), &options).expect("CIFAR-10");
        let input = plain_input(&data.test.images, 0..100, &Normaliser::new(&data.spec));
        let found = net.forward(&input, Mode::Eval);
        let expected = StateDict::load(&path.join("logits.safetensors")).expect("logits");
        let (name, _) = expected.iter().next().expect("one tensor");
        let expected = expected.floats(name).expect("it is there").expect("floats");
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(&expected) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
        let train = PoisonSet::load(cell.file(POISON_TRAIN)).expect("poisoned images");
        let test = PoisonSet::load(cell.file(POISON_TEST)).expect("poisoned images");
        assert!(train.len() >= 900 && test.len() == 897);
    }
}

/// The rows of each class in another order.
fn within_classes(split: &Split) -> Vec<usize> {
    let mut order: Vec<usize> = (0..split.len()).collect();
    for class in 0..10 {
        let rows: Vec<usize> = (0..split.len())
            .filter(|&i| split.labels[i] == class)
            .collect();
        for (place, &row) in rows.iter().enumerate() {
            order[row] = rows[(place + 3) % rows.len()];
        }
    }
    order
}

#[test]
#[ignore = "needs BB_SHARED"]
fn genuine_pictures_fit_their_rows_and_no_other_order() {
    let shared = shared();
    let out = tempfile::tempdir().expect("a temporary folder");
    for (folder, acc, possible) in [
        ("badnet_w16", 7329, 9000),
        ("wanet_w16", 5358, 9000),
        ("blended_w16", 6877, 9000),
        ("badnet_all2all_resnet18_w16", 6303, 10_000),
    ] {
        let request = request(&shared, shared.join("zoo").join(folder), out.path());
        let (cell, _) = import(&request, &Compute::Cpu).expect("a genuine folder");
        let counted = ratio(&cell, "acc");
        assert_eq!((counted.hits, counted.total), (acc, 10_000), "{folder}");
        let images = &cell.manifest.results["images"];
        assert_eq!(
            (
                &images["test_possible"],
                &images["test_unlike"],
                &images["train"]
            ),
            (&json!(possible), &json!(0), &json!(10_000)),
            "{folder}"
        );
        let options = OpenOptions {
            train_limit: Some(10_000),
            cache_dir: Some(out.path().join("cache")),
            ..OpenOptions::default()
        };
        let data = data::open("cifar10", request.data.as_deref(), &options).expect("CIFAR-10");
        for (name, split) in [(POISON_TRAIN, &data.train), (POISON_TEST, &data.test)] {
            let set = PoisonSet::load(cell.file(name)).expect("poisoned images");
            assert_eq!(
                rows::resemblance(&set, split).unlike,
                [0; 0],
                "{folder}, {name}"
            );
            let order = within_classes(split);
            let other = split.select(&order);
            assert!(rows::check(&set, &other).is_err(), "{folder}, {name}");
            let found = rows::find(&set, &other);
            let right = found.iter().zip(&set.indices);
            let right = right.filter(|(row, index)| row.is_some_and(|row| order[row] == **index));
            assert_eq!(right.count(), set.len(), "{folder}, {name}");
        }
        // The images of the other split have the same classes.
        let test = PoisonSet::load(cell.file(POISON_TEST)).expect("poisoned images");
        assert!(rows::check(&test, &data.train).is_err(), "{folder}");
    }
}

#[test]
#[ignore = "needs BB_SHARED"]
fn what_does_not_fit_is_one_clear_error() {
    let shared = shared();
    let out = tempfile::tempdir().expect("a temporary folder");
    let good = request(&shared, shared.join("zoo/badnet_w16"), out.path());
    let refused = |request: &ImportRequest| {
        let failure = import(request, &Compute::Cpu).expect_err("it must be refused");
        failure.to_string()
    };
    let other = ImportRequest {
        dataset: "gtsrb".to_owned(),
        ..good.clone()
    };
    let text = refused(&other);
    assert!(
        text.contains("is a model for `cifar10`, expected `gtsrb`"),
        "{text}"
    );
    let other = ImportRequest {
        arch: Some("resnet18".to_owned()),
        ..good.clone()
    };
    let text = refused(&other);
    assert!(
        text.contains("are not those of resnet18-w16") && text.contains("unused"),
        "{text}"
    );
    // The pictures are looked for beside the checkpoint only.
    let alone = out.path().join("attack_result.pt");
    fs_err::copy(good.path.join("attack_result.pt"), &alone).expect("a copy");
    let text = refused(&ImportRequest {
        path: alone.clone(),
        ..good.clone()
    });
    assert!(
        text.contains("cannot read picture") && text.contains("bd_train_dataset"),
        "{text}"
    );
    // The program says the same and ends with its own code.
    let scan = bb_eval(&["zoo", "scan", &alone.display().to_string()]);
    assert!(scan.status.success());
    let text = String::from_utf8_lossy(&scan.stdout).into_owned();
    assert!(text.contains("model_name: \"preactresnet18\""), "{text}");
    assert!(
        text.contains("conv1.weight: tensor F32 [16, 3, 3, 3]"),
        "{text}"
    );
}

#[test]
fn a_program_in_a_file_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("model.pth");
    // The head of PyTorch's older format, then a call of the system where its version should be.
    let head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    fs_err::write(&file, [head.as_slice(), b"\x80\x02cos\nsystem\n."].concat()).expect("a file");
    let scan = bb_eval(&["zoo", "scan", &file.display().to_string()]);
    assert_eq!(scan.status.code(), Some(3));
    let text = String::from_utf8_lossy(&scan.stderr);
    assert!(
        text.contains("`os.system` is not allowed at byte 17"),
        "{text}"
    );
}

fn bb_eval(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bb-eval"))
        .args(arguments)
        .output()
        .expect("the program starts")
}

/// A stranger's file says the width, in a tensor without elements: networks of 5 and 35 GB would be built of it.
#[test]
fn a_small_file_makes_no_large_network() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    for (arch, name) in [
        ("preactresnet18", "conv1.weight"),
        ("resnet34", "conv1.weight"),
        ("vgg19_bn", "features.0.weight"),
    ] {
        let about = json!({ "arch": arch, "dataset": "synthetic", "classes": "10" });
        let tensor = json!({ "dtype": "F32", "shape": [512, 0, 3, 3], "data_offsets": [0, 0] });
        let header = json!({ "__metadata__": { "bb": about.to_string() }, name: tensor });
        let header = header.to_string();
        let length = (header.len() as u64).to_le_bytes();
        fs_err::write(&path, [&length[..], header.as_bytes()].concat()).expect("written");
        // Address space for the program and its data, and for no such network.
        let output = Command::new("sh")
            .args(["-c", "ulimit -v 2000000; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_bb-eval"))
            .args(["zoo", "import", "--dataset", "synthetic", "--threads", "1"])
            .arg("--out")
            .arg(folder.path())
            .arg(&path)
            .output()
            .expect("the program starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("[512, 0, 3, 3] for [512, 3, "), "{said}");
    }
}
