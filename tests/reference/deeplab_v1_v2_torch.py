"""DeepLab v1 and v2 in PyTorch, written from the specification sheet's layer tables: what
`DeepLabV1` and `DeepLabV2` are compared with.

Layers have the names of the released Caffe nets, BatchNorm being two layers, and read images of
blue, green, red. Widths are arguments, so that tests can be small. `canvas` is the released test:
pad with the mean (zero) to the right and below, forward, Interp x 8, crop.
"""

import torch
from torch import nn
from torch.nn import functional


def interp(x, size):
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


def zoom(x, factor):
    return interp(x, [factor * (n - 1) + 1 for n in x.shape[2:]])


def canvas(net, image, unit):
    height, width = image.shape[2:]
    below = [(unit - (n - 1) % unit) % unit for n in (height, width)]
    padded = functional.pad(image, (0, below[1], 0, below[0]))
    scores = net(padded)
    if scores.shape[2:] != padded.shape[2:]:
        scores = zoom(scores, 8)
    return scores[:, :, :height, :width]


class VGG(nn.Module):
    """Section 2's table up to pool5, and what follows: one fc6 or one for each rate of an ASPP."""

    def __init__(
        self,
        num_classes,
        widths=(64, 128, 256, 512, 512),
        fc=1024,
        kernel=3,
        rate=12,
        average_pool=True,
        aspp=(),
        msc=0,
    ):
        super().__init__()
        self.average_pool, self.aspp, self.msc = average_pool, aspp, msc
        channels = 3
        for stage, (width, convs) in enumerate(zip(widths, (2, 2, 3, 3, 3), strict=True), 1):
            rate5 = 2 if stage == 5 else 1
            for index in range(1, convs + 1):
                conv = nn.Conv2d(channels, width, 3, padding=rate5, dilation=rate5)
                self.add_module(f"conv{stage}_{index}", conv)
                channels = width
        for suffix, r in [(f"_{i}", r) for i, r in enumerate(aspp, 1)] or [("", rate)]:
            pad = r * (kernel - 1) // 2
            self.add_module(f"fc6{suffix}", nn.Conv2d(channels, fc, kernel, 1, pad, r))
            self.add_module(f"fc7{suffix}", nn.Conv2d(fc, fc, 1))
            self.add_module(f"fc8_voc12{suffix}", nn.Conv2d(fc, num_classes, 1))
        if msc:
            for name, width in zip(
                ("data", "pool1", "pool2", "pool3", "pool4"), (3, *widths), strict=False
            ):
                self.add_module(f"{name}_conv", nn.Conv2d(width, msc, 3, padding=1))
                self.add_module(f"{name}_fc", nn.Conv2d(msc, msc, 1))
                self.add_module(f"{name}_ms", nn.Conv2d(msc, num_classes, 1))

    def forward(self, image):
        x, inputs = image, {"data": image}
        for stage, convs in enumerate((2, 2, 3, 3, 3), 1):
            for index in range(1, convs + 1):
                x = getattr(self, f"conv{stage}_{index}")(x).relu()
            x = functional.max_pool2d(x, 3, 2 if stage < 4 else 1, 1, ceil_mode=True)
            inputs[f"pool{stage}"] = x
        if self.average_pool:
            x = functional.avg_pool2d(x, 3, 1, 1)
        total = 0
        for suffix in [f"_{i}" for i in range(1, len(self.aspp) + 1)] or [""]:
            y = getattr(self, f"fc6{suffix}")(x).relu()
            y = getattr(self, f"fc7{suffix}")(y).relu()
            total = total + getattr(self, f"fc8_voc12{suffix}")(y)
        return self.fuse(total, inputs) if self.msc else total

    def fuse(self, scores, inputs):
        """In training branches go to the grid of the scores, in evaluation all to the image."""
        strides = {"data": 8, "pool1": 4, "pool2": 2, "pool3": 1, "pool4": 1}
        zooms = {"data": 1, "pool1": 2, "pool2": 4, "pool3": 8, "pool4": 8}
        scores = scores if self.training else zoom(scores, 8)
        for name, stride in strides.items():
            conv = getattr(self, f"{name}_conv")
            stride = stride if self.training else 1
            y = functional.conv2d(inputs[name], conv.weight, conv.bias, stride, 1).relu()
            y = getattr(self, f"{name}_ms")(getattr(self, f"{name}_fc")(y).relu())
            scores = scores + (y if self.training else zoom(y, zooms[name]))
        return scores


