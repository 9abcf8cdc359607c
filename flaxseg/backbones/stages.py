"""Keeps the output stride, by turning strides into dilation once the features are coarse enough,
and runs blocks with or without rematerialisation."""

from collections.abc import Callable

import flax.linen as nn
import jax

OUTPUT_STRIDES = (8, 16, 32)


class StrideBudget:
    """Walks down a network and tells, unit by unit, which stride and which rate to use.

    A unit that would exceed the output stride keeps stride 1 and the rate of the units before it;
    the units after it are dilated by what it did not subsample. So every tap sees what it saw in
    training, but at a finer grid (Chen et al., "DeepLab", 2016, section 3.1; the same rule as
    torchvision's `replace_stride_with_dilation`, timm's `output_stride` and TensorFlow's DeepLab).

    Attributes:
      stride: output stride of the units so far.
      rate: dilation of the next unit.
    """

    def __init__(self, output_stride: int, stride: int = 1):
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(
                f"output_stride is {output_stride}; it must be one of {OUTPUT_STRIDES}."
            )
        self.output_stride = output_stride
        self.stride = stride
        self.rate = 1

    def take(self, stride: int) -> tuple[int, int]:
        """Returns `(stride, rate)` for a unit whose own stride is `stride`."""
        rate = self.rate
        if self.stride * stride > self.output_stride:
            self.rate *= stride
            return 1, rate
        self.stride *= stride
        return stride, rate


def block_runner(train: bool, remat: bool) -> Callable[[nn.Module, jax.Array], jax.Array]:
    """Returns a function `(block, x)` that runs a block in that mode.

    With `remat`, what the block computes inside is computed again in the backward pass. `train` is
    closed over because `nn.remat` would trace it as an argument.
    """

    def run(block: nn.Module, x: jax.Array) -> jax.Array:
        return block(x, train=train)

    return nn.remat(run) if remat else run
