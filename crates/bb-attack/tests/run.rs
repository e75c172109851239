//! Whole runs on a little synthetic data: the same bits twice, resuming, hooks, and one clear error for what is wrong.

use std::cell::Cell as StdCell;
use std::path::{Path, PathBuf};

use bb_attack::harness::{AttackRequest, MetricsRow, run, run_with};
use bb_attack::inputaware::math;
use bb_attack::labels::LabelMap;
use bb_attack::method::{Attack, Ctx, Finished, Given, Poisoned, TrainHook, erase};
use bb_attack::prep::Prep;
use bb_attack::registry::ATTACKS;
use bb_attack::{AttackError, static_attack};
use bb_core::cell::Cell;
use bb_core::cell::{CONFIG, ENV, METRICS, MODEL, POISON_TEST, POISON_TRAIN};
use bb_core::cli::{Coded, exit};
use bb_core::data::{Dataset, OpenOptions};
use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::metrics::Scores;
use bb_core::poison::PoisonSet;
use bb_core::precision::Precision;
use bb_core::settings::{SettingsError, Valid, Validate};
use bb_nn::data::Batch;
use bb_nn::kernels::precision::supported;
use bb_nn::model::ModelSpec;
use bb_nn::train::{Recipe, StepAt, TrainError};
use bb_nn::{ArchSpec, Compute, Mode, Net, StateDict, eval};
use serde::{Deserialize, Serialize};

const TRAIN: usize = 192;
const TEST: usize = 80;

