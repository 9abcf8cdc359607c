"""Bilinear upsampling as a transposed convolution ("deconvolution"), fixed or learned.

(Long et al., "Fully Convolutional Networks for Semantic Segmentation", 2015, section 3.3.)

The fixed one is separable and the same for all channels: two products with small matrices, and only
the rows and columns that are kept are computed. In XLA a transposed convolution with a stride is
slow, and with a group for each channel slower by two orders of magnitude. So the learned ones are
written phase by phase: the outputs between two cells are a small convolution of their own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from flaxseg.layers.atrous import atrous_conv
from flaxseg.layers.forms import resolve_form
from flaxseg.layers.phase_gradients import transposed_conv_phases
from flaxseg.layers.resize import MOST_TERMS, weighted_by_terms
from flaxseg.layers.split_rows import missing_rows, rows_are_split, split_rows, whole_rows

LEARNED = ("none", "depthwise", "dense")


def bilinear_kernel(size: int) -> np.ndarray:
    """Returns the `[size]` float32 weights of linear interpolation by `(size + 1) // 2`.

    The two-dimensional kernel is their outer product. They are those of FCN's released surgery:
    symmetric also for odd sizes.
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    return (1 - np.abs(np.arange(size) - centre) / factor).astype(np.float32)


def bilinear_deconv(
    x: jax.Array,
    kernel_size: int,
    strides: int,
    *,
    offset: int = 0,
    size: tuple[int, int] | None = None,
    form: str = "auto",
) -> jax.Array:
    """Upsamples every channel by the transposed convolution with the bilinear kernel.

    `y[p] = sum_i x[i] kernel[p - strides * i]` has `(n - 1) * strides + kernel_size` cells, of
    which a part is returned. Near the border, where only one cell reaches, values fade.

    Args:
      x: `[N, H, W, C]` floats.
      kernel_size: of the square kernel, see `bilinear_kernel`.
      strides: the factor of upsampling.
      offset: the first row and the first column to return.
      size: `(height, width)` to return; all from the offset on by default.
      form: `"phases"` adds up the terms whose weights are not zero (reverse mode only); the others
        multiply with matrices of weights; `"auto"` is `flaxseg.layers.preferred_form()`.

    Returns:
      `[N, *size, C]`.

    Raises:
      ValueError: the part reaches beyond the result, or the form is unknown.
    """
    rows, columns = (
        _upsampling_matrix(n, kernel_size, strides)[part]
        for n, part in zip(
            x.shape[1:3], _part(x.shape[1:3], kernel_size, strides, offset, size), strict=True
        )
    )
    form = resolve_form(form)
    highest = jax.lax.Precision.HIGHEST
    if form == "phases" and not rows_are_split():
        return weighted_by_terms(x, rows, columns, MOST_TERMS[form])
    if rows_are_split():  # the few rows before upsampling are what devices send each other
        x = jnp.einsum("mh,nhwc->nmwc", rows.astype(x.dtype), whole_rows(x), precision=highest)
        return jnp.einsum(
            "mw,nhwc->nhmc", columns.astype(x.dtype), split_rows(x), precision=highest
        )
    x = jnp.einsum("mw,nhwc->nhmc", columns.astype(x.dtype), x, precision=highest)
    return jnp.einsum("mh,nhwc->nmwc", rows.astype(x.dtype), x, precision=highest)


class BilinearDeconv(nn.Module):
    """Upsamples by `bilinear_deconv`, or by a learned transposed convolution that starts as it.

    A learned one has the parameter `kernel`: `[k, k, C, C]` (from, to), which starts with the
    bilinear kernels on its diagonal; or depthwise, `[k, k, 1, C]`. There is no bias.

    Attributes:
      kernel_size: of the square kernel.
      strides: the factor of upsampling.
      learned: `"none"`, `"depthwise"` or `"dense"`.
      dtype: dtype of the computation and the output; that of the input by default.

    Raises:
      ValueError: `learned` is none of these, or as `bilinear_deconv`.
    """

    kernel_size: int
    strides: int
    learned: str = "none"
    dtype: Dtype | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, *, offset: int = 0, size: tuple[int, int] | None = None
    ) -> jax.Array:
        """Returns the upsampled `[N, *size, C]`; arguments as of `bilinear_deconv`."""
        if self.learned not in LEARNED:
            raise ValueError(f"learned is {self.learned!r}; it must be one of {LEARNED}.")
        x = x.astype(self.dtype or x.dtype)
        if self.learned == "none":
            return bilinear_deconv(x, self.kernel_size, self.strides, offset=offset, size=size)
        inputs = x.shape[-1] if self.learned == "dense" else 1
        shape = (self.kernel_size, self.kernel_size, inputs, x.shape[-1])
        kernel = self.param("kernel", bilinear_init, shape, jnp.float32)
        rows, columns = _part(x.shape[1:3], self.kernel_size, self.strides, offset, size)
        return transposed_conv(x, kernel.astype(x.dtype), self.strides)[:, rows, columns]


