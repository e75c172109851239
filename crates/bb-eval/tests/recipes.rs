//! Every setting of every method on every dataset of the benchmark, against what the published code does.
//!
//! The tables below are facts read from the settings files and the code of `BackdoorBench`, TSBD, OTBR and ULRL. Each
//! has a row for every setting of its method, or the test fails, so no default and no recipe can change unseen. A value
//! is written as in TOML; one behind a semicolon is that of the dataset it begins with.

use std::collections::BTreeMap;

use bb_core::cell::Kind;
use bb_eval::paper::Paper;
use bb_eval::paper::profile::measures;

/// A setting.
#[derive(Clone, Copy)]
struct Row {
    /// Its name here.
    key: &'static str,
    /// What the published code has; empty if it has nothing like it.
    theirs: &'static str,
    /// Where: a key of its settings file, or what its code says.
    place: &'static str,
    /// What stands here; empty if that is the same.
    ours: &'static str,
    /// Why it does.
    why: &'static str,
}

const fn same(key: &'static str, theirs: &'static str, place: &'static str) -> Row {
    Row {
        key,
        theirs,
        place,
        ours: "",
        why: "",
    }
}

/// A setting of ours alone.
const fn own(key: &'static str, ours: &'static str, why: &'static str) -> Row {
    Row {
        key,
        theirs: "",
        place: "",
        ours,
        why,
    }
}

impl Row {
    const fn here(self, ours: &'static str, why: &'static str) -> Self {
        Self { ours, why, ..self }
    }
}

const DATASETS: [&str; 4] = ["cifar10", "cifar100", "gtsrb", "tiny"];

/// The value of a dataset.
fn on<'a>(values: &'a str, dataset: &str) -> &'a str {
    let mut parts = values.split(';').map(str::trim);
    let usual = parts.next().expect("there is a first part");
    parts
        .find_map(|part| part.strip_prefix(dataset)?.strip_prefix(' '))
        .unwrap_or(usual)
}

/// Whether two TOML values are the same; `5e-4` is 0.0005, and 5 is 5.0.
fn equal(a: &str, b: &str) -> bool {
    let numbers = |text: &str| text.parse::<f64>().ok();
    match (numbers(a), numbers(b)) {
        (Some(a), Some(b)) => a.total_cmp(&b).is_eq(),
        _ => a == b,
    }
}

/// Where the settings of a method are others than its table has, and which ones the table lacks.
fn check(
    method: &str,
    groups: &[&[Row]],
    settings: impl Fn(&str) -> BTreeMap<String, String>,
) -> Vec<String> {
    let rows: Vec<&Row> = groups.iter().copied().flatten().collect();
    let mut wrong = Vec::new();
    for row in &rows {
        let differs = !row.ours.is_empty();
        assert_eq!(differs, !row.why.is_empty(), "{method}: {}", row.key);
        assert_eq!(
            row.theirs.is_empty(),
            row.place.is_empty(),
            "{method}: {}",
            row.key
        );
        let idle = |dataset: &&str| equal(on(row.ours, dataset), on(row.theirs, dataset));
        assert!(
            !differs || !DATASETS.iter().all(idle),
            "{method}: {} does not differ, so its reason has gone",
            row.key
        );
    }
    for dataset in DATASETS {
        let found = settings(dataset);
        for row in &rows {
            let (values, reason) = match row.ours {
                "" => (row.theirs, row.place),
                ours => (ours, row.why),
            };
            let wanted = on(values, dataset);
            match found.get(row.key) {
                Some(value) if equal(value, wanted) => {}
                Some(value) => wrong.push(format!(
                    "{method} on {dataset}: {} = {value}, expected {wanted} ({reason})",
                    row.key
                )),
                None => wrong.push(format!("{method}: there is no setting {}", row.key)),
            }
        }
        for (key, value) in &found {
            let count = rows.iter().filter(|row| row.key == key).count();
            if count != 1 {
                wrong.push(format!("{method}: {key} = {value} has {count} rows"));
            }
        }
    }
    wrong
}

const RECORD: &str = "only what is recorded depends on it";

// Defenses.

