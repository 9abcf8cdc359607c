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
