"""DeepLabv3 and DeepLabv3+.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017 (v3), and
"Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", 2018 (v3+).

Multi-grid is an option of the backbone, `backbone_options={"multi_grid": (1, 2, 4),
"dilate_first_unit": True}`. The nets of TensorFlow's release are those with the backbones
`resnet50_beta`, `resnet101_beta`, `xception41`, `xception65`, `xception71`, and, without atrous
branches (`rates=()`) and decoder, `mobilenet_v2`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxseg.backbones.resnet import Bottleneck
from flaxseg.layers import (
    ASPP,
    BatchNorm,
    ConvBlock,
    SeparableConv,
    classifier,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel


def aspp_rates(output_stride: int) -> tuple[int, int, int]:
    """Returns the rates that cover the same part of the image at any output stride: (6, 12, 18) at
    16, doubled at 8."""
    return tuple(rate * 16 // output_stride for rate in (6, 12, 18))


def cascade_rates(output_stride: int) -> tuple[int, int, int]:
    """Returns the rates of block5 to block7, each twice the rate of the block before it: (4, 8, 16)
    at output stride 16, doubled at 8 (section 3.2 and figure 3 of v3)."""
    return tuple(32 // output_stride * 2**block for block in (1, 2, 3))


class _OnASPP(SegmentationModel):
    """Encodes images by ASPP on dilated features: what DeepLabv3 and v3+ share.

    Attributes:
      rates: dilation of the ASPP's branches, see `aspp_rates`; may be empty (the released
        MobileNetV2 models).
      features: channels of the ASPP.
      separable: whether the branches of the ASPP are depthwise-separable.
      image_pooling: whether the ASPP has an image-level branch. The paper's best v3+ for Cityscapes
        has none (table 7).
      dropout: rate of dropout after the ASPP. 0.1 as in the TensorFlow release; torchvision has
        0.5.
      auxiliary: whether training also returns `auxiliary["c4"]`, the logits of an
        `AuxiliaryHead` on `"c4"` at the output stride, as in torchvision.
      align_corners: convention of all upsampling, see `resize`: True as in the release, False as in
        torchvision. "cells", the default, equals the release for sides of `output_stride * k + 1`,
        which the paper chooses for this reason, and does not stretch the masks of images of other
        sizes.
      norm: makes every normalisation of the head; called as `norm(name=...)`.
    """

    rates: Sequence[int] = (6, 12, 18)
    features: int = 256
    separable: bool = False
    image_pooling: bool = True
    dropout: float = 0.1
    auxiliary: bool = False
    align_corners: bool | str = "cells"
    norm: Callable[..., nn.Module] = BatchNorm

    @property
    def _common(self) -> dict[str, Any]:
        return {"norm": self.norm, "dtype": self.dtype}

    def _encode(self, x: jax.Array, train: bool) -> jax.Array:
        """Returns the output of the ASPP."""
        aspp = ASPP(
            self.rates,
            self.features,
            self.separable,
            self.image_pooling,
            self.dropout,
            **self._common,
            name="aspp",
        )
        return aspp(x, train=train)

    def _prediction(
        self, x: jax.Array, features: Mapping[str, jax.Array], size: Sequence[int], train: bool
    ) -> Prediction:
        """Classifies, upsamples to the size of the image, and adds the auxiliary output."""
        logits = classifier(self.num_classes)(x)
        auxiliary = {}
        if self.auxiliary:
            auxiliary = self._auxiliary_c4(features, train, **self._common)
        return Prediction(resize(logits, size, align_corners=self.align_corners), auxiliary)


class DeepLabV3(_OnASPP):
    """Segments by ASPP on dilated features, a classifier and bilinear upsampling.

    The backbone returns `"c5"`, and `"c4"` for the auxiliary head.

    Attributes:
      head_conv: whether a 3x3 convolution block stands between ASPP and classifier, as in
        torchvision. The paper and the TensorFlow release have none, which is the default.
    """

    head_conv: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`."""
        features = self.backbone(image, train=train)
        x = self._encode(features["c5"], train)
        if self.head_conv:
            x = ConvBlock(self.features, 3, **self._common, name="head")(x, train=train)
        return self._prediction(x, features, image.shape[1:3], train)


