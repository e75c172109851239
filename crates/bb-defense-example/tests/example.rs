//! The example from a grid to a table, and what holds for any defense: same bits twice, resumed or not.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bb_core::cell::{Cell, Kind};
use bb_core::cli::Coded as _;
use bb_defense::method::{AnyDefense as _, Given};
use bb_defense::registry::faults;
use bb_defense::results::Results;
use bb_defense_example::NormPrune;
use bb_nn::StateDict;

/// One attack, and the example with thresholds that prune at this width.
const GRID: &str = "\
[grid]
name = \"tiny\"
dataset = \"synthetic\"
width = 4
seeds = [0]
train_limit = 200
test_limit = 50

[[attack]]
method = \"badnets\"
set = { train = { epochs = 1, batch_size = 20 } }

[[defense]]
method = \"norm-prune\"
set = { clean.ratio = 0.2, deviations = [1.5, 1.0, 0.5], tolerance = 1.0 }
";

fn program(folder: &Path, words: &[&str]) -> Command {
    fs_err::write(folder.join("grid.toml"), GRID).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_bb-defense-example"));
    command
        .args(words)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null());
    command
}

fn run(folder: &Path, out: &str) -> String {
    let output: Output = program(folder, &["run", "grid.toml", "--quiet", "--store", out])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).expect("text")
}

/// The cells of a kind below a folder of results.
fn cells(out: &Path, kind: Kind) -> Vec<Cell> {
    let mut folders = vec![out.join(kind.as_str())];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs_err::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.join("manifest.json").is_file() {
                found.push(Cell::load(&path).expect("complete"));
            } else if path.is_dir() {
                folders.push(path);
            }
        }
    }
    found
}

#[test]
fn it_says_what_it_is_and_checks_its_settings() {
    assert_eq!(faults(&NormPrune), Vec::<String>::new());
    for (assignment, key) in [
        ("deviations=[]", "deviations"),
        ("deviations=[1, 2]", "deviations"),
        ("deviations=[2, 2]", "deviations"),
        ("deviations=[1, -1]", "deviations"),
        ("tolerance=1.5", "tolerance"),
        ("clean.ratio=0", "clean.ratio"),
        ("layers.exclude=[\"\"]", "layers.exclude"),
        ("deviation=1", "deviation"),
    ] {
        let given = Given {
            set: vec![assignment.to_owned()],
            ..Given::default()
        };
        let error = NormPrune.resolve("synthetic", &given).err();
        let error = error.unwrap_or_else(|| panic!("{assignment} is accepted"));
        assert!(error.to_string().contains(&format!("`{key}`")), "{error}");
        assert_eq!(error.exit_code(), 2, "{error}");
    }
}

#[test]
fn it_runs_from_a_grid_to_a_table() {
    let place = tempfile::tempdir().expect("a folder");
    let table = run(place.path(), "out");
    for row in ["BadNets  No defense ", "NormPrune ", "NormPrune (oracle) "] {
        let shown = table
            .lines()
            .filter(|line| line.trim_start().starts_with(row));
        assert!(shown.count() > 0, "no row `{row}`\n{table}");
    }
    assert_eq!(run(place.path(), "out"), table, "complete already");

    let out = place.path().join("out");
    let attack = cells(&out, Kind::Attack).remove(0);
    let cell = cells(&out, Kind::Defense).remove(0);
    let results: Results =
        serde_json::from_value(cell.manifest.results.clone()).expect("the results of a defense");
    let names: Vec<&str> = results.candidates.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["u=1.5", "u=1", "u=0.5"]);
    assert_eq!(results.chosen, "u=0.5", "everything is tolerated");
    assert_eq!(results.clean.expect("clean images").images, 40);
    let pruned: Vec<u64> = results
        .candidates
        .iter()
        .map(|c| c.notes["neurons"].as_u64().expect("a count"))
        .collect();
    assert!(pruned[0] > 0 && pruned.is_sorted(), "{pruned:?}");

    // What is no longer the suspect's is 0, and whole neurons of it.
    let load = |cell: &Cell| StateDict::load(&cell.file("model.safetensors")).expect("a model");
    let (suspect, repaired) = (load(&attack), load(&cell));
    let mut cleared = 0;
    for (name, tensor) in suspect.iter().filter(|(_, tensor)| tensor.rank() > 0) {
        let before = suspect.floats(name).expect("a tensor").expect("floats");
        let after = repaired.floats(name).expect("a tensor").expect("floats");
        let fan_in = before.len() / tensor.dims()[0];
        for (before, after) in before.chunks(fan_in).zip(after.chunks(fan_in)) {
            if before != after {
                assert!(after.iter().all(|&weight| weight == 0.0), "{name}");
                assert!(tensor.rank() == 4 && !name.contains("shortcut"), "{name}");
                cleared += 1;
            }
        }
    }
    assert_eq!(cleared, pruned[2]);
}

#[test]
fn a_killed_run_goes_on_to_the_same_bits() {
    let place = tempfile::tempdir().expect("a folder");
    run(place.path(), "whole");
    let mut child = program(
        place.path(),
        &["run", "grid.toml", "--quiet", "--store", "killed"],
    )
    .stdout(Stdio::null())
    .spawn()
    .expect("it runs");
    let begun = place.path().join("killed/defense");
    while child.try_wait().expect("a state").is_none() && !holds_checkpoint(&begun) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    // Too late on a fast machine is no failure: then this is a test of running twice.
    child.kill().expect("killed");
    child.wait().expect("it ended");
    run(place.path(), "killed");
    let manifest = |out: &str| {
        let cell = cells(&place.path().join(out), Kind::Defense).remove(0);
        fs_err::read(cell.file("manifest.json")).expect("a manifest")
    };
    assert_eq!(manifest("killed"), manifest("whole"));
}

fn holds_checkpoint(folder: &Path) -> bool {
    let entries = fs_err::read_dir(folder).into_iter().flatten().flatten();
    let mut paths = entries.map(|entry| -> PathBuf { entry.path() });
    paths.any(|path| path.ends_with("ckpt") || holds_checkpoint(&path))
}
