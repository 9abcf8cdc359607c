"""Discriminative feature network.

Yu, Wang, Peng, Gao, Yu and Sang, "Learning a Discriminative Feature Network for Semantic
Segmentation", CVPR 2018. Where the paper leaves a detail open, it is that of the first author's
PyTorch code (TorchSeg).
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax

from flaxseg.backbones.stages import block_runner
from flaxseg.layers import (
    BatchNorm,
    ChannelAttention,
    ConvBlock,
    RefinementResidual,
    classifier,
    global_average_pool,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel

LEVELS = ("c2", "c3", "c4", "c5")

# The "v1c" of the author's code: three 3x3 convolutions in place of the 7x7.
RESNET_OPTIONS = {"deep_stem": (64, 64, 128)}


class DFN(SegmentationModel):
    """Segments by a smooth network, which makes regions consistent, and trains a border network
    beside it, which keeps classes apart.

    The smooth network (figure 2 of the paper) goes from the coarsest stage to the finest: each is
    refined, its channels are weighed by the coarser stage (`ChannelAttention`), and the result is
    refined again. The coarsest stage is guided by the mean over the image. Each stage has its own
    head. The border network goes the other way, on the grid of `"c2"`: each stage is brought to it,
    added to the one before and refined. The smooth network reads nothing of it: it shapes the
    backbone in training and is left out in evaluation.

    Attributes:
      backbone: a module that returns features `"c2"` to `"c5"`.
      features: channels of the smooth network.
      border_features: channels of the border network, the same for all data sets.
      head_factor: channels of the refinement before a classifier over those of its logits.
      global_context: whether the coarsest stage is guided by the mean over the image; without,
        it is refined only.
      attention: whether stages are fused by `ChannelAttention`; without, they are added.
      deep_supervision: whether the coarser stages have heads in training.
      border: whether training has the border network.
      remat_blocks: whether the refinement blocks are computed again in the backward pass: at stride
        4 their activations of 512 channels take most of the memory.
      norm: makes every normalisation of the heads; called as `norm(name=...)`. The one of the
        global context sees one cell per image, so its statistics need a large batch.
    """

    features: int = 512
    border_features: int = 21
    head_factor: int = 9
    global_context: bool = True
    attention: bool = True
    deep_supervision: bool = True
    border: bool = True
    remat_blocks: bool = False
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Features are resized onto each other with corners aligned; the author's code takes images
        with sides that are multiples of 32.

        Returns:
          In training, `auxiliary["smooth_c5"]`, `["smooth_c4"]` and `["smooth_c3"]`
          are logits of the coarser stages at their own stride, and `auxiliary["border_c2"]` to
          `["border_c5"]` `[N, H / 4, W / 4, 1]` the logits of a border at each pixel.
        """
        features = self.backbone(image, train=train)
        training = train or self.is_initializing()
        auxiliary = {}
        x = None
        for level in reversed(LEVELS):
            x = self._smooth(features[level], x, level, train)
            if level == "c2":
                logits = self._head(x, self.num_classes, f"smooth_{level}", train)
            elif training and self.deep_supervision:
                auxiliary[f"smooth_{level}"] = self._head(
                    x, self.num_classes, f"smooth_{level}", train
                )
        if training and self.border:
            auxiliary |= self._borders(features, train)
        logits = resize(logits, image.shape[1:3], align_corners=True)
        return Prediction(logits, auxiliary if train else {})

    def _smooth(
        self, x: jax.Array, coarser: jax.Array | None, level: str, train: bool
    ) -> jax.Array:
        """Returns the output of one stage of the smooth network."""
        if coarser is None and self.global_context:
            coarser = ConvBlock(
                self.features, 1, norm=self.norm, dtype=self.dtype, name="global_context"
            )(global_average_pool(x), train=train)
        elif coarser is not None:
            coarser = resize(coarser, x.shape[1:3], align_corners=True)
        x = self._refine(x, self.features, f"smooth_{level}_before", train)
        if coarser is not None and self.attention:
            x = ChannelAttention(self.dtype, name=f"smooth_{level}_attention")(x, coarser)
        elif coarser is not None:
            x += coarser
        return self._refine(x, self.features, f"smooth_{level}_after", train)

    def _borders(self, features: Mapping[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """Returns the outputs of the border network by name."""
        outputs, x = {}, None
        for level in LEVELS:
            here = self._refine(
                features[level], self.border_features, f"border_{level}_before", train
            )
            if x is None:
                # The author's code has a second block here that it never runs.
                x = here
            else:
                x += resize(here, x.shape[1:3], align_corners=True)
                x = self._refine(x, self.border_features, f"border_{level}_after", train)
            outputs[f"border_{level}"] = self._head(x, 1, f"border_{level}", train)
        return outputs

    def _head(self, x: jax.Array, channels: int, name: str, train: bool) -> jax.Array:
        x = self._refine(x, self.head_factor * channels, f"{name}_head", train, last_relu=False)
        return classifier(
            channels, kernel_init=nn.initializers.he_normal(), name=f"{name}_classifier"
        )(x)

    def _refine(
        self, x: jax.Array, features: int, name: str, train: bool, *, last_relu: bool = True
    ) -> jax.Array:
        block = RefinementResidual(features, last_relu, norm=self.norm, dtype=self.dtype, name=name)
        return block_runner(train, self.remat_blocks)(block, x)
