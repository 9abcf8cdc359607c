"""RefineNet and Light-Weight RefineNet.

Lin, Milan, Shen and Reid, "RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic
Segmentation", 2017 (CVPR), and Nekrasov, Shen and Reid, "Light-Weight RefineNet for Real-Time
Semantic Segmentation", 2018 (BMVC).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
from flax.typing import Dtype, Initializer

from flaxseg.backbones import MobileNetV2, check_call_option
from flaxseg.layers import (
    AtrousConv,
    ChainedResidualPooling,
    MultiResolutionFusion,
    ResidualConvUnit,
    classifier,
    classifier_init,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel

# From coarse to fine, as they are fused.
_LEVELS = ("c5", "c4", "c3", "c2")
# Dropout is on these. The release has it on features of more than 512 channels, which these are on
# the ResNets of the papers.
_DROPPED = ("c5", "c4")
# PyTorch's own for convolutions: uniform within one over the square root of the fan-in.
_torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class RefineNetBlock(nn.Module):
    """Adapts new features, fuses them with the coarser ones, pools in a chain, and refines (figure
    2 a of RefineNet).

    The paper has two residual convolution units on every input, coarse features included, and one
    at the output, except for three at that of the last block. The released networks and this one
    have three at every output and none on the coarse features: the same function, since the one and
    the two of the next block follow each other.

    Attributes:
      features: channels of the output.
      input_units: residual convolution units on each of the new features.
      output_units: residual convolution units at the output.
      pooling_blocks: see `ChainedResidualPooling`.
      pool_first: see `ChainedResidualPooling`.
      kernel_size: of all convolutions.
      fuse_all: whether all inputs of the fusion have a convolution, or only the coarse features.
      activation: what stands before the pooling.
      align_corners: convention of the fusion.
      kernel_init: initialiser of all kernels.
      dtype: dtype of the computation; that of the input by default.
    """

    features: int
    input_units: int = 2
    output_units: int = 3
    pooling_blocks: int = 4
    pool_first: bool = True
    kernel_size: int = 3
    fuse_all: bool = True
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    align_corners: bool | str = True
    kernel_init: Initializer = classifier_init
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, new: Sequence[jax.Array], coarse: jax.Array | None = None) -> jax.Array:
        """Returns `[N, H, W, features]`.

        Args:
          new: features from the backbone, each `[N, h, w, C]`.
          coarse: what the block before returned; None for the first.
        """
        common = {
            "kernel_size": self.kernel_size,
            "kernel_init": self.kernel_init,
            "dtype": self.dtype,
        }
        inputs = []
        for index, x in enumerate(new, 1):
            for unit in range(1, self.input_units + 1):
                x = ResidualConvUnit(**common, name=f"input{index}_{unit}")(x)
            inputs.append(x)
        convolved = None if self.fuse_all else ()
        if coarse is not None:
            inputs.append(coarse)
            convolved = None if self.fuse_all else (len(inputs),)
        x = MultiResolutionFusion(
            self.features,
            convolved=convolved,
            align_corners=self.align_corners,
            **common,
            name="fusion",
        )(inputs)
        x = ChainedResidualPooling(
            self.pooling_blocks,
            self.pool_first,
            activation=self.activation,
            **common,
            name="pooling",
        )(x)
        for unit in range(1, self.output_units + 1):
            x = ResidualConvUnit(**common, name=f"output_{unit}")(x)
        return x


class RefineNet(SegmentationModel):
    """Fuses the features of a network without dilation from coarse to fine, by blocks of residual
    units (figures 2 and 3 of the paper).

    Features are first reduced to `features` channels, those of `"c5"` to twice as many, by 3x3
    convolutions. There is no BatchNorm outside the backbone, and all convolutions are initialised
    from normal(0, 0.01).

    The default is the 4-cascaded network at the size of the image, as DrSleep's PyTorch port
    (refinenet-pytorch) runs the weights released for VOC: this form has public PyTorch weights and
    costs less. The authors' MatConvNet code enlarges every image first, `scales=(1.2,)`; its
    two-scale network has `scales=(1.2, 0.6)`. It resizes by bicubic interpolation; here it is
    bilinear. Its models expect RGB - 128.

    Attributes:
      backbone: a module that returns features with `"c2"` to `"c5"`.
      cascades: blocks in a row (section 4.3, table 7 of the paper): 4, one for each level; 2, two
        levels each; 1, one block that fuses all four.
      scales: of the image, one network each. All feed the same blocks: each has the features of
        its level at all scales. Backbones are independent, `"backbone"`, `"backbone_2"`, ...;
        `load_backbone` gives all of them the same weights.
      features: channels of the blocks, halved from those of the first where that reads `"c5"`
        alone.
      input_units: see `RefineNetBlock`.
      output_units: see `RefineNetBlock`.
      pooling_blocks: 2 as figure 2 of the paper draws, 4 as in all released networks.
      pool_first: order in the pooling chain: pool and convolve, as in the paper, in the port and in
        the networks released for VOC and Cityscapes; False as in those for ADE20K, NYUDv2, Person-
        Part, PASCAL-Context and SUN-RGBD.
      dropout: rate of dropout on `"c5"` and `"c4"` and before the classifier.
      align_corners: convention of the resizing between blocks, see `resize`; True as in the port.
      final_align_corners: that of the logits to the size of the image; the port's programs resize
        them with neither corner aligned.
    """

    cascades: int = 4
    scales: Sequence[float] = (1.0,)
    features: int = 256
    input_units: int = 2
    output_units: int = 3
    pooling_blocks: int = 4
    pool_first: bool = True
    dropout: float = 0.5
    align_corners: bool | str = True
    final_align_corners: bool | str = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Raises:
          ValueError: an attribute has none of the values listed above.
        """
        self._check()
        drop = partial(_drop, rate=self.dropout, train=train)
        streams = []
        for index, scale in enumerate(self.scales, 1):
            suffix = "" if index == 1 else f"_{index}"
            network = self.backbone
            if index > 1:
                network = self.backbone.clone(parent=self, name=f"backbone{suffix}")
            features = network(_scaled(image, scale), train=train)
            stream = {}
            for level in _LEVELS:
                x = drop(features[level]) if level in _DROPPED else features[level]
                reduce = AtrousConv(
                    self._channels((level,)),
                    3,
                    kernel_init=classifier_init,
                    dtype=self.dtype,
                    name=f"reduce_{level}{suffix}",
                )
                stream[level] = reduce(x)
            streams.append(stream)
        x = None
        levels_a_block = len(_LEVELS) // self.cascades
        for index in range(self.cascades):
            levels = _LEVELS[index * levels_a_block : (index + 1) * levels_a_block]
            block = RefineNetBlock(
                self._channels(levels),
                self.input_units,
                self.output_units,
                self.pooling_blocks,
                self.pool_first,
                align_corners=self.align_corners,
                dtype=self.dtype,
                name=f"block{index + 1}",
            )
            x = block([stream[level] for stream in streams for level in levels], x)
        logits = classifier(self.num_classes, kernel_size=3)(drop(x))
        logits = resize(logits, image.shape[1:3], align_corners=self.final_align_corners)
        return Prediction(logits, {})

    def _channels(self, levels: Sequence[str]) -> int:
        """Returns the channels of a block that reads those levels: the smallest of theirs."""
        return self.features * (2 if tuple(levels) == ("c5",) else 1)

    def _check(self) -> None:
        if self.cascades not in (1, 2, 4):
            raise ValueError(f"cascades is {self.cascades}; it must be 1, 2 or 4.")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(
                f"scales is {tuple(self.scales)}; it must have at least one, all positive, such as "
                "(1.0,) or (1.2, 0.6)."
            )
        by_cells = "cells" in (self.align_corners, self.final_align_corners)
        if by_cells and any(scale != 1 for scale in self.scales):
            raise ValueError(
                f"align_corners is {self.align_corners!r} and final_align_corners is "
                f"{self.final_align_corners!r} with scales {tuple(self.scales)}; both must be True "
                "or False there, 'cells' needs features that the image is a power of two of."
            )


