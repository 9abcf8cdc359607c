"""Dilated-Net in PyTorch, after the layer tables of Yu and Koltun (2016) and of the release, with
the names of its Caffe layers. It takes an image with its margin of 186 pixels."""

import torch
from torch import nn
from torch.nn import functional

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class DilatedNet(nn.Module):
    """`dilations` are those of the context module; `prefix` is ct_ (channels grow, 33 cells of
    padding at its first layer) or ctx_ (each layer pads by its dilation)."""

    def __init__(self, classes, dilations=(), prefix="ctx_", fc=4096, divisor=1):
        super().__init__()
        self.dilations, self.prefix = dilations, prefix
        self.last = "fc-final" if prefix == "ct_" else "final"
        inputs = 3
        for stage, (width, size) in enumerate(STAGES, 1):
            rate = 2 if stage == 5 else 1
            for index in range(1, size + 1):
                conv = nn.Conv2d(inputs, width // divisor, 3, dilation=rate)
                self.add_module(f"conv{stage}_{index}", conv)
                inputs = width // divisor
        self.fc6 = nn.Conv2d(inputs, fc, 7, dilation=4)
        self.fc7 = nn.Conv2d(fc, fc, 1)
        self.add_module(self.last, nn.Conv2d(fc, classes, 1))
        self.context = []
        multiples = {1: 2, 2: 4, 4: 8, 8: 16, 16: 32}
        inputs = classes
        for index, dilation in enumerate(dilations):
            last = index == len(dilations) - 1
            name = "fc1" if last else f"conv{max(index, 1)}_{2 if index == 1 else 1}"
            outputs = inputs if last else classes * multiples.get(dilation, 1)
            outputs = outputs if prefix == "ct_" else classes
            padding = dilation if prefix == "ctx_" else 33 if index == 0 else 0
            conv = nn.Conv2d(inputs, outputs, 3, dilation=dilation, padding=padding)
            self.add_module(f"{prefix}{name}", conv)
            self.context.append(f"{prefix}{name}")
            inputs = outputs
        if dilations:
            self.add_module(f"{prefix}final", nn.Conv2d(inputs, classes, 1))

    def forward(self, x):
        layers = self._modules
        for stage, (_, size) in enumerate(STAGES, 1):
            for index in range(1, size + 1):
                x = functional.relu(layers[f"conv{stage}_{index}"](x))
            if stage <= 3:
                x = functional.max_pool2d(x, 2, 2)
        x = functional.relu(self.fc7(functional.relu(self.fc6(x))))
        x = layers[self.last](x)
        for name in self.context:
            x = functional.relu(layers[name](x))
        return layers[f"{self.prefix}final"](x) if self.context else x


def upsample_in_the_net(x):
    """Dilation10's last layer: a fixed bilinear deconvolution for each channel."""
    line = 1 - (torch.arange(16) - 7.5).abs() / 8
    kernel = torch.outer(line, line).expand(x.shape[1], 1, 16, 16)
    return functional.conv_transpose2d(x, kernel, stride=8, padding=4, groups=x.shape[1])
