//! The program from outside: output, exit codes, and runs that are killed.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use bb_attack::picture::Picture;

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bb-attack"));
    command.args(args).env("NO_COLOR", "1").stdin(Stdio::null());
    // The guide's commands are for the root of the repository.
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    command
}

fn output(args: &[&str]) -> (Output, String, String) {
    let output = program(args).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    (output, stdout, stderr)
}

/// A run of an attack on little data that takes a few epochs.
fn small<'a>(method: &'a str, out: &'a str, epochs: &'a str) -> Vec<&'a str> {
    let mut args = vec![
        method,
        "--dataset",
        "synthetic",
        "--width",
        "4",
        "--out",
        out,
    ];
    args.extend([
        "--train-limit",
        "192",
        "--test-limit",
        "60",
        "--set",
        epochs,
    ]);
    args.extend(["--set", "train.batch_size=64", "--threads", "2"]);
    args
}

fn path(folder: &Path) -> &str {
    folder.to_str().expect("a temporary folder in UTF-8")
}

#[test]
fn list_names_every_attack() {
    let (output, stdout, stderr) = output(&["list"]);
    assert!(output.status.success(), "{stderr}");
    let names: Vec<&str> = stdout
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    let known: Vec<&str> = bb_attack::registry::ATTACKS
        .iter()
        .map(|a| a.info().id)
        .collect();
    assert_eq!(names, known);
}

#[test]
fn show_prints_the_head_comment_and_the_settings() {
    let (output, stdout, stderr) = output(&["show", "badnets"]);
    assert!(output.status.success(), "{stderr}");
    assert!(
        stdout.starts_with("# BadNets: a patch in the corner\n"),
        "{stdout}"
    );
    assert!(stdout.contains("## Threat model\n"), "{stdout}");
    assert!(stdout.contains("position = \"lower-right\"\n"), "{stdout}");
}

#[test]
fn show_prints_every_attack() {
    for attack in bb_attack::registry::ATTACKS {
        let (output, stdout, stderr) = output(&["show", attack.info().id]);
        assert!(output.status.success(), "{stderr}");
        assert!(stdout.starts_with("# "), "{stdout}");
        assert!(
            stdout.contains("```toml\neval_every") || stdout.contains("eval_every = 1\n"),
            "{stdout}"
        );
    }
}

/// The commands of the guide, each with the picture that it makes.
fn guide() -> Vec<(Vec<String>, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = fs_err::read_to_string(root.join("docs/guide/attacks.md")).expect("the guide");
    let commands = text
        .lines()
        .filter_map(|line| line.strip_prefix("bb-attack preview "));
    let commands = commands.map(|line| {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let out = words.last().expect("it ends with --out FILE");
        let picture = root.join(out);
        (words, picture)
    });
    commands.collect()
}

#[test]
fn the_pictures_of_the_guide_are_what_its_commands_make() {
    let folder = folder();
    let commands = guide();
    let shown: Vec<&str> = commands
        .iter()
        .map(|(words, _)| words[0].as_str())
        .collect();
    assert_eq!(
        shown,
        ["badnets", "blended", "sig", "lf", "trojan", "wanet"]
    );
    for (words, committed) in &commands {
        let file = folder.path().join("sheet.png");
        let mut args = vec!["preview"];
        args.extend(words[..words.len() - 1].iter().map(String::as_str));
        args.push(path(&file));
        let (output, stdout, stderr) = output(&args);
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr, "");
        let line: serde_json::Value = serde_json::from_str(&stdout).expect("one line of JSON");
        assert!(
            line["stealth"]["ssim"].as_f64().is_some_and(|s| s < 1.0),
            "{line}"
        );
        let size = fs_err::metadata(committed)
            .expect("a committed picture")
            .len();
        assert!(size < 60_000, "{} has {size} bytes", committed.display());
        let picture = |path: &Path| Picture::read(path).expect("a PNG file");
        assert_eq!(
            picture(&file),
            picture(committed),
            "{}",
            committed.display()
        );
    }
}

