"""U-Net in PyTorch, after figure 1 of Ronneberger et al. (2015), with the names of this project's
parts: 3x3 convolutions in pairs, 2x2 pools, 2x2 up-convolutions, a crop of the skip where nothing
is padded."""

import torch
from torch import nn
from torch.nn import functional


class Pair(nn.Module):
    def __init__(self, inputs, outputs, padding):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=padding)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=padding)

    def forward(self, x):
        return functional.relu(self.conv2(functional.relu(self.conv1(x))))


class UNet(nn.Module):
    """`padding` is 0, the paper's, or 1."""

    def __init__(self, widths, classes, padding):
        super().__init__()
        self.down = nn.ModuleList()
        inputs = 3
        for width in widths:
            self.down.append(Pair(inputs, width, padding))
            inputs = width
        self.up = nn.ModuleList()
        self.pairs = nn.ModuleList()
        for width in widths[-2::-1]:
            self.up.append(nn.ConvTranspose2d(inputs, width, 2, stride=2))
            self.pairs.append(Pair(2 * width, width, padding))
            inputs = width
        self.classifier = nn.Conv2d(inputs, classes, 1)

    def forward(self, x):
        skips = []
        for index, pair in enumerate(self.down):
            x = pair(functional.max_pool2d(x, 2) if index else x)
            skips.append(x)
        skips.pop()
        for up, pair in zip(self.up, self.pairs, strict=True):
            x, skip = up(x), skips.pop()
            top, left = (skip.shape[2] - x.shape[2]) // 2, (skip.shape[3] - x.shape[3]) // 2
            skip = skip[:, :, top : top + x.shape[2], left : left + x.shape[3]]
            x = pair(torch.cat([skip, x], 1))
        return self.classifier(x)


def module_name(path):
    """The name here of a module of flaxseg's `UNet` on its own encoder."""
    if path == "classifier":
        return path
    part, *rest = path.split("/")
    if part == "backbone":
        return f"down.{int(rest[0][-1]) - 1}.{rest[1]}"
    number = 4 - int(part[-1])
    return f"up.{number}" if part.startswith("up") else f"pairs.{number}.{rest[0]}"
