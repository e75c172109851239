#!/usr/bin/env python3
"""Makes `augmentation.safetensors` and `initial_weights.json` beside this file, by BackdoorBench's own code.

    python crates/bb-nn/tests/golden_data/make_benchmark.py PATH_OF_BACKDOORBENCH

Needs torch, torchvision, numpy, Pillow and safetensors, and a clone of SCLBD/BackdoorBench at `COMMIT`.

Augmentation: for each dataset `DATASET.pixels` (uint8, height x width x 3), `DATASET.choice` (int64, one row of row
shift, column shift, flip for each output) and `DATASET.output` (float32, n x 3 x height x width), the benchmark's
training transform. The shift is that of the crop's corner against the image's, so that negative ones lie in the padding.
Which choice led to an output is found by trying all.

Initial weights: for each classifier the tensors in order, each with its name, number of elements, mean, standard
deviation and largest magnitude.
"""
import json
import pathlib
import subprocess
import sys

import numpy as np
import torch
import torchvision
from PIL import Image
from safetensors.numpy import save_file

COMMIT = "f02e3534645f0ee63d6848653062cd6c0d6c400d"
HERE = pathlib.Path(__file__).parent
# Sides of the test images: small, and not square, so that rows and columns cannot be exchanged.
HEIGHT, WIDTH = 9, 11
OUTPUTS = 4
PADDING = 4
# Seeds by which no output is the image itself and, where the transform mirrors at all, both kinds are among them.
SEED = 5


def choices(pixels, output, normalise):
    """Every (row shift, column shift, flip) whose crop is `output`."""
    padded = np.pad(pixels, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    for dy in range(-PADDING, PADDING + 1):
        for dx in range(-PADDING, PADDING + 1):
            crop = padded[PADDING + dy :, PADDING + dx :][:HEIGHT, :WIDTH]
            for flip in (0, 1):
                image = crop[:, ::-1] if flip else crop
                tensor = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
                if torch.equal(normalise(tensor), output):
                    yield dy, dx, flip


def augmentation(module):
    file = {}
    for dataset in ("cifar10", "cifar100", "gtsrb", "tiny"):
        torch.manual_seed(SEED)
        pixels = np.random.default_rng(SEED).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        transform = module.get_transform(dataset, HEIGHT, WIDTH, train=True)
        normalise = module.get_dataset_normalization(dataset)
        found, outputs = [], []
        for _ in range(OUTPUTS):
            output = transform(Image.fromarray(pixels))
            (choice,) = choices(pixels, output, normalise)
            found.append(choice)
            outputs.append(output.numpy())
        print(dataset, found)
        file[f"{dataset}.pixels"] = pixels
        file[f"{dataset}.choice"] = np.array(found, dtype=np.int64)
        file[f"{dataset}.output"] = np.stack(outputs)
    save_file(file, HERE / "augmentation.safetensors", {"benchmark": COMMIT, "torch": torch.__version__})


def initial_weights(generate):
    found = {}
    for name in ("preactresnet18", "resnet18", "resnet34", "vgg19_bn"):
        torch.manual_seed(0)
        net = generate(name, num_classes=10, image_size=32)
        rows = []
        for key, value in net.state_dict().items():
            value = value.double()
            std = value.std().item() if value.numel() > 1 else 0.0
            rows.append([key, value.numel(), value.mean().item(), std, value.abs().max().item()])
        found[name] = rows
    lines = [
        f"{json.dumps(name)}: [\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]"
        for name, rows in found.items()
    ]
    (HERE / "initial_weights.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main():
    (path,) = sys.argv[1:]
    head = subprocess.run(["git", "-C", path, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    if head.stdout.strip() != COMMIT:
        sys.exit(f"{path} is at {head.stdout.strip()}, expected {COMMIT}")
    print("torch", torch.__version__, "torchvision", torchvision.__version__, "numpy", np.__version__)
    torch.set_num_threads(1)
    sys.path.insert(0, path)
    from utils.aggregate_block import dataset_and_transform_generate, model_trainer_generate

    augmentation(dataset_and_transform_generate)
    initial_weights(model_trainer_generate.generate_cls_model)


if __name__ == "__main__":
    main()
