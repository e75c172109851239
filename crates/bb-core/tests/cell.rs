//! Cells: named by their content, worked on by one process at a time, complete or not, never half.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use bb_core::cell::{
    CKPT, Cell, CellError, CellSpec, FAILED, Failed, Holder, Kind, MANIFEST, Manifest, Opened,
    Work, canonical_json, open,
};
use bb_core::cli::{Coded, exit};
use bb_core::files::FileError;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn spec() -> CellSpec {
    CellSpec {
        kind: Kind::Attack,
        method: "badnets".into(),
        dataset: "synthetic".into(),
        arch: "preactresnet18-w16".into(),
        settings: json!({"train": {"lr": 0.01, "epochs": 3}, "ratio": 0.1, "label": "all2one"}),
        inputs: BTreeMap::from([("dataset".into(), "ab12".into())]),
        seed: 7,
    }
}

fn work(out: &Path, spec: &CellSpec) -> Box<Work> {
    match open(out, spec).expect("the cell can be opened") {
        Opened::Work(work) => work,
        Opened::Complete(cell) => panic!("`{}` is complete", cell.dir.display()),
    }
}

fn complete(out: &Path, spec: &CellSpec) -> Box<Cell> {
    match open(out, spec).expect("the cell can be opened") {
        Opened::Complete(cell) => cell,
        Opened::Work(work) => panic!("`{}` is not complete", work.dir().display()),
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs_err::read_to_string(path.as_ref()).expect("the file is there")
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(dir).expect("the folder is there");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("the entry can be read").file_name())
        .map(|name| name.into_string().expect("all names here are UTF-8"))
        .collect();
    names.sort();
    names
}

/// A small cell that is complete, in a folder that lives as long as the first value.
fn finished() -> (tempfile::TempDir, Cell) {
    let out = tempfile::tempdir().expect("a temporary folder");
    let work = work(out.path(), &spec());
    work.write("model.safetensors", b"weights")
        .expect("written");
    work.write("poison/0.png", b"pixels").expect("written");
    work.append_line("metrics.jsonl", "{\"epoch\":0}")
        .expect("written");
    work.write("env.json", b"{\"host\":\"here\"}")
        .expect("written");
    work.append_line("log.jsonl", "{\"time\":1}")
        .expect("written");
    work.write("ckpt/state", b"momentum").expect("written");
    let cell = work
        .finish(json!({"scores": {"b": 1, "a": 0.5}}))
        .expect("finished");
    (out, cell)
}

/// What is said of a cell whose manifest has been changed; it is whole again afterwards.
fn edit(cell: &Cell, change: impl FnOnce(&mut Map<String, Value>)) -> CellError {
    let path = cell.file(MANIFEST);
    let whole = read(&path);
    let mut manifest: Map<String, Value> = serde_json::from_str(&whole).expect("it was written");
    // Whoever changes it can also leave out its digest, as the manifests of earlier versions do.
    manifest.remove("digest");
    change(&mut manifest);
    fs_err::write(&path, Value::Object(manifest).to_string()).expect("written");
    let error = Cell::load(&cell.dir).expect_err("the change must be seen");
    fs_err::write(&path, whole).expect("written");
    error
}

#[test]
fn the_id_of_a_specification_is_fixed() {
    // Computed with Python: json.dumps(spec, sort_keys=True, separators=(",", ":")) and hashlib.sha256.
    assert_eq!(spec().id(), "306e7f6790418b32");
    assert_eq!(
        spec().dir(Path::new("runs")),
        Path::new("runs/attack/badnets/synthetic-preactresnet18-w16/306e7f6790418b32")
    );
}

#[test]
fn each_part_of_a_specification_makes_another_id() {
    let changes: [fn(&mut CellSpec); 10] = [
        |_| {},
        |s| s.kind = Kind::Defense,
        |s| s.method = "blended".into(),
        |s| s.dataset = "cifar10".into(),
        |s| s.arch = "preactresnet18-w64".into(),
        |s| s.settings["ratio"] = json!(0.100_000_000_000_000_02),
        |s| s.settings["train"]["nesterov"] = json!(false),
        |s| drop(s.inputs.insert("dataset".into(), "ab13".into())),
        |s| drop(s.inputs.insert("image".into(), "ab12".into())),
        |s| s.seed = 8,
    ];
    let mut ids: Vec<String> = changes
        .iter()
        .map(|change| {
            let mut spec = spec();
            change(&mut spec);
            spec.id()
        })
        .collect();
    assert!(ids.iter().all(|id| id.len() == 16));
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), changes.len());
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let out = tempfile::tempdir().expect("a temporary folder");
    for name in [
        "", "..", "../x", "/x", "a/b", "a\\b", ".hidden", "a b", "ä", "a\0",
    ] {
        for (field, set) in [
            ("method", (|s, n| s.method = n) as fn(&mut CellSpec, String)),
            ("dataset", |s, n| s.dataset = n),
            ("arch", |s, n| s.arch = n),
        ] {
            let mut spec = spec();
            set(&mut spec, name.to_owned());
            let error = open(out.path(), &spec).expect_err("the name must be refused");
            assert_eq!(
                error.to_string(),
                format!("`{field}` is `{name}`, expected letters, digits, `.`, `_` and `-`")
            );
        }
    }
    assert!(names(out.path()).is_empty());
}

