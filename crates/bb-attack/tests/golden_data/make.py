#!/usr/bin/env python3
"""Makes the safetensors files beside this one: what the original attack code computes on small random inputs.

    python crates/bb-attack/tests/golden_data/make.py BACKDOORBENCH WANET [name ...]

BACKDOORBENCH is a clone of SCLBD/BackdoorBench and WANET one of VinAIResearch/Warping-based_Backdoor_Attack-release, at the
commits in `COMMITS`. Needs torch, torchvision, numpy, pillow, safetensors, imageio and kornia; modules that BackdoorBench
imports and that nothing here uses are replaced by empty ones. Nothing is written to the clones.

The original functions are called, or, where they lie inside a long method or a script, their lines are executed. Only the
widths of the networks are changed. Every case runs in float32 and, with the same draws, in float64; the largest relative
difference of each tensor is printed and is what the tolerances of the tests come from. Weights are rounded to bfloat16 and
images are bytes, so that the files are small.

Files: `classifier` the attacked network; `triggers` the triggers that need none; `wanet`, `input_aware_mask`, `input_aware`
and `ssba` training steps; `wanet_authors` the authors' augmentation; `trojan` and `lf` the searches for a trigger.
Names in them: `x` images in bytes `[n, h, w, 3]`; `draw.*` what was random; `state.*` a network before, `after.*` after the steps;
`norm.*` L2 norms of gradients. Images and patterns as floats are `[n, 3, h, w]`.
"""
import contextlib
import importlib
import inspect
import json
import pathlib
import random
import re
import subprocess
import sys
import textwrap
import types
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

COMMITS = {
    "bench": "f02e3534645f0ee63d6848653062cd6c0d6c400d",
    "wanet": "45e8c33c285cd55893ae4efcfcf7fe3d26170387",
}
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.247, 0.243, 0.261]
SIDE, CLASSES, TARGET, WIDTH = 16, 10, 3, 4
torch.set_num_threads(1)
sys.dont_write_bytecode = True


# The original code.

ROOTS = set()


def clone(path, name):
    path = pathlib.Path(path).resolve()
    found = subprocess.run(["git", "-C", path, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    if found.stdout.strip() != COMMITS[name]:
        sys.exit(f"{path} is at {found.stdout.strip()}, this script was written for {COMMITS[name]}")
    return path


def load(root, name):
    """The module `name` of a clone, without what it imports and is not installed."""
    # Several places have packages of the same names.
    for other in ROOTS - {root}:
        for known in list(sys.modules):
            if any((other / f"{known.split('.')[0]}{end}").exists() for end in ("", ".py")):
                del sys.modules[known]
    ROOTS.add(root)
    with mock.patch.object(sys, "path", [str(root)] + sys.path), contextlib.chdir(root):
        while True:
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if (root / error.name.split(".")[0]).exists():
                    raise
                sys.modules[error.name] = mock.MagicMock()


def narrow(cls, module, changes):
    """A class of the original with other numbers in its code."""
    code = textwrap.dedent(inspect.getsource(cls))
    for old, new in changes:
        code, count = re.subn(old, new, code)
        assert count, old
    space = dict(vars(module))
    exec(code, space)
    return space[cls.__name__]


def lines(path, first, last):
    """The lines of a file from the one that holds `first` to the one that holds `last`, as code."""
    text = path.read_text().splitlines()
    start = next(i for i, line in enumerate(text) if first in line)
    end = next(i for i in range(start, len(text)) if last in text[i])
    return textwrap.dedent("\n".join(text[start:end + 1]))


class Draws:
    """Records what random functions give, and gives the same again in another precision."""

    def __init__(self):
        self.known, self.at, self.replay = {}, {}, None

    def wrap(self, key, function):
        def call(*args, **kwargs):
            if self.replay is None:
                self.known.setdefault(key, []).append(function(*args, **kwargs))
                return self.known[key][-1]
            self.at[key] = self.at.get(key, -1) + 1
            value = self.known[key][self.at[key]]
            return value.to(self.replay) if torch.is_tensor(value) else value
        return call

    def patch(self, *targets):
        stack = contextlib.ExitStack()
        for owner, name in targets:
            key = f"{owner.__name__}.{name}"
            function = self.wrap(key, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, staticmethod(function)))
        return stack


# What the cases share.

def rounded(t):
    return t.detach().to(torch.bfloat16).to(torch.float32)


def start(make, seed):
    """A network with random weights, statistics and gains that are exact in bfloat16."""
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(seed)
    net = make()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.6, 1.4)
                nn.init.normal_(module.bias, 0.1, 0.2)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -0.1, 0.1)
        for t in net.state_dict().values():
            if t.dtype == torch.float32:
                t.copy_(rounded(t))
    torch.set_default_dtype(kept)
    return net