fn request(method: &str, out: &Path, set: &[&str]) -> AttackRequest {
    let small = ["train.epochs=2", "train.batch_size=64", "train.lr=0.05"];
    AttackRequest {
        method: method.to_owned(),
        dataset: "synthetic".to_owned(),
        data: None,
        train_limit: Some(TRAIN),
        test_limit: Some(TEST),
        test_split: None,
        arch: "preactresnet18".to_owned(),
        width: 4,
        precision: Precision::F32,
        compute: Compute::Cpu,
        given: Given {
            files: Vec::new(),
            set: small
                .iter()
                .chain(set)
                .map(|&text| text.to_owned())
                .collect(),
        },
        seed: 7,
        out: out.to_owned(),
        quiet: true,
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn data() -> Dataset {
    let (train_limit, test_limit) = (Some(TRAIN), Some(TEST));
    let options = OpenOptions {
        train_limit,
        test_limit,
        ..OpenOptions::default()
    };
    bb_core::data::open("synthetic", None, &options).expect("made by the program")
}

fn rows(cell: &Cell) -> Vec<MetricsRow> {
    let text = fs_err::read_to_string(cell.file(METRICS)).expect("rows");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect()
}

#[test]
fn every_attack_leaves_a_complete_cell_with_the_same_bits_twice() {
    for attack in ATTACKS {
        let (one, two) = (folder(), folder());
        let id = attack.info().id;
        let first = run(&request(id, one.path(), &[])).expect("a run");
        let second = run(&request(id, two.path(), &[])).expect("a run");
        assert_eq!(first.manifest, second.manifest, "{id}");
        let poisons = id != "clean";
        for name in [MODEL, POISON_TRAIN, POISON_TEST, CONFIG, METRICS] {
            assert!(first.manifest.files.contains_key(name), "{id}: {name}");
        }
        let picture = first.manifest.files.contains_key("trigger.png");
        assert_eq!(picture, poisons, "{id}: trigger.png");
        assert!(!first.file("ckpt").exists());
        let env = fs_err::read(first.file(ENV)).expect("the machine");
        let env: serde_json::Value = serde_json::from_slice(&env).expect("JSON");
        assert_eq!(env["device"], "cpu");
        let rows = rows(&first);
        assert_eq!(rows.len(), 2);
        assert!(
            rows.iter()
                .all(|row| row.train_loss.is_finite() && row.acc.is_some())
        );
        assert!(rows.iter().all(|row| row.asr.is_some() == poisons), "{id}");

        let plan = bb_attack::harness::plan(&request(id, two.path(), &[])).expect("a plan");
        assert_eq!(plan.dir(two.path()), second.dir);

        // The third time there is nothing to do.
        let again = run(&request(id, two.path(), &[])).expect("a complete cell");
        assert_eq!(again.manifest, second.manifest);
    }
}

#[test]
fn the_scores_are_those_of_the_stored_network_on_the_stored_images() {
    let out = folder();
    let cell = run(&request("blended", out.path(), &[])).expect("a run");
    let dataset = data();
    assert_eq!(cell.manifest.inputs["dataset"], dataset.digest);
    let arch = ArchSpec::new("preactresnet18", 4, 10).expect("a small network");
    let state = StateDict::load(&cell.file(MODEL)).expect("the network");
    let mut net = Net::from_state(&arch, &state).expect("a state of this architecture");
    let poison = PoisonSet::load(cell.file(POISON_TEST)).expect("the images");
    let scores =
        eval::scores(&mut net, &dataset.test, &poison, &dataset.spec).expect("finite logits");
    let results = &cell.manifest.results;
    let stored: Scores = serde_json::from_value(serde_json::json!({
        "acc": results["acc"], "asr": results["asr"], "ra": results["ra"],
    }))
    .expect("scores");
    assert_eq!(stored, scores);
    let last = rows(&cell).pop().expect("two rows");
    assert_eq!(last.acc, scores.acc.value());
    assert_eq!(last.ra, scores.ra.value());
    let stealth = |name| results["stealth"][name].as_f64().expect("measured");
    assert!(stealth("psnr") > 10.0);
    assert!((0.1..1.0).contains(&stealth("ssim")));
}

#[test]
fn clean_training_has_no_poisoned_image_and_no_score_of_one() {
    let out = folder();
    let cell = run(&request("clean", out.path(), &[])).expect("a run");
    let results = &cell.manifest.results;
    assert_eq!(results["acc"]["total"], TEST);
    for absent in ["asr", "ra", "stealth"] {
        assert!(results[absent].is_null(), "{absent}: {results}");
    }
    assert_eq!(
        results["poison"],
        serde_json::json!({ "train": 0, "test": 0 })
    );
    let dataset = data();
    for name in [POISON_TRAIN, POISON_TEST] {
        let set = PoisonSet::load(cell.file(name)).expect("a file like that of any attack");
        assert!(set.is_empty());
        set.check(TEST, dataset.spec.classes)
            .expect("nothing is wrong with nothing");
    }
    assert!(rows(&cell).iter().all(|row| row.ra.is_none()));

    // It is the training of an attack that poisons almost nothing: the same batches, the same start.
    let other = run(&request("badnets", out.path(), &["ratio=0.006"])).expect("a run");
    assert_eq!(other.manifest.results["poison"]["train"], 1);
    let loss = |cell: &Cell| rows(cell)[0].train_loss;
    assert!((loss(&cell) - loss(&other)).abs() < 0.05);
}

#[test]
fn sig_poisons_the_target_class_only_and_keeps_its_labels() {
    let dataset = data();
    let of_class = |y: u32| dataset.train.labels.iter().filter(|&&l| l == y).count();
    let check = |set: &[&str], target: u32, poisoned: usize, warned: bool| {
        let out = folder();
        let set: Vec<&str> = set.iter().copied().chain(["train.epochs=0"]).collect();
        let cell = run(&request("sig", out.path(), &set)).expect("a run");
        let train = PoisonSet::load(cell.file(POISON_TRAIN)).expect("images");
        let test = PoisonSet::load(cell.file(POISON_TEST)).expect("images");
        assert_eq!(train.len(), poisoned);
        assert!(
            train
                .indices
                .iter()
                .all(|&i| dataset.train.labels[i] == target)
        );
        assert_eq!(train.labels, train.original_labels);
        assert!(test.original_labels.iter().all(|&y| y != target));
        assert!(test.labels.iter().all(|&y| y == target));
        let log = fs_err::read_to_string(cell.file("log.jsonl")).expect("a log");
        assert_eq!(log.contains("all of these are poisoned"), warned, "{log}");
    };
    check(&["ratio=0.05"], 0, 10, false);
    check(&["target=3", "ratio=0.02"], 3, 4, false);
    check(&["ratio=0.3", "oversize=cap"], 0, of_class(0), true);
    check(&["ratio=0.02", "oversize=cap"], 0, 4, false);
}

#[test]
fn lf_adds_the_pattern_of_a_file_and_tells_of_fractions() {
    let out = folder();
    let path = out.path().join("pattern.npy");
    let values: Vec<f32> = (0..32 * 32).map(|i| (i % 7) as f32 / 35.0).collect();
    let bytes = bb_attack::npy::to_bytes(&[32, 32], &values);
    fs_err::write(&path, bytes).expect("a writable folder");
    let file = format!("trigger.file={}", path.display());
    // A file that is named is taken, with its source or without.
    let set = ["train.epochs=0", &file];
    let cell = run(&request("lf", out.path(), &set)).expect("a run");
    let set = ["train.epochs=0", "trigger.source=file", &file];
    let same = run(&request("lf", out.path(), &set)).expect("a run");
    assert_eq!(
        same.manifest.files[POISON_TEST],
        cell.manifest.files[POISON_TEST]
    );
    let log = fs_err::read_to_string(cell.file("log.jsonl")).expect("a log");
    assert!(
        log.contains("taken as fractions and multiplied by 255"),
        "{log}"
    );
    assert!(cell.manifest.inputs.contains_key("trigger.file"));
    let dataset = data();
    let test = PoisonSet::load(cell.file(POISON_TEST)).expect("images");
    let (before, after) = (
        dataset.test.images.image(test.indices[0]),
        test.images.image(0),
    );
    for (at, (&a, &b)) in before.iter().zip(after).enumerate() {
        // Sevenths of 51 levels: not whole, but for the first of seven.
        let level = 51.0 * (at / 3 % 7) as f32 / 7.0;
        assert_eq!(b, (f32::from(a) + level).min(255.0) as u8, "{at}");
    }
    // What the cell keeps gives the same images again.
    let kept = format!("trigger.file={}", cell.file("trigger.npy").display());
    let again = run(&request("lf", out.path(), &["train.epochs=0", &kept]));
    let again = again.expect("a run");
    assert_ne!(again.manifest.id, cell.manifest.id);
    assert_eq!(
        again.manifest.files[POISON_TEST],
        cell.manifest.files[POISON_TEST]
    );

    // Files were rounded before there was this setting, so it identifies the cell of one, whatever it says.
    let id = |scale: &str| {
        let set = ["train.epochs=0", &file, scale];
        bb_attack::harness::plan(&request("lf", out.path(), &set))
            .expect("a plan")
            .id()
    };
    assert_eq!(id("trigger.scale=auto"), cell.manifest.id);
    assert_eq!(cell.manifest.settings["trigger"]["scale"], "auto");
    let config = fs_err::read_to_string(cell.file("config.toml")).expect("the settings");
    assert!(config.contains("scale = \"auto\""), "{config}");
    assert_ne!(id("trigger.scale=levels"), cell.manifest.id);

    // So does a pattern of a single grey level, which is not taken for fractions.
    let faint = ["train.epochs=0", "trigger.peak=1"];
    let faint = run(&request("lf", out.path(), &faint)).expect("a run");
    // Without a file a setting that came later is no part of the identity.
    assert_eq!(faint.manifest.settings["trigger"].get("scale"), None);
    let kept = format!("trigger.file={}", faint.file("trigger.npy").display());
    let again = run(&request("lf", out.path(), &["train.epochs=0", &kept])).expect("a run");
    for name in [POISON_TRAIN, POISON_TEST, "trigger.npy"] {
        assert_eq!(again.manifest.files[name], faint.manifest.files[name]);
    }
    let log = fs_err::read_to_string(again.file("log.jsonl")).expect("a log");
    assert!(!log.contains("fractions"), "{log}");
}

#[test]
fn wanet_warps_and_tells_backdoored_images_from_noisy_ones() {
    let dataset = data();
    let check = |set: &[&str], attacked: &dyn Fn(u32) -> u32, changed: usize| {
        let out = folder();
        let usual = ["train.epochs=0", "ratio=0.1", "cross=2"];
        let set: Vec<&str> = set.iter().copied().chain(usual).collect();
        let cell = run(&request("wanet", out.path(), &set)).expect("a run");
        let load = |name| PoisonSet::load(cell.file(name)).expect("images");
        let (train, cross) = (load(POISON_TRAIN), load("cross_train.safetensors"));
        // Three batches of 64.
        assert_eq!((train.len(), cross.len()), (18, 36));
        assert_eq!(train.indices[5..7], [5, 64]);
        assert_eq!(cross.indices[..2], [6, 7]);
        assert_eq!(cross.labels, cross.original_labels);
        for set in [&train, &load(POISON_TEST)] {
            for (y, &attacked_to) in set.original_labels.iter().zip(&set.labels) {
                assert_eq!(attacked_to, attacked(*y));
            }
        }
        let grid = bb_attack::npy::read(&cell.file("trigger.npy")).expect("the grid");
        assert_eq!(grid.shape, [32, 32, 2]);
        let test = load(POISON_TEST);
        let stealth = bb_attack::stealth::measure(&dataset.test.images, &test);
        assert_eq!(stealth.images - stealth.unchanged, changed);
        cell.manifest.id
    };
    let moved = data().test.labels.iter().filter(|&&y| y != 0).count();
    let ids = [
        check(&[], &|_| 0, moved),
        check(&["rounding=truncate"], &|_| 0, moved),
        check(&["augmentation=image"], &|_| 0, moved),
        check(&["label=all2all", "shift=3"], &|y| (y + 3) % 10, TEST),
    ];
    let unique: std::collections::BTreeSet<&String> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len());
}

#[test]
fn input_aware_gives_each_image_a_trigger_and_keeps_its_networks() {
    let check = |set: &[&str], epochs: usize| {
        let out = folder();
        let set: Vec<&str> = set.iter().copied().chain(["generator.width=4"]).collect();
        let cell = run(&request("inputaware", out.path(), &set)).expect("a run");
        assert_eq!(rows(&cell).len(), epochs, "{set:?}");
        let log = fs_err::read_to_string(cell.file("log.jsonl")).expect("a log");
        assert!(log.contains("loss of the mask"), "{log}");
        let load = |name| PoisonSet::load(cell.file(name)).expect("images");
        let (train, cross, test) = (
            load(POISON_TRAIN),
            load("cross_train.safetensors"),
            load(POISON_TEST),
        );
        assert_eq!((train.len(), cross.len()), (18, 18));
        assert_eq!(cross.labels, cross.original_labels);
        assert!(train.labels.iter().all(|&y| y == 0));
        assert!(test.original_labels.iter().all(|&y| y != 0));
        // No two triggers are the same.
        let dataset = data();
        let difference = |k: usize| -> Vec<u8> {
            let before = dataset.test.images.image(test.indices[k]);
            let pairs = before.iter().zip(test.images.image(k));
            pairs.map(|(a, b)| a.abs_diff(*b)).collect()
        };
        assert_ne!(difference(0), difference(1));
        let mut networks = Vec::new();
        for (name, outputs) in [("generator", 3), ("mask", 1)] {
            let state = StateDict::load(&cell.file(&format!("{name}.safetensors")));
            let spec = ModelSpec::input_aware(outputs, 4).expect("a model");
            let net = Net::from_state(&spec, &state.expect("its weights"));
            networks.push(net.expect("weights of the model"));
        }
        let [generator, mask] = &mut networks[..] else {
            panic!("there are two");
        };
        // What the cell keeps makes the images of the cell.
        let image =
            bb_attack::in_loop::plain_input(&dataset.test, &dataset.spec, &test.indices[..1]);
        let pattern = generator.output(&image, Mode::Eval).data;
        let mask = math::threshold(&mask.output(&image, Mode::Eval).data);
        let before = dataset.test.images.image(test.indices[0]);
        for (at, (&a, &b)) in before.iter().zip(test.images.image(0)).enumerate() {
            let (m, p) = (mask[at / 3], 255.0 * pattern[at]);
            let expect = f32::from(a) + (p - f32::from(a)) * m;
            assert!((expect - f32::from(b)).abs() < 0.51, "{at}: {expect}, {b}");
        }
        cell.manifest.id
    };
    let ids = [
        check(&[], 2),
        check(&["rounding=nearest", "lambda_div=0.5"], 2),
        check(&["generator.accumulate_gradients=false"], 2),
        check(&["mask.clean_train_epochs=1", "mask.counted=true"], 1),
    ];
    let unique: std::collections::BTreeSet<&String> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len());
}

