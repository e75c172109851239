//! Defenses from the cell of an attack to a cell of their own, in process and through the program.
//!
//! The attack's cell is made here by hand, small: an untrained network of width 4, and a white patch.

mod limits;
mod methods;
mod promises;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use bb_core::cell::{self, Cell, CellSpec, Kind, Opened};
use bb_core::cli::Coded as _;
use bb_core::data::{self, Dataset, Images, OpenOptions};
use bb_core::method::{MethodInfo, Needs, Status};
use bb_core::poison::PoisonSet;
use bb_core::precision::Precision;
use bb_core::settings::{Layers, Resolved, SettingsError, Valid, Validate};
use bb_defense::context::{At, Ctx};
use bb_defense::data::{CleanImages, NoImages};
use bb_defense::method::{AnyDefense, Candidate, Defense, Given, Repaired, Suspect};
use bb_defense::results::Results;
use bb_defense::tsbd::Tsbd;
use bb_defense::tsbd::config::TsbdConfig;
use bb_defense::{DefenseError, DefenseRequest, run};
use bb_nn::kernels::precision::supported;
use bb_nn::{ArchSpec, Compute, Net, StateDict};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

const WIDTH: usize = 4;
const TRAIN: usize = 300;
const TEST: usize = 60;

/// Settings under which TSBD takes a second or so, and each stage has something to do.
const QUICK: [&str; 9] = [
    "clean.ratio=0.1",
    "unlearn.lr=0.01",
    "unlearn.max_epochs=2",
    "unlearn.stop_accuracy=0",
    "unlearn.stop_constant=false",
    "unlearn.batch_size=16",
    "finetune.batch_size=16",
    "finetune.epochs=3",
    "probe_every=2",
];

fn dataset() -> Dataset {
    let options = OpenOptions {
        train_limit: Some(TRAIN),
        test_limit: Some(TEST),
        ..OpenOptions::default()
    };
    data::open("synthetic", None, &options).expect("the synthetic data need no file")
}

/// An attack's cell that tests may spoil before it is complete.
struct Draft {
    spec: CellSpec,
    files: BTreeMap<&'static str, Vec<u8>>,
}

impl Draft {
    fn new() -> Self {
        let dataset = dataset();
        let arch =
            ArchSpec::new("preactresnet18", WIDTH, dataset.spec.classes).expect("a small network");
        let state = Net::new(&arch, 0).state().expect("a state");
        let spec = CellSpec {
            kind: Kind::Attack,
            method: "patch".to_owned(),
            dataset: "synthetic".to_owned(),
            arch: arch.label(),
            settings: json!({
                "data": { "dataset": "synthetic", "train_limit": TRAIN, "test_limit": TEST },
                "model": { "arch": arch.name(), "width": WIDTH, "classes": dataset.spec.classes },
            }),
            inputs: BTreeMap::from([("dataset".to_owned(), dataset.digest.clone())]),
            seed: 0,
        };
        let files = BTreeMap::from([
            (
                "model.safetensors",
                state.to_bytes(&BTreeMap::new()).expect("finite"),
            ),
            ("poison_test.safetensors", poisoned(&dataset).to_bytes()),
        ]);
        Self { spec, files }
    }

    fn write(&self, out: &Path) -> Cell {
        let Opened::Work(work) = cell::open(out, &self.spec).expect("a fresh folder") else {
            panic!("the cell is there already");
        };
        for (name, bytes) in &self.files {
            work.write(name, bytes).expect("written");
        }
        work.finish(json!({})).expect("complete")
    }
}

