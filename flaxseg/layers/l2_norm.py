"""L2 normalisation over channels with a learned scale (Liu et al., "ParseNet: Looking Wider to See
Better", 2016, section 3.3)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax

from flaxseg.layers.channels import along_channels


class L2Norm(nn.Module):
    """Scales the channels of each cell to length one, then each channel by a learned factor.

    `y[c] = scale[c] * x[c] / sqrt(sum_d x[d]^2 + epsilon)`. Features of different layers differ by
    orders of magnitude; normalised, they can be concatenated. The parameter `scale` is `[C]`
    float32.

    Attributes:
      initial_scale: of all channels; 10 in ParseNet, 20 in SSD.
      epsilon: added to the square of the length, for cells whose channels are all zero.
      dtype: dtype of the output; that of the input by default. Lengths are float32.
    """

    initial_scale: float = 10.0
    epsilon: float = 1e-10
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises `[N, H, W, C]` over its last axis."""
        initial = nn.initializers.constant(self.initial_scale)
        scale = self.param("scale", initial, (x.shape[-1],), jnp.float32)
        wide = x.astype(jnp.float32)
        squares = jnp.square(wide).sum(-1, keepdims=True)
        y = wide * lax.rsqrt(squares + self.epsilon) * along_channels(scale, x)
        return y.astype(self.dtype or x.dtype)
