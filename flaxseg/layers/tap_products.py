"""Computes a convolution as sums of matrix products, tap by tap: the form for CPUs.

XLA's CPU back end computes the weight gradient of a convolution, and everything about 1x1
convolutions, several times slower than matrix products of the same size; and a dilated kernel that
reaches over the border spends most of its time on padding. So the convolution is written as the
matrix products that it is wherever that was measured to be faster (`benchmarks/`).
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp

from flaxseg.layers.taps import Pads, output_size, place, taps
from flaxseg.layers.xla_convolution import native_conv

# With fewer input channels than this, the products of single taps are too thin to beat XLA's weight
# gradient.
_MIN_CHANNELS_FOR_TAPS = 16
# The forward pass too is written as tap products when less than this share of the kernel's
# multiplications meets the input.
_MAX_OVERLAP_FOR_TAPS = 0.85
# The input is cut into pieces that several taps share where a piece has at least this many rows and
# columns on average; products of smaller ones are slow.
_MIN_PIECE = 8


def conv_products(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], rate: tuple[int, int], pads: Pads
) -> jax.Array:
    """Returns `atrous_conv` in the fastest form for a CPU; reverse mode only."""
    if kernel.shape[:2] == (1, 1) and pads == ((0, 0), (0, 0)):
        return _pointwise(x[:, :: strides[0], :: strides[1]], kernel)
    if kernel.shape[2] < _MIN_CHANNELS_FOR_TAPS:
        return native_conv(x, kernel, strides, rate, pads)
    overlap = _overlap_share(x.shape[1:3], kernel.shape[:2], strides, rate, pads)
    return _conv_products(x, kernel, strides, rate, pads, overlap < _MAX_OVERLAP_FOR_TAPS)


def _overlap_share(size, kernel_size, strides, rate, pads) -> float:
    """Returns the share of the kernel's multiplications that meet the input, not padding."""
    out = output_size(size, kernel_size, strides, rate, pads)
    met = sum(
        (rows.stop - rows.start) * (columns.stop - columns.start)
        for _, _, (rows, columns), _ in taps(size, out, kernel_size, strides, rate, pads)
    )
    return met / (out[0] * out[1] * kernel_size[0] * kernel_size[1])


def _pointwise(x, kernel):
    flat = jnp.dot(x.reshape(-1, x.shape[3]), kernel[0, 0])
    return flat.reshape(*x.shape[:3], kernel.shape[3])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _conv_products(x, kernel, strides, rate, pads, by_taps):
    """Returns a convolution whose weight gradient, and with `by_taps` everything, is a sum of
    matrix products over taps."""
    if not by_taps:
        return native_conv(x, kernel, strides, rate, pads)
    out = output_size(x.shape[1:3], kernel.shape[:2], strides, rate, pads)
    y = jnp.zeros((x.shape[0], *out, kernel.shape[3]), x.dtype)
    met = list(taps(x.shape[1:3], out, kernel.shape[:2], strides, rate, pads))
    read = _reader(x, [inputs for *_, inputs in met])
    for i, j, outputs, inputs in met:
        tap = kernel[i : i + 1, j : j + 1]
        product = _joined([[_pointwise(part, tap) for part in row] for row in read(inputs)])
        y += place(product, outputs, out)
    return y


def _reader(x, regions):
    """Returns a function from one of the `regions`, pairs of slices over H and W, to the parts of
    `x` that make it up, rows of columns.

    Where regions overlap widely, cutting out each would copy the input many times. So the input is
    cut once, at all borders of the regions, and the products of the pieces are joined: those have
    fewer channels as a rule.
    """
    size = x.shape[1:3]
    borders = [
        sorted({0, n, *(edge for region in regions for edge in (region[k].start, region[k].stop))})
        for k, n in enumerate(size)
    ]
    large = all(n >= _MIN_PIECE * (len(b) - 1) for n, b in zip(size, borders, strict=True))
    if not large or any(where.step != 1 for region in regions for where in region):
        return lambda region: [[x[:, *region]]]
    rows, columns = (list(itertools.pairwise(edges)) for edges in borders)
    pieces = {
        (top, left): x[:, top:bottom, left:right] for top, bottom in rows for left, right in columns
    }
    return lambda region: [
        [pieces[top, left] for left, _ in columns if region[1].start <= left < region[1].stop]
        for top, _ in rows
        if region[0].start <= top < region[0].stop
    ]


def _joined(parts):
    """Returns rows of columns of parts as one array."""
    return jnp.concatenate([jnp.concatenate(row, 2) for row in parts], 1)


def _conv_products_forward(x, kernel, strides, rate, pads, by_taps):
    return _conv_products(x, kernel, strides, rate, pads, by_taps), (x, kernel)


def _conv_products_backward(strides, rate, pads, by_taps, residuals, gradient):
    x, kernel = residuals
    size, out, kernel_size = x.shape[1:3], gradient.shape[1:3], kernel.shape[:2]
    if by_taps:
        x_gradient = jnp.zeros_like(x)
    else:
        _, transpose = jax.vjp(lambda x: native_conv(x, kernel, strides, rate, pads), x)
        (x_gradient,) = transpose(gradient)
    products = {}
    for i, j, outputs, inputs in taps(size, out, kernel_size, strides, rate, pads):
        here = gradient[:, *outputs].reshape(-1, gradient.shape[3])
        there = x[:, *inputs].reshape(-1, x.shape[3])
        products[i, j] = jnp.dot(there.T, here)
        if by_taps:
            back = jnp.dot(here, kernel[i, j].T).reshape(x[:, *inputs].shape)
            x_gradient += place(back, inputs, size)
    zero = jnp.zeros(kernel.shape[2:], kernel.dtype)
    rows, columns = kernel_size
    kernel_gradient = jnp.stack(
        [jnp.stack([products.get((i, j), zero) for j in range(columns)]) for i in range(rows)]
    )
    return x_gradient, kernel_gradient


_conv_products.defvjp(_conv_products_forward, _conv_products_backward)