#[test]
fn the_poisoned_images_follow_the_settings() {
    let check = |set: &[&str], attacked: &dyn Fn(u32) -> u32, test_classes_without: Option<u32>| {
        let out = folder();
        let set: Vec<&str> = set
            .iter()
            .copied()
            .chain(["train.epochs=0", "trigger.margin=0"])
            .collect();
        let cell = run(&request("badnets", out.path(), &set)).expect("a run");
        let dataset = data();
        let train = PoisonSet::load(cell.file(POISON_TRAIN)).expect("images");
        let test = PoisonSet::load(cell.file(POISON_TEST)).expect("images");
        assert_eq!(train.len(), 19, "a tenth of {TRAIN}");
        for (split, poison) in [(&dataset.train, &train), (&dataset.test, &test)] {
            for (k, &i) in poison.indices.iter().enumerate() {
                assert_eq!(poison.original_labels[k], split.labels[i]);
                assert_eq!(poison.labels[k], attacked(split.labels[i]));
                // The patch sits in the last three rows and columns, and nothing else changes.
                let (before, after) = (split.images.image(i), poison.images.image(k));
                for (at, (&a, &b)) in before.iter().zip(after).enumerate() {
                    let patch = at / 3 / 32 >= 29 && at / 3 % 32 >= 29;
                    assert_eq!(b, if patch { 255 } else { a });
                }
            }
        }
        let kept = |y: u32| Some(y) != test_classes_without;
        let expected = dataset.test.labels.iter().filter(|&&y| kept(y)).count();
        assert_eq!(test.len(), expected);
        assert!(test.original_labels.iter().all(|&y| kept(y)));
    };
    check(&[], &|_| 0, Some(0));
    check(&["target=3"], &|_| 3, Some(3));
    check(&["label=all2all", "shift=2"], &|y| (y + 2) % 10, None);
}

#[test]
fn another_setting_seed_or_input_is_another_cell() {
    let out = folder();
    let mut ids = Vec::new();
    let mut add = |request: &AttackRequest| {
        ids.push(run(request).expect("a run").manifest.id);
    };
    let base = request("badnets", out.path(), &["train.epochs=0"]);
    add(&base);
    add(&AttackRequest {
        seed: 8,
        ..base.clone()
    });
    add(&AttackRequest {
        width: 5,
        ..base.clone()
    });
    add(&AttackRequest {
        test_limit: Some(TEST - 1),
        ..base.clone()
    });
    add(&AttackRequest {
        test_split: Some("test".to_owned()),
        ..base.clone()
    });
    add(&request(
        "badnets",
        out.path(),
        &["train.epochs=0", "trigger.value=254"],
    ));
    let picture = out.path().join("t.png");
    for level in [200, 201] {
        let bytes = bb_attack::picture::Picture::new(4, 4, vec![level; 48]).to_png();
        fs_err::write(&picture, bytes).expect("a writable folder");
        let file = format!("trigger.file={}", picture.display());
        add(&request("badnets", out.path(), &["train.epochs=0", &file]));
    }
    let unique: std::collections::BTreeSet<&String> = ids.iter().collect();
    assert_eq!(unique.len(), 8);
}

/// What is computed otherwise than by the first versions has a cell of its own, and what is not keeps its name.
#[test]
fn a_revision_of_what_settings_compute_is_a_part_of_the_cells_name() {
    let out = folder();
    let compute = |method: &str, set: &[&str]| {
        let spec = bb_attack::harness::plan(&request(method, out.path(), set)).expect("a plan");
        spec.settings["compute"].clone()
    };
    let (first, second) = (
        serde_json::json!({ "precision": "f32" }),
        serde_json::json!({ "precision": "f32", "revision": 1 }),
    );
    assert_eq!(compute("wanet", &[]), first);
    assert_eq!(compute("wanet", &["augmentation=image"]), second);
    assert_eq!(compute("lf", &[]), first);
    assert_eq!(compute("lf", &["trigger.source=deepfool"]), second);
}

#[test]
#[expect(clippy::print_stderr, reason = "a test that did not run must say so")]
fn bf16_is_a_cell_of_its_own_with_the_same_bits_twice() {
    let (one, two) = (folder(), folder());
    let bf16 = |out: &Path| AttackRequest {
        precision: Precision::Bf16,
        ..request("badnets", out, &[])
    };
    if supported(Precision::Bf16).is_err() {
        eprintln!("not trained: this processor lacks bf16");
        let error = run(&bf16(one.path())).expect_err("it cannot be trained");
        assert!(error.to_string().starts_with("precision `bf16` needs"));
        assert_eq!(error.exit_code(), exit::USAGE);
        let left = fs_err::read_dir(one.path()).expect("a folder").count();
        assert_eq!(left, 0, "nothing was begun");
        return;
    }
    let first = run(&bf16(one.path())).expect("a run");
    let second = run(&bf16(two.path())).expect("a run");
    assert_eq!(first.manifest, second.manifest);
    let compute = &first.manifest.settings["compute"];
    assert_eq!(*compute, serde_json::json!({ "precision": "bf16" }));
    let plain = run(&request("badnets", one.path(), &[])).expect("a run");
    assert_eq!(plain.manifest.settings["compute"]["precision"], "f32");
    assert_ne!(plain.manifest.id, first.manifest.id);
    assert_ne!(plain.manifest.files[MODEL], first.manifest.files[MODEL]);
    let plan = bb_attack::harness::plan(&bf16(one.path())).expect("a plan");
    assert_eq!(plan.dir(one.path()), first.dir);
}

