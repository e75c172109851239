"""Run a defense of BackdoorBench on a record folder, and count what it leaves of the attack.

    python scripts/interop/side_by_side.py METHOD --bench CLONE --record FOLDER --data DIR --work DIR
        [--file FILE --yaml FILE] [--seed N] [--ratio R] [--set KEY=VALUE ...] [--at THRESHOLD ...] [--variant NAME ...]

METHOD is fp, nc, rnp, anp, ft, nad, ibau, clp, ulrl, otbr or tsbd. CLONE is a clone of BackdoorBench (written for commit
f02e353), for ULRL one of its authors' code (094debf), which has the same shape. OTBR (fa293e5) and TSBD (3718c67) are
single files to go with BackdoorBench: --file is the method's, --yaml that of its settings. What is cloned is imported and
not changed. FOLDER is what its attack left (`attack_result.pt` and the folders of pictures beside
it), of a PreActResNet18 of any width on CIFAR-10; the clone's own loader is used, which unpickles, so give it only
records you trust. DIR of --data holds `cifar10/plain_text/*.parquet`, as for our own programs. The work folder is emptied.

What is replaced while it runs, so that it works on a CPU and is comparable with a run of `bb-defense`:
- the network is built from the clone's own blocks in the width that the record has;
- the clean images are those of `random.sample` after `random.seed(SEED)`, which is our draw too, wherever the clone
  draws (FP and NC draw a second time); they are given by its own option `index`;
- the tests after each epoch of training see two images or are left out, and so are plots: no result depends on them;
- FP's tests while it prunes use features computed once, and leave out the attacks, which it only logs.

--set changes settings of the clone's YAML files, by their names there, and `gamma_list` of OTBR and `reinit_ratio` of
TSBD, whose last model is counted. --at names thresholds of ANP's and RNP's masks
whose models are counted on all images, and on the defender's. Variants:
- `judge-defender` (fp): the accuracy that ends the pruning is that on the defender's images, not on the test set;
- `channels` (nc): the pattern is normalised by channel instead of by row.

One line of JSON goes to standard output: counts, percentages, and `cpu`, the processor seconds of the defense without
reading the data and the counts. `out.json` in the work folder has the courses of training and the masks too.

Needs kornia, matplotlib, numpy, opencv, pandas, pillow, POT (for OTBR), pyarrow, PyYAML, torch, torchvision and tqdm.
"""

import argparse
import importlib.util
import io
import json
import os
import pathlib
import random
import shutil
import sys
import time

import numpy as np
import pyarrow.parquet
import torch
import yaml
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset

METHODS = ("fp", "nc", "rnp", "anp", "ft", "nad", "ibau", "clp", "ulrl", "otbr", "tsbd")
TRAINED = ("fp", "nc", "ft", "nad", "ulrl", "otbr", "tsbd")
BY_HAND = {"fp": "FinePrune", "ulrl": "ULRL"}  # classes that do not merge their settings themselves


class Images:
    """CIFAR-10 as torchvision gives it: pictures and labels."""

    def __init__(self, files, limit=None):
        tables = [pyarrow.parquet.read_table(file, columns=["img", "label"]) for file in sorted(files)]
        table = pyarrow.concat_tables(tables)[:limit]
        self.files = table.column("img").combine_chunks().field("bytes")
        self.labels = table.column("label").to_pylist()
        self.decoded = {}

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        i = int(i)
        if i not in self.decoded:
            self.decoded[i] = Image.open(io.BytesIO(self.files[i].as_py())).convert("RGB")
        return self.decoded[i].copy(), self.labels[i]


def network(module, like, **norm):
    """The clone's PreActResNet18 with the width and the classes of a state dictionary."""
    width, classes = like["conv1.weight"].shape[0], like["linear.weight"].shape[0]

    class Net(module.PreActResNet):
        def __init__(self):
            nn.Module.__init__(self)
            self.in_planes = width
            self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
            for i in range(4):
                stage = self._make_layer(module.PreActBlock, width << i, 2, min(i + 1, 2), **norm)
                setattr(self, f"layer{i + 1}", stage)
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(8 * width, classes)

    return Net()


