"""Depthwise-separable convolution, normalised after each half."""

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.depthwise import DepthwiseConv
from flaxseg.layers.padding import Padding


class SeparableConv(nn.Module):
    """Runs a depthwise convolution, BatchNorm, ReLU, a 1x1 convolution, BatchNorm and ReLU.

    The form of the ASPP and the decoder of DeepLabv3+ (Chen et al., 2018, section 3.2, and the
    released code's `split_separable_conv2d`); without the ReLUs, that of its Xception.

    Attributes:
      features: channels of the output.
      kernel_size: of the depthwise half.
      rate: dilation of the depthwise half.
      strides: of the depthwise half.
      relu: whether a ReLU follows each of the two normalisations.
      padding: of the depthwise half; see `explicit_padding`.
      norm: makes the two normalisations; called as `norm(name=...)`.
      dtype: dtype of the computation; that of the input by default.
    """

    features: int
    kernel_size: int = 3
    rate: int = 1
    strides: int = 1
    relu: bool = True
    padding: Padding = "torch"
    norm: type[nn.Module] = BatchNorm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        activation = nn.relu if self.relu else lambda x: x
        x = DepthwiseConv(
            self.kernel_size,
            self.strides,
            self.rate,
            padding=self.padding,
            dtype=self.dtype,
            name="depthwise_conv",
        )(x)
        x = activation(self.norm(name="depthwise_bn")(x, train=train))
        x = AtrousConv(self.features, 1, dtype=self.dtype, name="pointwise_conv")(x)
        return activation(self.norm(name="pointwise_bn")(x, train=train))
