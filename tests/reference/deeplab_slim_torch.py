"""The networks of TensorFlow's DeepLab release in PyTorch, written from the specification sheet.

A network is a function of an image `[N, 3, H, W]` and of `Variables`, which makes every variable
when it is first asked for, under the name, shape and layout that the release's checkpoints have. So
one run gives both the synthetic checkpoint and what the network makes of it.
"""

import zlib

import numpy as np
import torch
from torch.nn import functional


class Variables(dict):
    """NumPy arrays by name, drawn from the name, in TensorFlow's layout."""

    def kernel(self, name, *shape, fan_in):
        """A convolution's kernel."""
        if name not in self:
            self[name] = self._rng(name).normal(size=shape) * np.sqrt(2 / fan_in)
        return torch.from_numpy(self[name].astype(np.float32))

    def vector(self, name, size, low, high):
        """A bias or a part of a BatchNorm."""
        if name not in self:
            self[name] = self._rng(name).uniform(low, high, size)
        return torch.from_numpy(self[name].astype(np.float32))

    @staticmethod
    def _rng(name):
        return np.random.default_rng(zlib.crc32(name.encode()))


def batch_norm(v, scope, x, epsilon):
    gamma, beta, mean, var = (
        v.vector(f"{scope}/BatchNorm/{name}", x.shape[1], low, high)
        for name, low, high in (
            ("gamma", 0.3, 0.9),
            ("beta", -0.2, 0.2),
            ("moving_mean", -0.2, 0.2),
            ("moving_variance", 0.5, 1.5),
        )
    )
    return functional.batch_norm(x, mean, var, gamma, beta, eps=epsilon)


