"""Pyramid pooling: shows every cell what the image holds as a whole, in quarters, ninths and
thirty-sixths."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.conv_block import ConvBlock
from flaxseg.layers.padding import pair
from flaxseg.layers.pooling import (
    adaptive_average_pool,
    adaptive_max_pool,
    average_pool,
    max_pool,
)
from flaxseg.layers.resize import resize


class PyramidPooling(nn.Module):
    """Pools features at several scales, reduces each by a 1x1 convolution block, resizes them back
    and puts them beside the features.

    (Zhao et al., "Pyramid Scene Parsing Network", 2017, section 3.2, figure 3; the ablations of
    table 1 are `pooling` and `reduce`.)

    Parameters are those of one `ConvBlock` a scale, named by its bins, `pool1`, `pool2`, ...,
    whatever their order; without `reduce` there are none.

    Attributes:
      bins: how many cells each scale has along both axes, in the order of concatenation. The
        author's PyTorch code has (1, 2, 3, 6), the default; the Caffe release has (6, 3, 2, 1),
        the same function with other input channels of the next layer. May be empty.
      pooling: `"average"` (the paper's choice) or `"max"`.
      reduce: whether a 1x1 convolution block stands between pooling and resizing.
      features: channels of each reduced scale; by default `C // len(bins)`, so that context and
        features weigh the same.
      fusion: `"concat"`, or `"sum"`, which adds the scales to the features (ICNet).
      windows: sides of fixed pooling windows, an int or `(height, width)` for each of the bins, in
        place of the adaptive ones. Caffe's layers have a fixed window and cover the last part of
        the image with a smaller one, so there are as many cells as it takes. PSPNet's release
        has 60, 30, 20, 10 for 1, 2, 3, 6 at its crops of 473, and 90, 45, 30, 15 at 713, where
        they equal the adaptive ones.
      strides: steps between the windows; the windows' own sides by default.
      align_corners: convention of the resizing; True as in the releases.
      norm: makes the normalisations; called as `norm(name=...)`.
      dtype: dtype of the computation; that of the input by default.

    Raises:
      ValueError: an attribute is not one of the above, or channels cannot be summed.
    """

    bins: Sequence[int] = (1, 2, 3, 6)
    pooling: str = "average"
    reduce: bool = True
    features: int | None = None
    fusion: str = "concat"
    windows: Sequence[int | tuple[int, int]] | None = None
    strides: Sequence[int | tuple[int, int]] | None = None
    align_corners: bool = True
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns `[N, H, W, C']` of features `[N, H, W, C]`, any H and W from 1.

        C' is C plus the channels of all scales, or C with `fusion="sum"`.
        """
        self._check(x.shape[-1])
        dtype = self.dtype or x.dtype
        scales = []
        for index, bins in enumerate(self.bins):
            pooled = self._pool(x, index).astype(dtype)
            if self.reduce:
                features = self._features(x.shape[-1])
                block = ConvBlock(features, 1, norm=self.norm, dtype=dtype, name=f"pool{bins}")
                pooled = block(pooled, train=train)
            scales.append(resize(pooled, x.shape[1:3], align_corners=self.align_corners))
        x = x.astype(dtype)
        return sum(scales, x) if self.fusion == "sum" else jnp.concatenate([x, *scales], -1)

    def _pool(self, x: jax.Array, index: int) -> jax.Array:
        if self.windows is None:
            adaptive = adaptive_average_pool if self.pooling == "average" else adaptive_max_pool
            return adaptive(x, self.bins[index])
        window = pair(self.windows[index], "window")
        strides = window if self.strides is None else self.strides[index]
        # A window larger than the features covers all of them.
        window = tuple(min(side, n) for side, n in zip(window, x.shape[1:3], strict=True))
        fixed = average_pool if self.pooling == "average" else max_pool
        return fixed(x, window, strides=strides, ceil_mode=True)

    def _features(self, channels: int) -> int:
        return channels // len(self.bins) if self.features is None else self.features

    def _check(self, channels: int) -> None:
        if len(set(self.bins)) != len(self.bins) or any(b < 1 for b in self.bins):
            raise ValueError(f"bins is {self.bins}; wanted distinct numbers from 1.")
        if self.pooling not in ("average", "max"):
            raise ValueError(f"pooling is {self.pooling!r}; it must be 'average' or 'max'.")
        if self.fusion not in ("concat", "sum"):
            raise ValueError(f"fusion is {self.fusion!r}; it must be 'concat' or 'sum'.")
        for name in ("windows", "strides"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.bins):
                raise ValueError(
                    f"{name} is {values} for bins {self.bins}; give one for each of the bins."
                )
        if self.strides is not None and self.windows is None:
            raise ValueError(f"strides is {self.strides} without windows; give both or neither.")
        if not (self.reduce and self.bins):
            return
        features = self._features(channels)
        if features < 1:
            raise ValueError(
                f"{channels} channels cannot be divided among {len(self.bins)} scales; "
                "set features."
            )
        if self.fusion == "sum" and features != channels:
            raise ValueError(
                f"{features} features a scale cannot be added to {channels} channels; set "
                f"features={channels} or reduce=False."
            )
