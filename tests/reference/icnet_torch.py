"""ICNet in PyTorch, written from the specification sheet: what `ICNet` is compared with.

Every layer has the name that it has in the released network definition. Convolutions are bias-free
and have a BatchNorm, `<name>_bn` here; only conv6_cls has a bias. Channels are those of the
released network (`width` 0.5) or multiples of them. Images must be 32 k + 1 pixels a side.
"""

import torch
from torch import nn
from torch.nn import functional


def shrink(x, factor):
    size = [(n - 1) // factor + 1 for n in x.shape[2:]]
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


def zoom(x, factor):
    size = [n + (n - 1) * (factor - 1) for n in x.shape[2:]]
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


# (kernel, stride) of the four average pools at 33 x 65, the size of the release.
RELEASED_POOLS = [
    ((33, 65), (33, 65)),
    ((17, 33), (16, 32)),
    ((13, 25), (10, 20)),
    ((8, 15), (5, 10)),
]


def pyramid(x, adaptive=False):
    """x + up(pool1) + up(pool2) + up(pool3) + up(pool6)."""
    size = tuple(x.shape[2:])
    total = x
    for index, bins in enumerate((1, 2, 3, 6)):
        if adaptive:
            pooled = functional.adaptive_avg_pool2d(x, bins)
        elif size == (33, 65):
            pooled = functional.avg_pool2d(x, *RELEASED_POOLS[index])
        else:
            # A stride of n // bins, and the window that then ends at the border.
            stride = [max(n // bins, 1) for n in size]
            kernel = [max(n - (bins - 1) * s, 1) for n, s in zip(size, stride, strict=True)]
            pooled = functional.avg_pool2d(x, kernel, stride)
        total = total + functional.interpolate(pooled, size, mode="bilinear", align_corners=True)
    return total


class ICNet(nn.Module):
    def __init__(self, num_classes, width=0.5):
        super().__init__()

        def conv(name, channels, features, size, stride=1, rate=1):
            channels = channels if channels == 3 else int(channels * width * 2)
            features = int(features * width * 2)
            padding = rate if size == 3 else 0
            self.add_module(
                name, nn.Conv2d(channels, features, size, stride, padding, rate, bias=False)
            )
            self.add_module(f"{name}_bn", nn.BatchNorm2d(features))

        conv("conv1_1_3x3_s2", 3, 32, 3, 2)
        conv("conv1_2_3x3", 32, 32, 3)
        conv("conv1_3_3x3", 32, 64, 3)
        channels = 64
        for stage, units, inner, rate in (
            (2, 3, 32, 1),
            (3, 4, 64, 1),
            (4, 6, 128, 2),
            (5, 3, 256, 4),
        ):
            for unit in range(1, units + 1):
                name = f"conv{stage}_{unit}"
                stride = 2 if name == "conv3_1" else 1
                if unit == 1:
                    conv(f"{name}_1x1_proj", channels, 4 * inner, 1, stride)
                conv(f"{name}_1x1_reduce", channels, inner, 1, stride)
                conv(f"{name}_3x3", inner, inner, 3, 1, rate)
                conv(f"{name}_1x1_increase", inner, 4 * inner, 1)
                channels = 4 * inner
        conv("conv5_4_k1", 1024, 256, 1)
        conv("conv_sub4", 256, 128, 3, 1, 2)
        conv("conv3_1_sub2_proj", 256, 128, 1)
        conv("conv_sub2", 128, 128, 3, 1, 2)
        conv("conv1_sub1", 3, 32, 3, 2)
        conv("conv2_sub1", 32, 32, 3, 2)
        conv("conv3_sub1", 32, 64, 3, 2)
        conv("conv3_sub1_proj", 64, 128, 1)
        self.conv6_cls = nn.Conv2d(int(256 * width), num_classes, 1)
        # Training only.
        self.sub4_out = nn.Conv2d(int(512 * width), num_classes, 1)
        self.sub24_out = nn.Conv2d(int(256 * width), num_classes, 1)

    def layer(self, name, x):
        return getattr(self, f"{name}_bn")(getattr(self, name)(x))

    def bottleneck(self, name, x):
        y = torch.relu(self.layer(f"{name}_1x1_reduce", x))
        y = torch.relu(self.layer(f"{name}_3x3", y))
        y = self.layer(f"{name}_1x1_increase", y)
        if hasattr(self, f"{name}_1x1_proj"):
            x = self.layer(f"{name}_1x1_proj", x)
        return torch.relu(x + y)

    def forward(self, data, adaptive=False):
        """Logits at full size, then those of sub4, of sub24 and of conv6_cls at their own."""
        x = shrink(data, 2)
        for name in ("conv1_1_3x3_s2", "conv1_2_3x3", "conv1_3_3x3"):
            x = torch.relu(self.layer(name, x))
        x = functional.max_pool2d(x, 3, 2, 1)
        for unit in range(1, 4):
            x = self.bottleneck(f"conv2_{unit}", x)
        conv3_1 = self.bottleneck("conv3_1", x)
        x = shrink(conv3_1, 2)
        for stage, units in ((3, (2, 3, 4)), (4, range(1, 7)), (5, (1, 2, 3))):
            for unit in units:
                x = self.bottleneck(f"conv{stage}_{unit}", x)
        x = pyramid(x, adaptive)
        x = torch.relu(self.layer("conv5_4_k1", x))
        x = zoom(x, 2)
        sub4 = self.sub4_out(x)
        x = torch.relu(self.layer("conv_sub4", x) + self.layer("conv3_1_sub2_proj", conv3_1))
        x = zoom(x, 2)
        sub24 = self.sub24_out(x)
        fine = data
        for name in ("conv1_sub1", "conv2_sub1", "conv3_sub1"):
            fine = torch.relu(self.layer(name, fine))
        x = torch.relu(self.layer("conv_sub2", x) + self.layer("conv3_sub1_proj", fine))
        quarter = self.conv6_cls(zoom(x, 2))
        return zoom(quarter, 4), sub4, sub24, quarter
