//! Options and settings that would do nothing are errors that name them.

use std::path::Path;
use std::process::Command;

use bb_attack::AttackRequest;
use bb_core::cell::MODEL;
use bb_core::cli::Coded as _;
use bb_core::precision::Precision;
use bb_nn::Compute;

/// Ends with exit code 2, and says why.
fn refused(words: &[&str], expect: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_bb-eval"))
        .args(words)
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
    assert!(said.contains(expect), "{words:?}: {said}");
}

#[test]
fn options_that_do_nothing_are_errors() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let out = folder.path().join("runs");
    let train = |method: &str| {
        bb_attack::run(&AttackRequest {
            method: method.to_owned(),
            dataset: "synthetic".to_owned(),
            data: None,
            train_limit: Some(60),
            test_limit: Some(20),
            test_split: None,
            arch: "preactresnet18".to_owned(),
            width: 4,
            precision: Precision::F32,
            compute: Compute::Cpu,
            given: bb_attack::method::Given {
                files: Vec::new(),
                set: vec![
                    "train.epochs=1".to_owned(),
                    "train.batch_size=20".to_owned(),
                ],
            },
            seed: 0,
            out: out.clone(),
            quiet: true,
        })
        .expect("a small run")
    };
    let (clean, attack) = (train("clean"), train("badnets"));
    let text = |path: &Path| path.to_str().expect("a plain path").to_owned();
    let (file, runs, to) = (
        text(&clean.file(MODEL)),
        text(&out),
        text(&folder.path().join("to")),
    );
    let (clean, attack) = (text(&clean.dir), text(&attack.dir));
    let import = ["zoo", "import", &file, "--out", &runs];
    let synthetic = ["--dataset", "synthetic"];
    let tac = ["analyze", "tac", &attack, "--out", &to];
    for (words, more, expect) in [
        (
            &["table", &runs][..],
            &["--format", "csv", "--layout", "wide"][..],
            "`--layout` does nothing with `--format csv`",
        ),
        (
            &["table", &runs],
            &["--data", &runs],
            "`--store` and `--data` go with a grid file",
        ),
        (
            &[&import[..], &synthetic].concat(),
            &["--match-rows"],
            "`--match-rows` has nothing to do",
        ),
        (
            &[&import[..], &synthetic].concat(),
            &["--defense", "anp"],
            "--attack-cell <CELL>",
        ),
        (
            &[&import[..], &synthetic].concat(),
            &["--rename", "a.=b."],
            "rule `a.=b.` fits no tensor",
        ),
        (
            &[&import[..], &synthetic].concat(),
            &["--ignore", "head."],
            "rule `ignore head.` fits no tensor",
        ),
        (
            &[&import[..], &synthetic].concat(),
            &["--test-limit", "1001"],
            "the test split has 1000 images",
        ),
        (
            &tac,
            &["--set", "reinit.n=0.3"],
            "setting `reinit.n` does nothing in an analysis",
        ),
        (
            &tac,
            &["--set", "sweep=true"],
            "setting `sweep` does nothing in an analysis",
        ),
    ] {
        refused(&[words, more].concat(), expect);
    }
    for more in [
        &["--attack", "x"][..],
        &["--arch", "resnet18"],
        &["--test-limit", "9"],
        &["--match-rows"],
    ] {
        let words = [&import[..], &["--attack-cell", &clean], more].concat();
        refused(&words, "cannot be used with");
    }
    let grid = |lines: &str| {
        let path = folder.path().join("grid.toml");
        let head = "[grid]\nname = \"g\"\ndataset = \"synthetic\"\nwidth = 4\n";
        fs_err::write(&path, format!("{head}{lines}")).expect("written");
        text(&path)
    };
    for (lines, expect) in [
        (
            "[[attack]]\nmethod = \"badnets\"\nset.shift = 2\n",
            "setting `shift` does nothing, because `label` is `all2one`",
        ),
        (
            "[[attack]]\nmethod = \"badnets\"\n[[defense]]\nmethod = \"clp\"\nset.sweep_u = [1.0]\n",
            "setting `sweep_u` does nothing, because `sweep` is false",
        ),
    ] {
        refused(&["plan", &grid(lines)], expect);
    }
}

