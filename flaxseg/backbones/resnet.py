"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", 2015, table 1).

The layout is torchvision's ("v1.5"): the stride of a bottleneck sits on its 3x3 convolution.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.backbones.stages import StrideBudget, block_runner
from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.image_normalization import IMAGENET, ImageNormalization
from flaxseg.layers.pooling import global_average_pool, max_pool


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is projected where size or channels change.

    The stride, or what stands for it, lies between the two, so the second has the rate of the
    units after it.
    """

    features: int
    strides: int
    rate: int
    next_rate: int
    norm: type[nn.Module]
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(AtrousConv, dtype=self.dtype)
        shortcut = _shortcut(x, self.features, self.strides, conv, self.norm, train)
        y = conv(self.features, 3, self.strides, self.rate, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = conv(self.features, 3, rate=self.next_rate, name="conv2")(y)
        y = self.norm(name="bn2")(y, train=train)
        return nn.relu(y + shortcut)


class Bottleneck(nn.Module):
    """1x1 down to `features`, 3x3 with stride and dilation, 1x1 up to `4 * features`, and a
    shortcut."""

    features: int
    strides: int
    rate: int
    next_rate: int
    norm: type[nn.Module]
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        conv = partial(AtrousConv, dtype=self.dtype)
        shortcut = _shortcut(x, 4 * self.features, self.strides, conv, self.norm, train)
        y = conv(self.features, 1, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = conv(self.features, 3, self.strides, self.rate, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train=train))
        y = conv(4 * self.features, 1, name="conv3")(y)
        y = self.norm(name="bn3")(y, train=train)
        return nn.relu(y + shortcut)


def _shortcut(x, features, strides, conv, norm, train):
    if x.shape[-1] == features and strides == 1:
        return x
    x = conv(features, 1, strides, name="downsample_conv")(x)
    return norm(name="downsample_bn")(x, train=train)


class ResNet(nn.Module):
    """A residual network that returns named features.

    Attributes:
      stage_sizes: blocks in each of the four stages.
      block: `BasicBlock` or `Bottleneck`.
      output_stride: 8, 16 or 32; dilation replaces the strides beyond it.
      num_classes: with a number, `"logits"` of an ImageNet-style classifier are among the features.
      batch_norm_momentum: see `BatchNorm`.
      batch_norm_axis: mapped axis name, only under `jax.pmap`.
      frozen_batch_norm: whether running statistics are used in training.
      remat: whether blocks are recomputed in the backward pass to save memory.
      dtype: dtype of the computation; parameters are float32.
    """

    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    block: type[nn.Module] = Bottleneck
    output_stride: int = 32
    num_classes: int | None = None
    batch_norm_momentum: float = 0.9
    batch_norm_axis: str | None = None
    frozen_batch_norm: bool = False
    remat: bool = False
    dtype: Dtype | None = None

    normalization: ClassVar[ImageNormalization] = IMAGENET

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns features by name.

        Args:
          image: `[N, H, W, 3]`, normalised by `normalization`.
          train: whether BatchNorm uses the statistics of the batch.

        Returns:
          `"c1"` (after the stem's convolution) to `"c5"`: `[N, ceil(H / s), ceil(W / s), C]` with
          s = 2, 4, 8, 16, 32, but never beyond `output_stride`. `"c2"` to `"c5"` are the outputs
          of the four stages.
        """
        norm = partial(
            BatchNorm,
            momentum=self.batch_norm_momentum,
            axis_name=self.batch_norm_axis,
            frozen=self.frozen_batch_norm,
        )
        apply = block_runner(train, self.remat)
        x = image if self.dtype is None else image.astype(self.dtype)
        x = AtrousConv(64, 7, 2, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x, train=train))
        features = {"c1": x}
        x = max_pool(x, 3, strides=2, padding="torch")
        budget = StrideBudget(self.output_stride, 4)
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                strides, rate = budget.take(2 if stage > 0 and index == 0 else 1)
                block = self.block(
                    features=64 * 2**stage,
                    strides=strides,
                    rate=rate,
                    next_rate=budget.rate,
                    norm=norm,
                    dtype=self.dtype,
                    name=f"layer{stage + 1}_{index}",
                )
                x = apply(block, x)
            features[f"c{stage + 2}"] = x
        if self.num_classes is not None:
            pooled = global_average_pool(x)[:, 0, 0]
            features["logits"] = nn.Dense(self.num_classes, name="classifier")(pooled)
        return features


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3))
ResNet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3))
ResNet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3))
