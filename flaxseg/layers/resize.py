"""Resizes images, features and labels: bilinear or nearest, with the conventions of the frameworks
as explicit arguments."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.layers.forms import resolve_form
from flaxseg.layers.precision import at_least_float32
from flaxseg.layers.split_rows import rows_are_split, split_rows, whole_rows

ALIGN_CORNERS = (True, False, "cells")
"""The values of `align_corners`, see `resize`."""

MOST_TERMS = {"products": 64, "phases": 32}
"""The longest sum that each form writes term by term; the gradient of enlarging 32 times has 63. On
a GPU XLA makes one kernel of 31 terms, and of 63 a kernel each."""


def resize(
    x: jax.Array,
    size: tuple[int, int],
    *,
    method: str = "bilinear",
    align_corners: bool | str,
    antialias: bool = False,
    form: str = "auto",
) -> jax.Array:
    """Resizes images or features.

    `align_corners` says which points of the input and the output coincide:

    * True: the centres of the corner cells, `source = target * (n - 1) / (m - 1)`, as in PyTorch's
      `align_corners=True`, Caffe's Interp and TensorFlow's DeepLab.
    * False: the borders, `source = (target + 0.5) * n / m - 0.5`, as in PyTorch's default, OpenCV
      and `jax.image.resize`.
    * "cells": cell `i` and pixel `stride * i`, where a convolution padded on both sides puts the
      features of a network that strides by powers of two; the last cell is repeated up to the
      border. For sizes `stride * k + 1` this equals True. For other sizes True would stretch the
      features by up to a stride, and False shift them by half a stride. Reducing takes pixel
      `stride * i` for cell `i`, as labels for such features need it.

    Args:
      x: `[N, H, W, C]`, any number type.
      size: `(height, width)` of the result, at least 1.
      method: `"bilinear"`, or `"nearest"` for labels: no value is invented. Nearest takes the cell
        whose centre is nearest to the position that bilinear would read, of two the further one
        (PyTorch's `"nearest-exact"` and Pillow's `NEAREST`; PyTorch's `"nearest"` takes
        the upper left of the pixels that become one).
      align_corners: see above. There is no default, because both are common and a wrong one costs
        accuracy silently.
      antialias: widen the bilinear kernel by the factor of the reduction when the result is
        smaller, as Pillow and `jax.image.resize` do; only with `align_corners=False`.
      form: of bilinear resizing: `"native"` multiplies with a matrix of weights along each axis;
        `"products"` and `"phases"`, many times as fast on a CPU and a third of the bytes on a GPU,
        add up the terms whose weights are not zero, with a gradient of their own (reverse mode
        only); `"auto"` is `flaxseg.layers.preferred_form()`.

    Returns:
      `[N, height, width, C]` of the dtype of `x`; bilinear needs a float type.

    Raises:
      ValueError: an argument is not one of the above, or the combination is undefined.
    """
    form = resolve_form(form)
    if x.ndim != 4:
        raise ValueError(f"x has shape {x.shape}; wanted [N, H, W, C].")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {size}; wanted (height, width), both at least 1.")
    if align_corners not in ALIGN_CORNERS:
        raise ValueError(f"align_corners is {align_corners!r}; it must be True, False or 'cells'.")
    if antialias and align_corners is not False:
        raise ValueError(
            f"antialias needs align_corners=False; align_corners is {align_corners!r}."
        )
    if method == "nearest":
        rows, columns = (
            _nearest_index(n, m, align_corners) for n, m in zip(x.shape[1:3], size, strict=True)
        )
        return x[:, rows][:, :, columns]
    if method != "bilinear":
        raise ValueError(f"method is {method!r}; it must be 'bilinear' or 'nearest'.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x is {x.dtype}; bilinear needs floats, labels need method='nearest'.")
    size = tuple(size)
    if x.shape[1:3] == size:
        return x
    rows, columns = (
        interpolation_matrix(n, m, align_corners, antialias)
        for n, m in zip(x.shape[1:3], size, strict=True)
    )
    if form != "native" and not antialias and not rows_are_split():
        return weighted_by_terms(x, rows, columns, MOST_TERMS[form])
    return _by_matrices(x, rows, columns)


def shrink(x: jax.Array, factor: int) -> jax.Array:
    """Resizes bilinearly to `(n - 1) // factor + 1` cells a side, corners aligned: Caffe's Interp
    with `shrink_factor`, which of `factor * k + 1` cells takes every `factor`-th as it is.

    Args:
      x: `[N, H, W, C]` floats.
      factor: at least 1.
    """
    height, width = ((n - 1) // factor + 1 for n in x.shape[1:3])
    return resize(x, (height, width), align_corners=True)


def zoom(x: jax.Array, factor: int) -> jax.Array:
    """Resizes bilinearly to `factor * (n - 1) + 1` cells a side, corners aligned: Caffe's Interp
    with `zoom_factor`.

    Args:
      x: `[N, H, W, C]` floats.
      factor: at least 1.
    """
    height, width = (factor * (n - 1) + 1 for n in x.shape[1:3])
    return resize(x, (height, width), align_corners=True)


def interpolation_matrix(
    n: int, m: int, align_corners: bool | str, antialias: bool = False
) -> np.ndarray:
    """Returns `[m, n]` float32 weights of the `n` sources in each of the `m` targets; rows sum to
    one."""
    source = _source_position(n, m, align_corners)
    reach = max(n / m, 1.0) if antialias else 1.0
    if not antialias:
        source = np.clip(source, 0, n - 1)
    weights = np.maximum(0.0, 1.0 - np.abs(np.arange(n)[None] - source[:, None]) / reach)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _source_position(n: int, m: int, align_corners: bool | str) -> np.ndarray:
    target = np.arange(m, dtype=np.float64)
    if align_corners == "cells":
        # The only stride of which there are ceil(larger / stride) cells.
        stride = 2.0 ** math.ceil(math.log2(max(n, m) / min(n, m)))
        return np.minimum(target / stride if m > n else target * stride, n - 1)
    if align_corners:
        return target * ((n - 1) / (m - 1)) if m > 1 else np.zeros(1)
    return (target + 0.5) * (n / m) - 0.5


def _nearest_index(n: int, m: int, align_corners: bool | str) -> np.ndarray:
    if align_corners:
        return np.floor(_source_position(n, m, align_corners) + 0.5).astype(np.int32)
    # In whole numbers, so that no tie depends on rounding.
    return ((2 * np.arange(m, dtype=np.int64) + 1) * n // (2 * m)).astype(np.int32)


def weighted_by_terms(
    x: jax.Array, rows: np.ndarray, columns: np.ndarray, most_terms: int
) -> jax.Array:
    """Returns the products of matrices with the rows and the columns of `x`, as sums of the terms
    whose weights are not zero, in float32; reverse mode only.

    Args:
      x: `[N, H, W, C]` floats.
      rows: `[H', H]` weights.
      columns: `[W', W]` weights.
      most_terms: of a sum that is written term by term; longer ones are products of matrices.

    Returns:
      `[N, H', W', C]` of the dtype of `x`.
    """

    @jax.custom_vjp
    def product(x):
        y = _sum_terms(x.astype(at_least_float32(x.dtype)), columns, 2, most_terms)
        return _sum_terms(y, rows, 1, most_terms).astype(x.dtype)

    def backward(residuals, gradient):
        del residuals  # a linear function has none
        g = gradient.astype(at_least_float32(gradient.dtype))
        g = _sum_terms(_sum_terms(g, rows.T, 1, most_terms), columns.T, 2, most_terms)
        return (g.astype(gradient.dtype),)

    product.defvjp(lambda x: (product(x), None), backward)
    return product(x)


def _sum_terms(x: jax.Array, weights: np.ndarray, axis: int, most: int) -> jax.Array:
    """Returns the product of `weights` `[m, n]` with `x` along an axis of `n` cells, term by term
    where no row has more than `most` weights that are not zero."""
    count = (weights != 0).sum(1).max()
    if count > most:
        return (_interpolate_rows if axis == 1 else _interpolate_columns)(x, weights)
    index = np.argsort(weights == 0, axis=1, kind="stable")[:, :count]
    share = np.take_along_axis(weights, index, 1).astype(x.dtype)
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    terms = (
        share[:, k].reshape(shape) * jnp.take(x, index[:, k], axis, mode="clip")
        for k in range(count)
    )
    return sum(terms)


def _by_matrices(x: jax.Array, rows: np.ndarray, columns: np.ndarray) -> jax.Array:
    if not rows_are_split():
        return _interpolate_rows(_interpolate_columns(x, columns), rows)
    # Rows first: of both ends, the one with fewer rows and columns is sent between devices.
    if rows.shape[0] > rows.shape[1]:
        x = _interpolate_rows(whole_rows(x), rows)
        return _interpolate_columns(split_rows(x), columns)
    x = _interpolate_columns(x, columns)
    return split_rows(whole_rows(_interpolate_rows(x, rows)))


def _interpolate_rows(x: jax.Array, weights: np.ndarray) -> jax.Array:
    if weights.shape[0] == weights.shape[1] and np.array_equal(weights, np.eye(len(weights))):
        return x
    return jnp.einsum(
        "mh,nhwc->nmwc", weights.astype(x.dtype), x, precision=jax.lax.Precision.HIGHEST
    )


def _interpolate_columns(x: jax.Array, weights: np.ndarray) -> jax.Array:
    if weights.shape[0] == weights.shape[1] and np.array_equal(weights, np.eye(len(weights))):
        return x
    return jnp.einsum(
        "mw,nhwc->nhmc", weights.astype(x.dtype), x, precision=jax.lax.Precision.HIGHEST
    )
