"""RefineNet and Light-Weight RefineNet in PyTorch, written from the specification sheet: what
`RefineNet` and `RefineNetLW` are compared with.

Names are those of the public PyTorch checkpoints. The sheet counts encoder paths from coarse to
fine: path 1 is layer4; a second scale has paths 5 to 8 and an encoder of its own, `second`. The
groups say which block fuses a path. Logits are at a quarter of the (scaled) image.
"""

import torch
from torch import nn
from torch.nn import functional

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Bottleneck(nn.Module):
    def __init__(self, channels, inner, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        if stride > 1 or channels != 4 * inner:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner)
            )

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        return torch.relu(y + shortcut)


class ResNet(nn.Module):
    def __init__(self, units, base=64):
        super().__init__()
        self.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        channels = base
        for stage, count in enumerate(units):
            inner = base * 2**stage
            blocks = []
            for index in range(count):
                blocks.append(Bottleneck(channels, inner, 2 if stage and not index else 1))
                channels = 4 * inner
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def taps(self, x):
        """l4, l3, l2, l1."""
        x = functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        found = []
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            found.insert(0, x)
        return found


class Pooling(nn.Module):
    """Chained residual pooling, without the ReLU before it."""

    def __init__(self, channels, kernel, blocks=4, pool_first=True):
        super().__init__()
        self.blocks, self.pool_first = blocks, pool_first
        for i in range(1, blocks + 1):
            conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
            self.add_module(f"{i}_outvar_dimred", conv)

    def forward(self, x):
        p, total = x, x
        for i in range(1, self.blocks + 1):
            conv = getattr(self, f"{i}_outvar_dimred")
            if self.pool_first:
                p = conv(functional.max_pool2d(p, 5, 1, 2))
            else:
                p = functional.max_pool2d(conv(p), 5, 1, 2)
            total = total + p
        return total


class ResidualUnits(nn.Module):
    def __init__(self, channels, count):
        super().__init__()
        self.count = count
        for i in range(1, count + 1):
            self.add_module(f"{i}_conv", nn.Conv2d(channels, channels, 3, padding=1))
            self.add_module(
                f"{i}_conv_relu_varout_dimred",
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            )

    def forward(self, x):
        for i in range(1, self.count + 1):
            y = getattr(self, f"{i}_conv")(torch.relu(x))
            x = x + getattr(self, f"{i}_conv_relu_varout_dimred")(torch.relu(y))
        return x


def upsample(x, size):
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


