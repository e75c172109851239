//! What holds for every defense of the registry: it runs, to the same bits twice, resumes, and names what is wrong.

use super::*;
use bb_defense::registry::DEFENSES;

/// Settings under which a method takes a second or so, and ones with which it makes several models.
pub(super) struct Quick {
    pub(super) id: &'static str,
    pub(super) set: &'static [&'static str],
    pub(super) more: &'static [&'static str],
    /// A setting out of range, and its name.
    wrong: &'static [(&'static str, &'static str)],
    /// Settings that must change the result.
    changes: &'static [&'static str],
}

const METHODS: &[Quick] = &[
    Quick {
        id: "ft",
        set: &[
            "clean.ratio=0.1",
            "finetune.epochs=3",
            "finetune.batch_size=8",
            "probe_every=1",
        ],
        more: &["finetune.epochs=8"],
        wrong: FINETUNE,
        changes: FINETUNE_CHANGES,
    },
    Quick {
        id: "fp",
        set: &[
            "clean.ratio=0.1",
            "prune.step=0.1",
            "prune.tolerance=0.5",
            "finetune.epochs=2",
            "finetune.batch_size=8",
            "probe_every=1",
        ],
        more: &["sweep=true", "sweep_ratios=[0.2, 0.9]"],
        wrong: &[
            ("sweep_ratios=[]", "sweep_ratios"),
            ("prune.step=0", "prune.step"),
            ("prune.step=1", "prune.step"),
            ("prune.tolerance=-1", "prune.tolerance"),
            ("prune.keep=all", "prune.keep"),
            ("prune.batch_size=0", "prune.batch_size"),
            ("finetune.lr=0", "finetune.lr"),
        ],
        changes: &[
            "prune.step=0.3",
            "prune.one_less=true",
            "prune.augment=false",
            "finetune.augment=false",
            "clean.seed=1",
        ],
    },
    Quick {
        id: "clp",
        // An untrained network has no outliers but mild ones.
        set: &["u=1"],
        more: &["sweep=true", "sweep_u=[0, 2]"],
        wrong: &[
            ("u=-1", "u"),
            ("u=inf", "u"),
            ("sweep_u=[]", "sweep_u"),
            ("sweep_u=[1, 1]", "sweep_u"),
            ("sweep_u=[-1]", "sweep_u"),
            ("pairing=none", "pairing"),
            ("eps=-1", "eps"),
        ],
        changes: &["u=0.5", "pairing=main-branch"],
    },
    Quick {
        id: "tsbd",
        set: &QUICK,
        more: &["sweep=true", "sweep_ratios=[0.1, 0.3]"],
        // Its own tests go through all of them.
        wrong: &[("reinit.n=2.0", "reinit.n")],
        changes: &["reinit.n=0.3"],
    },
    Quick {
        id: "otbr",
        set: &[
            "unlearn.steps=3",
            "unlearn.batch_size=8",
            "unlearn.lr=0.01",
            "select.images=8",
        ],
        more: &["sweep=true", "sweep_ratios=[0.1, 0.3, 0.6]"],
        wrong: &[
            ("sweep_ratios=[0.3, 0.1]", "sweep_ratios"),
            ("layers.exclude=[\"\"]", "layers.exclude"),
            ("unlearn.lr=0", "unlearn.lr"),
            ("unlearn.momentum=1.0", "unlearn.momentum"),
            ("unlearn.steps=0", "unlearn.steps"),
            ("unlearn.batch_size=0", "unlearn.batch_size"),
            ("unlearn.labels=some", "unlearn.labels"),
            ("unlearn.noise=normal", "unlearn.noise"),
            ("nwc.decimals=0", "nwc.decimals"),
            ("prune.gamma=1.1", "prune.gamma"),
            ("fusion.lambda=-0.1", "fusion.lambda"),
            ("fusion.cost=squared", "fusion.cost"),
            ("fusion.floor=0", "fusion.floor"),
            ("select.images=0", "select.images"),
            ("select.agreement=1.5", "select.agreement"),
        ],
        changes: &[
            "unlearn.labels=all",
            "unlearn.noise=normalised",
            "unlearn.steps=4",
            "prune.gamma=0.3",
            "fusion.lambda=0.7",
            "fusion.cost=aligned",
            "nwc.precision=exact",
            "nwc.decimals=2",
            "layers.exclude=[\"shortcut\", \"layer4\"]",
        ],
    },
    Quick {
        id: "ulrl",
        set: &[
            "clean.ratio=0.1",
            "unlearn.max_epochs=2",
            "unlearn.stop_accuracy=0",
            "unlearn.batch_size=8",
            // With these there is something to draw anew on a network that learned nothing.
            "detect.threshold=0.5",
            "relearn.epochs=3",
            "relearn.batch_size=8",
            "probe_every=1",
        ],
        more: &["relearn.epochs=8"],
        wrong: &[
            ("clean.ratio=2", "clean.ratio"),
            ("unlearn.max_epochs=0", "unlearn.max_epochs"),
            ("unlearn.lr=0", "unlearn.lr"),
            ("unlearn.momentum=1", "unlearn.momentum"),
            ("unlearn.weight_decay=-1", "unlearn.weight_decay"),
            ("unlearn.gamma=0", "unlearn.gamma"),
            ("unlearn.clip=0", "unlearn.clip"),
            ("unlearn.stop_accuracy=2", "unlearn.stop_accuracy"),
            ("unlearn.batch_size=0", "unlearn.batch_size"),
            ("detect.threshold=-1", "detect.threshold"),
            ("detect.scale=0", "detect.scale"),
            ("detect.keep=last", "detect.keep"),
            ("relearn.gain=0", "relearn.gain"),
            ("relearn.lr=0", "relearn.lr"),
            ("relearn.momentum=-1", "relearn.momentum"),
            ("relearn.alpha=-1", "relearn.alpha"),
            ("relearn.batch_size=0", "relearn.batch_size"),
        ],
        changes: &[
            "detect.max=1",
            "detect.threshold=100",
            "relearn.init=false",
            "relearn.gain=6",
            "relearn.epochs=2",
            "relearn.lr=0.01",
            "relearn.momentum=0.5",
            "relearn.alpha=0.1",
            "relearn.shuffle=false",
            "relearn.augment=false",
            "relearn.refresh_bn=false",
            "clean.seed=1",
        ],
    },
];

