#!/usr/bin/env python3
"""Speed of PyTorch on the network that `cargo run --release -p bb-nn --example bench` times; prints a JSON line for each
batch size and precision.

A pre-activation ResNet-18 for 32x32 images with random data in memory.
train: forward, cross-entropy, backward, SGD (momentum 0.9, weight decay 5e-4); eval: a forward pass in eval mode.
Needs torch only.
"""
import argparse
import json
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(cin), nn.BatchNorm2d(cout)
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        same = stride == 1 and cin == cout
        self.shortcut = None if same else nn.Conv2d(cin, cout, 1, stride, bias=False)

    def forward(self, x):
        a = F.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(a)
        return self.conv2(F.relu(self.bn2(self.conv1(a)))) + skip


def network(width, classes):
    layers, cin = [nn.Conv2d(3, width, 3, 1, 1, bias=False)], width
    for stage in range(4):
        for block in range(2):
            cout = width << stage
            layers.append(Block(cin, cout, 2 if stage and not block else 1))
            cin = cout
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(cin, classes)]
    return nn.Sequential(*layers)


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--width", type=int, default=64)
    p.add_argument("--batch", type=int, nargs="+", default=[128])
    p.add_argument("--mode", choices=["train", "eval"], default="train")
    p.add_argument("--precision", choices=["f32", "tf32", "bf16"], nargs="+", default=["f32"])
    p.add_argument("--channels-last", action="store_true")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--compile", action="store_true", help="torch.compile")
    p.add_argument("--steps", type=int, default=6)
    p.add_argument("--warmup", type=int, default=2)
    p.add_argument("--repeats", type=int, default=1)
    p.add_argument("--threads", type=int, default=2)
    o = p.parse_args()
    torch.set_num_threads(o.threads)
    for precision in o.precision:
        for batch in o.batch:
            measure(o, precision, batch)


def measure(o, precision, batch):
    torch.manual_seed(0)
    net, x, y = network(o.width, 10), torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    net, x, y = net.to(o.device), x.to(o.device), y.to(o.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    if o.channels_last:
        net, x = net.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if o.compile:
        net = torch.compile(net)
    opt = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    cast = lambda: torch.autocast(o.device, dtype=torch.bfloat16, enabled=precision == "bf16")
    net.train(o.mode == "train")

    def step():
        if o.mode == "eval":
            with torch.inference_mode(), cast():
                return net(x).float().sum()
        opt.zero_grad(set_to_none=True)
        with cast():
            loss = F.cross_entropy(net(x), y)
        loss.backward()
        opt.step()
        return loss.detach()

    for _ in range(o.warmup):
        float(step())
    rates = []
    for _ in range(o.repeats):
        start = time.perf_counter()
        for _ in range(o.steps):
            last = step()
        float(last)  # a GPU is waited for once, not after each step
        rates.append(batch * o.steps / (time.perf_counter() - start))
    print(json.dumps({"torch": torch.__version__, "mode": o.mode, "width": o.width, "batch": batch,
                      "precision": precision, "channels_last": o.channels_last,
                      "img_per_s_median": round(statistics.median(rates), 2),
                      "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}), flush=True)


if __name__ == "__main__":
    main()