def bilinear_init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
    """Initialises `[k, k, C, C]` (bilinear on the diagonal, else zero) or `[k, k, 1, C]`."""
    del key
    line = bilinear_kernel(shape[0])
    channels = np.ones((1, shape[3])) if shape[2] == 1 else np.eye(shape[2], shape[3])
    return jnp.asarray(np.outer(line, line)[:, :, None, None] * channels, dtype)


def transposed_conv(
    x: jax.Array, kernel: jax.Array, strides: int, *, form: str = "auto"
) -> jax.Array:
    """Returns the transposed convolution without padding, `y[p] = sum_i x[i] kernel[p - strides *
    i]`.

    With `p = strides * q + r`, each phase r is a convolution of `ceil(k / strides)` taps; all of
    them are one convolution whose channels are then put in their places.

    Args:
      x: `[N, H, W, C]`.
      kernel: `[k, k, C, features]`, or `[k, k, 1, C]` for one kernel per channel; of the dtype of
        `x`.
      strides: at least 1.
      form: `"phases"` is XLA's transposed convolution, with gradients that cuDNN has; the others
        are the convolution above in that form of `atrous_conv`; `"auto"` is
        `flaxseg.layers.preferred_form()`. A kernel per channel has one form alone.

    Returns:
      `[N, (H - 1) * strides + k, (W - 1) * strides + k, features]`.
    """
    form = resolve_form(form)
    if form == "phases" and kernel.shape[2] == x.shape[3]:
        return transposed_conv_phases(x, kernel, strides)
    n, height, width, channels = x.shape
    k, _, inputs, features = kernel.shape
    taps = -(-k // strides)
    full = taps * strides
    kernel = jnp.pad(kernel, ((0, full - k), (0, full - k), (0, 0), (0, 0)))
    # [tap, phase] of both axes; a transposed convolution runs through its kernel backwards.
    kernel = kernel.reshape(taps, strides, taps, strides, inputs, features)[::-1, :, ::-1]
    rows, columns = height + taps - 1, width + taps - 1
    more = missing_rows(rows)
    rows += more
    below, beside = (taps - 1, taps - 1 + more), (taps - 1, taps - 1)
    if inputs == channels:
        kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(taps, taps, inputs, -1)
        y = atrous_conv(x, kernel, padding=(below, beside), form=form)
        y = y.reshape(n, rows, columns, strides, strides, features)
    else:
        x = jnp.pad(x, ((0, 0), below, beside, (0, 0)))
        y = sum(
            x[:, i : i + rows, j : j + columns, None, None]
            * kernel[i, :, j, :, 0][None, None, None]
            for i in range(taps)
            for j in range(taps)
        )
    y = y.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows * strides, columns * strides, features)
    return y[:, : (height - 1) * strides + k, : (width - 1) * strides + k]


def _upsampling_matrix(n: int, kernel_size: int, strides: int) -> np.ndarray:
    """Returns the transposed convolution along one axis as a float32 matrix, `[(n - 1) * strides +
    kernel_size, n]`."""
    matrix = np.zeros(((n - 1) * strides + kernel_size, n), np.float32)
    for column, line in enumerate(np.split(matrix, n, axis=1)):
        line[column * strides : column * strides + kernel_size, 0] = bilinear_kernel(kernel_size)
    return matrix


def _part(
    cells: tuple[int, int],
    kernel_size: int,
    strides: int,
    offset: int,
    size: tuple[int, int] | None,
) -> tuple[slice, slice]:
    """Returns the slices of rows and columns to keep."""
    full = tuple((n - 1) * strides + kernel_size for n in cells)
    wanted = tuple(m - offset for m in full) if size is None else size
    if offset < 0 or any(offset + m > f or m < 1 for m, f in zip(wanted, full, strict=True)):
        raise ValueError(
            f"a part of {wanted} cells from {offset} on does not lie within the {full} cells that "
            f"{cells} are upsampled to."
        )
    rows, columns = (slice(offset, offset + m) for m in wanted)
    return rows, columns