class Scale(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class ResNet(nn.Module):
    """Section 3's table: a residual network with strides on 1x1 convolutions, and the ASPP."""

    def __init__(self, num_classes, units=(3, 4, 23, 3), rates=(6, 12, 18, 24), width=64):
        super().__init__()
        self.rates = rates
        self.conv("conv1", "_conv1", 3, width, 7, 2, 3)
        self.blocks = []
        channels = width
        for stage, count in enumerate(units, 2):
            inner = width * 2 ** (stage - 2)
            rate = {4: 2, 5: 4}.get(stage, 1)
            for unit in range(count):
                numbered = stage in (3, 4) and units[2] > 6 and unit
                place = f"{stage}{f'b{unit}' if numbered else 'abcdefgh'[unit]}"
                stride = 2 if stage == 3 and unit == 0 else 1
                if unit == 0:
                    self.add(place, "1", channels, 4 * inner, 1, stride)
                self.add(place, "2a", channels, inner, 1, stride)
                self.add(place, "2b", inner, inner, 3, 1, rate, rate)
                self.add(place, "2c", inner, 4 * inner, 1)
                channels = 4 * inner
                self.blocks.append((place, unit == 0))
        for branch, rate in enumerate(rates):
            conv = nn.Conv2d(channels, num_classes, 3, padding=rate, dilation=rate)
            self.add_module(self.head(branch), conv)

    def head(self, branch):
        return f"fc1_voc12_c{branch}" if len(self.rates) > 1 else "fc1_voc12"

    def conv(self, name, norm, channels, features, size, stride=1, padding=0, rate=1):
        conv = nn.Conv2d(channels, features, size, stride, padding, rate, bias=False)
        self.add_module(name, conv)
        self.add_module(f"bn{norm}", nn.BatchNorm2d(features, eps=1e-5, affine=False))
        self.add_module(f"scale{norm}", Scale(features))

    def add(self, place, branch, *sizes):
        self.conv(f"res{place}_branch{branch}", f"{place}_branch{branch}", *sizes)

    def run(self, name, norm, x):
        return getattr(self, f"scale{norm}")(getattr(self, f"bn{norm}")(getattr(self, name)(x)))

    def forward(self, image):
        x = self.run("conv1", "_conv1", image).relu()
        x = functional.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        for place, projected in self.blocks:

            def branch(name, x, place=place):
                return self.run(f"res{place}_branch{name}", f"{place}_branch{name}", x)

            shortcut = branch("1", x) if projected else x
            y = branch("2c", branch("2b", branch("2a", x).relu()).relu())
            x = (y + shortcut).relu()
        return sum(getattr(self, self.head(branch))(x) for branch in range(len(self.rates)))


def multi_scale(net, image):
    """The four outputs that have a loss: fused, and at scales 1, 0.75 and 0.5."""
    n, m = image.shape[2:]
    whole = net(image)
    three_quarters = net(interp(image, ((n - 1) // 4 * 3 + 1, (m - 1) // 4 * 3 + 1)))
    half = net(interp(image, ((n - 1) // 2 + 1, (m - 1) // 2 + 1)))
    size = whole.shape[2:]
    three_quarters = interp(three_quarters, size)
    fused = torch.stack([whole, three_quarters, interp(half, size)]).max(0)[0]
    return {"fused": fused, "scale100": whole, "scale75": three_quarters, "scale50": half}
