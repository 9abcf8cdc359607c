"""DeepLabv3+ in PyTorch, written from the specification sheet: what DeepLabV3Plus is compared with.

ASPP: 1x1, three atrous 3x3, image pooling, 1x1 projection, 256 channels each. Decoder: the features
at stride 4 through 1x1 to 48, the ASPP's output resized onto them, two 3x3 to 256, classifier,
resized to the image. Separable convolutions are depthwise 3x3, BatchNorm, ReLU, 1x1, BatchNorm,
ReLU. Corners are aligned in every resize.
"""

import collections

import torch
from torch import nn
from torch.nn import functional


def block(*convs):
    """Convolutions without bias, each with BatchNorm and ReLU."""
    layers = []
    for conv in convs:
        layers += [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()]
    return nn.Sequential(*layers)


def conv(channels, features, size, rate=1, groups=1):
    padding = rate * (size // 2)
    return nn.Conv2d(
        channels, features, size, padding=padding, dilation=rate, groups=groups, bias=False
    )


def conv3x3(channels, features, rate, separable):
    if separable:
        depthwise = conv(channels, channels, 3, rate, groups=channels)
        return block(depthwise, conv(channels, features, 1))
    return block(conv(channels, features, 3, rate))


class DeepLabV3PlusHead(nn.Module):
    """From features at stride 4 and at the output stride to logits of a given size."""

    def __init__(self, low_channels, channels, num_classes, rates, separable, features=256):
        super().__init__()
        self.branches = nn.ModuleDict(
            collections.OrderedDict(
                [("aspp0", block(conv(channels, features, 1)))]
                + [
                    (f"aspp{i}", conv3x3(channels, features, rate, separable))
                    for i, rate in enumerate(rates, 1)
                ]
            )
        )
        self.image_pooling = block(conv(channels, features, 1))
        self.project = block(conv(features * (len(rates) + 2), features, 1))
        self.low_level = block(conv(low_channels, 48, 1))
        self.decoder0 = conv3x3(features + 48, features, 1, separable)
        self.decoder1 = conv3x3(features, features, 1, separable)
        self.classifier = nn.Conv2d(features, num_classes, 1)

    def forward(self, low, high, size):
        def resize(x, size):
            return functional.interpolate(x, size, mode="bilinear", align_corners=True)

        outputs = [branch(high) for branch in self.branches.values()]
        pooled = self.image_pooling(high.mean((2, 3), keepdim=True))
        outputs.append(resize(pooled, high.shape[2:]))
        x = self.project(torch.cat(outputs, 1))
        low = self.low_level(low)
        x = torch.cat([resize(x, low.shape[2:]), low], 1)
        x = self.decoder1(self.decoder0(x))
        return resize(self.classifier(x), size)


def head_module_name(path: str, separable: bool) -> str:
    """The name here of a module of `DeepLabV3Plus`'s head."""
    *scope, leaf = path.split("/")
    if path == "classifier":
        return path
    if scope[0] == "aspp":
        scope = scope[1:]
    name = f"branches.{scope[0]}" if scope[0].startswith("aspp") else scope[0]
    index = {
        "conv": 0,
        "bn": 1,
        "depthwise_conv": 0,
        "depthwise_bn": 1,
        "pointwise_conv": 3,
        "pointwise_bn": 4,
    }[leaf]
    return f"{name}.{index}"