#[test]
fn epochs_that_are_not_measured_say_so() {
    let out = folder();
    let set = ["eval_every=2", "train.epochs=3"];
    let cell = run(&request("badnets", out.path(), &set)).expect("a run");
    let measured: Vec<bool> = rows(&cell).iter().map(|row| row.acc.is_some()).collect();
    assert_eq!(measured, [false, true, true]);
}

#[test]
fn what_cannot_be_run_is_one_clear_error() {
    let out = folder();
    let check = |change: &dyn Fn(&mut AttackRequest), code: u8, expect: &str| {
        let mut request = request("badnets", out.path(), &[]);
        change(&mut request);
        let error = run(&request).expect_err("a wrong request");
        assert!(
            error.to_string().contains(expect),
            "{error}\nlacks {expect}"
        );
        assert_eq!(error.exit_code(), code, "{error}");
    };
    let set = |text: &'static str| move |r: &mut AttackRequest| r.given.set.push(text.to_owned());
    check(
        &|r| r.method = "badnet".into(),
        exit::USAGE,
        "unknown attack `badnet`",
    );
    check(
        &|r| r.dataset = "cifar".into(),
        exit::USAGE,
        "unknown dataset `cifar`",
    );
    check(
        &|r| r.dataset = "cifar10".into(),
        exit::USAGE,
        "no data folder was given",
    );
    check(
        &|r| r.arch = "resnet".into(),
        exit::USAGE,
        "unknown architecture `resnet`",
    );
    check(&|r| r.width = 0, exit::USAGE, "`width`");
    check(
        &|r| r.seed = 1 << 32,
        exit::USAGE,
        "expected a seed below 4294967296",
    );
    check(
        &set("ratio=0"),
        exit::USAGE,
        "`ratio` is `0`, expected a share above 0 and at most 1",
    );
    check(
        &set("ratio=0.001"),
        exit::USAGE,
        "selects no image, expected at least one",
    );
    check(
        &set("target=10"),
        exit::USAGE,
        "`target` is 10, expected a class of 0..=9",
    );
    check(&set("label=all2some"), exit::USAGE, "`label`");
    check(
        &set("trigger.value=0"),
        exit::USAGE,
        "`trigger.value` is `0`",
    );
    check(&set("trigger.size=0"), exit::USAGE, "`trigger.size` is `0`");
    check(
        &set("trigger.size=33"),
        exit::USAGE,
        "does not fit in 32 x 32 pixels",
    );
    check(
        &set("trigger.colour=1"),
        exit::USAGE,
        "unknown setting `trigger.colour`",
    );
    check(
        &set("train.batch_size=0"),
        exit::USAGE,
        "`train.batch_size` is `0`",
    );
    check(
        &set("train.batch_size=1000"),
        exit::USAGE,
        "`batch_size` is 1000",
    );
    check(
        &set("trigger.file=/no/such.png"),
        exit::INPUT,
        "cannot read `/no/such.png`",
    );
    let black = out.path().join("black.png");
    let bytes = bb_attack::picture::Picture::new(4, 4, vec![0; 48]).to_png();
    fs_err::write(&black, bytes).expect("a writable folder");
    let file = format!("trigger.file={}", black.display());
    check(&|r| r.given.set.push(file.clone()), exit::INPUT, "is black");
    fs_err::write(&black, b"GIF89a").expect("a writable folder");
    check(
        &|r| r.given.set.push(file.clone()),
        exit::INPUT,
        "cannot decode picture",
    );
    check(&set("train.lr=1e30"), exit::NUMERICAL, "training diverged");

    let check = |method: &str, set: &[&str], code: u8, expect: &str| {
        let error = run(&request(method, out.path(), set)).expect_err("a wrong request");
        assert!(
            error.to_string().contains(expect),
            "{error}\nlacks {expect}"
        );
        assert_eq!(error.exit_code(), code, "{error}");
        error
    };
    let usage = |method: &str, set: &[&str], expect: &str| check(method, set, exit::USAGE, expect);
    let error = usage("sig", &["ratio=0.3"], "are of the target class 0");
    let hint = error.hint().expect("something to do");
    assert!(hint.contains("`oversize=cap`"), "{hint}");
    usage("sig", &["ratio=0.001"], "selects no image");
    usage("sig", &["target=10"], "`target` is 10");
    usage("sig", &["oversize=most"], "`oversize`");
    usage("sig", &["label=all2one"], "unknown setting `label`");
    usage("sig", &["trigger.delta=0.5"], "`trigger.delta` is `0.5`");
    usage("sig", &["trigger.delta=256"], "`trigger.delta` is `256");
    usage("sig", &["trigger.frequency=0"], "`trigger.frequency` is `0");
    usage(
        "sig",
        &["trigger.frequency=16"],
        "expected less than 16 (half the width",
    );
    usage("clean", &["ratio=0.1"], "unknown setting `ratio`");
    for (set, expect) in [
        ("trigger.neurons=0", "`trigger.neurons` is `0`"),
        (
            "trigger.neurons=33",
            "`trigger.neurons` is 33, expected at most 32",
        ),
        ("trigger.step=0", "`trigger.step` is `0"),
        ("trigger.radius=1.5", "`trigger.radius` is `1.5`"),
        (
            "trigger.clean_epochs=100001",
            "`trigger.clean_epochs` is `100001`",
        ),
        ("trigger.head=first", "`trigger.head`"),
        ("trigger.addition=clip", "`trigger.addition`"),
        ("trigger.iterate=first", "`trigger.iterate`"),
        ("target=10", "`target` is 10"),
    ] {
        usage("trojan", &["train.epochs=0", set], expect);
    }
    for (set, expect) in [
        ("trigger.bits=0", "`trigger.bits` is `0`"),
        ("trigger.width=513", "`trigger.width` is `513`"),
        ("trigger.batch_size=0", "`trigger.batch_size` is `0`"),
        ("trigger.lr=-1", "`trigger.lr` is `-1"),
        ("trigger.start_accuracy=2", "`trigger.start_accuracy` is `2"),
        ("trigger.folder=a", "expected no file, or"),
        ("trigger.source=files", "`trigger.source`"),
        (
            "trigger.source=file",
            "expected the path of an array, or `trigger.folder`",
        ),
        ("ratio=0.001", "selects no image"),
    ] {
        usage("ssba", &["train.epochs=0", set], expect);
    }
    let both = [
        "trigger.source=file",
        "trigger.folder=a",
        "trigger.test_file=b",
    ];
    usage("ssba", &both, "expected nothing beside `trigger.folder`");
    let diverged = ["trigger.lr=1e30", "trigger.steps=20"];
    check(
        "ssba",
        &diverged,
        exit::NUMERICAL,
        "the training of the encoder diverged",
    );
    let both = ["trigger.file=a.png", "trigger.model=b.safetensors"];
    usage("trojan", &both, "expected nothing beside `trigger.file`");
    usage("inputaware", &["ratio=0.6"], "`ratio` is `0.6`");
    usage("inputaware", &["lambda_div=-1"], "`lambda_div` is `-1");
    usage("inputaware", &["generator.width=0"], "`generator.width`");
    usage("inputaware", &["generator.lr=0"], "`generator.lr` is `0");
    usage("inputaware", &["mask.lr=2"], "`mask.lr` is `2");
    usage("inputaware", &["mask.density=2"], "`mask.density` is `2");
    usage("inputaware", &["mask.lambda_norm=-1"], "`mask.lambda_norm`");
    usage("inputaware", &["shift=0", "label=all2all"], "`shift` is 0");
    usage(
        "inputaware",
        &["mask.counted=true"],
        "`mask.clean_train_epochs` is `2`, expected fewer than `train.epochs`",
    );
    usage("wanet", &["ratio=0.4", "cross=2"], "`cross` is `2");
    usage("wanet", &["cross=-1"], "`cross` is `-1");
    usage("wanet", &["target=10"], "`target` is 10");
    usage("wanet", &["trigger.k=1"], "`trigger.k` is `1`");
    usage("wanet", &["trigger.s=0"], "`trigger.s` is `0");
    usage(
        "wanet",
        &["trigger.grid_rescale=0"],
        "`trigger.grid_rescale`",
    );
    usage("wanet", &["rounding=up"], "`rounding`");
    usage("wanet", &["augmentation=none"], "`augmentation`");
    usage("lf", &["trigger.peak=0"], "`trigger.peak` is `0`");
    usage("lf", &["trigger.source=deep"], "`trigger.source`");
    usage("lf", &["trigger.model=a"], "expected no network");
    usage(
        "lf",
        &["trigger.scale=levels"],
        "expected `auto` where no `trigger.file`",
    );
    usage("lf", &["trigger.scale=bytes"], "`trigger.scale`");
    for (set, expect) in [
        (
            "trigger.deepfool.images=0",
            "`trigger.deepfool.images` is `0`",
        ),
        (
            "trigger.deepfool.passes=0",
            "`trigger.deepfool.passes` is `0`",
        ),
        (
            "trigger.deepfool.fooling_rate=0",
            "`trigger.deepfool.fooling_rate` is `0",
        ),
        ("trigger.clean_epochs=100001", "`trigger.clean_epochs`"),
    ] {
        usage("lf", &["trigger.source=deepfool", set], expect);
    }
    usage(
        "lf",
        &["trigger.source=file"],
        "expected the path of a pattern",
    );
    let both = ["trigger.source=deepfool", "trigger.file=x.npy"];
    usage("lf", &both, "expected no file");
    let from_file = |content: &[u8], expect: &str| {
        let path = out.path().join("pattern.npy");
        fs_err::write(&path, content).expect("a writable folder");
        let file = format!("trigger.file={}", path.display());
        check("lf", &["trigger.source=file", &file], exit::INPUT, expect);
    };
    from_file(
        &bb_attack::npy::to_bytes(&[16, 16], &[0.5; 256]),
        "has shape [16, 16], expected [32, 32]",
    );
    from_file(
        &bb_attack::npy::to_bytes(&[32, 32], &[0.5; 1024]),
        "everywhere, expected a pattern",
    );
    from_file(
        &bb_attack::npy::to_bytes(&[32, 32], &[f32::NAN; 1024]),
        "expected finite numbers",
    );
    from_file(b"\x93NUMPY\x01\x00", "no valid `.npy` file");
    from_file(b"GIF89a", "cannot decode picture");
    let missing = ["trigger.source=file", "trigger.file=/no/such.npy"];
    check("lf", &missing, exit::INPUT, "cannot read `/no/such.npy`");
    let missing = ["trigger.file=/no/such.npy"];
    check("lf", &missing, exit::INPUT, "cannot read `/no/such.npy`");
    for (set, expect) in [
        ("trigger.alpha_train=0", "`trigger.alpha_train` is `0"),
        (
            "trigger.alpha_train=-0.2",
            "`trigger.alpha_train` is `-0.2`",
        ),
        ("trigger.alpha_test=0", "`trigger.alpha_test` is `0"),
        ("trigger.alpha_test=1.5", "`trigger.alpha_test` is `1.5`"),
        ("trigger.alpha=0.2", "unknown setting `trigger.alpha`"),
        ("target=10", "`target` is 10"),
    ] {
        usage("blended", &[set], expect);
    }
    let missing = ["trigger.file=/no/such.png"];
    check(
        "blended",
        &missing,
        exit::INPUT,
        "cannot read `/no/such.png`",
    );
    let path = out.path().join("text.png");
    fs_err::write(&path, b"no picture").expect("a writable folder");
    let file = format!("trigger.file={}", path.display());
    check("blended", &[&file], exit::INPUT, "cannot decode picture");
    usage(
        "clean",
        &["train.schedule.min_lr=-0.1"],
        "`train.schedule.min_lr` is `-0.1`, expected a number of at least 0",
    );
}

