"""Global convolutional network.

Peng, Zhang, Yu, Luo and Sun, "Large Kernel Matters - Improve Semantic Segmentation by Global
Convolutional Network", CVPR 2017.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxseg.layers import (
    BilinearDeconv,
    BoundaryRefinement,
    GlobalConvolution,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel

UPSAMPLINGS = ("dense", "depthwise", "fixed", "resize")


class GCN(SegmentationModel):
    """Scores four levels by large kernels, and refines, upsamples and adds the scores from coarse
    to fine.

    Every level is scored by a `GlobalConvolution` and refined (figure 2 of the paper). From the
    coarsest on, scores are upsampled to the grid of the next level, added to its scores and
    refined; below the finest level they are upsampled by two and refined until they have the size
    of the image. The last refinement returns the logits: no classifier follows. Scores are float32.

    Levels on the same grid, as on a backbone with an output stride below 32, are added without
    upsampling; the network then has fewer deconvolutions.

    Attributes:
      num_classes: channels of the logits and of everything behind the backbone.
      backbone: a module that returns features of the `levels`. `"c5"` has stride 32 or the
        backbone's `output_stride`, `"c4"` 16, and so on.
      kernel_size: of the global convolutions, odd, the same for all levels. The paper has 15 for
        crops of 512 pixels and 25 for 800, as many as there are cells of the coarsest level.
      levels: features from coarse to fine.
      kind: `"global"`, or the paper's comparisons `"baseline"`, `"trivial"` and `"stack"`; see
        `GlobalConvolution`.
      stack_features: channels between the convolutions of a stack; those of the level by default.
      boundary_refinement: whether scores are refined; without, as in table 1, the refinements are
        left out.
      upsampling: `"dense"`, a learned deconvolution over all classes, or `"depthwise"`, one for
        each class, both of twice their factor a side and bilinear at first; `"fixed"`, bilinear for
        good; or `"resize"`, interpolation with corners aligned, as ports have it. The paper says
        only "deconvolution".
    """

    kernel_size: int = 15
    levels: Sequence[str] = ("c5", "c4", "c3", "c2")
    kind: str = "global"
    stack_features: int | None = None
    boundary_refinement: bool = True
    upsampling: str = "dense"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Raises:
          ValueError: `levels` are not from coarse to fine, or `kernel_size`, `kind` or `upsampling`
            has none of the values above.
        """
        strides = self._strides()
        features = self.backbone(image, train=train)
        scores, stride = None, None
        for level, level_stride in zip(self.levels, strides, strict=True):
            here = self._scores(features[level], level)
            if scores is None:
                scores, stride = here, level_stride
                continue
            if level_stride < stride:
                scores = self._upsample(scores, stride // level_stride, here.shape[1:3], level)
            scores, stride = self._refine(scores + here, f"refine_{level}"), level_stride
        while stride > 1:
            stride //= 2
            height, width = (-(-n // stride) for n in image.shape[1:3])
            scores = self._upsample(scores, 2, (height, width), f"s{stride}")
            scores = self._refine(scores, f"refine_s{stride}")
        return Prediction(scores, {})

    def _strides(self) -> list[int]:
        """Returns the stride of each level."""
        if self.upsampling not in UPSAMPLINGS:
            raise ValueError(
                f"upsampling is {self.upsampling!r}; it must be one of {', '.join(UPSAMPLINGS)}."
            )
        numbers = [int(level[1:]) if level[1:].isdigit() else 0 for level in self.levels]
        if not numbers or min(numbers) < 1 or numbers != sorted(set(numbers), reverse=True):
            raise ValueError(
                f"levels is {tuple(self.levels)}; it must go from coarse to fine, such as "
                '("c5", "c4", "c3", "c2").'
            )
        output_stride = getattr(self.backbone, "output_stride", 32)
        return [min(2**number, output_stride) for number in numbers]

    def _scores(self, features: jax.Array, level: str) -> jax.Array:
        layer = GlobalConvolution(
            self.num_classes,
            self.kernel_size,
            self.kind,
            self.stack_features,
            dtype=self.dtype,
            name=f"gcn_{level}",
        )
        return self._refine(layer(features).astype(jnp.float32), f"br_{level}")

    def _refine(self, scores: jax.Array, name: str) -> jax.Array:
        return BoundaryRefinement(name=name)(scores) if self.boundary_refinement else scores

    def _upsample(
        self, scores: jax.Array, factor: int, size: tuple[int, int], to: str
    ) -> jax.Array:
        """Returns scores at the size of the next grid. For an odd image that grid has a row or
        column less than `factor` times theirs."""
        if self.upsampling == "resize":
            return resize(scores, size, align_corners=True)
        learned = "none" if self.upsampling == "fixed" else self.upsampling
        layer = BilinearDeconv(2 * factor, factor, learned, name=f"up_{to}")
        return layer(scores, offset=factor // 2, size=size)
