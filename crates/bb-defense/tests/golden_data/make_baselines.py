#!/usr/bin/env python3
"""Makes `baseline_*.safetensors` beside this file: what BackdoorBench's FT, FP, NAD, NC and RNP do to a small model.

    python crates/bb-defense/tests/golden_data/make_baselines.py PATH_OF_A_CLONE [name ...]

The clone is one of https://github.com/SCLBD/BackdoorBench at `COMMIT`; nothing of it is changed. Needs torch,
torchvision, numpy, pandas, matplotlib, tqdm, PyYAML, opencv-python-headless and safetensors.

Each case runs the whole of a defense as the clone has it, on the CPU and without mixed precision, with the settings of
its own YAML file but for those in `CASES`. What is put in the place of its parts:
- The network has width 4 instead of 64.
- The clean images are all of `IMAGES` random ones, in their order, and are not augmented; so no draw is left. They stand
  in for its clean test images as well, by whose accuracy FP chooses. Loaders are not shuffled.
- Cells are not read from files, nor written to them, and no curve is drawn.

`baseline_model` has the suspect model `state.*`, whose values are rounded to bf16, and the bytes `pixels` with `labels`.
The others have what their function below says. A state `NAME.*` has of each tensor every `stride`-th value, so that it
has at most `KEPT`. `floor` in the metadata is the largest relative L2 error of a tensor in `f32` against `f64`, by kind.
"""
import argparse
import contextlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

COMMIT = "f02e3534645f0ee63d6848653062cd6c0d6c400d"
WIDTH, CLASSES, IMAGES, BATCH, SEED, STEPS, KEPT = 4, 10, 10, 4, 3, 32, 96
# Settings that are not those of the clone's YAML file.
CASES = {
    "ft": {"epochs": 3, "cos_t_max": 4},
    "fp": {"epochs": 2, "cos_t_max": 4, "once_prune_ratio": 0.1, "acc_ratio": 0.2},
    "nad": {"te_epochs": 2, "cos_t_max": 4, "lr": 0.001},
    "nc": {
        "epochs": 2,
        "cos_t_max": 4,
        "nc_epoch": 8,
        "atk_succ_threshold": 60.0,
        "init_cost": 0.02,
        "patience": 1,
        "early_stop_patience": 1,
    },
    "rnp": {
        "unlearning_epochs": 3,
        "schedule": [2],
        "clean_threshold": 0.0,
        "recovering_epochs": 2,
        "recovering_lr": 6.0,
        "pruning_number": 0.7,
    },
}
# Of the parser of RNP, which has these defaults in no YAML file.
RNP = {
    "alpha": 0.2,
    "unlearning_lr": 0.01,
    "pruning_by": "threshold",
    "pruning_max": 0.9,
    "pruning_step": 0.05,
    "mask_file": None,
}


def narrow(net, **kwargs):
    """A PreActResNet-18 of the clone with `WIDTH` instead of 64 channels."""
    block, net.in_planes = type(net.layer1[0]), WIDTH
    net.conv1 = torch.nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False)
    for stage in range(4):
        layer = net._make_layer(block, WIDTH << stage, 2, stride=2 if stage else 1, **kwargs)
        setattr(net, f"layer{stage + 1}", layer)
    net.linear = torch.nn.Linear(WIDTH << 3, net.linear.out_features)
    return net


def suspect():
    """The suspect model and its images: `baseline_model`."""
    from models.preact_resnet import PreActResNet18

    torch.manual_seed(SEED)
    net = narrow(PreActResNet18(CLASSES))
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.6, 1.4)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    # Coarse patterns with a little noise, one a class, which the model learns in part.
    coarse = torch.randint(0, 256, (IMAGES, 4, 4, 3)).repeat_interleave(8, 1).repeat_interleave(8, 2)
    pixels = (coarse + torch.randint(-16, 17, coarse.shape)).clamp(0, 255).to(torch.uint8)
    labels = torch.arange(IMAGES) % CLASSES
    optimiser = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    for _ in range(STEPS):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(normalised(pixels)), labels).backward()
        optimiser.step()
    # So that the classes are not all alike.
    net.linear.bias.data[2] += 1.0
    state = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    with torch.no_grad():
        net.load_state_dict(state)
        right = net.eval()(normalised(pixels)).argmax(1) == labels
    print("suspect model:", int(right.sum()), "of", IMAGES, "right")
    return state, pixels, labels


def normalised(pixels):
    """As the benchmark's transform for CIFAR-10 without augmentation."""
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.247, 0.243, 0.261])
    x = pixels.permute(0, 3, 1, 2) / torch.tensor(255.0)
    return (x - mean[:, None, None]) / std[:, None, None]


class Plain(list):
    """Pictures with labels; a list proper has no `__dict__`, which the clone's wrapper looks into."""