def small(state, prefix="state."):
    return {prefix + k: v.to(torch.bfloat16) if v.is_floating_point() else v.clone() for k, v in state.items()}


def images(count, seed, side=SIDE):
    """Smooth random pictures with some noise, as bytes."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 5, generator=g)
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    noisy = smooth + 0.1 * torch.randn(count, 3, side, side, generator=g)
    return (noisy.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def fractions(pixels, dtype):
    return pixels.permute(0, 3, 1, 2).to(dtype).div(255)


def normalised(pixels, dtype):
    mean, std = (torch.tensor(v, dtype=dtype).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (fractions(pixels, dtype) - mean) / std


def norms(grads):
    return torch.stack([g.double().norm().float() for g in grads])


class Watched:
    """In the optimiser's place: keeps the gradients of each step, and passes the call on."""

    def __init__(self, net, inner=None):
        self.net, self.inner, self.steps, self.states = net, inner, [], []

    def zero_grad(self):
        self.net.zero_grad()

    def step(self):
        self.steps.append([p.grad.detach().clone() for p in self.net.parameters()])
        if self.inner:
            self.inner.step()
        self.states.append({k: v.detach().clone() for k, v in self.net.state_dict().items()})


def both(case, *args):
    """A case in both precisions, and how far they are apart."""
    draws = Draws()
    single = case(draws, torch.float32, *args)
    draws.replay = torch.float64
    torch.set_default_dtype(torch.float64)
    try:
        double = case(draws, torch.float64, *args)
    finally:
        torch.set_default_dtype(torch.float32)
    floor = {}
    for key, value in single.items():
        if value.dtype == torch.float32:
            off = (value.double() - double[key].double()).norm() / double[key].double().norm().clamp_min(1e-30)
            group = key.split(".")[0]
            floor[group] = max(floor.get(group, 0.0), float(off))
    print("   relative difference of float32 and float64:", {k: f"{v:.1e}" for k, v in floor.items()})
    return single


def classifier(bench):
    """BackdoorBench's PreActResNet-18 at width 4, from 10 classes and rounded weights."""
    module = load(bench, "models.preact_resnet")
    sizes = [(rf"\b{64 << i}\b", str(WIDTH << i)) for i in range(4)]
    Net = narrow(module.PreActResNet, module, sizes)
    return start(lambda: Net(module.PreActBlock, [2, 2, 2, 2], num_classes=CLASSES), 11)


def arguments(**more):
    return types.SimpleNamespace(
        dataset="cifar10", input_height=SIDE, input_width=SIDE, input_channel=3, num_classes=CLASSES,
        attack_label_trans="all2one", attack_target=TARGET, non_blocking=False, **more)


def attack(cls):
    self = object.__new__(cls)
    self.device = torch.device("cpu")
    return self


# The cases.

def field(module, args, dtype):
    """WaNet's two grids, by the lines that make them."""
    path = pathlib.Path(module.__file__)
    code = lines(path, "ins = torch.rand(1, 2, args.k, args.k)", "stack x,y like two layer")
    space = dict(vars(module), args=args, self=types.SimpleNamespace(device="cpu"))
    if not hasattr(F, "upsample"):
        F.upsample = F.interpolate
    exec(code, space)
    return space["noise_grid"], space["identity_grid"]