def count(net, clean, poisoned):
    """Hits and percentages on batches of the clean and of the poisoned test images, and of each class's clean ones."""
    net.eval()
    acc = asr = ra = 0
    right, of = {}, {}
    with torch.no_grad():
        for x, label, *_ in clean:
            hit = net(x).argmax(1) == label
            acc += int(hit.sum())
            for true, found in zip(label.tolist(), hit.tolist()):
                right[true] = right.get(true, 0) + found
                of[true] = of.get(true, 0) + 1
        for x, label, _, _, true in poisoned:
            given = net(x).argmax(1)
            asr += int((given == label).sum())
            ra += int((given == true).sum())
    clean, poisoned = (sum(len(batch[1]) for batch in batches) for batches in (clean, poisoned))
    percent = {"ACC": 100 * acc / clean, "ASR": 100 * asr / poisoned, "RA": 100 * ra / poisoned}
    recall = [round(100 * right[true] / of[true], 1) for true in sorted(of)]
    return {"hits": [acc, asr, ra], **{k: round(v, 2) for k, v in percent.items()}, "recall": recall}


def without_tests(cls, trained):
    """Trains with test sets of two images, and keeps what was trained."""
    real = vars(cls).get("train_with_test_each_epoch_on_mix")
    if real is None:
        return

    def run(self, train, clean, poisoned, *args, **kwargs):
        small = [DataLoader(Subset(loader.dataset, [0, 1]), batch_size=2) for loader in (clean, poisoned)]
        lists = real(self, train, *small, *args, **kwargs)
        trained.append((self.model, {"loss": lists[0], "acc": [float(acc) for acc in lists[1]]}))
        return lists

    cls.train_with_test_each_epoch_on_mix = run


def watch_fp(mod, own, by_defender, notes):
    """FP's tests while it prunes."""
    features, calls = [], []

    def tested(net, loader, *_):
        calls.append(loader)
        if len(calls) % 3 != 1:  # of attacks, for the log
            return {"test_acc": 0.0}, None, None
        if not features:
            net.eval()
            for x, label, *_ in [own] if by_defender else loader:
                hook = net.linear.register_forward_hook(lambda _m, read, _out: features.append((read[0], label)))
                with torch.no_grad():
                    net(x)
                hook.remove()
        with torch.no_grad():
            hits = sum(int((net.linear(x).argmax(1) == label).sum()) for x, label in features)
        notes.setdefault("judged", []).append(hits)
        return {"test_acc": hits / sum(len(label) for _, label in features)}, None, None

    mod.given_dataloader_test = tested


def watch_nc(mod, by_channel, notes):
    """NC's norms and flagged classes."""
    outliers, mask, step = mod.outlier_detection, mod.train_mask, mod.train_step
    steps = [0]

    def counted_step(*args):
        steps[0] += 1
        return step(*args)

    def counted_mask(*args):
        steps[0] = 0
        found = mask(*args)
        notes.setdefault("epochs", []).append(steps[0])
        return found

    def noted(norms, mapping, opt):
        flagged = outliers(norms, mapping, opt)
        median = torch.median(norms)
        spread = 1.4826 * torch.median(torch.abs(norms - median))
        notes["norms"] = [round(float(norm), 2) for norm in norms]
        notes["anomaly"] = float(torch.abs(norms.min() - median) / spread)
        notes["flagged"] = [int(label) for label, _ in flagged]
        return flagged

    mod.train_step, mod.train_mask, mod.outlier_detection = counted_step, counted_mask, noted
    if by_channel:

        class ByChannel(mod.Normalize):
            def __call__(self, x):
                mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (self.expected_values, self.variance))
                return (x - mean) / deviation

        mod.Normalize = ByChannel