/// Wrong settings of plain fine-tuning.
const FINETUNE: &[(&str, &str)] = &[
    ("clean.ratio=0", "clean.ratio"),
    ("finetune.batch_size=0", "finetune.batch_size"),
    ("finetune.lr=0", "finetune.lr"),
    ("finetune.momentum=1", "finetune.momentum"),
    ("finetune.weight_decay=-1", "finetune.weight_decay"),
    ("finetune.schedule.kind=step", "finetune.schedule.kind"),
    ("finetune.schedule.t_max=0", "finetune.schedule.t_max"),
    ("finetune.schedule.gamma=0", "finetune.schedule.gamma"),
];

const FINETUNE_CHANGES: &[&str] = &[
    "finetune.epochs=2",
    "finetune.batch_size=7",
    "finetune.shuffle=false",
    "finetune.augment=false",
    "finetune.lr=0.02",
    "finetune.momentum=0.5",
    "finetune.weight_decay=0",
    "finetune.schedule.kind=constant",
    "finetune.schedule.t_max=10",
    "clean.seed=1",
];

pub(super) fn quick_of(defense: &dyn AnyDefense) -> &'static Quick {
    let id = defense.info().id;
    let found = METHODS.iter().find(|quick| quick.id == id);
    found.unwrap_or_else(|| panic!("`{id}` has no quick settings in this test"))
}

/// The program with a method's quick settings.
fn command(quick: &Quick, model: &Path, out: &Path) -> Command {
    let mut command = program(&[quick.id, "--quiet", "--model"]);
    command.arg(model).arg("--out").arg(out);
    for setting in quick.set.iter().chain(quick.more) {
        command.args(["--set", setting]);
    }
    command
}

fn place(output: &Output) -> PathBuf {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let line: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    PathBuf::from(line["cell"].as_str().expect("a folder"))
}

#[test]
fn every_method_gives_the_same_bits_twice_and_resumes_to_them() {
    for defense in DEFENSES {
        let quick = quick_of(*defense);
        let [whole, broken] = [folder(), folder()];
        let attack = Draft::new().write(whole.path());
        let one = |out: &Path, threads: &str| {
            let mut command = command(quick, &attack.dir, out);
            place(
                &command
                    .args(["--threads", threads])
                    .output()
                    .expect("it runs"),
            )
        };
        let reference = one(whole.path(), "2");
        let total = rows(&reference).len();
        let cell = broken
            .path()
            .join(reference.strip_prefix(whole.path()).expect("below"));
        // Killed twice on the way, where it is slow enough to be caught.
        for goal in [total / 3, 2 * total / 3] {
            let mut child = command(quick, &attack.dir, broken.path())
                .spawn()
                .expect("it runs");
            while child.try_wait().expect("a child").is_none() && rows_so_far(&cell) < goal {
                std::thread::sleep(Duration::from_millis(1));
            }
            child.kill().expect("killed");
            child.wait().expect("a child");
        }
        assert_eq!(one(broken.path(), "1"), cell, "{}", quick.id);
        let manifest = |cell: &Path| text(&fs_err::read(cell.join("manifest.json")).expect("one"));
        assert_eq!(manifest(&cell), manifest(&reference), "{}", quick.id);
        let found = results(&Cell::load(&cell).expect("complete"));
        assert!(found.candidates.len() == 1 || found.oracle.is_some());
        assert!(found.after.acc.total == TEST as u64);
    }
}