def wanet(bench, _):
    """One training step of WaNet: 12 images, of which 3 are warped and 6 warped with noise, then augmented."""
    module = load(bench, "attack.wanet")
    args = arguments(pratio=0.25, cross_ratio=2, s=0.5, k=4, grid_rescale=1, random_crop=5, random_rotation=10)
    x, labels = images(12, 1), torch.arange(12) % CLASSES

    def case(draws, dtype):
        # A seed by which the batch is cropped, turned and mirrored.
        net = classifier(bench).to(dtype)
        random.seed(4)
        torch.manual_seed(6)
        T = module.transforms
        patched = draws.patch((torch, "rand"), (random, "random"), (T.RandomCrop, "get_params"),
                              (T.RandomRotation, "get_params"))
        seen = {}
        entropy = nn.CrossEntropyLoss.forward

        def loss(self, output, target):
            seen["labels"] = target.clone()
            return entropy(self, output, target)

        with patched, mock.patch.object(nn.CrossEntropyLoss, "forward", loss):
            noise_grid, identity_grid = field(module, args, dtype)
            net.register_forward_pre_hook(lambda _, inputs: seen.update(inputs=inputs[0].clone()))
            watched = Watched(net)
            results = attack(module.Wanet).train_step(
                net, watched, mock.MagicMock(), [(normalised(x, dtype), labels)], noise_grid, identity_grid, 0, args)
        return {"inputs": seen["inputs"], "labels_after": seen["labels"], "loss": torch.tensor(results[0], dtype=dtype),
                "norm": norms(watched.steps[0]), "keep": draws}

    kept = {}

    def run(draws, dtype):
        out = case(draws, dtype)
        kept["draws"] = out.pop("keep")
        return out

    out = both(run)
    known = kept["draws"].known
    raw, noise, flip = known["torch.rand"]
    crop, turn = known["random.random"]
    assert crop < 0.8 and turn < 0.5 and flip.item() < 0.5
    down, right, *_ = known["RandomCrop.get_params"][0]
    degrees = known["RandomRotation.get_params"][0]
    print("   crop", (down, right), "degrees", degrees)
    out |= {"x": x, "labels": labels, "draw.field": raw[0] * 2 - 1, "draw.noise": noise * 2 - 1,
            "draw.crop": torch.tensor([down, right]), "draw.degrees": torch.tensor(degrees, dtype=torch.float64)}
    return out


def wanet_authors(_, wanet_clone):
    """The authors' augmentation: one decision for a batch, places and angles for each image, bilinear turns."""
    kornia = importlib.import_module("kornia.augmentation")
    sys.modules.setdefault("torch.utils.tensorboard", mock.MagicMock())
    module = load(wanet_clone, "utils.dataloader")
    opt = types.SimpleNamespace(input_height=SIDE, input_width=SIDE, random_crop=5, random_rotation=10, dataset="cifar10")
    x = images(6, 2)
    transform = module.PostTensorTransform(opt)
    random.seed(4)
    torch.manual_seed(0)
    out = transform(normalised(x, torch.float32))
    crop, turn = transform.random_crop.f, transform.random_rotation.f
    flip = transform.random_horizontal_flip
    assert isinstance(crop, kornia.RandomCrop) and isinstance(turn, kornia.RandomRotation)
    corner = crop._params["src"][:, 0]
    turned = torch.zeros(len(x))
    chosen = turn._params["batch_prob"] > 0.5
    turned[chosen] = turn._params["degrees"].flatten().float()[chosen]
    print("   corners", corner.tolist(), "turned", turned.tolist(), "mirrored", flip._params["batch_prob"].tolist())
    return {"x": x, "output": out, "draw.crop": corner.flip(1).long(), "draw.degrees": turned,
            "draw.mirror": (flip._params["batch_prob"] > 0.5).to(torch.uint8)}


def generators(bench, dtype):
    """Input-aware's networks at width 4, and the arguments that they and the steps want."""
    module = load(bench, "attack.inputaware")
    args = arguments(pratio=1 / 3, lambda_div=0.7, lambda_norm=100, mask_density=0.032, EPSILON=1e-7, C_lr_scheduler="None")
    Generator = narrow(module.InputAwareGenerator, module, [(r"\b32\b", str(WIDTH))])
    nets = [start(lambda: Generator(args, out), seed).to(dtype) for out, seed in [(None, 21), (1, 22)]]
    self = attack(module.InputAware)
    self.threshold = module.Threshold()
    norm = module.get_dataset_normalization(args.dataset)
    self.normalizer = module.Normalize(args, norm.mean, norm.std)
    return module, args, self, nets


def followed(net):
    """Biases that a batch normalisation takes away again: their gradients are rounding errors."""
    return {k for k, _ in net.named_parameters() if k.endswith("conv2d.bias")}


def quiet(module):
    return mock.patch.object(module, "progress_bar", lambda *_: None)


