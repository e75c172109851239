//! The program on tiny grids: what it runs, what it does not run again, what it prints, how it fails.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bb_core::cell::{Cell, CellSpec, Holder, Opened, open};
use bb_eval::grid::Grid;
use bb_eval::prepare::{Places, Prepared};
use bb_nn::kernels::precision::{Precision, supported};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Two attacks and TSBD, a second or two in all.
const TINY: &str = "\
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

[[attack]]
method = \"blended\"
set = { train = { epochs = 1, batch_size = 20 } }

[[defense]]
method = \"tsbd\"
set = { clean.ratio = 0.1, unlearn.max_epochs = 1, finetune.epochs = 1 }
";

struct Place {
    dir: TempDir,
}

impl Place {
    fn new(grid: &str) -> Self {
        let place = Self {
            dir: tempfile::tempdir().expect("a temporary folder"),
        };
        place.write("grid.toml", grid);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs_err::write(self.path(name), text).expect("written");
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bb-eval"));
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program starts")
    }

    /// Standard output of a call that must succeed.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(
            output.status.success(),
            "{args:?}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Exit code, standard output and standard error.
    fn fails(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.output(args);
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (
            output.status.code().expect("an exit code"),
            text(output.stdout),
            text(output.stderr),
        )
    }

    /// Path below `out` and content of every manifest.
    fn manifests(&self, out: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        let root = self.path(out);
        let mut found = BTreeMap::new();
        for path in files(&root)
            .into_iter()
            .filter(|p| p.ends_with("manifest.json"))
        {
            let name = path.strip_prefix(&root).expect("it is below").to_owned();
            found.insert(name, fs_err::read(&path).expect("readable"));
        }
        found
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The lines of a text table without the columns of times and memory, and what the times are together.
fn untimed(table: &str) -> Vec<String> {
    let without = |line: &str| {
        let spent = [" s", " min", " MiB", " GiB", "time", "memory"];
        let fields = line.split("  ").map(str::trim);
        let own = fields.filter(|field| !spent.iter().any(|end| field.ends_with(end)));
        let own: Vec<&str> = own.filter(|field| !field.is_empty()).collect();
        own.join("  ")
    };
    table
        .lines()
        .filter(|l| !l.starts_with("---") && !l.starts_with("time: "))
        .map(without)
        .collect()
}

#[test]
fn a_grid_runs_once_and_is_found_complete_then() {
    let place = Place::new(TINY);
    let plan = place.ok(&["plan", "grid.toml", "--out", "out"]);
    assert!(
        plan.contains("1  missing   attack   BadNets, seed 0 "),
        "{plan}"
    );
    assert!(
        plan.contains("3  missing   defense  TSBD on BadNets, seed 0  - (known when"),
        "{plan}"
    );
    assert!(
        plan.ends_with("4 cells in out: 0 complete, 0 partial, 4 missing\n"),
        "{plan}"
    );
    assert!(
        !place.path("out").join("attack").exists(),
        "a plan begins nothing"
    );

    let first = place.output(&["run", "grid.toml", "--out", "out", "--threads", "2"]);
    let log = String::from_utf8_lossy(&first.stderr);
    assert!(first.status.success(), "{log}");
    assert!(log.contains("[4/4] TSBD on Blended, seed 0\n"), "{log}");
    assert!(
        log.ends_with("4 cells: 0 complete before, 4 computed\n"),
        "{log}"
    );
    let table = String::from_utf8(first.stdout).expect("UTF-8");
    assert!(table.starts_with("tiny: "), "{table}");
    let tables = place.path("out/tables/tiny");
    for format in ["txt", "md", "csv", "json", "tex", "html"] {
        let file = tables.join(format!("table.{format}"));
        assert!(file.is_file(), "{}", file.display());
    }
    assert_eq!(
        fs_err::read_to_string(tables.join("table.txt")).expect("readable"),
        table
    );

    let before = place.manifests("out");
    assert_eq!(before.len(), 4);
    let again = place.output(&["run", "grid.toml", "--out", "out", "--quiet"]);
    assert!(again.status.success());
    assert_eq!(String::from_utf8_lossy(&again.stderr), "", "quiet");
    assert_eq!(
        String::from_utf8_lossy(&again.stdout),
        table,
        "even the times are those of the first run"
    );
    assert_eq!(place.manifests("out"), before);
    let again = place.output(&["run", "grid.toml", "--out", "out"]);
    // A build that could have used a GPU says before it where it computes.
    let said = String::from_utf8_lossy(&again.stderr);
    assert_eq!(
        said.lines().last(),
        Some("4 cells: 4 complete before, 0 computed"),
        "{said}"
    );
    let plan = place.ok(&["plan", "grid.toml", "--out", "out"]);
    assert!(
        plan.ends_with("4 cells in out: 4 complete, 0 partial, 0 missing\n"),
        "{plan}"
    );

    // The table of the folder and of the grid are the same but for the name, and so are the numbers of the program
    // on one thread.
    let folder = place.ok(&["table", "out"]);
    assert_eq!(folder, table.replacen("tiny: ", "", 1));
    assert_eq!(place.ok(&["table", "grid.toml", "--out", "out"]), table);
    for (format, file) in [
        ("md", "table.md"),
        ("csv", "table.csv"),
        ("latex", "table.tex"),
        ("json", "table.json"),
        ("html", "table.html"),
    ] {
        let found = place.ok(&["table", "grid.toml", "--out", "out", "--format", format]);
        assert_eq!(
            found,
            fs_err::read_to_string(tables.join(file)).expect("readable"),
            "{format}"
        );
    }
    place.ok(&[
        "run",
        "grid.toml",
        "--out",
        "single",
        "--threads",
        "1",
        "--quiet",
    ]);
    assert_eq!(place.manifests("single"), before, "same bits on one thread");

    for (manifest, bytes) in &before {
        let cell = place.path("out").join(manifest);
        let line = place.ok(&["metrics", cell.to_str().expect("plain")]);
        assert_eq!(line.lines().count(), 1);
        let found: Value = serde_json::from_str(&line).expect("JSON");
        let manifest: Value = serde_json::from_slice(bytes).expect("JSON");
        let results = &manifest["results"];
        let scores = if results["after"].is_null() {
            results
        } else {
            &results["after"]
        };
        for name in ["acc", "asr", "ra"] {
            assert_eq!(found[format!("{name}_hits")], scores[name]["hits"]);
            assert_eq!(found[format!("{name}_total")], scores[name]["total"]);
            let value = scores[name]["hits"].as_f64().expect("a count")
                / scores[name]["total"].as_f64().expect("a count");
            assert_eq!(found[name].as_f64(), Some(value));
        }
        assert_eq!(found["agrees"], true);
    }
}

#[test]
fn cells_are_listed_explained_and_compared_by_their_ids() {
    let place = Place::new(&TINY.replace("seeds = [0]", "seeds = [0, 1]"));
    place.ok(&["run", "grid.toml", "--store", "out", "--quiet"]);
    let list = place.ok(&["ls", "out"]);
    let rows: Vec<Vec<&str>> = list
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(rows.len(), 9, "a head and eight cells\n{list}");
    assert!(rows[1..].iter().all(|row| row[5] == "complete"), "{list}");
    let lines = |args: &[&str]| -> Vec<Value> {
        let args = [&["ls", "out", "--json"], args].concat();
        let text = place.ok(&args);
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    };
    assert_eq!(lines(&[]).len(), 8);
    let attack = &lines(&["--kind", "attack", "--method", "badnets", "--seed", "1"])[..];
    let [attack] = attack else {
        panic!("{attack:?}")
    };
    let id = attack["id"].as_str().expect("an id");
    let repairs = lines(&["--attack", &id[..8], "--kind", "defense"]);
    assert_eq!(repairs.len(), 1, "{repairs:?}");
    assert_eq!(repairs[0]["attack"], attack["id"]);
    assert_eq!(repairs[0]["method"], "tsbd");
    let none: [&[&str]; 5] = [
        &["--method", "wanet"],
        &["--dataset", "cifar10"],
        &["--arch", "preactresnet18-w64"],
        &["--seed", "7"],
        &["--state", "failed"],
    ];
    for none in none {
        assert!(lines(none).is_empty(), "{none:?}");
    }
    for all in [
        ["--dataset", "synthetic"],
        ["--arch", "preactresnet18"],
        ["--arch", "preactresnet18-w4"],
    ] {
        assert_eq!(lines(&all).len(), 8, "{all:?}");
    }

    let repair = repairs[0]["id"].as_str().expect("an id");
    let said = place.ok(&["explain", repair, "--store", "out"]);
    let manifest = Path::new(repairs[0]["dir"].as_str().expect("a folder")).join("manifest.json");
    let manifest = fs_err::read(place.path(".").join(manifest)).expect("readable");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let after = &manifest["results"]["after"];
    for expect in [
        format!(
            "= {} of {} clean test images get their true label",
            after["acc"]["hits"], after["acc"]["total"]
        ),
        format!(
            "= {} of {} poisoned test images get the attacked label",
            after["asr"]["hits"], after["asr"]["total"]
        ),
        " % = (100 + ".to_owned(),
        "# set for this run; ".to_owned(),
        "# recipe configs/defense/tsbd/synthetic.toml".to_owned(),
        "took  ".to_owned(),
        " of 200 training images\n".to_owned(),
    ] {
        assert!(said.contains(&expect), "{expect}\n{said}");
    }
    let said = place.ok(&["explain", &id[..6], "--store", "out"]);
    assert!(said.starts_with("attack `badnets`\n"), "{said}");
    assert!(said.contains("poisoned for training"), "{said}");

    let other = lines(&["--kind", "attack", "--method", "badnets", "--seed", "0"]);
    let other = other[0]["id"].as_str().expect("an id");
    let differences = place.ok(&["diff", id, other, "--store", "out"]);
    assert!(
        differences.contains("seed                      1  |  0\n"),
        "{differences}"
    );
    assert!(!differences.contains("settings"), "{differences}");
    let none = place.ok(&["diff", id, id, "--store", "out"]);
    assert_eq!(none, "nothing differs in `manifest.json`\n");

    place.ok(&["verify", repair, "--store", "out"]);
    let (code, _, stderr) = place.fails(&["ls", "absent"]);
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("`absent`"), "{stderr}");
    let narrow = place.ok(&[
        "table",
        "out",
        "--attacks",
        "blended",
        "--layout",
        "paper",
        "--metrics",
        "asr",
    ]);
    assert!(
        narrow.contains("Blended") && !narrow.contains("BadNets") && !narrow.contains("ACC ↑"),
        "{narrow}"
    );
    let (code, _, stderr) = place.fails(&["table", "out", "--attacks", "wanet"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(
        stderr.contains("the table has no attack `wanet`, expected one of `BadNets`, `Blended`"),
        "{stderr}"
    );
    let (code, _, stderr) = place.fails(&["explain", "0000000000", "--store", "out"]);
    assert_eq!(code, 3, "{stderr}");
    assert!(
        stderr.contains("`0000000000` is neither the folder of a cell"),
        "{stderr}"
    );
}

#[test]
fn a_plan_says_what_the_paper_has_beside_the_grid() {
    let place = Place::new(&TINY.replace("seeds = [0]", "seeds = [0]\npaper = \"tsbd\""));
    let plan = place.ok(&["plan", "grid.toml", "--store", "out"]);
    assert!(
        plan.ends_with(
            "not in this grid, of the attacks of TSBD Table 1: Input-aware, LF, SIG, SSBA, Trojan, WaNet\n\
             not in this grid, of the defenses of TSBD Table 1: ANP, CLP, FP, FT, i-BAU, NAD, NC, RNP\n"
        ),
        "{plan}"
    );
}

#[test]
fn a_clean_model_is_repaired_measured_and_shown_without_asr() {
    let clean = TINY.replacen("method = \"badnets\"", "method = \"clean\"", 1);
    let place = Place::new(&clean);
    let run = place.output(&["run", "grid.toml", "--out", "out"]);
    let log = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{log}");
    assert!(log.contains("ASR none") && !log.contains("NaN"), "{log}");
    let table = String::from_utf8(run.stdout).expect("UTF-8");
    assert!(!table.contains("Average"), "{table}");
    assert!(table.contains("Clean: no image is poisoned"), "{table}");
    let folder = place.ok(&["table", "out"]);
    assert!(folder.contains("Clean: no image is poisoned"), "{folder}");

    let mut seen = 0;
    for manifest in place.manifests("out").into_keys() {
        let cell = place.path("out").join(manifest);
        let line = place.ok(&["metrics", cell.to_str().expect("plain")]);
        let found: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(found["agrees"], true);
        assert_eq!(found["acc_total"], 50);
        let manifest: Value =
            serde_json::from_slice(&fs_err::read(&cell).expect("readable")).expect("JSON");
        let asr = ["asr", "asr_hits", "asr_total", "ra", "ra_hits", "ra_total"];
        if asr.iter().all(|name| found[*name].is_null()) {
            seen += 1;
            assert!(manifest["results"]["der"].is_null());
        } else {
            assert!(asr.iter().all(|name| found[*name].is_number()), "{line}");
        }
    }
    assert_eq!(seen, 2, "the clean model and the repaired one");
}

#[test]
fn a_manifest_that_lies_is_found_out() {
    let place = Place::new(&TINY[..TINY.rfind("[[attack]]").expect("two attacks")]);
    place.ok(&["run", "grid.toml", "--out", "out", "--quiet"]);
    let path = place
        .path("out")
        .join(place.manifests("out").into_keys().next().expect("one cell"));
    let mut manifest: Value =
        serde_json::from_slice(&fs_err::read(&path).expect("readable")).expect("JSON");
    let hits = manifest["results"]["asr"]["hits"]
        .as_u64()
        .expect("a count");
    manifest["results"]["asr"]["hits"] = Value::from(if hits == 0 { 1 } else { hits - 1 });
    fs_err::write(&path, manifest.to_string()).expect("written");
    let cell = path.parent().and_then(Path::to_str).expect("plain");
    let (code, _, stderr) = place.fails(&["verify", cell]);
    assert_eq!(code, 3, "it has another digest\n{stderr}");
    assert!(stderr.contains("manifest.json` has sha256 `"), "{stderr}");
    // Whoever changes the number can leave out the digest, as earlier versions did.
    manifest.as_object_mut().expect("a table").remove("digest");
    fs_err::write(&path, manifest.to_string()).expect("written");
    // The word of earlier versions.
    let (code, stdout, stderr) = place.fails(&["metrics", cell]);
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stdout.contains(&format!("\"asr_hits\":{hits},")) && stdout.contains("\"agrees\":false"),
        "{stdout}"
    );
    assert!(
        stderr.starts_with("error: the manifest of `") && stderr.contains(", found ACC "),
        "{stderr}"
    );
}

/// Changes what is said in the manifest of a cell, as somebody would who knows how cells are made.
fn forge(cell: &Path, change: impl FnOnce(&mut Value)) {
    let path = cell.join("manifest.json");
    let mut manifest: Value =
        serde_json::from_slice(&fs_err::read(&path).expect("readable")).expect("JSON");
    manifest.as_object_mut().expect("a table").remove("digest");
    change(&mut manifest);
    fs_err::write(&path, manifest.to_string()).expect("written");
}

#[test]
fn a_repair_is_verified_with_what_it_says_of_its_attack() {
    let attack = &TINY[..TINY.rfind("[[attack]]").expect("two attacks")];
    let defense = &TINY[TINY.find("[[defense]]").expect("a defense")..];
    let place = Place::new(&format!("{attack}{defense}"));
    place.ok(&["run", "grid.toml", "--out", "out", "--quiet"]);
    let cells: Vec<PathBuf> = place
        .manifests("out")
        .into_keys()
        .map(|manifest| place.path("out").join(manifest))
        .map(|path| path.parent().expect("a cell").to_owned())
        .collect();
    let of = |kind: &str| {
        let found = cells
            .iter()
            .find(|cell| cell.to_string_lossy().contains(kind));
        found.expect("one of each kind").clone()
    };
    let (attack, repair) = (of("/attack/"), of("/defense/"));
    let line = |cell: &Path| -> Value {
        let said = place.ok(&["verify", cell.to_str().expect("plain")]);
        serde_json::from_str(&said).expect("JSON")
    };
    let said = line(&attack);
    assert_eq!(
        said["checked"],
        json!(["poison.test", "poison.train", "target"])
    );
    assert_eq!(
        said["unchecked"],
        json!(["train", "stealth", "metrics.jsonl"])
    );
    let said = line(&repair);
    assert_eq!(said["agrees"], true);
    assert_eq!(said["checked"][0], "before");
    assert_eq!(said["unchecked"], json!(["metrics.jsonl"]), "{said}");

    let whole = fs_err::read(repair.join("manifest.json")).expect("readable");
    for (field, words) in [
        ("before", "of `before`, found ACC "),
        ("after", "says ACC "),
    ] {
        forge(&repair, |m| m["results"][field]["acc"]["hits"] = json!(1));
        let (code, stdout, stderr) = place.fails(&["verify", repair.to_str().expect("plain")]);
        assert_eq!(code, 1, "{stderr}");
        assert!(stderr.contains(words), "{stderr}");
        assert!(stdout.contains("\"agrees\":false"), "{stdout}");
        fs_err::write(repair.join("manifest.json"), &whole).expect("written");
    }
    // A file that the manifest does not list is none of the cell's.
    forge(&attack, |m| m["files"] = json!({}));
    let (code, _, stderr) = place.fails(&["verify", attack.to_str().expect("plain")]);
    assert_eq!(code, 3, "{stderr}");
    assert!(
        stderr.contains("manifest.json` does not list `poison_test.safetensors`"),
        "{stderr}"
    );
}

#[test]
fn a_killed_run_goes_on_to_the_same_bits() {
    let grid = TINY
        .replace("epochs = 1, batch_size = 20", "epochs = 5, batch_size = 20")
        .replace("finetune.epochs = 1", "finetune.epochs = 12");
    let place = Place::new(&grid[..grid.rfind("[[attack]]").expect("two attacks")]);
    let defense = &grid[grid.find("[[defense]]").expect("a defense")..];
    let text = fs_err::read_to_string(place.path("grid.toml")).expect("readable");
    place.write("grid.toml", &format!("{text}{defense}"));
    for kind in ["attack", "defense"] {
        let mut child = place
            .command(&["run", "grid.toml", "--out", "killed", "--quiet"])
            .stdout(Stdio::null())
            .spawn()
            .expect("the program starts");
        let folder = place.path("killed").join(kind);
        let checkpoint = |p: &PathBuf| p.parent().is_some_and(|p| p.ends_with("ckpt"));
        let begun = Instant::now();
        while !files(&folder).iter().any(checkpoint) && child.try_wait().expect("a state").is_none()
        {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "no checkpoint came"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        // Too late on a fast machine is no failure: then this is a test of running twice.
        let _ = child.kill();
        child.wait().expect("it ended");
    }
    place.ok(&["run", "grid.toml", "--out", "killed", "--quiet"]);
    place.ok(&["run", "grid.toml", "--out", "whole", "--quiet"]);
    assert_eq!(place.manifests("killed"), place.manifests("whole"));
    assert_eq!(
        untimed(&place.ok(&["table", "killed"])),
        untimed(&place.ok(&["table", "whole"]))
    );
}

#[test]
fn one_failing_cell_does_not_stop_the_others() {
    let place = Place::new(&TINY.replacen("epochs = 1", "lr = 1e30, epochs = 1", 1));
    let (code, stdout, stderr) = place.fails(&["run", "grid.toml", "--out", "out"]);
    assert_eq!(code, 4, "numerical failure\n{stderr}");
    assert!(
        stderr.contains("warning: BadNets, seed 0 failed, the others go on\n"),
        "{stderr}"
    );
    assert!(
        stderr.contains("4 cells: 0 complete before, 2 computed, 1 failed, 1 skipped\n"),
        "{stderr}"
    );
    assert!(
        stderr.contains("error: 1 of the grid's cells failed\n  BadNets, seed 0: "),
        "{stderr}"
    );
    assert!(
        stdout.contains("missing: BadNets / TSBD: seed 0\nfailed: BadNets / No defense: seed 0: "),
        "{stdout}"
    );
    let row = stdout
        .lines()
        .find(|l| l.starts_with("BadNets"))
        .expect("a row");
    assert_eq!(
        row.split_whitespace().skip(3).collect::<Vec<_>>(),
        ["-", "-", "-", "-", "-"],
        "never 0"
    );
    assert_eq!(place.manifests("out").len(), 2);
    let plan = place.ok(&["plan", "grid.toml", "--out", "out"]);
    assert!(
        plan.ends_with("4 cells in out: 2 complete, 0 partial, 1 missing, 1 failed\n"),
        "{plan}"
    );
    let damaged = files(&place.path("out/attack"))
        .into_iter()
        .find(|p| p.ends_with("model.safetensors"));
    fs_err::write(damaged.expect("a model"), "nothing").expect("written");
    let plan = place.ok(&["plan", "grid.toml", "--out", "out"]);
    assert!(
        plan.contains(", 1 damaged\n") && plan.contains("expected "),
        "{plan}"
    );
    let table = place.ok(&["table", "grid.toml", "--out", "out"]);
    let damaged = table.lines().find(|l| l.starts_with("damaged: "));
    assert!(
        damaged.is_some_and(|line| {
            line.starts_with("damaged: Blended / No defense: seed 0: `out/attack/blended/")
                && line.contains("model.safetensors` has 7 bytes, expected ")
        }),
        "{table}"
    );
    assert!(!table.contains("missing: Blended / No defense"), "{table}");
    let (code, _, stderr) = place.fails(&["table", "out"]);
    assert_eq!(code, 3, "no whole attack is left\n{stderr}");
    assert!(
        stderr.starts_with(
            "error: `out` holds no complete result of an attack, only one of a defense\n  \
             damaged: `out/attack/blended/"
        ) && stderr.contains("\n  failed: `out/attack/badnets/")
            && stderr.contains("hint: a cell was changed after it was complete"),
        "{stderr}"
    );
    fs_err::remove_dir_all(place.path("out/attack")).expect("removed");
    let (code, _, stderr) = place.fails(&["table", "out"]);
    assert_eq!(code, 3, "{stderr}");
    assert!(
        stderr.contains("only one of a defense\nhint: the attacks that were repaired have to"),
        "{stderr}"
    );
}

#[test]
fn what_a_table_leaves_out_is_said_in_every_format() {
    let place = Place::new(TINY);
    place.ok(&["run", "grid.toml", "--out", "out", "--quiet"]);
    // The repair of a model that is elsewhere has no row.
    let attack = place.path("out/attack/blended");
    fs_err::rename(&attack, place.path("elsewhere")).expect("moved");
    let table = place.ok(&["table", "out"]);
    assert!(
        table.contains("left out: the attack that `out/defense/"),
        "{table}"
    );
    fs_err::rename(place.path("elsewhere"), &attack).expect("moved back");
    let model = files(&place.path("out/defense"))
        .into_iter()
        .find(|p| p.ends_with("model.safetensors"));
    fs_err::write(model.expect("a model"), "nothing").expect("written");
    for source in [
        &["table", "out"][..],
        &["table", "grid.toml", "--out", "out"],
    ] {
        for format in ["text", "md", "csv", "latex"] {
            let output = place.output(&[source, &["--format", format]].concat());
            assert!(output.status.success());
            let (stdout, stderr) = (
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr),
            );
            let (said, silent, begin) = match format {
                "csv" => (&stderr, &stdout, "warning: damaged: "),
                _ => (&stdout, &stderr, "damaged: "),
            };
            assert!(said.contains(begin), "{format}\n{said}");
            // Markdown escapes some of it.
            assert!(said.contains(".safetensors"), "{format}\n{said}");
            assert!(said.contains("has 7 bytes, expected "), "{format}\n{said}");
            assert!(!silent.contains("damaged"), "{format}\n{silent}");
        }
    }
}

#[test]
fn a_cell_is_compared_with_what_was_published() {
    use bb_eval::paper::Paper;
    let place = Place::new(&tinier());
    place.ok(&["run", "grid.toml", "--out", "out", "--quiet"]);
    let attack = place.manifests("out").into_keys().next().expect("cells");
    let attack = Cell::load(place.path("out").join(attack)).expect("a cell");
    let paper = Paper::tsbd_table1();
    let facts = bb_eval::collect::facts(&attack, &paper);
    let unlike = facts.unlike.as_deref().expect("it is one of ours");
    assert!(
        matches!(unlike, [only] if only.starts_with("train.batch_size ")),
        "{unlike:?}"
    );
    assert_eq!(paper.differences(&facts).last(), unlike.last());
    // Of a model that somebody published the settings are not known, whatever it is filed under.
    let unlike = |cell: &Cell| bb_eval::collect::facts(cell, &paper).unlike;
    let mut published = attack.clone();
    published.manifest.settings["imported"] = Value::Object(serde_json::Map::new());
    assert_eq!(unlike(&published), None);
    published.manifest.settings = attack.manifest.settings.clone();
    published.manifest.method = "none-of-ours".to_owned();
    assert_eq!(unlike(&published), None);
}

#[test]
fn the_wrong_attack_of_a_defense_is_called_so() {
    let place = Place::new(TINY);
    place.ok(&["run", "grid.toml", "--out", "out", "--quiet"]);
    let mut cells = BTreeMap::new();
    for manifest in place.manifests("out").into_keys() {
        let cell = Cell::load(place.path("out").join(manifest)).expect("a cell");
        cells.insert((cell.manifest.method.clone(), cell.digest()), cell);
    }
    let of = |method: &str| cells.values().find(|c| c.manifest.method == method);
    let repair = of("tsbd").expect("a repair");
    let attack = &repair.manifest.inputs["attack"];
    let others = cells
        .values()
        .filter(|c| c.digest() != *attack && c.digest() != repair.digest());
    for other in others {
        let path = |cell: &Cell| cell.dir.to_str().expect("plain").to_owned();
        let words = ["metrics", &path(repair), "--attack", &path(other)];
        let (code, stdout, stderr) = place.fails(&words);
        assert_eq!((code, stdout.as_str()), (3, ""), "{stderr}");
        let expect = format!(
            "error: `{}` is not the attack that `{}` repairs: digest {}, expected {attack}\nhint: without `--attack`",
            other.dir.display(),
            repair.dir.display(),
            other.digest()
        );
        assert!(stderr.contains(&expect), "{stderr}");
    }
}

/// Networks that somebody put into a cell: of other classes, with a variance below 0, and with finite weights whose
/// products are not.
#[test]
fn a_network_that_cannot_be_used_is_refused_with_its_file() {
    let place = Place::new(&tinier());
    place.ok(&["run", "grid.toml", "--out", "out", "--quiet"]);
    let attack = place.manifests("out").into_keys().next().expect("cells");
    let attack = Cell::load(place.path("out").join(attack)).expect("a cell");
    let net = |classes| {
        let arch = bb_nn::ArchSpec::new("preactresnet18", 4, classes).expect("a known one");
        bb_nn::Net::new(&arch, 0)
    };
    let mut negative = net(10);
    let layout = negative.buffers().layout();
    let tensor = layout
        .position("layer1.0.bn1.running_var")
        .expect("it has one");
    negative.buffers_mut().tensor_mut(tensor)[0] = -1.0;
    let mut broken = net(10);
    for value in broken.params_mut().data_mut() {
        *value *= 1e20;
    }
    let used = "cannot be used\ncaused by: tensor";
    let cases = [
        (
            net(43),
            3,
            format!("{used} `linear.weight` has shape [43, 32], expected [10, 32]\n"),
        ),
        (
            negative,
            3,
            format!(
                "{used} `layer1.0.bn1.running_var` holds -1 at flat index 0, expected variances of at least 0\n"
            ),
        ),
        (broken, 4, "cannot be scored\ncaused by: ".to_owned()),
    ];
    for (seed, (net, code, expect)) in (7..).zip(cases) {
        let path = with_network(&place, &attack, &net, seed);
        for words in [
            &["metrics", &path][..],
            &["analyze", "unlearning", &path, "--out", "x"],
        ] {
            let (found, stdout, stderr) = place.fails(words);
            let expect = format!("error: the network in `{path}/model.safetensors` {expect}");
            assert!(stderr.contains(&expect), "{stderr}");
            assert_eq!(found, code, "{stderr}");
            assert!(stdout.is_empty(), "{stdout}");
            if code == 4 {
                assert!(
                    stderr.contains("the first is clean test image 0"),
                    "{stderr}"
                );
            }
        }
    }
}

/// The folder of a cell like `attack`, with another network and seed.
fn with_network(place: &Place, attack: &Cell, net: &bb_nn::Net, seed: u64) -> String {
    let state = net.state().expect("a network");
    let spec = CellSpec {
        seed,
        ..attack.manifest.spec()
    };
    let Opened::Work(work) = open(&place.path("out"), &spec).expect("nobody works on it") else {
        panic!("it is there already");
    };
    for name in attack.manifest.files.keys() {
        let bytes = match name.as_str() {
            "model.safetensors" => state.to_bytes(&BTreeMap::new()).expect("finite"),
            name => fs_err::read(attack.file(name)).expect("readable"),
        };
        work.write(name, &bytes).expect("written");
    }
    let cell = work
        .finish(attack.manifest.results.clone())
        .expect("complete");
    cell.dir.to_str().expect("plain").to_owned()
}

#[test]
fn a_cell_that_another_process_works_on_is_left_to_it() {
    let place = Place::new(TINY);
    let grid = Grid::load(&place.path("grid.toml")).expect("a good grid");
    let places = Places {
        out: Some(place.path("out")),
        data: None,
    };
    let prepared = Prepared::new(grid, &places, &[]).expect("all is there");
    let spec = prepared.attack_spec(0, 0).expect("a specification");
    let held = open(&place.path("out"), &spec).expect("nobody works on it");
    let (code, stdout, stderr) = place.fails(&["run", "grid.toml", "--out", "out", "--no-wait"]);
    assert_eq!(code, 75, "try again\n{stderr}");
    assert!(
        stderr.contains(&format!(
            "error: 1 of the grid's cells is busy\n  BadNets, seed 0: {} works on it\n",
            Holder::here()
        )),
        "{stderr}"
    );
    assert!(
        stderr.contains("4 cells: 0 complete before, 2 computed, 1 busy, 1 skipped\n"),
        "{stderr}"
    );
    assert!(
        stdout.contains("missing: BadNets / TSBD: seed 0\n"),
        "{stdout}"
    );
    drop(held);
    assert!(
        place
            .ok(&["run", "grid.toml", "--out", "out", "--quiet"])
            .contains("\nBadNets  No defense ")
    );
    let plan = place.ok(&["plan", "grid.toml", "--out", "out"]);
    assert!(plan.contains(": 4 complete, 0 partial"), "{plan}");
}

/// One attack and TSBD.
fn tinier() -> String {
    let end = TINY.rfind("[[attack]]").expect("two attacks");
    let defense = TINY.find("[[defense]]").expect("a defense");
    format!("{}{}", &TINY[..end], &TINY[defense..])
}

#[test]
#[expect(clippy::print_stderr, reason = "a test that did not run must say so")]
fn a_grid_in_bf16_has_cells_and_rows_of_its_own() {
    let grid = tinier();
    let place = Place::new(&grid);
    let bf16 = grid.replace("width = 4", "width = 4\nprecision = \"bf16\"");
    place.write("bf16.toml", &bf16);
    if supported(Precision::Bf16).is_err() {
        eprintln!("not trained: this processor lacks bf16");
        let (code, _, stderr) = place.fails(&["run", "bf16.toml", "--out", "out"]);
        assert!(stderr.contains("error: precision `bf16` needs"), "{stderr}");
        assert_eq!((code, place.path("out/attack").exists()), (2, false));
        return;
    }
    place.ok(&["run", "grid.toml", "--out", "out", "--quiet"]);
    let plan = place.ok(&["plan", "bf16.toml", "--out", "out"]);
    assert!(plan.ends_with(" 0 partial, 2 missing\n"), "{plan}");
    let table = place.ok(&["run", "bf16.toml", "--out", "out", "--quiet"]);
    assert!(table.contains(", trained in bf16, seed 0\n"), "{table}");
    let plan = place.ok(&["plan", "bf16.toml", "--out", "out"]);
    assert!(plan.ends_with(" 0 partial, 0 missing\n"), "{plan}");
    for manifest in place.manifests("out").keys() {
        let cell = place.path("out").join(manifest);
        let line = place.ok(&["metrics", cell.to_str().expect("plain")]);
        assert!(line.contains("\"agrees\":true"), "{line}");
    }
    let table = place.ok(&["table", "out"]);
    for expect in [
        ", trained in bf16 and f32, seed 0\n",
        "\nBadNets (compute.precision=bf16) ",
        "TSBD (compute.precision=f32) ",
    ] {
        assert!(table.contains(expect), "{table}\nlacks {expect}");
    }
}

#[test]
fn a_cell_from_before_the_choice_of_a_precision_is_one_in_f32() {
    let grid = tinier();
    let place = Place::new(&grid[..grid.find("[[defense]]").expect("a defense")]);
    place.ok(&["run", "grid.toml", "--out", "out", "--quiet"]);
    let manifest = place.manifests("out").into_keys().next().expect("one cell");
    let cell = Cell::load(place.path("out").join(manifest)).expect("a cell");
    let mut old = CellSpec {
        seed: 1,
        ..cell.manifest.spec()
    };
    old.settings
        .as_object_mut()
        .expect("a table")
        .remove("compute");
    let Opened::Work(work) = open(&place.path("out"), &old).expect("nobody works on it") else {
        panic!("it is there already");
    };
    for name in cell.manifest.files.keys() {
        let bytes = fs_err::read(cell.file(name)).expect("readable");
        work.write(name, &bytes).expect("written");
    }
    let old = work.finish(cell.manifest.results).expect("complete");
    let line = place.ok(&["metrics", old.dir.to_str().expect("plain")]);
    assert!(line.contains("\"agrees\":true"), "{line}");
    let table = place.ok(&["table", "out"]);
    assert!(table.contains("-w4, first 200 training images"), "{table}");
    assert!(table.contains("images, seeds 0, 1\n"), "{table}");
    assert!(!table.contains("precision"), "one row for both\n{table}");
}

#[test]
fn variants_of_a_method_and_the_oracle_have_rows_of_their_own() {
    let place = Place::new(TINY);
    let end = TINY.rfind("[[attack]]").expect("two attacks");
    let defense = &TINY[TINY.find("[[defense]]").expect("a defense")..];
    let more = defense.replace("set = {", "label = \"half\"\nset = { reinit.n = 0.5,");
    let sweep = defense.replace("set = {", "label = \"sweep\"\nset = { sweep = true,");
    place.write(
        "grid.toml",
        &format!("{}{defense}\n{more}\n{sweep}", &TINY[..end]),
    );
    let table = place.ok(&["run", "grid.toml", "--out", "out", "--quiet"]);
    let defenses = |table: &str| -> Vec<String> {
        let rows = table
            .lines()
            .skip_while(|l| !l.starts_with("---"))
            .skip(1)
            .take_while(|l| !l.is_empty());
        let label = |l: &str| {
            let label = l[9..].split("  ").next().unwrap_or_default();
            // Models as small as these are at chance, which is marked.
            label.trim_end_matches(" ‡").to_owned()
        };
        rows.map(label).collect()
    };
    assert_eq!(
        defenses(&table),
        ["No defense", "TSBD", "half", "sweep", "sweep (oracle)"],
        "{table}"
    );
    assert!(
        table.contains("(oracle): chosen on the poisoned test set"),
        "{table}"
    );
    // A folder does not know the labels of the grid, so the settings that differ tell the rows apart.
    let mut found = defenses(&place.ok(&["table", "out"]));
    found.sort();
    assert_eq!(
        found,
        [
            "No defense",
            "TSBD (reinit.n=0.15, sweep=false)",
            "TSBD (reinit.n=0.15, sweep=true)",
            "TSBD (reinit.n=0.15, sweep=true) (oracle)",
            "TSBD (reinit.n=0.5, sweep=false)",
        ]
    );
}

#[test]
fn mistakes_have_one_clear_error_and_the_right_exit_code() {
    let place = Place::new(TINY);
    let cases: [(&str, &str, i32, &str); 9] = [
        (
            "\"badnets\"",
            "\"badnet\"",
            2,
            "error: `[[attack]]` in grid.toml, line 9, cannot be used\ncaused by: unknown attack `badnet`",
        ),
        (
            "\"tsbd\"",
            "\"tsdb\"",
            2,
            "error: `[[defense]]` in grid.toml, line 17, cannot be used\ncaused by: unknown defense `tsdb`",
        ),
        (
            "finetune.epochs",
            "finetune.epoch",
            2,
            "caused by: unknown setting `finetune.epoch`\n  in grid.toml, line 19\nhint: did you mean `finetune.epochs`?",
        ),
        (
            "width = 4",
            "widht = 4",
            2,
            "error: unknown key `grid.widht`\n  in grid.toml, line 4\nhint: did you mean `grid.width`?\n",
        ),
        (
            "train_limit = 200",
            "train_limit = 0",
            2,
            "error: `grid.train_limit` is `0`, expected a whole number from 1 to 10000000\n",
        ),
        ("\"synthetic\"", "\"cifar10\"", 2, "error: "),
        (
            "\"synthetic\"",
            "\"Synthetic\"",
            2,
            "known are `cifar10`, `cifar100`, `gtsrb`, `tiny`, `synthetic`, `folder`; did you mean `synthetic`?)\n",
        ),
        (
            "width = 4",
            "width = 4\narch = \"resnet50\"",
            2,
            "error: `grid.arch` is `resnet50`, expected one of `preactresnet18`, `resnet18`, `resnet34`, `vgg19_bn`; did you mean `resnet18`?\n",
        ),
        (
            "width = 4",
            "width = 513",
            2,
            "error: `grid.width` is `513`, expected a whole number from 1 to 512\n",
        ),
    ];
    for (from, to, code, expect) in cases {
        place.write(
            "wrong.toml",
            &TINY.replace(from, to).replace("grid.toml", "wrong.toml"),
        );
        for command in ["run", "plan", "table"] {
            let (found, stdout, stderr) = place.fails(&[command, "wrong.toml", "--out", "out"]);
            let stderr = stderr.replace("wrong.toml", "grid.toml");
            assert!(stderr.contains(expect), "{stderr}");
            assert_eq!(
                (found, stdout.as_str()),
                (code, ""),
                "{command} {to}\n{stderr}"
            );
        }
    }
    place.write("file", "");
    for command in ["run", "plan", "table"] {
        for (out, expect) in [("file", "file"), ("file/below", "file")] {
            let (found, _, stderr) = place.fails(&[command, "grid.toml", "--out", out]);
            let expect = format!(
                "error: `{expect}` is a file, expected a folder for the results\nhint: give another folder with `--store DIR`\n"
            );
            assert!(stderr.ends_with(&expect), "{command} {out}\n{stderr}");
            assert_eq!(found, 3, "{stderr}");
        }
        place.write("cifar.toml", &TINY.replace("\"synthetic\"", "\"cifar10\""));
        let (_, _, stderr) = place.fails(&[command, "cifar.toml", "--out", "out"]);
        assert!(stderr.contains("hint: give the"), "{stderr}");
        assert!(!stderr.contains("--dataset"), "{stderr}");
        assert!(stderr.contains("`--data DIR`"), "{stderr}");
    }
    for (args, code, expect) in [
        (
            &["run", "absent.toml"][..],
            3,
            "error: failed to open file `absent.toml`",
        ),
        (
            &["table", "."],
            3,
            "error: `.` holds no complete result of an attack\nhint: ",
        ),
        (
            &["metrics", "grid.toml"],
            3,
            "error: `grid.toml` is neither the folder of a cell nor its `manifest.json`\n",
        ),
        (
            &["table", ".", "--out", "x"],
            2,
            "error: `--store` and `--data` go with a grid file",
        ),
        #[cfg(not(feature = "cuda"))]
        (
            &["run", "grid.toml", "--device", "cuda:0"],
            2,
            "error: device `cuda:0` is not available",
        ),
        (&["list"], 2, "error: unrecognized subcommand 'list'"),
        (
            &["run", "grid.toml", "--threads", "99999"],
            2,
            "error: invalid value '99999' for '--threads <N>': expected a number from 1 to 256",
        ),
    ] {
        let (found, _, stderr) = place.fails(args);
        assert!(stderr.starts_with(expect), "{args:?}\n{stderr}");
        assert_eq!(found, code, "{stderr}");
    }
    assert!(!place.path("out").exists(), "nothing was begun");
}

#[test]
fn what_fails_when_an_attack_starts_is_found_before_any() {
    let place = Place::new(TINY);
    place.write("picture.png", "no picture");
    let second = "method = \"blended\"\nset = {";
    let cases = [
        (
            format!("{second} target = 10,"),
            "caused by: `target` is 10, expected a class of 0..=9 (the dataset has 10 classes)",
        ),
        (
            format!("{second} label = \"all2all\", shift = 10,"),
            "caused by: `shift` is 10, expected 1..=9 (the dataset has 10 classes)",
        ),
        (
            format!("{second} ratio = 0.001,"),
            "caused by: `ratio` 0.001 of 200 training images selects no image",
        ),
        (
            "method = \"sig\"\nset = { target = 12,".to_owned(),
            "caused by: `target` is 12, expected a class of 0..=9",
        ),
        (
            "method = \"sig\"\nset = { ratio = 0.5,".to_owned(),
            "caused by: `ratio` 0.5 selects 100 of 200 training images, but only ",
        ),
        (
            "method = \"wanet\"\nset = { target = 10,".to_owned(),
            "caused by: `target` is 10, expected a class of 0..=9",
        ),
        (
            "method = \"wanet\"\nset = { ratio = 1e-6,".to_owned(),
            "caused by: `ratio` 0.000001 selects no image of any batch of the run",
        ),
        (
            "method = \"sig\"\nset = { trigger.frequency = 16.0,".to_owned(),
            "caused by: `trigger.frequency` is 16, expected less than 16",
        ),
        (
            format!("{second} trigger.file = \"absent.png\","),
            "absent.png",
        ),
        (
            "method = \"trojan\"\nset = { trigger.model = \"absent\",".to_owned(),
            "absent",
        ),
    ];
    for (entry, expect) in cases {
        place.write("wrong.toml", &TINY.replace(second, &entry));
        for command in ["run", "plan", "table"] {
            let (code, stdout, stderr) = place.fails(&[command, "wrong.toml", "--out", "out"]);
            let place = "error: `[[attack]]` in wrong.toml, line 13, cannot be used\ncaused by: ";
            assert!(stderr.contains(place), "{entry}\n{stderr}");
            assert!(stderr.contains(expect), "{entry}\n{stderr}");
            assert!([2, 3].contains(&code) && stdout.is_empty(), "{stderr}");
        }
    }
    assert!(!place.path("out/attack").exists(), "nothing was begun");
    // What is asked for and possible is let through: clean training, capping, and shares of every batch.
    for entry in [
        "method = \"clean\"\nset = {",
        "method = \"sig\"\nset = { ratio = 0.5, oversize = \"cap\",",
        "method = \"wanet\"\nset = { ratio = 0.02,",
    ] {
        place.write("good.toml", &TINY.replace(second, entry));
        place.ok(&["plan", "good.toml", "--out", "out"]);
    }
}

#[test]
fn a_grid_on_images_that_are_too_small_is_refused_before_its_first_cell() {
    let grid = TINY.replace(
        "dataset = \"synthetic\"",
        "dataset = \"folder\"\narch = \"vgg19_bn\"",
    );
    let grid = grid.replace("train_limit = 200\ntest_limit = 50\n", "");
    let place = Place::new(&grid);
    for split in ["train", "test"] {
        for class in ["cat", "dog"] {
            let folder = format!("images/{split}/{class}");
            fs_err::create_dir_all(place.path(&folder)).expect("a writable folder");
            let image = bb_attack::picture::Picture::new(28, 40, vec![7; 28 * 40 * 3]);
            let path = place.path(&format!("{folder}/0.png"));
            fs_err::write(path, image.to_png()).expect("a writable folder");
        }
    }
    for command in ["plan", "run"] {
        let (code, _, stderr) =
            place.fails(&[command, "grid.toml", "--data", "images", "--out", "out"]);
        let expect =
            "error: `vgg19_bn` needs images of at least 32 x 32 pixels, the dataset has 28 x 40\n";
        assert!(stderr.contains(expect), "{stderr}");
        assert_eq!(code, 2, "{stderr}");
    }
    assert!(!place.path("out/attack").exists(), "nothing was begun");
}

#[test]
fn labels_that_a_table_could_not_tell_apart_are_refused() {
    let place = Place::new(TINY);
    let end = TINY.find("[[defense]]").expect("a defense");
    let defenses = |labels: &[(&str, &str)]| {
        let entries = labels.iter().map(|(method, label)| match *label {
            "" => format!("[[defense]]\nmethod = \"{method}\"\n"),
            label => format!("[[defense]]\nmethod = \"{method}\"\nlabel = \"{label}\"\n"),
        });
        format!("{}{}", &TINY[..end], entries.collect::<String>())
    };
    let attack = |label: &str| {
        let label = format!("method = \"blended\"\nlabel = \"{label}\"");
        TINY.replace("method = \"blended\"", &label)
    };
    let cases = [
        (
            defenses(&[("ft", "No defense")]),
            "`[[defense]]` in wrong.toml, line 17,",
            "the label `No defense` is what a table calls the model without a defense",
        ),
        (
            defenses(&[("ft", ""), ("clp", "no DEFENSE")]),
            "`[[defense]]` in wrong.toml, line 19,",
            "the label `no DEFENSE` is what a table calls the model without a defense",
        ),
        (
            defenses(&[("ibau", ""), ("ft", "i-BAU")]),
            "`[[defense]]` in wrong.toml, line 19,",
            "the label `i-BAU` is that of line 17, too",
        ),
        (
            defenses(&[("clp", ""), ("ft", "CLP (oracle)")]),
            "`[[defense]]` in wrong.toml, line 19,",
            "the label `CLP (oracle)` is what a table calls the oracle of `CLP`",
        ),
        (
            defenses(&[("ft", "two\\nlines")]),
            "`[[defense]]` in wrong.toml, line 17,",
            "the label `two\\nlines` has a control character, expected one line of text",
        ),
        (
            attack("Average"),
            "`[[attack]]` in wrong.toml, line 13,",
            "the label `Average` is what a table calls the average over the attacks",
        ),
        (
            attack("a\\rb"),
            "`[[attack]]` in wrong.toml, line 13,",
            "the label `a\\rb` has a control character",
        ),
    ];
    for (grid, at, expect) in cases {
        place.write("wrong.toml", &grid);
        let (code, _, stderr) = place.fails(&["plan", "wrong.toml", "--out", "out"]);
        assert_eq!(code, 2, "{stderr}");
        let expect = format!("error: {at} cannot be used\ncaused by: {expect}");
        assert!(stderr.starts_with(&expect), "{expect}\n{stderr}");
        assert!(stderr.ends_with("hint: give the entry a `label` of its own\n"));
    }
    // An attack and a defense are never in the same column.
    place.write("good.toml", &attack("No defense"));
    place.ok(&["plan", "good.toml", "--out", "out"]);
}

#[test]
fn a_setting_of_a_grid_is_told_with_its_line() {
    let place = Place::new(TINY);
    let check = |attack: &str, expect: &str| {
        let grid = format!(
            "[grid]\nname = \"g\"\ndataset = \"synthetic\"\nwidth = 4\nseeds = [0]\n\n[[attack]]\nmethod = \"badnets\"\n{attack}"
        );
        place.write("settings.toml", &grid);
        let (code, _, stderr) = place.fails(&["plan", "settings.toml", "--out", "out"]);
        assert_eq!(code, 2, "{stderr}");
        assert!(stderr.contains(expect), "{stderr}\nlacks {expect}");
        assert!(!stderr.contains("--set"), "{stderr}");
    };
    check(
        "[attack.set]\nratio = 0.2\ntrain.epoch = 1\n",
        "unknown setting `train.epoch`\n  in settings.toml, line 11\n",
    );
    check(
        "[attack.set]\nratio = 2.0\n",
        "setting `ratio` is `2`, expected a share above 0 and at most 1\n  in settings.toml, line 10\n",
    );
    check(
        "set = { ratio = 0.2, train.epochs = -1 }\n",
        "`train.epochs` is `-1`, expected a whole number of at least 0\n  in settings.toml, line 9\n",
    );
    check(
        "set.target = \"ringo\"\n",
        "setting `target` is `ringo`, which is no class of the data\n  in settings.toml, line 9\n",
    );
}

#[test]
fn a_missing_file_has_one_exit_code() {
    let place = Place::new(TINY);
    for words in [
        &["run", "absent.toml"][..],
        &["plan", "absent.toml"],
        &["table", "absent.toml"],
        &["metrics", "absent"],
        &["metrics", "absent/manifest.json"],
        &["zoo", "scan", "absent.pt"],
        &["zoo", "list", "--index", "absent.toml"],
        &["zoo", "import", "absent", "--dataset", "synthetic"],
        &[
            "zoo",
            "import",
            "absent",
            "--dataset",
            "synthetic",
            "--rename-file",
            "absent.toml",
        ],
        &[
            "zoo",
            "export",
            "absent",
            "--format",
            "safetensors",
            "--out",
            "new",
        ],
        &["analyze", "nwc", "absent", "--out", "new"],
    ] {
        let (code, stdout, stderr) = place.fails(words);
        assert_eq!((code, stdout.as_str()), (3, ""), "{words:?}: {stderr}");
        assert!(stderr.contains("absent"), "{stderr}");
    }
}

/// A grid over models that another grid has trained and exported as the benchmark's folders.
#[test]
fn models_that_were_trained_elsewhere_are_repaired_by_a_grid() {
    let place = Place::new(TINY);
    place.ok(&["run", "grid.toml", "--out", "out", "--quiet"]);
    let cells: Vec<PathBuf> = place.manifests("out").into_keys().collect();
    let attacks: Vec<&PathBuf> = cells.iter().filter(|c| c.starts_with("attack")).collect();
    assert_eq!(attacks.len(), 2, "{cells:?}");
    for (cell, name) in attacks.iter().zip(["first", "second"]) {
        let cell = place.path("out").join(cell.parent().expect("a folder"));
        let cell = cell.to_str().expect("plain");
        let to = format!("record/{name}");
        place.ok(&[
            "zoo",
            "export",
            cell,
            "--format",
            "backdoorbench",
            "--out",
            &to,
        ]);
    }
    let head = TINY.split("[[attack]]").next().expect("the head");
    let defense = "[[defense]]\nmethod = \"clp\"\nset = { u = 1000.0 }\n";
    let grid = |head: &str, model: &str| format!("{head}[[model]]\n{model}\n{defense}");
    let all = grid(head, "path = \"record/*\"\nattack = \"badnets\"").replace("[0]", "[0, 1]");
    place.write("models.toml", &all);

    let plan = place.ok(&["plan", "models.toml", "--out", "models"]);
    let count = |word: &str| plan.lines().filter(|line| line.contains(word)).count();
    assert_eq!(
        (
            count("  missing   attack   first, seed"),
            count("  missing  ")
        ),
        (2, 8),
        "{plan}"
    );
    assert!(
        place.manifests("models").is_empty(),
        "a plan computes nothing"
    );

    let table = place.ok(&["run", "models.toml", "--out", "models", "--quiet"]);
    // A defense that prunes nothing leaves what its model had, and so has the attack that was exported.
    let values = |table: &str, block: usize, row: usize| -> Vec<String> {
        let block = table.split("\n----").nth(1 + block).expect("a block");
        let line = block.lines().skip(1).nth(row).expect("a row");
        let number = |word: &&str| word.parse::<f64>().is_ok() || word.ends_with('*');
        let words = line.split_whitespace().filter(number).take(1);
        words
            .map(|word| word.trim_end_matches('*').to_owned())
            .collect()
    };
    let trained = place.ok(&["table", "out"]);
    for block in 0..2 {
        let expect = values(&trained, block, 0);
        assert_eq!(expect.len(), 1, "{trained}");
        assert_eq!(values(&table, block, 0), expect, "{table}\n{trained}");
        assert_eq!(values(&table, block, 1), expect, "{table}");
    }
    assert!(
        table.contains("\nfirst ") && table.contains("\nsecond "),
        "{table}"
    );
    let made = place.manifests("models");
    // One cell for each model, whatever the seed, and one for each seed of the defense.
    assert_eq!(made.len(), 2 + 4, "{:?}", made.keys());
    place.ok(&["run", "models.toml", "--out", "models", "--quiet"]);
    assert_eq!(place.manifests("models"), made);

    // A model need not have the network of the grid, which is said then.
    let wider = grid(
        &head.replace("width = 4", "width = 8"),
        "path = \"record/first\"",
    );
    place.write("wider.toml", &wider);
    let table = place.ok(&["run", "wider.toml", "--out", "models", "--quiet"]);
    assert!(
        table.contains("\nother networks: first preactresnet18-w4\n"),
        "{table}"
    );
    let csv = place.ok(&["table", "wider.toml", "--out", "models", "--format", "csv"]);
    assert!(
        csv.contains(",preactresnet18-w4,") && !csv.contains("-w8,"),
        "{csv}"
    );

    let refused = [
        (
            grid(head, "path = \"record/none*\""),
            "nothing fits `record/none*`, expected at least one model",
        ),
        (
            grid(head, "path = \"record/*\"\nlabel = \"x\""),
            "the label `x` is for one model, and the path fits 2",
        ),
        (grid(head, "path = \"record/a**b\""), "is no pattern"),
        (
            grid(head, "path = \"record/first\"\nattack = \"badnet5\""),
            "unknown attack `badnet5`",
        ),
        (
            grid(head, "path = \"record/first\"\nmethod = \"badnets\""),
            "unknown key `model[0].method`",
        ),
        (grid(head, "label = \"x\""), "`model[0].path` is missing"),
        (
            grid(
                head,
                "path = \"record/first\"\n[[model]]\npath = \"record/first\"",
            ),
            "the label `first` is that of line",
        ),
        (
            grid(&head.replace("200", "199"), "path = \"record/first\""),
            "was trained on the first 200 images, and the grid has 199",
        ),
        (
            grid(head, "path = \"record/first/bd_test_dataset\""),
            "has no `attack_result.pt`",
        ),
    ];
    for (text, expect) in refused {
        place.write("bad.toml", &text);
        let (code, stdout, stderr) = place.fails(&["run", "bad.toml", "--out", "bad"]);
        assert!(
            matches!(code, 2 | 3) && stdout.is_empty(),
            "{code} {stderr}"
        );
        assert!(
            stderr.contains(expect) && stderr.contains("bad.toml"),
            "{stderr}\n{expect}"
        );
        assert!(place.manifests("bad").is_empty(), "{expect}");
    }
}
