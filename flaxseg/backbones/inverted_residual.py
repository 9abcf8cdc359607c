"""The block of MobileNetV2 and EfficientNet-Lite: thin ends, a wide depthwise middle, ReLU6."""

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.depthwise import DepthwiseConv
from flaxseg.layers.padding import Padding


class InvertedResidual(nn.Module):
    """Expands channels by a 1x1 convolution, filters them by a depthwise one with stride and
    dilation, and projects them by a 1x1 convolution without activation. A shortcut is added where
    the shapes allow it.

    (Sandler et al., "MobileNetV2", 2018, section 3.) With expansion 1 the first convolution is
    left out, unless `always_expand`.

    Attributes:
      features: channels of the output.
      expansion: channels of the middle over those of the input.
      kernel_size: of the depthwise convolution.
      strides: of the depthwise convolution.
      rate: of the depthwise convolution.
      shortcut: whether the input may be added; it is where the block's own stride is 1 and
        channels agree.
      padding: of the depthwise convolution; see `explicit_padding`.
      norm: makes the normalisations; called as `norm(name=...)`.
      dtype: dtype of the computation; that of the input by default.
      always_expand: whether there is a first convolution with expansion 1 too.
    """

    features: int
    expansion: int
    kernel_size: int
    strides: int
    rate: int
    shortcut: bool
    padding: Padding
    norm: type[nn.Module]
    dtype: Dtype | None
    always_expand: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        y = x
        if self.expansion != 1 or self.always_expand:
            width = self.expansion * x.shape[-1]
            y = AtrousConv(width, 1, dtype=self.dtype, name="expand_conv")(y)
            y = nn.relu6(self.norm(name="expand_bn")(y, train=train))
        y = DepthwiseConv(
            self.kernel_size,
            self.strides,
            self.rate,
            padding=self.padding,
            dtype=self.dtype,
            name="depthwise_conv",
        )(y)
        y = nn.relu6(self.norm(name="depthwise_bn")(y, train=train))
        y = AtrousConv(self.features, 1, dtype=self.dtype, name="project_conv")(y)
        y = self.norm(name="project_bn")(y, train=train)
        return y + x if self.shortcut and x.shape[-1] == self.features else y
