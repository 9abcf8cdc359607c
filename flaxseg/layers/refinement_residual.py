"""Refinement residual block of DFN."""

from collections.abc import Callable

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.batch_norm import BatchNorm


class RefinementResidual(nn.Module):
    """Computes `relu(x + conv3x3(relu(bn(conv3x3(x)))))` of `x = conv1x1(input)`.

    (Yu et al., "Learning a Discriminative Feature Network", 2018, section 3.2.) The 1x1 convolution
    brings the channels of all stages to one number. No convolution has a bias, and only the first
    3x3 one a normalisation.

    Attributes:
      features: channels of the output.
      last_relu: whether the sum is rectified; not where a classifier reads it.
      norm: makes the normalisation; called as `norm(name=...)`.
      dtype: dtype of the computation; that of the input by default.
    """

    features: int
    last_relu: bool = True
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns `[N, H, W, features]` of `x` `[N, H, W, C]`."""

        def conv(size: int, name: str) -> AtrousConv:
            init = nn.initializers.he_normal()
            return AtrousConv(self.features, size, kernel_init=init, dtype=self.dtype, name=name)

        x = conv(1, "unify")(x)
        y = nn.relu(self.norm(name="bn")(conv(3, "conv1")(x), train=train))
        x += conv(3, "conv2")(y)
        return nn.relu(x) if self.last_relu else x