const CLEAN: [Row; 3] = [
    same("clean.ratio", "0.05", "ratio"),
    same("clean.seed", "0", "random_seed"),
    same("clean.index_file", "\"\"", "index, which has no value"),
];
const CLEAN_SMALL: [Row; 3] = [same("clean.ratio", "0.01", "ratio"), CLEAN[1], CLEAN[2]];

const PROBE: Row = own("probe_every", "10", RECORD);

/// Without epochs and the size of batches.
const FINETUNE: [Row; 9] = [
    same("finetune.shuffle", "true", "the loader"),
    same("finetune.augment", "true", "transform of the training"),
    same("finetune.lr", "0.01", "lr"),
    same("finetune.momentum", "0.9", "sgd_momentum"),
    same("finetune.weight_decay", "5e-4", "wd"),
    same(
        "finetune.schedule.kind",
        "\"cosine\"; tiny \"plateau\"",
        "lr_scheduler",
    ),
    same("finetune.schedule.t_max", "100", "without cos_t_max"),
    same("finetune.schedule.gamma", "0.1", "PyTorch's plateau"),
    same("finetune.schedule.patience", "10", "PyTorch's plateau"),
];
const LONG: [Row; 2] = [
    same("finetune.epochs", "100; tiny 200", "epochs"),
    same("finetune.batch_size", "256", "batch_size"),
];

/// Whether TSBD's unlearning also ends at a model that answers one class whatever it sees.
const STOP_CONSTANT: Row = same("unlearn.stop_constant", "false", "the loop");

/// TSBD's unlearning otherwise.
const TSBD_UNLEARN: [Row; 7] = [
    same("unlearn.lr", "1e-4", "lr_un"),
    same("unlearn.momentum", "0.9", "the optimiser"),
    same("unlearn.max_epochs", "1000", "epochs"),
    same("unlearn.stop_accuracy", "0.1", "the loop"),
    same("unlearn.batch_size", "256", "batch_size"),
    same("unlearn.shuffle", "false", "the loader"),
    same("unlearn.augment", "true", "transform of the training"),
];

const LAYERS: Row = same("layers.exclude", "[\"shortcut\"]", "names of target layers");

const NWC: [Row; 2] = [
    same("nwc.precision", "\"rounded\"", "the text file"),
    same("nwc.decimals", "4", "the text file"),
];

/// ULRL's and RNP's unlearning, without the size of batches.
const UNLEARN: [Row; 10] = [
    same("unlearn.max_epochs", "20", "unlearning_epochs"),
    same("unlearn.lr", "0.01", "unlearning_lr"),
    same("unlearn.momentum", "0.9", "the optimiser"),
    same("unlearn.weight_decay", "5e-4", "the optimiser"),
    same(
        "unlearn.milestones",
        "[10, 20]",
        "schedule, steplr_milestones",
    ),
    same("unlearn.gamma", "0.1", "the schedule"),
    same("unlearn.clip", "20", "clip_grad_norm_"),
    same("unlearn.stop_accuracy", "0.2", "clean_threshold"),
    same("unlearn.shuffle", "true", "the loader"),
    same("unlearn.augment", "true", "transform of the training"),
];

const THRESHOLDS: [Row; 2] = [
    same(
        "sweep_thresholds",
        "[0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9]",
        "pruning_max, pruning_step",
    ),
    same("sweep", "true", "evaluate_by_threshold"),
];

const NO_SWEEP: Row = own("sweep", "false", "the run is that of one model");

const FT: &[&[Row]] = &[&CLEAN, &[PROBE], &FINETUNE, &LONG];

const FP: &[&[Row]] = &[
    &CLEAN,
    &[
        PROBE,
        NO_SWEEP,
        own(
            "sweep_ratios",
            "[0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95]",
            "a sweep of ours",
        ),
        STOP_CONSTANT.here(
            "true",
            "TSBD's order of pruning, for narrow networks as well",
        ),
        same("prune.order", "\"activation\"", "argsort(activation)"),
        same("prune.step", "0.01", "once_prune_ratio"),
        same("prune.tolerance", "0.1", "acc_ratio"),
        same("prune.keep", "\"last-tried\"", "one network object").here(
            "\"within\"",
            "it was meant to be the last one within the tolerance",
        ),
        same("prune.one_less", "true", "seq_sort[0:num_pruned - 1]")
            .here("false", "as many are masked as are said"),
        same("prune.augment", "true", "transform of the training"),
        same("prune.batch_size", "256", "batch_size"),
    ],
    &TSBD_UNLEARN,
    &FINETUNE,
    &LONG,
];

