"""The last convolution of a segmentation network."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Initializer

from flaxseg.layers.atrous import AtrousConv

classifier_init = nn.initializers.normal(0.01)


def classifier(
    num_classes: int,
    *,
    kernel_size: int = 1,
    rate: int = 1,
    use_bias: bool = True,
    kernel_init: Initializer = classifier_init,
    name: str = "classifier",
) -> AtrousConv:
    """Returns a convolution that gives logits, in float32 whatever the dtype of the features.

    Args:
      num_classes: channels of the logits.
      kernel_size: 1, or more where the classifier looks around.
      rate: dilation.
      use_bias: whether a bias is added.
      kernel_init: initialiser of the kernel.
      name: of the module.
    """
    return AtrousConv(
        num_classes,
        kernel_size,
        rate=rate,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=jnp.float32,
        name=name,
    )
