"""Dilated-Net: the front end on VGG16 and the context module.

Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from flaxseg.layers import (
    CAFFE,
    CONTEXT_RATES,
    ContextModule,
    ImageNormalization,
    bilinear_deconv,
    classifier,
    mirror_pad,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel

MARGIN = 186
"""Pixels per side that the front end's convolutions without padding take off an image."""

CONTEXTS = ("none", "basic", "large")

VGG_OPTIONS = {
    "first_padding": 0,
    "conv_padding": "valid",
    "late_pools": False,
    "fc_features": (4096, 4096),
    "fc_padding": "valid",
}
"""The front end's VGG16: no padding, no pools beyond stride 8, fc6 and fc7."""


class DilatedNet(SegmentationModel):
    """Runs a classifier as a convolution at stride 8, and a context module on its scores.

    The front end is VGG16 without its last two pools and without padding: the image is continued by
    its reflection instead, by `MARGIN` pixels a side and at the end to a multiple of 8. It is
    trained first (`context="none"`), then the context module on its scores, then both. The released
    nets are, in this order, the front end and Dilation8 for VOC, Dilation8 for CamVid, Dilation7
    for KITTI and Dilation10 for Cityscapes:

        create_model("dilatednet", 21, context="none")
        create_model("dilatednet", 21, context="large", pad_first=True)
        create_model("dilatednet", 11)
        create_model("dilatednet", 11, rates=(1, 1, 2, 4, 8, 1))
        create_model("dilatednet", 19, rates=(1, 1, 2, 4, 8, 16, 32, 64, 1), upsampling="deconv")

    Any other backbone pads, and its last feature is scored at its output stride.

    Attributes:
      backbone: a module that returns features with `"fc7"` or else `"c5"`.
      context: `"none"`, `"basic"` or `"large"` (table 1 of the paper). Basic is the default: all
        released nets except the one for VOC have it, and it adds almost nothing to the cost of the
        front end.
      rates: dilation of the context module's convolutions, in cells of the output stride.
      pad_first: see `ContextModule`.
      upsampling: of the scores to the image: `"bilinear"`, or `"deconv"` for the fixed bilinear
        deconvolution of Dilation10, which fades at the border. The release's other nets upsample
        probabilities.
      auxiliary: whether training also returns the scores at the output stride, as `"scores"`. The
        release trains on these: give `"logits"` the weight 0 and resize the labels.
    """

    context: str = "basic"
    rates: Sequence[int] = CONTEXT_RATES
    pad_first: bool = False
    upsampling: str = "bilinear"
    auxiliary: bool = True
    normalization: ImageNormalization = CAFFE

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Raises:
          ValueError: an attribute has none of the values listed above, or the padded form is asked
            for at another output stride than 8.
        """
        for name, value, known in (
            ("context", self.context, CONTEXTS),
            ("upsampling", self.upsampling, ("bilinear", "deconv")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}.")
        size = image.shape[1:3]
        stride = getattr(self.backbone, "output_stride", 8)
        mirrored = getattr(self.backbone, "conv_padding", None) == "valid"
        if mirrored:
            if stride != 8:
                raise ValueError(f"output_stride is {stride}; the front end's margin is for 8.")
            ends = [MARGIN + -n % stride for n in size]
            image = mirror_pad(image, (MARGIN, ends[0]), (MARGIN, ends[1]))
        features = self.backbone(image, train=train)
        scores = classifier(self.num_classes, kernel_init=nn.initializers.normal(0.001))(
            features["fc7" if "fc7" in features else "c5"]
        )
        if self.context != "none":
            scores = ContextModule(
                self.rates,
                large=self.context == "large",
                pad_first=self.pad_first,
                dtype=self.dtype,
                name="context_module",
            )(scores)
        return Prediction(
            self._upsample(scores, size, stride, mirrored),
            {"scores": scores} if train and self.auxiliary else {},
        )

    def _upsample(
        self, scores: jax.Array, size: tuple[int, int], stride: int, mirrored: bool
    ) -> jax.Array:
        """Returns scores at the size of the image.

        Without padding, a cell is over the middle of its `stride` x `stride` pixels; backbones that
        pad have it over the first of them.
        """
        if self.upsampling == "deconv":
            return bilinear_deconv(scores, 2 * stride, stride, offset=stride // 2, size=size)
        if not mirrored:
            return resize(scores, size, align_corners="cells")
        grid = tuple(n * stride for n in scores.shape[1:3])
        return resize(scores, grid, align_corners=False)[:, : size[0], : size[1]]
