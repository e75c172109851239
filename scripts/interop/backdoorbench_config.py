"""Turn BackdoorBench's YAML settings into ours.

    python scripts/interop/backdoorbench_config.py attack config/attack/prototype/cifar10.yaml config/attack/badnet/default.yaml
    python scripts/interop/backdoorbench_config.py defense fp config/defense/fp/cifar10.yaml

Of several files the later one wins, as in the benchmark, where the attack's own file comes behind that of the training.
The method of an attack is read from its key `attack` (`clean` without one); a defense has to be named.
Standard output is a settings file for `-c`. What our programs take on the command line, and every key without a
counterpart, is listed as a comment in it and on standard error, so nothing is dropped unseen.
What the benchmark's code always does without a key for it is set as well (`ALWAYS`).

Needs PyYAML.
"""

import argparse
import sys

import yaml

ATTACKS = {
    "badnet": "badnets",
    "blended": "blended",
    "lowFrequency": "lf",
    "lf": "lf",
    "sig": "sig",
    "SSBA": "ssba",
    "ssba": "ssba",
    "trojannn": "trojan",
    "wanet": "wanet",
    "inputaware": "inputaware",
}
DEFENSES = ("ft", "fp", "nad", "nc", "anp", "clp", "ibau", "rnp")

TRAINING = {
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "sgd_momentum": "train.momentum",
    "wd": "train.weight_decay",
}
POISON = {"attack_target": "target", "pratio": "ratio"}
LABEL = {"attack_label_trans": "label"}
CLEAN = {"ratio": "clean.ratio", "index": "clean.index_file"}
FINETUNING = CLEAN | {
    "epochs": "finetune.epochs",
    "batch_size": "finetune.batch_size",
    "lr": "finetune.lr",
    "sgd_momentum": "finetune.momentum",
    "wd": "finetune.weight_decay",
}
# The key in the benchmark's file, and the setting here, or several settings that it stands for.
KEYS = {
    "clean": TRAINING,
    "badnets": TRAINING | POISON | LABEL | {"patch_mask_path": "trigger.file"},
    "blended": TRAINING
    | POISON
    | LABEL
    | {
        "attack_trigger_img_path": "trigger.file",
        "attack_train_blended_alpha": "trigger.alpha_train",
        "attack_test_blended_alpha": "trigger.alpha_test",
    },
    "lf": TRAINING | POISON | LABEL | {"lowFrequencyPatternPath": "trigger.file"},
    "sig": TRAINING | POISON | {"sig_delta": "trigger.delta", "sig_f": "trigger.frequency"},
    "ssba": TRAINING
    | POISON
    | LABEL
    | {
        "attack_train_replace_imgs_path": "trigger.train_file",
        "attack_test_replace_imgs_path": "trigger.test_file",
    },
    "trojan": TRAINING
    | POISON
    | LABEL
    | {
        "num_neuron": "trigger.neurons",
        "neuron_target_values": "trigger.target_value",
        "mask_update_iters": "trigger.iterations",
        "mask_path": "trigger.mask",
    },
    "wanet": TRAINING
    | POISON
    | LABEL
    | {
        "cross_ratio": "cross",
        "s": "trigger.s",
        "k": "trigger.k",
        "grid_rescale": "trigger.grid_rescale",
    },
    "inputaware": TRAINING
    | POISON
    | LABEL
    | {
        # The attack ignores the training file's rate.
        "lr": None,
        "lr_C": "train.lr",
        "lr_G": "generator.lr",
        "lr_M": "mask.lr",
        "schedulerM_milestones": "mask.milestones",
        "lambda_div": "lambda_div",
        "lambda_norm": "mask.lambda_norm",
        "mask_density": "mask.density",
        "clean_train_epochs": "mask.clean_train_epochs",
    },
    "ft": FINETUNING,
    "fp": FINETUNING | {"acc_ratio": "prune.tolerance", "once_prune_ratio": "prune.step"},
    # The teacher and the student share these.
    "nad": CLEAN
    | {
        "te_epochs": ("finetune.epochs", "distill.epochs"),
        "batch_size": ("finetune.batch_size", "distill.batch_size"),
        "lr": ("finetune.lr", "distill.lr"),
        "sgd_momentum": ("finetune.momentum", "distill.momentum"),
        "wd": ("finetune.weight_decay", "distill.weight_decay"),
        "beta1": "distill.beta1",
        "beta2": "distill.beta2",
        "beta3": "distill.beta3",
        "p": "distill.power",
    },
    "nc": FINETUNING
    | {
        "batch_size": ("finetune.batch_size", "invert.batch_size"),
        "nc_epoch": "invert.max_epochs",
        "mask_lr": "invert.lr",
        "init_cost": "invert.cost",
        "cost_multiplier": "invert.cost_factor",
        "atk_succ_threshold": "invert.success",
        "patience": "invert.patience",
        "early_stop": "invert.early_stop",
        "early_stop_threshold": "invert.stop_ratio",
        "early_stop_patience": "invert.stop_patience",
        "unlearning_ratio": "unlearn.share",
    },
    "anp": CLEAN
    | {
        "batch_size": "mask.batch_size",
        "lr": "mask.lr",
        "nb_iter": "mask.iterations",
        "anp_eps": "mask.eps",
        "anp_steps": "mask.steps",
        "anp_alpha": "mask.alpha",
        "acc_ratio": "prune.tolerance",
    },
    "clp": {"u": "u"},
    "ibau": CLEAN
    | {
        "batch_size": ("perturb.batch_size", "unlearn.batch_size"),
        "lr": "unlearn.lr",
        "n_rounds": "rounds",
        "K": "hypergradient.terms",
    },
    "rnp": CLEAN
    | {
        "batch_size": ("unlearn.batch_size", "recover.batch_size"),
        "unlearning_lr": "unlearn.lr",
        "unlearning_epochs": "unlearn.max_epochs",
        "schedule": "unlearn.milestones",
        "clean_threshold": "unlearn.stop_accuracy",
        "recovering_lr": "recover.lr",
        "recovering_epochs": "recover.epochs",
        "alpha": "recover.alpha",
        "pruning_number": "prune.threshold",
        "acc_ratio": "prune.tolerance",
    },
}
# Defenses whose training is the benchmark's own, with its schedule.
FINE_TUNED = ("ft", "fp", "nad", "nc")
# Percentages there, shares here.
PERCENT = {"atk_succ_threshold"}
# Settings that go with a path: with the key they are set as well.
ALONG = {"ssba": {"trigger.source": "file"}}
# What the benchmark's code does without a key for it: where ours does otherwise by default, or in one of two ways.
ALWAYS = {
    "lf": {"trigger.deepfool.evaluate_per_class": 0, "trigger.deepfool.normalised": False},
    "trojan": {
        "trigger.head": "random",
        "trigger.normalised": False,
        "trigger.iterate": "last",
        "trigger.addition": "wrap",
    },
    "wanet": {"rounding": "truncate", "augmentation": "batch"},
    "inputaware": {
        "rounding": "truncate",
        "mask.counted": True,
        "generator.double_tanh": True,
        "generator.accumulate_gradients": True,
    },
    "fp": {"prune.order": "activation", "prune.keep": "last-tried", "prune.one_less": True},
    "nad": {"distill.layers": "reference", "distill.repeat_bn": True},
    "nc": {"invert.normalise": "rows", "unlearn.stamp": "normalised"},
    "clp": {"pairing": "last-seen"},
    "rnp": {"clip_before_backward": True, "prune.choose": "fixed", "sweep": True},
}
# The rate of NAD's student from its third epoch on, whatever the settings.
STUDENT_LR = 0.01
# Files that the benchmark reads where its settings name none: ours makes a trigger of its own then.
UNNAMED = {
    "lf": {"lowFrequencyPatternPath": "./resource/lowFrequency/{dataset}_{model}_0_255.npy"},
    "ssba": {
        "attack_train_replace_imgs_path": "./resource/ssba/{dataset}_ssba_train_b1.npy",
        "attack_test_replace_imgs_path": "./resource/ssba/{dataset}_ssba_test_b1.npy",
    },
}
# Half period of the benchmark's cosine where `cos_t_max` is absent, whatever the number of epochs.
T_MAX = 100
FLOATS = {
    *("ratio", "lr", "cross", "lambda_div", "u", "grid_rescale", "s", "lambda_norm", "delta", "frequency"),
    *("momentum", "weight_decay", "beta1", "beta2", "beta3", "power", "cost", "cost_factor", "stop_ratio", "share"),
    *("eps", "alpha", "tolerance", "threshold", "stop_accuracy"),
}
OPTIONS = {"dataset": "--dataset", "model": "--arch", "random_seed": "--seed", "dataset_path": "--data"}
# A defense takes these from the cell that it repairs.
FROM_CELL = {"dataset", "model"}
LABELS = {"all2one", "all2all"}


