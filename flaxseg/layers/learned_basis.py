"""Upsampling by learned bases: a few coefficients per class and cell tell how much of each basis
image is painted there.

(Ghiasi and Fowlkes, "Laplacian Pyramid Reconstruction and Refinement for Semantic Segmentation",
2016.)

It is a transposed convolution with a group per class, which XLA writes as a dilated grouped
convolution, slower by two orders of magnitude on a CPU. But the outputs between two rows and
columns of cells depend only on the cells around them, so they are one small matrix product per
class, of the coefficients of these cells with the parts of the bases that fall there.

`benchmarks/learned_basis.py` times it against XLA's form and PyTorch's `ConvTranspose2d(groups=C)`
in turns. With 21 classes of 10 bases, on two CPU cores that were busy with other programs too, for
two maps of 24x24 cells XLA's took 55 to 74 times as long (27 to 49 with the gradient), PyTorch's 11
to 20 (32 to 56); for one of 96x96 PyTorch's 2.3 (3.6 to 5.5). Other forms that were measured there:
the product of each cell with its whole bases, overlaps added, 1.2 to 3.5 times as long and with the
gradient 4 and more; the same as here with the classes first, about as long (0.5 to 1.5, with the
gradient 0.7 to 5); a dense sub-pixel convolution with a block-diagonal kernel, 1.3 to 3.7; sums of
shifted elementwise products, 1.4 to 7.5.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype, Initializer

from flaxseg.layers.channels import along_channels
from flaxseg.layers.split_rows import missing_rows


def learned_basis_deconv(
    coefficients: jax.Array, kernel: jax.Array, num_classes: int, *, strides: int = 4
) -> jax.Array:
    """Paints bases: `y[p, c] = sum over cells i and bases k of x[i, c, k] B[c, k][p - s i + crop]`.

    The crop of `(k - s) / 2` at each side leaves `strides` rows for every row of cells. It equals
    `torch.nn.functional.conv_transpose2d(x, w, stride=s, padding=(k - s) / 2, groups=C)`.

    Args:
      coefficients: `[N, H, W, num_classes * K]`, the K of the first class before those of the next.
      kernel: `[k, k, 1, num_classes * K]` the bases, in the same order; `k - strides` is even and
        not negative.
      num_classes: C, channels of the result.
      strides: s, rows and columns per cell.

    Returns:
      `[N, H * s, W * s, C]` of the dtype of the coefficients.

    Raises:
      ValueError: the shapes do not fit together.
    """
    size, channels = kernel.shape[0], coefficients.shape[-1]
    if kernel.shape != (size, size, 1, channels) or channels % num_classes:
        raise ValueError(
            f"coefficients of shape {coefficients.shape} and kernel of shape {kernel.shape} do not "
            f"fit to {num_classes} classes; wanted [N, H, W, C * K] and [k, k, 1, C * K]."
        )
    if size < strides or (size - strides) % 2:
        raise ValueError(
            f"kernel_size {size} must be strides {strides} or an even number more, so that the "
            f"result is {strides} times as large; use {2 * strides}."
        )
    n, height, width, _ = coefficients.shape
    bases = channels // num_classes
    taps = math.ceil(size / strides)
    full = taps * strides
    kernel = jnp.pad(kernel[:, :, 0], ((0, full - size), (0, full - size), (0, 0)))
    # Row s * q + r of the uncropped result sees the cells q, q - 1, ... with the rows r, s + r, ...
    # of their bases.
    parts = kernel.reshape(taps, strides, taps, strides, num_classes, bases)
    parts = parts.transpose(0, 2, 1, 3, 4, 5).reshape(-1, strides, strides, num_classes, bases)
    reach = (taps - 1, taps - 1)
    x = coefficients.reshape(n, height, width, num_classes, bases)
    rows, columns = height + taps - 1, width + taps - 1
    more = missing_rows(rows)
    rows += more
    below = (reach[0], reach[1] + more)
    x = jnp.pad(x, ((0, 0), below, reach, (0, 0), (0, 0)))
    around = jnp.stack(
        [
            x[:, taps - 1 - i : taps - 1 - i + rows, taps - 1 - j : taps - 1 - j + columns]
            for i in range(taps)
            for j in range(taps)
        ],
        -2,
    )
    y = jnp.einsum(
        "nhwctb,tpqcb->nhpwqc",
        around,
        parts.astype(coefficients.dtype),
        precision=jax.lax.Precision.HIGHEST,
    )
    y = y.reshape(n, rows * strides, columns * strides, num_classes)
    crop = (size - strides) // 2
    return y[:, crop : crop + height * strides, crop : crop + width * strides]


def cosine_bases(
    key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32, *, num_bases: int
) -> jax.Array:
    """Initialises bases that were not learned: the same low frequencies for every class.

    The first `num_bases` products of two cosines, in the order of their frequency, each faded
    towards its border as bilinear interpolation is, and of unit norm. The first one alone is smooth
    upsampling; the principal components of label patches look much like them.

    Args:
      key: not used.
      shape: `[k, k, 1, C * num_bases]`.
      dtype: of the result.
      num_bases: K, at most `k * k`.
    """
    del key
    size = shape[0]
    place = (np.arange(size) + 0.5) / size
    window = 1 - np.abs(2 * place - 1)
    lines = np.cos(np.pi * np.arange(size)[:, None] * place) * window
    order = sorted(((i, j) for i in range(size) for j in range(size)), key=_frequency)
    images = np.stack([np.outer(lines[i], lines[j]) for i, j in order[:num_bases]], -1)
    images /= np.linalg.norm(images, axis=(0, 1))
    kernel = np.tile(images[:, :, None], shape[3] // num_bases)
    return jnp.asarray(kernel, dtype)


class LearnedBasisDeconv(nn.Module):
    """Upsamples by `learned_basis_deconv` with the bases as a parameter; for any decoder.

    The parameter is `kernel` `[k, k, 1, num_classes * K]`, K the bases of a class, and with
    `use_bias` there is `bias` `[num_classes]`. Bases that were learned from labels (`python -m
    flaxseg learn-basis`) are passed as `bases_init`, or loaded into the parameters later by
    `flaxseg.weights.load_bases`. The paper's release does not train them further; to do the same,
    leave them out of the optimizer.

    >>> layer = LearnedBasisDeconv(num_classes=3)
    >>> scores, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 5, 7, 3 * 10)))
    >>> scores.shape, variables["params"]["kernel"].shape
    ((1, 20, 28, 3), (8, 8, 1, 30))

    Attributes:
      num_classes: channels of the output; it divides those of the input.
      kernel_size: side of a basis. Twice the strides lets neighbours overlap by half, as in linear
        interpolation.
      strides: rows and columns per cell.
      bases_init: initialiser of the bases; `cosine_bases` by default.
      use_bias: whether a bias is added.
      bias_init: its initialiser.
      dtype: dtype of the computation and the output; that of the input by default.

    Raises:
      ValueError: as `learned_basis_deconv`.
    """

    num_classes: int
    kernel_size: int = 8
    strides: int = 4
    bases_init: Initializer | None = None
    use_bias: bool = False
    bias_init: Initializer = nn.initializers.zeros
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, coefficients: jax.Array) -> jax.Array:
        """Returns `[N, H * strides, W * strides, num_classes]` of `[N, H, W, num_classes * K]`."""
        init = self.bases_init or _cosine_init(coefficients.shape[-1] // self.num_classes)
        shape = (self.kernel_size, self.kernel_size, 1, coefficients.shape[-1])
        kernel = self.param("kernel", init, shape, jnp.float32)
        x = coefficients.astype(self.dtype or coefficients.dtype)
        y = learned_basis_deconv(x, kernel.astype(x.dtype), self.num_classes, strides=self.strides)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.num_classes,), jnp.float32)
            y += along_channels(bias.astype(y.dtype), y)
        return y


def _cosine_init(num_bases: int) -> Initializer:
    return lambda key, shape, dtype: cosine_bases(key, shape, dtype, num_bases=num_bases)


def _frequency(pair: tuple[int, int]) -> tuple[int, int, int]:
    """Sorts by the square of the frequency, then the more even pair, then the vertical one."""
    return pair[0] ** 2 + pair[1] ** 2, max(pair), pair[0]