class _Form(NamedTuple):
    """Describes one of the two networks of Light-Weight RefineNet's release.

    Attributes:
      levels: the features that each block reads.
      widths: channels that they are reduced to, in units of `features`.
      fuse_all: see `RefineNetBlock`.
      activation: see `RefineNetBlock`.
      dropped: features with dropout.
    """

    levels: tuple[tuple[str, ...], ...]
    widths: tuple[int, ...]
    fuse_all: bool
    activation: Callable[[jax.Array], jax.Array]
    dropped: tuple[str, ...]


_FORMS = {
    "resnet": _Form(tuple((level,) for level in _LEVELS), (2, 1, 1, 1), True, nn.relu, _DROPPED),
    "mobilenet": _Form(
        (("stage7", "stage6"), ("stage5", "stage4"), ("stage3",), ("stage2",)),
        (1, 1, 1, 1),
        False,
        nn.relu6,
        (),
    ),
}


class RefineNetLW(SegmentationModel):
    """Fuses features as `RefineNet` does, without residual units and with 1x1 convolutions
    throughout, except for the classifier.

    The release has two forms. On a ResNet it is that of `RefineNet` with four blocks. On
    MobileNetV2, the outputs of the last six stages are reduced and those of equal size summed in
    one block; only the coarse features have a convolution before the fusion; ReLU6 replaces ReLU;
    and there is no dropout.

    On MobileNetV2 the released network has 3,284,565 parameters with 21 classes, for which the
    backbone needs `{"expand_first": True}`; public ImageNet weights have no such convolution, and
    the default has none either.

    Attributes:
      backbone: a module that returns features with `"c2"` to `"c5"`, or for the form
        `"mobilenet"` a MobileNetV2 or EfficientNet-Lite0.
      form: `"resnet"` or `"mobilenet"`; the latter on `MobileNetV2`, else the former, by default.
      features: channels of the blocks; of the first of the form `"resnet"` twice as many.
      pooling_blocks: see `ChainedResidualPooling`.
      dropout: rate of dropout on `"c5"` and `"c4"` of the form `"resnet"`.
      align_corners: convention of the resizing between blocks, see `resize`; True as released.
      final_align_corners: that of the logits to the size of the image; False as in the authors'
        training.
      kernel_init: initialiser of the head's kernels. PyTorch's own as in the authors' code by
        default; the paper has normal(0, 0.01).
    """

    form: str | None = None
    features: int = 256
    pooling_blocks: int = 4
    dropout: float = 0.5
    align_corners: bool | str = True
    final_align_corners: bool | str = False
    kernel_init: Initializer = _torch_init

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Raises:
          ValueError: there is no such form, or the backbone lacks the features that it reads.
        """
        form = self._form()
        if form is _FORMS["mobilenet"]:
            features = self.backbone(image, train=train, stage_features=True)
            _check_stages(features, form)
        else:
            features = self.backbone(image, train=train)
        x = None
        for index, levels in enumerate(form.levels):
            channels = self.features * form.widths[index]
            new = []
            for level in levels:
                y = features[level]
                if level in form.dropped:
                    y = _drop(y, self.dropout, train)
                reduce = AtrousConv(
                    channels,
                    1,
                    kernel_init=self.kernel_init,
                    dtype=self.dtype,
                    name=f"reduce_{level}",
                )
                new.append(reduce(y))
            block = RefineNetBlock(
                channels,
                0,
                0,
                self.pooling_blocks,
                kernel_size=1,
                fuse_all=form.fuse_all,
                activation=form.activation,
                align_corners=self.align_corners,
                kernel_init=self.kernel_init,
                dtype=self.dtype,
                name=f"block{index + 1}",
            )
            x = block(new, x)
        logits = classifier(self.num_classes, kernel_size=3, kernel_init=self.kernel_init)(x)
        logits = resize(logits, image.shape[1:3], align_corners=self.final_align_corners)
        return Prediction(logits, {})

    def _form(self) -> _Form:
        name = self.form
        if name is None:
            name = "mobilenet" if isinstance(self.backbone, MobileNetV2) else "resnet"
        if name not in _FORMS:
            raise ValueError(f"form is {name!r}; it must be one of {', '.join(_FORMS)}.")
        if name == "mobilenet":
            check_call_option(
                self.backbone, "stage_features", "the form 'mobilenet', which reads its stages"
            )
        return _FORMS[name]


def _check_stages(features: dict[str, jax.Array], form: _Form) -> None:
    missing = [level for levels in form.levels for level in levels if level not in features]
    if missing:
        raise ValueError(
            f"the backbone has no {', '.join(missing)}, which the form 'mobilenet' reads; use one "
            "of seven stages or form='resnet'."
        )


def _drop(x: jax.Array, rate: float, train: bool) -> jax.Array:
    return nn.Dropout(rate)(x, deterministic=not train)


def _scaled(image: jax.Array, scale: float) -> jax.Array:
    if scale == 1:
        return image
    height, width = (max(math.floor(n * scale + 0.5), 1) for n in image.shape[1:3])
    return resize(image, (height, width), align_corners=False, antialias=scale < 1)
