"""Atrous spatial pyramid pooling with its image-level branch."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.conv_block import ConvBlock
from flaxseg.layers.pooling import global_average_pool
from flaxseg.layers.separable import SeparableConv


class ImagePooling(nn.Module):
    """Averages over the image, applies a 1x1 convolution block, and repeats the result at every
    cell.

    (Chen et al., "Rethinking Atrous Convolution", 2017, section 3.3.) Repeating the one cell
    equals both bilinear conventions.

    Attributes:
      features: channels of the output.
      norm: makes the normalisation; called as `norm(name=...)`.
      dtype: dtype of the computation; that of the input by default.
    """

    features: int
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        pooled = ConvBlock(self.features, 1, norm=self.norm, dtype=self.dtype, name="block")(
            global_average_pool(x), train=train
        )
        return jnp.broadcast_to(pooled, (*x.shape[:3], self.features))


class ASPP(nn.Module):
    """Runs parallel atrous convolutions at several rates, a 1x1 convolution and image pooling,
    concatenates their outputs and projects them.

    (Chen et al., "Rethinking Atrous Convolution", 2017, section 3.3, figure 5.) The order of
    concatenation is 1x1, atrous branches, image pooling, as in torchvision; TensorFlow's release
    puts image pooling first, which is the same function with other rows of the projection's kernel.

    Attributes:
      rates: dilation of each atrous branch; the paper's are (6, 12, 18) at output stride 16 and
        doubled at 8. May be empty.
      features: channels of each branch and of the output.
      separable: whether the atrous branches are depthwise-separable (DeepLabv3+).
      image_pooling: whether there is an image-level branch.
      dropout: rate of dropout after the projection, in [0, 1).
      norm: makes every normalisation; called as `norm(name=...)`.
      dtype: dtype of the computation; that of the input by default.
    """

    rates: Sequence[int] = (6, 12, 18)
    features: int = 256
    separable: bool = False
    image_pooling: bool = True
    dropout: float = 0.0
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        common = {"norm": self.norm, "dtype": self.dtype}
        atrous = SeparableConv if self.separable else ConvBlock
        branches = [ConvBlock(self.features, 1, **common, name="aspp0")(x, train=train)]
        for index, rate in enumerate(self.rates, 1):
            block = atrous(self.features, 3, rate=rate, **common, name=f"aspp{index}")
            branches.append(block(x, train=train))
        if self.image_pooling:
            block = ImagePooling(self.features, **common, name="image_pooling")
            branches.append(block(x, train=train))
        x = jnp.concatenate(branches, -1)
        x = ConvBlock(self.features, 1, **common, name="project")(x, train=train)
        return nn.Dropout(self.dropout)(x, deterministic=not train) if self.dropout else x
