"""Lines up a vector of channels with an array whose last axis they are."""

import jax
from jax import lax


def along_channels(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `[C]` as `[1, ..., 1, C]`, with as many axes as `x` has.

    Explicit where NumPy would add the axes by itself: with `jax_numpy_rank_promotion="raise"` a
    mistaken shape is an error, and the layers can be used under that setting.
    """
    return lax.broadcast_to_rank(vector, x.ndim)
