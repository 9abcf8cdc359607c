"""Channel attention block of DFN."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from flaxseg.layers.pooling import global_average_pool


class ChannelAttention(nn.Module):
    """Computes `low * a + high`, where `a` weighs each channel of the finer stage by the means of
    both stages over the image.

    (Yu et al., "Learning a Discriminative Feature Network", 2018, section 3.2, figure 4.)
    `a = sigmoid(dense2(relu(dense1(means))))` has a number from 0 to 1 for each channel.

    Attributes:
      dtype: dtype of the computation; that of the input by default. The attention is float32.
    """

    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, low: jax.Array, high: jax.Array) -> jax.Array:
        """Fuses two stages.

        Args:
          low: features of the finer stage, `[N, H, W, C]`.
          high: features of the coarser one at the same size and with as many channels; or its mean,
            `[N, 1, 1, C]`, which stands for a constant image.

        Returns:
          `[N, H, W, C]`.

        Raises:
          ValueError: they differ in channels, or `high` has neither the size of `low` nor 1x1.
        """
        if low.shape[3] != high.shape[3] or high.shape[1:3] not in (low.shape[1:3], (1, 1)):
            raise ValueError(
                f"low {low.shape} and high {high.shape} do not fit; wanted [N, H, W, C] twice, or "
                "[N, 1, 1, C] for high."
            )
        means = jnp.concatenate([global_average_pool(x) for x in (low, high)], 3)[:, 0, 0]
        hidden = nn.relu(nn.Dense(low.shape[3], name="dense1")(means.astype(jnp.float32)))
        attention = nn.sigmoid(nn.Dense(low.shape[3], name="dense2")(hidden))
        dtype = self.dtype or low.dtype
        return low.astype(dtype) * attention[:, None, None].astype(dtype) + high.astype(dtype)