def input_aware_mask(bench, _):
    """Two steps of Input-aware's mask network on pairs of 4 images. The weight of the diversity is not 1."""
    x = images(16, 3)

    def case(_, dtype):
        module, args, self, (_, net) = generators(bench, dtype)
        before = {k: v.clone() for k, v in net.state_dict().items()}
        optimiser = torch.optim.Adam(net.parameters(), 0.01, betas=(0.5, 0.9))
        watched = Watched(net, optimiser)
        batches = [(normalised(part, dtype), None) for part in x.split(4)]
        batches = [(b, torch.zeros(4)) for b, _ in batches]
        losses = []
        with quiet(module), mock.patch.object(module, "progress_bar", lambda *a: losses.append(a[2])):
            self.train_mask_step(net, watched, mock.MagicMock(), batches[:2], batches[2:], args)
        out = {}
        skip = followed(net)
        names = [k for k, _ in net.named_parameters()]
        out["norm"] = norms(g for k, g in zip(names, watched.steps[0]) if k not in skip)
        out |= {f"first.{k}": v for k, v in watched.states[0].items() if "running" in k}
        out |= {f"after.{k}": v for k, v in net.named_parameters() if k not in skip}
        # "Mask loss: 1.2345 - ...", of each step.
        out["loss"] = torch.tensor([float(text.split()[2]) for text in losses], dtype=dtype)
        return out if dtype == torch.float64 else out | small(before) | {"tracked": net.convblock_middle.batch_norm.num_batches_tracked}

    return both(case) | {"x": x}


def input_aware(bench, _):
    """Two steps of Input-aware on 6 images, of which 2 get their own trigger and 2 that of another image.

    `lenders` are the second loader's batches. The classifier does not step, the generator does.
    """
    x, lenders, labels = images(12, 4), images(12, 5), torch.arange(12) % CLASSES

    def case(_, dtype):
        module, args, self, (generator, mask) = generators(bench, dtype)
        before = small(generator.state_dict()) | small(mask.state_dict(), "mask.")
        mask.eval()
        mask.requires_grad_(False)
        net = classifier(bench).to(dtype)
        seen, targets = [], []
        net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
        entropy, total = nn.CrossEntropyLoss.forward, []

        def loss(self, output, target):
            targets.append(target.clone())
            return entropy(self, output, target)

        watched = Watched(net)
        optimiser = Watched(generator, torch.optim.Adam(generator.parameters(), 0.01, betas=(0.5, 0.9)))
        batch = lambda t: [(normalised(part, dtype), y) for part, y in zip(t.split(6), labels.split(6))]
        backward = torch.Tensor.backward
        with quiet(module), mock.patch.object(nn.CrossEntropyLoss, "forward", loss), \
                mock.patch.object(torch.Tensor, "backward", lambda t: (total.append(t.detach().clone()), backward(t))):
            self.train_step(net, generator, mask, watched, optimiser, mock.MagicMock(), mock.MagicMock(), batch(x),
                            batch(lenders), args)
        skip = followed(generator)
        names = [k for k, _ in generator.named_parameters()]
        out = {"inputs": torch.cat(seen), "loss": torch.stack(total)}
        for step in range(2):
            out[f"norm.classifier{step}"] = norms(watched.steps[step])
            out[f"norm.generator{step}"] = norms(g for k, g in zip(names, optimiser.steps[step]) if k not in skip)
        out |= {f"first.{k}": v for k, v in optimiser.states[0].items() if "running" in k}
        out |= {f"after.{k}": v for k, v in generator.named_parameters() if k not in skip}
        return out if dtype == torch.float64 else out | before | {"labels_after": torch.cat(targets)}

    return both(case) | {"x": x, "lenders": lenders, "labels": labels}


