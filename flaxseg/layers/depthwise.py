"""Depthwise convolution: one filter per channel, as a sum of shifted products where XLA's grouped
convolution is slow."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer
from jax import lax

from flaxseg.layers.atrous import output_size, place, preferred_form, taps
from flaxseg.layers.padding import Padding, explicit_padding, pair


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
        `preferred_form()`.

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
    form = preferred_form() if form == "auto" else form
    if form == "native":
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            pads,
            rhs_dilation=rate,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[3],
        )
    if form != "products":
        raise ValueError(f"form is {form!r}; it must be 'auto', 'native' or 'products'.")
    return _shifted(x, kernel, strides, rate, pads)


def _padded(x, pads):
    return jnp.pad(x, ((0, 0), *pads, (0, 0)))


def _window(x, i, j, out, strides, rate):
    """The cells of the padded `x` that tap `(i, j)` reads."""
    top, left = i * rate[0], j * rate[1]
    bottom, right = top + strides[0] * (out[0] - 1) + 1, left + strides[1] * (out[1] - 1) + 1
    return x[:, top : bottom : strides[0], left : right : strides[1]]


def _live_taps(x, kernel, out, strides, rate, pads):
    return [(i, j) for i, j, _, _ in taps(x.shape[1:3], out, kernel.shape[:2], strides, rate, pads)]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _shifted(x, kernel, strides, rate, pads):
    out = output_size(x.shape[1:3], kernel.shape[:2], strides, rate, pads)
    padded = _padded(x, pads)
    y = None
    for i, j in _live_taps(x, kernel, out, strides, rate, pads):
        term = _window(padded, i, j, out, strides, rate) * kernel[i, j, 0]
        y = term if y is None else y + term
    return y if y is not None else jnp.zeros((x.shape[0], *out, x.shape[3]), x.dtype)


def _shifted_forward(x, kernel, strides, rate, pads):
    return _shifted(x, kernel, strides, rate, pads), (x, kernel)


def _shifted_backward(strides, rate, pads, residuals, gradient):
    x, kernel = residuals
    size, out = x.shape[1:3], gradient.shape[1:3]
    padded = _padded(x, pads)
    live = _live_taps(x, kernel, out, strides, rate, pads)
    sums = {}
    for i, j in live:
        product = _window(padded, i, j, out, strides, rate) * gradient
        sums[i, j] = jnp.sum(product, (0, 1, 2), dtype=jnp.float32).astype(kernel.dtype)
    zero = jnp.zeros(kernel.shape[3], kernel.dtype)
    kernel_gradient = jnp.stack(
        [
            jnp.stack([sums.get((i, j), zero) for j in range(kernel.shape[1])])
            for i in range(kernel.shape[0])
        ]
    )[:, :, None]
    if strides == (1, 1):
        # The transpose of a stride-1 correlation is the correlation with the turned kernel.
        spans = [r * (k - 1) for r, k in zip(rate, kernel.shape[:2], strict=True)]
        turned = [
            (span - before, span - after) for span, (before, after) in zip(spans, pads, strict=True)
        ]
        if min(min(side) for side in turned) >= 0:
            return _shifted(
                gradient, kernel[::-1, ::-1], strides, rate, tuple(turned)
            ), kernel_gradient
    x_gradient = jnp.zeros_like(x)
    for i, j, outputs, inputs in taps(size, out, kernel.shape[:2], strides, rate, pads):
        x_gradient += place(gradient[:, *outputs] * kernel[i, j, 0], inputs, size)
    return x_gradient, kernel_gradient


_shifted.defvjp(_shifted_forward, _shifted_backward)
