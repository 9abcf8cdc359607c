"""Defines what every model has and what it returns."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
from flax.typing import Dtype

from flaxseg.layers import IMAGENET, AuxiliaryHead, ImageNormalization


@flax.struct.dataclass
class Prediction:
    """Holds the output of a segmentation model.

    Attributes:
      logits: `[N, H, W, num_classes]` float32 at the size of the input.
      auxiliary: logits of the other outputs that have a loss, by name, each at its own stride;
        empty in evaluation.
    """

    logits: jax.Array
    auxiliary: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


class SegmentationModel(nn.Module):
    """Segments images; all models derive from it.

    A model takes images `[N, H, W, 3]` of any height and width from 1, normalised by
    `normalization`, and returns a `Prediction`. With `train=True` it uses batch statistics,
    dropout, which needs the rng `"dropout"`, and the auxiliary outputs.

    Attributes:
      num_classes: channels of the logits.
      backbone: a module that returns named features, see `flaxseg.backbones`.
      normalization: what the backbone expects of its input.
      dtype: dtype of the computation outside the backbone; the logits are float32.
      protocol: how images are run unless told otherwise, as text of
        `flaxseg.inference.parse_protocol`; the network itself does not depend on it.
    """

    num_classes: int
    backbone: nn.Module
    normalization: ImageNormalization = IMAGENET
    dtype: Dtype | None = None
    protocol: str = "whole"

    def _auxiliary_c4(
        self, features: Mapping[str, jax.Array], train: bool, **options: Any
    ) -> dict[str, jax.Array]:
        """Returns the auxiliary output of an `AuxiliaryHead` on `"c4"`, at the output stride."""
        if not (train or self.is_initializing()):
            return {}
        head = AuxiliaryHead(self.num_classes, **options, name="auxiliary_head")
        logits = head(features["c4"], train=train)
        return {"c4": logits} if train else {}