#[test]
fn settings_that_cannot_work_are_refused_before_a_network_is_trained_for_the_trigger() {
    let out = folder();
    let first = data().test.labels[0];
    let only_target = format!("target={first}");
    // The training before would diverge, which is another error.
    let clean = ["train.epochs=0", "trigger.clean_epochs=1", "train.lr=1e30"];
    let deepfool = ["trigger.source=deepfool"];
    let encoder = ["train.epochs=0", "trigger.steps=20", "trigger.lr=1e30"];
    let attacks: [(&str, Vec<&str>, &str); 3] = [
        ("trojan", clean.to_vec(), "training diverged"),
        ("lf", [&clean[..], &deepfool].concat(), "training diverged"),
        ("ssba", encoder.to_vec(), "the encoder diverged"),
    ];
    for (method, usual, diverges) in &attacks {
        let check = |set: &[&str], change: &dyn Fn(&mut AttackRequest), code, expect: &str| {
            let set: Vec<&str> = usual.iter().chain(set).copied().collect();
            let mut request = request(method, out.path(), &set);
            change(&mut request);
            let error = run(&request).expect_err("a wrong request");
            let text = error.to_string();
            assert!(
                text.contains(expect),
                "{method}: {text}
lacks {expect}"
            );
            assert_eq!(error.exit_code(), code, "{method}: {text}");
        };
        let usage = |set: &[&str], change: &dyn Fn(&mut AttackRequest), expect: &str| {
            check(set, change, exit::USAGE, expect);
        };
        check(&[], &|_| (), exit::NUMERICAL, diverges);
        usage(&["ratio=0.001"], &|_| (), "selects no image");
        usage(
            &[],
            &|r| r.seed = 1 << 32,
            "expected a seed below 4294967296",
        );
        usage(
            &[&only_target],
            &|r| r.test_limit = Some(1),
            "no image of the 1 test images",
        );
        usage(&["target=10"], &|_| (), "`target` is 10");
        if *method == "trojan" {
            let many = ["trigger.neurons=33"];
            usage(&many, &|_| (), "expected at most 32, the features");
        }
        if *method == "lf" {
            // The labels do not need the class, and the search does.
            let all = ["label=all2all", "target=10"];
            usage(&all, &|_| (), "`target` is 10, expected a class of 0..=9");
        }
    }
    // A pattern that is not searched needs no class at all.
    let set = ["train.epochs=0", "label=all2all", "target=10"];
    let error = run(&request("lf", out.path(), &set)).expect_err("it does nothing");
    assert_eq!(error.exit_code(), exit::USAGE);
    let expect = "setting `target` does nothing, because `label` is `all2all`";
    assert!(error.to_string().starts_with(expect), "{error}");
    run(&request("lf", out.path(), &set[..2])).expect("a run");
}