def same_padding(x, size, stride):
    """TensorFlow's SAME: the odd cell is at the bottom and right."""
    sides = []
    for n in (x.shape[3], x.shape[2]):
        total = max((-(-n // stride) - 1) * stride + size - n, 0)
        sides += [total // 2, total - total // 2]
    return sides


def conv(v, scope, x, features, size=1, stride=1, rate=1, *, epsilon, relu=True, same=False):
    """Convolution, BatchNorm, ReLU; padded by the same on both sides but for `same`."""
    kernel = v.kernel(
        f"{scope}/weights", size, size, x.shape[1], features, fan_in=size * size * x.shape[1]
    )
    pads = same_padding(x, size, stride) if same else [rate * (size // 2)] * 4
    x = functional.pad(x, pads)
    x = functional.conv2d(x, kernel.permute(3, 2, 0, 1), stride=stride, dilation=rate)
    x = batch_norm(v, scope, x, epsilon)
    return functional.relu(x) if relu else x


def depthwise(v, scope, x, stride=1, rate=1, *, epsilon, same=False):
    kernel = v.kernel(f"{scope}/depthwise_weights", 3, 3, x.shape[1], 1, fan_in=9)
    pads = same_padding(x, 3, stride) if same else [rate] * 4
    x = functional.conv2d(
        functional.pad(x, pads),
        kernel.permute(2, 3, 0, 1),
        stride=stride,
        dilation=rate,
        groups=x.shape[1],
    )
    return batch_norm(v, scope, x, epsilon)


def separable(v, scope, x, features, stride=1, rate=1, *, relu, epsilon):
    x = depthwise(v, f"{scope}_depthwise", x, stride, rate, epsilon=epsilon)
    x = functional.relu(x) if relu else x
    return conv(v, f"{scope}_pointwise", x, features, epsilon=epsilon, relu=relu)


class Strides:
    """At the output stride, strides become rates for the units after."""

    def __init__(self, output_stride, stride):
        self.output_stride, self.stride, self.rate = output_stride, stride, 1

    def __call__(self, stride):
        if self.stride == self.output_stride:
            rate = self.rate
            self.rate *= stride
            return 1, rate
        self.stride *= stride
        return stride, 1


def xception(v, x, *, scope, middle, output_stride, width=1.0):
    """Returns (low-level features, features)."""
    taps = {}

    def wide(channels):
        return round(channels * width)

    def module(name, x, channels, stride, skip, relu_inside=False):
        stride, rate = strides(stride)
        name = f"{scope}/{name}/unit_1/xception_module" if "unit" not in name else name
        y = x
        for i, features in enumerate(channels, 1):
            y = separable(
                v,
                f"{name}/separable_conv{i}",
                y if relu_inside else functional.relu(y),
                wide(features),
                stride if i == 3 else 1,
                rate,
                relu=relu_inside,
                epsilon=1e-3,
            )
            taps[f"{name}/{i}"] = y
        if skip == "conv":
            y = y + conv(v, f"{name}/shortcut", x, y.shape[1], 1, stride, epsilon=1e-3, relu=False)
        return y + x if skip == "sum" else y

    x = conv(v, f"{scope}/entry_flow/conv1_1", x, wide(32), 3, 2, epsilon=1e-3)
    x = conv(v, f"{scope}/entry_flow/conv1_2", x, wide(64), 3, epsilon=1e-3)
    strides = Strides(output_stride, 2)
    x = module("entry_flow/block1", x, (128, 128, 128), 2, "conv")
    x = module("entry_flow/block2", x, (256, 256, 256), 2, "conv")
    x = module("entry_flow/block3", x, (728, 728, 728), 2, "conv")
    for i in range(1, middle + 1):
        name = f"{scope}/middle_flow/block1/unit_{i}/xception_module"
        x = module(name, x, (728, 728, 728), 1, "sum")
    x = module("exit_flow/block1", x, (728, 1024, 1024), 2, "conv")
    x = module("exit_flow/block2", x, (1536, 1536, 2048), 1, "none", relu_inside=True)
    return taps[f"{scope}/entry_flow/block2/unit_1/xception_module/2"], x


def resnet_v1(
    v, x, *, scope, units=(3, 4, 6, 3), output_stride, beta, multi_grid=(1, 1, 1), width=1.0
):
    """Returns (low-level features, features)."""

    def wide(channels):
        return round(channels * width)

    if beta:
        x = conv(v, f"{scope}/conv1_1", x, wide(64), 3, 2, epsilon=1e-5)
        x = conv(v, f"{scope}/conv1_2", x, wide(64), 3, epsilon=1e-5)
        x = conv(v, f"{scope}/conv1_3", x, wide(128), 3, epsilon=1e-5)
    else:
        x = conv(v, f"{scope}/conv1", x, wide(64), 7, 2, epsilon=1e-5)
    x = functional.max_pool2d(
        functional.pad(x, same_padding(x, 3, 2), value=-torch.inf), 3, stride=2
    )
    strides = Strides(output_stride, 4)
    low_level = None
    for block, count in enumerate(units, 1):
        for unit in range(1, count + 1):
            name = f"{scope}/block{block}/unit_{unit}/bottleneck_v1"
            stride, rate = strides(2 if block < len(units) and unit == count else 1)
            rate *= multi_grid[unit - 1] if block == len(units) else 1
            depth = wide(64 * 2 ** (block - 1))
            if x.shape[1] == 4 * depth:
                shortcut = x[:, :, ::stride, ::stride]
            else:
                shortcut = conv(
                    v, f"{name}/shortcut", x, 4 * depth, 1, stride, epsilon=1e-5, relu=False
                )
            y = conv(v, f"{name}/conv1", x, depth, epsilon=1e-5)
            y = conv(v, f"{name}/conv2", y, depth, 3, stride, rate, epsilon=1e-5)
            y = conv(v, f"{name}/conv3", y, 4 * depth, epsilon=1e-5, relu=False)
            if (block, unit) == (1, 2):
                low_level = y
            x = functional.relu(shortcut + y)
    return low_level, x


# Expansion, channels, blocks, stride.
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2(v, x, *, scope, output_stride):
    """Returns (None, features)."""
    common = {"epsilon": 1e-3, "same": True}
    x = functional.relu6(conv(v, f"{scope}/Conv", x, 32, 3, 2, relu=False, **common))
    strides, number = Strides(output_stride, 2), 0
    for expansion, features, blocks, first_stride in MOBILENET_V2:
        for index in range(blocks):
            name = f"{scope}/expanded_conv" + (f"_{number}" if number else "")
            number += 1
            stride, rate = strides(first_stride if index == 0 else 1)
            y = x
            if expansion > 1:
                y = conv(v, f"{name}/expand", y, expansion * x.shape[1], relu=False, **common)
                y = functional.relu6(y)
            y = depthwise(v, f"{name}/depthwise", y, stride, rate, epsilon=1e-3, same=stride > 1)
            y = conv(v, f"{name}/project", functional.relu6(y), features, relu=False, **common)
            x = x + y if index > 0 else y
    return None, x


def resize(x, size):
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


def deeplab(v, image, backbone, *, num_classes, rates, separable_convs=False, decoder_convs=0):
    """v3, and with `decoder_convs` v3+, on a function that gives (low-level features, features)."""
    low_level, x = backbone(v, image)

    def conv3x3(scope, x, rate=1):
        if separable_convs:
            return separable(v, scope, x, 256, rate=rate, relu=True, epsilon=1e-5)
        return conv(v, scope, x, 256, 3, rate=rate, epsilon=1e-5)

    pooled = conv(v, "image_pooling", x.mean((2, 3), keepdim=True), 256, epsilon=1e-5)
    branches = [resize(pooled, x.shape[2:]), conv(v, "aspp0", x, 256, epsilon=1e-5)]
    branches += [conv3x3(f"aspp{i}", x, rate) for i, rate in enumerate(rates, 1)]
    x = conv(v, "concat_projection", torch.cat(branches, 1), 256, epsilon=1e-5)
    if decoder_convs:
        low_level = conv(v, "decoder/feature_projection0", low_level, 48, epsilon=1e-5)
        x = torch.cat([resize(x, low_level.shape[2:]), low_level], 1)
        for i in range(decoder_convs):
            x = conv3x3(f"decoder/decoder_conv{i}", x)
    kernel = v.kernel("logits/semantic/weights", 1, 1, 256, num_classes, fan_in=256)
    bias = v.vector("logits/semantic/biases", num_classes, -0.2, 0.2)
    x = functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias)
    return resize(x, image.shape[2:])


def cascade(v, image, backbone, *, num_classes, rates, multi_grid, depth):
    """v3 with copies of the last block in place of the ASPP (the release has none; names ours)."""
    _, x = backbone(v, image)
    for block, rate in enumerate(rates, 5):
        for unit, factor in enumerate(multi_grid):
            name = f"block{block}_{unit}"
            shortcut = x
            if x.shape[1] != 4 * depth:
                shortcut = conv(v, f"{name}/shortcut", x, 4 * depth, epsilon=1e-5, relu=False)
            y = conv(v, f"{name}/conv1", x, depth, epsilon=1e-5)
            y = conv(v, f"{name}/conv2", y, depth, 3, rate=rate * factor, epsilon=1e-5)
            y = conv(v, f"{name}/conv3", y, 4 * depth, epsilon=1e-5, relu=False)
            x = functional.relu(shortcut + y)
    kernel = v.kernel("logits/weights", 1, 1, x.shape[1], num_classes, fan_in=x.shape[1])
    bias = v.vector("logits/biases", num_classes, -0.2, 0.2)
    return resize(functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias), image.shape[2:])
