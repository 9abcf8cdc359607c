"""DFN in PyTorch, written from the specification sheet: what `DFN` is compared with.

Modules are named as in the first author's code (TorchSeg), so that the `state_dict` has the
published names. Images must be multiples of 32 a side.
"""

import torch
from torch import nn
from torch.nn import functional

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Cbr(nn.Module):
    def __init__(self, channels, features, size):
        super().__init__()
        self.conv = nn.Conv2d(channels, features, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(features)

    def forward(self, x):
        return functional.relu(self.bn(self.conv(x)))


class RRB(nn.Module):
    """x = conv1x1; ReLU(x + conv3x3(ReLU(BN(conv3x3(x)))))."""

    def __init__(self, channels, features, has_relu=True):
        super().__init__()
        self.conv_1x1 = nn.Conv2d(channels, features, 1, bias=False)
        self.cbr = Cbr(features, features, 3)
        self.conv_refine = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.has_relu = has_relu

    def forward(self, x):
        x = self.conv_1x1(x)
        x = x + self.conv_refine(self.cbr(x))
        return functional.relu(x) if self.has_relu else x


class Squeeze(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(2 * features, features),
            nn.ReLU(),
            nn.Linear(features, features),
            nn.Sigmoid(),
        )


class CAB(nn.Module):
    """low * sigmoid(...) + high."""

    def __init__(self, features):
        super().__init__()
        self.channel_attention = Squeeze(features)

    def forward(self, low, high):
        mean = torch.cat([low, high], 1).mean((2, 3))
        a = self.channel_attention.fc(mean)
        return low * a[:, :, None, None] + high


class Head(nn.Module):
    def __init__(self, channels, classes, scale):
        super().__init__()
        self.rrb = RRB(channels, 9 * classes, has_relu=False)
        self.conv = nn.Conv2d(9 * classes, classes, 1)
        self.scale = scale

    def forward(self, x):
        """At the size of the input, then at full size."""
        x = self.conv(self.rrb(x))
        return x, up(x, self.scale)


def up(x, scale):
    return functional.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=True)


class Bottleneck(nn.Module):
    def __init__(self, channels, planes, stride, project):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * planes, 1, stride, bias=False),
                nn.BatchNorm2d(4 * planes),
            )

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """v1c: three 3x3 convolutions of 64, 64, 128 channels, each with BN and ReLU."""

    def __init__(self, units):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, 1, 1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 128, 3, 1, 1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(128)
        channels = 128
        for stage, count in enumerate(units, 1):
            planes, blocks = 32 * 2**stage, []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(Bottleneck(channels, planes, stride, index == 0))
                channels = 4 * planes
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        outputs = []
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            outputs.append(x)
        return outputs


class DFN(nn.Module):
    def __init__(self, classes, units=UNITS[101]):
        super().__init__()
        self.backbone = ResNet(units)
        self.global_context = nn.Sequential(nn.AdaptiveAvgPool2d(1), Cbr(2048, 512, 1))
        deep = (2048, 1024, 512, 256)
        self.smooth_pre_rrbs = nn.ModuleList(RRB(c, 512) for c in deep)
        self.cabs = nn.ModuleList(CAB(512) for _ in deep)
        self.smooth_aft_rrbs = nn.ModuleList(RRB(512, 512) for _ in deep)
        self.smooth_heads = nn.ModuleList(Head(512, classes, s) for s in (32, 16, 8, 4))
        self.border_pre_rrbs = nn.ModuleList(RRB(c, 21) for c in reversed(deep))
        self.border_aft_rrbs = nn.ModuleList(RRB(21, 21) for _ in deep)  # the first is idle
        self.border_heads = nn.ModuleList(Head(21, 1, 4) for _ in deep)

    def forward(self, image):
        """`(at own size, at full size)` of each smooth head, coarse to fine, and of each border
        head, fine to coarse."""
        f2, f3, f4, f5 = self.backbone(image)
        context = self.global_context(f5)
        last = context.expand(-1, -1, *f5.shape[2:])
        smooth, borders = [], []
        for i, feature in enumerate((f5, f4, f3, f2)):
            x = self.cabs[i](self.smooth_pre_rrbs[i](feature), last)
            x = self.smooth_aft_rrbs[i](x)
            smooth.append(self.smooth_heads[i](x))
            last = up(x, 2)
        x = None
        for i, feature in enumerate((f2, f3, f4, f5)):
            here = self.border_pre_rrbs[i](feature)
            x = here if x is None else self.border_aft_rrbs[i](up(here, 2**i) + x)
            borders.append(self.border_heads[i](x))
        return smooth, borders
