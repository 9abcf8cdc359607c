"""FCN in PyTorch, after the tables of Long et al. (2015), Shelhamer et al. (2017) and the released
nets: layer by layer, with the names of the Caffe layers.

Written to be compared with, not to be fast: every deconvolution is a dense transposed convolution.
"""

import torch
from torch import nn
from torch.nn import functional

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


def bilinear(size, channels):
    """The released surgery: `[channels, channels, size, size]`, bilinear on the diagonal."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 == 1 else factor - 0.5
    line = 1 - (torch.arange(size) - centre).abs() / factor
    weight = torch.zeros(channels, channels, size, size)
    for channel in range(channels):
        weight[channel, channel] = torch.outer(line, line)
    return weight


def upsample(layers, name, x, size, stride):
    weight = layers[name].weight if name in layers else bilinear(size, x.shape[1])
    return functional.conv_transpose2d(x, weight, stride=stride)


class FCN(nn.Module):
    """`variant` is 32s, 16s, 8s or at-once; `fc` the channels of fc6 and fc7, 4096 in the paper.

    `learned` are names of deconvolutions that have weights: upscore (32s), upscore2, upscore16,
    upscore_pool4, upscore8.
    """

    def __init__(self, variant, classes, fc=4096, learned=(), inputs=3):
        super().__init__()
        self.variant = variant
        for stage, (width, size) in enumerate(STAGES, 1):
            for index in range(1, size + 1):
                padding = 100 if (stage, index) == (1, 1) else 1
                conv = nn.Conv2d(inputs, width, 3, padding=padding)
                setattr(self, f"conv{stage}_{index}", conv)
                inputs = width
        self.fc6 = nn.Conv2d(512, fc, 7)
        self.fc7 = nn.Conv2d(fc, fc, 1)
        self.score_fr = nn.Conv2d(fc, classes, 1)
        if variant != "32s":
            self.score_pool4 = nn.Conv2d(512, classes, 1)
        if variant in ("8s", "at-once"):
            self.score_pool3 = nn.Conv2d(256, classes, 1)
        for name in learned:
            size = {"upscore": 64, "upscore16": 32, "upscore8": 16}.get(name, 4)
            setattr(self, name, nn.ConvTranspose2d(classes, classes, size, bias=False))

    def forward(self, image):
        height, width = image.shape[2:]
        x, pools = image, {}
        for stage, (_, size) in enumerate(STAGES, 1):
            for index in range(1, size + 1):
                x = functional.relu(getattr(self, f"conv{stage}_{index}")(x))
            x = functional.max_pool2d(x, 2, 2, ceil_mode=True)
            pools[stage] = x
        x = functional.relu(self.fc6(x))
        x = functional.relu(self.fc7(x))
        x = self.score_fr(x)
        layers = self._modules
        if self.variant == "32s":
            x = upsample(layers, "upscore", x, 64, 32)
            return x[:, :, 19 : 19 + height, 19 : 19 + width]
        factors = (0.01, 0.0001) if self.variant == "at-once" else (1, 1)
        x = upsample(layers, "upscore2", x, 4, 2)
        pool4 = self.score_pool4(pools[4] * factors[0])
        x = x + pool4[:, :, 5 : 5 + x.shape[2], 5 : 5 + x.shape[3]]
        if self.variant == "16s":
            x = upsample(layers, "upscore16", x, 32, 16)
            return x[:, :, 27 : 27 + height, 27 : 27 + width]
        x = upsample(layers, "upscore_pool4", x, 4, 2)
        pool3 = self.score_pool3(pools[3] * factors[1])
        x = x + pool3[:, :, 9 : 9 + x.shape[2], 9 : 9 + x.shape[3]]
        x = upsample(layers, "upscore8", x, 16, 8)
        return x[:, :, 31 : 31 + height, 31 : 31 + width]


class FCNAlexNet(nn.Module):
    """Caffe's reference net: convolution, ReLU, pool, normalisation."""

    def __init__(self, classes, fc=4096):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 11, 4, padding=100)
        self.conv2 = nn.Conv2d(96, 256, 5, padding=2, groups=2)
        self.conv3 = nn.Conv2d(256, 384, 3, padding=1)
        self.conv4 = nn.Conv2d(384, 384, 3, padding=1, groups=2)
        self.conv5 = nn.Conv2d(384, 256, 3, padding=1, groups=2)
        self.fc6 = nn.Conv2d(256, fc, 6)
        self.fc7 = nn.Conv2d(fc, fc, 1)
        self.score_fr = nn.Conv2d(fc, classes, 1)

    def forward(self, image):
        height, width = image.shape[2:]
        x = image
        for conv in (self.conv1, self.conv2):
            x = functional.max_pool2d(functional.relu(conv(x)), 3, 2, ceil_mode=True)
            x = functional.local_response_norm(x, 5, alpha=1e-4, beta=0.75, k=1.0)
        for conv in (self.conv3, self.conv4, self.conv5):
            x = functional.relu(conv(x))
        x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
        x = functional.relu(self.fc7(functional.relu(self.fc6(x))))
        x = upsample({}, "upscore", self.score_fr(x), 63, 32)
        return x[:, :, 18 : 18 + height, 18 : 18 + width]