class DeepLabV3Cascade(SegmentationModel):
    """Repeats the ResNet's last block, each copy at twice the rate of the one before it, in place
    of the ASPP (v3, section 3.2).

    Attributes:
      backbone: a module that returns features with `"c5"`.
      rates: of the further blocks, one a block, see `cascade_rates`.
      multi_grid: factors of the rate for the units of a block; (1, 2, 1) is the paper's best with
        three further blocks (table 3). The backbone's own last block has an attribute of the same
        name.
      features: channels inside a unit; its output has four times as many.
      dropout: rate of dropout before the classifier; the paper names none.
      align_corners: convention of the upsampling, as for `DeepLabV3`.
      norm: makes every normalisation of the head; called as `norm(name=...)`.
    """

    rates: Sequence[int] = (4, 8, 16)
    multi_grid: Sequence[int] = (1, 2, 1)
    features: int = 512
    dropout: float = 0.0
    align_corners: bool | str = "cells"
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`."""
        x = self.backbone(image, train=train)["c5"]
        for block, rate in enumerate(self.rates, 5):
            for unit, factor in enumerate(self.multi_grid):
                x = Bottleneck(
                    self.features,
                    strides=1,
                    rate=rate * factor,
                    next_rate=rate * factor,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"block{block}_{unit}",
                )(x, train=train)
        if self.dropout:
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
        logits = classifier(self.num_classes)(x)
        return Prediction(resize(logits, image.shape[1:3], align_corners=self.align_corners))


class DeepLabV3Plus(_OnASPP):
    """Adds a decoder to DeepLabv3 that refines the encoder's features with those at stride 4.

    The paper's decoder (section 3.1) resizes the encoder's output to the low-level features,
    concatenates it with them after a 1x1 convolution to 48 channels, and applies two 3x3
    convolutions of 256. The attributes below are what tables 1 and 2 vary.

    The backbone returns `"c5"` and the low levels, and `"c4"` for the auxiliary head. Of a ResNet,
    `"c2"` is the output of its first stage, as in most ports; the release's is
    `c2_before_addition` of the backbone, which `resnet101_beta` has.

    Attributes:
      low_levels: names of the low-level features, coarse to fine. With ("c3", "c2") the decoder
        runs for each in turn ("Conv2, Conv3" in the paper's table 2, which is no better).
      low_level_features: channels that low-level features are reduced to (the paper's table 1:
        48 is best of 8 to 64).
      decoder_convs: how many convolutions the decoder has (the paper's table 2: 2 is best).
      decoder_features: their channels; those of the ASPP by default.
      decoder_kernel_size: their size, 3 or 1 (the paper's table 2).
      separable: whether ASPP and decoder are depthwise-separable, the paper's final form.
    """

    separable: bool = True
    low_levels: Sequence[str] = ("c2",)
    low_level_features: int = 48
    decoder_convs: int = 2
    decoder_features: int | None = None
    decoder_kernel_size: int = 3

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`."""
        features = self.backbone(image, train=train)
        x = self._encode(features["c5"], train)
        block = SeparableConv if self.separable else ConvBlock
        for level in self.low_levels:
            scope = "" if level == self.low_levels[-1] else f"{level}_"
            reduce = ConvBlock(self.low_level_features, 1, **self._common, name=f"{scope}low_level")
            low_level = reduce(features[level], train=train)
            x = resize(x, low_level.shape[1:3], align_corners=self.align_corners)
            x = jnp.concatenate([x, low_level], -1)
            for index in range(self.decoder_convs):
                x = block(
                    self.decoder_features or self.features,
                    self.decoder_kernel_size,
                    **self._common,
                    name=f"{scope}decoder{index}",
                )(x, train=train)
        return self._prediction(x, features, image.shape[1:3], train)
