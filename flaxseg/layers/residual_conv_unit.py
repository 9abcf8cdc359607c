"""RefineNet's adaptation of features: a residual unit without BatchNorm."""

from functools import partial

import flax.linen as nn
import jax
from flax.typing import Dtype, Initializer

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.classifier import classifier_init


class ResidualConvUnit(nn.Module):
    """Computes `x + conv2(relu(conv1(relu(x))))`; the number of channels stays the same.

    (Lin et al., "RefineNet", 2017, section 3.2, figure 2 b.) As in the released network the first
    convolution has a bias and the second has none, and no ReLU follows the sum: gradients pass from
    the output to the input of a chain of units.

    Attributes:
      kernel_size: of both convolutions; 3, or 1 for the light-weight unit (Nekrasov et al.,
        "Light-Weight RefineNet", 2018, section 3.1).
      kernel_init: initialiser of both kernels; normal with deviation 0.01, as released, by default.
      dtype: dtype of the computation; that of the input by default.
    """

    kernel_size: int = 3
    kernel_init: Initializer = classifier_init
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[N, H, W, C]` of features `[N, H, W, C]`."""
        x = x.astype(self.dtype or x.dtype)
        conv = partial(
            AtrousConv,
            x.shape[-1],
            self.kernel_size,
            kernel_init=self.kernel_init,
            dtype=x.dtype,
        )
        y = conv(use_bias=True, name="conv1")(nn.relu(x))
        return x + conv(name="conv2")(nn.relu(y))