#[test]
fn a_finished_cell_is_complete_and_says_what_it_holds() {
    let (out, cell) = finished();
    assert_eq!(
        names(&cell.dir),
        [
            "env.json",
            "lock",
            "log.jsonl",
            "manifest.json",
            "metrics.jsonl",
            "model.safetensors",
            "poison"
        ]
    );
    let listed: Vec<_> = cell.manifest.files.keys().collect();
    assert_eq!(
        listed,
        ["metrics.jsonl", "model.safetensors", "poison/0.png"]
    );
    assert_eq!(cell.manifest.files["model.safetensors"].bytes, 7);
    assert_eq!(
        cell.manifest.files["model.safetensors"].sha256,
        bb_core::artifact::sha256_hex(b"weights")
    );
    assert_eq!(cell.manifest.spec(), spec());
    assert_eq!(cell.manifest.id, spec().id());

    let again = complete(out.path(), &spec());
    assert_eq!(again.manifest, cell.manifest);
    for path in [cell.dir.clone(), cell.file(MANIFEST)] {
        let loaded = Cell::load(&path).expect("the cell is complete");
        assert_eq!(loaded.manifest, cell.manifest);
        assert_eq!(loaded.dir, cell.dir);
        assert_eq!(loaded.digest(), cell.digest());
        assert_eq!(read(loaded.file("model.safetensors")), "weights");
    }
}

#[test]
fn the_same_run_gives_the_same_manifest() {
    let (_one, first) = finished();
    let (_two, second) = finished();
    assert_eq!(read(first.file(MANIFEST)), read(second.file(MANIFEST)));
    assert_eq!(first.digest(), second.digest());
    let text = read(first.file(MANIFEST));
    // Keys of the program's own maps are sorted, and what differs from run to run is not there.
    assert!(text.find("\"a\"") < text.find("\"b\""));
    assert!(text.find("\"label\"") < text.find("\"train\""));
    assert!(!text.contains("env.json") && !text.contains("log.jsonl"));
    assert!(text.ends_with("}\n"));
}

#[test]
fn a_changed_file_is_named_with_both_digests() {
    let (out, cell) = finished();
    let path = cell.file("model.safetensors");
    fs_err::write(&path, "WEIGHTS").expect("written");
    let message = format!(
        "`{}` has sha256 `{}`, expected `{}`",
        path.display(),
        bb_core::artifact::sha256_hex(b"WEIGHTS"),
        bb_core::artifact::sha256_hex(b"weights"),
    );
    let errors = [
        Cell::load(&cell.dir).expect_err("the file is another"),
        open(out.path(), &spec()).expect_err("the file is another"),
    ];
    for error in errors {
        assert_eq!(error.to_string(), message);
        assert_eq!(error.exit_code(), exit::INPUT);
        assert!(error.hint().is_some());
    }
    // It has not been computed again in silence.
    assert_eq!(read(&path), "WEIGHTS");

    fs_err::write(&path, "weight").expect("written");
    let error = Cell::load(&cell.dir).expect_err("the file is shorter");
    assert!(matches!(
        error,
        CellError::Length {
            expected: 7,
            found: 6,
            ..
        }
    ));
    fs_err::remove_file(&path).expect("removed");
    let error = Cell::load(&cell.dir).expect_err("the file is absent");
    assert!(matches!(error, CellError::Missing { path: named } if named == path));
    fs_err::create_dir(&path).expect("made");
    let error = Cell::load(&cell.dir).expect_err("it is a folder");
    assert!(matches!(error, CellError::NotAFile { path: named } if named == path));
}

#[test]
fn what_is_not_listed_may_change() {
    let (_out, cell) = finished();
    fs_err::write(cell.file("env.json"), "{}").expect("written");
    fs_err::write(cell.file("notes.txt"), "mine").expect("written");
    fs_err::remove_file(cell.file("log.jsonl")).expect("removed");
    Cell::load(&cell.dir).expect("the cell is complete");
}

