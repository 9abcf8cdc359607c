"""Convolution, normalisation, ReLU: what the heads of most systems are made of."""

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.padding import Padding


class ConvBlock(nn.Module):
    """Runs a bias-free `AtrousConv` (named `conv`), a normalisation (`bn`) and a ReLU.

    Attributes:
      features: channels of the output.
      kernel_size: an int or `(height, width)`.
      strides: an int or `(vertical, horizontal)`.
      rate: dilation.
      padding: see `explicit_padding`.
      norm: makes the normalisation; called as `norm(name=...)`.
      dtype: dtype of the computation; that of the input by default.
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    strides: int | tuple[int, int] = 1
    rate: int = 1
    padding: Padding = "torch"
    norm: type[nn.Module] = BatchNorm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = AtrousConv(
            self.features,
            self.kernel_size,
            self.strides,
            rate=self.rate,
            padding=self.padding,
            dtype=self.dtype,
            name="conv",
        )(x)
        return nn.relu(self.norm(name="bn")(x, train=train))
