#!/usr/bin/env python3
"""Makes preactresnet.safetensors beside this file: what plain PyTorch computes on a tiny pre-activation ResNet-18.

    python crates/bb-nn/tests/golden_data/make.py        (needs torch and safetensors)

Content: `state.*` the start, `x` and `labels` a batch, `logits_eval`, `logits_train`, `loss`, `grad.*` in train mode,
`after.*` the state after two steps of SGD (lr 0.05, momentum 0.9, weight decay 5e-4) on that batch from the start.
"""
import pathlib

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

WIDTH, CLASSES, BATCH, SIDE, SEED = 2, 5, 6, 16, 7


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
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False)
        cin = WIDTH
        for stage in range(4):
            cout = WIDTH << stage
            blocks = [Block(cin, cout, 2 if stage else 1), Block(cout, cout, 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            cin = cout
        self.linear = nn.Linear(cin, CLASSES)

    def forward(self, x):
        x = self.conv1(x)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def copy(state, prefix):
    return {f"{prefix}.{k}": v.detach().clone().contiguous() for k, v in state.items()}


def main():
    torch.manual_seed(SEED)
    net = PreActResNet18()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    out = copy(net.state_dict(), "state")
    x, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(0, CLASSES, (BATCH,))
    out |= {"x": x, "labels": labels, "logits_eval": net.eval()(x).detach()}
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
    out |= copy(net.state_dict(), "after")
    target = pathlib.Path(__file__).with_name("preactresnet.safetensors")
    save_file({k: v.clone() for k, v in out.items()}, target, {"torch": torch.__version__})
    print(target, target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
