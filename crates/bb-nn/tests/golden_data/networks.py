#!/usr/bin/env python3
"""Makes the other files beside this one that hold what plain PyTorch computes on small networks, and on single operations.

    python crates/bb-nn/tests/golden_data/networks.py [name ...]        (needs torch and safetensors)

One file per network (`NETWORKS`): `state.*` the start and `x` a batch, both rounded to bf16 so that the file is small,
`eval.grad_input` and, for `mode` in eval and train, `mode.output` and some of `mode.grad.*`.
Of a classifier the loss is the mean cross-entropy with `labels`, of another model the sum of `cotangent * output`.
VGG's output in train mode is what its linear layers read, with `train.cotangent`, because nobody else draws PyTorch's
dropout masks. `after.*` are the running statistics after the forward pass in train mode.
`operations.safetensors`: Adam, grid_sample, bicubic upsampling, rotation, pooling.
"""
import math
import pathlib
import sys

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F


def conv(cin, cout, k=3, stride=1, pad=1, bias=True):
    return nn.Conv2d(cin, cout, k, stride, pad, bias=bias)


class Vgg19Bn(nn.Module):
    def __init__(self, width, classes):
        super().__init__()
        layers, cin = [], 3
        for factor, count in [(1, 2), (2, 2), (4, 4), (8, 4), (8, 4)]:
            for _ in range(count):
                layers += [conv(cin, factor * width), nn.BatchNorm2d(factor * width), nn.ReLU()]
                cin = factor * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        hidden = 64 * width
        self.classifier = nn.Sequential(
            nn.Linear(cin * 49, hidden), nn.ReLU(), nn.Dropout(0.0),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.0),
            nn.Linear(hidden, classes),
        )

    def forward(self, x):
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 7).flatten(1))


