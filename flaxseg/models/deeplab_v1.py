"""DeepLab, version 1.

Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs",
2015.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax.typing import Dtype
from jax import lax

from flaxseg.layers import (
    CAFFE,
    AtrousConv,
    ImageNormalization,
    classifier,
    fully_connected,
    pad_to_grid,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel

# The nets of the paper's study of the field of view as attributes of `DeepLabV1`.
# Parameters with VGG16 and 21 classes: 134,346,581; 65,140,565 twice; 20,505,429.
FIELDS_OF_VIEW: Mapping[str, Mapping[str, Any]] = {
    "7x7": {"kernel_size": 7, "rate": 4, "features": 4096, "average_pool": False},
    "4x4": {"kernel_size": 4, "rate": 4, "features": 4096, "average_pool": False},
    "4x4_large": {"kernel_size": 4, "rate": 8, "features": 4096, "average_pool": False},
    "large": {"kernel_size": 3, "rate": 12, "features": 1024, "average_pool": True},
}
# DeepLab's own form of VGG16: 3x3 pools, whose windows are not dilated.
VGG_OPTIONS = {"pool_window": 3, "dilated_pools": False}


class DeepLabV1(SegmentationModel):
    """Segments by VGG16 at output stride 8, with its fully connected layers as atrous convolutions,
    and bilinear upsampling.

    The default is DeepLab-LargeFOV; `FIELDS_OF_VIEW` has the other nets:

        create_model("deeplabv1", 21, **FIELDS_OF_VIEW["7x7"])

    All have the 3x3 pools of the released nets, except for the very first ("4x4", on 2x2 pools).

    Attributes:
      backbone: a module that returns features with `"c5"`, and `"c1"` to `"c4"` for `multi_scale`.
        Images are padded for its `output_stride`, or for 32 where it declares none.
      kernel_size: of fc6.
      rate: dilation of fc6; the field of view is `rate * (kernel_size - 1) + 1` cells.
      features: channels of fc6 and fc7.
      average_pool: whether a 3x3 average pool of stride 1 stands before fc6, as in the releases of
        LargeFOV. The paper does not mention it, and no other net has it.
      multi_scale: whether the classifier also sees the image and the first four stages, each
        through a 3x3 and a 1x1 convolution to 128 channels (section 4.3, "MSc").
      fuse_at_input: whether evaluation runs the branches of `multi_scale` at their own resolution
        and sums the scores of all at the size of the image, as the released test nets do; else at
        the output stride, as in training. The paper does not say; the default is the release's.
      dropout: rate of dropout after fc6, fc7 and the convolutions of `multi_scale`.
      auxiliary: whether training also returns the scores at the output stride, as `"scale100"`. The
        release trains on these: give `"logits"` the weight 0 and resize the labels.
    """

    kernel_size: int = 3
    rate: int = 12
    features: int = 1024
    average_pool: bool = True
    multi_scale: bool = False
    fuse_at_input: bool = True
    dropout: float = 0.5
    auxiliary: bool = True
    normalization: ImageNormalization = CAFFE

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Images are padded by zeros to the grid of the output stride, see `pad_to_grid`; those of 8k
        + 1 pixels need none.
        """
        height, width = image.shape[1:3]
        image = pad_to_grid(image, getattr(self.backbone, "output_stride", 32))
        features = self.backbone(image, train=train)
        x = features["c5"]
        if self.average_pool:
            # The sum over nine, as Linen's avg_pool; that divides by an integer array, which strict
            # promotion refuses.
            x = nn.pooling.pool(x, 0.0, lax.add, (3, 3), (1, 1), "SAME") / 9
        x = fully_connected(
            x,
            (self.features, self.features),
            kernel_size=self.kernel_size,
            rate=self.rate,
            dropout=self.dropout,
            dtype=self.dtype,
            train=train,
        )
        scores = classifier(self.num_classes)(x)
        if self.multi_scale:
            grid = scores.shape[1:3]
            if self.fuse_at_input and not train:
                grid = None
                scores = resize(scores, image.shape[1:3], align_corners=True)
            inputs = {"image": image} | {key: features[key] for key in ("c1", "c2", "c3", "c4")}
            for key, value in inputs.items():
                branch = EarlyScores(
                    self.num_classes,
                    grid,
                    dropout=self.dropout,
                    dtype=self.dtype,
                    name=f"{key}_mlp",
                )
                own = branch(value, train=train)
                scores += resize(own, scores.shape[1:3], align_corners=True)
        logits = resize(scores, image.shape[1:3], align_corners=True)[:, :height, :width]
        return Prediction(logits, {"scale100": scores} if train and self.auxiliary else {})


class EarlyScores(nn.Module):
    """Scores the image or an early feature by a 3x3 and a 1x1 convolution with ReLU and dropout,
    and its own part of the classifier.

    The classifier of the concatenated features is the sum of classifiers of each; the bias is in
    one of them. (Section 4.3. The initial values are small, as in the release, so that training
    continues from the scores of the net without these branches.)

    Attributes:
      num_classes: channels of the scores.
      grid: `(height, width)` of the scores, reached by the stride of the 3x3 convolution, as in the
        release's training; None for those of the input.
      features: channels of both convolutions.
      dropout: rate of dropout after each.
      dtype: dtype of the two; the scores are float32.
    """

    num_classes: int
    grid: tuple[int, int] | None
    features: int = 128
    dropout: float = 0.5
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        strides = (1, 1)
        if self.grid is not None:
            strides = tuple(
                max(1, (n - 1) // max(1, m - 1))
                for n, m in zip(x.shape[1:3], self.grid, strict=True)
            )
        for kernel_size, step, name in ((3, strides, "conv1"), (1, 1, "conv2")):
            x = AtrousConv(
                self.features,
                kernel_size,
                step,
                use_bias=True,
                kernel_init=nn.initializers.normal(0.001),
                dtype=self.dtype,
                name=name,
            )(x)
            x = nn.Dropout(self.dropout)(nn.relu(x), deterministic=not train)
        return classifier(self.num_classes, use_bias=False)(x)
