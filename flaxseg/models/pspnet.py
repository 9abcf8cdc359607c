"""PSPNet.

Zhao et al., "Pyramid Scene Parsing Network", 2017 (CVPR).
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from flaxseg.layers import (
    BatchNorm,
    ConvBlock,
    PyramidPooling,
    classifier,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel

# The ResNet of both releases: three 3x3 convolutions for a stem, every unit of a dilated stage at
# the rate of the stage.
RESNET_OPTIONS = {"deep_stem": (64, 64, 128), "dilate_first_unit": True}


class PSPNet(SegmentationModel):
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
      auxiliary: whether training also returns `auxiliary["c4"]`, the logits of an `AuxiliaryHead`
        on the fourth stage at the output stride (section 3.3; the paper's weight of its loss is
        0.4).
      align_corners: convention of the upsampling, see `resize`; False as in mmsegmentation, True as
        in both releases, which demand sides of `8 k + 1`. "cells", the default, equals the releases
        at those sizes and keeps the logits over their pixels at others; the pyramid's bins have no
        stride and are then resized with True.
      norm: makes every normalisation of the head; called as `norm(name=...)`.
    """

    bins: Sequence[int] = (1, 2, 3, 6)
    pooling: str = "average"
    reduce: bool = True
    windows: Sequence[int] | None = None
    features: int = 512
    dropout: float = 0.1
    channel_dropout: bool = True
    auxiliary: bool = False
    align_corners: bool | str = "cells"
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        The coarsest scale has one cell per image, so its batch statistics need a large batch.
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
        if self.auxiliary:
            dropout = {"dropout": self.dropout, "channel_dropout": self.channel_dropout}
            auxiliary = self._auxiliary_c4(features, train, **dropout, **common)
        logits = resize(logits, image.shape[1:3], align_corners=self.align_corners)
        return Prediction(logits, auxiliary)