const NAD: &[&[Row]] = &[
    &CLEAN,
    &[
        PROBE,
        same("finetune.epochs", "10", "te_epochs"),
        same("finetune.batch_size", "256; tiny 128", "batch_size"),
        same(
            "distill.epochs",
            "10",
            "te_epochs, which the student has too",
        ),
        same("distill.batch_size", "256; tiny 128", "batch_size"),
        same("distill.shuffle", "true", "the loader"),
        same("distill.augment", "true", "transform of the training"),
        same("distill.lr", "0.01", "lr"),
        same("distill.momentum", "0.9", "sgd_momentum"),
        same("distill.weight_decay", "5e-4", "wd"),
        same("distill.milestones", "[20]", "adjust_learning_rate"),
        same("distill.gamma", "0.01", "adjust_learning_rate"),
        same("distill.beta1", "500", "beta1"),
        same("distill.beta2", "1000", "beta2"),
        same("distill.beta3", "1000", "beta3"),
        same("distill.power", "2", "p"),
        same(
            "distill.layers",
            "\"reference\"",
            "branches by args.model in train_epoch",
        ),
        same(
            "distill.repeat_bn",
            "true",
            "a forward pass of its own for each feature",
        ),
    ],
    &FINETUNE,
];

const NC: &[&[Row]] = &[
    &CLEAN,
    &[
        PROBE,
        same("invert.max_epochs", "80", "nc_epoch"),
        same("invert.batch_size", "256", "batch_size"),
        same("invert.shuffle", "true", "the loader"),
        same("invert.augment", "true", "transform of the training"),
        same("invert.lr", "0.1", "mask_lr"),
        same("invert.beta1", "0.5", "Adam in train_mask"),
        same("invert.beta2", "0.9", "Adam in train_mask"),
        same(
            "invert.normalise",
            "\"rows\"",
            "Normalize on a pattern without batch",
        )
        .here(
            "\"channels\"",
            "so it is meant, and so the trigger is stamped later",
        ),
        same("invert.cost", "1e-3", "init_cost"),
        same("invert.cost_factor", "2", "cost_multiplier"),
        same("invert.success", "0.98", "atk_succ_threshold, in percent"),
        same("invert.patience", "5", "patience"),
        same("invert.early_stop", "true", "early_stop"),
        same("invert.stop_ratio", "0.99", "early_stop_threshold"),
        same("invert.stop_patience", "25", "early_stop_patience"),
        same("detect.threshold", "2", "outlier_detection"),
        same("detect.scale", "1.4826", "outlier_detection"),
        same("unlearn.share", "0.2", "unlearning_ratio"),
        same(
            "unlearn.stamp",
            "\"normalised\"",
            "save_image(normalize=True)",
        ),
    ],
    &FINETUNE,
    &LONG,
];

const ANP: &[&[Row]] = &[
    &CLEAN,
    &THRESHOLDS,
    &[
        own("probe_every", "5", RECORD),
        same("mask.iterations", "2000", "nb_iter"),
        same("mask.round", "500", "print_every").here("100", RECORD),
        same("mask.batch_size", "256", "batch_size"),
        same("mask.augment", "true", "transform of the training"),
        same("mask.lr", "0.01", "lr"),
        same("mask.momentum", "0.9", "mask_optimizer"),
        same("mask.alpha", "0.2", "anp_alpha"),
        same("mask.eps", "0.4", "anp_eps"),
        same("mask.steps", "1", "anp_steps"),
        own(
            "prune.threshold",
            "0.2",
            "the benchmark takes the one with the least attack success on the test set",
        ),
        own("prune.choose", "\"fixed\"", "see the threshold"),
        same("prune.tolerance", "0.1", "acc_ratio"),
    ],
];