#[test]
fn links_are_not_followed() {
    let (out, cell) = finished();
    let real = out.path().join("elsewhere");
    fs_err::create_dir(&real).expect("made");
    fs_err::rename(cell.file("poison/0.png"), real.join("0.png")).expect("moved");
    // The file itself, then the folder it lies in.
    std::os::unix::fs::symlink(real.join("0.png"), cell.file("poison/0.png")).expect("linked");
    let error = Cell::load(&cell.dir).expect_err("a link is no file");
    assert!(matches!(error, CellError::NotAFile { path } if path == cell.file("poison/0.png")));
    fs_err::remove_dir_all(cell.file("poison")).expect("removed");
    std::os::unix::fs::symlink(&real, cell.file("poison")).expect("linked");
    let error = Cell::load(&cell.dir).expect_err("a link is no folder");
    assert!(matches!(error, CellError::NotAFile { path } if path == cell.file("poison")));

    let mut other = spec();
    other.seed = 8;
    let work = work(out.path(), &other);
    let rows = work.dir().join("metrics.jsonl");
    std::os::unix::fs::symlink(real.join("0.png"), rows).expect("linked");
    let error = work.finish(Value::Null).expect_err("a link is no file");
    assert!(matches!(error, CellError::NotAFile { .. }));
}

/// Something that happens to a manifest.
type Change = fn(&mut Map<String, Value>);

#[test]
fn a_manifest_that_lies_is_refused() {
    let (out, cell) = finished();
    let entry = json!({"bytes": 0, "sha256": "0".repeat(64)});
    for name in [
        "../x",
        "poison/../../x",
        "/etc/passwd",
        "./x",
        "poison//0.png",
        "poison/",
        "",
        "..",
        "a\\b",
        "C:x",
        "a\nb",
    ] {
        let error = edit(&cell, |manifest| {
            manifest["files"] = json!({(name): entry});
        });
        assert_eq!(
            error.to_string(),
            format!(
                "`{name}` is not the name of a file within the cell `{}`",
                cell.dir.display()
            )
        );
    }

    let cases: [(Change, &str); 15] = [
        (|m| m["schema"] = json!(2), "has schema 2, expected 1"),
        (
            |m| m["schema"] = json!(1_u64 << 40),
            "has schema 1099511627776, expected 1",
        ),
        (
            // Whatever else another version may say.
            |m| {
                m.retain(|key, _| key == "schema");
                m["schema"] = json!(9);
            },
            "has schema 9, expected 1",
        ),
        (|m| m["schema"] = json!("1"), "is not a valid manifest"),
        (|m| m["schema"] = json!(-1), "is not a valid manifest"),
        (|m| drop(m.remove("schema")), "is not a valid manifest"),
        (|m| drop(m.remove("files")), "is not a valid manifest"),
        (
            |m| drop(m.insert("time".into(), json!(3))),
            "is not a valid manifest at `time`",
        ),
        (
            |m| m["kind"] = json!("other"),
            "is not a valid manifest at `kind`",
        ),
        (
            |m| m["seed"] = json!(1.5),
            "is not a valid manifest at `seed`",
        ),
        (
            |m| m["files"]["model.safetensors"]["bytes"] = json!(-7),
            "is not a valid manifest at `files.model.safetensors.bytes`",
        ),
        (
            |m| m["files"]["model.safetensors"] = json!({"bytes": 7}),
            "is not a valid manifest at `files.model.safetensors`",
        ),
        (
            |m| m["id"] = json!("0000000000000000"),
            "has id `0000000000000000`, expected `306e7f6790418b32`",
        ),
        (
            |m| m["files"]["model.safetensors"]["bytes"] = json!(u64::MAX),
            "has 7 bytes, expected 18446744073709551615",
        ),
        (
            |m| m["files"]["model.safetensors"]["sha256"] = json!("x"),
            "expected `x`",
        ),
    ];
    for (change, message) in cases {
        let found = edit(&cell, change).to_string();
        assert!(found.ends_with(message), "{found}");
        assert!(found.contains(&cell.dir.display().to_string()), "{found}");
    }

    // The settings were touched up after the fact.
    let error = edit(&cell, |manifest| manifest["seed"] = json!(0));
    assert!(matches!(error, CellError::Id { .. }));
    // A whole cell was copied to the place of another.
    let mut other = spec();
    other.seed = 8;
    fs_err::create_dir_all(other.dir(out.path())).expect("made");
    fs_err::copy(cell.file(MANIFEST), other.dir(out.path()).join(MANIFEST)).expect("copied");
    for file in ["metrics.jsonl", "model.safetensors", "poison/0.png"] {
        let to = other.dir(out.path()).join(file);
        fs_err::create_dir_all(to.parent().expect("it has one")).expect("made");
        fs_err::copy(cell.file(file), to).expect("copied");
    }
    let error = open(out.path(), &other).expect_err("it is the other cell");
    assert!(matches!(error, CellError::Id { expected, .. } if expected == other.id()));
}

