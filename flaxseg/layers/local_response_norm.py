"""Local response normalisation (Krizhevsky et al., "ImageNet Classification with Deep Convolutional
Neural Networks", 2012, section 3.3)."""

import jax
import jax.numpy as jnp


def local_response_norm(
    x: jax.Array, size: int = 5, *, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> jax.Array:
    """Divides each value by a power of the mean square of the channels around it.

    `y[c] = x[c] / (k + alpha / size * sum_d x[d]^2) ** beta` over the `size` channels d around c;
    beyond the first and the last there are zeros. Caffe and PyTorch divide alpha by the size, which
    the paper (k = 2) does not.

    Args:
      x: `[N, H, W, C]` floats.
      size: channels in the sum, odd.
      alpha: at least 0.
      beta: the power.
      k: above 0.

    Returns:
      As `x`; the sum is in float32.

    Raises:
      ValueError: the size is not a positive odd number.
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size is {size}; it must be a positive odd number of channels.")
    channels = x.shape[-1]
    reach = size // 2
    squares = jnp.pad(jnp.square(x.astype(jnp.float32)), [(0, 0)] * 3 + [(reach, reach)])
    total = sum(squares[..., shift : shift + channels] for shift in range(size))
    return (x * (k + alpha / size * total) ** -beta).astype(x.dtype)
