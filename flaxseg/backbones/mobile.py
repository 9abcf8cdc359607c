"""Mobile networks of inverted residuals: MobileNetV2 and EfficientNet-Lite.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 2; Tan and
Le, "EfficientNet", 2019, table 1, in the Lite form of the TensorFlow TPU repository: no
squeeze-and-excitation, ReLU6, stem and head not scaled.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax

from flaxseg.backbones.backbone import BatchNormBackbone
from flaxseg.backbones.inverted_residual import InvertedResidual
from flaxseg.backbones.stages import StrideBudget, block_runner
from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.image_normalization import (
    EFFICIENTNET_LITE,
    SYMMETRIC,
    ImageNormalization,
)
from flaxseg.layers.padding import Padding
from flaxseg.layers.pooling import global_average_pool
from flaxseg.layers.resize import shrink


class Stage(NamedTuple):
    """Describes a run of blocks: the first has the stride, all share the rest."""

    expansion: int
    features: int
    blocks: int
    strides: int
    kernel_size: int = 3


MOBILENET_V2_STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
EFFICIENTNET_LITE0_STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 40, 2, 2, 5),
    Stage(6, 80, 3, 2),
    Stage(6, 112, 3, 1, 5),
    Stage(6, 192, 4, 2, 5),
    Stage(6, 320, 1, 1),
)


class _MobileNet(BatchNormBackbone):
    """Runs a stem, stages of inverted residuals and an optional classifier, and returns named
    features.

    Attributes:
      stages: what follows the stem's 3x3 convolution of stride 2 to 32 channels.
      num_classes: with a number, `"logits"` of an ImageNet-style classifier are among the features.
      padding: of the stem and the depthwise convolutions. `"tf"`, as the published weights were
        trained; `"torch"` for weights trained in torchvision's layout.
      expand_first: whether the first block, whose expansion is 1, has an expanding convolution too,
        as in Light-Weight RefineNet's release. The paper and the public ImageNet weights have none.
      remat: whether blocks are recomputed in the backward pass to save memory.
    """

    stages: Sequence[Stage] = MOBILENET_V2_STAGES
    num_classes: int | None = None
    padding: Padding = "tf"
    expand_first: bool = False
    remat: bool = False

    call_options: ClassVar[tuple[str, ...]] = ("halve_c3", "stage_features")

    @nn.compact
    def __call__(
        self,
        image: jax.Array,
        *,
        train: bool = False,
        halve_c3: bool = False,
        stage_features: bool = False,
    ) -> dict[str, jax.Array]:
        """Returns features by name.

        Args:
          image: see `Backbone`.
          train: see `Backbone`.
          halve_c3: whether the output of the first block at stride 8 is returned as `"c3_1"` and
            then shrunk by two for the blocks after it, so that later features have twice their
            stride (ICNet).
          stage_features: whether the outputs of all stages are returned too, as `"stage1"`,
            `"stage2"`, ... (Light-Weight RefineNet).

        Returns:
          `"c1"` to `"c5"`, each the output of the last block before a subsampling.
        """
        norm = self._norm()
        apply = block_runner(train, self.remat)
        x = self._cast(image)
        x = AtrousConv(32, 3, 2, padding=self.padding, dtype=self.dtype, name="stem_conv")(x)
        x = nn.relu6(norm(name="stem_bn")(x, train=train))
        budget = StrideBudget(self.output_stride, 2)
        features: dict[str, jax.Array] = {}
        level, count = 1, 0
        for number, stage in enumerate(self.stages, 1):
            if stage.strides == 2:
                features[f"c{level}"] = x
                level += 1
            for index in range(stage.blocks):
                own_strides = stage.strides if index == 0 else 1
                strides, rate = budget.take(own_strides)
                count += 1
                block = InvertedResidual(
                    features=stage.features,
                    expansion=stage.expansion,
                    kernel_size=stage.kernel_size,
                    strides=strides,
                    rate=rate,
                    shortcut=own_strides == 1,
                    padding=self.padding,
                    norm=norm,
                    dtype=self.dtype,
                    always_expand=self.expand_first,
                    name=f"block{count}",
                )
                x = apply(block, x)
                if halve_c3 and level == 3 and stage.strides == 2 and index == 0:
                    features["c3_1"] = x
                    x = shrink(x, 2)
            if stage_features:
                features[f"stage{number}"] = x
        features[f"c{level}"] = x
        if self.num_classes is not None:
            x = AtrousConv(1280, 1, dtype=self.dtype, name="head_conv")(x)
            x = nn.relu6(norm(name="head_bn")(x, train=train))
            pooled = global_average_pool(x)[:, 0, 0]
            features["logits"] = nn.Dense(self.num_classes, name="classifier")(pooled)
        return features


class MobileNetV2(_MobileNet):
    """Builds MobileNetV2 at width 1.0, 3,504,872 parameters with its 1000-class classifier."""

    normalization: ClassVar[ImageNormalization] = SYMMETRIC


class EfficientNetLite0(_MobileNet):
    """Builds EfficientNet-Lite0, 4,652,008 parameters with its 1000-class classifier."""

    stages: Sequence[Stage] = EFFICIENTNET_LITE0_STAGES
    batch_norm_epsilon: float = 1e-3

    normalization: ClassVar[ImageNormalization] = EFFICIENTNET_LITE
