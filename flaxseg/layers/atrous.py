"""Atrous (dilated) convolution; at rate 1 the ordinary one.

TPUs run XLA's convolution, GPUs too, with kernel gradients of `phase_gradients`, and CPUs the sums
of matrix products in `tap_products`. All forms give the same value and gradient up to the order of
float additions.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from flaxseg.layers.channels import along_channels
from flaxseg.layers.forms import resolve_form
from flaxseg.layers.padding import Padding, explicit_padding, pair
from flaxseg.layers.phase_gradients import conv_phases
from flaxseg.layers.tap_products import conv_products
from flaxseg.layers.taps import check_fits
from flaxseg.layers.xla_convolution import native_conv

he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


class AtrousConv(nn.Module):
    """Convolves with taps `rate` cells apart: `atrous_conv` with parameters.

    Parameters are `kernel` `[kh, kw, C / groups, features]` and, with `use_bias`, `bias`
    `[features]`, both float32: the names and layouts of `nn.Conv`, so weights move between the two.

    Attributes:
      features: channels of the output.
      kernel_size: an int or `(height, width)`.
      strides: an int or `(vertical, horizontal)`.
      rate: dilation, an int or `(vertical, horizontal)`; it may change between training and
        evaluation without changing parameters.
      padding: `"torch"`, `"tf"`, `"valid"`, an int or a pair of pairs; see `explicit_padding`.
      groups: number of parts that the channels of input and output are split into; each part of the
        output sees its part of the input. XLA's own grouped convolution has a very slow gradient on
        a CPU, so each group is a convolution of its own.
      use_bias: whether a bias is added.
      kernel_init: initialiser of the kernel; He normal over the fan-out, as the ResNet paper's, by
        default.
      dtype: dtype of the computation and the output; that of the input by default.
      form: see `atrous_conv`.

    Raises:
      ValueError: as `atrous_conv`, or the channels cannot be split into that many groups.
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
                f"{x.shape[-1]} channels in and {self.features} out cannot be cut into "
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
            y += along_channels(bias.astype(dtype), y)
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
        is faster on a CPU; `"phases"` writes the gradient of a dilated kernel as cuDNN has it, by
        phases of the dilation; both have a gradient of their own (reverse mode only). `"auto"` is
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
    check_fits(x.shape[1:3], kernel_size, strides, rate, pads)
    conv = {"native": native_conv, "products": conv_products, "phases": conv_phases}
    return conv[resolve_form(form)](x, kernel, strides, rate, pads)
