"""Fully convolutional networks.

Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015,
and Shelhamer, Long and Darrell, the same title, PAMI 2017. Geometry and initialisation are those of
the released nets.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from flaxseg.layers import (
    CAFFE,
    AuxiliaryHead,
    BatchNorm,
    BilinearDeconv,
    ImageNormalization,
    classifier,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel

PADDING = 100
"""Pixels around the image in the released nets, so that fc6, which pads nothing, fits."""

VGG_OPTIONS = {"first_padding": PADDING, "fc_features": (4096, 4096), "fc_padding": "valid"}
ALEXNET_OPTIONS = {"first_padding": PADDING, "fc_features": (4096, 4096)}


class FCN(SegmentationModel):
    """Runs a classifier as a convolution, upsamples its scores and adds the scores of finer layers.

    FCN-32s has no skips, FCN-16s one and FCN-8s two. Scores come from 1x1 convolutions that start
    at zero.

    On the paper's backbones, padded by `PADDING`, maps are upsampled by `BilinearDeconv` and
    cropped at the published offsets. The features of every other backbone lie over the image,
    without such a border: each score is resized to that of the next skip and finally to the image.
    Scored is `"fc7"` if the backbone has it, else `"c5"`.

    Attributes:
      backbone: a module that returns features with `"c5"` and all of `skips`, and maybe `"fc7"`.
      skips: further features to score, from coarse to fine.
      skip_scales: what each skip is multiplied by before it is scored; () for 1, as in staged
        training. Small factors keep the large activations of finer layers from dominating when
        everything is trained at once (PAMI 2017, section 4.3; 0.01 and 0.0001 are the release's).
      offsets: where the released nets crop: each skip, then the upsampled result.
      kernel_size: of the last deconvolution; its stride is that of the finest scores.
      learned_upsampling: `"none"`, `"depthwise"` or `"dense"`: whether the deconvolutions before
        the last are learned. The papers learn them, the released nets do not, at no cost in
        accuracy, which is the default.
      learned_last_upsampling: whether the last one is learned in that form too; the papers fix it,
        some ports learn it.
    """

    skips: Sequence[str] = ()
    skip_scales: Sequence[float] = ()
    offsets: Sequence[int] = (19,)
    kernel_size: int = 64
    learned_upsampling: str = "none"
    learned_last_upsampling: bool = False
    normalization: ImageNormalization = CAFFE

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Raises:
          ValueError: there is not one scale or offset for each skip, or an option of the released
            nets is set for another backbone.
        """
        padded = self._is_padded()
        scales = tuple(self.skip_scales) or (1.0,) * len(self.skips)
        self._check_lengths(scales, padded)
        features = self.backbone(image, train=train)
        score = self._score(features["fc7" if "fc7" in features else "c5"], "score_fr")
        stride = 32
        for index, (level, scale) in enumerate(zip(self.skips, scales, strict=True)):
            skip = self._score(features[level] * scale, f"score_{level}")
            if padded:
                up = BilinearDeconv(4, 2, self.learned_upsampling, name=f"upscore_{level}")
                score = up(score)
                rows, columns = (
                    slice(self.offsets[index], self.offsets[index] + n) for n in score.shape[1:3]
                )
                score += skip[:, rows, columns]
                stride //= 2
            else:
                score = resize(score, skip.shape[1:3], align_corners="cells") + skip
        if padded:
            form = self.learned_upsampling if self.learned_last_upsampling else "none"
            up = BilinearDeconv(self.kernel_size, stride, form, name="upscore")
            score = up(score, offset=self.offsets[-1], size=image.shape[1:3])
        else:
            score = resize(score, image.shape[1:3], align_corners="cells")
        return Prediction(score, {})

    def _is_padded(self) -> bool:
        """Returns whether the backbone is one of the released nets, with their border."""
        padded = getattr(self.backbone, "first_padding", 1) == PADDING
        if not padded and (self.learned_upsampling != "none" or self.learned_last_upsampling):
            raise ValueError(
                f"learned_upsampling is {self.learned_upsampling!r}, and the backbone lacks the "
                f"border of {PADDING} pixels (first_padding) of FCN's own nets; other backbones' "
                'scores are resized. Set learned_upsampling="none".'
            )
        output_stride = getattr(self.backbone, "output_stride", 32)
        if padded and output_stride != 32:
            raise ValueError(
                f"the backbone's output_stride is {output_stride}; FCN's own nets have 32."
            )
        if self.learned_last_upsampling and self.learned_upsampling == "none":
            raise ValueError(
                "learned_last_upsampling is set, and learned_upsampling is 'none'; it must be "
                "'depthwise' or 'dense'."
            )
        return padded

    def _check_lengths(self, scales: Sequence[float], padded: bool) -> None:
        if len(scales) != len(self.skips):
            raise ValueError(
                f"skip_scales {scales} must have one factor for each of the skips {self.skips}."
            )
        if padded and len(self.offsets) != len(self.skips) + 1:
            raise ValueError(
                f"offsets {self.offsets} must have one for each of the skips {self.skips} and one "
                "for the upsampled scores, such as (5, 27) for FCN-16s."
            )

    def _score(self, feature: jax.Array, name: str) -> jax.Array:
        return classifier(self.num_classes, kernel_init=nn.initializers.zeros, name=name)(feature)


class FCN32s(FCN):
    """Upsamples the scores of VGG16 by 32 in one step."""


class FCN16s(FCN):
    """Adds the scores of pool4 to FCN-32s, from whose parameters it is trained."""

    skips: Sequence[str] = ("c4",)
    offsets: Sequence[int] = (5, 27)
    kernel_size: int = 32


class FCN8s(FCN):
    """Adds the scores of pool3 to FCN-16s, from whose parameters it is trained."""

    skips: Sequence[str] = ("c4", "c3")
    offsets: Sequence[int] = (5, 9, 31)
    kernel_size: int = 16


class FCN8sAtOnce(FCN8s):
    """Trains FCN-8s in one go from an ImageNet classifier, with scaled skips."""

    skip_scales: Sequence[float] = (0.01, 0.0001)


class FCNAlexNet(FCN):
    """Upsamples the scores of AlexNet by 32 in one step."""

    offsets: Sequence[int] = (18,)
    kernel_size: int = 63


class DilatedFCN(SegmentationModel):
    """Classifies dilated features after one convolution block: what libraries call FCN today.

    The form of torchvision's `fcn_resnet50` and `fcn_resnet101`, whose checkpoints fit.

    Attributes:
      backbone: a module that returns features with `"c5"` (and `"c4"` for the auxiliary head).
      dropout: rate of dropout before the classifier.
      auxiliary: whether training also returns `auxiliary["c4"]`, the logits of an
        `AuxiliaryHead` on `"c4"` at the output stride.
      norm: makes every normalisation of the heads; called as `norm(name=...)`.
    """

    dropout: float = 0.1
    auxiliary: bool = False
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`."""
        options = {"dropout": self.dropout, "norm": self.norm, "dtype": self.dtype}
        features = self.backbone(image, train=train)
        logits = AuxiliaryHead(self.num_classes, **options, name="head")(
            features["c5"], train=train
        )
        auxiliary = self._auxiliary_c4(features, train, **options) if self.auxiliary else {}
        return Prediction(resize(logits, image.shape[1:3], align_corners=False), auxiliary)
