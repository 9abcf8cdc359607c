"""Max pooling that remembers where its maxima were, and unpooling, which puts values back there.

(Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2014, section 2.1;
SegNet and DeconvNet decode with it.) Windows do not overlap, so that a position is a small number
within its window and unpooling writes every cell once: a comparison and no scatter, forward and
backward.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.layers.padding import pair


def max_pool_with_indices(
    x: jax.Array, window: int | tuple[int, int] = 2, *, ceil_mode: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Takes the maximum over windows that lie side by side, and tells where in its window each was.

    Of equal values the first in row order counts, and NaN above all others, as in PyTorch's
    `MaxPool2d(return_indices=True)`. The gradient goes to that cell alone.

    Args:
      x: `[N, H, W, C]` floats.
      window: an int or `(height, width)`, also the steps between windows; at most 256 cells.
      ceil_mode: whether a last window that reaches over the border counts, as in Caffe, or is left
        out, with the cells that it covers.

    Returns:
      The maxima, `[N, H', W', C]`, and their positions, uint8 of the same shape: `i * width + j`
      for row i and column j of the window.

    Raises:
      ValueError: the window has more than 256 cells or, without `ceil_mode`, does not fit into the
        image.
    """
    window = pair(window, "window")
    if window[0] * window[1] > 256:
        raise ValueError(f"window is {window}; it may have at most 256 cells.")
    size = tuple(
        -(-n // k) if ceil_mode else n // k for n, k in zip(x.shape[1:3], window, strict=True)
    )
    if min(size) < 1:
        raise ValueError(
            f"an input of {x.shape[1:3]} cells is smaller than the window {window}; enlarge the "
            "input or set ceil_mode."
        )
    return _pool(x, window, size)


def max_unpool(
    y: jax.Array,
    indices: jax.Array,
    size: tuple[int, int] | None = None,
    window: int | tuple[int, int] = 2,
) -> jax.Array:
    """Puts each value at the position in its window that `indices` tells, and zeros elsewhere.

    As PyTorch's `MaxUnpool2d`. The gradient of a value is that of the cell it was put into.

    Args:
      y: `[N, H', W', C]` floats.
      indices: of `max_pool_with_indices`, in the shape of `y`.
      size: `(height, width)` of the result, where it was not a multiple of the window; less than a
        window off `(H', W')` times the window, which it is by default.
      window: that of the pooling.

    Returns:
      `[N, *size, C]`.

    Raises:
      ValueError: the shapes of values and indices differ, or no pooling takes `size` to theirs.
    """
    window = pair(window, "window")
    if y.shape != indices.shape:
        raise ValueError(
            f"values {y.shape} and indices {indices.shape} differ; the indices must be of a "
            "pooling to the shape of the values."
        )
    full = tuple(n * k for n, k in zip(y.shape[1:3], window, strict=True))
    size = full if size is None else tuple(size)
    if any(abs(m - f) >= k for m, f, k in zip(size, full, window, strict=True)):
        raise ValueError(
            f"size is {size}; windows of {window} pool none of less than {window} cells off "
            f"{full} to {y.shape[1:3]}."
        )
    here = indices[:, :, None, :, None] == _positions(window)
    x = jnp.where(here, y[:, :, None, :, None], jnp.zeros((), y.dtype))
    x = x.reshape(y.shape[0], *full, y.shape[3])[:, : size[0], : size[1]]
    missing = [(0, max(m - f, 0)) for m, f in zip(size, full, strict=True)]
    return jnp.pad(x, ((0, 0), *missing, (0, 0)))


def _positions(window: tuple[int, int]) -> np.ndarray:
    """Returns the numbers of a window's cells, `[1, 1, kh, 1, kw, 1]`."""
    cells = np.arange(window[0] * window[1], dtype=np.uint8)
    return cells.reshape(1, 1, window[0], 1, window[1], 1)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _pool(x, window, size):
    missing = [max(m * k - n, 0) for m, k, n in zip(size, window, x.shape[1:3], strict=True)]
    if any(missing):
        pads = ((0, 0), *((0, after) for after in missing), (0, 0))
        x = jnp.pad(x, pads, constant_values=-jnp.inf)
    x = x[:, : size[0] * window[0], : size[1] * window[1]]
    y, indices = x[:, :: window[0], :: window[1]], jnp.zeros((), jnp.uint8)
    for number in range(1, window[0] * window[1]):
        row, column = divmod(number, window[1])
        cell = x[:, row :: window[0], column :: window[1]]
        wins = (cell > y) | jnp.isnan(cell)
        y, indices = jnp.where(wins, cell, y), jnp.where(wins, jnp.uint8(number), indices)
    return y, jnp.broadcast_to(indices, y.shape)


def _pool_forward(x, window, size):
    y, indices = _pool(x, window, size)
    return (y, indices), (indices, x.shape[1:3])


def _pool_backward(window, size, residuals, gradients):
    del size
    indices, cells = residuals
    return (max_unpool(gradients[0], indices, cells, window),)


_pool.defvjp(_pool_forward, _pool_backward)