class Block(nn.Module):
    def __init__(self, cin, cout, stride):
        super().__init__()
        self.conv1 = conv(cin, cout, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(cout)
        self.conv2 = conv(cout, cout, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.downsample = None
        if stride != 1 or cin != cout:
            self.downsample = nn.Sequential(conv(cin, cout, 1, stride, 0, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + skip)


class ResNet(nn.Module):
    def __init__(self, blocks, width, classes):
        super().__init__()
        self.conv1 = conv(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        cin = width
        for stage, count in enumerate(blocks):
            cout = width << stage
            layers = []
            for block in range(count):
                layers.append(Block(cin, cout, 2 if stage and block == 0 else 1))
                cin = cout
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(cin, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class ConvBlock(nn.Module):
    def __init__(self, cin, cout, relu=True):
        super().__init__()
        self.conv2d = conv(cin, cout)
        self.batch_norm = nn.BatchNorm2d(cout, eps=1e-5, momentum=0.05)
        self.relu = relu

    def forward(self, x):
        x = self.batch_norm(self.conv2d(x))
        return F.relu(x) if self.relu else x


class InputAware(nn.Module):
    def __init__(self, outputs, width):
        super().__init__()
        w = width
        down = [(3, w), (w, w), (w, 2 * w), (2 * w, 2 * w), (2 * w, 4 * w), (4 * w, 4 * w)]
        for i, sizes in enumerate(down):
            self.add_module(f"convblock_down_{i}", ConvBlock(*sizes))
        self.convblock_middle = ConvBlock(4 * w, 4 * w)
        up = [(4 * w, 4 * w), (4 * w, 2 * w), (2 * w, 2 * w), (2 * w, w), (w, w), (w, outputs)]
        for i, sizes in enumerate(up):
            self.add_module(f"convblock_up_{i}", ConvBlock(*sizes, relu=i < 5))

    def forward(self, x):
        for i in range(6):
            x = getattr(self, f"convblock_down_{i}")(x)
            if i % 2:
                x = F.max_pool2d(x, 2)
        x = self.convblock_middle(x)
        for i in range(6):
            if i % 2 == 0:
                x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = getattr(self, f"convblock_up_{i}")(x)
        return torch.tanh(torch.tanh(x)) / (2 + 1e-7) + 0.5


class SsbaEncoder(nn.Module):
    """Pictures of the engine are channels last, so the secret is seen as [16, 16, 3]."""

    def __init__(self, side, bits, width):
        super().__init__()
        w, self.factor = width, side // 16
        self.secret_dense = nn.Linear(bits, 768)
        self.conv1, self.conv2 = conv(6, w), conv(w, w, stride=2)
        self.conv3, self.conv4 = conv(w, 2 * w, stride=2), conv(2 * w, 4 * w, stride=2)
        self.conv5 = conv(4 * w, 8 * w, stride=2)
        self.up6, self.conv6 = conv(8 * w, 4 * w, 2, 1, 0), conv(8 * w, 4 * w)
        self.up7, self.conv7 = conv(4 * w, 2 * w, 2, 1, 0), conv(4 * w, 2 * w)
        self.up8, self.conv8 = conv(2 * w, w, 2, 1, 0), conv(2 * w, w)
        self.up9, self.conv9 = conv(w, w, 2, 1, 0), conv(2 * w + 6, w)
        self.conv10, self.residual = conv(w, w), conv(w, 3, 1, 1, 0)

    def up(self, layer, x):
        return F.relu(layer(F.pad(F.interpolate(x, scale_factor=2, mode="nearest"), (0, 1, 0, 1))))

    def forward(self, image, bits):
        s = F.relu(self.secret_dense(bits)).view(-1, 16, 16, 3).permute(0, 3, 1, 2)
        both = torch.cat([F.interpolate(s, scale_factor=self.factor, mode="nearest"), image], 1)
        c1 = F.relu(self.conv1(both))
        c2 = F.relu(self.conv2(c1))
        c3 = F.relu(self.conv3(c2))
        c4 = F.relu(self.conv4(c3))
        x = F.relu(self.conv5(c4))
        x = F.relu(self.conv6(torch.cat([c4, self.up(self.up6, x)], 1)))
        x = F.relu(self.conv7(torch.cat([c3, self.up(self.up7, x)], 1)))
        x = F.relu(self.conv8(torch.cat([c2, self.up(self.up8, x)], 1)))
        x = F.relu(self.conv9(torch.cat([c1, self.up(self.up9, x), both], 1)))
        return torch.sigmoid(self.residual(F.relu(self.conv10(x))))


class SsbaDecoder(nn.Module):
    """Flattened channels last."""

    def __init__(self, side, bits, width):
        super().__init__()
        w = width
        sizes = [(3, w, 2), (w, w, 1), (w, 2 * w, 2), (2 * w, 2 * w, 1), (2 * w, 2 * w, 2), (2 * w, 4 * w, 2),
                 (4 * w, 4 * w, 2)]
        for i, (cin, cout, stride) in enumerate(sizes):
            self.add_module(f"conv{i + 1}", conv(cin, cout, stride=stride))
        self.dense1 = nn.Linear(4 * w * (side // 32) ** 2, 16 * w)
        self.dense2 = nn.Linear(16 * w, bits)

    def forward(self, x):
        for i in range(7):
            x = F.relu(getattr(self, f"conv{i + 1}")(x))
        return self.dense2(F.relu(self.dense1(x.permute(0, 2, 3, 1).flatten(1))))


# Name, seed, network, batch, side, classes (0: no classifier), bits of a second input.
NETWORKS = {
    "vgg19_bn": (1, lambda: Vgg19Bn(1, 5), 3, 32, 5, 0),
    "resnet18": (2, lambda: ResNet([2, 2, 2, 2], 2, 5), 2, 64, 5, 0),
    "resnet34": (3, lambda: ResNet([3, 4, 6, 3], 2, 5), 4, 32, 5, 0),
    "input_aware_pattern": (4, lambda: InputAware(3, 4), 3, 32, 0, 0),
    "input_aware_mask": (5, lambda: InputAware(1, 2), 1, 64, 0, 0),
    "ssba_encoder32": (6, lambda: SsbaEncoder(32, 12, 2), 2, 32, 0, 12),
    "ssba_encoder64": (7, lambda: SsbaEncoder(64, 8, 2), 1, 64, 0, 8),
    "ssba_decoder32": (8, lambda: SsbaDecoder(32, 12, 4), 3, 32, 0, 0),
    "ssba_decoder64": (9, lambda: SsbaDecoder(64, 8, 4), 2, 64, 0, 0),
}


def rounded(t):
    return t.detach().to(torch.bfloat16).to(torch.float32)


def network(name):
    seed, make, batch, side, classes, bits = NETWORKS[name]
    torch.manual_seed(seed)
    net = make()
    with torch.no_grad():
        for key, module in net.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                # Small at the end of a block, so that the sums of a deep network stay small.
                nn.init.uniform_(module.weight, *((0.2, 0.5) if key.endswith("bn2") else (0.6, 1.4)))
                nn.init.normal_(module.bias, 0.2, 0.2)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)
        for t in net.state_dict().values():
            if t.dtype == torch.float32:
                t.copy_(rounded(t))
    out = {f"state.{k}": v.to(torch.bfloat16) if v.dtype == torch.float32 else v.clone()
           for k, v in net.state_dict().items()}
    x = rounded(torch.rand(batch, 3, side, side) if bits or "ssba" in name else torch.randn(batch, 3, side, side))
    second = [torch.randint(0, 2, (batch, bits)).float()] if bits else []
    out["x"] = x.to(torch.bfloat16)
    if bits:
        out["bits"] = second[0].to(torch.bfloat16)
    if classes:
        labels = torch.randint(0, classes, (batch,))
        out["labels"] = labels
    convolutions = {k for k, p in net.named_parameters() if p.dim() == 4}
    normalised = any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    for mode in ["eval", "train"] if normalised else ["eval"]:
        net.train(mode == "train")
        net.zero_grad()
        leaf = x.clone().requires_grad_()
        dropout = mode == "train" and name == "vgg19_bn"
        output = F.adaptive_avg_pool2d(net.features(leaf), 7) if dropout else net(leaf, *second)
        if dropout:
            out["train.cotangent"] = rounded(torch.randn_like(output)).to(torch.bfloat16)
            loss = (output * out["train.cotangent"].float()).sum()
        elif classes:
            loss = F.cross_entropy(output, labels)
            out[f"{mode}.loss"] = loss.detach()
        else:
            if "cotangent" not in out:
                out["cotangent"] = rounded(torch.randn_like(output)).to(torch.bfloat16)
            loss = (output * out["cotangent"].float()).sum()
        loss.backward()
        out[f"{mode}.output"] = output.detach()
        if mode == "eval":
            out["eval.grad_input"] = leaf.grad
        for key, p in net.named_parameters():
            # The bias of a convolution that is normalised with its own batch has a gradient of rounding errors around
            # 0: it is compared in eval mode, and everything else in train mode.
            followed = normalised and key.endswith(".bias") and key[: -len("bias")] + "weight" in convolutions
            alone = name == "vgg19_bn" and key.startswith("classifier")
            if (followed or alone) == (mode == "eval") or not normalised:
                out[f"{mode}.grad.{key}"] = p.grad
    out |= {f"after.{k}": v for k, v in net.state_dict().items() if "running" in k or "tracked" in k}
    return out


def adam():
    out, steps = {}, 4
    for case, (betas, decay) in enumerate([((0.9, 0.999), 0.0), ((0.5, 0.9), 0.05)]):
        w = nn.Parameter(torch.randn(300))
        optimiser = torch.optim.Adam([w], lr=0.01, betas=betas, weight_decay=decay)
        out[f"adam{case}.start"] = w.detach().clone()
        grads = torch.randn(steps, 300) * torch.tensor([1.0, 1e-3, 1e3, 0.0]).repeat(75)
        for g in grads:
            w.grad = g.clone()
            optimiser.step()
        state = optimiser.state[w]
        out |= {f"adam{case}.grads": grads, f"adam{case}.end": w.detach().clone(),
                f"adam{case}.m": state["exp_avg"], f"adam{case}.v": state["exp_avg_sq"]}
    return out


def rotated(x, degrees):
    """torchvision's rotation of a tensor, nearest, zero fill, without expand, written out."""
    h, w = x.shape[-2:]
    rot = math.radians(degrees)
    theta = torch.tensor([[[math.cos(rot), -math.sin(rot), 0.0], [math.sin(rot), math.cos(rot), 0.0]]])
    base = torch.empty(1, h, w, 3)
    base[..., 0] = torch.linspace(-w * 0.5 + 0.5, w * 0.5 - 0.5, w)
    base[..., 1] = torch.linspace(-h * 0.5 + 0.5, h * 0.5 - 0.5, h).unsqueeze(-1)
    base[..., 2] = 1
    grid = base.view(1, h * w, 3).bmm(theta.transpose(1, 2) / torch.tensor([0.5 * w, 0.5 * h]))
    grid = grid.view(1, h, w, 2).expand(x.shape[0], h, w, 2)
    return F.grid_sample(x, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def operations():
    torch.manual_seed(0)
    out = adam()
    x = torch.randn(3, 2, 9, 7)
    one, each = torch.rand(1, 8, 6, 2) * 2.6 - 1.3, torch.rand(3, 8, 6, 2) * 2.6 - 1.3
    sample = lambda grid: F.grid_sample(x, grid.expand(3, -1, -1, -1), align_corners=True)
    out |= {"sample.x": x, "sample.one": one, "sample.each": each,
            "sample.by_one": sample(one), "sample.by_each": sample(each)}
    small = torch.randn(2, 2, 4, 4)
    out["bicubic.x"] = small
    out["bicubic.y"] = F.interpolate(small, size=(32, 29), mode="bicubic", align_corners=True)
    for i, degrees in enumerate([-9.7, 3.3, 45.0, 90.0]):
        out[f"rotate{i}.degrees"] = torch.tensor(degrees, dtype=torch.float64)
        out[f"rotate{i}.y"] = rotated(x, degrees)
    # Few different values, so that windows hold equal ones.
    ties = torch.randint(0, 3, (2, 3, 9, 8)).float()
    out["pool.x"] = ties
    for name, f in {
        "max3": lambda t: F.max_pool2d(t, 3, 2, 1),
        "max2": lambda t: F.max_pool2d(t, 2),
        "average_down": lambda t: F.adaptive_avg_pool2d(t, (4, 3)),
        "average_up": lambda t: F.adaptive_avg_pool2d(t, (11, 13)),
        "bilinear": lambda t: F.interpolate(t, scale_factor=2, mode="bilinear", align_corners=False),
        "nearest": lambda t: F.interpolate(t, scale_factor=3, mode="nearest"),
    }.items():
        leaf = ties.clone().requires_grad_()
        y = f(leaf)
        dy = torch.randn_like(y)
        y.backward(dy)
        out |= {f"pool.{name}.y": y.detach(), f"pool.{name}.dy": dy, f"pool.{name}.dx": leaf.grad}
    return out


def main():
    names = sys.argv[1:] or [*NETWORKS, "operations"]
    for name in names:
        out = operations() if name == "operations" else network(name)
        target = pathlib.Path(__file__).with_name(f"{name}.safetensors")
        save_file({k: v.detach().contiguous().clone() for k, v in out.items()}, target, {"torch": torch.__version__})
        print(target, target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
