"""Computes a depthwise convolution as a sum of shifted inputs, each times a tap: the form for CPUs,
where XLA's grouped convolution is slow."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from flaxseg.layers.channels import along_channels
from flaxseg.layers.split_rows import rows_are_split, split_rows, whole_rows
from flaxseg.layers.taps import output_size

# How many numbers of the gradient one turn of the blocked weight gradient takes: what stays in a
# core's cache.
_BLOCK = 1 << 18


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def shifted_products(x, kernel, strides, rate, pads):
    return _correlate(_pad(x, pads), kernel, strides, rate)


def _shifted_forward(x, kernel, strides, rate, pads):
    padded = _pad(x, pads)
    # Do not save the gathered copy as a residual.
    kept = x if rows_are_split() else padded
    return _correlate(padded, kernel, strides, rate), (kept, kernel)


def _shifted_backward(strides, rate, pads, residuals, gradient):
    # Without the barrier the compiler keeps the shifted images of the forward pass, one for each
    # tap, for this one.
    padded, gradient = lax.optimization_barrier((residuals[0], gradient))
    kernel = residuals[1]
    if rows_are_split():
        padded = _pad(padded, pads)
    size = tuple(n - sum(side) for n, side in zip(padded.shape[1:3], pads, strict=True))
    x_gradient = _input_gradient(size, kernel, gradient, strides, rate, pads)
    return x_gradient, _kernel_gradient(padded, kernel, gradient, strides, rate)


shifted_products.defvjp(_shifted_forward, _shifted_backward)


def _correlate(padded, kernel, strides, rate):
    """Returns the sum over taps of the shifted image times the tap."""
    out = output_size(padded.shape[1:3], kernel.shape[:2], strides, rate, ((0, 0), (0, 0)))
    y = None
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            window = _window(padded, i, j, out, strides, rate)
            term = window * along_channels(kernel[i, j, 0], window)
            y = term if y is None else y + term
    return y


def _input_gradient(size, kernel, gradient, strides, rate, pads):
    """Returns the transpose of `_correlate`: for every phase of the stride, a correlation of the
    gradient with the taps that meet it."""
    spans, out = [], gradient.shape[1:3]
    for n, m, k, s, r, (before, _) in zip(
        size, out, kernel.shape[:2], strides, rate, pads, strict=True
    ):
        # Input p takes from output o through tap t where s * o + r * t - before = p.
        phases = []
        for phase in range(s):
            members = [
                (t, (phase + before - r * t) // s)
                for t in range(k)
                if (phase + before - r * t) % s == 0
            ]
            phases.append(members)
        count = -(-n // s)
        offsets = [offset for members in phases for _, offset in members]
        low = max(0, -min(offsets, default=0))
        high = max(0, max(offsets, default=0) + count - m)
        spans.append((phases, count, (low, high)))
    (row_phases, rows, row_pads), (column_phases, columns, column_pads) = spans
    padded = _pad(gradient, (row_pads, column_pads))

    def correlation(row_taps, column_taps):
        y = None
        for i, down in row_taps:
            for j, right in column_taps:
                top, left = down + row_pads[0], right + column_pads[0]
                window = padded[:, top : top + rows, left : left + columns]
                term = _own_rows(window) * along_channels(kernel[i, j, 0], window)
                y = term if y is None else y + term
        shape = (gradient.shape[0], rows, columns, gradient.shape[3])
        return y if y is not None else jnp.zeros(shape, gradient.dtype)

    if strides == (1, 1):
        return correlation(row_phases[0], column_phases[0])
    phases = jnp.stack(
        [jnp.stack([correlation(a, b) for b in column_phases], 3) for a in row_phases], 2
    )  # [N, rows, row phase, columns, column phase, C]
    shape = (gradient.shape[0], rows * strides[0], columns * strides[1], gradient.shape[3])
    return phases.reshape(shape)[:, : size[0], : size[1]]


def _kernel_gradient(padded, kernel, gradient, strides, rate):
    """Returns the sum over images of the shifted image times the gradient, a block of rows at a
    time: whole images would not fit a cache."""
    (kh, kw), (n, height, width, channels) = kernel.shape[:2], gradient.shape

    def block_gradient(padded, gradient):
        size = gradient.shape[1:3]
        taps_of_block = [
            jnp.sum(
                _window(padded, i, j, size, strides, rate) * gradient,
                (0, 1, 2),
                dtype=jnp.float32,
            )
            for i in range(kh)
            for j in range(kw)
        ]
        return jnp.stack(taps_of_block)

    if gradient.size <= _BLOCK or rows_are_split():
        total = block_gradient(padded, gradient)
    else:
        rows = min(height, max(1, _BLOCK // (width * channels)))
        blocks = -(-height // rows)
        rows = -(-height // blocks)
        missing = blocks * rows - height
        gradient = jnp.pad(gradient, ((0, 0), (0, missing), (0, 0), (0, 0)))
        span = strides[0] * (rows - 1) + rate[0] * (kh - 1) + 1
        lacking = max(0, strides[0] * rows * (blocks - 1) + span - padded.shape[1])
        padded = jnp.pad(padded, ((0, 0), (0, lacking), (0, 0), (0, 0)))

        def add_block(turn, total):
            image, row = turn // blocks, turn % blocks * rows
            window = lax.dynamic_slice(
                padded,
                (image, row * strides[0], 0, 0),
                (1, span, padded.shape[2], channels),
            )
            block = lax.dynamic_slice(gradient, (image, row, 0, 0), (1, rows, width, channels))
            return total + block_gradient(lax.optimization_barrier(window), block)

        zero = jnp.zeros((kh * kw, channels), jnp.float32)
        total = lax.fori_loop(0, n * blocks, add_block, zero)
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _pad(x, pads):
    """Returns `x`, all its rows, with zeros around it, computed once: otherwise the compiler
    recomputes it, and all that led to it, for every tap."""
    return lax.optimization_barrier(whole_rows(jnp.pad(whole_rows(x), ((0, 0), *pads, (0, 0)))))


def _window(padded, i, j, out, strides, rate):
    """Returns the cells of the padded image that tap `(i, j)` reads."""
    top, left = i * rate[0], j * rate[1]
    bottom, right = top + strides[0] * (out[0] - 1) + 1, left + strides[1] * (out[1] - 1) + 1
    return _own_rows(padded[:, top : bottom : strides[0], left : right : strides[1]])


def _own_rows(window):
    """Returns the part of a window on all rows that this device works on."""
    return split_rows(whole_rows(window))
