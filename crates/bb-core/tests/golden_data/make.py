#!/usr/bin/env python3
"""Makes `resize.safetensors` beside this file: what Pillow's bilinear resizing makes of random pictures.

    python crates/bb-core/tests/golden_data/make.py        (needs Pillow 11, numpy and safetensors)

The benchmark ran an older Pillow still, which resizes as 11 does: horizontally first. Pillow 13 begins with the vertical
pass for some shapes, which changes values by a level.

Case K has the picture `K.in` and `K.out`, both uint8, height x width x 3: smaller and larger in both directions, in one
of them only, from and to a single pixel.
"""
import pathlib

import numpy as np
import PIL
from PIL import Image
from safetensors.numpy import save_file

# Height and width before and after.
CASES = [
    (45, 53, 32, 32),
    (45, 53, 64, 64),
    (20, 31, 9, 40),
    (7, 5, 16, 16),
    (33, 32, 32, 32),
    (1, 9, 4, 3),
    (17, 13, 1, 1),
]


def main():
    if not PIL.__version__.startswith("11."):
        raise SystemExit(f"Pillow is {PIL.__version__}, expected 11")
    draw = np.random.default_rng(0)
    out = {}
    for number, (h, w, oh, ow) in enumerate(CASES):
        picture = draw.integers(0, 256, (h, w, 3), dtype=np.uint8)
        resized = Image.fromarray(picture).resize((ow, oh), Image.Resampling.BILINEAR)
        out[f"{number}.in"] = picture
        out[f"{number}.out"] = np.asarray(resized).copy()
    target = pathlib.Path(__file__).with_name("resize.safetensors")
    save_file(out, target, {"pillow": PIL.__version__})
    print(target, target.stat().st_size, "bytes, Pillow", PIL.__version__)


if __name__ == "__main__":
    main()
