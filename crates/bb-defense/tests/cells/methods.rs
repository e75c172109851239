//! What holds for every defense of the registry: it runs, to the same bits twice, resumes, and names what is wrong.

use super::promises::tensors;
use super::*;
use bb_defense::fp::Fp;
use bb_defense::registry::DEFENSES;
use bb_defense::results::SUSPECT;

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
            ("prune.order=size", "prune.order"),
            ("prune.step=0", "prune.step"),
            ("prune.step=1", "prune.step"),
            ("prune.tolerance=-1", "prune.tolerance"),
            ("prune.keep=all", "prune.keep"),
            ("prune.batch_size=0", "prune.batch_size"),
            ("unlearn.lr=0", "unlearn.lr"),
            ("unlearn.max_epochs=0", "unlearn.max_epochs"),
            ("finetune.lr=0", "finetune.lr"),
        ],
        changes: &[
            "prune.order=nwc",
            "prune.step=0.3",
            "prune.one_less=true",
            "prune.augment=false",
            "finetune.augment=false",
            "clean.seed=1",
        ],
    },
    Quick {
        id: "nad",
        set: &[
            "clean.ratio=0.1",
            "finetune.epochs=2",
            "finetune.batch_size=8",
            "distill.epochs=2",
            "distill.batch_size=8",
            "probe_every=1",
        ],
        more: &["finetune.epochs=4", "distill.epochs=4"],
        wrong: &[
            ("clean.ratio=0", "clean.ratio"),
            ("finetune.lr=0", "finetune.lr"),
            ("distill.batch_size=0", "distill.batch_size"),
            ("distill.lr=-1", "distill.lr"),
            ("distill.momentum=1", "distill.momentum"),
            ("distill.weight_decay=-1", "distill.weight_decay"),
            ("distill.gamma=0", "distill.gamma"),
            ("distill.beta1=-1", "distill.beta1"),
            ("distill.beta2=inf", "distill.beta2"),
            ("distill.beta3=-1", "distill.beta3"),
            ("distill.power=0.5", "distill.power"),
            ("distill.layers=all", "distill.layers"),
        ],
        changes: &[
            "finetune.epochs=0",
            "finetune.lr=0.02",
            "distill.epochs=1",
            "distill.batch_size=7",
            "distill.shuffle=false",
            "distill.augment=false",
            "distill.lr=0.02",
            "distill.momentum=0.5",
            "distill.weight_decay=0",
            "distill.milestones=[1]",
            "distill.beta1=5",
            "distill.beta2=5",
            "distill.power=1",
            "distill.repeat_bn=false",
            "clean.seed=1",
        ],
    },
    Quick {
        id: "anp",
        set: &[
            "clean.ratio=0.1",
            "mask.iterations=5",
            "mask.round=2",
            "mask.batch_size=8",
            // With these some channels of a network that learned nothing are pruned, and others not.
            "mask.lr=20",
            "mask.momentum=0.5",
            "prune.threshold=0.7",
            "sweep=false",
            "probe_every=1",
        ],
        more: &[
            "mask.iterations=21",
            "sweep=true",
            "sweep_thresholds=[0, 0.4, 0.8]",
        ],
        wrong: &[
            ("sweep_thresholds=[]", "sweep_thresholds"),
            ("sweep_thresholds=[0.2, 0.1]", "sweep_thresholds"),
            ("sweep_thresholds=[0.2, 1.1]", "sweep_thresholds"),
            ("clean.ratio=0", "clean.ratio"),
            ("mask.iterations=0", "mask.iterations"),
            ("mask.round=0", "mask.round"),
            ("mask.batch_size=0", "mask.batch_size"),
            ("mask.lr=0", "mask.lr"),
            ("mask.momentum=1", "mask.momentum"),
            ("mask.alpha=1.1", "mask.alpha"),
            ("mask.eps=0", "mask.eps"),
            ("mask.steps=-1", "mask.steps"),
            ("prune.threshold=2", "prune.threshold"),
            ("prune.choose=best", "prune.choose"),
            ("prune.tolerance=-1", "prune.tolerance"),
        ],
        changes: &[
            "mask.iterations=4",
            "mask.batch_size=7",
            "mask.augment=false",
            "mask.lr=10",
            "mask.momentum=0",
            "mask.alpha=0.9",
            "mask.eps=0.2",
            "mask.steps=0",
            "mask.steps=2",
            "prune.threshold=0.1",
            "clean.seed=1",
        ],
    },
    Quick {
        id: "nc",
        set: &[
            "clean.ratio=0.1",
            "invert.max_epochs=3",
            "invert.batch_size=8",
            // On a network that learned nothing no trigger succeeds, and every norm is like the others.
            "invert.success=0",
            "invert.patience=1",
            "detect.threshold=0",
            "finetune.epochs=2",
            "finetune.batch_size=8",
            "probe_every=1",
        ],
        more: &["finetune.epochs=20"],
        wrong: &[
            ("clean.ratio=0", "clean.ratio"),
            ("invert.max_epochs=0", "invert.max_epochs"),
            ("invert.batch_size=0", "invert.batch_size"),
            ("invert.lr=0", "invert.lr"),
            ("invert.beta1=1", "invert.beta1"),
            ("invert.beta2=-1", "invert.beta2"),
            ("invert.normalise=none", "invert.normalise"),
            ("invert.cost=0", "invert.cost"),
            ("invert.cost_factor=1", "invert.cost_factor"),
            ("invert.success=98", "invert.success"),
            ("invert.patience=0", "invert.patience"),
            ("invert.stop_ratio=2", "invert.stop_ratio"),
            ("detect.threshold=-1", "detect.threshold"),
            ("detect.scale=0", "detect.scale"),
            ("unlearn.share=0", "unlearn.share"),
            ("unlearn.stamp=picture", "unlearn.stamp"),
            ("finetune.lr=0", "finetune.lr"),
        ],
        changes: &[
            "invert.max_epochs=2",
            "invert.batch_size=7",
            "invert.shuffle=false",
            "invert.augment=false",
            "invert.lr=0.2",
            "invert.beta1=0.9",
            "invert.beta2=0.99",
            "invert.normalise=rows",
            "invert.cost=0.01",
            "invert.cost_factor=8",
            "invert.success=1",
            "invert.patience=2",
            "detect.threshold=1000",
            "unlearn.share=0.5",
            "unlearn.stamp=raw",
            "finetune.epochs=1",
            "clean.seed=1",
        ],
    },
    Quick {
        id: "rnp",
        set: &[
            "clean.ratio=0.1",
            "unlearn.max_epochs=2",
            "unlearn.stop_accuracy=0",
            "unlearn.batch_size=8",
            "recover.epochs=2",
            "recover.batch_size=8",
            "recover.lr=50",
            "recover.momentum=0.5",
            // So small that it changes every step.
            "clip_before_backward=false",
            "unlearn.clip=0.1",
            "prune.threshold=0.7",
            "sweep=false",
            "probe_every=1",
        ],
        more: &[
            "recover.epochs=8",
            "sweep=true",
            "sweep_thresholds=[0, 0.4, 0.8]",
        ],
        wrong: &[
            ("sweep_thresholds=[-0.1]", "sweep_thresholds"),
            ("clip_before_backward=1", "clip_before_backward"),
            ("clean.ratio=2", "clean.ratio"),
            ("unlearn.max_epochs=0", "unlearn.max_epochs"),
            ("unlearn.lr=0", "unlearn.lr"),
            ("unlearn.momentum=1", "unlearn.momentum"),
            ("unlearn.weight_decay=-1", "unlearn.weight_decay"),
            ("unlearn.gamma=0", "unlearn.gamma"),
            ("unlearn.clip=0", "unlearn.clip"),
            ("unlearn.stop_accuracy=2", "unlearn.stop_accuracy"),
            ("unlearn.batch_size=0", "unlearn.batch_size"),
            ("recover.epochs=0", "recover.epochs"),
            ("recover.lr=0", "recover.lr"),
            ("recover.momentum=1", "recover.momentum"),
            ("recover.alpha=0", "recover.alpha"),
            ("recover.batch_size=0", "recover.batch_size"),
            ("prune.threshold=-1", "prune.threshold"),
            ("prune.choose=best", "prune.choose"),
            ("prune.tolerance=2", "prune.tolerance"),
        ],
        changes: &[
            "unlearn.clip=0.05",
            "unlearn.max_epochs=1",
            "unlearn.lr=0.05",
            "recover.epochs=1",
            "recover.lr=20",
            "recover.momentum=0",
            "recover.alpha=0.05",
            "recover.batch_size=7",
            "recover.shuffle=false",
            "recover.augment=false",
            "prune.threshold=0.1",
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
        id: "ibau",
        set: &[
            "clean.ratio=0.1",
            "rounds=2",
            "perturb.batch_size=16",
            "unlearn.batch_size=16",
            "unlearn.patched=0.2",
            "probe_every=1",
        ],
        more: &["rounds=6"],
        wrong: &[
            ("rounds=0", "rounds"),
            ("clean.ratio=0", "clean.ratio"),
            ("perturb.lr=0", "perturb.lr"),
            ("perturb.penalty=-1", "perturb.penalty"),
            ("perturb.batch_size=0", "perturb.batch_size"),
            ("hypergradient.rate=0", "hypergradient.rate"),
            ("hypergradient.terms=-1", "hypergradient.terms"),
            ("hypergradient.tolerance=-1", "hypergradient.tolerance"),
            ("hypergradient.step=0", "hypergradient.step"),
            ("unlearn.lr=0", "unlearn.lr"),
            ("unlearn.patched=1.5", "unlearn.patched"),
            ("unlearn.batch_size=0", "unlearn.batch_size"),
        ],
        changes: &[
            "rounds=1",
            "perturb.lr=1",
            "perturb.penalty=0.1",
            "perturb.batch_size=15",
            "perturb.shuffle=false",
            "perturb.augment=false",
            "hypergradient.rate=0.5",
            "hypergradient.terms=0",
            "hypergradient.terms=1",
            "hypergradient.tolerance=1",
            "hypergradient.step=0.1",
            "unlearn.lr=0.001",
            "unlearn.amsgrad=false",
            "unlearn.patched=0.5",
            "unlearn.batch_size=15",
            "unlearn.shuffle=false",
            "unlearn.augment=false",
            "clean.seed=1",
        ],
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
        set: &["unlearn.steps=3", "unlearn.batch_size=8", "unlearn.lr=0.01"],
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
    let mut kills = 0;
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
            kills += usize::from(!child.wait().expect("a child").success());
        }
        assert_eq!(one(broken.path(), "1"), cell, "{}", quick.id);
        let manifest = |cell: &Path| text(&fs_err::read(cell.join("manifest.json")).expect("one"));
        assert_eq!(manifest(&cell), manifest(&reference), "{}", quick.id);
        let found = results(&Cell::load(&cell).expect("complete"));
        assert!(found.candidates.len() == 1 || found.oracle.is_some());
        assert!(found.after.acc.total == TEST as u64);
    }
    assert!(
        kills >= DEFENSES.len(),
        "{kills} runs were killed on their way"
    );
}

