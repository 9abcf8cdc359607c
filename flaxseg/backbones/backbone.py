"""Defines what every backbone has."""

from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.image_normalization import IMAGENET, ImageNormalization


class Backbone(nn.Module):
    """Turns images into named features; all backbones derive from it.

    A backbone takes images `[N, H, W, 3]`, normalised by `normalization`, and returns a dict of
    features: `"c1"` (stride 2) to `"c5"` (stride 32), `[N, ceil(H / s), ceil(W / s), C]` with the
    stride s never beyond `output_stride`. With `train=True` it uses batch statistics, and dropout,
    which needs the rng `"dropout"`.

    Attributes:
      output_stride: 8, 16 or 32; dilation replaces the strides beyond it.
      dtype: dtype of the computation; parameters are float32.
      normalization: of the class: what it expects of its input.
      call_options: of the class: the further options of its `__call__`.
    """

    output_stride: int = 32
    dtype: Dtype | None = None

    normalization: ClassVar[ImageNormalization] = IMAGENET
    call_options: ClassVar[tuple[str, ...]] = ()

    def _cast(self, image: jax.Array) -> jax.Array:
        return image if self.dtype is None else image.astype(self.dtype)

    def _check_not_dilated(self) -> None:
        """Raises ValueError for another output stride, in a network without a dilated form."""
        if self.output_stride != 32:
            raise ValueError(
                f"output_stride is {self.output_stride}; {type(self).__name__} has no dilated form "
                "and takes only 32."
            )


class BatchNormBackbone(Backbone):
    """Has the settings of its `BatchNorm` layers beside those of a `Backbone`.

    Attributes:
      batch_norm_epsilon: see `BatchNorm`.
      batch_norm_momentum: see `BatchNorm`.
      batch_norm_axis: mapped axis name, only under `jax.pmap`.
      frozen_batch_norm: whether running statistics are used in training.
    """

    batch_norm_epsilon: float = 1e-5
    batch_norm_momentum: float = 0.9
    batch_norm_axis: str | None = None
    frozen_batch_norm: bool = False

    def _norm(self) -> partial[BatchNorm]:
        return partial(
            BatchNorm,
            epsilon=self.batch_norm_epsilon,
            momentum=self.batch_norm_momentum,
            axis_name=self.batch_norm_axis,
            frozen=self.frozen_batch_norm,
        )
