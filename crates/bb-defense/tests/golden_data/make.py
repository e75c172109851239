#!/usr/bin/env python3
"""Makes most of the files beside it: what the original code of eight defenses computes on a tiny network.

    python crates/bb-defense/tests/golden_data/make.py BACKDOORBENCH TSBD OTBR ULRL [case ...]

The first four are clones of SCLBD/BackdoorBench, linweiii/TSBD, linweiii/OTBR and NayMyatMin/ULRL at the commits below.
Needs git, torch, numpy, pandas, PyYAML, POT and safetensors. The same versions on the same kind of processor make the
same bytes.

The network is a pre-activation ResNet-18 of width 3 with 10 classes and random weights (`model`). There are six batches
of 4 random images (`inputs`: `pixels`, of which the network sees `pixels / 128 - 1`, and `labels`). The cases run the
original functions, or stretches of long ones (see `original.py`), on them; only the network's width, the loaders and
what they draw at random are ours, and the draws are stored. Names in the files are those of PyTorch; `layers` in the
metadata is the list of target layers. Each case is computed in f64 as well, and the largest difference of each group of
tensors is printed: below it a difference means nothing. Seeds are ones by which no unit stands so near to the kink of
its ReLU that rounding decides about its gradient.

`f_tsbd`: five steps of unlearning at a rate of 0.002, the losses and gradient norms, neuron weight changes (`nwc`, and
`nwc_4dp` as read back from the text file), their order, and what zero reinitialisation with n = 0.15 and m = 0.7
clears. `f_tsbd_lr1e-4`: weight changes and order at the published rate. `f_tsbd_finetuned`: two steps of
activeness-aware fine-tuning after the zeroing. `g_otbr`: five steps of unlearning of noise, and the 0.1 of the neurons
that is pruned. `g_otbr_fused`: the fused layers, and what went to and came from the transport solver for each.
`g_emd_f64`: three problems of that solver alone. `h_ulrl_unlearn`: five steps with clipped gradients from a scaled
head, and the rows that are found. `h_ulrl_mad`: the choice of rows for made-up changes. `h_ulrl_relearn`: two steps
with two new rows, and the first gradient but for the last stage's. `i_clp`: channel bounds, thresholds and pruned
channels, some scales being multiplied by 9 first. `j_fp`: mean activations, order, mask and outputs. `k_anp`: two
batches of mask training, and the channels whose mask is at most a threshold; `k_anp_steps`: one with three steps of the
noise. `l_nc`: two steps of trigger inversion, and the outlier test. `m_ibau`: one round of i-BAU on a network that is
smooth where it is looked at (see `smooth`): the perturbation after two batches, the direct and the indirect part of the
second batch's hypergradient, whose second derivatives are exact, and the parameters after the two steps of Adam; only
some tensors of each.
"""
import argparse
import contextlib
import copy
import io
import itertools
import json
import logging
import math
import os
import pathlib
import random
import tempfile
import typing
from types import SimpleNamespace

import numpy as np
import ot
import pandas as pd
import torch
import yaml
from safetensors.torch import save as save_bytes
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from original import Instead, Repository

COMMITS = {"bench": "f02e353", "tsbd": "3718c67", "otbr": "fa293e5", "ulrl": "094debf"}
WIDTH, CLASSES, BATCH, BATCHES, SIDE, SEED = 3, 10, 4, 6, 32, 3


class Bar:
    """A progress bar that shows nothing."""

    def __init__(self, of):
        self.of = of

    def __iter__(self):
        return iter(self.of)

    def set_description(self, text):
        pass


class Loader(list):
    """Batches, in the place of a `DataLoader`."""

    @property
    def dataset(self):
        return range(sum(len(batch[1]) for batch in self))


def narrow(base, block, norm=None):
    """The original network of class `base` with another width."""

    class Network(base):
        def __init__(self, num_classes=CLASSES):
            nn.Module.__init__(self)
            more = {"norm_layer": norm} if norm else {}
            self.in_planes = WIDTH
            self.conv1 = nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False)
            for stage in range(4):
                layer = self._make_layer(block, WIDTH << stage, 2, 2 if stage else 1, **more)
                setattr(self, f"layer{stage + 1}", layer)
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.linear = nn.Linear(WIDTH * 8, num_classes)

    return Network


def under(prefix, tensors):
    return {f"{prefix}{name}": tensor.detach().clone() for name, tensor in tensors.items()}


def integers(values):
    return torch.tensor(list(values), dtype=torch.int64)