def schedule(method, settings, section):
    """The learning-rate schedule as our settings, and the keys it was read from."""
    kind = settings.get("lr_scheduler")
    if method == "inputaware":
        used = {"schedulerC_milestones", "schedulerC_lambda"} & settings.keys()
        if "schedulerC_milestones" not in settings:
            return {}, used
        kind, milestones = "MultiStepLR", settings["schedulerC_milestones"]
        gamma = settings.get("schedulerC_lambda", 0.1)
    else:
        used = {"lr_scheduler"}
        milestones, gamma = settings.get("steplr_milestones"), settings.get("steplr_gamma", 0.1)
    if kind == "CosineAnnealingLR":
        used |= {"cos_t_max"} & settings.keys()
        t_max = settings.get("cos_t_max")
        values = {"kind": "cosine", "t_max": T_MAX if t_max is None else t_max}
    elif kind == "MultiStepLR" and milestones and section == "train":
        used |= {"steplr_milestones", "steplr_gamma"} & settings.keys()
        values = {"kind": "multistep", "milestones": milestones, "gamma": gamma}
    elif kind == "ReduceLROnPlateau":
        values = {"kind": "plateau"}
    else:
        return {}, set()
    return {f"{section}.schedule.{key}": value for key, value in values.items()}, used


def convert(method, settings):
    """Our settings by dotted name, options, and (key, value, why) of what is left."""
    known, ours, options, left = KEYS[method], {}, [], []
    used = set()
    if method in FINE_TUNED or method not in DEFENSES:
        section = "finetune" if method in DEFENSES else "train"
        ours, used = schedule(method, settings, section)
    ours |= ALWAYS.get(method, {})
    for key, value in settings.items():
        name = known.get(key)
        if key in used:
            continue
        if key == "attack":
            continue
        if method in DEFENSES and key in FROM_CELL:
            left.append((key, value, "that of the cell"))
        elif key in OPTIONS:
            options.append(f"{OPTIONS[key]} {value}")
        elif name is None:
            left.append((key, value, "no counterpart"))
        elif value is None:
            left.append((key, value, "it has no value"))
        elif name == "label" and value not in LABELS:
            left.append((key, value, "no such rule here"))
        elif isinstance(name, tuple):
            ours.update({each: typed(each, value) for each in name})
        else:
            if key in PERCENT:
                value /= 100
            ours[name] = typed(name, value)
            if name in ("trigger.file", "trigger.train_file", "trigger.test_file"):
                ours.update(ALONG.get(method, {}))
    if method == "nad" and settings.get("lr") not in (None, STUDENT_LR):
        why = f"the student has this rate in two epochs there, then {STUDENT_LR}, and a hundredth of that from epoch 21 on"
        left.append(("lr", settings["lr"], why))
    for key, path in UNNAMED.get(method, {}).items():
        if settings.get(key) is None:
            names = {name: settings.get(name, name.upper()) for name in ("dataset", "model")}
            left = [each for each in left if each[0] != key]
            left.append((key, path.format(**names), f"the file there by default, to be named by {known[key]}"))
    return ours, options, left


