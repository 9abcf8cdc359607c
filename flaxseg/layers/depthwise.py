"""Depthwise convolution: one filter per channel.

TPUs run XLA's grouped convolution, GPUs too, with kernel gradients of `phase_gradients`, and CPUs
the sums of `shifted_products`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from flaxseg.layers.forms import resolve_form
from flaxseg.layers.padding import Padding, explicit_padding, pair
from flaxseg.layers.phase_gradients import conv_phases
from flaxseg.layers.shifted_products import shifted_products
from flaxseg.layers.split_rows import rows_per_device
from flaxseg.layers.taps import check_fits
from flaxseg.layers.xla_convolution import native_conv


class DepthwiseConv(nn.Module):
    """Convolves with one filter per channel: `depthwise_conv` with a parameter.

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
      form: `"native"` is XLA's grouped convolution; `"products"` multiplies shifted images and
        adds them up; `"phases"` is as of `atrous_conv`; both have a gradient of their own (reverse
        mode only). `"auto"` is `flaxseg.layers.preferred_form()`.

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
    check_fits(x.shape[1:3], kernel.shape[:2], strides, rate, pads)
    form = resolve_form(form)
    if form == "native" and max(pads[0]) > rows_per_device(x.shape[1]):
        # Kernels that reach beyond the neighbour's rows: XLA would send the whole batch around.
        form = "products"
    if form == "products":
        return shifted_products(x, kernel, strides, rate, pads)
    conv = native_conv if form == "native" else conv_phases
    return conv(x, kernel, strides, rate, pads, groups=x.shape[3])