#[test]
fn trojan_takes_a_clean_network_from_a_cell_or_a_file_and_keeps_a_trigger_that_gives_the_same_images()
 {
    let out = folder();
    let clean = run(&request("clean", out.path(), &[])).expect("a run");
    let small = ["train.epochs=0", "trigger.iterations=10"];
    let trojan = |set: &[&str]| {
        let set: Vec<&str> = small.iter().chain(set).copied().collect();
        run(&request("trojan", out.path(), &set))
    };
    let model = |path: &Path| format!("trigger.model={}", path.display());
    let cell = trojan(&[&model(&clean.dir)]).expect("a run");
    assert!(cell.manifest.inputs.contains_key("trigger.model"));
    for path in [clean.dir.join("manifest.json"), clean.file(MODEL)] {
        let same = trojan(&[&model(&path)]).expect("a run");
        assert_eq!(same.manifest.files, {
            let mut files = cell.manifest.files.clone();
            files.insert(CONFIG.to_owned(), same.manifest.files[CONFIG].clone());
            files
        });
    }
    // Without a network one is trained, which is not that of the cell.
    let trained = trojan(&["trigger.clean_epochs=1"]).expect("a run");
    let picture = |cell: &Cell| fs_err::read(cell.file("trigger.png")).expect("a picture");
    assert_ne!(picture(&trained), picture(&cell));
    let log = fs_err::read_to_string(trained.file("log.jsonl")).expect("a log");
    assert!(log.contains("clean network, epoch 1 of 1"), "{log}");
    assert!(log.contains("trigger for neurons"), "{log}");

    let file = format!("trigger.file={}", cell.file("trigger.png").display());
    let again = run(&request("trojan", out.path(), &["train.epochs=0", &file])).expect("a run");
    for name in [POISON_TEST, POISON_TRAIN] {
        assert_eq!(again.manifest.files[name], cell.manifest.files[name]);
    }
    let saturated = trojan(&[&model(&clean.dir), "trigger.addition=saturate"]).expect("a run");
    assert_ne!(
        saturated.manifest.files[POISON_TEST],
        cell.manifest.files[POISON_TEST]
    );

    let check = |path: &Path, code: u8, expect: &str| {
        let error = trojan(&[&model(path)]).expect_err("no such network");
        let text = format!("{error}: {:?}", std::error::Error::source(&error));
        assert!(text.contains(expect), "{text}\nlacks {expect}");
        assert_eq!(error.exit_code(), code, "{error}");
    };
    check(
        &cell.dir,
        exit::INPUT,
        "has method `trojan`, expected `clean`",
    );
    check(&out.path().join("none"), exit::INPUT, "none");
    let wide = AttackRequest {
        width: 5,
        ..request("clean", out.path(), &["train.epochs=0"])
    };
    let wide = run(&wide).expect("a run");
    check(
        &wide.dir,
        exit::INPUT,
        "has network `preactresnet18-w5`, expected `preactresnet18-w4`",
    );
    check(
        &wide.file(MODEL),
        exit::INPUT,
        "holds no network of preactresnet18-w4 with 10 classes",
    );
    let text = out.path().join("net.safetensors");
    fs_err::write(&text, "no tensors").expect("a writable folder");
    check(&text, exit::INPUT, "holds no network of");
    fs_err::remove_file(clean.file(MODEL)).expect("it was there");
    check(&clean.dir, exit::INPUT, "model.safetensors");

    let black = out.path().join("black.png");
    let bytes = bb_attack::picture::Picture::new(4, 4, vec![0; 48]).to_png();
    fs_err::write(&black, bytes).expect("a writable folder");
    for key in ["file", "mask"] {
        let set = format!("trigger.{key}={}", black.display());
        // A ready trigger is not searched for.
        let search: &[&str] = if key == "file" {
            &[]
        } else {
            &["trigger.iterations=10"]
        };
        let set = [&["train.epochs=0", &set], search].concat();
        let error = run(&request("trojan", out.path(), &set)).expect_err("a black picture");
        assert!(error.to_string().contains("is black"), "{error}");
    }
}

#[test]
fn ssba_takes_encoded_images_from_arrays_in_the_order_of_the_dataset() {
    let (out, arrays, dataset) = (folder(), folder(), data());
    let array = |split: &bb_core::data::Split, side: usize| {
        let shape = format!("({}, {side}, {side}, 3)", split.len());
        let head = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((head.len() as u16).to_le_bytes());
        bytes.extend(head.as_bytes());
        bytes.extend(split.images.as_bytes().iter().map(|v| v ^ 1));
        bytes
    };
    let (train, test) = (
        arrays.path().join("synthetic_train.npy"),
        arrays.path().join("test_b1.npy"),
    );
    fs_err::write(&train, array(&dataset.train, 32)).expect("a writable folder");
    fs_err::write(&test, array(&dataset.test, 32)).expect("a writable folder");
    let small = ["train.epochs=0", "trigger.source=file"];
    let ssba = |set: &[&str]| {
        let set: Vec<&str> = small.iter().chain(set).copied().collect();
        run(&request("ssba", out.path(), &set))
    };
    let inside = format!("trigger.folder={}", arrays.path().display());
    let cell = ssba(&[&inside]).expect("a run");
    for (name, split) in [(POISON_TRAIN, &dataset.train), (POISON_TEST, &dataset.test)] {
        let poison = PoisonSet::load(cell.file(name)).expect("images");
        for (k, &i) in poison.indices.iter().enumerate() {
            let pairs = split.images.image(i).iter().zip(poison.images.image(k));
            assert!(pairs.into_iter().all(|(&a, &b)| b == a ^ 1));
        }
    }
    let (one, two) = (
        format!("trigger.train_file={}", train.display()),
        format!("trigger.test_file={}", test.display()),
    );
    let same = ssba(&[&one, &two]).expect("a run");
    assert_eq!(
        same.manifest.files[POISON_TEST],
        cell.manifest.files[POISON_TEST]
    );
    assert_eq!(same.manifest.inputs, cell.manifest.inputs);

    let check = |set: &[&str], expect: &str| {
        let error = ssba(set).expect_err("a wrong array");
        assert!(
            error.to_string().contains(expect),
            "{error}\nlacks {expect}"
        );
        assert_eq!(error.exit_code(), exit::INPUT, "{error}");
    };
    // The two arrays in the wrong order: there are fewer test images than training images.
    let (wrong_one, wrong_two) = (
        format!("trigger.train_file={}", test.display()),
        format!("trigger.test_file={}", train.display()),
    );
    check(
        &[&wrong_one, &wrong_two],
        "expected [192, 32, 32, 3], the training images in their order",
    );
    fs_err::write(arrays.path().join("train2.npy"), "").expect("a writable folder");
    check(&[&inside], "train.npy");
    let whole = array(&dataset.train, 32);
    fs_err::write(&train, &whole[..whole.len() - 1]).expect("a writable folder");
    check(&[&one, &two], "bytes of data, expected");
    fs_err::write(&train, b"\x93NUMPY\x01\x00").expect("a writable folder");
    check(&[&one, &two], "no valid `.npy` file");
}

