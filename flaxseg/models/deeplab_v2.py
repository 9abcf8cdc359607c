"""DeepLab, version 2.

Chen et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution,
and Fully Connected CRFs", 2016.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from flaxseg.backbones import VGG
from flaxseg.layers import (
    CAFFE,
    ImageNormalization,
    classifier,
    fully_connected,
    pad_to_grid,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel

# The rates of section 4.1: one large field of view, and ASPP with small and large rates.
RATES: Mapping[str, tuple[int, ...]] = {
    "large_fov": (12,),
    "aspp_s": (2, 4, 8, 12),
    "aspp_l": (6, 12, 18, 24),
}
# The residual network of the Caffe release: strides on 1x1 convolutions, pools that round up, and
# dilation from the first unit of a stage.
RESNET_OPTIONS = {"stride_on": "1x1", "pool": "caffe", "dilate_first_unit": True}


class DeepLabV2(SegmentationModel):
    """Applies atrous spatial pyramid pooling to dilated features at one or several scales of the
    image, takes the maximum over the scales and upsamples it bilinearly.

    With 21 classes it has 44,048,532 parameters on ResNet-101 and 37,877,652 on VGG16.

    Attributes:
      backbone: a module that returns features with `"c5"`. Images are padded for its
        `output_stride`, or for 32 where it declares none.
      rates: dilation of each branch of the ASPP, see `RATES`.
      fc_features: channels of fc6 and fc7 in each branch; 0 where the branches are classifiers.
        By default the paper's: 1024 on `VGG`, else 0 (section 4.1).
      scales: of the image, the first 1; (1.0, 0.75, 0.5) for the paper's MSC with ResNet-101
        (section 4.1), in training and evaluation alike.
      dropout: rate of dropout after fc6 and fc7.
      auxiliary: whether training also returns the scores that the release has its losses on, see
        `__call__`. Give `"logits"` the weight 0 then, and resize the labels.

    Raises:
      ValueError: from `__call__`, if there are no rates or the scales are impossible.
    """

    rates: Sequence[int] = RATES["aspp_l"]
    fc_features: int | None = None
    scales: Sequence[float] = (1.0,)
    dropout: float = 0.5
    auxiliary: bool = True
    normalization: ImageNormalization = CAFFE

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Images are padded by zeros to a size that all scales have whole cells for, see
        `pad_to_grid`: 8k + 1 pixels for one scale at output stride 8, 32k + 1 for the paper's
        three.

        Returns:
          In training with `auxiliary`, scores at the output stride: `"scale100"`,
          and of several scales also `"fused"` and, named by percent, each other scale. As in the
          release, half the scale keeps its own grid, which is every second cell of that of scale
          1, and 0.75, which has no such grid, is resized to it.
        """
        self._check()
        height, width = image.shape[1:3]
        image = pad_to_grid(image, _grid(self.scales, getattr(self.backbone, "output_stride", 32)))
        fc_features = self.fc_features
        if fc_features is None:
            fc_features = 1024 if isinstance(self.backbone, VGG) else 0
        head = SummedASPP(
            self.num_classes, self.rates, fc_features, self.dropout, self.dtype, name="aspp"
        )
        scores = [
            head(self.backbone(_scaled(image, scale), train=train)["c5"], train=train)
            for scale in self.scales
        ]
        size = scores[0].shape[1:3]
        aligned = [resize(score, size, align_corners=True) for score in scores]
        fused = jnp.stack(aligned).max(0)
        logits = resize(fused, image.shape[1:3], align_corners=True)[:, :height, :width]
        auxiliary = {}
        if train and self.auxiliary:
            for scale, own, same_size in zip(self.scales, scores, aligned, strict=True):
                whole_step = _fraction(scale).numerator == 1
                auxiliary[f"scale{100 * scale:g}"] = own if whole_step else same_size
            if len(scores) > 1:
                auxiliary["fused"] = fused
        return Prediction(logits, auxiliary)

    def _check(self) -> None:
        if not self.rates:
            raise ValueError("rates is empty; it must have at least one, such as (6, 12, 18, 24).")
        if not self.scales or self.scales[0] != 1 or min(self.scales) <= 0:
            raise ValueError(
                f"scales is {tuple(self.scales)}; they must be positive and the first must be 1, "
                "such as (1.0, 0.75, 0.5)."
            )


class SummedASPP(nn.Module):
    """Classifies at several rates and sums the scores: the atrous spatial pyramid pooling of
    version 2.

    (Section 3.2; there is neither BatchNorm nor an image-level branch.)

    Attributes:
      num_classes: channels of the scores.
      rates: dilation of each branch.
      features: channels of fc6 and fc7 in each branch: a 3x3 convolution at the rate and two 1x1;
        0 for a single 3x3 convolution to the classes.
      dropout: rate of dropout after fc6 and fc7.
      dtype: dtype of fc6 and fc7; the scores are float32.
    """

    num_classes: int
    rates: Sequence[int]
    features: int = 0
    dropout: float = 0.5
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        total = 0.0
        for branch, rate in enumerate(self.rates, 1):
            name = f"classifier_{branch}"
            if self.features:
                y = fully_connected(
                    x,
                    (self.features, self.features),
                    kernel_size=3,
                    rate=rate,
                    dropout=self.dropout,
                    dtype=self.dtype,
                    train=train,
                    suffix=f"_{branch}",
                )
                total += classifier(self.num_classes, name=name)(y)
            else:
                total += classifier(self.num_classes, kernel_size=3, rate=rate, name=name)(x)
        return total


def _grid(scales: Sequence[float], output_stride: int) -> int:
    """Returns the stride of a grid that has whole cells at every scale: 8 for (1.0,), 32 for (1.0,
    0.75, 0.5)."""
    return output_stride * math.lcm(*(_fraction(scale).denominator for scale in scales))


def _fraction(scale: float) -> Fraction:
    return Fraction(scale).limit_denominator(100)


def _scaled(image: jax.Array, scale: float) -> jax.Array:
    height, width = (round((n - 1) * scale) + 1 for n in image.shape[1:3])
    return resize(image, (height, width), align_corners=True)
