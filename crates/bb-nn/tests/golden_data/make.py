#!/usr/bin/env python3
"""Makes the files of `CASES` beside this one: what plain PyTorch computes on tiny pre-activation ResNets-18.

    python crates/bb-nn/tests/golden_data/make.py [name ...]        (needs torch and safetensors)

Content: `state.*` the start, `x` and `labels` a batch, `logits_eval`, `logits_train`, `loss`, `grad.*` in train mode,
`after.*` the state after two steps of SGD (lr 0.05, momentum 0.9, weight decay 5e-4) on that batch from the start.
The cases with the shape of a dataset, its image size and number of classes, have bytes `pixels` for `x`, which is
`pixels / 128 - 1`, and a start that is rounded to bf16, so that the files are small.
"""
import pathlib
import sys

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

# Name: width, classes, batch, side, seed. The seeds of the shapes are ones by which no gradient is so small that its
# rounding errors show: `f32` and `f64` agree to 5e-6 in every tensor.
CASES = {
    "preactresnet": (2, 5, 6, 16, 7),
    "preactresnet_gtsrb": (1, 43, 2, 32, 8),
    "preactresnet_tiny": (1, 200, 2, 64, 10),
}


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, 1, 1, bias=False)
        if stride != 1 or cin != cout:
            self.shortcut = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False))

    def forward(self, x):
        a = F.relu(self.bn1(x))
        skip = self.shortcut(a) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(a)))) + skip


class PreActResNet18(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        cin = width
        for stage in range(4):
            cout = width << stage
            blocks = [Block(cin, cout, 2 if stage else 1), Block(cout, cout, 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            cin = cout
        self.linear = nn.Linear(cin, classes)

    def forward(self, x):
        x = self.conv1(x)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def copy(state, prefix):
    return {f"{prefix}.{k}": v.detach().clone().contiguous() for k, v in state.items()}


def case(name):
    width, classes, batch, side, seed = CASES[name]
    shape = name != "preactresnet"
    torch.manual_seed(seed)
    net = PreActResNet18(width, classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    if shape:
        for t in net.state_dict().values():
            t.copy_(t.to(torch.bfloat16))
    out = copy(net.state_dict(), "state")
    if shape:
        out = {k: v.to(torch.bfloat16) if v.dtype == torch.float32 else v for k, v in out.items()}
        pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)
        x = pixels.float() / 128 - 1
        out["pixels"] = pixels
    else:
        x = torch.randn(batch, 3, side, side)
        out["x"] = x
    labels = torch.randint(0, classes, (batch,))
    out |= {"labels": labels, "logits_eval": net.eval()(x).detach()}
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for step in range(2):
        optimiser.zero_grad()
        logits = net(x)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        if step == 0:
            out |= {"logits_train": logits.detach(), "loss": loss.detach()}
            out |= copy({k: p.grad for k, p in net.named_parameters()}, "grad")
        optimiser.step()
    return out | copy(net.state_dict(), "after")


def main():
    for name in sys.argv[1:] or CASES:
        out = case(name)
        target = pathlib.Path(__file__).with_name(f"{name}.safetensors")
        save_file({k: v.clone() for k, v in out.items()}, target, {"torch": torch.__version__})
        print(target, target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
