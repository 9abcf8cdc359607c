"""GCN in PyTorch, written from the layer table of the specification sheet: what `GCN` and the
ResNet-GCN are compared with.

Modules are named as in the widespread port (`gcm1` to `gcm4`, `brm1` to `brm9`, the backbone in
`layer0` to `layer4`), and the deconvolutions as in its forks that have them (`deconv1` to
`deconv5`).
"""

from torch import nn
from torch.nn import functional

UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class GlobalConv(nn.Module):
    """Path l is k x 1 then 1 x k, path r 1 x k then k x 1; their sum."""

    def __init__(self, channels, classes, k):
        super().__init__()
        column = {"kernel_size": (k, 1), "padding": ((k - 1) // 2, 0)}
        row = {"kernel_size": (1, k), "padding": (0, (k - 1) // 2)}
        self.conv_l1 = nn.Conv2d(channels, classes, **column)
        self.conv_l2 = nn.Conv2d(classes, classes, **row)
        self.conv_r1 = nn.Conv2d(channels, classes, **row)
        self.conv_r2 = nn.Conv2d(classes, classes, **column)

    def forward(self, x):
        return self.conv_l2(self.conv_l1(x)) + self.conv_r2(self.conv_r1(x))


class Refine(nn.Module):
    """S + conv(ReLU(conv(S)))."""

    def __init__(self, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(classes, classes, 3, padding=1)
        self.conv2 = nn.Conv2d(classes, classes, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(functional.relu(self.conv1(x)))


class Bottleneck(nn.Module):
    def __init__(self, channels, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = shortcut(channels, planes, stride)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


class BottleneckGCN(nn.Module):
    """The 1x1 and 3x3 replaced by two paths, each of whose convolutions has BN and ReLU."""

    def __init__(self, channels, planes, stride, k, mid):
        super().__init__()
        half = (k - 1) // 2

        def column(inputs):
            return nn.Sequential(
                nn.Conv2d(inputs, mid, (k, 1), (stride, 1), (half, 0), bias=False),
                nn.BatchNorm2d(mid),
                nn.ReLU(),
            )

        def row(inputs):
            return nn.Sequential(
                nn.Conv2d(inputs, mid, (1, k), (1, stride), (0, half), bias=False),
                nn.BatchNorm2d(mid),
                nn.ReLU(),
            )

        self.l1, self.l2 = column(channels), row(mid)
        self.r1, self.r2 = row(channels), column(mid)
        self.conv3 = nn.Conv2d(mid, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = shortcut(channels, planes, stride)

    def forward(self, x):
        y = self.l2(self.l1(x)) + self.r2(self.r1(x))
        y = self.bn3(self.conv3(y))
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


def shortcut(channels, planes, stride):
    if stride == 1 and channels == 4 * planes:
        return None
    return nn.Sequential(
        nn.Conv2d(channels, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes)
    )


class GCN(nn.Module):
    """The network of the sheet. `upsampling` is "deconv" (learned, dense) or "bilinear" (of ports,
    corners aligned). With `resnet_gcn`, res4 and res5 are made of `BottleneckGCN`."""

    def __init__(self, classes, units=UNITS[152], k=15, upsampling="deconv", resnet_gcn=False):
        super().__init__()
        self.layer0 = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()
        )
        channels = 64
        for stage, count in enumerate(units, 1):
            planes, blocks = 32 * 2**stage, []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                if resnet_gcn and stage >= 3:
                    k_of, mid = {3: (5, 85), 4: (7, 128)}[stage]
                    blocks.append(BottleneckGCN(channels, planes, stride, k_of, mid))
                else:
                    blocks.append(Bottleneck(channels, planes, stride))
                channels = 4 * planes
            layer = nn.Sequential(*blocks)
            if stage == 1:
                layer = nn.Sequential(nn.MaxPool2d(3, 2, 1), layer)
            setattr(self, f"layer{stage}", layer)
        for number, inputs in enumerate((2048, 1024, 512, 256), 1):
            setattr(self, f"gcm{number}", GlobalConv(inputs, classes, k))
        for number in range(1, 10):
            setattr(self, f"brm{number}", Refine(classes))
        self.upsampling = upsampling
        if upsampling == "deconv":
            for number in range(1, 6):
                deconv = nn.ConvTranspose2d(classes, classes, 4, 2, 1, bias=False)
                setattr(self, f"deconv{number}", deconv)

    def up(self, number, x, size):
        if self.upsampling == "bilinear":
            return functional.interpolate(x, size, mode="bilinear", align_corners=True)
        return getattr(self, f"deconv{number}")(x)[:, :, : size[0], : size[1]]

    def forward(self, image):
        res = [self.layer0(image)]
        for number in range(1, 5):
            res.append(getattr(self, f"layer{number}")(res[-1]))
        scores = [
            getattr(self, f"brm{n}")(getattr(self, f"gcm{n}")(res[5 - n])) for n in range(1, 5)
        ]
        x = scores[0]
        for number in range(1, 4):
            x = self.up(number, x, scores[number].shape[2:]) + scores[number]
            x = getattr(self, f"brm{number + 4}")(x)
        x = self.brm8(self.up(4, x, res[0].shape[2:]))
        return self.brm9(self.up(5, x, image.shape[2:]))


def resnet_gcn_name(path):
    """The module of the class above for a module of our ResNet-GCN, in the stages that differ."""
    lines = {
        "left_vertical": "l1",
        "left_horizontal": "l2",
        "right_horizontal": "r1",
        "right_vertical": "r2",
    }
    block, part = path.split("/")
    stage, index = block.removeprefix("layer").split("_")
    line, _, kind = part.rpartition("_")
    if line in lines:
        part = f"{lines[line]}.{0 if kind == 'conv' else 1}"
    elif line == "downsample":
        part = f"downsample.{0 if kind == 'conv' else 1}"
    return f"layer{stage}.{index}.{part}"
