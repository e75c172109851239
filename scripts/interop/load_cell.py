"""Load one of our cells in Python and measure its backdoor with PyTorch.

    python scripts/interop/load_cell.py CELL [--attack CELL] [--logits FILE]

CELL is the folder of an attack or a defense; a defense needs the attack that it repaired for the poisoned images.
The network is built here from PyTorch's own layers (PreActResNet18 of any width), the poisoned test images and labels
come from the attack's cell, and ASR and RA are compared with the manifest. One line of JSON goes to standard output;
the exit code is 1 if a count differs by more than --slack images, which other rounding may explain.

--logits FILE writes the logits of the poisoned test images, in the order of the cell, as safetensors.

Needs numpy, safetensors and torch; runs nothing that the cell holds.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from torch import nn

# Mean and standard deviation per channel of values in 0..1; those of BackdoorBench for its datasets.
NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "gtsrb": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
    "synthetic": ((0.5, 0.5, 0.5), (0.15, 0.15, 0.15)),
    "folder": ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
}


class Block(nn.Module):
    """Two convolutions, each behind batch normalisation and ReLU; the shortcut begins behind the first ReLU."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = None
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x):
        active = torch.relu(self.bn1(x))
        past = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(torch.relu(self.bn2(self.conv1(active)))) + past


class PreActResNet18(nn.Module):
    """Four stages of two blocks with `width`, 2, 4 and 8 times `width` channels, under the benchmark's tensor names."""

    def __init__(self, width, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        inputs = width
        for stage in range(4):
            outputs = width << stage
            blocks = [Block(inputs, outputs, 1 if stage == 0 else 2), Block(outputs, outputs, 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.conv1(x)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))


def load_network(cell, manifest):
    """The network of a cell, in eval mode; every tensor has to fit."""
    if not manifest["arch"].startswith("preactresnet18-w"):
        sys.exit(f"error: `{manifest['arch']}` is not built here, expected preactresnet18")
    state = load_file(cell / "model.safetensors")
    width, classes = state["conv1.weight"].shape[0], state["linear.weight"].shape[0]
    network = PreActResNet18(width, classes)
    network.load_state_dict(state, strict=True)
    return network.eval()


@torch.inference_mode()
def logits_of(network, images, dataset, batch=256):
    """Logits of 8-bit images [n, height, width, 3]."""
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in NORMALISATION[dataset])
    rows = []
    for begin in range(0, len(images), batch):
        pixels = torch.from_numpy(np.ascontiguousarray(images[begin : begin + batch]))
        values = pixels.permute(0, 3, 1, 2).float() / 255
        rows.append(network((values - mean) / std))
    return torch.cat(rows)


def main():
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cell", type=pathlib.Path)
    parser.add_argument("--attack", type=pathlib.Path)
    parser.add_argument("--logits", type=pathlib.Path)
    parser.add_argument("--slack", type=int, default=1)
    args = parser.parse_args()

    manifest = json.loads((args.cell / "manifest.json").read_text())
    attack = args.attack or args.cell
    poison = attack / "poison_test.safetensors"
    if not poison.exists():
        sys.exit(f"error: `{poison}` is missing; name the attack of a defense with --attack")
    network = load_network(args.cell, manifest)
    sets = {name: tensor.numpy() for name, tensor in load_file(poison).items()}
    if len(sets["image"]) == 0:
        sys.exit("error: there is no poisoned image to measure, the cell is one of clean training")
    logits = logits_of(network, sets["image"], manifest["dataset"])
    classes = logits.argmax(1).numpy()
    found = {
        "asr": int((classes == sets["label"]).sum()),
        "ra": int((classes == sets["original_label"]).sum()),
    }

    results = manifest["results"]
    expected = results.get("after", results)
    line, agrees = {"images": len(classes)}, True
    for name, hits in found.items():
        said = expected[name]["hits"]
        agrees &= abs(said - hits) <= args.slack and expected[name]["total"] == len(classes)
        line[name] = {"torch": hits, "manifest": said}
    line["agrees"] = agrees
    if args.logits:
        save_file({"logits": logits.numpy()}, args.logits)
    print(json.dumps(line))
    sys.exit(0 if agrees else 1)


if __name__ == "__main__":
    main()