def trojan(bench, _):
    """Trojan's search, last iterate and picture, and the numbers that the original searches by."""
    module = load(bench, "attack.trojannn")
    mask = torch.zeros(SIDE, SIDE, 3, dtype=torch.uint8)
    g = torch.Generator().manual_seed(7)
    mask[5:12, 6:13] = torch.randint(1, 256, (7, 7, 3), generator=g, dtype=torch.uint8)
    steps = 4

    def case(_, dtype):
        net = classifier(bench).to(dtype)
        chosen = module.get_most_connected_neuron_idxes(net, "linear.weight", 2)
        with mock.patch.object(module, "tqdm", lambda it, **_: it):
            found = module.pgd_with_mask_to_selected_neuron(
                net, fractions(mask[None], dtype), "linear", chosen, [100.0] * 2, iters=steps)
        picture = torch.from_numpy(np.array(module.topilimage(found[0].float())))
        return {"found": found, "neurons": chosen, "picture": picture}

    defaults = inspect.signature(module.pgd_with_mask_to_selected_neuron).parameters
    text = (bench / "config/attack/trojannn/preactresnet18.yaml").read_text()
    number = lambda key: float(re.search(rf"{key}: (\S+)", text)[1])
    settings = [defaults["eps"].default, defaults["alpha"].default, number("mask_update_iters"), number("num_neuron"),
                number("neuron_target_values")]
    return both(case) | {"mask": mask, "steps": torch.tensor(steps),
                         "settings": torch.tensor(settings, dtype=torch.float64)}


def lf(bench, _):
    """One attack of LF's search, one pass over 4 images, and the rate by 8 judges; BackdoorBench's way.

    The passes see fractions, the judges are normalised and the pattern is added to that.
    """
    folder = bench / "resource/lowFrequency"
    modules = {name: load(folder, name) for name in ("deepfool", "gauss_smooth", "universal_pert")}
    module = modules["universal_pert"]
    x, judges = images(4, 8), images(8, 19)
    # Without this the network has one class for everything.
    net = classifier(bench).eval()
    shown = torch.cat([fractions(x, torch.float32), normalised(judges, torch.float32)])
    bias = rounded(net.linear.bias - net(shown).mean(0))

    def case(_, dtype):
        net = classifier(bench).to(dtype).eval()
        with torch.no_grad():
            net.linear.bias.copy_(bias)
        kinds = {torch.float32: np.float32, torch.float64: np.float64}
        first = fractions(x, dtype)
        with mock.patch.object(modules["deepfool"].np, "float32", kinds[dtype]), \
                mock.patch.object(module.np, "float32", kinds[dtype], create=True):
            step, count, _, _ = modules["deepfool"].tar_deepfool(first[0], net, target=TARGET, num_classes=CLASSES,
                                                                 overshoot=0.02, max_iter=200)
            values = np.ascontiguousarray(first.permute(0, 2, 3, 1).numpy())
            patterns, rates = [], []
            filtered = module.normalization
            keep = lambda v: patterns.append(filtered(v)) or patterns[-1]
            test = [(image, 0) for image in normalised(judges, dtype)]
            with mock.patch.object(module, "normalization", keep), mock.patch.object(module.np.random, "shuffle"), \
                    mock.patch.object(module.np, "save"), mock.patch.object(module.Image, "fromarray"), \
                    mock.patch.object(module, "tqdm", lambda it: it), \
                    mock.patch.object(module.logging, "info", lambda t: rates.append(t) if "FOOLING" in t else None):
                module.universal_perturbation(values, test, net, TARGET, max_iter_uni=1, num_classes=CLASSES,
                                              overshoot=0.02, max_iter_df=200)
        print("   steps", count, "patterns", len(patterns), rates, "classes",
              net(first).argmax(1).tolist(), net(normalised(judges, dtype)).argmax(1).tolist())
        v = torch.from_numpy(patterns[-1]).to(dtype).permute(0, 3, 1, 2)
        seen = normalised(judges, dtype)
        other = [seen + v / torch.tensor(STD, dtype=dtype).view(1, 3, 1, 1), fractions(judges, dtype) + v]
        print("   classes of judges", net(seen + v).argmax(1).tolist(), "otherwise", [net(o).argmax(1).tolist() for o in other])
        rate = torch.tensor(float(rates[0].split()[-1]), dtype=dtype)
        return {"step": torch.from_numpy(np.asarray(step, dtype=kinds[dtype])),
                "patterns": torch.from_numpy(np.concatenate(patterns).astype(kinds[dtype])), "rate": rate}

    return both(case) | {"x": x, "judges": judges, "bias": bias}


