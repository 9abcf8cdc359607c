"""PSPNet in PyTorch, written from the layer table of the specification sheet: what PSPNet is
compared with.

Modules are named as in the author's code (semseg), so that its `state_dict` has the published
names; `mmsegmentation_name` and `caffe_name` translate them to those of the other two releases.
Arguments are the differences that the sheet lists between the releases.
"""

import re

import torch
from torch import nn
from torch.nn import functional

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def conv_bn_relu(channels, features, size, stride=1):
    return [
        nn.Conv2d(channels, features, size, stride, padding=size // 2, bias=False),
        nn.BatchNorm2d(features),
        nn.ReLU(),
    ]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times the channels; projected where a stage begins."""

    def __init__(self, channels, features, stride, rate, stride_on_1x1, project):
        super().__init__()
        strides = (stride, 1) if stride_on_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(channels, features, 1, strides[0], bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(
            features, features, 3, strides[1], padding=rate, dilation=rate, bias=False
        )
        self.bn2 = nn.BatchNorm2d(features)
        self.conv3 = nn.Conv2d(features, 4 * features, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * features)
        self.downsample = None
        if project:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * features, 1, stride, bias=False),
                nn.BatchNorm2d(4 * features),
            )

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class PyramidPooling(nn.Module):
    """Pool, 1x1 convolution, upsampling for each of the bins; concatenated after the input.

    `windows` are sides of Caffe's pooling windows; Caffe rounds the number of windows up.
    """

    def __init__(self, channels, bins, windows, order, pool, align_corners):
        super().__init__()
        kind = {"average": nn.AdaptiveAvgPool2d, "max": nn.AdaptiveMaxPool2d}[pool]
        features = channels // len(bins)
        self.features = nn.ModuleList(
            nn.Sequential(
                kind(number)
                if windows is None
                else nn.AvgPool2d(windows[index], windows[index], ceil_mode=True),
                *conv_bn_relu(channels, features, 1),
            )
            for index, number in enumerate(bins)
        )
        self.order, self.align_corners = order, align_corners

    def forward(self, x):
        def resize(y):
            return functional.interpolate(
                y, x.shape[2:], mode="bilinear", align_corners=self.align_corners
            )

        scales = [resize(branch(x)) for branch in self.features]
        return torch.cat([x, *(scales[i] for i in self.order)], 1)


class PSPNet(nn.Module):
    """The network of the sheet; the defaults are semseg's."""

    def __init__(
        self,
        num_classes,
        units=UNITS[50],
        *,
        stem=(64, 64, 128),
        dilate_first_unit=True,
        stride_on_1x1=False,
        bins=(1, 2, 3, 6),
        windows=None,
        order=(0, 1, 2, 3),
        pool="average",
        align_corners=True,
        auxiliary=True,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.layer0 = nn.Sequential(
            *conv_bn_relu(3, stem[0], 3, 2),
            *conv_bn_relu(stem[0], stem[1], 3),
            *conv_bn_relu(stem[1], stem[2], 3),
            nn.MaxPool2d(3, 2, 1),
        )
        channels, before = stem[2], 1
        for stage, (count, stride, rate) in enumerate(
            zip(units, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), 1
        ):
            features, blocks = 32 * 2**stage, []
            for index in range(count):
                unit_rate = rate if dilate_first_unit or index else before
                first = index == 0
                blocks.append(
                    Bottleneck(
                        channels, features, stride if first else 1, unit_rate, stride_on_1x1, first
                    )
                )
                channels = 4 * features
            before = rate
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.ppm = PyramidPooling(channels, bins, windows, order, pool, align_corners)

        def head(channels, features):
            return nn.Sequential(
                *conv_bn_relu(channels, features, 3),
                nn.Dropout2d(0.1),
                nn.Conv2d(features, num_classes, 1),
            )

        self.cls = head(2 * channels, 512)
        if auxiliary:
            self.aux = head(channels // 2, 256)

    def forward(self, image):
        """Returns logits at the size of the image, and auxiliary ones at stride 8 or None."""
        x = self.layer2(self.layer1(self.layer0(image)))
        c4 = self.layer3(x)
        logits = self.cls(self.ppm(self.layer4(c4)))
        logits = functional.interpolate(
            logits, image.shape[2:], mode="bilinear", align_corners=self.align_corners
        )
        return logits, self.aux(c4) if hasattr(self, "aux") else None


def mmsegmentation_name(name: str) -> str:
    """mmsegmentation's name of a tensor of the class above."""
    for pattern, replacement in (
        (r"layer0\.(\d)", r"backbone.stem.\1"),
        (r"layer(\d)\.", r"backbone.layer\1."),
        (r"ppm\.features\.(\d)\.1", r"decode_head.psp_modules.\1.1.conv"),
        (r"ppm\.features\.(\d)\.2", r"decode_head.psp_modules.\1.1.bn"),
        (r"cls\.0", "decode_head.bottleneck.conv"),
        (r"cls\.1", "decode_head.bottleneck.bn"),
        (r"cls\.4", "decode_head.conv_seg"),
        (r"aux\.0", "auxiliary_head.convs.0.conv"),
        (r"aux\.1", "auxiliary_head.convs.0.bn"),
        (r"aux\.4", "auxiliary_head.conv_seg"),
    ):
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    raise KeyError(name)


def caffe_name(name: str) -> str:
    """The name of a tensor of the class above in the Caffe release, where a layer's blobs are
    `<layer>.weight` and `.bias`, and those of its BN layer `<layer>/bn.slope`, `.bias`, `.mean`
    and `.variance`."""
    module, leaf = name.rsplit(".", 1)
    stem = ("conv1_1_3x3_s2", "conv1_2_3x3", "conv1_3_3x3")
    parts = ("1x1_reduce", "3x3", "1x1_increase")
    if match := re.fullmatch(r"layer0\.(\d)", module):
        layer, is_bn = stem[int(match[1]) // 3], int(match[1]) % 3 == 1
    elif match := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)", module):
        layer = f"conv{int(match[1]) + 1}_{int(match[2]) + 1}_{parts[int(match[4]) - 1]}"
        is_bn = match[3] == "bn"
    elif match := re.fullmatch(r"layer(\d)\.0\.downsample\.(\d)", module):
        layer, is_bn = f"conv{int(match[1]) + 1}_1_1x1_proj", match[2] == "1"
    elif match := re.fullmatch(r"ppm\.features\.(\d)\.(\d)", module):
        layer, is_bn = f"conv5_3_pool{(1, 2, 3, 6)[int(match[1])]}_conv", match[2] == "2"
    else:
        layer, is_bn = {
            "cls.0": ("conv5_4", False),
            "cls.1": ("conv5_4", True),
            "cls.4": ("conv6", False),
        }[module]
    if not is_bn:
        return f"{layer}.{leaf}"
    blob = {"weight": "slope", "bias": "bias", "running_mean": "mean", "running_var": "variance"}
    return f"{layer}/bn.{blob[leaf]}"
