"""Max pooling whose gradient is fast everywhere, average pooling, and both over a fixed number of
bins (adaptive)."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxseg.layers.padding import Padding, explicit_padding, pair
from flaxseg.layers.precision import at_least_float32
from flaxseg.layers.taps import Pads, check_fits, place, taps


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
    is written as sums of shifted images: XLA's own (select-and-scatter) is several times slower on
    CPU and missing from the deterministic mode of its GPU back end.

    Args:
      x: `[N, H, W, C]` floats.
      window: an int or `(height, width)`.
      strides: steps between windows.
      rate: distance between the cells of a window, as of an atrous convolution's taps.
      padding: see `explicit_padding`.
      ceil_mode: whether a last window that starts inside the image or its top-left padding but
        reaches over the border counts, as in Caffe and in PyTorch's `ceil_mode=True`.

    Returns:
      `[N, H', W', C]`.

    Raises:
      ValueError: the window does not fit into the padded image.
    """
    window, strides, rate = pair(window, "window"), pair(strides, "strides"), pair(rate, "rate")
    pads = explicit_padding(padding, x.shape[1:3], window, strides, rate)
    if ceil_mode:
        pads = tuple(
            _ceil_padding(n, r * (k - 1) + 1, s, p)
            for n, k, s, r, p in zip(x.shape[1:3], window, strides, rate, pads, strict=True)
        )
    check_fits(x.shape[1:3], window, strides, rate, pads)
    return _max_pool(x, window, strides, rate, pads)


def global_average_pool(x: jax.Array) -> jax.Array:
    """Returns the float32 mean over height and width, `[N, 1, 1, C]`, in the dtype of `x` `[N, H,
    W, C]`."""
    return x.mean((1, 2), keepdims=True, dtype=jnp.float32).astype(x.dtype)


def average_pool(
    x: jax.Array,
    window: int | tuple[int, int],
    *,
    strides: int | tuple[int, int] | None = None,
    ceil_mode: bool = False,
) -> jax.Array:
    """Takes the mean over windows without padding.

    Args:
      x: `[N, H, W, C]` floats.
      window: an int or `(height, width)`; a window larger than the image covers all of it.
      strides: steps between windows; those of the window by default.
      ceil_mode: whether a last window that starts inside the image but reaches over the border
        counts, as in Caffe; its mean is that of the cells inside.

    Returns:
      `[N, H', W', C]` of the dtype of `x`, summed in float32.
    """
    window = pair(window, "window")
    strides = window if strides is None else pair(strides, "strides")
    rows, columns = (
        _window_bins(n, k, s, ceil_mode)
        for n, k, s in zip(x.shape[1:3], window, strides, strict=True)
    )
    return _average_over(x, rows, columns)


def adaptive_average_pool(x: jax.Array, bins: int | tuple[int, int]) -> jax.Array:
    """Divides the image into bins and takes the mean of each, as PyTorch's
    `AdaptiveAvgPool2d`.

    Bin i of b covers the cells from `floor(i * n / b)` to before `ceil((i + 1) * n / b)`. Where b
    does not divide n, neighbours share a cell; where b exceeds n, cells repeat.

    Args:
      x: `[N, H, W, C]` floats, any H and W from 1.
      bins: an int or `(vertical, horizontal)`.

    Returns:
      `[N, *bins, C]` of the dtype of `x`, summed in float32.
    """
    rows, columns = _adaptive_bins(x.shape[1:3], bins)
    return _average_over(x, rows, columns)


def adaptive_max_pool(x: jax.Array, bins: int | tuple[int, int]) -> jax.Array:
    """Divides the image into the bins of `adaptive_average_pool` and takes the maximum of each.

    The gradient goes to the first maximum of a bin in row order, as in PyTorch.

    Args:
      x: `[N, H, W, C]` floats, any H and W from 1.
      bins: an int or `(vertical, horizontal)`.

    Returns:
      `[N, *bins, C]` of the dtype of `x`.
    """
    rows, columns = _adaptive_bins(x.shape[1:3], bins)
    # The first maximum within each row, then the first row that has it.
    x = jnp.concatenate([_first_maximum(x[:, :, a:b], 2) for a, b in columns], 2)
    return jnp.concatenate([_first_maximum(x[:, a:b], 1) for a, b in rows], 1)


_Bins = tuple[tuple[int, int], ...]


def _adaptive_bins(size: tuple[int, int], bins: int | tuple[int, int]) -> tuple[_Bins, _Bins]:
    """Returns the cells `[start, end)` of each bin along both axes."""
    rows, columns = (
        tuple((i * n // b, -(-(i + 1) * n // b)) for i in range(b))
        for n, b in zip(size, pair(bins, "bins"), strict=True)
    )
    return rows, columns


def _window_bins(n: int, window: int, stride: int, ceil_mode: bool) -> _Bins:
    steps = max(n - window, 0) / stride
    count = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
    # A window that starts at or after the border would hold no cell.
    count = min(count, (n - 1) // stride + 1)
    return tuple((i * stride, min(i * stride + window, n)) for i in range(count))


def _average_over(x: jax.Array, rows: _Bins, columns: _Bins) -> jax.Array:
    """Returns means over rectangles as two matrix products: one pass over `x` however the bins
    overlap, and a gradient without scatter."""
    products = {
        "precision": lax.Precision.HIGHEST,
        "preferred_element_type": at_least_float32(x.dtype),
    }
    # Rows first, with the matrix once for each image: nothing has to be transposed.
    matrix = jnp.asarray(_averaging_matrix(x.shape[1], rows, x.dtype))
    matrix = jnp.broadcast_to(matrix, (x.shape[0], *matrix.shape))
    y = jnp.einsum("nah,nhwc->nawc", matrix, x, **products)
    y = jnp.einsum("bw,nawc->nabc", _averaging_matrix(x.shape[2], columns, y.dtype), y, **products)
    cells = np.outer([b - a for a, b in rows], [b - a for a, b in columns])
    return (y / cells[None, ..., None].astype(y.dtype)).astype(x.dtype)


def _averaging_matrix(n: int, bins: _Bins, dtype) -> np.ndarray:
    """Returns `[bins, n]` with ones where a cell is in a bin. Those are exact in any float type, so
    the sum is divided, not the matrix."""
    cell = np.arange(n)
    return np.stack([(cell >= a) & (cell < b) for a, b in bins]).astype(dtype)


def _first_maximum(x: jax.Array, axis: int) -> jax.Array:
    """Returns the maximum along an axis, which is kept; its gradient goes to the first cell that
    has it."""
    index = lax.expand_dims(lax.argmax(x, axis, jnp.int32), (axis,))
    first = lax.broadcasted_iota(jnp.int32, x.shape, axis) == index
    return jnp.where(first, x, 0).sum(axis, keepdims=True)


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
