"""LRR-4x on VGG16 in PyTorch, after the layer table of the released network (Ghiasi and Fowlkes,
2016), for images in red, green, blue.

Written to be compared with, not to be fast. What lies beyond the right and bottom border, where
sides are not multiples of 32, is cut off; the released network has only such sides.
"""

import torch
from torch import nn
from torch.nn import functional

SIZES = (2, 2, 3, 3, 3)
BASES = 10


class Reconstruction(nn.Module):
    """Coefficients by 5x5, then a transposed convolution with a group per class."""

    def __init__(self, inputs, classes, bias=False):
        super().__init__()
        self.coef = nn.Conv2d(inputs, BASES * classes, 5, padding=2)
        self.deconv = nn.ConvTranspose2d(
            BASES * classes, classes, 8, stride=4, padding=2, groups=classes, bias=bias
        )

    def forward(self, x):
        return self.deconv(self.coef(x))


def twice(scores):
    """The fixed bilinear deconvolution: 4x4, stride 2, crop 1, a group per class."""
    classes = scores.shape[1]
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    kernel = torch.outer(line, line).expand(classes, 1, 4, 4)
    return functional.conv_transpose2d(scores, kernel, stride=2, padding=1, groups=classes)


def boundary(scores, window):
    """Local maximum and local maximum of the negative, added."""
    probs = torch.softmax(scores, 1)
    pool = nn.MaxPool2d(window, 1, window // 2)
    return pool(probs) + pool(-probs)


class LRR(nn.Module):
    """`widths` are the channels of the five stages, `fc` those of fc6 and fc7."""

    def __init__(self, classes, widths=(64, 128, 256, 512, 512), fc=(4096, 4096), window=9):
        super().__init__()
        inputs, self.window = 3, window
        for stage, (width, size) in enumerate(zip(widths, SIZES, strict=True), 1):
            for index in range(1, size + 1):
                setattr(self, f"conv{stage}_{index}", nn.Conv2d(inputs, width, 3, padding=1))
                inputs = width
        self.fc6 = nn.Conv2d(inputs, fc[0], 7, padding=3)
        self.fc7 = nn.Conv2d(fc[0], fc[1], 1)
        self.level32 = Reconstruction(fc[1], classes)
        self.level16 = Reconstruction(widths[4], classes)
        self.level8 = Reconstruction(widths[3], classes)
        self.level4 = Reconstruction(widths[2], classes)
        self.dilation = Reconstruction(fc[1], classes, bias=True)
        self.erosion = Reconstruction(fc[1], classes, bias=True)

    def forward(self, image):
        """The scores of all levels and heads by name."""
        height, width = image.shape[2:]
        x, before_pool = image, {}
        for stage, size in enumerate(SIZES, 1):
            for index in range(1, size + 1):
                x = functional.relu(getattr(self, f"conv{stage}_{index}")(x))
            before_pool[stage] = x
            x = functional.max_pool2d(x, 2, 2, ceil_mode=True)
        x = functional.relu(self.fc7(functional.relu(self.fc6(x))))
        scores = self.level32(x)
        outputs = {
            "32x": (scores, 8),
            "dilation": (self.dilation(x), 8),
            "erosion": (self.erosion(x), 8),
        }
        for name, stage, stride in (("16", 5, 4), ("8", 4, 2), ("4", 3, 1)):
            residual = getattr(self, f"level{name}")(before_pool[stage])
            coarse = twice(scores)[:, :, : residual.shape[2], : residual.shape[3]]
            scores = coarse + boundary(coarse, self.window) * residual
            outputs[f"{name}x"] = scores, stride
        return {
            name: value[:, :, : -(-height // stride), : -(-width // stride)]
            for name, (value, stride) in outputs.items()
        }