#[test]
fn a_preview_that_cannot_be_made_is_one_clear_error() {
    let folder = folder();
    let out = folder.path().join("x.png");
    let check = |args: &[&str], code: i32, expect: &str| {
        let mut words = vec!["preview"];
        words.extend(args);
        words.extend(["--dataset", "synthetic", "--out", path(&out)]);
        let (output, stdout, stderr) = output(&words);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert_eq!(stdout, "");
        assert_eq!(stderr, expect);
        assert!(!out.exists(), "nothing was written");
    };
    check(
        &["clean"],
        2,
        "error: no preview of `clean`: it poisons no image\n",
    );
    check(
        &["inputaware"],
        2,
        "error: no preview of `inputaware`: its trigger is made during training\n",
    );
    check(
        &["sig", "--set", "ratio=0.2"],
        2,
        "error: `ratio` 0.2 selects 1000 of 5000 training images, but only 500 are of the target class 0, which is all \
         that a clean-label attack may poison; expected `ratio` of at most 0.1\n\
         hint: set `oversize=cap` to poison the whole class\n",
    );
}

#[test]
fn a_preview_says_what_a_run_would_warn_of() {
    let folder = folder();
    let out = folder.path().join("x.png");
    let set = ["--set", "ratio=0.2", "--set", "oversize=cap"];
    let mut words = vec![
        "preview",
        "sig",
        "--dataset",
        "synthetic",
        "--out",
        path(&out),
    ];
    words.extend(set);
    let (output, _, stderr) = output(&words);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("a ratio of 0.1"), "{stderr}");
}

#[test]
fn a_preview_takes_a_network_of_its_architecture_and_width() {
    let (out, sheets) = (folder(), folder());
    let (done, line, stderr) = output(&small("clean", path(out.path()), "train.epochs=0"));
    assert!(done.status.success(), "{stderr}");
    let cell: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let model = format!("trigger.model={}", cell["cell"].as_str().expect("a folder"));
    let sheet = sheets.path().join("x.png");
    let preview = |more: &[&str]| {
        let mut words = vec!["preview", "trojan", "--dataset", "synthetic"];
        words.extend(["--set", &model, "--set", "trigger.iterations=1"]);
        words.extend(["--out", path(&sheet)]);
        words.extend(more);
        output(&words)
    };
    for (more, expect) in [
        (
            &[][..],
            "`preactresnet18-w4`, expected `preactresnet18-w64`",
        ),
        (
            &["--width", "4", "--arch", "resnet18"],
            "`preactresnet18-w4`, expected `resnet18-w4`",
        ),
    ] {
        let (failed, _, stderr) = preview(more);
        assert_eq!(failed.status.code(), Some(3), "{stderr}");
        assert!(stderr.contains(expect), "{stderr}\nlacks {expect}");
    }
    let (failed, _, stderr) = preview(&["--arch", "resnet"]);
    assert_eq!(failed.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("unknown architecture `resnet`"), "{stderr}");
    assert!(!sheet.exists(), "nothing was written");
    let (done, line, stderr) = preview(&["--width", "4"]);
    assert!(done.status.success(), "{stderr}");
    assert!(line.contains("\"ssim\""), "{line}");
    assert!(sheet.exists());
}

#[test]
fn show_config_tells_where_each_setting_comes_from() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("mine.toml");
    fs_err::write(&file, "[train]\nlr = 0.5\n").expect("a writable folder");
    let file = path(&file);
    let args = [
        "badnets",
        "--dataset",
        "gtsrb",
        "-c",
        file,
        "--set",
        "target=2",
        "--show-config",
    ];
    let (output, stdout, stderr) = output(&args);
    assert!(output.status.success(), "{stderr}");
    for line in [
        "target = 2  # --set".to_owned(),
        "train.epochs = 50  # recipe configs/attack/badnets/gtsrb.toml".to_owned(),
        format!("train.lr = 0.5  # {file}:2"),
        "trigger.size = 3  # defaults".to_owned(),
    ] {
        assert!(stdout.lines().any(|l| l == line), "{stdout}\nlacks {line}");
    }
}