class Bench:
    """The clone's modules with the parts replaced that the head of this file names."""

    def __init__(self, method, model):
        self.state, self.pixels, self.labels = model
        self.module = __import__(f"defense.{method}", fromlist=[method])
        self.rates = []
        module, plain = self.module, self.module.__dict__.get("get_transform")
        module.generate_cls_model = self.network
        module.load_attack_result = lambda *_: self.attack_result()
        module.save_defense_result = lambda **given: None
        trainers = sys.modules["utils.trainer_cls"]
        for name in ("general_plot_for_epoch", "plot_loss", "plot_acc_like_metric", "plot_acc_like_metric_pure"):
            for each in (module, trainers):
                if name in each.__dict__:
                    setattr(each, name, lambda *_, **__: None)
        if plain:
            module.get_transform = lambda *given, train: plain(*given, train=False)
        if "argparser_opt_scheduler" in module.__dict__:
            module.argparser_opt_scheduler = self.watched(module.argparser_opt_scheduler)

    def network(self, *_, **__):
        from models.preact_resnet import PreActResNet18

        return narrow(PreActResNet18(CLASSES))

    def suspect_state(self):
        return {k: v.to(torch.get_default_dtype()) if v.is_floating_point() else v for k, v in self.state.items()}

    def attack_result(self):
        from utils.aggregate_block.dataset_and_transform_generate import get_transform
        from utils.bd_dataset_v2 import dataset_wrapper_with_transform, prepro_cls_DatasetBD_v2

        transform = get_transform("cifar10", 32, 32, train=False)
        images = zip(self.pixels, self.labels, strict=True)
        raw = Plain((Image.fromarray(image.numpy()), int(label)) for image, label in images)
        return {
            "model": self.suspect_state(),
            "clean_train": dataset_wrapper_with_transform(raw, transform, None),
            "clean_test": dataset_wrapper_with_transform(raw, transform, None),
            "bd_test": dataset_wrapper_with_transform(prepro_cls_DatasetBD_v2(raw), transform, None),
        }

    def watched(self, make):
        """Optimisers whose rates are noted at each step."""

        def made(*given):
            optimiser, scheduler = make(*given)
            step = optimiser.step

            def watched(*given, **more):
                self.rates.append(optimiser.param_groups[0]["lr"])
                return step(*given, **more)

            optimiser.step = watched
            return optimiser, scheduler

        return made

    def args(self, clone, method, more):
        folder = clone / "config/defense" / method
        yaml = folder / "cifar10.yaml"
        indices = pathlib.Path("indices.txt")
        np.savetxt(indices, np.arange(IMAGES), fmt="%d")
        plain = {"device": "cpu", "amp": False, "pin_memory": False, "non_blocking": False, "num_workers": 0}
        return argparse.Namespace(
            yaml_path=str(yaml if yaml.exists() else folder / "config.yaml"),
            dataset="cifar10",
            result_file="cell",
            batch_size=BATCH,
            index=str(indices),
            num_classes=CLASSES,
            **plain,
            **more,
            **CASES[method],
        )


@contextlib.contextmanager
def unshuffled_loaders():
    """Loaders in the order of their images, in this process."""
    make = torch.utils.data.DataLoader

    def plain(dataset, batch_size, drop_last=False, **_):
        return make(dataset, batch_size, shuffle=False, drop_last=drop_last, num_workers=0)

    torch.utils.data.DataLoader = plain
    try:
        yield
    finally:
        torch.utils.data.DataLoader = make