#[test]
fn no_bit_of_a_manifest_changes_unseen() {
    let (_out, cell) = finished();
    let path = cell.file(MANIFEST);
    let whole = fs_err::read(&path).expect("it is there");
    let mut accepted = 0;
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            fs_err::write(&path, &bytes).expect("written");
            if let Ok(loaded) = Cell::load(&cell.dir) {
                assert_eq!(loaded.manifest, cell.manifest, "bit {bit} of byte {at}");
                accepted += 1;
            }
        }
    }
    // White space that becomes another white space says the same.
    assert!(
        accepted < whole.len() / 10,
        "{accepted} changes were accepted"
    );
}

#[test]
fn a_manifest_of_an_earlier_version_has_the_same_digest() {
    let (_out, cell) = finished();
    let path = cell.file(MANIFEST);
    assert_eq!(cell.manifest.digest.as_deref(), Some(&*cell.digest()));
    let mut manifest: Map<String, Value> = serde_json::from_str(&read(&path)).expect("JSON");
    manifest.remove("digest").expect("it is there");
    // What it was before it was kept: that of the whole.
    let whole = canonical_json(&Value::Object(manifest.clone()));
    fs_err::write(&path, Value::Object(manifest).to_string()).expect("written");
    let old = Cell::load(&cell.dir).expect("an earlier version made it");
    assert_eq!(old.manifest.digest, None);
    assert_eq!(old.digest(), cell.digest());
    assert_eq!(old.digest(), bb_core::artifact::sha256_hex(whole));
}

#[test]
fn only_listed_files_are_results() {
    let (_out, cell) = finished();
    let path = cell.listed("model.safetensors").expect("it is listed");
    assert_eq!(path, cell.file("model.safetensors"));
    fs_err::write(cell.file("oracle.safetensors"), "anybody's").expect("written");
    for name in ["oracle.safetensors", "env.json", "absent"] {
        let error = cell.listed(name).expect_err("it is not listed");
        let expected = format!("`{}` does not list `{name}`", cell.file(MANIFEST).display());
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.exit_code(), exit::INPUT);
    }
}

#[test]
fn a_stranger_names_nothing_that_no_cell_is_called() {
    let (_out, cell) = finished();
    for name in ["=1+1", "a\u{1b}[2J", "../x", ""] {
        let error = edit(&cell, |manifest| manifest["method"] = json!(name));
        assert!(
            matches!(&error, CellError::Name { found, .. } if found == name),
            "{error}"
        );
    }
    let error = edit(&cell, |m| m["results"] = json!(vec![0; 100_000]));
    assert!(
        error.to_string().contains("is not a valid manifest"),
        "{error}"
    );
    let model = cell.file("model.safetensors");
    let file = fs_err::File::create(&model).expect("made");
    file.set_len(60 << 30).expect("a file may have a hole");
    let error = edit(&cell, |m| {
        m["files"]["model.safetensors"]["bytes"] = json!(60_u64 << 30);
    });
    assert!(
        error.to_string().contains("has more than 8589934592 bytes"),
        "{error}"
    );
}

#[test]
fn bytes_that_are_no_manifest_are_refused() {
    let (_out, cell) = finished();
    let path = cell.file(MANIFEST);
    let whole = fs_err::read(&path).expect("it is there");
    // The last byte is a line break, without which it is still whole.
    for length in (0..whole.len() - 1).step_by(37) {
        fs_err::write(&path, &whole[..length]).expect("written");
        let error = Cell::load(&cell.dir).expect_err("it is cut off");
        assert!(
            matches!(error, CellError::Manifest { .. }),
            "the first {length} bytes"
        );
    }
    let deep = format!("{{\"schema\":1,\"results\":{}", "[".repeat(1_000_000));
    let twice = String::from_utf8(whole.clone())
        .expect("it is JSON")
        .repeat(2);
    for text in [&deep[..], &twice, "\u{feff}{}", "null", "[1]", "\0"] {
        fs_err::write(&path, text).expect("written");
        let error = Cell::load(&cell.dir).expect_err("it is no manifest");
        assert!(matches!(error, CellError::Manifest { .. }), "{text:.40}");
    }
    let file = fs_err::File::create(&path).expect("made");
    file.set_len(1 << 40).expect("a file may have a hole");
    let error = Cell::load(&cell.dir).expect_err("it is too long");
    assert!(matches!(error, CellError::File(FileError::TooLong { .. })));
    assert!(error.hint().is_some());
}