#[test]
fn show_config_shows_what_is_no_setting_and_can_be_given_back() {
    let args = [
        "lf",
        "--dataset",
        "synthetic",
        "--width",
        "4",
        "--train-limit",
        "100",
        "--show-config",
    ];
    let (output_, stdout, stderr) = output(&args);
    assert!(output_.status.success(), "{stderr}");
    for line in [
        "# dataset = \"synthetic\"  # --dataset",
        "# arch = \"preactresnet18\"  # default",
        "# width = 4  # --width",
        "# train_limit = 100  # --train-limit",
        "# test_limit = \"all\"  # default",
        "# precision = \"f32\"  # default",
        "# seed = 0  # default",
        "# device = \"auto\"  # default",
        "trigger.scale = \"auto\"  # defaults",
    ] {
        assert!(stdout.lines().any(|l| l == line), "{stdout}\nlacks {line}");
    }
    let folder = folder();
    let file = folder.path().join("shown.toml");
    fs_err::write(&file, &stdout).expect("a writable folder");
    let file = path(&file);
    let (output_, again, stderr) =
        output(&["lf", "--dataset", "synthetic", "-c", file, "--show-config"]);
    assert!(output_.status.success(), "{stderr}");
    let settings = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.split("  #").next().unwrap_or_default().to_owned())
            .collect()
    };
    assert_eq!(settings(&again), settings(&stdout));
}