/// The test images whose class is not 0, with a white corner.
fn poisoned(dataset: &Dataset) -> PoisonSet {
    let test = &dataset.test;
    let indices: Vec<usize> = (0..test.len()).filter(|&i| test.labels[i] != 0).collect();
    let (h, w) = (test.images.height(), test.images.width());
    let mut pixels = test.images.select(&indices).as_bytes().to_vec();
    for image in pixels.chunks_exact_mut(h * w * 3) {
        for row in image.chunks_exact_mut(w * 3).skip(h.saturating_sub(3)) {
            row[w.saturating_sub(3) * 3..].fill(255);
        }
    }
    let original_labels = indices.iter().map(|&i| test.labels[i]).collect();
    let images = Images::new(indices.len(), h, w, pixels).expect("the length fits");
    PoisonSet::new(
        indices.clone(),
        images,
        vec![0; indices.len()],
        original_labels,
    )
    .expect("parts of one length")
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn request(
    defense: &'static dyn AnyDefense,
    model: &Path,
    out: &Path,
    set: &[&str],
) -> DefenseRequest {
    DefenseRequest {
        defense,
        model: model.to_owned(),
        data: None,
        given: Given {
            files: Vec::new(),
            set: set.iter().map(|&s| s.to_owned()).collect(),
        },
        precision: Precision::F32,
        compute: Compute::Cpu,
        seed: 0,
        out: out.to_owned(),
        cache: None,
        quiet: true,
    }
}

fn quick(more: &[&'static str]) -> Vec<&'static str> {
    QUICK.iter().chain(more).copied().collect()
}

fn results(cell: &Cell) -> Results {
    serde_json::from_value(cell.manifest.results.clone()).expect("the results of a defense")
}

fn rows(cell: &Path) -> Vec<Value> {
    let text = fs_err::read_to_string(cell.join("metrics.jsonl")).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect()
}

fn bytes(cell: &Cell, name: &str) -> Vec<u8> {
    fs_err::read(cell.file(name)).unwrap_or_else(|error| panic!("{error}"))
}

/// The program, with the settings of [`QUICK`].
fn program(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bb-defense"));
    command.args(words).env_remove("NO_COLOR");
    command
}

fn tsbd(model: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = program(&["tsbd", "--quiet", "--model"]);
    command.arg(model).arg("--out").arg(out);
    for setting in QUICK.iter().chain(more) {
        command.args(["--set", setting]);
    }
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[track_caller]
fn check_failure(output: &Output, code: i32, stderr: &str) {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(stderr), "`{stderr}` is not in:\n{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
}

#[test]
fn a_repaired_cell_is_complete_and_says_what_happened() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let cell = run(&request(&Tsbd, &attack.dir, out.path(), &quick(&[]))).expect("repaired");

    let manifest = &cell.manifest;
    assert_eq!(
        (manifest.kind, manifest.method.as_str()),
        (Kind::Defense, "tsbd")
    );
    assert_eq!(
        (&manifest.dataset, &manifest.arch),
        (&attack.manifest.dataset, &attack.manifest.arch)
    );
    assert_eq!(manifest.inputs["attack"], attack.digest());
    let names: Vec<&str> = manifest.files.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "activeness.csv",
            "config.toml",
            "metrics.jsonl",
            "model.safetensors",
            "nwc.csv"
        ]
    );
    assert!(!cell.file("ckpt").exists());
    let env = fs_err::read_to_string(cell.file("env.json")).expect("the machine");
    let env: Value = serde_json::from_str(&env).expect("JSON");
    assert_eq!(env["device"], "cpu");

    let found = results(&cell);
    let clean = found.clean.expect("a budget");
    assert_eq!((clean.images, clean.of), (TRAIN / 10, TRAIN));
    assert_eq!(
        (found.before.acc.total, found.before.asr.total),
        (TEST as u64, 54)
    );
    assert_eq!(
        (found.chosen.as_str(), found.oracle, found.candidates.len()),
        ("n=0.15", None, 1)
    );
    assert_eq!(
        (&found.after, found.der),
        (&found.candidates[0].scores, found.candidates[0].der)
    );

    let stages: Vec<String> = rows(&cell.dir)
        .iter()
        .map(|row| {
            format!(
                "{}{}",
                row["stage"].as_str().expect("a stage"),
                row["epoch"]
            )
        })
        .collect();
    // Epochs 1 and 3 are due for a measurement, and the last one of them is measured as the final model.
    let expected = [
        "suspectnull",
        "unlearn1",
        "unlearn2",
        "reinitnull",
        "reinitnull",
        "finetune1",
        "finetune1",
    ];
    assert_eq!(stages[..7], expected);
    assert_eq!(stages[7..], ["finetune2", "finetune3", "finalnull"]);

    // Width 4 has 17 target layers of 4, 8, 16 and 32 channels.
    assert_eq!(found.notes["target_layers"], 17);
    let neurons = found.notes["target_neurons"].as_u64().expect("a count");
    assert_eq!(neurons, 3904 / 16);
    let notes = &found.candidates[0].notes;
    assert_eq!(notes["neurons"], (neurons as f64 * 0.15) as u64);
    assert!(notes["zeroed"].as_u64() >= notes["requested"].as_u64());
    assert_eq!(
        text(&bytes(&cell, "nwc.csv")).lines().count() as u64,
        neurons + 1
    );
    assert_eq!(
        text(&bytes(&cell, "activeness.csv")).lines().count(),
        8 * WIDTH + 1
    );

    // Asked again, the complete cell is found and not touched.
    let before = fs_err::metadata(cell.file("manifest.json"))
        .and_then(|m| m.modified())
        .expect("a time");
    let again = run(&request(&Tsbd, &attack.dir, out.path(), &quick(&[]))).expect("complete");
    assert_eq!(again.manifest, cell.manifest);
    assert_eq!(
        fs_err::metadata(cell.file("manifest.json"))
            .and_then(|m| m.modified())
            .expect("a time"),
        before
    );
}

#[test]
fn a_sweep_has_a_choice_and_an_oracle() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let of = |set: &[&'static str]| {
        run(&request(&Tsbd, &attack.dir, out.path(), &quick(set))).expect("repaired")
    };
    // With full tolerance the choice is the largest ratio.
    let swept = ["sweep=true", "sweep_ratios=[0.05, 0.4]"];
    let held = ["select.choose=held-out", "select.tolerance=1.0"];
    let sweep = of(&[swept[0], swept[1], held[0], held[1]]);
    let found = results(&sweep);
    let names: Vec<&str> = found
        .candidates
        .iter()
        .map(|candidate| candidate.name.as_str())
        .collect();
    assert_eq!(
        (names.as_slice(), found.chosen.as_str()),
        (["n=0.05", "n=0.4"].as_slice(), "n=0.4")
    );
    for candidate in &found.candidates {
        assert_eq!(
            candidate.notes["held_out"]["total"],
            TRAIN / 50,
            "a fifth of the clean images"
        );
    }
    let oracle = found.oracle.expect("two candidates");
    assert!(
        found
            .candidates
            .iter()
            .all(|candidate| candidate.der <= oracle.der)
    );
    assert!(sweep.file("oracle.safetensors").exists());
    assert!(
        rows(&sweep.dir)
            .iter()
            .any(|row| row["stage"] == "select" && row["held_out_acc"].is_number())
    );

    // The chosen model is that of a run with this ratio alone.
    let alone = of(&["reinit.n=0.4"]);
    assert_eq!(
        bytes(&alone, "model.safetensors"),
        bytes(&sweep, "model.safetensors")
    );
    assert_eq!(results(&alone).after, found.after);
    assert_ne!(alone.manifest.id, sweep.manifest.id);

    // A fixed ratio stays the choice, and is among the models although the sweep does not name it.
    let fixed = of(&[swept[0], swept[1], "reinit.n=0.2"]);
    let found = results(&fixed);
    let names = found.candidates.iter().map(|candidate| &candidate.name[..]);
    assert_eq!(names.collect::<Vec<_>>(), ["n=0.05", "n=0.2", "n=0.4"]);
    assert_eq!(found.chosen, "n=0.2");
    let rated = found.candidates.iter().map(|candidate| candidate.der);
    let best = rated.max_by(|a, b| a.partial_cmp(b).expect("numbers"));
    assert_eq!(Some(found.oracle.expect("three models").der), best);
    assert!(rows(&fixed.dir).iter().all(|row| row["stage"] != "select"));
}

