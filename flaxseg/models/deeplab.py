"""DeepLabv3 and DeepLabv3+.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017 (v3), and
"Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation", 2018 (v3+).
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from flaxseg.layers import (
    ASPP,
    IMAGENET,
    AuxiliaryHead,
    BatchNorm,
    ConvBlock,
    ImageNormalization,
    SeparableConv,
    classifier,
    resize,
)
from flaxseg.models.prediction import Prediction


def aspp_rates(output_stride: int) -> tuple[int, int, int]:
    """Returns the rates that see the same part of the picture at any output stride: (6, 12, 18) at
    16, doubled at 8."""
    return tuple(rate * 16 // output_stride for rate in (6, 12, 18))


class DeepLabV3(nn.Module):
    """ASPP on dilated features, a classifier, bilinear upsampling.

    Attributes:
      num_classes: channels of the logits.
      backbone: a module that returns features with `"c5"` (and `"c4"` for the auxiliary head).
      rates: dilation of the ASPP's branches, see `aspp_rates`; may be empty (the released
        MobileNetV2 models).
      features: channels of the ASPP.
      separable: whether the ASPP's branches are depthwise-separable.
      head_conv: whether a 3x3 convolution block stands between ASPP and classifier, as in
        torchvision. The paper and the TensorFlow release have none, which is the default.
      dropout: rate of dropout after the ASPP. 0.1 as in the TensorFlow release; torchvision has
        0.5.
      auxiliary: whether an `AuxiliaryHead` on `"c4"` is trained too, as in torchvision.
      align_corners: convention of the upsampling; True as in the release, False in torchvision.
      normalization: what the backbone expects of its input.
      norm: makes every normalisation of the head; called as `norm(name=...)`.
      dtype: dtype of the head's computation; the logits are float32.
    """

    num_classes: int
    backbone: nn.Module
    rates: Sequence[int] = (6, 12, 18)
    features: int = 256
    separable: bool = False
    head_conv: bool = False
    dropout: float = 0.1
    auxiliary: bool = False
    align_corners: bool = True
    normalization: ImageNormalization = IMAGENET
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Dtype | None = None

    default_backbone: ClassVar[str] = "resnet50"
    default_output_stride: ClassVar[int] = 16
    default_rates = staticmethod(aspp_rates)

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments pictures.

        Args:
          image: `[N, H, W, 3]`, any H and W from 1, normalised by `normalization`.
          train: whether batch statistics, dropout and the auxiliary head are in use; needs the rng
            `"dropout"`.

        Returns:
          A `Prediction`; in training with `auxiliary`, `auxiliary["c4"]` are logits at the output
          stride.
        """
        common = {"norm": self.norm, "dtype": self.dtype}
        features = self.backbone(image, train=train)
        x = ASPP(
            self.rates, self.features, self.separable, dropout=self.dropout, **common, name="aspp"
        )(features["c5"], train=train)
        if self.head_conv:
            x = ConvBlock(self.features, 3, **common, name="head")(x, train=train)
        logits = classifier(self.num_classes)(x)
        auxiliary = {}
        if self.auxiliary and (train or self.is_initializing()):
            head = AuxiliaryHead(self.num_classes, **common, name="auxiliary_head")
            auxiliary["c4"] = head(features["c4"], train=train)
        logits = resize(logits, image.shape[1:3], align_corners=self.align_corners)
        return Prediction(logits, auxiliary if train else {})


class DeepLabV3Plus(nn.Module):
    """DeepLabv3's encoder and a decoder that refines its features with those at stride 4.

    Attributes:
      num_classes: channels of the logits.
      backbone: a module that returns features with `"c2"` and `"c5"` (and `"c4"` for the auxiliary
        head). Of a ResNet, `"c2"` is the output of its first stage, as in most ports; the release
        taps it inside of the stage's second unit.
      rates: dilation of the ASPP's branches, see `aspp_rates`.
      features: channels of the ASPP and of the decoder.
      low_level_features: channels that `"c2"` is reduced to (the paper's table 1).
      decoder_convs: how many 3x3 convolutions the decoder has (the paper's table 2).
      separable: whether ASPP and decoder are depthwise-separable, the paper's final form.
      dropout: rate of dropout after the ASPP.
      auxiliary: whether an `AuxiliaryHead` on `"c4"` is trained too.
      align_corners: convention of both upsamplings; True as in the release.
      normalization: what the backbone expects of its input.
      norm: makes every normalisation of the head; called as `norm(name=...)`.
      dtype: dtype of the head's computation; the logits are float32.
    """

    num_classes: int
    backbone: nn.Module
    rates: Sequence[int] = (6, 12, 18)
    features: int = 256
    low_level_features: int = 48
    decoder_convs: int = 2
    separable: bool = True
    dropout: float = 0.1
    auxiliary: bool = False
    align_corners: bool = True
    normalization: ImageNormalization = IMAGENET
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Dtype | None = None

    default_backbone: ClassVar[str] = "resnet50"
    default_output_stride: ClassVar[int] = 16
    default_rates = staticmethod(aspp_rates)

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments pictures; arguments and result as for `DeepLabV3`."""
        common = {"norm": self.norm, "dtype": self.dtype}
        features = self.backbone(image, train=train)
        x = ASPP(
            self.rates, self.features, self.separable, dropout=self.dropout, **common, name="aspp"
        )(features["c5"], train=train)
        low_level = ConvBlock(self.low_level_features, 1, **common, name="low_level")(
            features["c2"], train=train
        )
        x = resize(x, low_level.shape[1:3], align_corners=self.align_corners)
        x = jnp.concatenate([x, low_level], -1)
        block = SeparableConv if self.separable else ConvBlock
        for index in range(self.decoder_convs):
            x = block(self.features, 3, **common, name=f"decoder{index}")(x, train=train)
        logits = classifier(self.num_classes)(x)
        auxiliary = {}
        if self.auxiliary and (train or self.is_initializing()):
            head = AuxiliaryHead(self.num_classes, **common, name="auxiliary_head")
            auxiliary["c4"] = head(features["c4"], train=train)
        logits = resize(logits, image.shape[1:3], align_corners=self.align_corners)
        return Prediction(logits, auxiliary if train else {})