def ssba(bench, _):
    """Two steps of SSBA's encoder and decoder of width 2 on 3 images with 10 bits each, in the ramp of the image's weight."""
    folder = bench / "resource/ssba"
    module = load(folder, "models")
    width, bits, side = 2, 10, 32
    x = images(6, 10, side)
    g = torch.Generator().manual_seed(11)
    secret = torch.randint(0, 2, (6, bits), generator=g)
    def channels(cls):
        numbers = [(rf"\b{n}\b", str(n * width // 32)) for n in (256, 128, 64, 32)]
        if cls is module.StegaStampEncoder:
            return narrow(cls, module, numbers)
        # The 32s in the size of what is flattened are no channels.
        flat = "128 // 32 // 32"
        ends = [(r"\b512\b", str(16 * width)), ("FLAT", flat.replace("128", str(4 * width)))]
        return narrow(cls, module, [(flat, "FLAT")] + numbers[1:] + ends)

    Encoder, Decoder = channels(module.StegaStampEncoder), channels(module.StegaStampDecoder)
    code = lines(folder / "train.py", "l2_loss_weight = min(", "steps_since_l2_loss_activated += 1")

    def ours(encoder, decoder, convert=lambda t: t):
        """Under the names of this repository, whose secret has its channels last."""
        out = {}
        for key, t in encoder.items():
            if key.startswith("secret_dense"):
                t = t.unflatten(0, (3, 256)).transpose(0, 1).flatten(0, 1)
            out[f"encoder.{key}"] = convert(t)
        places = {0: 1, 2: 2, 4: 3, 6: 4, 8: 5, 10: 6, 12: 7}
        for key, t in decoder.items():
            part, at, kind = key.split(".")
            name = f"conv{places[int(at)]}" if part == "decoder" else f"dense{int(at) // 2 + 1}"
            out[f"decoder.{name}.{kind}"] = convert(t)
        return out

    def case(_, dtype):
        encoder = start(lambda: Encoder(side, 3, bits), 12).to(dtype)
        decoder = start(lambda: Decoder(side, 3, bits), 13).to(dtype)
        before = ours(encoder.state_dict(), decoder.state_dict(), lambda t: t.to(torch.bfloat16).clone())
        both_nets = nn.ModuleList([encoder, decoder])
        optimiser = torch.optim.Adam(list(decoder.parameters()) + list(encoder.parameters()), lr=1e-4)
        space = {"nn": nn, "torch": torch, "encoder": encoder, "decoder": decoder, "device": "cpu", "i_epoch": 0,
                 "decoder_encoder_optim": Watched(both_nets, optimiser), "steps_since_l2_loss_activated": 5,
                 "args": types.SimpleNamespace(l2_loss_weight=10, l2_loss_await=2, l2_loss_ramp=10, BCE_loss_weight=1,
                                               use_residual=0)}
        losses = []
        for step in range(2):
            space |= {"images": fractions(x[3 * step:3 * step + 3], dtype), "global_step": step + 1,
                      "fingerprints": secret[3 * step:3 * step + 3].to(dtype)}
            exec(code, space)
            losses.append([space[k] for k in ("BCE_loss", "l2_loss", "bitwise_accuracy", "l2_loss_weight")])
        print("   losses, accuracies and weights", [[round(float(v), 5) for v in row] for row in losses])
        grads = space["decoder_encoder_optim"].steps
        out = {"losses": torch.tensor(losses, dtype=dtype)}
        for step in range(2):
            out[f"norm.{step}"] = norms(grads[step])
        out |= {f"after.{k}": v for k, v in ours(encoder.state_dict(), decoder.state_dict()).items()}
        return out if dtype == torch.float64 else out | {f"state.{k}": v for k, v in before.items()}

    return both(case) | {"x": x, "bits": secret.to(torch.uint8)}


def triggers(bench, _):
    """The triggers of the attacks that need no network, on two random images, with random pictures and patterns."""
    patch, blend, sine = (load(bench, f"utils.bd_img_transform.{name}") for name in ("patch", "blended", "sig"))
    aggregate = load(bench, "utils.aggregate_block.bd_attack_generate")
    module = load(bench, "attack.wanet")
    T, Image = aggregate.transforms, aggregate.Image
    np.float = float
    side = 32
    x = images(2, 14, side)
    x[0, :2, :8], x[0, 2:4, :8] = 0, 255
    clip = aggregate.npClipAndToUint8

    def each(trigger, convert=clip):
        chain = aggregate.general_compose([(T.Resize((side, side)), False), (np.array, False), (trigger, True),
                                           (convert, False)])
        return torch.from_numpy(np.stack([chain(Image.fromarray(image.numpy())) for image in x]))

    out = {"in_u8": x}
    square = T.Compose([T.Resize((side, side)), np.array])(Image.open(bench / "resource/badnet/trigger_image.png"))
    out["badnet.trigger"] = torch.from_numpy(square.copy())
    out["badnet.out_u8"] = each(patch.AddMaskPatchTrigger(square))
    # Wider than high: Pillow 11 always resizes the rows first, Pillow 13 begins with the columns of some other shapes.
    source = images(1, 15, 60)[0, :44].contiguous()
    resize = T.Compose([T.ToPILImage(), T.Resize((side, side)), T.ToTensor()])
    picture = resize(source.numpy()).numpy().transpose(1, 2, 0) * 255
    out |= {"blended.source_u8": source, "blended.trigger_resized_f32": torch.from_numpy(picture.copy()),
            "blended.out_u8": each(blend.blendedImageAttack(picture, 0.2))}
    sig = sine.sigTriggerAttack(delta=40, f=6)
    row = torch.tensor([40 * np.sin(2 * np.pi * j * 6 / side) for j in range(side)], dtype=torch.float32)
    out |= {"sig.pattern_row": row, "sig.out_u8": each(sig)}
    g = torch.Generator().manual_seed(16)
    pattern = (60 * torch.rand(side, side, 3, generator=g) - 20).round()
    out |= {"lowFrequency.pattern": pattern, "lowFrequency.out_u8": each(patch.SimpleAdditiveTrigger(pattern.numpy()))}

    # WaNet as its test images are made, whose lines lie inside of a method.
    args = arguments(s=0.5, k=4, grid_rescale=1)
    args.input_height = args.input_width = side
    torch.manual_seed(17)
    draws = Draws()
    path = bench / "attack/wanet.py"
    with draws.patch((torch, "rand")):
        noise, identity = field(module, args, torch.float32)
        names = {"args": args, "self": types.SimpleNamespace(device="cpu"), "noise_grid": noise, "identity_grid": identity,
                 "inputs": normalised(x, torch.float32), "bs": len(x), "targets": torch.zeros(2, dtype=torch.long),
                 "denormalizer": aggregate_denormaliser(bench)}
        space = dict(vars(module), **names)
        exec(lines(path, "grid_temps = (identity_grid", "inputs_bd = denormalizer("), space)
        exec(lines(path, "inputs_cross = denormalizer(", "inputs_cross = denormalizer("), space)
    bytes_of = lambda t: torch.from_numpy(np.stack([np.array(module.to_pil(image)) for image in t]))
    raw, disturbance = draws.known["torch.rand"]
    out |= {"wanet.ins_raw": raw * 2 - 1, "wanet.noise_grid": noise, "wanet.identity_grid": identity,
            "wanet.grid": space["grid_temps"], "wanet.cross_rand": disturbance * 2 - 1, "wanet.in_norm": space["inputs"]}
    for name, key in [("out", "inputs_bd"), ("cross_out", "inputs_cross")]:
        out |= {f"wanet.{name}_float": space[key], f"wanet.{name}_u8": bytes_of(space[key])}
    return out


def aggregate_denormaliser(bench):
    module = load(bench, "utils.aggregate_block.dataset_and_transform_generate")
    return module.get_dataset_denormalization(module.get_dataset_normalization("cifar10"))


CASES = {"classifier": lambda bench, _: small(classifier(bench).state_dict()), "wanet": wanet,
         "wanet_authors": wanet_authors, "input_aware_mask": input_aware_mask, "input_aware": input_aware,
         "trojan": trojan, "lf": lf, "ssba": ssba, "triggers": triggers}


def main():
    bench, authors = clone(sys.argv[1], "bench"), clone(sys.argv[2], "wanet")
    for name in sys.argv[3:] or CASES:
        print(name)
        out = CASES[name](bench, authors)
        target = pathlib.Path(__file__).with_name(f"{name}.safetensors")
        # One value only: the library keeps the metadata in a hash map, whose order would leak into the file.
        about = json.dumps({"torch": torch.__version__, "numpy": np.__version__} | COMMITS)
        save_file({k: v.detach().clone().contiguous() for k, v in out.items()}, target, {"made with": about})
        print("  ", target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
