"""Atrous (dilated) convolution; at rate 1 the ordinary one. In forms that are fast on the platform
at hand.

XLA's CPU back end computes the weight gradient of a convolution, and everything about 1x1
convolutions, several times slower than matrix products of the same size; and a dilated kernel that
reaches over the border spends most of its time on padding. So on a CPU a convolution is written as
the matrix products that it is, tap by tap, wherever that was measured to win (`benchmarks/`). On
GPU and TPU the native convolution is used. All forms give the same value and gradient up to the
order of float additions.
"""

import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax import lax

from flaxseg.layers.forms import resolve_form
from flaxseg.layers.padding import Padding, explicit_padding, pair
from flaxseg.layers.split_rows import missing_rows

Pads = tuple[tuple[int, int], tuple[int, int]]
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Below this many input channels the products of single taps are too thin to win over the native
# weight gradient.
_MIN_CHANNELS_FOR_TAPS = 16
# A kernel is written as tap products altogether when less than this share of its multiplications
# meets the picture.
_MAX_OVERLAP_FOR_TAPS = 0.85
# The input is cut into pieces that several taps share where a piece has at least this many rows and
# columns on average; products of smaller ones are slow.
_MIN_PIECE = 8


class AtrousConv(nn.Module):
    """A convolution whose taps lie `rate` cells apart; `atrous_conv` with parameters.

    Parameters are `kernel` `[kh, kw, C / groups, features]` and, with `use_bias`, `bias`
    `[features]`, both float32: the names and layouts of `nn.Conv`, so weights move between the two.

    Attributes:
      features: channels of the output.
      kernel_size: an int or `(height, width)`.
      strides: an int or `(vertical, horizontal)`.
      rate: dilation, an int or `(vertical, horizontal)`; it may change between training and
        evaluation without changing parameters.
      padding: `"torch"`, `"tf"`, `"valid"`, an int or a pair of pairs; see `explicit_padding`.
      groups: into how many parts the channels of input and output are cut, each part of the output
        seeing its part of the input. XLA's own grouped convolution has a very slow gradient on a
        CPU; for few groups it is as many convolutions.
      use_bias: whether a bias is added.
      kernel_init: initialiser of the kernel; He normal over the fan-out, as the ResNet paper's, by
        default.
      dtype: dtype of the computation and the output; that of the input by default.
      form: see `atrous_conv`.

    Raises:
      ValueError: as `atrous_conv`, or the channels can not be cut into so many groups.
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    strides: int | tuple[int, int] = 1
    rate: int | tuple[int, int] = 1
    padding: Padding = "torch"
    groups: int = 1
    use_bias: bool = False
    kernel_init: Initializer = he_normal_fan_out
    dtype: Dtype | None = None
    form: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if x.shape[-1] % self.groups or self.features % self.groups:
            raise ValueError(
                f"{x.shape[-1]} channels in and {self.features} out can not be cut into "
                f"{self.groups} groups; groups must divide both."
            )
        inputs = x.shape[-1] // self.groups
        shape = (*pair(self.kernel_size, "kernel_size"), inputs, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        dtype = self.dtype or x.dtype
        conv = partial(
            atrous_conv,
            strides=self.strides,
            rate=self.rate,
            padding=self.padding,
            form=self.form,
        )
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        if self.groups == 1:
            y = conv(x, kernel)
        else:
            parts = zip(*(jnp.split(a, self.groups, -1) for a in (x, kernel)), strict=True)
            y = jnp.concatenate([conv(*part) for part in parts], -1)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y += bias.astype(dtype)
        return y


def atrous_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | tuple[int, int] = 1,
    rate: int | tuple[int, int] = 1,
    padding: Padding = "torch",
    form: str = "auto",
) -> jax.Array:
    """Convolves `x` with a dense, possibly dilated (atrous) kernel.

    `y[p] = sum_k kernel[k] x[strides * p + rate * k - padding]`, the cross-correlation that every
    framework calls convolution (atrous: Chen et al., "Rethinking Atrous Convolution", 2017,
    section 3.1).

    Args:
      x: `[N, H, W, C]`.
      kernel: `[kh, kw, C, features]`, of the dtype of `x`.
      strides: steps between outputs, at least 1.
      rate: distance between the taps of the kernel in cells of the input, at least 1.
      padding: see `explicit_padding`.
      form: `"native"` is XLA's convolution; `"products"` writes it as matrix products where that
        is faster on a CPU, with a gradient of its own (reverse mode only); `"auto"` is
        `flaxseg.layers.preferred_form()`.

    Returns:
      `[N, H', W', features]`.

    Raises:
      ValueError: the channels do not fit, the kernel does not fit into the padded input, or the
        form is unknown.
    """
    kernel_size, strides, rate = kernel.shape[:2], pair(strides, "strides"), pair(rate, "rate")
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"x {x.shape} and kernel {kernel.shape} do not fit; "
            "wanted [N, H, W, C] and [kh, kw, C, features]."
        )
    pads = explicit_padding(padding, x.shape[1:3], kernel_size, strides, rate)
    size = output_size(x.shape[1:3], kernel_size, strides, rate, pads)
    if min(size) < 1:
        raise ValueError(
            f"an input of {x.shape[1:3]} cells with padding {pads} is smaller than the kernel "
            f"{kernel_size} at rate {rate}; enlarge the input or the padding."
        )
    if resolve_form(form) == "native":
        return native_conv(x, kernel, strides, rate, pads)
    if kernel_size == (1, 1) and pads == ((0, 0), (0, 0)):
        return _pointwise(x[:, :: strides[0], :: strides[1]], kernel)
    if kernel.shape[2] < _MIN_CHANNELS_FOR_TAPS:
        return native_conv(x, kernel, strides, rate, pads)
    overlap = _overlap_share(x.shape[1:3], kernel_size, strides, rate, pads)
    return _conv_products(x, kernel, strides, rate, pads, overlap < _MAX_OVERLAP_FOR_TAPS)


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
    """Yields `(i, j, outputs, inputs)` for every tap that meets the picture; the last two are
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


def _overlap_share(size, kernel_size, strides, rate, pads) -> float:
    out = output_size(size, kernel_size, strides, rate, pads)
    met = sum(
        (rows.stop - rows.start) * (columns.stop - columns.start)
        for _, _, (rows, columns), _ in taps(size, out, kernel_size, strides, rate, pads)
    )
    return met / (out[0] * out[1] * kernel_size[0] * kernel_size[1])


def native_conv(x, kernel, strides, rate, pads: Pads, groups: int = 1) -> jax.Array:
    """Returns XLA's convolution.

    Where rows are split unevenly, XLA's gradient of the kernel is wrong: it counts rows that only
    fill the last device up (seen with jax 0.10.2 and 0.12). So there are as many rows on each, in
    and out.
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


def _pointwise(x, kernel):
    flat = jnp.dot(x.reshape(-1, x.shape[3]), kernel[0, 0])
    return flat.reshape(*x.shape[:3], kernel.shape[3])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _conv_products(x, kernel, strides, rate, pads, by_taps):
    """A convolution whose weight gradient, and with `by_taps` everything, is a sum over taps of
    matrix products."""
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

    Where regions overlap widely, cutting each out copies the input many times; so it is cut once
    into pieces at all borders of the regions, whose products are joined, which have fewer channels
    as a rule.
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
    """Rows of columns of parts as one array."""
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