#[test]
fn settings_that_do_nothing_are_errors_where_they_are_given_alone() {
    // Method, settings, and which of them does nothing; nothing where all do something.
    for (method, set, idle) in [
        ("badnets", &["shift=2"][..], "shift"),
        ("badnets", &["shift=2", "label=all2all"], ""),
        ("badnets", &["target=2", "label=all2all"], "target"),
        (
            "badnets",
            &["trigger.file=x.png", "trigger.size=5"],
            "trigger.size",
        ),
        (
            "badnets",
            &["train.schedule.step_size=3"],
            "train.schedule.step_size",
        ),
        (
            "badnets",
            &["train.schedule.kind=step", "train.schedule.step_size=3"],
            "",
        ),
        (
            "sig",
            &["train.schedule.milestones=[3]"],
            "train.schedule.milestones",
        ),
        (
            "clean",
            &["train.schedule.warmup=0.2"],
            "train.schedule.warmup",
        ),
        ("wanet", &["shift=2"], "shift"),
        ("inputaware", &["shift=2"], "shift"),
        ("blended", &["shift=2"], "shift"),
        (
            "trojan",
            &["trigger.file=x.png", "trigger.neurons=3"],
            "trigger.neurons",
        ),
        (
            "trojan",
            &["trigger.model=x", "trigger.clean_epochs=3"],
            "trigger.clean_epochs",
        ),
        ("trojan", &["trigger.clean_epochs=3"], ""),
        (
            "lf",
            &["trigger.deepfool.images=3"],
            "trigger.deepfool.images",
        ),
        (
            "lf",
            &["trigger.source=deepfool", "trigger.deepfool.images=3"],
            "",
        ),
        (
            "lf",
            &["trigger.file=x.npy", "trigger.peak=9"],
            "trigger.peak",
        ),
        ("lf", &["label=all2all", "target=1"], "target"),
        (
            "lf",
            &["label=all2all", "target=1", "trigger.source=deepfool"],
            "",
        ),
        (
            "ssba",
            &["trigger.source=file", "trigger.folder=x", "trigger.bits=9"],
            "trigger.bits",
        ),
        (
            "ssba",
            &["trigger.steps=5", "trigger.epochs=2"],
            "trigger.epochs",
        ),
        ("tsbd", &["sweep_ratios=[0.1]"], "sweep_ratios"),
        ("tsbd", &["sweep=true", "sweep_ratios=[0.1]"], ""),
        ("tsbd", &["select.hold_out=0.3"], "select.hold_out"),
        (
            "tsbd",
            &["clean.index_file=x", "clean.ratio=0.1"],
            "clean.ratio",
        ),
        ("otbr", &["sweep_ratios=[0.1]"], "sweep_ratios"),
        ("otbr", &["select.images=9"], "select.images"),
        ("fp", &["sweep_ratios=[0.1]"], "sweep_ratios"),
        (
            "anp",
            &["sweep=false", "sweep_thresholds=[0.1]"],
            "sweep_thresholds",
        ),
        (
            "rnp",
            &["sweep=false", "sweep_thresholds=[0.1]"],
            "sweep_thresholds",
        ),
        ("rnp", &["unlearn.clip=5"], "unlearn.clip"),
        ("rnp", &["clip_before_backward=false", "unlearn.clip=5"], ""),
        ("clp", &["sweep_u=[1.0]"], "sweep_u"),
        (
            "nc",
            &["invert.early_stop=false", "invert.stop_patience=3"],
            "invert.stop_patience",
        ),
        (
            "nad",
            &[
                "finetune.schedule.kind=constant",
                "finetune.schedule.t_max=3",
            ],
            "finetune.schedule.t_max",
        ),
        ("ft", &["clean.index_file=x", "clean.seed=1"], "clean.seed"),
        (
            "ibau",
            &["clean.index_file=x", "clean.seed=1"],
            "clean.seed",
        ),
        (
            "ulrl",
            &["clean.index_file=x", "clean.ratio=0.2"],
            "clean.ratio",
        ),
    ] {
        let given: Vec<String> = set.iter().map(|&set| set.to_owned()).collect();
        let error = if let Ok(attack) = bb_attack::registry::find(method) {
            let given = bb_attack::method::Given {
                set: given,
                ..Default::default()
            };
            attack
                .resolve("synthetic", &given)
                .err()
                .map(|e| (e.to_string(), e.exit_code()))
        } else {
            let defense = bb_defense::registry::find(method, &[]).expect("a method");
            let given = bb_defense::method::Given {
                set: given,
                ..Default::default()
            };
            defense
                .resolve("synthetic", &given)
                .err()
                .map(|e| (e.to_string(), e.exit_code()))
        };
        match error {
            None => assert_eq!(idle, "", "{method} {set:?}"),
            Some((said, code)) => {
                let expect = format!("setting `{idle}` does nothing, because ");
                assert!(said.starts_with(&expect), "{method} {set:?}: {said}");
                assert!(said.contains("in `--set "), "{said}");
                assert_eq!(code, 2);
            }
        }
    }
}
