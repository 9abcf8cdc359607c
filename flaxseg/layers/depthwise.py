"""Depthwise convolution: one filter per channel, as a sum of shifted products where XLA's grouped
convolution is slow."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax import lax

from flaxseg.layers.atrous import native_conv, output_size
from flaxseg.layers.forms import resolve_form
from flaxseg.layers.padding import Padding, explicit_padding, pair
from flaxseg.layers.split_rows import rows_are_split, rows_per_device, split_rows, whole_rows


class DepthwiseConv(nn.Module):
    """A convolution with one filter per channel; `depthwise_conv` with a parameter.

    The parameter is `kernel` `[kh, kw, 1, C]`, float32, as in `nn.Conv(feature_group_count=C)`.

    Attributes:
      kernel_size: an int or `(height, width)`.
      strides: an int or `(vertical, horizontal)`.
      rate: dilation, an int or `(vertical, horizontal)`.
      padding: `"torch"`, `"tf"`, `"valid"`, an int or a pair of pairs; see `explicit_padding`.
      kernel_init: initialiser of the kernel. He normal over the kernel's own cells by default.
      dtype: dtype of the computation and the output; that of the input by default.
      form: see `depthwise_conv`.
    """

    kernel_size: int | tuple[int, int] = 3
    strides: int | tuple[int, int] = 1
    rate: int | tuple[int, int] = 1
    padding: Padding = "torch"
    kernel_init: Initializer = nn.initializers.he_normal()
    dtype: Dtype | None = None
    form: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*pair(self.kernel_size, "kernel_size"), 1, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        dtype = self.dtype or x.dtype
        return depthwise_conv(
            x.astype(dtype),
            kernel.astype(dtype),
            strides=self.strides,
            rate=self.rate,
            padding=self.padding,
            form=self.form,
        )


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: int | tuple[int, int] = 1,
    rate: int | tuple[int, int] = 1,
    padding: Padding = "torch",
    form: str = "auto",
) -> jax.Array:
    """Convolves every channel of `x` with a filter of its own.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[kh, kw, 1, C]`, the layout of `nn.Conv(feature_group_count=C)`, of the dtype of `x`.
      strides: steps between outputs, at least 1.
      rate: distance between the taps in cells of the input, at least 1.
      padding: see `explicit_padding`.
      form: `"native"` is XLA's grouped convolution; `"products"` multiplies shifted pictures and
        adds them up, with a gradient of its own (reverse mode only); `"auto"` is
        `flaxseg.layers.preferred_form()`.

    Returns:
      `[N, H', W', C]`.

    Raises:
      ValueError: the shapes do not fit, or the form is unknown.
    """
    strides, rate = pair(strides, "strides"), pair(rate, "rate")
    if x.ndim != 4 or kernel.ndim != 4 or kernel.shape[2:] != (1, x.shape[3]):
        raise ValueError(
            f"x {x.shape} and kernel {kernel.shape} do not fit; "
            "wanted [N, H, W, C] and [kh, kw, 1, C]."
        )
    pads = explicit_padding(padding, x.shape[1:3], kernel.shape[:2], strides, rate)
    size = output_size(x.shape[1:3], kernel.shape[:2], strides, rate, pads)
    if min(size) < 1:
        raise ValueError(
            f"an input of {x.shape[1:3]} cells with padding {pads} is smaller than the kernel "
            f"{kernel.shape[:2]} at rate {rate}; enlarge the input or the padding."
        )
    form = resolve_form(form)
    if form == "native" and max(pads[0]) > rows_per_device(x.shape[1]):
        # Kernels that reach beyond the neighbour's rows: XLA would send the whole batch around.
        form = "products"
    if form == "native":
        return native_conv(x, kernel, strides, rate, pads, groups=x.shape[3])
    return _shifted(x, kernel, strides, rate, pads)


# How many numbers of the gradient one turn of the blocked weight gradient takes: what stays in a
# core's cache.
_BLOCK = 1 << 18


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _shifted(x, kernel, strides, rate, pads):
    return _correlate(_pad(x, pads), kernel, strides, rate)


def _shifted_forward(x, kernel, strides, rate, pads):
    padded = _pad(x, pads)
    # What all devices have whole, each of them had better not keep.
    kept = x if rows_are_split() else padded
    return _correlate(padded, kernel, strides, rate), (kept, kernel)


def _shifted_backward(strides, rate, pads, residuals, gradient):
    # Without the barrier the compiler keeps the shifted pictures of the forward pass, one for each
    # tap, for this one.
    padded, gradient = lax.optimization_barrier((residuals[0], gradient))
    kernel = residuals[1]
    if rows_are_split():
        padded = _pad(padded, pads)
    size = tuple(n - sum(side) for n, side in zip(padded.shape[1:3], pads, strict=True))
    x_gradient = _input_gradient(size, kernel, gradient, strides, rate, pads)
    return x_gradient, _kernel_gradient(padded, kernel, gradient, strides, rate)


_shifted.defvjp(_shifted_forward, _shifted_backward)


def _correlate(padded, kernel, strides, rate):
    """The sum over taps of the shifted picture times the tap."""
    out = output_size(padded.shape[1:3], kernel.shape[:2], strides, rate, ((0, 0), (0, 0)))
    y = None
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            term = _window(padded, i, j, out, strides, rate) * kernel[i, j, 0]
            y = term if y is None else y + term
    return y


def _input_gradient(size, kernel, gradient, strides, rate, pads):
    """The transpose of `_correlate`: for every phase of the stride, a correlation of the gradient
    with the taps that meet it."""
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
                term = _own_rows(window) * kernel[i, j, 0]
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
    """The sum over pictures of shifted picture times gradient, a block of rows at a time: whole
    pictures would not fit a cache."""
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
            picture, row = turn // blocks, turn % blocks * rows
            window = lax.dynamic_slice(
                padded,
                (picture, row * strides[0], 0, 0),
                (1, span, padded.shape[2], channels),
            )
            block = lax.dynamic_slice(gradient, (picture, row, 0, 0), (1, rows, width, channels))
            return total + block_gradient(lax.optimization_barrier(window), block)

        zero = jnp.zeros((kh * kw, channels), jnp.float32)
        total = lax.fori_loop(0, n * blocks, add_block, zero)
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _pad(x, pads):
    """`x`, all its rows, with zeros around it, made once: else the compiler makes it, and all that
    led to it, again for every tap."""
    return lax.optimization_barrier(whole_rows(jnp.pad(whole_rows(x), ((0, 0), *pads, (0, 0)))))


def _window(padded, i, j, out, strides, rate):
    """The cells of the padded picture that tap `(i, j)` reads."""
    top, left = i * rate[0], j * rate[1]
    bottom, right = top + strides[0] * (out[0] - 1) + 1, left + strides[1] * (out[1] - 1) + 1
    return _own_rows(padded[:, top : bottom : strides[0], left : right : strides[1]])


def _own_rows(window):
    """Of a window on all rows the part that this device works on."""
    return split_rows(whole_rows(window))
