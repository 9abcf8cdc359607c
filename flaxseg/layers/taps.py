"""Computes which cells each tap of a kernel reads and writes."""

import jax
import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Cells of padding, `((top, bottom), (left, right))`."""


def output_size(
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    strides: tuple[int, int],
    rate: tuple[int, int],
    pads: Pads,
) -> tuple[int, int]:
    """Returns the `(height, width)` that a convolution or floor-mode pool gives; below 1 where the
    kernel does not fit."""
    height, width = (
        (n + before + after - r * (k - 1) - 1) // s + 1
        for n, k, s, r, (before, after) in zip(size, kernel_size, strides, rate, pads, strict=True)
    )
    return height, width


def check_fits(
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    strides: tuple[int, int],
    rate: tuple[int, int],
    pads: Pads,
) -> None:
    """Raises ValueError unless a kernel or window fits into the padded input."""
    if min(output_size(size, kernel_size, strides, rate, pads)) < 1:
        raise ValueError(
            f"an input of {size} cells with padding {pads} is smaller than the window "
            f"{kernel_size} at rate {rate}; enlarge the input or the padding."
        )


def tap_ranges(n: int, out: int, offset: int, stride: int) -> tuple[slice, slice] | None:
    """Returns the outputs that one tap of a kernel contributes to and the inputs that it reads for
    them, along one axis.

    The tap reads input `stride * o + offset` for output `o`; outputs for which that lies outside
    `[0, n)` read padding.

    Returns:
      `(outputs, inputs)` slices of equal length, or None when the tap reads only padding.
    """
    first = max(0, -(offset // stride))
    last = min(out - 1, (n - 1 - offset) // stride)
    if last < first:
        return None
    start = stride * first + offset
    return slice(first, last + 1), slice(start, stride * last + offset + 1, stride)


def taps(
    size: tuple[int, int],
    out: tuple[int, int],
    kernel_size: tuple[int, int],
    strides: tuple[int, int],
    rate: tuple[int, int],
    pads: Pads,
):
    """Yields `(i, j, outputs, inputs)` for every tap that meets the input; the last two are
    pairs of slices over H and W."""
    for i in range(kernel_size[0]):
        rows = tap_ranges(size[0], out[0], i * rate[0] - pads[0][0], strides[0])
        for j in range(kernel_size[1]):
            columns = tap_ranges(size[1], out[1], j * rate[1] - pads[1][0], strides[1])
            if rows is not None and columns is not None:
                yield i, j, (rows[0], columns[0]), (rows[1], columns[1])


def place(values: jax.Array, region: tuple[slice, slice], size: tuple[int, int]) -> jax.Array:
    """Returns zeros of `size` with `values` `[N, h, w, C]` at `region`; the transpose of slicing,
    written as one padding."""
    config = [(0, 0, 0)]
    for where, n, count in zip(region, size, values.shape[1:3], strict=True):
        step = where.step or 1
        end = where.start + step * (count - 1) + 1
        config.append((where.start, n - end, step - 1))
    return lax.pad(values, jnp.zeros((), values.dtype), [*config, (0, 0, 0)])