#[test]
fn places_without_a_cell_are_named() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let absent = out.path().join("absent");
    let model = out.path().join("model.safetensors");
    fs_err::write(&model, "").expect("written");
    for path in [absent.clone(), absent.join(MANIFEST), model] {
        let error = Cell::load(&path).expect_err("there is no cell");
        assert!(matches!(error, CellError::NoCell { path: named } if named == path));
    }
    let work = work(out.path(), &spec());
    let error = Cell::load(work.dir()).expect_err("the cell is not complete");
    assert!(matches!(&error, CellError::Incomplete { path } if path == work.dir()));
    let hint = |path: &std::path::Path| Cell::load(path).expect_err("no cell").hint();
    let says = |path: &std::path::Path, words: &str| {
        let hint = hint(path).unwrap_or_default();
        assert!(hint.contains(words), "{}: {hint}", path.display());
    };
    says(work.dir(), "and it resumes");
    // A folder of cells never was one itself, and what others left has to be imported.
    says(out.path(), "it was never one");
    says(
        &out.path().join("model.safetensors"),
        "`bb-eval zoo import`",
    );
    let record = out.path().join("record");
    fs_err::create_dir(&record).expect("made");
    fs_err::write(record.join("attack_result.pt"), "").expect("written");
    says(&record, "`bb-eval zoo import`");
    assert_eq!(hint(&absent), None);
}

#[test]
fn a_cell_is_worked_on_once_at_a_time() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let first = work(out.path(), &spec());
    let error = open(out.path(), &spec()).expect_err("it is locked");
    assert_eq!(
        error.to_string(),
        format!(
            "`{}` is locked by {}",
            first.dir().display(),
            Holder::here()
        )
    );
    assert_eq!(
        read(first.dir().join("lock")),
        format!("{}\n", Holder::here())
            .replace("process ", "")
            .replace(" on ", " ")
    );
    assert_eq!(error.exit_code(), exit::TRY_AGAIN);
    // Another cell is free.
    let mut other = spec();
    other.seed = 8;
    drop(work(out.path(), &other));
    drop(first);
    work(out.path(), &spec())
        .finish(Value::Null)
        .expect("finished");
    complete(out.path(), &spec());
}

/// Runs the test of this name in a process of its own, with `BB_TEST_OUT` set to a folder, and waits for a first line
/// that says `ready`.
fn child(test: &str, out: &Path) -> Child {
    let program = std::env::current_exe().expect("this test has a program");
    let mut child = Command::new(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("BB_TEST_OUT", out)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    let lines = BufReader::new(child.stdout.take().expect("it is a pipe")).lines();
    let ready = lines
        .map_while(Result::ok)
        .any(|line| line.ends_with("ready"));
    assert!(ready, "the child ended early");
    child
}

/// The part that runs in the child: works on a cell until it is killed.
#[test]
fn child_that_works_until_it_is_killed() {
    let Some(out) = std::env::var_os("BB_TEST_OUT").map(PathBuf::from) else {
        return;
    };
    let work = work(&out, &spec());
    steps(&work, 3);
    let mut half = bb_core::artifact::atomic::File::create(work.dir().join("model.safetensors"))
        .expect("made");
    std::io::Write::write_all(&mut half, b"half a mo").expect("written");
    #[allow(clippy::print_stdout, reason = "the parent waits for it")]
    {
        println!("ready");
    }
    std::thread::sleep(std::time::Duration::from_mins(1));
}

#[test]
fn a_killed_process_leaves_a_cell_that_can_be_resumed() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let mut child = child("child_that_works_until_it_is_killed", out.path());
    let error = open(out.path(), &spec()).expect_err("the child works on it");
    assert!(
        matches!(error, CellError::Locked { holder: Some(Holder { process, .. }), .. } if process == child.id())
    );
    // On Unix this is `kill -9`.
    child.kill().expect("the child can be killed");
    child.wait().expect("the child has ended");

    let resumed = work(out.path(), &spec());
    assert_eq!(names(resumed.dir()), ["ckpt", "lock", "metrics.jsonl"]);
    steps(&resumed, STEPS);
    let cell = resumed.finish(json!({"steps": STEPS})).expect("finished");
    assert_eq!(read(cell.file(MANIFEST)), uninterrupted());
}

/// Steps of a run.
const STEPS: usize = 5;

/// Does what a training loop does, from the last checkpoint to step `until`: a line of metrics, then a checkpoint.
fn steps(work: &Work, until: usize) {
    let checkpoint = work.dir().join(CKPT).join("state");
    let done = match fs_err::read_to_string(&checkpoint) {
        Ok(text) => text.parse().expect("a checkpoint is whole"),
        Err(_) => 0_usize,
    };
    let step = |line: &str| {
        let row: Value = serde_json::from_str(line).expect("a line is whole");
        row["step"].as_u64().expect("every row has a step") as usize
    };
    work.truncate_lines("metrics.jsonl", |line| step(line) < done)
        .expect("cut");
    for step in done..until {
        let row = json!({"step": step, "loss": 1.0 / (step as f64 + 1.0)});
        work.append_line("metrics.jsonl", &row.to_string())
            .expect("written");
        work.write("ckpt/state", (step + 1).to_string().as_bytes())
            .expect("written");
    }
    if until == STEPS {
        work.write("model.safetensors", b"trained")
            .expect("written");
    }
}