def typed(name, value):
    """The value as the setting wants it: some whole numbers are floats here."""
    return float(value) if name.split(".")[-1] in FLOATS and not isinstance(value, str) else value


def literal(value):
    """A TOML value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = repr(value)
        return text if any(c in text for c in ".en") else f"{text}.0"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def toml(ours):
    """The settings as tables, those without a dot first."""
    tables = {}
    for name, value in ours.items():
        *table, key = name.split(".")
        tables.setdefault(".".join(table), []).append(f"{key} = {literal(value)}")
    lines = []
    for table in sorted(tables):
        lines += [f"\n[{table}]"] if table else []
        lines += tables[table]
    return "\n".join(lines).strip()


def main():
    """Read, convert, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    attack = kinds.add_parser("attack")
    attack.add_argument("files", nargs="+")
    defense = kinds.add_parser("defense")
    defense.add_argument("method", choices=DEFENSES)
    defense.add_argument("files", nargs="+")
    args = parser.parse_args()

    settings = {}
    for path in args.files:
        with open(path, encoding="utf-8") as file:
            read = yaml.safe_load(file)
        if not isinstance(read, dict):
            sys.exit(f"error: `{path}` is no table of settings")
        settings |= read
    if args.kind == "defense":
        method = args.method
    else:
        named = settings.get("attack")
        if named is not None and named not in ATTACKS:
            sys.exit(f"error: there is no counterpart of the attack `{named}`, expected one of {', '.join(ATTACKS)}")
        method = ATTACKS.get(named, "clean")

    ours, options, left = convert(method, settings)
    program = "bb-defense" if args.kind == "defense" else "bb-attack"
    print(f"# {method}: from BackdoorBench's {', '.join(args.files)}")
    print(f"# {program} {method} -c THIS_FILE" + "".join(f" {option}" for option in options))
    for key, value, why in left:
        print(f"# not converted: {key} = {value} ({why})")
        print(f"not converted: {key} = {value} ({why})", file=sys.stderr)
    print(toml(ours))


if __name__ == "__main__":
    main()
