"""VGG's fully connected layers as convolutions."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.padding import Padding


def fully_connected(
    x: jax.Array,
    features: Sequence[int],
    *,
    kernel_size: int,
    rate: int = 1,
    padding: Padding = "torch",
    dropout: float = 0.5,
    dtype: Dtype | None = None,
    train: bool = False,
    suffix: str = "",
) -> jax.Array:
    """Runs fc6 and fc7 as convolutions, the latter 1x1, each with bias, ReLU and dropout.

    Call it inside a module's `nn.compact` method; the two convolutions become parts of that module.
    (Long et al., "Fully Convolutional Networks", 2015, section 3.1; dilated: Chen et al., "Semantic
    Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", 2015, section 3.1.)

    Args:
      x: `[N, H, W, C]`.
      features: channels of fc6 and of fc7.
      kernel_size: of fc6.
      rate: dilation of fc6.
      padding: of fc6, see `explicit_padding`; "torch" keeps the size where `rate * (kernel_size -
        1)` is even.
      dropout: rate of dropout after each in training, in [0, 1); needs the rng `"dropout"`.
      dtype: dtype of the computation; that of the input by default.
      train: whether dropout is on.
      suffix: of the names `"fc6"` and `"fc7"`, where a module has several pairs.

    Returns:
      `[N, H', W', features[1]]`.
    """
    x = AtrousConv(
        features[0],
        kernel_size,
        rate=rate,
        padding=padding,
        use_bias=True,
        dtype=dtype,
        name=f"fc6{suffix}",
    )(x)
    x = nn.Dropout(dropout)(nn.relu(x), deterministic=not train)
    x = AtrousConv(features[1], 1, use_bias=True, dtype=dtype, name=f"fc7{suffix}")(x)
    return nn.Dropout(dropout)(nn.relu(x), deterministic=not train)