#[test]
fn lf_searches_a_pattern_with_the_same_bits_twice() {
    let (one, two) = (folder(), folder());
    let set = [
        "trigger.source=deepfool",
        "trigger.deepfool.images=8",
        "trigger.deepfool.passes=2",
        "trigger.clean_epochs=4",
    ];
    let first = run(&request("lf", one.path(), &set)).expect("a run");
    let second = run(&request("lf", two.path(), &set)).expect("a run");
    assert_eq!(first.manifest, second.manifest);
    let log = fs_err::read_to_string(first.file("log.jsonl")).expect("a log");
    assert!(log.contains("of the evaluation images"), "{log}");
    let drawn = run(&request("lf", one.path(), &[])).expect("a run");
    assert_ne!(
        drawn.manifest.files["trigger.npy"],
        first.manifest.files["trigger.npy"]
    );
}

thread_local! {
    /// Where the toy attack fails: after so many batches.
    static FAIL_AFTER: StdCell<usize> = const { StdCell::new(usize::MAX) };
    /// And in which step before training.
    static FAIL_BEFORE: StdCell<u64> = const { StdCell::new(u64::MAX) };
}

/// An attack on the training loop: the brightness of its trigger drifts with every batch.
struct Drift;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DriftConfig {
    train: Recipe,
}

impl Default for DriftConfig {
    fn default() -> Self {
        Self {
            train: Recipe {
                epochs: 4,
                batch_size: 64,
                lr: 0.05,
                ..Recipe::default()
            },
        }
    }
}

impl Validate for DriftConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        Ok(())
    }
}

struct DriftHook {
    dataset: Dataset,
    map: LabelMap,
    batches: u64,
    /// Steps before training.
    before: u64,
}

impl DriftHook {
    fn sets(&self) -> Result<Poisoned, AttackError> {
        let arch = ArchSpec::new("preactresnet18", 4, 10)?;
        let ctx = Ctx {
            dataset: &self.dataset,
            arch: &arch,
            seed: 0,
            prep: Prep::default(),
        };
        let level = self.batches as u8;
        let paint = |image: &mut [u8]| image[..30].fill(level);
        static_attack::poison(&ctx, &self.map, 0.1, paint, paint)
    }
}

impl TrainHook for DriftHook {
    fn epochs_before(&self) -> usize {
        2
    }

    fn epoch_before(
        &mut self,
        epoch: usize,
        done: &mut dyn FnMut(usize) -> Result<(), AttackError>,
    ) -> Result<String, AttackError> {
        for _ in 0..3 {
            self.before += 1;
            if self.before == FAIL_BEFORE.get() {
                return Err(TrainError::Interrupted { epoch }.into());
            }
            done(64)?;
        }
        Ok(format!("{} steps", self.before))
    }

    fn batch(&mut self, _: StepAt, batch: &mut Batch) -> Result<(), AttackError> {
        self.batches += 1;
        assert_eq!(self.before, 6, "all work before was done, and once");
        if self.batches as usize > FAIL_AFTER.get() {
            // Not a number stops the training loop, as a crash would.
            batch.input.data.fill(f32::NAN);
            return Ok(());
        }
        let size = batch.input.data.len() / batch.input.n;
        batch.input.data[..size].fill(self.batches as f32 / 10.0);
        batch.labels[0] = 0;
        Ok(())
    }

    fn test_set(&mut self) -> Result<Option<PoisonSet>, AttackError> {
        Ok(Some(self.sets()?.test))
    }

    fn save(&self) -> Result<Vec<u8>, AttackError> {
        Ok([self.batches, self.before].map(u64::to_le_bytes).concat())
    }

    fn load(&mut self, state: &[u8], _: &Path) -> Result<(), AttackError> {
        let (numbers, _) = state.as_chunks();
        let [batches, before] = *numbers else {
            panic!("two numbers were saved");
        };
        self.batches = u64::from_le_bytes(batches);
        self.before = u64::from_le_bytes(before);
        Ok(())
    }

    fn finish(&mut self, _: &mut Net) -> Result<Option<Finished>, AttackError> {
        let Poisoned { train, test, .. } = self.sets()?;
        Ok(Some(Finished {
            train,
            test,
            artefacts: vec![("drift.txt".to_owned(), b"done".to_vec())],
        }))
    }
}

impl Attack for Drift {
    const INFO: MethodInfo = MethodInfo {
        id: "drift",
        title: "Drift",
        paper: "none",
        needs: Needs::Nothing,
        status: Status::Experimental,
        summary: "a toy",
        docs: "",
    };
    type Config = DriftConfig;

    fn recipe(cfg: &DriftConfig) -> &Recipe {
        &cfg.train
    }

    fn eval_every(_: &DriftConfig) -> usize {
        1
    }

    fn files(_: &DriftConfig) -> Vec<(&'static str, PathBuf)> {
        Vec::new()
    }

    fn prepare(_: &Valid<DriftConfig>, ctx: &Ctx<'_>) -> Result<Poisoned, AttackError> {
        let map = LabelMap::AllToOne { target: 0 };
        let hook = DriftHook {
            dataset: ctx.dataset.clone(),
            map,
            batches: 0,
            before: 0,
        };
        let sets = hook.sets()?;
        Ok(Poisoned {
            hook: Some(Box::new(hook)),
            ..sets
        })
    }
}

#[test]
fn an_interrupted_run_with_a_hook_ends_with_the_same_bits() {
    let toy = |out: &Path| {
        let mut request = request("drift", out, &[]);
        request.given.set.clear();
        run_with(erase::<Drift>(), &request)
    };
    let (whole, broken) = (folder(), folder());
    FAIL_AFTER.set(usize::MAX);
    let expected = toy(whole.path()).expect("a run");
    assert!(expected.manifest.files.contains_key("drift.txt"));

    // Three steps an epoch: stopped before training, in the first of two epochs and in the second.
    for step in [2, 5] {
        FAIL_BEFORE.set(step);
        let error = toy(broken.path()).expect_err("stopped");
        assert!(error.to_string().starts_with("interrupted"), "{error}");
    }
    FAIL_BEFORE.set(u64::MAX);
    // Three batches an epoch: stopped in the first epoch (no checkpoint yet), in the third, and in the last.
    for batches in [1, 7, 11] {
        FAIL_AFTER.set(batches);
        let error = toy(broken.path()).expect_err("stopped");
        assert!(
            error.to_string().starts_with("training diverged"),
            "{error}"
        );
    }
    FAIL_AFTER.set(usize::MAX);
    let resumed = toy(broken.path()).expect("the rest of the run");
    assert_eq!(resumed.manifest, expected.manifest);
    let log = fs_err::read_to_string(resumed.file("log.jsonl")).expect("a log");
    assert_eq!(log.matches("\"resumed\"").count(), 4);
    assert_eq!(log.matches("epoch 2 of 2: 6 steps").count(), 1);
}

/// A folder of 8 x 8 images with two classes of training and test images for each name.
fn images(names: &[&str]) -> tempfile::TempDir {
    let root = folder();
    for split in ["train", "test"] {
        for (class, name) in names.iter().enumerate() {
            let dir = root.path().join(split).join(name);
            fs_err::create_dir_all(&dir).expect("a writable folder");
            for i in 0..4u8 {
                let level = 40 * class as u8 + i;
                let picture = bb_attack::picture::Picture::new(8, 8, vec![level; 192]);
                fs_err::write(dir.join(format!("{i}.png")), picture.to_png())
                    .expect("a writable folder");
            }
        }
    }
    root
}

