//! BackdoorBench's settings of defenses, converted by the script of the repository and read by ours.

use std::path::Path;
use std::process::Command;

use bb_defense::method::Given;

/// What the settings files of the bench's defenses have in common.
const COMMON: &str = "device: cuda\namp: True\nmodel: preactresnet18\nclient_optimizer: sgd\nrandom_seed: 0\nindex:\n\
                      ratio: 0.05\nepochs: 70\nbatch_size: 32\nlr: 0.02\nlr_scheduler: CosineAnnealingLR\ncos_t_max: 30\n\
                      sgd_momentum: 0.8\nwd: 0.001\n";

/// The settings that a converted file gives on GTSRB, without origins, and what the script says.
fn converted(method: &str, more: &str) -> (Vec<String>, String) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let yaml = folder.path().join("bench.yaml");
    fs_err::write(&yaml, [COMMON, more].concat()).expect("a writable folder");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = Command::new("python3")
        .arg(root.join("scripts/interop/backdoorbench_config.py"))
        .args(["defense", method])
        .arg(&yaml)
        .output()
        .expect("this test needs python3 with PyYAML");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{stderr}");
    let toml = folder.path().join("bench.toml");
    fs_err::write(&toml, &output.stdout).expect("a writable folder");
    let given = Given {
        files: vec![toml],
        set: Vec::new(),
    };
    let defense = bb_defense::registry::find(method, &[]).expect("a defense");
    let ready = defense.resolve("gtsrb", &given).expect("valid settings");
    let settings = ready.origins().iter();
    let settings = settings.map(|(key, value, _)| format!("{key} = {value}"));
    (settings.collect(), stderr)
}

#[track_caller]
fn check(method: &str, more: &str, expect: &[&str]) -> String {
    let (settings, stderr) = converted(method, more);
    for setting in expect {
        let set = settings.iter().any(|own| own == setting);
        assert!(set, "{method}: {settings:#?}\nlacks {setting}");
    }
    stderr
}

/// Plain fine-tuning, which several methods have.
const FINETUNE: [&str; 7] = [
    "clean.ratio = 0.05",
    "finetune.epochs = 70",
    "finetune.batch_size = 32",
    "finetune.lr = 0.02",
    "finetune.momentum = 0.8",
    "finetune.weight_decay = 0.001",
    "finetune.schedule.t_max = 30",
];

#[test]
#[ignore = "needs python3 with PyYAML"]
fn training_is_that_of_the_file() {
    let stderr = check("ft", "", &FINETUNE);
    for key in ["amp", "client_optimizer", "model"] {
        assert!(
            stderr.contains(&format!("not converted: {key} = ")),
            "{stderr}"
        );
    }
    assert!(stderr.contains("not converted: index = None (it has no value)"));
    check("ft", "cos_t_max:\n", &["finetune.schedule.t_max = 100"]);
    check(
        "ft",
        "lr_scheduler: ReduceLROnPlateau\n",
        &["finetune.schedule.kind = \"plateau\""],
    );
    check("nc", "", &FINETUNE);
    check("fp", "", &FINETUNE);
    // The student is trained with the teacher's settings, but for its schedule.
    let stderr = check(
        "nad",
        "te_epochs: 7\nbeta1: 50\nbeta2: 100\nbeta3: 200\np: 1.5\n",
        &[
            "finetune.epochs = 7",
            "distill.epochs = 7",
            "finetune.batch_size = 32",
            "distill.batch_size = 32",
            "finetune.lr = 0.02",
            "distill.lr = 0.02",
            "distill.momentum = 0.8",
            "distill.weight_decay = 0.001",
            "distill.beta1 = 50.0",
            "distill.beta2 = 100.0",
            "distill.beta3 = 200.0",
            "distill.power = 1.5",
            "finetune.schedule.t_max = 30",
        ],
    );
    // The rate that is written by hand there is said, since no setting here has it.
    assert!(stderr.contains("not converted: lr = 0.02"), "{stderr}");
    let stderr = check("nad", "lr: 0.01\n", &["distill.lr = 0.01"]);
    assert!(!stderr.contains("not converted: lr"), "{stderr}");
}