def sampled(state, prefix):
    """Every so many values of each tensor."""
    out = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            out[f"{prefix}.{name}"] = tensor.detach().clone()
            continue
        flat = tensor.detach().flatten()
        out[f"{prefix}.{name}"] = flat[:: -(-len(flat) // KEPT)].clone()
    return out


def ft(bench, clone):
    """`after.*`: the model after 3 epochs of 3 batches; `rates`: the rate of each step; `plateau_rates` of
    epochs with `plateau_losses`, by the other schedule."""
    args = bench.args(clone, "ft", {})
    method = bench.module.ft(args)
    bench.module.args = method.args
    result = method.mitigation()
    # The other schedule, for a loss that falls, rests, falls a little and rests.
    losses = [2.0, 1.0] + [0.99995] * 12 + [0.9] + [1.1, 0.9] * 12
    more = argparse.Namespace(**{**vars(method.args), "lr_scheduler": "ReduceLROnPlateau"})
    optimiser, scheduler = bench.module.argparser_opt_scheduler(torch.nn.Linear(1, 1), more)
    plateau = []
    for loss in losses:
        plateau.append(optimiser.param_groups[0]["lr"])
        scheduler.step(loss)
    return sampled(result["model"].state_dict(), "after") | {
        "rates": torch.tensor(bench.rates, dtype=torch.float64),
        "plateau_losses": torch.tensor(losses, dtype=torch.float64),
        "plateau_rates": torch.tensor(plateau, dtype=torch.float64),
    }


def fp(bench, clone):
    """`activation` and `order` of the features, `accuracy` by number of features tried, the `mask` that is kept,
    `after.*` and `rates` of 2 epochs of 3 batches."""
    method = bench.module.FinePrune()
    args = bench.args(clone, "fp", {})
    method.add_yaml_to_args(args)
    found = {}

    class Torch:
        """`torch`, whose `argsort` is asked once, for the order of the features."""

        def __getattr__(self, name):
            return getattr(torch, name)

        def argsort(self, activation):
            found["activation"] = activation.clone()
            found["order"] = torch.argsort(activation)
            return found["order"]

    bench.module.torch = Torch()
    tried, test = [], bench.module.given_dataloader_test

    def watched(*given, **more):
        metrics = test(*given, **more)
        tried.append(metrics[0]["test_acc"])
        return metrics

    bench.module.given_dataloader_test = watched
    method.prepare(method.process_args(args))
    method.defense()
    # Each number of features is tested three times: on clean images, on poisoned ones, and on these with true labels.
    found["accuracy"] = torch.tensor(tried[::3], dtype=torch.float64)
    state = method.netC.state_dict()
    found["mask"] = state.pop("linear.weight_mask").to(torch.uint8)
    # Of the weight as the layer uses it.
    state["linear.weight"] = state.pop("linear.weight_orig") * found["mask"]
    return found | sampled(state, "after") | {"rates": torch.tensor(bench.rates, dtype=torch.float64)}


def nad(bench, clone):
    """`losses` of the student's steps, `teacher.*` and `after.*`, the student, after 2 epochs of 3 batches each, `rates`
    of both; `by_hand`: the student's rate in each of 40 epochs."""
    args = bench.args(clone, "nad", {})
    method = bench.module.nad(args)
    bench.module.args = method.args
    losses, trainers = [], []
    make = method.set_trainer

    def set_trainer(*given, **more):
        make(*given, **more)
        trainers.append(method.trainer)

    method.set_trainer = set_trainer

    backward = torch.Tensor.backward

    def noted(tensor, *given, **more):
        losses.append(float(tensor.detach()))
        return backward(tensor, *given, **more)

    torch.Tensor.backward = noted
    try:
        result = method.mitigation()
    finally:
        torch.Tensor.backward = backward
    teacher = trainers[0].model.state_dict()
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    by_hand = []
    for epoch in range(40):
        bench.module.adjust_learning_rate(optimiser, epoch, 0.01)
        by_hand.append(optimiser.param_groups[0]["lr"])
    steps = len(losses) // 2
    return (
        sampled(teacher, "teacher")
        | sampled(result["model"].state_dict(), "after")
        | {
            "losses": torch.tensor(losses[steps:], dtype=torch.get_default_dtype()),
            "rates": torch.tensor(bench.rates, dtype=torch.float64),
            "by_hand": torch.tensor(by_hand, dtype=torch.float64),
        }
    )


def rnp(bench, clone):
    """`unlearned.*` after 3 epochs of 3 batches, `masks` as written to the text file after 2 epochs, `norms` in their
    order (metadata), and `after.*`, the pruned model."""
    from utils.defense_utils.rnp.rnp_model.preact_rnp import PreActResNet18

    module = bench.module
    module.get_rnp_network = lambda _, num_classes, norm_layer: narrow(
        PreActResNet18(num_classes=num_classes, norm_layer=norm_layer), norm_layer=norm_layer
    )
    args = bench.args(clone, "rnp", RNP)
    method = module.rnp(args)
    states = []
    load = module.load_state_dict

    def loading(net, orig_state_dict):
        states.append(orig_state_dict)
        return load(net, orig_state_dict)

    module.load_state_dict = loading
    result = method.mitigation()
    lines = pathlib.Path(method.args.save_path, "mask_values.txt").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return (
        sampled(states[1], "unlearned")
        | sampled(result["model"].state_dict(), "after")
        | {"masks": torch.tensor([float(row[3]) for row in rows], dtype=torch.get_default_dtype())}
    )


def triggers(recorders, flagged):
    """`mask.CLASS` and `pattern.CLASS`, of classes that are not `flagged` every third value, and the `norm` of each."""
    out = {}
    for label, recorder in enumerate(recorders):
        for name in ("mask", "pattern"):
            values = getattr(recorder, f"{name}_best").flatten()
            out[f"{name}.{label}"] = values[:: 1 if label in flagged else 3].clone()
    return out | {"norm": torch.stack([recorder.mask_best.norm(p=1) for recorder in recorders])}


class Saturating(np.ndarray):
    """An array whose bytes above 255 stay at 255, where those of the clone begin anew at 0."""

    def astype(self, kind, *given, **more):
        own = np.clip(self, 0, 255) if kind == "uint8" else self
        return np.ndarray.astype(own, kind, *given, **more)


class Numpy:
    """NumPy for NC's stamping."""

    def __getattr__(self, name):
        return getattr(np, name)

    def array(self, *given, **more):
        return np.array(*given, **more).view(Saturating)


def nc(bench, clone, by_channel=False):
    """See `triggers`; `epochs` of each class and which of them was `kept`, 0 for none, `flagged`, and the bytes `images` with `labels` that the model is trained
    on for 2 epochs, `after.*`. Sums above 255 stay there when an image is stamped, as they do in ours."""
    module = bench.module
    args = bench.args(clone, "nc", {})
    method = module.nc(args)
    module.args, module.np = method.args, Numpy()
    if by_channel:
        # A pattern of one image, as the normalisation expects a batch.
        call = module.Normalize.__call__
        module.Normalize.__call__ = lambda own, x: call(own, x[None])[0]
    recorders, flags, epochs, kept = [], [], [], []
    train, step, detect = module.train_mask, module.train_step, module.outlier_detection

    def stepped(*given):
        recorder, before = given[3], given[3].reg_best
        done = step(*given)
        epochs[-1] += 1
        if recorder.reg_best < before:
            kept[-1] = epochs[-1]
        return done

    def trained(*given):
        epochs.append(0)
        kept.append(0)
        recorder, args = train(*given)
        recorders.append(recorder)
        return recorder, args

    def detected(*given):
        flags.extend(detect(*given))
        return flags

    module.train_mask, module.train_step, module.outlier_detection = trained, stepped, detected
    try:
        method.set_result("cell")
        method.mitigation()
    finally:
        module.train_mask, module.train_step, module.outlier_detection = train, step, detect
        if by_channel:
            module.Normalize.__call__ = call
    flagged = [label for label, _ in flags]
    out = triggers(recorders, flagged) | {
        "epochs": torch.tensor(epochs),
        "kept": torch.tensor(kept),
        "flagged": torch.tensor(flagged, dtype=torch.int64),
    }
    if by_channel:
        return out
    images = method.result["clean_train"].wrapped_dataset
    shown = [images[i] for i in range(len(images))]
    return (
        out
        | sampled(method.trainer.model.state_dict(), "after")
        | {
            "images": torch.from_numpy(np.stack([np.array(image) for image, *_ in shown])),
            "labels": torch.tensor([label for _, label, *_ in shown]),
        }
    )


def nc_by_channel(bench, clone):
    """As `nc`, but that the pattern is normalised by channel, and without the model that is trained."""
    return nc(bench, clone, by_channel=True)


CASE = {"ft": ft, "fp": fp, "nad": nad, "nc": nc, "nc_by_channel": nc_by_channel, "rnp": rnp}


def run(case, clone, model, dtype):
    torch.set_default_dtype(dtype)
    torch.manual_seed(0)
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder, unshuffled_loaders():
        os.chdir(folder)
        try:
            return CASE[case](Bench(case.split("_")[0], model), clone)
        finally:
            os.chdir(here)
            torch.set_default_dtype(torch.float32)


def floor(single, double):
    """The largest relative error of a tensor of the one against the other, by what stands before its first dot."""
    worst = {}
    for name, value in single.items():
        if value.dtype == torch.float32 and value.numel():
            wanted = double[name].double()
            error = float((value.double() - wanted).norm() / wanted.norm().clamp_min(1e-30))
            kind = name.split(".")[0]
            worst[kind] = max(worst.get(kind, 0.0), error)
    return {kind: f"{error:.1e}" for kind, error in worst.items()}


def main():
    clone = pathlib.Path(sys.argv[1]).resolve()
    head = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    if head.stdout.strip() != COMMIT:
        sys.exit(f"error: the clone is at {head.stdout.strip()}, expected {COMMIT}")
    print("torch", torch.__version__, "numpy", np.__version__)
    torch.set_num_threads(1)
    sys.path.insert(0, str(clone))
    target = pathlib.Path(__file__).resolve().parent
    model = suspect()
    names = sys.argv[2:] or ["model", *CASE]
    for name in names:
        meta = {"torch": torch.__version__, "commit": COMMIT}
        if name == "model":
            state, pixels, labels = model
            out = {f"state.{k}": v for k, v in state.items()} | {"pixels": pixels, "labels": labels}
        else:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                out = run(name, clone, model, torch.float32)
                double = run(name, clone, model, torch.float64)
            meta["floor"] = floor(out, double)
            print(name, "floor", meta["floor"])
        path = target / f"baseline_{name}.safetensors"
        # In one entry, since several have no fixed order in the file.
        save_file({k: v.contiguous() for k, v in out.items()}, path, {"made": json.dumps(meta)})
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