fn rows_so_far(cell: &Path) -> usize {
    fs_err::read_to_string(cell.join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

#[test]
fn every_wrong_setting_is_named() {
    for defense in DEFENSES {
        for (assignment, key) in quick_of(*defense).wrong {
            let given = Given {
                set: vec![(*assignment).to_owned()],
                ..Given::default()
            };
            let error = defense.resolve("cifar10", &given).err();
            let error = error.unwrap_or_else(|| panic!("{assignment} is accepted"));
            let named = error.to_string().contains(&format!("`{key}`"));
            assert!(named, "{assignment}: {error}");
            assert_eq!(error.exit_code(), 2, "{error}");
        }
    }
}

#[test]
fn every_setting_that_should_changes_the_result() {
    for defense in DEFENSES {
        let quick = quick_of(*defense);
        let out = folder();
        let attack = Draft::new().write(out.path());
        let repair = |more: &[&'static str]| {
            let set: Vec<&str> = quick.set.iter().chain(more).copied().collect();
            let cell = run(&request(*defense, &attack.dir, out.path(), &set)).expect("repaired");
            bytes(&cell, "model.safetensors")
        };
        let plain = repair(&[]);
        let suspect = bytes(&attack, "model.safetensors");
        assert_ne!(plain, suspect, "{}", quick.id);
        for change in quick.changes {
            assert_ne!(repair(&[change]), plain, "{}: {change}", quick.id);
        }
    }
}

#[test]
fn a_data_free_sweep_has_a_choice_and_an_oracle() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let quick = METHODS
        .iter()
        .find(|quick| quick.id == "otbr")
        .expect("it is listed");
    let repair = |more: &[&'static str]| {
        let set: Vec<&str> = quick.set.iter().chain(more).copied().collect();
        let otbr = bb_defense::registry::find("otbr", &[]).expect("a defense");
        run(&request(otbr, &attack.dir, out.path(), &set)).expect("repaired")
    };
    let sweep = ["sweep=true", "sweep_ratios=[0.1, 0.3]"];
    let all = repair(&[sweep[0], sweep[1], "select.agreement=0"]);
    let found = results(&all);
    assert_eq!((found.clean, found.chosen.as_str()), (None, "gamma=0.3"));
    assert!(found.oracle.expect("two candidates").der >= found.der);
    for candidate in &found.candidates {
        let agreement = candidate.notes["agreement"].as_f64().expect("a number");
        assert!((-1.0..=1.0).contains(&agreement));
    }
    // Nothing agrees fully, so the first ratio remains.
    let none = results(&repair(&[sweep[0], sweep[1], "select.agreement=1"]));
    assert_eq!(none.chosen, "gamma=0.1");
    // The chosen model is that of a run with this ratio alone.
    let fixed = repair(&["prune.gamma=0.3"]);
    let tensors = |cell: &Cell| {
        let state = StateDict::load(&cell.file("model.safetensors")).expect("a model");
        state.to_bytes(&BTreeMap::new()).expect("finite")
    };
    assert_eq!(tensors(&fixed), tensors(&all));
    // Nothing pruned is nothing fused.
    let same = StateDict::load(&repair(&["prune.gamma=0"]).file("model.safetensors"));
    let suspect = StateDict::load(&attack.file("model.safetensors")).expect("a model");
    assert_eq!(
        same.expect("a model")
            .to_bytes(&BTreeMap::new())
            .expect("finite"),
        suspect.to_bytes(&BTreeMap::new()).expect("finite")
    );
}

#[test]
fn layers_that_do_not_follow_each_other_are_refused() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let otbr = bb_defense::registry::find("otbr", &[]).expect("a defense");
    let refused = |set: &str| {
        let error = run(&request(otbr, &attack.dir, out.path(), &[set])).expect_err("refused");
        (error.to_string(), error.exit_code())
    };
    let (said, code) = refused("layers.exclude=[\"shortcut\", \"layer2.0.conv1\"]");
    assert!(
        said.starts_with("target layer `layer2.0.conv2.weight` has 8 inputs"),
        "{said}"
    );
    assert_eq!(code, 3);
    let (said, _) = refused("layers.exclude=[\"conv\", \"shortcut\"]");
    assert_eq!(said, "the model has no target layer");
    let (said, code) = refused("unlearn.lr=1e30");
    assert!(said.contains("unlearn diverged"), "{said}");
    assert_eq!(code, 4);
}