#[test]
#[ignore = "needs python3 with PyYAML"]
fn every_key_of_a_method_has_its_place() {
    check(
        "fp",
        "acc_ratio: 0.2\nonce_prune_ratio: 0.03\n",
        &["prune.tolerance = 0.2", "prune.step = 0.03"],
    );
    check(
        "nc",
        "nc_epoch: 9\nmask_lr: 0.3\ninit_cost: 0.004\ncost_multiplier: 3\natk_succ_threshold: 97.0\npatience: 4\n\
         early_stop: True\nearly_stop_threshold: 0.9\nearly_stop_patience: 11\nunlearning_ratio: 0.4\n",
        &[
            "invert.batch_size = 32",
            "invert.max_epochs = 9",
            "invert.lr = 0.3",
            "invert.cost = 0.004",
            "invert.cost_factor = 3.0",
            "invert.success = 0.97",
            "invert.patience = 4",
            "invert.early_stop = true",
            "invert.stop_ratio = 0.9",
            "invert.stop_patience = 11",
            "unlearn.share = 0.4",
        ],
    );
    let stderr = check(
        "anp",
        "acc_ratio: 0.2\nnb_iter: 900\nanp_eps: 0.3\nanp_steps: 2\nanp_alpha: 0.5\n",
        &[
            "mask.batch_size = 32",
            "mask.lr = 0.02",
            "mask.iterations = 900",
            "mask.eps = 0.3",
            "mask.steps = 2",
            "mask.alpha = 0.5",
            "prune.tolerance = 0.2",
        ],
    );
    assert!(stderr.contains("not converted: epochs = 70"), "{stderr}");
    check("clp", "u: 4\n", &["u = 4.0"]);
    check(
        "ibau",
        "n_rounds: 3\nK: 2\n",
        &[
            "rounds = 3",
            "hypergradient.terms = 2",
            "perturb.batch_size = 32",
            "unlearn.batch_size = 32",
            "unlearn.lr = 0.02",
        ],
    );
    // Its rates have names of their own, and its weight decay is in the code.
    let stderr = check(
        "rnp",
        "acc_ratio: 0.2\nalpha: 0.3\nclean_threshold: 0.25\nunlearning_lr: 0.03\nrecovering_lr: 0.4\n\
         unlearning_epochs: 8\nrecovering_epochs: 9\nschedule: [3, 6]\npruning_number: 0.6\n",
        &[
            "unlearn.batch_size = 32",
            "recover.batch_size = 32",
            "recover.alpha = 0.3",
            "unlearn.stop_accuracy = 0.25",
            "unlearn.lr = 0.03",
            "recover.lr = 0.4",
            "unlearn.max_epochs = 8",
            "recover.epochs = 9",
            "unlearn.milestones = [3, 6]",
            "unlearn.weight_decay = 0.0005",
            "prune.threshold = 0.6",
            "prune.tolerance = 0.2",
        ],
    );
    assert!(stderr.contains("not converted: lr = 0.02"), "{stderr}");
}

/// Some of these are our defaults and some are not; a file says all.
#[test]
#[ignore = "needs python3 with PyYAML"]
fn what_the_bench_always_does_is_set() {
    check(
        "fp",
        "",
        &["prune.keep = \"last-tried\"", "prune.one_less = true"],
    );
    check(
        "nad",
        "",
        &["distill.layers = \"reference\"", "distill.repeat_bn = true"],
    );
    let nc = [
        "invert.normalise = \"rows\"",
        "unlearn.stamp = \"normalised\"",
    ];
    check("nc", "", &nc);
    check("clp", "", &["pairing = \"last-seen\""]);
    let rnp = [
        "clip_before_backward = true",
        "prune.choose = \"fixed\"",
        "sweep = true",
    ];
    check("rnp", "", &rnp);
}
