"""DeepLab, version 1.

Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs",
2015.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from flaxseg.layers import (
    CAFFE,
    AtrousConv,
    ImageNormalization,
    classifier,
    fully_connected,
    pad_to_grid,
    resize,
)
from flaxseg.models.prediction import Prediction

# The nets of the paper's table 2 as attributes of `DeepLabV1`: kernel and rate of fc6, and so its
# field of view. Parameters with VGG16 and 21 classes: 134,346,581; 65,140,565 twice; 20,505,429.
FIELDS_OF_VIEW: Mapping[str, Mapping[str, Any]] = {
    "7x7": {"kernel_size": 7, "rate": 4, "features": 4096, "average_pool": False},
    "4x4": {"kernel_size": 4, "rate": 4, "features": 4096, "average_pool": False},
    "4x4_large": {"kernel_size": 4, "rate": 8, "features": 4096, "average_pool": False},
    "large": {"kernel_size": 3, "rate": 12, "features": 1024, "average_pool": True},
}
# DeepLab's own form of VGG16: 3x3 pools, whose windows are not dilated.
VGG_OPTIONS = {"pool_window": 3, "dilated_pools": False}


class DeepLabV1(nn.Module):
    """VGG16 at output stride 8, its fully connected layers as atrous convolutions, bilinear
    upsampling.

    The default is DeepLab-LargeFOV; `FIELDS_OF_VIEW` has the other nets:

        create_model("deeplabv1", 21, **FIELDS_OF_VIEW["7x7"])

    The first of them ("4x4") was released on 2x2 pools, which is `backbone_options={"pool_window":
    2}`; the others have 3x3. They have the same parameters.

    Attributes:
      num_classes: channels of the logits.
      backbone: a module with an `output_stride` that returns features with `"c5"`, and `"c1"` to
        `"c4"` for `multi_scale`.
      kernel_size: of fc6.
      rate: dilation of fc6; the field of view is `rate * (kernel_size - 1) + 1` cells.
      features: channels of fc6 and fc7.
      average_pool: whether a 3x3 average pool of stride 1 stands before fc6, as in the releases of
        LargeFOV. The paper does not mention it, and no other net has it.
      multi_scale: whether the classifier also sees the picture and the first four stages, each
        through a 3x3 and a 1x1 convolution to 128 channels (section 4.1, "MSc").
      dropout: rate of dropout after fc6, fc7 and the branches of `multi_scale`.
      auxiliary: whether training also gives the scores at their own stride, as `"scale100"`. The
        release's loss is on them: the weight of `"logits"` is then 0, and labels are resized.
      normalization: what the backbone expects of its input.
      dtype: dtype of the head's computation; the logits are float32.
    """

    num_classes: int
    backbone: nn.Module
    kernel_size: int = 3
    rate: int = 12
    features: int = 1024
    average_pool: bool = True
    multi_scale: bool = False
    dropout: float = 0.5
    auxiliary: bool = True
    normalization: ImageNormalization = CAFFE
    dtype: Dtype | None = None

    default_backbone: ClassVar[str] = "vgg16"
    default_output_stride: ClassVar[int] = 8
    default_backbone_options: ClassVar[Mapping[str, Mapping[str, Any]]] = {"vgg16": VGG_OPTIONS}

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments pictures.

        Args:
          image: `[N, H, W, 3]`, any H and W from 1, normalised by `normalization`. They are padded
            by zeros to the grid of the output stride, see `pad_to_grid`; crops of 8k + 1 pixels
            need none.
          train: whether dropout is in use; needs the rng `"dropout"`.

        Returns:
          A `Prediction`; in training with `auxiliary`, `auxiliary["scale100"]` are the scores at
          the output stride.
        """
        height, width = image.shape[1:3]
        image = pad_to_grid(image, self.backbone.output_stride)
        features = self.backbone(image, train=train)
        x = features["c5"]
        if self.average_pool:
            x = nn.avg_pool(x, (3, 3), padding="SAME")
        x = fully_connected(
            x,
            (self.features, self.features),
            kernel_size=self.kernel_size,
            rate=self.rate,
            dropout=self.dropout,
            dtype=self.dtype,
            train=train,
        )
        if self.multi_scale:
            branches = {"image": image} | {key: features[key] for key in ("c1", "c2", "c3", "c4")}
            size = x.shape[1:3]
            outputs = [
                IntermediateBranch(size, dropout=self.dropout, dtype=self.dtype, name=f"{key}_mlp")(
                    value, train=train
                )
                for key, value in branches.items()
            ]
            x = jnp.concatenate([x, *outputs], -1)
        scores = classifier(self.num_classes)(x)
        logits = resize(scores, image.shape[1:3], align_corners=True)[:, :height, :width]
        return Prediction(logits, {"scale100": scores} if train and self.auxiliary else {})


class IntermediateBranch(nn.Module):
    """A 3x3 and a 1x1 convolution that bring the picture or an early feature to the classifier.

    (Section 4.1.) The 3x3 convolution has the stride that leads to the classifier's grid. On
    pictures of 8k + 1 pixels this equals a convolution without stride and Caffe's Interp after it,
    which then takes every n-th cell as it is.

    Attributes:
      size: `(height, width)` of the classifier's input.
      features: channels of both convolutions.
      dropout: rate of dropout after the second.
      dtype: dtype of the computation; that of the input by default.
    """

    size: tuple[int, int]
    features: int = 128
    dropout: float = 0.5
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        strides = tuple(
            max(1, (n - 1) // max(1, m - 1)) for n, m in zip(x.shape[1:3], self.size, strict=True)
        )
        for kernel_size, step, name in ((3, strides, "conv1"), (1, 1, "conv2")):
            conv = AtrousConv(
                self.features, kernel_size, step, use_bias=True, dtype=self.dtype, name=name
            )
            x = nn.relu(conv(x))
        return nn.Dropout(self.dropout)(x, deterministic=not train)
