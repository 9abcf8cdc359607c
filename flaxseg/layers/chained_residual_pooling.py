"""RefineNet's context from a large region: pools in a chain, each of which adds to the sum."""

from collections.abc import Callable

import flax.linen as nn
import jax
from flax.typing import Dtype, Initializer

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.classifier import classifier_init
from flaxseg.layers.pooling import max_pool


class ChainedResidualPooling(nn.Module):
    """Computes `x0 + p1 + p2 + ...` with `x0 = relu(x)`, `p1 = conv1(pool(x0))`, `p2 =
    conv2(pool(p1))`, ...

    (Lin et al., "RefineNet", 2017, section 3.2, figure 2 d.) Pools are maxima over windows at
    stride 1, so each block of the chain sees further than the one before.

    Each block has a convolution without bias: `conv1`, `conv2`, ...

    Attributes:
      blocks: of the chain, from 1. Figure 2 of the paper draws 2, all released networks have 4.
      pool_first: whether a block pools and then convolves, as in the paper, or the other way
        around, as in later releases by its authors (among them those for ADE20K and NYUDv2).
      window: side of the pools' windows in cells, an odd number.
      kernel_size: of the convolutions; 3, or 1 for the light-weight chain (Nekrasov et al.,
        "Light-Weight RefineNet", 2018).
      activation: applied before the chain.
      kernel_init: initialiser of the kernels; normal with deviation 0.01, as released, by default.
      dtype: dtype of the computation; that of the input by default.

    Raises:
      ValueError: there is no block, or the window is even.
    """

    blocks: int = 4
    pool_first: bool = True
    window: int = 5
    kernel_size: int = 3
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    kernel_init: Initializer = classifier_init
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[N, H, W, C]` of features `[N, H, W, C]`, any H and W from 1."""
        if self.blocks < 1:
            raise ValueError(f"blocks is {self.blocks}; it must be at least 1, 2 or 4 as usual.")
        if self.window < 1 or self.window % 2 == 0:
            raise ValueError(f"window is {self.window}; it must be an odd number, such as 5.")
        dtype = self.dtype or x.dtype
        total = link = self.activation(x.astype(dtype))
        for block in range(1, self.blocks + 1):
            conv = AtrousConv(
                x.shape[-1],
                self.kernel_size,
                kernel_init=self.kernel_init,
                dtype=dtype,
                name=f"conv{block}",
            )
            link = conv(self._pool(link)) if self.pool_first else self._pool(conv(link))
            total = total + link
        return total

    def _pool(self, x: jax.Array) -> jax.Array:
        """Returns the maximum over a square, one axis after the other.

        That is 2 n comparisons in place of n^2. Along rows first, so that the gradient goes to the
        first maximum in row order, as that of the whole window does.
        """
        x = max_pool(x, (1, self.window), padding="torch")
        return max_pool(x, (self.window, 1), padding="torch")
