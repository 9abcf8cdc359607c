"""PSPNet.

Zhao et al., "Pyramid Scene Parsing Network", 2017 (CVPR).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.layers import (
    IMAGENET,
    AuxiliaryHead,
    BatchNorm,
    ConvBlock,
    ImageNormalization,
    PyramidPooling,
    classifier,
    resize,
)
from flaxseg.models.prediction import Prediction

# The ResNet of both releases: three 3x3 convolutions for a stem, every unit of a dilated stage at
# the rate of the stage.
RESNET_OPTIONS = {"deep_stem": (64, 64, 128), "dilate_first_unit": True}


class PSPNet(nn.Module):
    """Segments by pyramid pooling on dilated features, a 3x3 convolution, a classifier and bilinear
    upsampling (figure 3 of the paper).

    The paper's network was published twice, in Caffe and in the author's PyTorch code (semseg),
    which differ where the paper says nothing. The defaults are semseg's, because its training code
    and scores are public too. The Caffe release is

        create_model("pspnet", 150, bins=(6, 3, 2, 1), channel_dropout=False,
                     windows=(10, 20, 30, 60),  # for crops of 473; (15, 30, 45, 90) for 713
                     backbone_options={"stride_on": "1x1"})  # the network for ADE20K only

    and that of mmsegmentation has `align_corners=False` on a ResNet with the options `{"deep_stem":
    (32, 32, 64), "dilate_first_unit": False}`. On a ResNet with torchvision's weights the options
    are `{"deep_stem": ()}`.

    Attributes:
      num_classes: channels of the logits.
      backbone: a module that returns features with `"c5"` (and `"c4"` for the auxiliary head).
      bins: cells along both axes of each scale of the pyramid, in the order of concatenation; ()
        is the baseline of the paper's ablations, without a pyramid.
      pooling: `"average"` or `"max"` (table 1 of the paper, where average is the better).
      reduce: whether a 1x1 convolution reduces each scale to `1 / len(bins)` of the channels.
      windows: sides of fixed pooling windows in place of the adaptive bins; see `PyramidPooling`.
      features: channels of the 3x3 convolution.
      dropout: rate of dropout before both classifiers.
      channel_dropout: whether dropout removes whole channels of an image, as in semseg, or single
        elements, as in the Caffe release.
      auxiliary: whether an `AuxiliaryHead` on `"c4"`, the fourth stage, is trained too (section
        3.3; the paper's weight of its loss is 0.4).
      align_corners: convention of the upsampling, see `resize`; False as in mmsegmentation, True as
        in both releases, which demand sides of `8 k + 1`. "cells", the default, equals the releases
        at those sizes and keeps the logits over their pixels at others; the pyramid's bins have no
        stride and are then resized with True.
      normalization: what the backbone expects of its input.
      norm: makes every normalisation of the head; called as `norm(name=...)`.
      dtype: dtype of the head's computation; the logits are float32.
    """

    num_classes: int
    backbone: nn.Module
    bins: Sequence[int] = (1, 2, 3, 6)
    pooling: str = "average"
    reduce: bool = True
    windows: Sequence[int] | None = None
    features: int = 512
    dropout: float = 0.1
    channel_dropout: bool = True
    auxiliary: bool = False
    align_corners: bool | str = "cells"
    normalization: ImageNormalization = IMAGENET
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images.

        Args:
          image: `[N, H, W, 3]`, any H and W from 1, normalised by `normalization`. Sides of `8 k +
            1` pixels, as the releases demand, make the corners of features and image coincide.
          train: whether batch statistics, dropout and the auxiliary head are in use; needs the rng
            `"dropout"`. The coarsest scale has one cell per image, so its statistics need a large
            batch.

        Returns:
          A `Prediction`; in training with `auxiliary`, `auxiliary["c4"]` are logits at the output
          stride.
        """
        common = {"norm": self.norm, "dtype": self.dtype}
        features = self.backbone(image, train=train)
        x = PyramidPooling(
            self.bins,
            pooling=self.pooling,
            reduce=self.reduce,
            windows=self.windows,
            align_corners=True if self.align_corners == "cells" else self.align_corners,
            **common,
            name="pyramid_pooling",
        )(features["c5"], train=train)
        x = ConvBlock(self.features, 3, **common, name="head")(x, train=train)
        dropped_together = (1, 2) if self.channel_dropout else ()
        x = nn.Dropout(self.dropout, broadcast_dims=dropped_together)(x, deterministic=not train)
        logits = classifier(self.num_classes)(x)
        auxiliary = {}
        if self.auxiliary and (train or self.is_initializing()):
            head = AuxiliaryHead(
                self.num_classes,
                self.dropout,
                self.channel_dropout,
                **common,
                name="auxiliary_head",
            )
            auxiliary["c4"] = head(features["c4"], train=train)
        logits = resize(logits, image.shape[1:3], align_corners=self.align_corners)
        return Prediction(logits, auxiliary if train else {})