class Cases:
    """The cases in one floating-point type, which is the default one while they run."""

    def __init__(self, repositories, dtype):
        self.__dict__.update(repositories)
        self.dtype = dtype
        # Where the original asks for f32 by name it gets this type.
        self.torch = Instead(torch, float32=dtype)
        self.given = {
            "torch": self.torch, "nn": nn, "F": F, "np": np, "pd": pd, "os": os, "copy": copy,
            "tqdm": Bar, "logging": logging, "math": math, "defense": object, "random": random,
        }
        parts = self.bench.load("models/preact_resnet.py", ["PreActBlock", "PreActResNet"], self.given)
        self.network = narrow(parts["PreActResNet"], parts["PreActBlock"])
        # All draws are made in f32, so that both types start from the same numbers.
        rng = torch.Generator().manual_seed(SEED)
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(SEED)
        net = self.network()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.6, 1.4)
                nn.init.normal_(module.bias, 0, 0.2)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.num_batches_tracked.fill_(100)
        self.start = {k: v.detach().clone() for k, v in net.state_dict().items()}
        count = BATCH * BATCHES
        self.pixels = torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=rng, dtype=torch.uint8)
        self.labels = torch.randint(0, CLASSES, (count,), generator=rng)
        self.x = self.pixels.to(dtype) / 128 - 1
        torch.set_default_dtype(dtype)

    def draw(self, seed, shape, low=0.0, high=1.0):
        rng = torch.Generator().manual_seed(seed)
        return torch.rand(shape, generator=rng, dtype=torch.float32) * (high - low) + low

    def net(self, **changed):
        net = self.network()
        net.load_state_dict(self.start | changed)
        return net

    def batch(self, k):
        place = slice(k * BATCH, (k + 1) * BATCH)
        return self.x[place], self.labels[place]

    def loader(self, first, last):
        return Loader(self.batch(k) for k in range(first, last))

    # TSBD

    def tsbd_parts(self):
        names = ["zero_reinit_weight", "read_data", "get_layerName_from_type", "mixed_name", "tsbd"]
        return self.tsbd.load("tsbd.py", names, self.given)

    def changes(self, repository, path, function, space, before, after):
        """Changes as listed in the text file, in the order of the layers and in that of their size, with what else the
        original's stretch of code makes of them."""
        target = space["get_layerName_from_type"](before, "conv")
        space = dict(space)
        for key, net in (("params_o", before), ("params_u", after)):
            chosen = [(n, p) for n, p in net.named_parameters() if n in target]
            space[key] = {"names": [n for n, _ in chosen], "params": [p for _, p in chosen]}
        with tempfile.TemporaryDirectory() as folder:
            space["args"] = SimpleNamespace(checkpoint_save=folder + "/")
            exec(repository.stretch(path, function, "changed_values_neuron = []", "with open("), space)
            listed = space["read_data"](folder + "/nwc.txt")
        ranked = sorted(range(len(listed)), key=lambda i: float(listed[i][2]), reverse=True)
        pairs = zip(space["params_u"]["params"], space["params_o"]["params"])
        exact = torch.cat([(u - o).view(len(o), -1).abs().sum(dim=-1).detach() for u, o in pairs])
        out = {
            "nwc": exact,
            "nwc_4dp": torch.tensor([float(value) for _, _, value in listed], dtype=self.dtype),
            "neuron_layer": integers(target.index(layer) for layer, _, _ in listed),
            "neuron_index": integers(int(index) for _, index, _ in listed),
            "order_desc": integers(ranked),
        }
        return target, listed, [listed[i] for i in ranked], space, out

    def tsbd_unlearned(self, lr):
        space = self.tsbd_parts()
        before, net = self.net(), self.net()
        args = SimpleNamespace(device="cpu", record_layer="layer4.1.conv2.weight")
        sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
        loss, _, mean, variance = space["tsbd"].train_unlearning(
            None, args, net, nn.CrossEntropyLoss(), sgd, self.loader(0, 5))
        found = self.changes(self.tsbd, "tsbd.py", "tsbd.mitigation", space, before, net)
        # The original sorts with Python's stable sort, and so does `changes`; it selects by this count.
        out = found[4] | {"top_num": integers([int(len(found[1]) * 0.15)])}
        out |= {"unlearn.train_loss": torch.tensor(loss, dtype=self.dtype)}
        out |= {"unlearn.avg_gradnorm": mean.to(self.dtype), "unlearn.var_gradnorm": variance.to(self.dtype)}
        return found, out, net

    def f_tsbd(self):
        (target, _, ranked, space, _), out, unlearned = self.tsbd_unlearned(0.002)
        zeroed = self.net()
        top = int(out["top_num"])
        requested = space["zero_reinit_weight"](zeroed, top, ranked, space["changed_values_weightOrder"], 0.7)
        total = 0
        for name in target:
            mask = (zeroed.state_dict()[name] == 0) & (self.start[name] != 0)
            total += int(mask.sum())
            out[f"reinit_zeroed.{name}"] = mask.to(torch.uint8)
        out |= {"reinit_weight_num": integers([requested]), "zeroed_total": integers([total])}
        out |= under("unlearned.", unlearned.state_dict())
        sgd = torch.optim.SGD(zeroed.parameters(), lr=0.01, momentum=0.9)
        args = SimpleNamespace(device="cpu")
        loss, _ = space["tsbd"].train_finetuning_reg(
            None, args, zeroed, nn.CrossEntropyLoss(), sgd, self.loader(0, 2), 0.05, 0.7)
        self.finetuned = zeroed
        return out | {"finetune.loss_mean": torch.tensor(loss, dtype=self.dtype)}, {"layers": target}

    def f_tsbd_finetuned(self):
        self.f_tsbd()
        return under("param.", self.finetuned.state_dict()), {}

    def f_tsbd_lr1e_4(self):
        (target, *_), out, _ = self.tsbd_unlearned(1e-4)
        keep = ["nwc", "nwc_4dp", "order_desc", "top_num"]
        return {key: out[key] for key in keep}, {"layers": target}

    # OTBR

    def otbr_pruned(self):
        steps, side = 5, 16
        x = (self.draw(11, (steps, BATCH, 3, side, side)) * 256).floor() / 256
        y = torch.randint(0, CLASSES - 1, (steps, BATCH), generator=torch.Generator().manual_seed(12))
        draws = {"x": iter(x.to(self.dtype)), "y": iter(y)}
        asked = []

        def randint(low, high, shape, device):
            asked.append((low, high))
            return next(draws["y"])

        given = self.given | {
            "torch": Instead(self.torch, rand=lambda shape, device: next(draws["x"]), randint=randint),
            "ot": SimpleNamespace(emd=self.emd),
        }
        names = ["pruning", "ot_fusion", "to_probalility", "get_layerName_from_type", "read_data", "otbr"]
        space = self.otbr.load("otbr.py", names, given)
        before, net, pruned = self.net(), self.net(), self.net()
        args = SimpleNamespace(device="cpu", I_=steps, batch_size=BATCH)
        sgd = torch.optim.SGD(net.parameters(), lr=0.002, momentum=0.9)
        space["otbr"].train_unlearn_random(None, args, net, nn.CrossEntropyLoss(), sgd, None)
        assert asked == [(0, CLASSES - 1)] * steps, "random labels leave the last class out"
        target, listed, ranked, space, out = self.changes(self.otbr, "otbr.py", "otbr.mitigation", space, before, net)
        assert all(float(value) > 0 for _, _, value in listed), "the original divides by a mass"
        top = int(len(listed) * 0.1)
        hit = space["pruning"](pruned, top, ranked)
        mask = torch.zeros(len(listed), dtype=torch.uint8)
        mask[out["order_desc"][:top]] = 1
        state = pruned.state_dict()
        zero = torch.cat([(state[name].view(len(state[name]), -1) == 0).all(dim=1) for name in target])
        assert torch.equal(zero, mask == 1)
        out |= {"rand_x": x, "rand_y": y, "top_num": integers([top]), "pruned_mask": mask}
        return out, target, listed, hit, pruned, space

    def emd(self, p, q, cost):
        plan = ot.emd(p, q, cost)
        self.plans.append((p, q, cost, plan))
        return plan

    def g_otbr(self):
        out, target, *_ = self.otbr_pruned()
        return out, {"layers": target}

    def g_otbr_fused(self):
        self.plans = []
        _, target, listed, hit, pruned, space = self.otbr_pruned()
        net = self.net()
        args = SimpleNamespace(device="cpu", lambda_=0.5)
        space["ot_fusion"](args, net, pruned, hit, target, listed)
        out = {f"fused.{name}": net.state_dict()[name].clone() for name in target}
        layers = target[min(target.index(name) for name in hit):]
        assert len(layers) == len(self.plans)
        for name, (p, q, cost, plan) in zip(layers, self.plans):
            parts = {"p": p, "q": q, "P": plan, "cost": cost, "cost_opt": (plan * cost).sum()}
            out |= {f"plan.{name}.{key}": torch.as_tensor(value, dtype=self.dtype) for key, value in parts.items()}
        return out, {"layers": target}

    def g_emd_f64(self):
        out = {}
        for seed, (case, n, m) in enumerate([("dense", 16, 16), ("uniform_p", 16, 16), ("rect", 10, 14)]):
            rng = np.random.default_rng(seed)
            masses = lambda count: (lambda v: v / v.sum())(rng.uniform(0.2, 1, count))
            p = np.full(n, 1 / n) if case == "uniform_p" else masses(n)
            q, cost = masses(m), rng.uniform(0, 5, (n, m))
            plan = ot.emd(p, q, cost)
            parts = {"p": p, "q": q, "cost": cost, "plan": plan}
            out |= {f"{case}.{key}": torch.tensor(value, dtype=torch.float64) for key, value in parts.items()}
            out[f"{case}.cost_opt"] = torch.tensor((plan * cost).sum(), dtype=torch.float32)
        return out, {}

    # ULRL

    def ulrl_trainer(self, name, **replaced):
        no_cuda = SimpleNamespace(amp=SimpleNamespace(autocast=lambda enabled: contextlib.nullcontext()))
        space = {
            **self.given, "BackdoorModelTrainer": object,
            "torch": Instead(self.torch, cuda=no_cuda, **replaced),
        }
        trainer = self.ulrl.load("utils/trainer_cls.py", [name], space)[name]
        return trainer.__new__(trainer)

    def steps(self, trainer, step, net, optimizer, batches):
        trainer.__dict__.update(
            model=net, criterion=nn.CrossEntropyLoss(), optimizer=optimizer, amp=False, non_blocking=False,
            scaler=torch.amp.GradScaler("cpu", enabled=False))
        # What the original hands back is the loss of the classification or, in relearning, that with the similarity.
        return [getattr(trainer, step)(*self.batch(k), "cpu", verbose=1)[0] for k in range(batches)]

    def chosen_rows(self, before, after):
        space = self.given | {"pre_nu_weights": before, "post_nu_weights": after}
        where = ("defense/ulrl.py", "ULRL.defense")
        exec(self.ulrl.stretch(*where, "absolute_weight_changes =", "aggregate_changes_per_neuron ="), space)
        exec(self.ulrl.stretch(*where, "median =", "neuron_indices ="), space)
        uncut = list(space["neuron_indices"])
        exec(self.ulrl.stretch(*where, "candidate_neuron_length =", "if len(neuron_indices)"), space)
        names = {"changes": "aggregate_changes_per_neuron", "median": "median", "mad": "mad", "z": "mad_z_scores"}
        out = {key: space[name].clone() for key, name in names.items()}
        return out | {"indices": integers(space["neuron_indices"]), "indices_uncut": integers(uncut)}

    def h_ulrl_unlearn(self):
        norms = []

        def clip(parameters, max_norm, norm_type):
            assert (max_norm, norm_type) == (20, 2)
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type))

        inner = Instead(torch.nn, utils=Instead(torch.nn.utils, clip_grad_norm_=clip))
        trainer = self.ulrl_trainer("UnlearningTrainer", nn=inner)
        start = self.start["linear.weight"] * 8
        net = self.net(**{"linear.weight": start})
        sgd = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        losses = self.steps(trainer, "one_forward_backward_unlearn", net, sgd, 5)
        after = net.linear.weight.detach().clone()
        out = {
            "losses": torch.tensor(losses, dtype=self.dtype),
            "grad_norms_before_clip": torch.stack(norms),
            "start.linear.weight": start, "unlearned.linear.weight": after,
        }
        return out | self.chosen_rows(start.to(self.dtype), after), {}

    def h_ulrl_mad(self):
        out = {}
        outstanding = [(10, [4]), (10, [2, 7]), (43, [5, 20, 31]), (100, [3, 40, 41, 99]), (10, [])]
        for case, (classes, raised) in enumerate(outstanding):
            order = torch.randperm(classes, generator=torch.Generator().manual_seed(20 + case))
            changes = torch.linspace(0.1, 0.2, classes, dtype=torch.float32)[order].to(self.dtype)
            changes[raised] += 1 + self.draw(30 + case, (len(raised),)).to(self.dtype)
            found = self.chosen_rows(torch.zeros(classes, 1), changes[:, None])
            got = [found[key].tolist() for key in ("indices_uncut", "indices")]
            assert got == [raised, raised[:2]], got
            out |= {f"case{case}.{key}": value for key, value in found.items()}
        return out, {}

    def h_ulrl_relearn(self):
        trainer = self.ulrl_trainer("RelearningTrainer")
        net, rows = self.net(), [2, 7]
        original = net.linear.weight.detach().clone()[rows]
        new = self.draw(41, (2, WIDTH * 8))
        drawn = iter(new.to(self.dtype))

        class Row:
            """A row, whose uniform draw is the stored one on the interval that is asked for."""

            def __init__(self, tensor):
                self.tensor = tensor

            def uniform_(self, low, high):
                bounds.append(high)
                self.tensor.copy_(next(drawn) * (high - low) + low)

            def fill_(self, value):
                self.tensor.fill_(value)

        class Parameter(Instead):
            @property
            def data(self):
                return {i: Row(row) for i, row in enumerate(self._of.data)}

        bounds = []
        # The stretch collects the parameters in the list of which the optimiser is made.
        watched = [(n, Parameter(p) if n.startswith("linear") else p) for n, p in net.named_parameters()]
        args = SimpleNamespace(linear_name="linear", init=True)
        network = SimpleNamespace(named_parameters=lambda: watched)
        space = self.given | {"args": args, "neuron_indices": rows, "netC": network}
        exec(self.ulrl.stretch("defense/ulrl.py", "ULRL.defense", "param_list = []", "for name, param in"), space)
        assert len(space["param_list"]) == len(watched)
        new_rows = net.linear.weight.detach().clone()[rows]
        trainer.__dict__.update(linear_name="linear", neuron_indices=rows, weight_mat_ori=original, relearn_alpha=0.7)
        sgd = torch.optim.SGD(net.parameters(), lr=0.005, momentum=0.9)
        seen = []
        sgd.register_step_pre_hook(lambda *_: seen.append(under("", {n: p.grad for n, p in net.named_parameters()})))
        losses = self.steps(trainer, "one_forward_backward", net, sgd, 2)
        out = {
            "neuron_indices": integers(rows), "weight_mat_ori": original, "new_rows": new_rows,
            "bound_std": torch.tensor(bounds[0], dtype=self.dtype), "losses": torch.tensor(losses, dtype=self.dtype),
        }
        # The last stage has most of the weights.
        first = {name: gradient for name, gradient in seen[0].items() if not name.startswith("layer4")}
        return out | under("grad_step0.", first) | under("after2.", net.state_dict()), {}

    # CLP

    def i_clp(self):
        raised = {
            name: tensor * torch.where(self.draw(50, tensor.shape) < 0.1, 9.0, 1.0).to(tensor.dtype)
            for name, tensor in self.start.items() if ".bn" in name and name.endswith(".weight")
        }
        out = under("bn_weight.", {name.removesuffix(".weight"): tensor for name, tensor in raised.items()})
        conv_of = {}
        for u in (1, 3):
            net = self.net(**raised)
            conv_names = {id(module): name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}

            def tap(seen):
                name = seen["name"]
                lips = seen["channel_lips"]
                conv_of[name] = conv_names[id(seen["conv"])]
                out[f"pruned_u{u}.{name}"] = torch.zeros(len(lips), dtype=torch.uint8)
                out[f"pruned_u{u}.{name}"][seen["index"]] = 1
                if u == 3:
                    out[f"lips.{name}"] = lips.to(self.dtype)
                    out[f"threshold_u3.{name}"] = (lips.mean() + u * lips.std()).to(self.dtype)

            as_tensor = lambda values: torch.tensor([float(v.detach()) for v in values], dtype=self.dtype)
            given = self.given | {"tap": tap, "torch": Instead(self.torch, Tensor=as_tensor)}
            space = self.bench.load("defense/clp.py", ["CLP_prune"], given, [("CLP_prune", "index")])
            space["CLP_prune"](net, u)
            for name in conv_of:
                for part in ("weight", "bias"):
                    own = net.state_dict()[f"{name}.{part}"] == 0
                    assert torch.equal(own, out[f"pruned_u{u}.{name}"] == 1), name
            assert any(out[f"pruned_u{u}.{name}"].any() for name in conv_of), f"nothing is pruned at {u}"
        return out, {"bn_to_conv": conv_of}

    # FP

    def j_fp(self):
        net = self.net().eval()
        loader = self.loader(0, BATCHES)
        args = SimpleNamespace(device="cpu")
        space = self.given | {
            "netC": net, "args": args, "trainloader": loader, "num_pruned": 9,
            "clean_train_dataset_without_transform": loader.dataset,
            "prune": prune,
        }
        where = ("defense/fp.py", "FinePrune.defense")
        exec(self.bench.stretch(*where, "with torch.no_grad():", "hook =", "named_children"), space)
        exec(self.bench.stretch(*where, "with torch.no_grad():", "seq_sort =", "activation"), space)
        exec(self.bench.stretch(*where, "first_linear_module_in_last_child =", "prune_mask ="), space)
        exec(self.bench.stretch(*where, "if num_pruned:", "if num_pruned:"), space)
        out = {"activation": space["activation"], "seq_sort": space["seq_sort"]}
        out |= {"logits_after_num_pruned_9": net(self.batch(0)[0]).detach()}
        return out | {"mask_num_pruned_9": net.linear.weight_mask.to(torch.uint8)}, {}

    # ANP

    def masks_trained(self, steps, batches):
        """Mask training on batches with as many steps of the noise: the network, what is stored, and the functions."""
        folder = "utils/defense_utils/anp/anp_model"
        given = self.given | {"Tensor": torch.Tensor, "Parameter": nn.Parameter, "init": nn.init}
        norm = self.bench.load(f"{folder}/anp_batchnorm.py", ["NoisyBatchNorm2d"], given)["NoisyBatchNorm2d"]
        parts = self.bench.load(f"{folder}/preact_anp.py", ["PreActBlock", "PreActResNet"], given)
        nothing = type("Nothing", (), {})
        kinds = dict.fromkeys(["NoisyBatchNorm1d", "NoiseLayerNorm2d", "NoiseLayerNorm"], nothing)
        given["anp_model"] = SimpleNamespace(NoisyBatchNorm2d=norm, **kinds)
        given["OrderedDict"] = dict
        names = [
            "load_state_dict", "clip_mask", "sign_grad", "include_noise", "exclude_noise", "reset", "mask_train",
            "save_mask_scores", "read_data", "pruning",
        ]
        space = self.bench.load("defense/anp.py", names, given)
        net = narrow(parts["PreActResNet"], parts["PreActBlock"], norm)()
        space["load_state_dict"](net, self.start)
        args = SimpleNamespace(device="cpu", anp_eps=0.4, anp_steps=steps, anp_alpha=0.2)
        space["args"] = args
        out, batch = {}, iter(range(batches))

        def reset(model, rand_init):
            assert rand_init
            k = next(batch)
            for i, (name, parameter) in enumerate(model.named_parameters()):
                if "neuron_noise" in name:
                    drawn = self.draw(1000 * (k + 1) + i, parameter.shape, -args.anp_eps, args.anp_eps)
                    parameter.data.copy_(drawn)
                    out[f"noise_init.{k}.{name}"] = drawn

        space["reset"] = reset
        losses = []
        criterion = nn.CrossEntropyLoss()

        def recorded(logits, labels):
            losses.append(criterion(logits, labels))
            return losses[-1]

        of = lambda part: [p for n, p in net.named_parameters() if part in n]
        # The rate of the masks is 20 times the published one, so that two steps show.
        masks = torch.optim.SGD(of("neuron_mask"), lr=0.2, momentum=0.9)
        noises = torch.optim.SGD(of("neuron_noise"), lr=args.anp_eps / args.anp_steps)
        mean, _ = space["mask_train"](args, net, recorded, masks, noises, self.loader(0, batches))
        out |= {"loss_mean": torch.tensor(mean, dtype=self.dtype), "losses_in_call_order": torch.stack(losses).detach()}
        for name, tensor in net.state_dict().items():
            if name.endswith("neuron_mask"):
                out["mask_after." + name.removesuffix(".neuron_mask")] = tensor.clone()
            elif "neuron_noise" in name:
                out["noise_after." + name] = tensor.clone()
            elif name.endswith(("running_mean", "running_var")):
                out["bn_after." + name] = tensor.clone()
        return net, out, space

    def k_anp_steps(self):
        return self.masks_trained(3, 1)[1], {}

    def k_anp(self):
        net, out, space = self.masks_trained(1, 2)
        with tempfile.TemporaryDirectory() as folder:
            space["save_mask_scores"](net.state_dict(), folder + "/masks.txt")
            scores = space["read_data"](folder + "/masks.txt")
        # A threshold that is itself the score of a channel.
        threshold = sorted({float(score) for _, _, score in scores})[12]
        pruned = self.net()
        exec(self.bench.stretch("defense/anp.py", "anp.evaluate_by_threshold", "for idx in", "for idx in"), space | {
            "start": 0, "mask_values": sorted(scores, key=lambda score: float(score[2])), "threshold": threshold,
            "model": pruned,
        })
        for name, tensor in pruned.state_dict().items():
            if ".bn" in name and name.endswith(".weight"):
                out["pruned." + name.removesuffix(".weight")] = (tensor == 0).to(torch.uint8)
            else:
                assert torch.equal(tensor, self.net().state_dict()[name])
        return out | {"prune_threshold": torch.tensor(threshold, dtype=torch.float64)}, {}

    # NC

    def l_nc(self):
        with open(f"{self.bench.folder}/config/defense/nc/cifar10.yaml", encoding="utf-8") as file:
            opt = SimpleNamespace(**yaml.safe_load(file))
        opt.__dict__.update(device="cpu", input_channel=3, num_classes=CLASSES, target_label=3, to_file=False)
        seen = {}
        given = self.given | {
            "args": opt, "generate_cls_model": lambda *_: self.network(), "tap": seen.update,
            "torch": Instead(self.torch, cuda=SimpleNamespace(empty_cache=lambda: None)),
        }
        names = ["Normalize", "Denormalize", "RegressionModel", "Recorder", "train_step", "outlier_detection"]
        space = self.bench.load("defense/nc.py", names, given, [("outlier_detection", "min_mad")])
        mask = self.draw(60, (1, SIDE, SIDE), -3, 3)
        pattern = self.draw(61, (3, SIDE, SIDE), -3, 3)
        out = {"init_mask_tanh": mask, "init_pattern_tanh": pattern}
        to_numpy = lambda t: t.to(self.dtype).numpy()
        space |= {
            "result": {"model": self.start}, "init_mask": to_numpy(mask), "init_pattern": to_numpy(pattern),
            "args": opt,
        }
        exec(self.bench.stretch("defense/nc.py", "train_mask", "regression_model =", "optimizerR ="), space)
        model, adam = space["regression_model"], space["optimizerR"]
        x, _ = self.batch(0)
        logits = model(x).detach()
        norm = torch.norm(model.get_raw_mask(), opt.use_norm).detach()
        loss = F.cross_entropy(logits, torch.full((BATCH,), opt.target_label))
        out |= {"raw_mask0": model.get_raw_mask(), "raw_pattern0": model.get_raw_pattern(), "logits0": logits}
        out |= {"loss_ce0": loss, "loss_reg0": norm, "loss_total0": loss + opt.init_cost * norm}
        grads = []
        both = [model.mask_tanh, model.pattern_tanh]
        adam.register_step_pre_hook(lambda *_: grads.append([p.grad.clone() for p in both]))
        recorder = space["Recorder"](opt)
        recorder.save_result_to_dir = lambda opt: None
        space["train_step"](model, adam, self.loader(0, 2), recorder, 0, opt)
        out |= {"grad_mask0": grads[0][0], "grad_pattern0": grads[0][1]}
        out |= {"mask_tanh_after2": model.mask_tanh, "pattern_tanh_after2": model.pattern_tanh}
        norms = self.draw(62, (CLASSES,), 40, 60).to(self.dtype)
        norms[6] = 12.0
        with contextlib.redirect_stdout(io.StringIO()):
            flagged = space["outlier_detection"](norms, {i: i for i in range(CLASSES)}, opt)
        out |= {
            "outlier.l1": norms, "outlier.median": seen["median"], "outlier.mad": seen["mad"],
            "outlier.anomaly_index": seen["min_mad"], "outlier.flagged": integers(label for label, _ in flagged),
        }
        return {key: value.detach() for key, value in out.items()}, {}

    # i-BAU

    def smooth(self):
        """The network with shifts that keep each unit of every ReLU either on or off, so that second derivatives are
        those of a smooth function. Its convolutions look mostly at their centre, because shifts as large as that make
        the padding count more than the image, and its running statistics and biases are those of its images."""
        changed = {}
        for name, tensor in self.start.items():
            if ".bn" in name and name.endswith(".bias"):
                # A third of the units is off.
                changed[name] = torch.where(torch.arange(len(tensor)) % 3 == 1, -8.0, 8.0) + tensor
            elif tensor.dim() == 4 and tensor.shape[-1] == 3:
                centre = torch.tensor([0.02] * 4 + [3.0] + [0.02] * 4).view(3, 3)
                changed[name] = tensor * centre
        net = self.net(**changed)
        norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
        for module in norms.values():
            module.momentum = 1.0
        with torch.no_grad():
            net.train()(self.x)
            logits = net.eval()(self.x)
            changed["linear.weight"] = (net.linear.weight * 0.5 / logits.std(dim=0).mean()).float()
            net.linear.weight.copy_(changed["linear.weight"])
            changed["linear.bias"] = (net.linear.bias - net(self.x).mean(dim=0)).float()
        state = net.state_dict()
        for name in norms:
            for part in ("running_mean", "running_var"):
                changed[f"{name}.{part}"] = state[f"{name}.{part}"].float()
        return changed, self.net(**changed).eval()

    def m_ibau(self):
        names = [
            "DifferentiableOptimizer", "GradientDescent", "gd_step", "grad_unused_zero", "get_outer_gradients",
            "update_tensor_grads", "fixed_point", "cat_list_to_tensor",
        ]
        changed, net = self.smooth()
        patched, share = [[1, 3], [0]], 0.1
        drawn = iter(())
        given = self.given | {
            "torch": Instead(
                self.torch,
                zeros_like=lambda like, device=None: torch.zeros_like(like),
                # At the published rate of 10 the perturbation would push units over their kinks.
                optim=SimpleNamespace(SGD=lambda params, lr: torch.optim.SGD(params, lr=lr * share))),
            "random": SimpleNamespace(sample=lambda among, count: next(drawn)),
            "repeat": itertools.repeat, "torch_grad": torch.autograd.grad, "Tensor": torch.Tensor,
            "List": typing.List, "Callable": typing.Callable,
        }
        space = self.bench.load("defense/i-bau.py", names, given)
        with open(f"{self.bench.folder}/config/defense/i-bau/cifar10.yaml", encoding="utf-8") as file:
            args = SimpleNamespace(**yaml.safe_load(file))
        args.__dict__.update(device="cpu", input_channel=3, input_height=SIDE, input_width=SIDE)
        settings = self.bench.load(
            "utils/aggregate_block/train_settings_generate.py", ["argparser_opt_scheduler"], self.given)
        adam, _ = settings["argparser_opt_scheduler"](net, args)
        loader = [(*self.batch(k), None, None, None) for k in range(2)]
        space |= {"args": args, "model": net, "trainloader": loader, "outer_opt": adam}
        where = ("defense/i-bau.py", "i_bau.mitigation")
        exec(self.bench.stretch(*where, "def loss_inner(", "inner_opt ="), space)
        exec(self.bench.stretch(*where, "batch_pert =", "pert ="), space)
        out = {"perturbation": space["pert"].detach().clone()}

        # The distance of the nearest unit from its kink, while images move by as much as they do in our differences.
        nearest = []
        hooks = [m.register_forward_hook(lambda _, __, y: nearest.append(float(y.detach().abs().min())))
                 for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        rng = torch.Generator().manual_seed(70)
        for _ in range(20):
            moved = torch.rand(1, 3, SIDE, SIDE, generator=rng).to(self.dtype).sub(0.5).sign() * 0.1
            net(self.x + out["perturbation"] + moved)
        for hook in hooks:
            hook.remove()
        assert min(nearest) > 1, (min(nearest), out["perturbation"].pow(2).mean().sqrt())

        def gradients(terms):
            nonlocal drawn
            drawn, space["batchnum"] = iter(patched[1:]), 1
            found = space["fixed_point"](
                space["pert"], list(net.parameters()), terms, space["inner_opt"], space["loss_outer"], set_grad=False)
            return {name: g.detach().clone() for (name, _), g in zip(net.named_parameters(), found)}

        direct, whole = gradients(0), gradients(args.K)
        assert args.K == 5
        # The last stages have most of the weights and are left out, so that the file is small.
        stored = [name for name in direct if not name.startswith(("layer3", "layer4"))]
        for name in stored:
            out |= {f"direct.{name}": direct[name], f"indirect.{name}": whole[name] - direct[name]}
        total = lambda tensors: float(torch.cat([t.flatten() for t in tensors]).norm())
        print(f"  norms: indirect {total(whole[n] - direct[n] for n in direct):.3g}, "
              f"direct {total(direct.values()):.3g};"
              f" nearest kink {min(nearest):.2g}")
        # One whole round of the original, from the start.
        drawn = iter(patched)
        exec(self.bench.stretch(*where, "batch_pert =", "for batchnum in"), space)
        out |= {f"after.{name}": dict(net.named_parameters())[name] for name in stored}
        out |= {f"start.{name}": tensor for name, tensor in changed.items()}
        return out, {"patched": patched, "perturb_lr": 10 * share}

    def model(self):
        return dict(self.start), {}

    def inputs(self):
        return {"pixels": self.pixels, "labels": self.labels}, {}


CASES = [
    "model", "inputs", "f_tsbd", "f_tsbd_finetuned", "f_tsbd_lr1e-4", "g_otbr", "g_otbr_fused", "g_emd_f64",
    "h_ulrl_unlearn", "h_ulrl_mad", "h_ulrl_relearn", "i_clp", "j_fp", "k_anp", "k_anp_steps", "l_nc", "m_ibau",
]


def save(tensors, target, metadata):
    """Writes a file whose header is in order, unlike that of `save_bytes` where it has several metadata."""
    file = save_bytes(tensors, metadata)
    size = int.from_bytes(file[:8], "little")
    fields = json.loads(file[8:8 + size])
    fields["__metadata__"] = dict(sorted(fields["__metadata__"].items()))
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(len(text).to_bytes(8, "little") + text + file[8 + size:])


def plain(tensor):
    return tensor.detach().contiguous().clone()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in COMMITS:
        parser.add_argument(name)
    parser.add_argument("case", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"torch": torch.__version__, "numpy": np.__version__, "POT": ot.__version__}
    print(versions)
    repositories = {name: Repository(getattr(args, name), commit) for name, commit in COMMITS.items()}
    for case in args.case or CASES:
        made = {}
        for dtype in (torch.float64, torch.float32):
            cases = Cases(repositories, dtype)
            made[dtype], metadata = getattr(cases, case.replace("-", "_"))()
        out = made[torch.float32]
        metadata = {key: json.dumps(value) for key, value in metadata.items()} | versions
        target = pathlib.Path(__file__).with_name(f"{case}.safetensors")
        save({name: plain(tensor) for name, tensor in out.items()}, target, metadata)
        print(target.name, target.stat().st_size, "bytes")
        worst = {}
        for name, tensor in out.items():
            exact = made[torch.float64][name]
            if not tensor.is_floating_point():
                if not torch.equal(tensor, exact):
                    print(f"  {name}: {(tensor != exact).sum()} of {tensor.numel()} differ in f64")
                continue
            group = name.split(".")[0]
            tensor, exact = tensor.detach().double(), exact.detach().double()
            norm = exact.norm()
            error = float((tensor - exact).norm() / norm) if norm > 0 else 0.0
            if error >= worst.get(group, (0, ""))[0]:
                worst[group] = (error, name)
        for group, (error, name) in worst.items():
            print(f"  {group}: largest relative difference to f64 {error:.1e} ({name})")


if __name__ == "__main__":
    main()