const CLP: &[&[Row]] = &[&[
    same("u", "3; tiny 5", "u"),
    NO_SWEEP,
    same(
        "sweep_u",
        "[0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0, 9.5, 10.0]",
        "u_min, u_max, u_num",
    ),
    same("pairing", "\"last-seen\"", "the loop over named_modules"),
    own("eps", "0", "nothing is added there"),
]];

const IBAU: &[&[Row]] = &[
    &CLEAN,
    &[
        own("probe_every", "1", RECORD),
        same("rounds", "5", "n_rounds"),
        same("perturb.lr", "10", "batch_opt"),
        same("perturb.penalty", "0.001", "loss_regu"),
        same("perturb.batch_size", "256", "batch_size"),
        same("perturb.shuffle", "true", "the loader"),
        same("perturb.augment", "true", "transform of the training"),
        same("hypergradient.rate", "0.1", "inner_opt"),
        same("hypergradient.terms", "5", "K"),
        same("hypergradient.tolerance", "1e-10", "tol of fixed_point"),
        own(
            "hypergradient.step",
            "0.03",
            "second derivatives are differences here",
        ),
        same("unlearn.lr", "1e-4", "lr"),
        same("unlearn.amsgrad", "true", "client_optimizer, Adam with it"),
        same("unlearn.patched", "0.01", "portion in loss_outer"),
        same("unlearn.batch_size", "256", "batch_size"),
        same("unlearn.shuffle", "true", "the loader"),
        same("unlearn.augment", "true", "transform of the training"),
    ],
];

const RNP: &[&[Row]] = &[
    &CLEAN_SMALL,
    &THRESHOLDS,
    &UNLEARN,
    &[
        PROBE,
        same(
            "clip_before_backward",
            "true",
            "clip_grad_norm_ stands before backward",
        ),
        same("unlearn.batch_size", "256", "batch_size"),
        same("recover.epochs", "20", "recovering_epochs"),
        same("recover.lr", "0.2", "recovering_lr"),
        same("recover.momentum", "0.9", "mask_optimizer"),
        same("recover.alpha", "0.2", "alpha"),
        same("recover.batch_size", "256", "batch_size"),
        same("recover.shuffle", "true", "the loader"),
        same("recover.augment", "true", "transform of the training"),
        same("prune.threshold", "0.7", "pruning_number"),
        same("prune.choose", "\"fixed\"", "what it saves"),
        same("prune.tolerance", "0.1", "acc_ratio"),
    ],
];

const TSBD: &[&[Row]] = &[
    &CLEAN,
    &TSBD_UNLEARN,
    &NWC,
    &[
        STOP_CONSTANT,
        LAYERS,
        PROBE,
        NO_SWEEP,
        same(
            "sweep_ratios",
            "[0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9]",
            "reinit_ratio",
        ),
        same("record_layer", "\"layer4.1.conv2.weight\"", "record_layer")
            .here("\"last\"", "the same layer, whatever the network"),
        own(
            "reinit.n",
            "0.15",
            "all of the list are tried there and none is chosen",
        ),
        same("reinit.m", "0.7", "m"),
        same("reinit.scheme", "\"v3\"", "zero_reinit_weight"),
        same("finetune.lr", "0.01", "lr_ft"),
        same("finetune.momentum", "0.9", "the optimiser"),
        same("finetune.epochs", "21", "range(ft_epoch + 1) of 20"),
        same("finetune.r", "0.05", "r"),
        same("finetune.alpha", "0.7", "alpha"),
        same(
            "finetune.norm",
            "\"per-tensor\"",
            "a norm of each parameter's gradient",
        ),
        same("finetune.batch_size", "256", "batch_size"),
        same("finetune.shuffle", "false", "the loader"),
        same("finetune.augment", "true", "transform of the training"),
        same(
            "finetune.refresh_bn",
            "true",
            "a forward pass after each step",
        ),
        own("select.choose", "\"fixed\"", "a choice of ours"),
        own("select.hold_out", "0.2", "a choice of ours"),
        own("select.tolerance", "0.05", "a choice of ours"),
    ],
];