#[test]
fn unlearning_stops_at_its_threshold() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let set = quick(&["unlearn.stop_accuracy=1.0", "finetune.epochs=0"]);
    let cell = run(&request(&Tsbd, &attack.dir, out.path(), &set)).expect("repaired");
    let found = results(&cell);
    assert_eq!(
        (
            &found.notes["unlearn"]["epochs"],
            &found.notes["unlearn"]["reached"]
        ),
        (&json!(1), &json!(true))
    );
    // Without fine-tuning the result is the suspect model with some weights cleared, and its running statistics.
    let state = StateDict::load(&cell.file("model.safetensors")).expect("a model");
    let suspect = StateDict::load(&attack.file("model.safetensors")).expect("a model");
    let mut cleared = 0;
    for (name, tensor) in suspect.iter() {
        if tensor.rank() == 0 {
            continue;
        }
        let before = suspect.floats(name).expect("a tensor").expect("floats");
        let after = state
            .floats(name)
            .expect("the same tensor")
            .expect("floats");
        let changed = before
            .iter()
            .zip(&after)
            .filter(|(before, after)| before.to_bits() != after.to_bits());
        cleared += changed
            .inspect(|(_, after)| assert_eq!(after.to_bits(), 0, "{name}"))
            .count();
    }
    assert_eq!(json!(cleared), found.candidates[0].notes["zeroed"]);
}

#[test]
fn the_harness_changes_nothing_about_a_method() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let cell = run(&request(&Tsbd, &attack.dir, out.path(), &quick(&[]))).expect("repaired");

    let text = fs_err::read_to_string(cell.file("config.toml")).expect("the settings");
    let layers = Layers::new(&TsbdConfig::default())
        .toml_text("config.toml", &text)
        .expect("known settings");
    let cfg = layers
        .resolve::<TsbdConfig>()
        .and_then(Resolved::valid)
        .expect("valid settings")
        .value;
    let dataset = dataset();
    let clean = dataset
        .train
        .select(&cfg.clean.indices(TRAIN).expect("a draw"));
    let arch =
        ArchSpec::new("preactresnet18", WIDTH, dataset.spec.classes).expect("a small network");
    let state = StateDict::load(&attack.file("model.safetensors")).expect("a model");
    let clean = CleanImages::from_split(clean);
    let suspect = Suspect::new(&arch, &dataset.spec, &state, &clean);
    let repaired = Tsbd::repair(&cfg, suspect, &mut Ctx::detached(0)).expect("repaired");
    let own = StateDict::load(&cell.file("model.safetensors")).expect("a model");
    let plain = |state: &StateDict| state.to_bytes(&BTreeMap::new()).expect("finite");
    assert_eq!(
        plain(&repaired.candidates[repaired.chosen].state),
        plain(&own)
    );
}