#[test]
fn a_target_is_a_number_or_the_name_of_a_class() {
    let (root, out) = (images(&["2", "cat", "dog"]), folder());
    let asked = |target: &str| {
        let mut request = request(
            "badnets",
            out.path(),
            &["train.epochs=0", "ratio=0.5", target],
        );
        request.dataset = "folder".to_owned();
        request.data = Some(root.path().to_owned());
        (request.train_limit, request.test_limit) = (None, None);
        request
    };
    let cell = |target: &str| run(&asked(target)).expect("a run");
    let log =
        |cell: &bb_core::cell::Cell| fs_err::read_to_string(cell.file("log.jsonl")).expect("a log");

    // Numbers and names give the same cell.
    let by_name = cell("target=dog");
    assert_eq!(by_name.manifest.settings["target"], 2);
    assert_eq!(
        by_name.manifest.results["target"],
        serde_json::json!({ "class": 2, "name": "dog" })
    );
    assert_eq!(
        by_name.manifest.results["classes"],
        serde_json::json!(["2", "cat", "dog"])
    );
    assert!(
        log(&by_name).contains("target 2 (`dog`)"),
        "{}",
        log(&by_name)
    );
    let config = fs_err::read_to_string(by_name.file("config.toml")).expect("the settings");
    assert!(config.contains("target = 2\n"), "{config}");
    assert_eq!(cell("target=2").manifest.id, by_name.manifest.id);
    assert_eq!(cell("target=\"dog\"").manifest.id, by_name.manifest.id);
    assert_ne!(cell("target=cat").manifest.id, by_name.manifest.id);

    // A number is a number, also where a class is called so; quoted it is a name.
    let quoted = cell("target=\"2\"");
    assert_eq!(quoted.manifest.settings["target"], 0);
    assert!(log(&quoted).contains("target 0 (`2`)"), "{}", log(&quoted));
    let warning = "the class that is called `2` has number 0, and `target = \\\"2\\\"` means it";
    assert!(!log(&quoted).contains(warning), "{}", log(&quoted));
    let said = log(&{
        fs_err::remove_dir_all(&by_name.dir).expect("a cell");
        cell("target=2")
    });
    assert!(said.contains(warning), "{said}");

    for (target, expect, hint) in [
        (
            "target=dgo",
            "setting `target` is `dgo`, which is no class",
            "did you mean `dog`? the classes are `2`, `cat`, `dog`",
        ),
        (
            "target=",
            "setting `target` is ``, which is no class",
            "the classes are `2`, `cat`, `dog`",
        ),
        (
            "target=\"0\"",
            "setting `target` is `0`, which is no class",
            "the classes are `2`, `cat`, `dog`",
        ),
        ("target=3", "`target` is 3, expected a class of 0..=2", ""),
    ] {
        let error = run(&asked(target)).expect_err("no such class");
        assert_eq!(error.exit_code(), exit::USAGE);
        assert!(error.to_string().contains(expect), "{error}");
        assert_eq!(error.hint().unwrap_or_default(), hint);
    }
}

#[test]
fn known_datasets_have_names_without_their_files() {
    let out = folder();
    let shown = |target: &str| bb_attack::harness::show(&request("badnets", out.path(), &[target]));
    let text = shown("target=ring striped down").expect("a class of the synthetic set");
    assert!(text.contains("target = 7  # --set\n"), "{text}");
    let cell = run(&request(
        "badnets",
        out.path(),
        &["train.epochs=0", "target=ring striped down"],
    ));
    assert_eq!(cell.expect("a run").manifest.settings["target"], 7);
}

#[test]
fn epochs_are_counted_from_one_and_none_at_all_is_told() {
    let out = folder();
    let cell = run(&request("badnets", out.path(), &[])).expect("a run");
    let rows = fs_err::read_to_string(cell.file("metrics.jsonl")).expect("rows");
    let epochs: Vec<usize> = rows
        .lines()
        .map(|row| {
            serde_json::from_str::<bb_attack::harness::MetricsRow>(row)
                .expect("a row")
                .epoch
        })
        .collect();
    assert_eq!(epochs, [1, 2]);
    let log = fs_err::read_to_string(cell.file("log.jsonl")).expect("a log");
    assert!(!log.contains("\"epoch\":0"), "{log}");
    let none = run(&request("badnets", out.path(), &["train.epochs=0"])).expect("a run");
    let log = fs_err::read_to_string(none.file("log.jsonl")).expect("a log");
    assert!(log.contains("`train.epochs` is 0"), "{log}");
}

/// A run with a hook, stopped in its last epoch, of which one file is damaged, ends with the same bits all the same.
#[test]
fn a_damaged_file_of_an_unfinished_run_gives_no_other_result() {
    let toy = |out: &Path| {
        let mut request = request("drift", out, &[]);
        request.given.set.clear();
        run_with(erase::<Drift>(), &request)
    };
    let (whole, broken) = (folder(), folder());
    let expected = toy(whole.path()).expect("a run");
    let inside = expected.dir.strip_prefix(whole.path()).expect("within");
    let cell = broken.path().join(inside);
    FAIL_AFTER.set(11);
    toy(broken.path()).expect_err("it diverges");
    FAIL_AFTER.set(usize::MAX);
    let mut kept = vec![(METRICS.to_owned(), fs_err::read(cell.join(METRICS)))];
    for entry in fs_err::read_dir(cell.join("ckpt")).expect("checkpoints") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_str().expect("UTF-8");
        kept.push((format!("ckpt/{name}"), fs_err::read(&path)));
    }
    let kept: Vec<(String, Vec<u8>)> = kept
        .into_iter()
        .map(|(name, bytes)| (name, bytes.expect("it is there")))
        .collect();
    let has = |name: &str| kept.iter().any(|(kept, _)| kept == name);
    for name in [
        "train.safetensors",
        "train.safetensors.before",
        "hook-3.bin",
        "hook-2.bin",
    ] {
        assert!(has(&format!("ckpt/{name}")), "{name}");
    }
    let resumed = |damaged: &str, bytes: Option<&[u8]>| {
        fs_err::remove_dir_all(&cell).expect("removed");
        fs_err::create_dir_all(cell.join("ckpt")).expect("made");
        for (name, whole) in &kept {
            match (name == damaged, bytes) {
                (true, None) => {}
                (true, Some(bytes)) => fs_err::write(cell.join(name), bytes).expect("written"),
                (false, _) => fs_err::write(cell.join(name), whole).expect("written"),
            }
        }
        let found = toy(broken.path()).expect("a run");
        assert_eq!(found.manifest, expected.manifest, "{damaged}");
        fs_err::read_to_string(found.file("log.jsonl")).expect("a log")
    };
    let log = resumed("nothing", None);
    assert!(
        log.contains("resumed after 3 epochs") && !log.contains("warning"),
        "{log}"
    );
    for (name, bytes) in &kept {
        for place in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[place] ^= 1;
            let log = resumed(name, Some(&flipped));
            let used = ["train.safetensors", "hook-3.bin"];
            if let Some(name) = used.iter().find(|used| name.ends_with(*used)) {
                assert!(log.contains("\"warning\"") && log.contains(name), "{log}");
                assert!(log.contains("resumed after 2 epochs"), "{log}");
            }
        }
        for cut in [0, bytes.len() / 2] {
            resumed(name, Some(&bytes[..cut]));
        }
        resumed(name, None);
    }
}