/// The manifest of a run that nothing interrupts.
fn uninterrupted() -> String {
    let out = tempfile::tempdir().expect("a temporary folder");
    let work = work(out.path(), &spec());
    steps(&work, STEPS);
    let cell = work.finish(json!({"steps": STEPS})).expect("finished");
    read(cell.file(MANIFEST))
}

#[test]
fn a_run_interrupted_anywhere_ends_with_the_same_bits() {
    let append = |dir: &Path, name: &str, text: &str| {
        let path = dir.join(name);
        let old = fs_err::read(&path).unwrap_or_default();
        fs_err::write(&path, [&old[..], text.as_bytes()].concat()).expect("written");
    };
    let damages: [&dyn Fn(&Path); 6] = [
        &|_| {},
        &|dir| append(dir, "metrics.jsonl", "{\"step\":9,\"loss\":0.1}\n"),
        &|dir| append(dir, "metrics.jsonl", "{\"step\":0,\"lo"),
        &|dir| append(dir, ".tmp-99999-0", "half a file"),
        &|dir| {
            fs_err::create_dir_all(dir.join("ckpt")).expect("made");
            append(dir, "ckpt/.tmp-99999-1", "half a checkpoint");
        },
        &|dir| append(dir, "lock", "not a number"),
    ];
    let expected = uninterrupted();
    for damage in damages {
        for until in [0, 2, STEPS] {
            let out = tempfile::tempdir().expect("a temporary folder");
            let first = work(out.path(), &spec());
            steps(&first, until);
            let dir = first.dir().to_owned();
            drop(first);
            damage(&dir);
            let second = work(out.path(), &spec());
            steps(&second, STEPS);
            let cell = second.finish(json!({"steps": STEPS})).expect("finished");
            assert_eq!(read(cell.file(MANIFEST)), expected, "after step {until}");
            let listed = [
                "lock",
                "manifest.json",
                "metrics.jsonl",
                "model.safetensors",
            ];
            assert_eq!(names(&dir), listed, "after step {until}");
        }
    }
}

#[test]
fn finishing_twice_is_finishing_once() {
    let (out, cell) = finished();
    let text = read(cell.file(MANIFEST));
    // Killed before the manifest had its name: everything is there but that, and checkpoints may be.
    fs_err::remove_file(cell.file(MANIFEST)).expect("removed");
    fs_err::write(cell.file(".tmp-1-1"), &text[..40]).expect("written");
    // What any run has need not be written again, and a foreign file is no result.
    fs_err::write(cell.file(".DS_Store"), "mine").expect("written");
    fs_err::write(cell.file("poison/Thumbs.db"), "mine").expect("written");
    let work = work(out.path(), &spec());
    work.write("poison/0.png", b"pixels").expect("written");
    let again = work
        .finish(json!({"scores": {"a": 0.5, "b": 1}}))
        .expect("finished");
    assert_eq!(read(again.file(MANIFEST)), text);
    // Killed after: the cell is complete, and the checkpoints go when it is opened.
    fs_err::create_dir(cell.file(CKPT)).expect("made");
    fs_err::write(cell.file("ckpt/state"), "momentum").expect("written");
    complete(out.path(), &spec());
    assert!(!cell.file(CKPT).exists());
}

#[test]
fn lines_are_whole_or_gone() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let work = work(out.path(), &spec());
    let path = work.dir().join("metrics.jsonl");
    // Nothing is made of nothing.
    work.truncate_lines("metrics.jsonl", |_| true).expect("cut");
    assert!(!path.exists());
    for line in ["0", "", "2 é"] {
        work.append_line("metrics.jsonl", line).expect("written");
    }
    assert_eq!(read(&path), "0\n\n2 é\n");
    for (torn, appended) in [
        (&b"0\n1\n{\"ep"[..], "0\n1\nnew\n"),
        (b"{\"ep", "new\n"),
        (b"0\n\xff\xfe", "0\nnew\n"),
        (b"", "new\n"),
    ] {
        fs_err::write(&path, torn).expect("written");
        work.append_line("metrics.jsonl", "new").expect("written");
        assert_eq!(read(&path), appended);
    }
    fs_err::write(&path, b"0\n1\n\xff\n2\n1\n3").expect("written");
    work.truncate_lines("metrics.jsonl", |line| line != "1")
        .expect("cut");
    assert_eq!(read(&path), "0\n2\n");
    let error = work
        .append_line("metrics.jsonl", "a\nb")
        .expect_err("these are two lines");
    assert!(matches!(error, CellError::LineBreak { path: named } if named == path));
}

