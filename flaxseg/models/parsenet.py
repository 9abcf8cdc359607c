"""ParseNet.

Liu, Rabinovich and Berg, "ParseNet: Looking Wider to See Better", 2016 (ICLR workshop).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxseg.layers import (
    CAFFE,
    ImageNormalization,
    L2Norm,
    classifier,
    fully_connected,
    global_average_pool,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel


class ParseNet(SegmentationModel):
    """Concatenates the last feature and its mean over the image, each normalised to length one, and
    classifies (figure 2 of the paper).

    The base is DeepLab-LargeFOV. The concatenated features differ widely in magnitude, so each goes
    through its own `L2Norm` (section 3.3). The paper compares this early fusion with late fusion, a
    sum of one classifier per feature: with a single linear classifier both are the same function.

    Attributes:
      backbone: a module that returns features with `"c5"` and those of `levels`.
      levels: features to concatenate, `"fc7"` for the last; with several, the finer ones first, as
        `("conv4", "conv5", "fc7")` for the paper's multi-layer network on VGG16 and `("c3", "c4",
        "fc7")` on other backbones. They are resized to fc7's size.
      global_context: whether the mean over the image is one of them; without it and with one
        level it is the paper's baseline, with a normalisation.
      initial_scale: of all `L2Norm`, 10 in the paper; None for no normalisation at all.
      kernel_size: of fc6.
      rate: dilation of fc6.
      features: channels of fc6 and fc7.
      dropout: rate of dropout after fc6 and fc7.
    """

    levels: Sequence[str] = ("fc7",)
    global_context: bool = True
    initial_scale: float | None = 10.0
    kernel_size: int = 3
    rate: int = 12
    features: int = 1024
    dropout: float = 0.5
    normalization: ImageNormalization = CAFFE

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Raises:
          ValueError: the backbone lacks the features of `levels`.
        """
        features = dict(self.backbone(image, train=train))
        features["fc7"] = last = fully_connected(
            features["c5"],
            (self.features, self.features),
            kernel_size=self.kernel_size,
            rate=self.rate,
            dropout=self.dropout,
            dtype=self.dtype,
            train=train,
        )
        missing = [level for level in self.levels if level not in features]
        if missing:
            raise ValueError(
                f"levels has {', '.join(missing)}; the backbone's features are "
                f"{', '.join(features)}."
            )
        parts = []
        for level in self.levels:
            x = self._normalized(features[level], level)
            parts.append(resize(x, last.shape[1:3], align_corners="cells"))
        if self.global_context:
            whole = self._normalized(global_average_pool(last), "global")
            parts.append(jnp.broadcast_to(whole, last.shape))
        logits = classifier(self.num_classes)(jnp.concatenate(parts, -1))
        return Prediction(resize(logits, image.shape[1:3], align_corners="cells"), {})

    def _normalized(self, x: jax.Array, name: str) -> jax.Array:
        if self.initial_scale is None:
            return x
        return L2Norm(self.initial_scale, dtype=self.dtype, name=f"norm_{name}")(x)