#[test]
fn the_settings_change_the_result() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let repair = |more: &[&'static str]| {
        let short = [&["unlearn.max_epochs=1", "finetune.epochs=1"], more].concat();
        let cell = run(&request(&Tsbd, &attack.dir, out.path(), &quick(&short))).expect("repaired");
        bytes(&cell, "model.safetensors")
    };
    let plain = repair(&[]);
    let changes: [&'static str; 12] = [
        "finetune.norm=global",
        "finetune.refresh_bn=false",
        "finetune.alpha=0.0",
        "finetune.shuffle=true",
        "finetune.augment=false",
        "reinit.scheme=v1",
        "reinit.scheme=v2",
        "reinit.m=0.2",
        "unlearn.shuffle=true",
        "unlearn.augment=false",
        "clean.seed=1",
        "layers.exclude=[\"layer4\", \"shortcut\"]",
    ];
    for change in changes {
        assert_ne!(repair(&[change]), plain, "{change}");
    }
    // These are only about what is recorded.
    for record in ["record_layer=\"\"", "probe_every=0"] {
        assert_eq!(repair(&[record]), plain, "{record}");
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a test that did not run must say so")]
fn bf16_is_a_cell_of_its_own_and_changes_the_result() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let plain = request(&Tsbd, &attack.dir, out.path(), &quick(&[]));
    let bf16 = DefenseRequest {
        precision: Precision::Bf16,
        ..plain.clone()
    };
    if supported(Precision::Bf16).is_err() {
        eprintln!("not trained: this processor lacks bf16");
        let error = run(&bf16).expect_err("it cannot be trained");
        assert!(error.to_string().starts_with("precision `bf16` needs"));
        assert_eq!(error.exit_code(), 2);
        assert!(!out.path().join("defense").exists(), "nothing was begun");
        return;
    }
    let (plain, bf16) = (
        run(&plain).expect("repaired"),
        run(&bf16).expect("repaired"),
    );
    for (cell, precision) in [(&plain, "f32"), (&bf16, "bf16")] {
        let compute = &cell.manifest.settings["compute"];
        assert_eq!(*compute, json!({ "precision": precision }));
    }
    assert_ne!(plain.manifest.id, bf16.manifest.id);
    assert_ne!(
        bytes(&plain, "model.safetensors"),
        bytes(&bf16, "model.safetensors")
    );
    // The suspect model is only measured, which nothing but its weights decides.
    assert_eq!(results(&plain).before, results(&bf16).before);
}

#[test]
fn the_same_bits_twice_and_with_any_number_of_threads() {
    let places = [folder(), folder(), folder()];
    let attack = Draft::new().write(places[0].path());
    let manifests = ["1", "2", "2"].iter().zip(&places).map(|(threads, place)| {
        let mut command = tsbd(
            &attack.dir,
            place.path(),
            &["sweep=true", "sweep_ratios=[0.1, 0.3]"],
        );
        let output = command
            .args(["--threads", threads])
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        let line: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
        assert_eq!(text(&output.stdout).lines().count(), 1);
        let dir = PathBuf::from(line["cell"].as_str().expect("a folder"));
        (
            fs_err::read(dir.join("manifest.json")).expect("a manifest"),
            line["after"].clone(),
        )
    });
    let manifests: Vec<_> = manifests.collect();
    assert!(manifests.windows(2).all(|pair| pair[0] == pair[1]));
}