const OTBR: &[&[Row]] = &[
    &NWC,
    &[
        LAYERS.here(
            "[\"shortcut\", \"downsample\"]",
            "fusion knows what a layer in the main path reads, and the reference's ends with an error at the others",
        ),
        NO_SWEEP,
        same(
            "sweep_ratios",
            "[0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3]",
            "gamma_list",
        ),
        same("unlearn.lr", "1e-4", "lr_un"),
        same("unlearn.momentum", "0.9", "the optimiser"),
        same("unlearn.steps", "20", "I_"),
        same("unlearn.batch_size", "256", "batch_size"),
        same(
            "unlearn.labels",
            "\"all-but-last\"",
            "randint, whose end is one less than there are classes",
        ),
        same("unlearn.noise", "\"raw\"", "rand, without normalisation"),
        own(
            "prune.gamma",
            "0.15",
            "all of the list are tried there and none is chosen",
        ),
        same("fusion.lambda", "0.5", "lambda_"),
        same(
            "fusion.cost",
            "\"unaligned\"",
            "cdist of w1, not of w1_transformed",
        ),
        own(
            "fusion.floor",
            "1e-6",
            "a neuron without any change has a share of 0 there, by which it divides",
        ),
        own("select.choose", "\"fixed\"", "a choice of ours"),
        own("select.images", "256", "a choice of ours"),
        own("select.agreement", "0.98", "a choice of ours"),
    ],
];

const ULRL: &[&[Row]] = &[
    &CLEAN_SMALL,
    &UNLEARN,
    &[
        PROBE,
        same("unlearn.batch_size", "128", "batch_size"),
        same("detect.threshold", "3.5", "neuron_indices"),
        same("detect.scale", "1.4826", "mad_z_scores"),
        same("detect.max", "2", "the rows that are used"),
        same("detect.keep", "\"first\"", "the rows that are used"),
        same("relearn.init", "true", "init"),
        same("relearn.gain", "2", "sqrt(2 / n)"),
        same("relearn.epochs", "20", "relearn_epochs"),
        same("relearn.lr", "0.001; cifar10 0.005", "relearn_lr"),
        same("relearn.momentum", "0.9", "the optimiser"),
        same("relearn.alpha", "0.001; cifar10 0.7", "relearn_alpha"),
        same("relearn.batch_size", "128", "batch_size"),
        same("relearn.shuffle", "true", "the loader"),
        same("relearn.augment", "true", "transform of the training"),
        same(
            "relearn.refresh_bn",
            "true",
            "a second forward pass in each step",
        ),
    ],
];

const DEFENSES: [(&str, &[&[Row]]); 11] = [
    ("ft", FT),
    ("fp", FP),
    ("nad", NAD),
    ("nc", NC),
    ("anp", ANP),
    ("clp", CLP),
    ("ibau", IBAU),
    ("rnp", RNP),
    ("tsbd", TSBD),
    ("otbr", OTBR),
    ("ulrl", ULRL),
];