#[test]
fn names_within_a_cell_are_checked() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let work = work(out.path(), &spec());
    for name in ["../x", "/x", "", "a//b", "a/..", ".", "a\\b", "c:d", "a\0b"] {
        let error = work.write(name, b"").expect_err("the name must be refused");
        assert!(matches!(error, CellError::FileName { .. }), "{name}");
    }
    for name in [
        "manifest.json",
        "lock",
        "ckpt",
        "failed.json",
        ".tmp-1-1",
        "a/.tmp-x",
    ] {
        let error = work
            .append_line(name, "")
            .expect_err("the name must be refused");
        assert!(matches!(error, CellError::Reserved { .. }), "{name}");
        assert_eq!(error.exit_code(), exit::BUG);
    }
    for name in ["ckpt/a/b", "a/manifest.json", "a/lock", "..a"] {
        work.write(name, b"x").expect("the name is good");
        assert_eq!(read(work.dir().join(name)), "x");
    }
    let cell = work.finish(Value::Null).expect("finished");
    let listed: Vec<_> = cell.manifest.files.keys().collect();
    assert_eq!(listed, ["..a", "a/lock", "a/manifest.json"]);
    Cell::load(&cell.dir).expect("the cell is complete");
}

/// What a method can fail with: a message, an exit code, and perhaps what the system said.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("the loss of epoch {epoch}\n  is NaN")]
    Told { epoch: usize, code: u8 },
    #[error("cannot read the picture")]
    Io { source: std::io::Error },
    #[error(transparent)]
    Cell(#[from] CellError),
}

impl Coded for Trouble {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Told { code, .. } => *code,
            Self::Io { source } => source.exit_code(),
            Self::Cell(error) => error.exit_code(),
        }
    }
}

fn told(code: u8) -> Result<Value, Trouble> {
    Err(Trouble::Told { epoch: 3, code })
}

#[test]
fn a_failure_that_would_come_again_is_kept_until_a_run_succeeds() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let dir = spec().dir(out.path());
    let run = |body: fn(&Work) -> Result<Value, Trouble>| work(out.path(), &spec()).complete(body);
    let whole = |work: &Work| {
        work.write("model.safetensors", b"trained")?;
        Ok(json!({"acc": 1}))
    };
    // What came of the machine, or of somebody's wish, is not kept.
    for code in [1, 75, 130, 143] {
        let error = match code {
            1 => run(|_| told(1)),
            75 => run(|_| told(75)),
            130 => run(|_| told(130)),
            _ => run(|_| told(143)),
        };
        assert_eq!(error.expect_err("it fails").exit_code(), code);
        assert_eq!(Failed::read(&dir).expect("no record"), None, "code {code}");
    }
    let gone = |_: &Work| {
        let source = std::io::Error::from(std::io::ErrorKind::NotFound);
        Err(Trouble::Io { source })
    };
    assert_eq!(run(gone).expect_err("it fails").exit_code(), 3);
    assert_eq!(Failed::read(&dir).expect("no record"), None);

    for (code, body) in [
        (2, (|_| told(2)) as fn(&Work) -> Result<Value, Trouble>),
        (3, |_| told(3)),
        (4, |_| told(4)),
        (101, |_| told(101)),
    ] {
        run(body).expect_err("it fails");
        let failed = Failed::read(&dir).expect("valid").expect("a record");
        assert_eq!(failed.exit_code, code);
        assert_eq!(failed.message, "the loss of epoch 3 is NaN");
        assert_eq!(failed.version, env!("CARGO_PKG_VERSION"));
        assert!(failed.time.ends_with('Z'), "{}", failed.time);
    }
    // A panic is let through, with the lock released and the record written.
    let panic = std::panic::catch_unwind(|| run(|_| panic!("index {} of 3", 7)));
    panic.expect_err("it panics");
    let failed = Failed::read(&dir).expect("valid").expect("a record");
    assert_eq!(
        (failed.exit_code, failed.message.as_str()),
        (101, "a bug: index 7 of 3")
    );
    // An interrupted second try says nothing new.
    run(|_| told(130)).expect_err("it fails");
    assert_eq!(Failed::read(&dir).expect("valid"), Some(failed));

    let cell = run(whole).expect("it succeeds");
    assert!(!cell.file(FAILED).exists());
    assert_eq!(
        cell.manifest.files.keys().collect::<Vec<_>>(),
        ["model.safetensors"]
    );
    let other = tempfile::tempdir().expect("a temporary folder");
    let untroubled = work(other.path(), &spec())
        .complete(whole)
        .expect("it succeeds");
    assert_eq!(
        read(cell.file(MANIFEST)),
        read(untroubled.file(MANIFEST)),
        "earlier failures leave no trace"
    );
    // A record beside a manifest, as no run leaves it, does not matter.
    fs_err::write(cell.file(FAILED), "x").expect("written");
    complete(out.path(), &spec());
}

