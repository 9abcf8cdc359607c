"""Says in which dtype sums are taken."""

import jax.numpy as jnp
from flax.typing import Dtype


def at_least_float32(dtype: Dtype) -> jnp.dtype:
    """Returns float32 for every narrower float, and a wider one as it is.

    `jnp.promote_types` says the same and refuses to under strict promotion of dtypes.
    """
    return jnp.dtype(dtype if jnp.finfo(dtype).bits > 32 else jnp.float32)