#[test]
fn without_probes_a_model_is_measured_before_and_at_the_end() {
    let probed = |quick: &&Quick| quick.set.contains(&"probe_every=1");
    let root = folder();
    let attack = Draft::new().write(root.path());
    let mut tried = 0;
    for quick in METHODS.iter().filter(probed) {
        let stages = |probe: &str| {
            let mut command = command(quick, &attack.dir, &root.path().join(probe));
            let cell = place(&command.args(["--set", probe]).output().expect("it runs"));
            let rows = rows(&cell);
            // What is right of the images that it trains on; the suspect model gets some of them right.
            let right = rows.iter().filter_map(|row| row["train_acc"].as_f64());
            let right: Vec<f64> = right.collect();
            let (share, some) = (0.0..=1.0, right.iter().any(|right| *right > 0.0));
            assert!(right.iter().all(|right| share.contains(right)), "{right:?}");
            assert!(some || right.is_empty(), "{}: {right:?}", quick.id);
            let measured = rows.into_iter().filter(|row| row.get("asr").is_some());
            let stage = |row: Value| row["stage"].as_str().map(str::to_owned);
            measured.filter_map(stage).collect::<Vec<_>>()
        };
        let [often, never] = ["probe_every=1", "probe_every=0"].map(stages);
        let ends = |stage: &&String| ["suspect", "final"].contains(&stage.as_str());
        assert!(!often.iter().all(|stage| ends(&stage)), "{}", quick.id);
        assert!(
            never.iter().all(|stage| ends(&stage)),
            "{}: {never:?}",
            quick.id
        );
        let both = [&often, &never].map(|stages| stages.iter().filter(ends).count());
        assert_eq!(both[0], both[1], "{}", quick.id);
        tried += 1;
    }
    assert!(tried > 6, "{tried}");
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
fn a_share_of_the_images_beside_a_list_of_them_is_refused() {
    let mut checked = 0;
    for defense in DEFENSES {
        let given = Given {
            set: vec!["clean.index_file=x".into(), "clean.ratio=0.1".into()],
            ..Given::default()
        };
        if defense.info().needs == bb_core::method::Needs::CleanFraction {
            let said = defense.resolve("cifar10", &given).err().expect("refused");
            let said = said.to_string();
            assert!(said.contains("`clean.ratio` does nothing"), "{said}");
            checked += 1;
        }
    }
    assert_eq!(checked, 9);
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
    let by_noise = ["select.choose=agreement", "select.images=8"];
    let all = [sweep, by_noise].concat();
    let all = repair(&[&all[..], &["select.agreement=0"]].concat());
    let found = results(&all);
    assert_eq!((found.clean, found.chosen.as_str()), (None, "gamma=0.3"));
    assert!(found.oracle.expect("two candidates").der >= found.der);
    for candidate in &found.candidates {
        let agreement = candidate.notes["agreement"].as_f64().expect("a number");
        assert!((-1.0..=1.0).contains(&agreement));
    }
    // The second ratio agrees less, so the first one remains.
    let none = [sweep, by_noise].concat();
    let none = results(&repair(&[&none[..], &["select.agreement=1"]].concat()));
    assert_eq!(none.chosen, "gamma=0.1");
    // A fixed ratio stays the choice, and is among the models although the sweep does not name it.
    let kept = results(&repair(&[sweep[0], sweep[1], "prune.gamma=0.2"]));
    let names = kept.candidates.iter().map(|candidate| &candidate.name[..]);
    assert_eq!(
        names.collect::<Vec<_>>(),
        ["gamma=0.1", "gamma=0.2", "gamma=0.3"]
    );
    assert_eq!(kept.chosen, "gamma=0.2");
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

/// Clipping before the gradient clips nothing, as a bound that no gradient reaches.
#[test]
fn rnp_clips_the_gradient_only_where_it_is_told_to() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let rnp = bb_defense::registry::find("rnp", &[]).expect("a defense");
    let model = |clip: &[&'static str]| {
        let set: Vec<&str> = quick_of(rnp)
            .set
            .iter()
            .copied()
            .filter(|setting| !setting.contains("clip"))
            .chain(clip.iter().copied())
            .collect();
        let dir = run(&request(rnp, &attack.dir, out.path(), &set)).expect("repaired");
        bytes(&dir, "model.safetensors")
    };
    let unclipped = model(&[]);
    assert_eq!(unclipped, model(&["clip_before_backward=true"]));
    let of = |clip| model(&["clip_before_backward=false", clip]);
    assert_eq!(unclipped, of("unlearn.clip=1e9"));
    assert_ne!(unclipped, of("unlearn.clip=0.1"));
}

/// The thresholds of masks are tried on one set of masks, whatever the method that trained it.
#[test]
fn a_sweep_of_thresholds_has_a_choice_and_an_oracle() {
    for id in ["anp", "rnp"] {
        let out = folder();
        let attack = Draft::new().write(out.path());
        let quick = METHODS.iter().find(|quick| quick.id == id);
        let quick = quick.expect("it is listed");
        let defense = bb_defense::registry::find(id, &[]).expect("a defense");
        let repair = |more: &[&'static str]| {
            let set: Vec<&str> = quick.set.iter().chain(more).copied().collect();
            run(&request(defense, &attack.dir, out.path(), &set)).expect("repaired")
        };
        let suspect = StateDict::load(&attack.file("model.safetensors")).expect("a model");
        let single = repair(&[]);
        let one = results(&single);
        assert_eq!((one.chosen.as_str(), &one.oracle), ("threshold=0.7", &None));
        let sweep = "sweep_thresholds=[0, 0.2, 0.5, 0.9, 1]";
        let swept = repair(&["sweep=true", sweep]);
        // ANP's oracle follows another rule than in its first cells, so those with one have another name.
        let revision = |cell: &Cell| cell.manifest.settings["compute"]["revision"].as_u64();
        let expect = (id == "anp").then_some(1);
        assert_eq!((revision(&single), revision(&swept)), (None, expect));
        let found = results(&swept);
        assert_eq!(found.chosen, "threshold=0.7", "{id}");
        assert_eq!(found.after, one.after, "{id}");
        let oracle = found.oracle.clone().expect("several candidates");
        if id == "anp" {
            // No attack on this network succeeds, so nothing lowers the ASR and the suspect model is the best.
            assert_eq!(
                (oracle.name.as_str(), oracle.scores),
                (SUSPECT, found.before)
            );
            let kept = StateDict::load(&swept.file("oracle.safetensors")).expect("a model");
            assert_eq!(tensors(&kept), tensors(&suspect));
        } else {
            assert!(oracle.der >= found.der);
        }
        // The model is the suspect one with some scales cleared, and neither the masked nor an unlearned network.
        let model = StateDict::load(&single.file("model.safetensors")).expect("a model");
        let mut cleared = 0;
        for (name, before) in suspect.iter() {
            let floats = |state: &StateDict| {
                let values = state.floats(name).expect("the same names");
                values.expect("floats")
            };
            if before.rank() == 0 {
                continue;
            }
            for (before, after) in floats(&suspect).iter().zip(floats(&model)) {
                if before.to_bits() != after.to_bits() {
                    assert!(name.contains("bn") && name.ends_with(".weight"), "{name}");
                    assert_eq!(after.to_bits(), 0, "{id}: {name}");
                    cleared += 1;
                }
            }
        }
        assert_eq!(one.candidates[0].notes["pruned"], json!(cleared), "{id}");
        let pruned: Vec<u64> = found
            .candidates
            .iter()
            .map(|candidate| candidate.notes["pruned"].as_u64().expect("a count"))
            .collect();
        assert!(
            pruned.windows(2).all(|pair| pair[0] < pair[1]),
            "{pruned:?}"
        );
        let channels = found.notes["channels"].as_u64().expect("a count");
        assert_eq!((channels, pruned.last()), (3392 / 16, Some(&channels)));
        // The table has what was compared with the thresholds.
        let table = text(&bytes(&swept, "masks.csv"));
        let masks: Vec<f64> = table
            .lines()
            .skip(1)
            .map(|line| line.rsplit(',').next().expect("a field"))
            .map(|mask| mask.parse().expect("a number"))
            .collect();
        assert_eq!(masks.len() as u64, channels);
        for (candidate, pruned) in found.candidates.iter().zip(pruned) {
            let threshold = candidate.notes["threshold"].as_f64().expect("a number");
            let below = masks.iter().filter(|&&mask| mask <= threshold).count();
            assert_eq!(below as u64, pruned, "{id}: {threshold}");
        }
        // Where all may be lost but the last right answer, the largest threshold that leaves one is taken.
        let lenient = ["prune.choose=accuracy", "prune.tolerance=1"];
        let all = results(&repair(&["sweep=true", sweep, lenient[0], lenient[1]]));
        let hits = |ratio: &Value| ratio["hits"].as_u64().expect("a count");
        let before = hits(&all.notes["clean_before"]);
        let within = |own: u64| own >= before || own > 0;
        let last = all
            .candidates
            .iter()
            .rfind(|candidate| within(hits(&candidate.notes["clean"])));
        assert_eq!(last.expect("one is").name, all.chosen, "{id}");
        let set: Vec<&str> = quick.set.iter().chain(&lenient).copied().collect();
        let refused = run(&request(defense, &attack.dir, out.path(), &set));
        let refused = refused.expect_err("no sweep to choose from").to_string();
        assert!(refused.contains("`prune.choose`"), "{refused}");
    }
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

/// The settings of a quick run and some more.
fn with(id: &str, more: &[&'static str]) -> Vec<&'static str> {
    let quick = METHODS.iter().find(|quick| quick.id == id);
    let set = quick.expect("it is listed").set;
    set.iter().chain(more).copied().collect()
}

#[test]
fn a_model_without_outliers_is_handed_back_as_it_is() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    let nc = bb_defense::registry::find("nc", &[]).expect("a defense");
    let repair = |more: &[&'static str]| {
        run(&request(nc, &attack.dir, out.path(), &with("nc", more))).expect("repaired")
    };
    let tensors = |cell: &Cell| {
        let state = StateDict::load(&cell.file("model.safetensors")).expect("a model");
        state.to_bytes(&BTreeMap::new()).expect("finite")
    };
    let [flagged, free] = [&[][..], &["detect.threshold=1000"]].map(repair);
    assert_ne!(tensors(&flagged), tensors(&attack));
    assert_eq!(tensors(&free), tensors(&attack));
    let classes = dataset().spec.classes;
    for (cell, any) in [(&flagged, true), (&free, false)] {
        let found = results(cell);
        assert!(any || found.after == found.before, "nothing changed");
        let detect = &found.notes["detect"];
        let list = detect["flagged"].as_array().expect("classes");
        assert_eq!(!list.is_empty(), any);
        assert!(detect["anomaly"].as_f64().expect("a number") >= 0.0);
        let norms = found.notes["norms"].as_array().expect("norms");
        assert_eq!(norms.len(), classes);
        assert_eq!(
            text(&bytes(cell, "triggers.csv")).lines().count(),
            classes + 1
        );
        let triggers = StateDict::load(&cell.file("triggers.safetensors")).expect("triggers");
        assert_eq!(triggers.len(), 2 * classes);
        for (class, norm) in norms.iter().enumerate() {
            let mask = triggers.floats(&format!("{class}.mask"));
            let mask = mask.expect("a mask").expect("floats");
            assert!(mask.iter().all(|m| (0.0..=1.0).contains(m)));
            let sum: f64 = mask.iter().map(|&m| f64::from(m)).sum();
            assert!((sum - norm.as_f64().expect("a number")).abs() < 1e-6);
        }
        let stages = rows(&cell.dir);
        let count = |stage: &str| stages.iter().filter(|row| row["stage"] == stage).count();
        assert_eq!((count("invert"), count("detect")), (3 * classes, 1));
        // Two epochs of which the first is measured.
        assert_eq!(count("unlearn"), if any { 3 } else { 0 });
    }
}

#[test]
fn a_loss_that_explodes_is_an_error() {
    let out = folder();
    let attack = Draft::new().write(out.path());
    for (id, set, stage) in [
        ("nad", "finetune.lr=1e30", "teacher teacher diverged"),
        ("nad", "distill.lr=1e30", "distill repaired diverged"),
        ("nad", "distill.beta1=1e300", "distill repaired diverged"),
        ("nc", "finetune.lr=1e30", "unlearn repaired diverged"),
        ("ft", "finetune.lr=1e30", "finetune repaired diverged"),
        ("fp", "finetune.lr=1e30", "finetune masked="),
        ("ibau", "hypergradient.rate=1e30", "diverged"),
        ("ulrl", "relearn.lr=1e30", "relearn repaired diverged"),
        ("rnp", "unlearn.lr=1e30", "unlearn diverged"),
    ] {
        let defense = bb_defense::registry::find(id, &[]).expect("a defense");
        let error = run(&request(
            defense,
            &attack.dir,
            out.path(),
            &with(id, &[set]),
        ))
        .expect_err("it cannot go well");
        let said = error.to_string();
        assert!(said.contains(stage), "{id} with {set}: {said}");
        assert_eq!(error.exit_code(), 4, "{said}");
    }
}

#[test]
fn every_method_repairs_every_architecture() {
    let dataset = dataset();
    let task = &dataset.spec;
    for name in bb_nn::arch::NAMES {
        let arch = ArchSpec::new(name, WIDTH, task.classes).expect("a small network");
        let state = Net::new(&arch, 0).state().expect("a state");
        let bytes = |state: &StateDict| state.to_bytes(&BTreeMap::new()).expect("finite");
        for defense in DEFENSES {
            let id = defense.info().id;
            let mut set: Vec<String> = quick_of(*defense).set.iter().map(|&s| s.into()).collect();
            if id == "nad" {
                set.push("distill.layers=stages".to_owned());
            }
            let given = Given {
                set,
                ..Given::default()
            };
            let ready = defense
                .resolve("synthetic", &given)
                .expect("valid settings");
            let armed = ready.grant(&dataset).expect("granted");
            let (precision, compute) = (Precision::F32, Compute::Cpu);
            let mut ctx = Ctx::detached(0);
            let repaired = armed
                .repair(&arch, task, &state, precision, &compute, &mut ctx)
                .unwrap_or_else(|error| panic!("{id} on {name}: {error}"));
            let chosen = &repaired.candidates[repaired.chosen].state;
            assert_ne!(bytes(chosen), bytes(&state), "{id} on {name}");
            if id == "fp" {
                // What the first linear layer reads, in VGG 7 x 7 places of each channel.
                let places = if name.starts_with("vgg") { 49 } else { 1 };
                assert_eq!(repaired.notes["features"], places * 8 * WIDTH, "{name}");
            }
            if id == "nad" {
                // A map of one pixel says nothing.
                let attention = repaired.notes["attention"].as_bool();
                assert_eq!(attention, Some(name.contains("resnet")), "{name}");
            }
        }
    }
}

#[test]
fn features_that_no_convolution_gives_have_no_order_by_weight_change() {
    let dataset = dataset();
    let arch = ArchSpec::new("vgg19_bn", WIDTH, dataset.spec.classes).expect("a small network");
    let state = Net::new(&arch, 0).state().expect("a state");
    let data = CleanImages::from_split(dataset.train.take(12));
    let suspect = Suspect::new(&arch, &dataset.spec, &state, &data);
    let fp = config::<Fp>(&with("fp", &["prune.order=nwc"]));
    let error = Fp::repair(&fp, suspect, &mut Ctx::detached(0)).expect_err("refused");
    assert!(
        error
            .to_string()
            .starts_with("`prune.order` is `nwc`, expected `activation`")
    );
    assert_eq!(error.exit_code(), 2);
}

/// The defaults of a method with some settings on top.
fn config<D: Defense>(set: &[&str]) -> Valid<D::Config> {
    let layers = set
        .iter()
        .try_fold(Layers::new(&D::Config::default()), |layers, set| {
            layers.set(set)
        });
    let resolved = layers.and_then(|layers| layers.resolve::<D::Config>()?.valid());
    resolved.expect("valid settings").value
}