#[test]
fn a_record_of_a_failure_that_says_something_else_is_named() {
    let out = tempfile::tempdir().expect("a temporary folder");
    let dir = work(out.path(), &spec()).dir().to_owned();
    let good = json!({"exit_code": 4, "message": "m", "time": "t", "version": "v"});
    let with = |key: &str, value: Value| {
        let mut record = good.clone();
        record[key] = value;
        record.to_string()
    };
    let path = dir.join(FAILED);
    let cases = [
        (String::new(), ""),
        ("{".to_owned(), ""),
        ("\0\0\0".to_owned(), ""),
        (format!("{good} 1"), ""),
        ("[".repeat(100_000), ""),
        (with("exit_code", json!(0)), " at `exit_code`"),
        (with("exit_code", json!(75)), " at `exit_code`"),
        (with("exit_code", json!(300)), " at `exit_code`"),
        (with("message", json!(4)), " at `message`"),
        (with("more", json!(vec![0; 200])), ""),
    ];
    for (text, at) in cases {
        fs_err::write(&path, &text).expect("written");
        let error = Failed::read(&dir).expect_err("it is no record");
        let expect = format!(
            "`{}` is not a valid record of a failure{at}",
            path.display()
        );
        assert!(
            error.to_string().starts_with(&expect),
            "{error}\n{text:.40}"
        );
        assert_eq!(error.exit_code(), exit::INPUT);
        assert!(error.hint().expect("a way out").contains("remove the file"));
    }
    fs_err::write(&path, with("message", json!("m".repeat(2 << 20)))).expect("written");
    let error = Failed::read(&dir).expect_err("it is too long");
    assert!(matches!(error, CellError::File(FileError::TooLong { .. })));
    // A later version may say more, and nothing is obeyed that a terminal would.
    let more = with("message", json!("a\u{1b}[2J\n\n b\u{9b}c\r"));
    let more = more.replacen('{', "{\"host\":\"h\",", 1);
    fs_err::write(&path, more).expect("written");
    let failed = Failed::read(&dir).expect("valid").expect("a record");
    assert_eq!(failed.message, "a [2J b c");
    fs_err::remove_file(&path).expect("removed");
    fs_err::create_dir(&path).expect("made");
    let error = Failed::read(&dir).expect_err("a folder");
    assert!(matches!(error, CellError::NotAFile { path: named } if named == path));
}

/// JSON as settings and results can hold it.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        prop::num::f64::NORMAL.prop_map(Value::from),
        any::<f32>().prop_map(|x| Value::from(f64::from(x))),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((".{0,5}", inner), 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// The same value with the keys of every map in the opposite order.
fn reversed(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let entries = map.iter().rev();
            Value::Object(
                entries
                    .map(|(key, value)| (key.clone(), reversed(value)))
                    .collect(),
            )
        }
        Value::Array(items) => items.iter().map(reversed).collect(),
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn the_id_does_not_depend_on_the_order_of_keys(settings in any_json()) {
        let other = reversed(&settings);
        prop_assert_eq!(canonical_json(&settings), canonical_json(&other));
        let one = CellSpec { settings, ..spec() };
        let two = CellSpec { settings: other, ..spec() };
        prop_assert_eq!(one.id(), two.id());
    }

    #[test]
    fn canonical_json_reads_back_to_the_same(value in any_json()) {
        let text = canonical_json(&value);
        let read: Value = serde_json::from_str(&text).expect("it is JSON");
        prop_assert_eq!(&read, &value);
        prop_assert_eq!(canonical_json(&read), text);
    }

}

proptest! {
    // Each case waits for the disk several times.
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_manifest_reads_back_to_the_same(settings in any_json(), results in any_json()) {
        let out = tempfile::tempdir().expect("a temporary folder");
        let spec = CellSpec { settings, ..spec() };
        let cell = work(out.path(), &spec).finish(results).expect("finished");
        let loaded = Cell::load(&cell.dir).expect("the cell is complete");
        prop_assert_eq!(&loaded.manifest, &cell.manifest);
        prop_assert_eq!(loaded.manifest.spec().id(), spec.id());
        prop_assert_eq!(loaded.digest(), cell.digest());
        let text = read(cell.file(MANIFEST));
        let again: Manifest = serde_json::from_str(&text).expect("it is a manifest");
        prop_assert_eq!(again, loaded.manifest);
    }
}
