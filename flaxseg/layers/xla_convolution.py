"""Calls XLA's convolution in the layouts of this package."""

import jax
import jax.numpy as jnp
from jax import lax

from flaxseg.layers.split_rows import missing_rows
from flaxseg.layers.taps import Pads, output_size

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def native_conv(x, kernel, strides, rate, pads: Pads, groups: int = 1) -> jax.Array:
    """Returns XLA's convolution.

    Where rows are split unevenly over devices, XLA's gradient of the kernel is wrong: it counts the
    rows that only fill up the last device (seen with jax 0.10.2 and 0.12). So every device gets the
    same number of rows, in and out.
    """
    out = output_size(x.shape[1:3], kernel.shape[:2], strides, rate, pads)[0]
    more_in, more_out = missing_rows(x.shape[1]), missing_rows(out)
    if more_in or more_out:
        x = jnp.pad(x, ((0, 0), (0, more_in), (0, 0), (0, 0)))
        (above, below), beside = pads
        pads = ((above, below - more_in + strides[0] * more_out), beside)
    y = lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        rhs_dilation=rate,
        dimension_numbers=_DIMENSIONS,
        feature_group_count=groups,
    )
    return y[:, :out] if more_out else y


def native_transposed_conv(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    """Returns XLA's transposed convolution without padding, `y[p] = sum_i x[i] kernel[p - strides *
    i]`, with a kernel `[k, k, C, features]`."""
    rows, columns = (k - 1 for k in kernel.shape[:2])
    return lax.conv_general_dilated(
        x,
        lax.rev(kernel, (0, 1)),
        (1, 1),
        ((rows, rows), (columns, columns)),
        lhs_dilation=(strides, strides),
        dimension_numbers=_DIMENSIONS,
    )
