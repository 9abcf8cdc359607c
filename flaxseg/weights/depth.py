"""Weights of a network for colours in one that sees depth too."""

import jax
import jax.numpy as jnp


def with_depth(kernel: jax.Array, channels: int) -> jax.Array:
    """Returns a first convolution for colours and more channels, such as depth.

    Each further channel's slice is the mean over the colours', as in the released FCN for RGB-D
    (Shelhamer et al., "Fully Convolutional Networks for Semantic Segmentation", PAMI 2017, section
    5.2), so that it begins as an edge detector and not as noise.

    Example:

        convolution = variables["params"]["backbone"]["conv1_1"]
        convolution["kernel"] = with_depth(colours["params"]["backbone"]["conv1_1"]["kernel"], 4)

    Args:
      kernel: `[h, w, 3, features]`.
      channels: of the pictures, at least 3.

    Returns:
      `[h, w, channels, features]`.

    Raises:
      ValueError: the kernel is not one for colours, or there are fewer channels than that.
    """
    if kernel.ndim != 4 or kernel.shape[2] != 3 or channels < 3:
        raise ValueError(
            f"kernel has shape {kernel.shape} and channels is {channels}; wanted [h, w, 3, "
            "features] and at least 3."
        )
    mean = jnp.mean(kernel, axis=2, keepdims=True)
    return jnp.concatenate([kernel, jnp.repeat(mean, channels - 3, axis=2)], axis=2)