/// Checkpoints build on one another, so that of a damaged one nothing is gone on from.
#[test]
fn a_damaged_file_of_a_killed_run_gives_no_other_result() {
    let (whole, broken) = (folder(), folder());
    let attack = Draft::new().write(whole.path());
    let more = ["finetune.epochs=20"];
    let run = |out: &Path| {
        let output = tsbd(&attack.dir, out, &more).output().expect("it runs");
        assert!(output.status.success(), "{}", text(&output.stderr));
        let line: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
        PathBuf::from(line["cell"].as_str().expect("a folder"))
    };
    let reference = run(whole.path());
    let read = |cell: &Path, name: &str| fs_err::read(cell.join(name)).expect("it is there");
    let manifest =
        |cell: &Path| fs_err::read_to_string(cell.join("manifest.json")).expect("a manifest");
    let inside = reference.strip_prefix(whole.path());
    let cell = broken.path().join(inside.expect("below the output folder"));

    let mut child = tsbd(&attack.dir, broken.path(), &more)
        .spawn()
        .expect("it runs");
    let row = "\"stage\":\"finetune\"";
    let begun = || {
        let rows = fs_err::read_to_string(cell.join("metrics.jsonl")).unwrap_or_default();
        rows.matches(row).count() > 2
    };
    while !begun() {
        let ended = child.try_wait().expect("a child");
        assert!(ended.is_none(), "it ended before it was killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("killed");
    child.wait().expect("a child");

    let mut kept = vec![("metrics.jsonl".to_owned(), read(&cell, "metrics.jsonl"))];
    for entry in fs_err::read_dir(cell.join("ckpt")).expect("checkpoints") {
        let name = entry.expect("an entry").file_name();
        let name = format!("ckpt/{}", name.to_str().expect("UTF-8"));
        if name.ends_with(".safetensors") {
            let content = read(&cell, &name);
            kept.push((name, content));
        }
    }
    assert!(kept.len() > 3, "of several stages");
    let resumed = |damaged: &str, content: &[u8]| {
        fs_err::remove_dir_all(&cell).expect("removed");
        fs_err::create_dir_all(cell.join("ckpt")).expect("made");
        for (name, whole) in &kept {
            let content = if name == damaged { content } else { whole };
            fs_err::write(cell.join(name), content).expect("written");
        }
        assert_eq!(
            manifest(&run(broken.path())),
            manifest(&reference),
            "{damaged}"
        );
        text(&read(&cell, "log.jsonl"))
    };
    let log = resumed("nothing", &[]);
    assert!(
        log.contains("\"resumed\"") && !log.contains("anew"),
        "{log}"
    );
    for (name, content) in &kept {
        let mut flipped = content.clone();
        flipped[content.len() / 3] ^= 1;
        for content in [&flipped[..], &content[..content.len() / 2]] {
            let log = resumed(name, content);
            assert!(log.contains("the run begins anew"), "{name}: {log}");
            assert!(!log.contains("\"resumed\""), "{name}: {log}");
        }
    }
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let (whole, broken) = (folder(), folder());
    let attack = Draft::new().write(whole.path());
    let more = ["sweep=true", "sweep_ratios=[0.1, 0.3]", "finetune.epochs=6"];
    let expected = tsbd(&attack.dir, whole.path(), &more)
        .output()
        .expect("it runs");
    assert!(expected.status.success(), "{}", text(&expected.stderr));
    let place = |output: &Output| {
        let line: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
        PathBuf::from(line["cell"].as_str().expect("a folder"))
    };
    let reference = place(&expected);
    let total = rows(&reference).len();
    let cell = broken.path().join(
        reference
            .strip_prefix(whole.path())
            .expect("below the output folder"),
    );

    // Each run is killed as soon as it has come a bit further than the one before.
    let mut kills = 0;
    for goal in (1..total).step_by(5) {
        let mut child = tsbd(&attack.dir, broken.path(), &more)
            .spawn()
            .expect("it runs");
        let ended = loop {
            if let Some(status) = child.try_wait().expect("a child") {
                break Some(status);
            }
            let count = fs_err::read_to_string(cell.join("metrics.jsonl"))
                .map_or(0, |text| text.lines().count());
            if count >= goal {
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        match ended {
            Some(status) => assert!(status.success()),
            None => kills += 1,
        }
        child.kill().expect("killed");
        child.wait().expect("a child");
    }
    assert!(
        kills > 3,
        "only {kills} of the runs were still going when they should be killed"
    );
    let resumed = tsbd(&attack.dir, broken.path(), &more)
        .output()
        .expect("it runs");
    assert!(resumed.status.success(), "{}", text(&resumed.stderr));
    assert_eq!(place(&resumed), cell);
    let manifest =
        |cell: &Path| fs_err::read_to_string(cell.join("manifest.json")).expect("a manifest");
    assert_eq!(manifest(&cell), manifest(&reference));
}

#[test]
fn each_bad_cell_is_one_clear_error() {
    let classes = 10;
    let nan_at = |bytes: &mut Vec<u8>| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    let cases: Vec<(&str, u8, Draft)> = vec![
        ("has no `poison_test.safetensors`", 3, {
            let mut draft = Draft::new();
            draft.files.remove("poison_test.safetensors");
            draft
        }),
        ("has no `model.safetensors`", 3, {
            let mut draft = Draft::new();
            draft.files.remove("model.safetensors");
            draft
        }),
        ("holds the result of a defense, expected an attack's", 3, {
            let mut draft = Draft::new();
            draft.spec.kind = Kind::Defense;
            draft
        }),
        ("`settings.model.width` is missing in `", 3, {
            let mut draft = Draft::new();
            draft.spec.settings["model"] = json!({ "arch": "preactresnet18" });
            draft
        }),
        ("`settings.model.arch` is missing in `", 3, {
            let mut draft = Draft::new();
            draft.spec.settings = json!({});
            draft
        }),
        ("`settings.data.train_limit` is \"all\" in `", 3, {
            let mut draft = Draft::new();
            draft.spec.settings["data"]["train_limit"] = json!("all");
            draft
        }),
        ("expected a whole number from 1 to 10000000", 3, {
            let mut draft = Draft::new();
            draft.spec.settings["data"]["train_limit"] = json!(1_u64 << 63);
            draft
        }),
        ("`settings.data.test_limit` is 0 in `", 3, {
            let mut draft = Draft::new();
            draft.spec.settings["data"]["test_limit"] = json!(0);
            draft
        }),
        (
            "1000000 training images of `synthetic`, expected at most 15000",
            3,
            {
                let mut draft = Draft::new();
                draft.spec.settings["data"]["train_limit"] = json!(1_000_000);
                draft
            },
        ),
        ("`settings.model.width` is 513 in `", 3, {
            let mut draft = Draft::new();
            draft.spec.settings["model"]["width"] = json!(513);
            draft
        }),
        ("holds no valid set of poisoned images", 3, {
            // Each image is to be taken for what it shows, which any good network does.
            let mut draft = Draft::new();
            let mut set = poisoned(&dataset());
            set.labels.clone_from(&set.original_labels);
            draft
                .files
                .insert("poison_test.safetensors", set.to_bytes());
            draft
        }),
        ("unknown architecture `vgg99`", 3, {
            let mut draft = Draft::new();
            draft.spec.settings["model"]["arch"] = json!("vgg99");
            draft
        }),
        (
            "/model.safetensors` cannot be used: tensor `conv1.weight` has shape [4, 3, 3, 3], expected [8, 3, 3, 3]",
            3,
            {
                let mut draft = Draft::new();
                draft.spec.settings["model"]["width"] = json!(8);
                draft
            },
        ),
        ("unknown dataset `cifar11`", 2, {
            let mut draft = Draft::new();
            draft.spec.dataset = "cifar11".to_owned();
            draft
        }),
        (
            "dataset `synthetic` is not the one of the attack: digest",
            3,
            {
                let mut draft = Draft::new();
                draft.spec.settings["data"]["train_limit"] = json!(TRAIN - 1);
                draft
            },
        ),
        ("`inputs.dataset` is missing in `", 3, {
            let mut draft = Draft::new();
            draft.spec.inputs.clear();
            draft
        }),
        (
            "/model.safetensors` cannot be used: tensor `linear.weight` holds NaN or an infinity",
            3,
            {
                let mut draft = Draft::new();
                draft.files.entry("model.safetensors").and_modify(nan_at);
                draft
            },
        ),
        ("is not a valid safetensors file", 3, {
            let mut draft = Draft::new();
            draft
                .files
                .insert("model.safetensors", b"<html>not found</html>".to_vec());
            draft
        }),
        ("holds no valid set of poisoned images", 3, {
            let mut draft = Draft::new();
            draft
                .files
                .entry("poison_test.safetensors")
                .and_modify(|bytes| bytes.truncate(100));
            draft
        }),
        ("does not fit the dataset: its true label is", 3, {
            let mut draft = Draft::new();
            let mut set = poisoned(&dataset());
            set.original_labels[5] = (set.original_labels[5] + 1) % classes;
            draft
                .files
                .insert("poison_test.safetensors", set.to_bytes());
            draft
        }),
        ("holds no valid set of poisoned images", 3, {
            let mut draft = Draft::new();
            let mut set = poisoned(&dataset());
            set.indices[0] = TEST;
            draft
                .files
                .insert("poison_test.safetensors", set.to_bytes());
            draft
        }),
        ("has images of (16, 64) pixels, expected (32, 32)", 3, {
            let mut draft = Draft::new();
            let mut set = poisoned(&dataset());
            set.images = Images::new(set.len(), 16, 64, set.images.as_bytes().to_vec())
                .expect("as many bytes");
            draft
                .files
                .insert("poison_test.safetensors", set.to_bytes());
            draft
        }),
    ];
    for (expected, code, draft) in cases {
        let out = folder();
        let cell = draft.write(out.path());
        let error = run(&request(&Tsbd, &cell.dir, out.path(), &quick(&[]))).expect_err(expected);
        assert!(
            error.to_string().contains(expected),
            "`{expected}` is not in `{error}`"
        );
        assert_eq!(error.exit_code(), code, "{error}");
    }
}

#[test]
fn a_spoilt_or_locked_cell_is_refused() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let cell = run(&request(&Tsbd, &attack.dir, out.path(), &quick(&[]))).expect("repaired");

    // A complete cell whose file was changed is never taken for good.
    fs_err::write(cell.file("nwc.csv"), "tampered").expect("written");
    let error =
        run(&request(&Tsbd, &attack.dir, out.path(), &quick(&[]))).expect_err("a changed file");
    assert_eq!(error.exit_code(), 3, "{error}");

    let spec = CellSpec {
        seed: 1,
        ..cell.manifest.spec()
    };
    let Opened::Work(_lock) = cell::open(out.path(), &spec).expect("a fresh folder") else {
        panic!("a fresh cell")
    };
    let locked = tsbd(&attack.dir, out.path(), &[])
        .args(["--seed", "1"])
        .output()
        .expect("it runs");
    check_failure(&locked, 75, "is locked by process");

    fs_err::write(attack.file("model.safetensors"), "tampered").expect("written");
    let error =
        run(&request(&Tsbd, &attack.dir, out.path(), &quick(&[]))).expect_err("a changed model");
    assert_eq!(error.exit_code(), 3, "{error}");
}

#[test]
fn each_wrong_command_is_one_clear_error() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let cases: &[(&[&str], i32, &str)] = &[
        (
            &["--set", "unlearn.learning_rate=1"],
            2,
            "unknown setting `unlearn.learning_rate`",
        ),
        (
            &["--set", "unlearn.learning_rate=1"],
            2,
            "hint: did you mean `unlearn.lr`?",
        ),
        (
            &["--set", "finetune.epochs=many"],
            2,
            "setting `finetune.epochs` expects an integer",
        ),
        (
            &["--set", "reinit.n=2.0"],
            2,
            "setting `reinit.n` is `2`, expected a share of 0 to 1",
        ),
        (
            &["--set", "clean.ratio=0.001"],
            2,
            "`clean.ratio` 0.001 of 300 training images gives no clean image",
        ),
        (
            &["--set", "record_layer=layer9.weight"],
            2,
            "names the tensor `layer9.weight`",
        ),
        (
            &["--set", "layers.exclude=[\"conv\", \"shortcut\"]"],
            3,
            "the model has no target layer",
        ),
        (
            &[
                "--set",
                "sweep=true",
                "--set",
                "select.choose=held-out",
                "--set",
                "select.hold_out=0.001",
            ],
            2,
            "are too few to hold out 0.001 of them",
        ),
        (&["--set", "unlearn.lr=1e30"], 4, "unlearn diverged"),
        (
            &["--dataset", "cifar10"],
            2,
            "`--dataset cifar10` does not fit the suspect model, which has `synthetic`",
        ),
        (&["--width", "64"], 2, "hint: leave `--width` out"),
        #[cfg(not(feature = "cuda"))]
        (
            &["--device", "cuda:0"],
            2,
            "this build runs on the CPU only",
        ),
    ];
    for (words, code, stderr) in cases {
        let output = tsbd(&attack.dir, out.path(), &[])
            .args(*words)
            .output()
            .expect("it runs");
        check_failure(&output, *code, stderr);
    }
    let missing = program(&["tsbd", "--model", "no/such/cell"])
        .output()
        .expect("it runs");
    check_failure(
        &missing,
        3,
        "`no/such/cell` is neither the folder of a cell nor its `manifest.json`",
    );
    let unknown = program(&["tsdb", "--model", "x"])
        .output()
        .expect("it runs");
    check_failure(
        &unknown,
        2,
        "unknown defense `tsdb`, known are `ft`, `fp`, `nad`, `nc`, `anp`, `clp`, `ibau`, `rnp`, `tsbd`, `otbr`, `ulrl`",
    );
}

#[test]
fn list_show_and_show_config_tell_what_there_is() {
    let says = |command: &mut Command| {
        let output = command.output().expect("it runs");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{}",
            text(&output.stderr)
        );
        text(&output.stdout)
    };
    let list = says(&mut program(&["list"]));
    assert!(list.contains("tsbd  clears the weights"), "{list}");
    let show = says(&mut program(&["show", "tsbd"]));
    for part in [
        "# TSBD: two-stage backdoor defense",
        "## Differences from the authors' code",
        "scheme = \"v3\"",
    ] {
        assert!(show.contains(part), "{show}");
    }
    let out = folder();
    let attack = Draft::new().write(out.path());
    let config = says(tsbd(&attack.dir, out.path(), &[]).arg("--show-config"));
    assert!(config.contains("lr = 0.01  # --set\n"), "{config}");
    assert!(
        config.contains("n = 0.15  # recipe configs/defense/tsbd/synthetic.toml\n"),
        "{config}"
    );
    assert!(config.contains("decimals = 4  # defaults\n"), "{config}");
    for line in [
        "# dataset = \"synthetic\"  # of the model\n",
        "# seed = 0  # default\n",
    ] {
        assert!(config.contains(line), "{config}");
    }
    // What a run refuses, it refuses with the same words.
    for (words, code, expect) in [
        (
            &["--arch", "vgg19_bn"][..],
            2,
            "does not fit the suspect model",
        ),
        (
            &["--seed", "-1"],
            2,
            "a whole number from 0 to 18446744073709551615",
        ),
        (&["--device", "gpu"], 2, "did you mean `cuda:0`?"),
        (
            &["--set", "unlearn.max_epochs=-1"],
            2,
            "a whole number of at least 0",
        ),
        (&["-c", "absent.toml"], 3, "absent.toml"),
    ] {
        let said = [&[][..], &["--show-config"]].map(|show| {
            let mut command = tsbd(&attack.dir, out.path(), &[]);
            let output = command.args(words).args(show).output().expect("it starts");
            check_failure(&output, code, expect);
            text(&output.stderr)
        });
        assert_eq!(said[0], said[1], "{words:?}");
    }
    let clp = program(&["clp", "--precision", "bf16", "--model"])
        .arg(&attack.dir)
        .output()
        .expect("it starts");
    let expect = "`--precision bf16` does nothing here, because CLP trains no network";
    check_failure(&clp, 2, expect);
    assert!(!out.path().join("defense").exists(), "nothing was run");
}

/// A defense as another crate would bring it: without data, it halves the classifier.
struct Halve;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HalveConfig {
    twice: bool,
    same_name: bool,
}

impl Validate for HalveConfig {
    fn validate(&self) -> Result<(), SettingsError> {
        Ok(())
    }
}

impl Defense for Halve {
    const INFO: MethodInfo = MethodInfo {
        id: "halve",
        title: "Halve",
        paper: "none",
        needs: Needs::DataFree,
        status: Status::Experimental,
        summary: "halves the classifier",
        docs: "",
    };
    type Data = NoImages;
    type Config = HalveConfig;

    fn repair(
        cfg: &Valid<HalveConfig>,
        suspect: Suspect<'_, NoImages>,
        ctx: &mut Ctx<'_>,
    ) -> Result<Repaired, DefenseError> {
        // A measurement gives nothing back that could be acted on.
        let probe: fn(&mut Ctx<'_>, At<'_>, &mut Net) = |ctx, at, net| ctx.probe(at, net);
        let mut candidates = Vec::new();
        for (factor, name) in [(0.5, "half"), (0.25, "quarter")] {
            let mut net = suspect.net()?;
            let tensor = net
                .params()
                .layout()
                .position("linear.weight")
                .expect("a classifier");
            net.params_mut()
                .tensor_mut(tensor)
                .iter_mut()
                .for_each(|weight| *weight *= factor);
            probe(ctx, At::stage("halve").variant(name), &mut net);
            let name = if cfg.same_name { "same" } else { name };
            candidates.push(Candidate {
                name: name.to_owned(),
                state: net.state()?,
                notes: json!({}),
            });
        }
        if !cfg.twice && !cfg.same_name {
            return Ok(Repaired::single(candidates.remove(0).state));
        }
        Ok(Repaired {
            candidates,
            chosen: 0,
            artefacts: Vec::new(),
            notes: json!({}),
        })
    }
}

#[test]
fn a_defense_of_another_crate_runs_in_the_same_harness() {
    let extra: [&'static dyn AnyDefense; 1] = [&Halve];
    let halve = bb_defense::registry::find("halve", &extra).expect("it was brought along");
    assert_eq!(
        bb_defense::registry::all(&extra).len(),
        bb_defense::registry::DEFENSES.len() + 1
    );
    let out = folder();
    let attack = Draft::new().write(out.path());

    let single = run(&request(halve, &attack.dir, out.path(), &[])).expect("repaired");
    let found = results(&single);
    assert_eq!(
        (found.chosen.as_str(), found.clean, found.oracle),
        ("repaired", None, None)
    );
    assert_eq!(rows(&single.dir).len(), 1 + 2 + 1);

    let twice = run(&request(halve, &attack.dir, out.path(), &["twice=true"])).expect("repaired");
    let found = results(&twice);
    let names: Vec<&str> = found
        .candidates
        .iter()
        .map(|candidate| candidate.name.as_str())
        .collect();
    assert_eq!(names, ["half", "quarter"]);
    assert!(names.contains(&found.oracle.expect("two candidates").name.as_str()));

    let error = run(&request(
        halve,
        &attack.dir,
        out.path(),
        &["same_name=true"],
    ))
    .expect_err("one name");
    assert_eq!(
        (error.to_string().as_str(), error.exit_code()),
        ("the method gave two models the name `same`", 101)
    );
}
