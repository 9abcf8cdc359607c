"""The context module: dilated convolutions on scores, which begin as the identity (Yu and Koltun,
"Multi-Scale Context Aggregation by Dilated Convolutions", 2016, section 3)."""

import itertools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype, Initializer

from flaxseg.layers.atrous import AtrousConv

CONTEXT_RATES = (1, 1, 2, 4, 8, 16, 1)
"""Dilation of the 3x3 convolutions of table 1; what is behind them sees 67 x 67 cells."""


class ContextModule(nn.Module):
    """Runs 3x3 convolutions of growing dilation with ReLU, and a 1x1 convolution; the size of the
    maps stays the same.

    (Table 1 of the paper.) Parameters are `conv1`, `conv2`, ... and `classifier`. They start as the
    identity, see `identity_init`; the paper found that random ones do not train.

    Attributes:
      rates: dilation of the 3x3 convolutions: `CONTEXT_RATES` on VOC and CamVid, `(1, 1, 2, 4, 8,
        1)` on KITTI, `(1, 1, 2, 4, 8, 16, 32, 64, 1)` on Cityscapes.
      large: whether channels grow with the dilation, to twice the largest rate so far (over the
        first) times those of the input (the paper's "Large"), or stay the same ("Basic").
      pad_first: whether all padding is before the first convolution, as in the released network
        for VOC, or each convolution pads by its rate, as in the paper's training code and the
        release's other networks. Only cells nearer to the border than the field of view differ.
      noise: standard deviation of the initial noise, see `identity_init`.
      dtype: dtype of the 3x3 convolutions; the result is float32.
    """

    rates: Sequence[int] = CONTEXT_RATES
    large: bool = False
    pad_first: bool = False
    noise: float = 0.01
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[N, H, W, C]` float32 for `x` `[N, H, W, C]`, C the number of classes."""
        classes = x.shape[-1]
        init = identity_init(classes, self.noise)
        if self.pad_first:
            border = (sum(self.rates),) * 2
            x = jnp.pad(x, ((0, 0), border, border, (0, 0)))
        largest = itertools.accumulate(self.rates, max)
        for index, (rate, reach) in enumerate(zip(self.rates, largest, strict=True), 1):
            x = AtrousConv(
                classes * 2 * reach // self.rates[0] if self.large else classes,
                3,
                rate=rate,
                padding="valid" if self.pad_first else "torch",
                use_bias=True,
                kernel_init=init,
                dtype=self.dtype,
                name=f"conv{index}",
            )(x)
            x = nn.relu(x)
        return AtrousConv(
            classes, 1, use_bias=True, kernel_init=init, dtype=jnp.float32, name="classifier"
        )(x)


def identity_init(classes: int, noise: float = 0.01) -> Initializer:
    """Returns an initialiser of kernels whose stack passes its (positive) input through.

    Channels of input and output are cut into as many groups as there are classes. The centre tap of
    a pair in the same group is `classes / outputs`, so that a group's channels sum to what came
    in; all other weights are normal noise of deviation `noise * classes / outputs`. (Section 3 of
    the paper.)

    Args:
      classes: divides the channels of input and output.
      noise: deviation for as many outputs as classes.

    Returns:
      A function of `(key, shape, dtype)` for kernels `[kh, kw, C, features]`.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
        rows, columns, inputs, outputs = shape
        if inputs % classes or outputs % classes:
            raise ValueError(
                f"{inputs} channels in and {outputs} out cannot be cut into groups for {classes} "
                "classes; both must be multiples."
            )
        share = classes / outputs
        group_in, group_out = (np.arange(n) * classes // n for n in (inputs, outputs))
        passing = np.zeros(shape, bool)
        passing[rows // 2, columns // 2] = group_in[:, None] == group_out
        scattered = jax.random.normal(key, shape, dtype) * (noise * share)
        return jnp.where(passing, jnp.asarray(share, dtype), scattered)

    return init
