"""Max pooling with a gradient that is fast everywhere, and global average pooling."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from flaxseg.layers.atrous import Pads, output_size, place, taps
from flaxseg.layers.padding import Padding, explicit_padding, pair


def max_pool(
    x: jax.Array,
    window: int | tuple[int, int],
    *,
    strides: int | tuple[int, int] = 1,
    rate: int | tuple[int, int] = 1,
    padding: Padding = "valid",
    ceil_mode: bool = False,
) -> jax.Array:
    """Takes the maximum over windows; padding never wins.

    The gradient goes to the first maximum of each window in row order, as in PyTorch and Caffe. It
    is written as sums of shifted
    pictures: XLA's own (select-and-scatter) is several times slower on CPU and missing from the
      deterministic mode of its GPU back end.

    Args:
      x: `[N, H, W, C]` floats.
      window: an int or `(height, width)`.
      strides: steps between windows.
      rate: distance between the cells of a window, as of an atrous convolution's taps.
      padding: see `explicit_padding`.
      ceil_mode: whether a last window that starts inside the picture or its top-left padding but
        reaches over the border counts, as in Caffe and in PyTorch's `ceil_mode=True`.

    Returns:
      `[N, H', W', C]`.

    Raises:
      ValueError: the window does not fit into the padded picture.
    """
    window, strides, rate = pair(window, "window"), pair(strides, "strides"), pair(rate, "rate")
    pads = explicit_padding(padding, x.shape[1:3], window, strides, rate)
    if ceil_mode:
        pads = tuple(
            _ceil_padding(n, r * (k - 1) + 1, s, p)
            for n, k, s, r, p in zip(x.shape[1:3], window, strides, rate, pads, strict=True)
        )
    if min(output_size(x.shape[1:3], window, strides, rate, pads)) < 1:
        raise ValueError(
            f"an input of {x.shape[1:3]} cells with padding {pads} is smaller than "
            f"the window {window} at rate {rate}; enlarge the input or the padding."
        )
    return _max_pool(x, window, strides, rate, pads)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Returns the float32 mean over height and width, `[N, 1, 1, C]`, in the dtype of `x` `[N, H,
    W, C]`."""
    return x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)


def _ceil_padding(n: int, window: int, stride: int, pads: tuple[int, int]) -> tuple[int, int]:
    before, after = pads
    windows = -(-(n + before + after - window) // stride) + 1
    if (windows - 1) * stride >= n + before:
        windows -= 1
    return before, max(after, (windows - 1) * stride + window - n - before)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _max_pool(x, window, strides, rate, pads: Pads):
    return lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, *window, 1),
        (1, *strides, 1),
        ((0, 0), *pads, (0, 0)),
        window_dilation=(1, *rate, 1),
    )


def _max_pool_forward(x, window, strides, rate, pads):
    y = _max_pool(x, window, strides, rate, pads)
    return y, (x, y)


def _max_pool_backward(window, strides, rate, pads, residuals, gradient):
    x, y = residuals
    size, out = x.shape[1:3], y.shape[1:3]
    free = jnp.ones(y.shape, bool)
    x_gradient = jnp.zeros_like(x)
    for _, _, outputs, inputs in taps(size, out, window, strides, rate, pads):
        wins = free[:, *outputs] & (x[:, *inputs] == y[:, *outputs])
        x_gradient += place(jnp.where(wins, gradient[:, *outputs], 0), inputs, size)
        free = free & ~place(wins, outputs, out)
    return (x_gradient,)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