#[test]
fn defenses_have_the_published_settings() {
    assert_eq!(DEFENSES.len(), bb_defense::registry::DEFENSES.len());
    let mut wrong = Vec::new();
    for (id, groups) in DEFENSES {
        let defense = bb_defense::registry::find(id, &[]).expect("a defense");
        let found = check(id, groups, |dataset| {
            let given = bb_defense::method::Given::default();
            let ready = defense.resolve(dataset, &given).expect("valid settings");
            let settings = ready.origins().iter();
            settings
                .map(|(key, value, _)| (key.clone(), value.clone()))
                .collect()
        });
        wrong.extend(found);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

// Attacks.

const TRAIN: [Row; 6] = [
    own("eval_every", "1", RECORD),
    same("train.epochs", "100; gtsrb 50; tiny 200", "epochs"),
    same("train.batch_size", "128", "batch_size"),
    same("train.momentum", "0.9", "sgd_momentum"),
    same("train.weight_decay", "5e-4", "wd"),
    same("train.nesterov", "false", "the optimiser"),
];

/// Settings of schedules that are not used.
const UNUSED: [Row; 3] = [
    own("train.schedule.step_size", "30", "no schedule here has it"),
    own("train.schedule.warmup", "0.2", "no schedule here has it"),
    same("train.schedule.min_lr", "0", "PyTorch's schedules"),
];

/// The training of all attacks that poison data beforehand.
const COSINE: [Row; 8] = [
    same("train.lr", "0.01", "lr"),
    same("train.drop_last", "true", "the loader"),
    same("train.augment", "true", "transform of the training"),
    same(
        "train.schedule.kind",
        "\"cosine\"; tiny \"plateau\"",
        "lr_scheduler",
    ),
    same("train.schedule.t_max", "100", "without cos_t_max"),
    same("train.schedule.gamma", "0.1", "PyTorch's plateau"),
    same("train.schedule.patience", "10", "PyTorch's plateau"),
    own(
        "train.schedule.milestones",
        "[100, 150]",
        "the schedule has none",
    ),
];

/// That of the attacks that poison batches.
const STEPS: [Row; 8] = [
    same("train.lr", "0.01", "lr, lr_C"),
    same("train.drop_last", "false", "the loader"),
    same("train.augment", "true", "transform of the training"),
    same("train.schedule.kind", "\"multistep\"", "lr_scheduler"),
    same(
        "train.schedule.milestones",
        "[100, 200, 300, 400]",
        "steplr_milestones, schedulerC_milestones",
    ),
    same(
        "train.schedule.gamma",
        "0.1",
        "steplr_gamma, schedulerC_lambda",
    ),
    own("train.schedule.t_max", "100", "the schedule has none"),
    own("train.schedule.patience", "10", "the schedule has none"),
];

const TARGET: Row = same("target", "0", "attack_target");
const RATIO: Row = same("ratio", "0.1", "pratio");
const LABEL: [Row; 2] = [
    same("label", "\"all2one\"", "attack_label_trans"),
    own("shift", "1", "of the other rule of labels"),
];

const PROTOTYPE: &[&[Row]] = &[&TRAIN, &COSINE, &UNUSED];

const BADNETS: &[&[Row]] = &[
    &TRAIN,
    &COSINE,
    &UNUSED,
    &LABEL,
    &[
        TARGET,
        RATIO,
        own("trigger.file", "\"\"", "a patch of ours for their picture"),
        same("trigger.pattern", "\"solid\"", "trigger_image.png"),
        same("trigger.position", "\"lower-right\"", "trigger_image.png"),
        same("trigger.size", "3", "trigger_image.png"),
        same("trigger.margin", "0", "trigger_image.png"),
        same("trigger.value", "255", "trigger_image.png"),
        same("trigger.scaling", "\"resize\"", "Resize of the picture"),
    ],
];

const BLENDED: &[&[Row]] = &[
    &TRAIN,
    &COSINE,
    &UNUSED,
    &LABEL,
    &[
        TARGET,
        RATIO,
        own("trigger.file", "\"\"", "a picture of ours for theirs"),
        same("trigger.alpha_train", "0.2", "attack_train_blended_alpha"),
        same("trigger.alpha_test", "0.2", "attack_test_blended_alpha"),
    ],
];

const NOT_SHIPPED: &str = "their pattern is a file that is not shipped here";

const LF: &[&[Row]] = &[
    &TRAIN,
    &COSINE,
    &UNUSED,
    &LABEL,
    &[
        TARGET,
        RATIO,
        same("trigger.source", "\"file\"", "lowFrequencyPatternPath").here("\"rule\"", NOT_SHIPPED),
        own("trigger.file", "\"\"", NOT_SHIPPED),
        own("trigger.scale", "\"auto\"", NOT_SHIPPED),
        own("trigger.peak", "51", NOT_SHIPPED),
        own("trigger.model", "\"\"", NOT_SHIPPED),
        own("trigger.clean_epochs", "0", NOT_SHIPPED),
        same("trigger.deepfool.images", "100", "generate_pattern.py"),
        same("trigger.deepfool.passes", "50", "generate_pattern.py"),
        same(
            "trigger.deepfool.fooling_rate",
            "0.2",
            "generate_pattern.py",
        ),
        same(
            "trigger.deepfool.evaluate_per_class",
            "0",
            "generate_pattern.py",
        )
        .here("10", "one image says little of how many are fooled"),
        same(
            "trigger.deepfool.normalised",
            "false",
            "generate_pattern.py",
        )
        .here("true", "the network was trained on normalised images"),
    ],
];

const SIG: &[&[Row]] = &[
    &TRAIN,
    &COSINE,
    &UNUSED,
    &[
        TARGET,
        RATIO.here(
            "0.1; cifar100 0.01; gtsrb 0.005; tiny 0.005",
            "the attack poisons the target class alone, which has no more images",
        ),
        own("oversize", "\"error\"", "for a class with too few images"),
        same("trigger.delta", "40", "sig_delta"),
        same("trigger.frequency", "6", "sig_f"),
    ],
];

const ENCODER: &str = "their images are files that an encoder of the authors made";

const SSBA: &[&[Row]] = &[
    &TRAIN,
    &COSINE,
    &UNUSED,
    &LABEL,
    &[
        TARGET,
        RATIO,
        same(
            "trigger.source",
            "\"file\"",
            "attack_train_replace_imgs_path",
        )
        .here("\"train\"", ENCODER),
        own("trigger.folder", "\"\"", ENCODER),
        own("trigger.train_file", "\"\"", ENCODER),
        own("trigger.test_file", "\"\"", ENCODER),
        own("trigger.bits", "100", ENCODER),
        own("trigger.message_seed", "0", ENCODER),
        own("trigger.width", "32", ENCODER),
        own("trigger.epochs", "20", ENCODER),
        own("trigger.steps", "0", ENCODER),
        own("trigger.batch_size", "64", ENCODER),
        own("trigger.lr", "1e-4", ENCODER),
        own("trigger.start_accuracy", "0.9", ENCODER),
        own("trigger.delay", "1000", ENCODER),
        own("trigger.ramp", "3000", ENCODER),
        own("trigger.image_weight", "10", ENCODER),
    ],
];

const TROJAN: &[&[Row]] = &[
    &TRAIN,
    &COSINE,
    &UNUSED,
    &LABEL,
    &[
        TARGET,
        RATIO,
        own("trigger.file", "\"\"", "a trigger that is there already"),
        own("trigger.mask", "\"\"", "a shape of ours for their picture"),
        own(
            "trigger.model",
            "\"\"",
            "a clean network that is there already",
        ),
        own("trigger.clean_epochs", "0", "as many as there are"),
        same("trigger.head", "\"random\"", "a fresh linear layer")
            .here("\"own\"", "the neurons of an untrained layer mean nothing"),
        same(
            "trigger.normalised",
            "false",
            "pgd_with_mask_to_selected_neuron",
        )
        .here("true", "the network was trained on normalised images"),
        same("trigger.neurons", "2", "num_neuron"),
        same("trigger.target_value", "100", "neuron_target_values"),
        same("trigger.iterations", "1000", "mask_update_iters"),
        same("trigger.step", "0.1", "pgd_with_mask_to_selected_neuron"),
        same("trigger.radius", "0.3", "pgd_with_mask_to_selected_neuron"),
        same(
            "trigger.iterate",
            "\"last\"",
            "pgd_with_mask_to_selected_neuron",
        )
        .here("\"best\"", "the last one is not the best"),
        same("trigger.addition", "\"wrap\"", "an addition of bytes"),
    ],
];

const WANET: &[&[Row]] = &[
    &TRAIN,
    &STEPS,
    &UNUSED,
    &LABEL,
    &[
        TARGET,
        RATIO,
        same("cross", "2", "cross_ratio"),
        same("rounding", "\"truncate\"", "ToPILImage of floats")
            .here("\"nearest\"", "pictures are rounded"),
        same("augmentation", "\"batch\"", "PostTensorTransform"),
        same("trigger.k", "4", "k"),
        same("trigger.s", "0.5", "s"),
        same("trigger.grid_rescale", "1", "grid_rescale"),
    ],
];

const INPUTAWARE: &[&[Row]] = &[
    &TRAIN,
    &STEPS,
    &UNUSED,
    &LABEL,
    &[
        TARGET,
        RATIO,
        same("rounding", "\"truncate\"", "ToPILImage of floats")
            .here("\"nearest\"", "pictures are rounded"),
        same("lambda_div", "1", "lambda_div"),
        same("generator.width", "32", "channels of Generator"),
        same("generator.lr", "0.01", "lr_G"),
        same("generator.double_tanh", "true", "threshold of its output"),
        same(
            "generator.accumulate_gradients",
            "true",
            "no zero_grad of the generator",
        ),
        same("mask.clean_train_epochs", "25", "clean_train_epochs"),
        same("mask.counted", "true", "the epochs of the classifier"),
        same("mask.lr", "0.01", "lr_M"),
        same("mask.milestones", "[10, 20]", "schedulerM_milestones"),
        same("mask.density", "0.032", "mask_density"),
        same("mask.lambda_norm", "100", "lambda_norm"),
    ],
];

const ATTACKS: [(&str, &[&[Row]]); 9] = [
    ("clean", PROTOTYPE),
    ("badnets", BADNETS),
    ("blended", BLENDED),
    ("lf", LF),
    ("sig", SIG),
    ("ssba", SSBA),
    ("trojan", TROJAN),
    ("wanet", WANET),
    ("inputaware", INPUTAWARE),
];

#[test]
fn attacks_have_the_published_settings() {
    let mut wrong = Vec::new();
    assert_eq!(ATTACKS.len(), bb_attack::registry::ATTACKS.len());
    for (id, groups) in ATTACKS {
        let attack = bb_attack::registry::find(id).expect("an attack");
        let found = check(id, groups, |dataset| {
            let given = bb_attack::method::Given::default();
            let ready = attack.resolve(dataset, &given).expect("valid settings");
            let settings = ready.origins().iter();
            settings
                .map(|(key, value, _)| (key.clone(), value.clone()))
                .collect()
        });
        wrong.extend(found);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Settings that differ from the published ones and that no profile sets, and why a run by them can stand beside published
/// numbers all the same.
const NOT_IN_PROFILES: [(&str, &str, &str); 4] = [
    ("fp", "unlearn.stop_constant", "it prunes by activation"),
    (
        "lf",
        "trigger.deepfool.",
        "a pattern that is read is not searched",
    ),
    ("sig", "ratio", "it is compared with the paper's own"),
    ("otbr", "layers.exclude", "PreActResNet18 has no such layer"),
];

/// Where a published setting differs from ours, the profile that numbers are compared by has the published one.
#[test]
fn profiles_have_the_published_settings_where_recipes_have_others() {
    let profile = Paper::tsbd_table1().profile;
    let mut wrong = Vec::new();
    let mut used = std::collections::BTreeSet::new();
    let mut check = |kind: Kind, id: &str, groups: &[&[Row]], dataset: &str| {
        let published = profile.method(kind, id);
        let set = published.given(dataset, "preactresnet18");
        let settings: BTreeMap<String, String> = if kind == Kind::Attack {
            let attack = bb_attack::registry::find(id).expect("an attack");
            let files = Vec::new();
            let given = bb_attack::method::Given { files, set };
            let ready = attack.resolve(dataset, &given).expect("valid settings");
            let values = ready.origins().iter();
            values
                .map(|(key, value, _)| (key.clone(), value.clone()))
                .collect()
        } else {
            let defense = bb_defense::registry::find(id, &[]).expect("a defense");
            let files = Vec::new();
            let given = bb_defense::method::Given { files, set };
            let ready = defense.resolve(dataset, &given).expect("valid settings");
            let values = ready.origins().iter();
            values
                .map(|(key, value, _)| (key.clone(), value.clone()))
                .collect()
        };
        for row in groups.iter().copied().flatten() {
            let theirs = on(row.theirs, dataset);
            if row.theirs.is_empty() || measures(row.key) || equal(&settings[row.key], theirs) {
                continue;
            }
            let known = NOT_IN_PROFILES
                .iter()
                .position(|(method, key, _)| *method == id && row.key.starts_with(key));
            match known {
                Some(i) => drop(used.insert(i)),
                None => wrong.push(format!(
                    "{id} on {dataset}: {} = {}, published is {theirs}",
                    row.key, settings[row.key]
                )),
            }
        }
    };
    for dataset in DATASETS {
        for (id, groups) in ATTACKS {
            check(Kind::Attack, id, groups, dataset);
        }
        for (id, groups) in DEFENSES {
            check(Kind::Defense, id, groups, dataset);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(used.len(), NOT_IN_PROFILES.len(), "an exception has gone");
}
