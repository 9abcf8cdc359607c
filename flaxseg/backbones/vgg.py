"""VGG16 (Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
Recognition", 2015, table 1, column D), with its fully connected layers as convolutions.

The layers and their names are those of the released Caffe net and of the segmentation nets built on
it; torchvision's weights fit too.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax

from flaxseg.backbones.backbone import BatchNormBackbone
from flaxseg.backbones.stages import StrideBudget
from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.fully_connected import fully_connected
from flaxseg.layers.image_normalization import CAFFE, ImageNormalization
from flaxseg.layers.padding import Padding
from flaxseg.layers.pooling import max_pool


class VGG(BatchNormBackbone):
    """Has stages of 3x3 convolutions, a max pool after each, and optionally fc6 and fc7.

    Beyond `output_stride` pools do not subsample and what follows is dilated. The pools' own
    windows are dilated with the rest (`dilated_pools`), so that a finer output stride computes the
    same features on a finer grid; DeepLab's nets have 3x3 pools that are not.

    Attributes:
      stage_sizes: convolutions in each of the five stages.
      features: channels of each stage.
      first_padding: cells around the image at the first convolution: 1, or the 100 of FCN, whose
        fc6 pads nothing (`fc_padding="valid"`).
      conv_padding: of the other convolutions, see `explicit_padding`: "torch" keeps the size,
        "valid" is Dilated-Net's, whose images come with a margin (and `first_padding=0`).
      pool_window: 2, or the 3 of DeepLab, which is padded by 1.
      dilated_pools: whether the windows of pools beyond the output stride are dilated.
      late_pools: whether there are pools beyond the output stride, where they do not subsample;
        Dilated-Net removes them.
      ceil_mode: whether a last window that reaches over the border counts, as in Caffe; torchvision
        leaves it out.
      fc_features: channels of fc6 and of fc7, such as `(4096, 4096)`; () for neither.
      fc_kernel_size: of fc6, which is dilated as the output stride asks for; fc7 is 1x1.
      fc_padding: of fc6, see `explicit_padding`; "torch" keeps the size (an odd kernel size).
      dropout: rate of dropout after fc6 and after fc7, in training.
      batch_norm: whether each convolution of the stages is followed by BatchNorm, as in
        torchvision's `vgg16_bn`.
      num_classes: with a number, `"logits"` of an ImageNet-style classifier, 1x1, are among the
        features, `[N, H', W', num_classes]`. fc_features is then `(4096, 4096)` where not given.
      remat: whether stages are recomputed in the backward pass to save memory.
    """

    stage_sizes: Sequence[int] = (2, 2, 3, 3, 3)
    features: Sequence[int] = (64, 128, 256, 512, 512)
    first_padding: int = 1
    conv_padding: Padding = "torch"
    pool_window: int = 2
    dilated_pools: bool = True
    late_pools: bool = True
    ceil_mode: bool = True
    fc_features: Sequence[int] = ()
    fc_kernel_size: int = 7
    fc_padding: Padding = "torch"
    dropout: float = 0.5
    batch_norm: bool = False
    num_classes: int | None = None
    remat: bool = False

    normalization: ClassVar[ImageNormalization] = CAFFE

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns features by name.

        Images may have any number of channels.

        Returns:
          `"c1"` to `"c5"`: the outputs of the five pools; `"conv1"` to `"conv5"`: what these pools
          see, after the ReLU, with stride 1, 2, 4, 8, 16; and `"fc7"` (after ReLU and dropout) with
          `fc_features`. With one cell of `first_padding` and with `ceil_mode`, a feature of stride
          s has `ceil(H / s)` rows.
        """
        budget = StrideBudget(self.output_stride)
        x = self._cast(image)
        features = {}
        for stage, size in enumerate(self.stage_sizes, 1):
            # Closed over, because `nn.remat` would trace what is passed as an argument.
            rate = budget.rate

            def convolutions(self, x, stage=stage, size=size, rate=rate):
                for index in range(1, size + 1):
                    x = self._convolution(x, f"{stage}_{index}", rate, train)
                return x

            x = (nn.remat(convolutions) if self.remat else convolutions)(self, x)
            features[f"conv{stage}"] = x
            strides, rate = budget.take(2)
            if strides > 1 or self.late_pools:
                x = self._pool(x, strides, rate if self.dilated_pools else 1)
            features[f"c{stage}"] = x
        fc_features = self.fc_features or (() if self.num_classes is None else (4096, 4096))
        if fc_features:
            x = fully_connected(
                x,
                fc_features,
                kernel_size=self.fc_kernel_size,
                rate=budget.rate,
                padding=self.fc_padding,
                dropout=self.dropout,
                dtype=self.dtype,
                train=train,
            )
            features["fc7"] = x
        if self.num_classes is not None:
            features["logits"] = AtrousConv(self.num_classes, 1, use_bias=True, name="classifier")(
                x
            )
        return features

    def _convolution(self, x: jax.Array, place: str, rate: int, train: bool) -> jax.Array:
        """Runs `conv1_1` or one like it: 3x3, BatchNorm if there is any, ReLU."""
        stage = int(place[0])
        x = AtrousConv(
            self.features[stage - 1],
            3,
            rate=rate,
            padding=self.first_padding if place == "1_1" else self.conv_padding,
            use_bias=True,
            dtype=self.dtype,
            name=f"conv{place}",
        )(x)
        if self.batch_norm:
            x = self._norm()(name=f"bn{place}")(x, train=train)
        return nn.relu(x)

    def _pool(self, x: jax.Array, strides: int, rate: int) -> jax.Array:
        before = rate * ((self.pool_window - 1) // 2)
        # Without a stride, an even window is padded at the end to keep the size.
        after = rate * (self.pool_window - 1) - before if strides == 1 else before
        return max_pool(
            x,
            self.pool_window,
            strides=strides,
            rate=rate,
            padding=((before, after), (before, after)),
            ceil_mode=self.ceil_mode,
        )


VGG16 = VGG
VGG16BN = partial(VGG, batch_norm=True)