class RefineNet(ResNet):
    def __init__(
        self,
        num_classes,
        units=UNITS[101],
        groups=(1, 2, 3, 4),
        *,
        base=64,
        features=256,
        pooling=4,
        pool_first=True,
    ):
        super().__init__(units, base)
        self.groups = groups
        if len(groups) == 8:
            self.second = ResNet(units, base)
        width = {}  # of each path
        for path, _ in enumerate(groups, 1):
            level = (path - 1) % 4  # 0 is layer4
            width[path] = 2 * features if level == 0 else features
            self._conv(f"p_ims1d2_outl{path}_dimred", base * 32 // 2**level, width[path])
            units_of_path = ResidualUnits(width[path], 2)
            self.add_module(f"adapt_stage{path}_b", nn.Sequential(units_of_path))
        coarse = 0
        for group in range(1, max(groups) + 1):
            members = [path for path, g in enumerate(groups, 1) if g == group]
            channels = min(width[path] for path in members)
            if len(members) > 1 or group > 1:
                for path in members:
                    name = f"adapt_stage{path}_b2_joint_varout_dimred"
                    self._conv(name, width[path], channels)
            if group > 1:
                self._conv(f"mflow_conv_g{group - 1}_b3_joint_varout_dimred", coarse, channels)
            pool = Pooling(channels, 3, pooling, pool_first)
            self.add_module(f"mflow_conv_g{group}_pool", nn.Sequential(pool))
            self.add_module(f"mflow_conv_g{group}_b", nn.Sequential(ResidualUnits(channels, 3)))
            coarse = channels
        self.clf_conv = nn.Conv2d(coarse, num_classes, 3, padding=1)

    def _conv(self, name, channels, features):
        self.add_module(name, nn.Conv2d(channels, features, 3, padding=1, bias=False))

    def forward(self, image, small=None):
        """Logits; `small` is the image at the second scale."""
        taps = self.taps(image)
        if small is not None:
            taps += self.second.taps(small)
        x = None
        for group in range(1, max(self.groups) + 1):
            inputs = []
            for path, tap in enumerate(taps, 1):
                if self.groups[path - 1] != group:
                    continue
                y = getattr(self, f"p_ims1d2_outl{path}_dimred")(tap)
                y = getattr(self, f"adapt_stage{path}_b")(y)
                fusion = f"adapt_stage{path}_b2_joint_varout_dimred"
                inputs.append(getattr(self, fusion)(y) if hasattr(self, fusion) else y)
            if x is not None:
                inputs.append(getattr(self, f"mflow_conv_g{group - 1}_b3_joint_varout_dimred")(x))
            size = [max(y.shape[axis] for y in inputs) for axis in (2, 3)]
            x = torch.relu(sum(upsample(y, size) for y in inputs))
            x = getattr(self, f"mflow_conv_g{group}_pool")(x)
            x = getattr(self, f"mflow_conv_g{group}_b")(x)
        return self.clf_conv(x)


class LightWeight(ResNet):
    def __init__(self, num_classes, units=UNITS[50], *, base=64, features=256):
        super().__init__(units, base)
        width = {1: 2 * features, 2: features, 3: features, 4: features}
        for path in range(1, 5):
            self._conv(f"p_ims1d2_outl{path}_dimred", base * 64 // 2**path, width[path])
            if path > 1:
                self._conv(f"adapt_stage{path}_b2_joint_varout_dimred", features, features)
            self.add_module(f"mflow_conv_g{path}_pool", nn.Sequential(Pooling(width[path], 1)))
            if path < 4:
                self._conv(f"mflow_conv_g{path}_b3_joint_varout_dimred", width[path], features)
        self.clf_conv = nn.Conv2d(features, num_classes, 3, padding=1)

    def _conv(self, name, channels, features):
        self.add_module(name, nn.Conv2d(channels, features, 1, bias=False))

    def forward(self, image):
        taps = self.taps(image)
        x = None
        for path, tap in enumerate(taps, 1):
            y = getattr(self, f"p_ims1d2_outl{path}_dimred")(tap)
            if path > 1:
                y = getattr(self, f"adapt_stage{path}_b2_joint_varout_dimred")(y)
                y = y + upsample(x, y.shape[2:])
            x = getattr(self, f"mflow_conv_g{path}_pool")(torch.relu(y))
            if path < 4:
                x = getattr(self, f"mflow_conv_g{path}_b3_joint_varout_dimred")(x)
        return self.clf_conv(x)


def conv_bn(channels, features, size, stride=1, groups=1, act=True):
    layers = [
        nn.Conv2d(channels, features, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(features),
    ]
    return nn.Sequential(*layers, *([nn.ReLU6()] if act else []))


class InvertedResidual(nn.Module):
    def __init__(self, channels, features, expansion, stride):
        super().__init__()
        inner = channels * expansion
        self.shortcut = stride == 1 and channels == features
        self.output = nn.Sequential(
            conv_bn(channels, inner, 1),
            conv_bn(inner, inner, 3, stride, inner),
            conv_bn(inner, features, 1, act=False),
        )

    def forward(self, x):
        return x + self.output(x) if self.shortcut else self.output(x)


class LightWeightMobile(nn.Module):
    # Expansion, channels, blocks, stride of layer2 to layer8.
    STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, num_classes):
        super().__init__()
        self.layer1 = conv_bn(3, 32, 3, 2)
        channels = 32
        for number, (expansion, features, count, stride) in enumerate(self.STAGES, 2):
            blocks = []
            for index in range(count):
                step = stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, features, expansion, step))
                channels = features
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        for number, (_, features, _, _) in list(enumerate(self.STAGES, 2))[1:]:
            setattr(self, f"conv{number}", nn.Conv2d(features, 256, 1, bias=False))
        for number in range(1, 5):
            setattr(self, f"crp{number}", nn.Sequential(Pooling(256, 1)))
        for number in (2, 3, 4):
            setattr(self, f"conv_adapt{number}", nn.Conv2d(256, 256, 1, bias=False))
        self.segm = nn.Conv2d(256, num_classes, 3, padding=1)

    def forward(self, x):
        taps = {}
        for number in range(1, 9):
            x = getattr(self, f"layer{number}")(x)
            taps[number] = x
        reduced = {n: getattr(self, f"conv{n}")(taps[n]) for n in range(3, 9)}
        x = self.crp4(functional.relu6(reduced[8] + reduced[7]))
        x = upsample(self.conv_adapt4(x), taps[6].shape[2:])
        x = self.crp3(functional.relu6(reduced[5] + reduced[6] + x))
        x = upsample(self.conv_adapt3(x), taps[4].shape[2:])
        x = self.crp2(functional.relu6(reduced[4] + x))
        x = upsample(self.conv_adapt2(x), taps[3].shape[2:])
        x = self.crp1(functional.relu6(reduced[3] + x))
        return self.segm(x)
