"""Xception in the aligned, modified form of DeepLabv3+.

Chollet, "Xception", 2017; Chen et al., "Encoder-Decoder with Atrous Separable Convolution", 2018,
section 3.3 and figure 4: more units in the middle, strided separable convolutions in place of
max pools, BatchNorm after every depthwise convolution.

Paper and release differ in where ReLUs are. The paper writes BatchNorm and ReLU after every
depthwise convolution; in the released networks a ReLU stands before each separable convolution and
none inside, except in the last block. We follow the release, which has published weights.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.backbones.backbone import BatchNormBackbone
from flaxseg.backbones.stages import StrideBudget, block_runner
from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.image_normalization import SYMMETRIC, ImageNormalization
from flaxseg.layers.pooling import global_average_pool
from flaxseg.layers.separable import SeparableConv


class XceptionBlock(nn.Module):
    """Has three separable convolutions, the last with the stride, and a shortcut.

    Attributes:
      features: channels of the three.
      strides: of the block.
      rate: dilation of all three.
      shortcut: `"conv"`, a projection; `"sum"`, the input itself; or `"none"`.
      relu_inside: whether ReLUs follow the halves of each separable convolution, and not one
        before it.
      norm: makes the normalisations; called as `norm(name=...)`.
      dtype: dtype of the computation; that of the input by default.
    """

    features: Sequence[int]
    strides: int
    rate: int
    shortcut: str
    relu_inside: bool
    norm: Callable[..., nn.Module]
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> tuple[jax.Array, jax.Array]:
        """Returns the output, and what stands before the last separable convolution: at the
        resolution of the input, of `features[1]` channels."""
        y, before_last = x, x
        for index, features in enumerate(self.features, 1):
            last = index == len(self.features)
            before_last = y if last else before_last
            y = y if self.relu_inside else nn.relu(y)
            y = SeparableConv(
                features,
                3,
                strides=self.strides if last else 1,
                rate=self.rate,
                relu=self.relu_inside,
                norm=self.norm,
                dtype=self.dtype,
                name=f"separable{index}",
            )(y, train=train)
        if self.shortcut == "conv":
            conv = AtrousConv(
                self.features[-1], 1, self.strides, dtype=self.dtype, name="shortcut_conv"
            )
            y += self.norm(name="shortcut_bn")(conv(x), train=train)
        elif self.shortcut == "sum":
            y += x
        return y, before_last


class Xception(BatchNormBackbone):
    """Runs a modified aligned Xception and returns named features.

    Attributes:
      entry: channels and stride of each block of the entry flow.
      middle_blocks: of 728 channels; 8 in Xception-41, 16 in 65 and 71.
      num_classes: with a number, `"logits"` of an ImageNet-style classifier are among the features.
      width: factor of all numbers of channels.
      batch_norm_epsilon: 1e-3 as in the release.
      remat: whether blocks are recomputed in the backward pass to save memory.
    """

    entry: Sequence[tuple[int, int]] = ((128, 2), (256, 2), (728, 2))
    middle_blocks: int = 16
    num_classes: int | None = None
    width: float = 1.0
    batch_norm_epsilon: float = 1e-3
    remat: bool = False

    normalization: ClassVar[ImageNormalization] = SYMMETRIC

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns features by name.

        Returns:
          `"c1"` to `"c5"`. The first four are what each block with a stride has before the
          separable convolution that subsamples, without a ReLU: `"c2"`, of 256 channels, is what
          the release's decoder takes. `"c5"` is the output.
        """
        norm = self._norm()
        run = block_runner(train, self.remat)
        budget = StrideBudget(self.output_stride, 2)
        features: dict[str, jax.Array] = {}

        def block(x, channels, own_strides, shortcut, name, *, relu_inside=False):
            strides, rate = budget.take(own_strides)
            x, before_last = run(
                XceptionBlock(
                    features=tuple(self._channels(c) for c in channels),
                    strides=strides,
                    rate=rate,
                    shortcut=shortcut,
                    relu_inside=relu_inside,
                    norm=norm,
                    dtype=self.dtype,
                    name=name,
                ),
                x,
            )
            if own_strides == 2:
                features[f"c{len(features) + 1}"] = before_last
            return x

        x = self._cast(image)
        for index, (channels, strides) in enumerate(((32, 2), (64, 1)), 1):
            conv = AtrousConv(
                self._channels(channels), 3, strides, dtype=self.dtype, name=f"entry_conv{index}"
            )
            x = nn.relu(norm(name=f"entry_bn{index}")(conv(x), train=train))
        for index, (channels, strides) in enumerate(self.entry, 1):
            x = block(x, (channels,) * 3, strides, "conv", f"entry{index}")
        for index in range(1, self.middle_blocks + 1):
            x = block(x, (728, 728, 728), 1, "sum", f"middle{index}")
        x = block(x, (728, 1024, 1024), 2, "conv", "exit1")
        x = block(x, (1536, 1536, 2048), 1, "none", "exit2", relu_inside=True)
        features[f"c{len(features) + 1}"] = x
        if self.num_classes is not None:
            pooled = global_average_pool(x)[:, 0, 0]
            features["logits"] = nn.Dense(self.num_classes, name="classifier")(pooled)
        return features

    def _channels(self, features: int) -> int:
        return max(1, round(features * self.width))


Xception41 = partial(Xception, middle_blocks=8)
Xception65 = partial(Xception, middle_blocks=16)
Xception71 = partial(
    Xception, entry=((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)), middle_blocks=16
)