#[test]
fn show_config_refuses_what_a_run_refuses_with_the_same_words() {
    let folder = folder();
    let out = path(folder.path());
    let check = |args: &[&str], code: i32, expect: &str| {
        let mut said = Vec::new();
        for show in [false, true] {
            let mut words = vec!["badnets", "--out", out, "--data", out];
            words.extend(args);
            words.extend(show.then_some("--show-config"));
            let (output, stdout, stderr) = output(&words);
            assert_eq!(output.status.code(), Some(code), "{words:?}: {stderr}");
            assert_eq!(stdout, "");
            assert!(stderr.contains(expect), "{stderr}\nlacks {expect}");
            said.push(stderr);
        }
        assert_eq!(said[0], said[1], "{args:?}");
    };
    let synthetic = |more: &[&'static str]| [&["--dataset", "synthetic"], more].concat();
    check(
        &["--dataset", "CIFAR10"],
        2,
        "hint: did you mean `cifar10`?",
    );
    check(
        &["--dataset", "nosuchset"],
        2,
        "unknown dataset `nosuchset`, known are `cifar10`",
    );
    check(
        &synthetic(&["--arch", "resnet50"]),
        2,
        "hint: did you mean `resnet18`?",
    );
    check(
        &synthetic(&["--width", "0"]),
        2,
        "expected a whole number from 1 to 512",
    );
    check(
        &synthetic(&["--train-limit", "0"]),
        2,
        "expected a whole number from 1 to 10000000",
    );
    check(
        &synthetic(&["--test-limit", "-3"]),
        2,
        "expected a whole number from 1 to 10000000",
    );
    check(
        &synthetic(&["--seed", "-1"]),
        2,
        "expected a whole number from 0 to 18446744073709551615",
    );
    #[cfg(not(feature = "cuda"))]
    check(
        &synthetic(&["--device", "cuda"]),
        2,
        "device `cuda:0` is not available",
    );
    check(
        &synthetic(&["--device", "gpu"]),
        2,
        "did you mean `cuda:0`?",
    );
    check(
        &synthetic(&["--precision", "fp32"]),
        2,
        "did you mean `f32`?",
    );
    #[cfg(not(feature = "cuda"))]
    check(&synthetic(&["--precision", "tf32"]), 2, "tf32");
    check(
        &synthetic(&["--set", "target=10"]),
        2,
        "`target` is 10, expected a class of 0..=9",
    );
    check(
        &synthetic(&["--set", "target=ring, stripes up"]),
        2,
        "which is no class of the data\n  in `--set target=ring, stripes up`\nhint: did you mean `ring striped down`?",
    );
    check(
        &synthetic(&["--set", "target=-1"]),
        2,
        "`target` is `-1`, expected a whole number from 0",
    );
    check(
        &synthetic(&["--set", "train.epochs=-3"]),
        2,
        "`train.epochs` is `-3`, expected a whole number of at least 0",
    );
    check(
        &synthetic(&["--set", "label=all2al"]),
        2,
        "hint: did you mean `all2all`?",
    );
    check(
        &synthetic(&["--set", "target=2.5"]),
        2,
        "expects the number or the name of a class, found the float `2.5`",
    );
}

#[test]
fn a_missing_file_has_one_exit_code() {
    let folder = folder();
    let out = path(folder.path());
    let absent = folder.path().join("absent");
    let absent = path(&absent);
    let setting = |key: &str| format!("{key}={absent}");
    for (method, option, value) in [
        ("badnets", "-c", absent.to_owned()),
        ("badnets", "--set", setting("trigger.file")),
        ("blended", "--set", setting("trigger.file")),
        ("lf", "--set", setting("trigger.file")),
        ("trojan", "--set", setting("trigger.model")),
    ] {
        let words = [
            method,
            "--dataset",
            "synthetic",
            "--out",
            out,
            "--train-limit",
            "100",
            option,
            &value,
        ];
        let (output_, _, stderr) = output(&words);
        assert_eq!(output_.status.code(), Some(3), "{words:?}: {stderr}");
        assert!(stderr.contains(absent), "{stderr}");
    }
    for words in [
        [
            "badnets",
            "--dataset",
            "cifar10",
            "--out",
            out,
            "--data",
            absent,
        ],
        [
            "preview",
            "badnets",
            "--dataset",
            "cifar10",
            "--out=x.png",
            "--data",
            absent,
        ],
    ] {
        let (output_, _, stderr) = output(&words);
        assert_eq!(output_.status.code(), Some(3), "{words:?}: {stderr}");
        assert!(stderr.contains(absent), "{stderr}");
    }
}

#[test]
fn the_help_lists_what_options_take() {
    let (output_, stdout, _) = output(&["--help"]);
    assert!(output_.status.success());
    for text in [
        "Methods: clean, badnets, blended, lf, sig, ssba, trojan, wanet, inputaware",
        "Datasets: cifar10, cifar100, gtsrb, tiny, synthetic, folder",
        "Architectures: preactresnet18, resnet18, resnet34, vgg19_bn",
        "Dataset to train on [default: cifar10]",
    ] {
        assert!(stdout.contains(text), "{stdout}\nlacks {text}");
    }
    let (output_, stdout, stderr) = output(&[]);
    assert_eq!((output_.status.code(), stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains("Methods: clean, badnets"), "{stderr}");
}

#[test]
fn a_preview_is_a_png_file() {
    let folder = folder();
    for (name, fits) in [
        ("p.jpg", false),
        ("p.svg", false),
        ("p.PNG", true),
        ("p", true),
    ] {
        let out = folder.path().join(name);
        let words = [
            "preview",
            "badnets",
            "--dataset",
            "synthetic",
            "--out",
            path(&out),
        ];
        let (output_, _, stderr) = output(&words);
        assert_eq!(
            output_.status.code(),
            Some(if fits { 0 } else { 2 }),
            "{stderr}"
        );
        assert_eq!(out.exists(), fits);
        assert_eq!(stderr.contains("does not end in `.png`"), !fits, "{stderr}");
    }
}

#[test]
fn mistakes_are_told_once_with_their_exit_code() {
    let check = |args: &[&str], code: i32, expect: &str| {
        let (output, stdout, stderr) = output(args);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert_eq!(stdout, "");
        assert_eq!(stderr, expect);
    };
    check(
        &["badnet"],
        2,
        "error: unknown attack `badnet`, known are `clean`, `badnets`, `blended`, `lf`, `sig`, `ssba`, `trojan`, `wanet`, `inputaware`\nhint: did you mean `badnets`?\n",
    );
    check(
        &["badnets", "--set", "train.learning_rate=1"],
        2,
        "error: unknown setting `train.learning_rate`\n  in `--set train.learning_rate=1`\n\
         hint: did you mean `train.lr`?\n",
    );
    #[cfg(not(feature = "cuda"))]
    check(
        &["badnets", "--dataset", "synthetic", "--device", "cuda:0"],
        2,
        "error: device `cuda:0` is not available: this build runs on the CPU only\n\
         hint: run with `--device cpu`\n",
    );
    let (output, _, stderr) = output(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.contains("<METHOD>"), "{stderr}");
}

#[test]
fn a_run_prints_one_line_of_json_and_is_found_complete_the_second_time() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let args = small("badnets", path(folder.path()), "train.epochs=1");
    let (first, line, stderr) = output(&args);
    assert!(first.status.success(), "{stderr}");
    assert_eq!(line.matches('\n').count(), 1, "{line}");
    let results: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert!(
        results["acc"]["total"] == 60 && results["cell"].is_string(),
        "{line}"
    );
    let (second, again, stderr) = output(&args);
    assert!(second.status.success(), "{stderr}");
    assert_eq!(again, line);
    assert!(stderr.contains("complete already"), "{stderr}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let (one, two) = (folder(), folder());
    for (out, threads) in [(&one, "1"), (&two, "2")] {
        let mut args = small("badnets", path(out.path()), "train.epochs=2");
        *args.last_mut().expect("the threads come last") = threads;
        let (done, _, stderr) = output(&args);
        assert!(done.status.success(), "{stderr}");
    }
    assert_eq!(manifest(one.path()), manifest(two.path()));
}

/// The only cell below a folder.
fn cell(out: &Path) -> Option<PathBuf> {
    let first = |folder: &Path| Some(fs_err::read_dir(folder).ok()?.next()?.ok()?.path());
    let method = first(&out.join("attack"))?;
    first(&method.join("synthetic-preactresnet18-w4"))
}

/// The manifest of the only cell below a folder.
fn manifest(out: &Path) -> String {
    let cell = cell(out).expect("a cell");
    fs_err::read_to_string(cell.join("manifest.json")).expect("a manifest")
}

/// Starts a run and waits until it has `rows` rows.
fn started(args: &[&str], out: &Path, rows: usize) -> std::process::Child {
    let mut child = program(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let begun = Instant::now();
    loop {
        let metrics = cell(out).map(|cell| cell.join("metrics.jsonl"));
        let text = metrics
            .and_then(|path| fs_err::read_to_string(path).ok())
            .unwrap_or_default();
        if text.lines().count() >= rows || child.try_wait().expect("our child").is_some() {
            return child;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "the run does not get on"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_killed_run_resumes_to_the_same_bits_and_a_locked_one_is_left_alone() {
    for attack in bb_attack::registry::ATTACKS {
        killed_and_resumed(attack.info().id);
    }
}

fn killed_and_resumed(method: &str) {
    let (whole, broken) = (folder(), folder());
    let epochs = "train.epochs=8";
    let (done, expected, stderr) = output(&small(method, path(whole.path()), epochs));
    assert!(done.status.success(), "{stderr}");
    let args = small(method, path(broken.path()), epochs);
    let mut checkpoint = false;
    for rows in [1, 4] {
        let mut child = started(&args, broken.path(), rows);
        let (other, _, stderr) = output(&args);
        // A run that was quicker than this test is complete, and one that goes on holds the lock.
        if child.try_wait().expect("our child").is_none() {
            assert_eq!(other.status.code(), Some(75), "{stderr}");
            let holder = format!(" is locked by process {} on ", child.id());
            assert!(stderr.contains(&holder), "{stderr}");
        }
        child.kill().expect("our child");
        let status = child.wait().expect("our child");
        // A row is written right before the checkpoint of its epoch, so the second one was there.
        checkpoint = status.code().is_none() && rows > 1;
    }
    let (done, line, stderr) = output(&args);
    assert!(done.status.success(), "{stderr}");
    assert_eq!(manifest(broken.path()), manifest(whole.path()));
    let log = cell(broken.path()).expect("a cell").join("log.jsonl");
    let log = fs_err::read_to_string(log).expect("a log");
    assert!(log.contains("\"resumed\"") || !checkpoint, "{log}");
    let without_cell = |line: &str| {
        let mut results: serde_json::Value = serde_json::from_str(line).expect("JSON");
        results["cell"].take();
        results
    };
    assert_eq!(without_cell(&line), without_cell(&expected));
}

#[test]
fn a_run_that_diverged_says_why_and_is_tried_again_when_asked_for() {
    let out = folder();
    let mut args = small("badnets", path(out.path()), "train.epochs=3");
    args.extend(["--set", "train.lr=1e30"]);
    let mut rows = 0;
    for _ in 0..2 {
        let (done, stdout, stderr) = output(&args);
        assert_eq!(done.status.code(), Some(4), "{stderr}");
        assert_eq!(stdout, "");
        let cell = cell(out.path()).expect("a cell");
        let read = |name: &str| fs_err::read_to_string(cell.join(name)).expect("readable");
        let failed: serde_json::Value = serde_json::from_str(&read("failed.json")).expect("JSON");
        assert_eq!(failed["exit_code"], 4);
        let message = failed["message"].as_str().expect("a message");
        assert!(stderr.contains(message), "{message}\n{stderr}");
        assert!(!cell.join("manifest.json").exists());
        let log = read("log.jsonl").lines().count();
        assert!(log > rows, "it was tried again");
        rows = log;
    }
}

#[cfg(unix)]
#[test]
fn a_terminated_run_says_so_and_resumes() {
    let out = folder();
    let args = small("badnets", path(out.path()), "train.epochs=12");
    let mut child = started(&args, out.path(), 2);
    let killed = Command::new("kill")
        .arg(child.id().to_string())
        .status()
        .expect("kill");
    let status = child.wait().expect("our child");
    if killed.success() {
        // The run may have ended by itself just before.
        assert!(matches!(status.code(), Some(143 | 0)), "{status}");
    }
    let (done, _, stderr) = output(&args);
    assert!(done.status.success(), "{stderr}");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn options_that_do_nothing_are_errors() {
    let out = folder();
    let sheet = out.path().join("x.png");
    let preview = [
        "preview",
        "badnets",
        "--dataset",
        "synthetic",
        "--out",
        path(&sheet),
    ];
    let lf = [
        "preview",
        "lf",
        "--dataset",
        "synthetic",
        "--out",
        path(&sheet),
    ];
    let show = ["badnets", "--dataset", "synthetic", "--show-config"];
    for (words, more, expect) in [
        (
            &preview[..],
            &["--arch", "resnet18"][..],
            "`--arch` does nothing here, because the trigger of `badnets` is made without a network",
        ),
        (&preview, &["--width", "8"], "`--width` does nothing here"),
        (&lf, &["--width", "8"], "`--width` does nothing here"),
        (
            &lf,
            &["--set", "train.epochs=2"],
            "`--set train.epochs=2` does nothing here, because a preview trains nothing",
        ),
        (
            &show,
            &["--set", "shift=2"],
            "setting `shift` does nothing, because `label` is `all2one`\n  in `--set shift=2`",
        ),
        (
            &["list"],
            &["--dataset", "synthetic"],
            "unexpected argument",
        ),
    ] {
        let (failed, _, stderr) = output(&[words, more].concat());
        assert_eq!(
            failed.status.code(),
            Some(2),
            "{words:?} {more:?}: {stderr}"
        );
        assert!(stderr.contains(expect), "{stderr}\nlacks {expect}");
    }
    assert!(!sheet.exists(), "nothing was written");
    // A folder with fewer images than the limits.
    for (split, class, name) in [
        ("train", 0, 1),
        ("train", 1, 2),
        ("test", 0, 3),
        ("test", 1, 4),
    ] {
        let class = out.path().join(format!("data/{split}/{class}"));
        fs_err::create_dir_all(&class).expect("a folder");
        let picture = bb_attack::picture::Picture::new(32, 32, vec![name * 40; 32 * 32 * 3]);
        fs_err::write(class.join("a.png"), picture.to_png()).expect("a picture");
    }
    let (data, runs) = (out.path().join("data"), out.path().join("runs"));
    for (option, expect) in [
        (
            "--train-limit",
            "the limit of 3 train images does nothing, because the dataset has 2",
        ),
        (
            "--test-limit",
            "the limit of 3 test images does nothing, because the dataset has 2",
        ),
    ] {
        let words = [
            "clean",
            "--dataset",
            "folder",
            "--data",
            path(&data),
            "--width",
            "4",
        ];
        let (failed, _, stderr) =
            output(&[&words[..], &["--out", path(&runs), option, "3"]].concat());
        assert_eq!(failed.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(expect), "{stderr}\nlacks {expect}");
    }
}

/// A preview shows the images of the split that it is told to take.
#[test]
fn a_preview_takes_the_split_that_is_named() {
    let out = folder();
    for (split, level) in [("train", 40), ("test", 80), ("val", 120)] {
        for class in ["0", "1"] {
            let class = out.path().join(format!("data/{split}/{class}"));
            fs_err::create_dir_all(&class).expect("a folder");
            let picture = bb_attack::picture::Picture::new(32, 32, vec![level; 32 * 32 * 3]);
            fs_err::write(class.join("a.png"), picture.to_png()).expect("a picture");
        }
    }
    let (data, sheet) = (out.path().join("data"), out.path().join("sheet.png"));
    let shown = |more: &[&str]| {
        let words = [
            "preview",
            "badnets",
            "--dataset",
            "folder",
            "--data",
            path(&data),
            "--images",
            "1",
            "--set",
            "ratio=0.5",
            "--out",
            path(&sheet),
        ];
        let (done, _, stderr) = output(&[&words[..], more].concat());
        assert!(done.status.success(), "{stderr}");
        fs_err::read(&sheet).expect("a sheet")
    };
    let usual = shown(&[]);
    assert_eq!(usual, shown(&["--test-split", "test"]));
    assert_ne!(usual, shown(&["--test-split", "val"]));
}