def watch_anp(mod):
    """ANP's tests of the masked network."""
    train, test = mod.mask_train, mod.test
    left = [0]

    def trained(*args, **kwargs):
        left[0] = 2
        return train(*args, **kwargs)

    def tested(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            return 0.0, 0.0
        return test(*args, **kwargs)

    mod.mask_train, mod.test = trained, tested


def watch_otbr(mod, trained):
    """OTBR's models; its tests are for the log."""
    fusion = mod.ot_fusion

    def fused(args, net, *rest):
        fusion(args, net, *rest)
        trained.append((net, {}))

    mod.ot_fusion = fused
    mod.otbr.test = lambda *_: (0.0, 1.0)


def watch_tsbd(mod, images, trained, notes):
    """TSBD's models, and the epochs of unlearning: each ends with a test on the defender's images."""
    test = mod.tsbd.test

    def tested(self, args, model, criterion, loader):
        if len(loader.dataset) != images:
            return 0.0, 1.0
        notes["epochs"] = notes.get("epochs", -1) + 1  # the first is that of the suspect model
        return test(self, args, model, criterion, loader)

    mod.tsbd.test = tested
    mod.PureCleanModelTrainer.test_current_model = lambda self, *_: trained.append((self.model, {})) or (0.0,) * 5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    for name in ("bench", "record", "data", "work"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    for name in ("file", "yaml"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ratio", type=float, default=0.05)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--at", action="append", default=[], type=float, metavar="THRESHOLD")
    parser.add_argument("--variant", action="append", default=[], choices=("judge-defender", "channels"))
    args = parser.parse_args()

    torch.set_num_threads(1)
    bench, data, work = (path.resolve() for path in (args.bench, args.data, args.work))
    args.file, args.yaml = (path and path.resolve() for path in (args.file, args.yaml))
    sys.path.insert(0, str(bench))

    # The clone looks for `record/NAME` and `data` below the folder it runs in.
    shutil.rmtree(work, ignore_errors=True)
    record = work / "record" / args.record.name
    record.mkdir(parents=True)
    shutil.copy(args.record / "attack_result.pt", record)
    for folder in args.record.resolve().iterdir():
        if folder.is_dir():
            (record / folder.name).symlink_to(folder)
    os.chdir(work)

    import matplotlib

    matplotlib.use("Agg")
    load, zeros_like = torch.load, torch.zeros_like
    torch.load = lambda *a, **k: load(*a, **{"weights_only": False, **k})
    torch.zeros_like = lambda x, device=None, **k: zeros_like(x, **k)  # i-BAU names the GPU
    saved = torch.load(record / "attack_result.pt")
    state = saved["model"]
    images = data / "cifar10" / "plain_text"
    train = Images(images.glob("train-*.parquet"), len(saved["bd_train"]["poison_indicator"]))
    test = Images(images.glob("test-*.parquet"))

    # What a file of the clone imports by name is replaced before that file is read.
    from utils.aggregate_block import dataset_and_transform_generate as transforms
    from utils.aggregate_block import model_trainer_generate as builder
    from utils import save_load_attack, trainer_cls
    from models import preact_resnet

    plain, augmented = (transforms.get_transform("cifar10", 32, 32, train=flag) for flag in (False, True))
    builder.generate_cls_model = lambda *a, **k: network(preact_resnet, state)
    save_load_attack.generate_cls_model = builder.generate_cls_model
    save_load_attack.dataset_and_transform_generate = lambda _: (train, augmented, None, test, plain, None)
    for name in ("plot_loss", "plot_acc_like_metric", "plot_acc_like_metric_pure", "general_plot_for_epoch"):
        setattr(trainer_cls, name, lambda *a, **k: None)
    name = "i-bau" if args.method == "ibau" else args.method
    file = args.file or bench / "defense" / f"{name}.py"
    spec = importlib.util.spec_from_file_location("original", file)
    mod = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mod)

    trained, notes = [], {}
    own = [cls for cls in vars(mod).values() if isinstance(cls, type) and cls.__module__ == "original"]
    for cls in (trainer_cls.PureCleanModelTrainer, trainer_cls.BackdoorModelTrainer, *own):
        without_tests(cls, trained)

    random.seed(args.seed)
    index = random.sample(range(len(train)), int(len(train) * args.ratio))
    np.savetxt("index.txt", index, fmt="%d")
    pictures = [train[i] for i in index]
    clean = torch.stack([plain(picture) for picture, _ in pictures]), torch.tensor([label for _, label in pictures])

    if args.method == "fp":
        watch_fp(mod, clean, "judge-defender" in args.variant, notes)
    elif args.method == "nc":
        watch_nc(mod, "channels" in args.variant, notes)
    elif args.method == "rnp":
        from utils.defense_utils.rnp.rnp_model import preact_rnp

        mod.get_rnp_network = lambda *a, norm_layer, **k: network(preact_rnp, state, norm_layer=norm_layer)
    elif args.method == "anp":
        from utils.defense_utils.anp.anp_model import preact_anp

        mod.get_anp_network = lambda *a, norm_layer, **k: network(preact_anp, state, norm_layer=norm_layer)
        watch_anp(mod)
    elif args.method == "otbr":
        watch_otbr(mod, trained)
    elif args.method == "tsbd":
        watch_tsbd(mod, len(index), trained, notes)

    folder = bench / "config" / "defense" / name
    settings = {
        "device": "cpu", "amp": False, "pin_memory": False, "non_blocking": False, "num_workers": 0,
        "random_seed": args.seed, "index": "index.txt", "ratio": args.ratio, "dataset": "cifar10",
        "dataset_path": "data", "model": "preactresnet18", "result_file": args.record.name,
        "yaml_path": str(args.yaml or next(f for f in (folder / "cifar10.yaml", folder / "config.yaml") if f.exists())),
    }  # fmt: skip
    settings |= {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in args.set)}
    for name in ("gamma_list", "reinit_ratio"):
        if name in settings:
            setattr(mod, name, settings.pop(name))

    began = time.process_time()
    if args.method in BY_HAND:
        defense = getattr(mod, BY_HAND[args.method])()
        options = argparse.Namespace(**settings)
        defense.add_yaml_to_args(options)
        defense.prepare(defense.process_args(options))
        defense.defense()
    else:
        kind = getattr(mod, "i_bau" if args.method == "ibau" else args.method)
        theirs = argparse.ArgumentParser()
        kind.add_arguments(theirs)
        options = theirs.parse_args([])
        vars(options).update(settings)
        defense = kind(options)
        mod.args = defense.args  # which some functions read as a global
        defense.defense(args.record.name)
    cpu = time.process_time() - began

    result = save_load_attack.load_attack_result(str(record / "attack_result.pt"))
    tests = [list(DataLoader(result[name], batch_size=500)) for name in ("clean_test", "bd_test")]
    before = builder.generate_cls_model()
    before.load_state_dict(state)
    out = {"method": args.method, "seed": args.seed, "set": args.set, "variant": args.variant, "ratio": args.ratio}
    out |= {"before": count(before, *tests), "cpu": round(cpu, 1), **notes}
    if args.method in TRAINED and trained:
        net = trained[-1][0]
        out["after"] = count(net, *tests)
        if args.method == "fp":
            out["masked"] = int((net.linear.weight_mask[0] == 0).sum())
    elif args.method in TRAINED:
        out["after"] = out["before"]
    else:
        after = builder.generate_cls_model()
        after.load_state_dict(torch.load(next(record.glob("defense/*/defense_result.pt")))["model"])
        out["after"] = count(after, *tests)
    full = {"training": [course for _, course in trained]}
    for file in record.glob("defense/*/**/mask_values.txt"):
        rows = [line.split() for line in file.read_text().splitlines()[1:]]
        full["masks"] = [float(row[3]) for row in rows]
        for threshold in args.at:
            net = builder.generate_cls_model()
            net.load_state_dict(state)
            scales = dict(net.named_parameters())
            low = [row for row in rows if float(row[3]) <= threshold]
            with torch.no_grad():
                for _, norm, channel, _ in low:
                    scales[f"{norm}.weight"][int(channel)] = 0.0
            found = {"pruned": len(low), **count(net, *tests)}
            with torch.no_grad():
                found["own"] = float((net(clean[0]).argmax(1) == clean[1]).float().mean())
            out.setdefault("at", {})[str(threshold)] = found
    (work / "out.json").write_text(json.dumps(out | full))
    print(json.dumps(out))


main()
