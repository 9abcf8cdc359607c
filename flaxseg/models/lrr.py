"""LRR.

Ghiasi and Fowlkes, "Laplacian Pyramid Reconstruction and Refinement for Semantic Segmentation",
2016 (ECCV). The geometry is that of the released MatConvNet network.
"""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from flaxseg.layers import (
    CAFFE,
    AtrousConv,
    ImageNormalization,
    LearnedBasisDeconv,
    bilinear_deconv,
    masked_residual,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel

# Where the levels look: VGG's features before the pool of their stage, or the last ones of their
# stride. The paper does not say which it takes of ResNet-101.
_TAPS = {32: ("fc7", "c5"), 16: ("conv5", "c4"), 8: ("conv4", "c3"), 4: ("conv3", "c2")}

_UPSAMPLING = 4

# fc6 and fc7, whose features the coarsest level reads.
VGG_OPTIONS = {"fc_features": (4096, 4096)}


class LRR(SegmentationModel):
    """Reconstructs scores from coarse features and refines them at boundaries by those of finer
    features.

    Each level computes coefficients by a 5x5 convolution that begins at zero, `num_bases` per
    class, and paints them with the bases of the class four times as large (`LearnedBasisDeconv`):
    from features at stride 32, 16, 8 and 4 to scores at 8, 4, 2 and 1. The coarse scores, twice as
    large by a fixed bilinear deconvolution, get what the finer level adds multiplied by their
    `boundary_mask`.

    On VGG16 with fc6 and fc7 this is the released network, whose images have sides of multiples of
    32; for others, cells beyond the border are cut off at the right and bottom. On another backbone
    the coarsest level looks at its last features; there is neither fc6 nor fc7. A backbone with a
    finer output stride computes the coarse levels on that finer grid, where their bases, which
    count cells, cover less of the image: train and evaluate at the same output stride.

    The bases are parameters, `reconstruction_*/kernel`. Load bases that were learned from labels
    with `flaxseg.weights.load_bases` or `--config.init.bases`; without, they start as
    `cosine_bases`. The release does not train them; name them in `--config.optimizer.frozen` to do
    the same.

    Attributes:
      backbone: a module that returns features with `"fc7"` or `"c5"`, `"conv5"` or `"c4"`,
        `"conv4"` or `"c3"`, `"conv3"` or `"c2"`, as far as the levels read them.
      num_bases: per class, at every level.
      finest: stride of the features of the finest level: 32, 16, 8 or 4, the paper's LRR-32x to
        LRR-4x. The parameters of the coarser net are part of the finer one's.
      mask_window: side of the boundary mask's window at its own resolution, odd; one for all finer
        levels or one for each. 9 is that of the released training code; the released network for
        Cityscapes has 17. 0 adds a level unmasked, the paper's ablation.
      auxiliary: whether the levels whose scores are coarser than the image are outputs in
        training: each has a loss of its own, on labels of its size, with weight 1 in the paper.
      dilation_erosion: whether the coarsest features have two more such heads in training, which
        learn the dilated and the eroded masks of the classes and serve nothing else (the paper's
        DB). See the loss kinds `dilated_masks` and `eroded_masks`.
      background_class: the class whose bias in these heads starts at 1, because it is nearly
        everywhere; that of all others starts at -1. None where there is no background.
    """

    num_bases: int = 10
    finest: int = 4
    mask_window: int | Sequence[int] = 9
    auxiliary: bool = False
    dilation_erosion: bool = False
    background_class: int | None = 0
    normalization: ImageNormalization = CAFFE

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Returns:
          In training with `auxiliary`, `auxiliary["32x"]`, `["16x"]` and `["8x"]`
          are the scores of these levels at stride 8, 4 and 2; those of 4x are the logits. With
          `dilation_erosion`, `auxiliary["dilation"]` and `["erosion"]` are logits of "this class is
          near" and "it is all around", at stride 8.

        Raises:
          ValueError: `finest` or `mask_window` has none of the values above, or the backbone lacks
            a feature.
        """
        windows = self._windows()
        features = self.backbone(image, train=train)
        grid = getattr(self.backbone, "output_stride", 32)
        size, auxiliary = image.shape[1:3], {}
        scores, stride = None, 0
        for level, window in windows.items():
            residual = self._reconstruct(self._tap(features, level), f"{level}x")
            before, stride = stride, min(level, grid) // _UPSAMPLING
            if scores is None:
                scores = residual
            else:
                if before > stride:
                    doubled = tuple(2 * n for n in scores.shape[1:3])
                    scores = bilinear_deconv(scores, 4, 2, offset=1, size=doubled)
                coarse = _fit(scores, residual.shape[1:3])
                scores, _ = masked_residual(coarse, residual, window)
            if stride > 1:
                auxiliary[f"{level}x"] = _over(scores, size, stride)
        if stride > 1:
            scores = resize(
                scores, tuple(stride * n for n in scores.shape[1:3]), align_corners=False
            )
        logits = _fit(scores, size)
        if not self.auxiliary:
            auxiliary = {}
        if self.dilation_erosion and (train or self.is_initializing()):
            stride = min(32, grid) // _UPSAMPLING
            for name in ("dilation", "erosion"):
                masks = self._reconstruct(self._tap(features, 32), name, biased=True)
                auxiliary[name] = _over(masks, size, stride)
        return Prediction(logits, auxiliary if train else {})

    def _windows(self) -> dict[int, int]:
        """Returns the levels from coarse to fine, each with the window of its mask."""
        levels = [level for level in _TAPS if level >= self.finest]
        if self.finest not in _TAPS:
            raise ValueError(f"finest is {self.finest}; it must be one of 32, 16, 8, 4.")
        windows = self.mask_window
        if isinstance(windows, int):
            windows = (windows,) * (len(levels) - 1)
        if len(windows) != len(levels) - 1:
            raise ValueError(
                f"mask_window is {tuple(windows)}; with finest={self.finest} there are "
                f"{len(levels) - 1} levels with a mask: give one window for each, or a single one."
            )
        return dict(zip(levels, (0, *windows), strict=True))

    def _tap(self, features: Mapping[str, jax.Array], level: int) -> jax.Array:
        for name in _TAPS[level]:
            if name in features:
                return features[name]
        raise ValueError(
            f"the backbone returns {', '.join(features)}; level {level}x needs "
            f"{' or '.join(_TAPS[level])}. Use another backbone, or a coarser `finest`."
        )

    def _reconstruct(self, x: jax.Array, name: str, *, biased: bool = False) -> jax.Array:
        """Returns float32 scores four times as large as the features."""
        coefficients = AtrousConv(
            self.num_classes * self.num_bases,
            5,
            use_bias=True,
            kernel_init=nn.initializers.zeros,
            dtype=self.dtype,
            name=f"coefficients_{name}",
        )(x)
        return LearnedBasisDeconv(
            self.num_classes,
            2 * _UPSAMPLING,
            _UPSAMPLING,
            use_bias=biased,
            bias_init=self._mask_bias,
            dtype=jnp.float32,
            name=f"reconstruction_{name}",
        )(coefficients)

    def _mask_bias(self, key: jax.Array, shape: tuple[int, ...], dtype: Dtype) -> jax.Array:
        del key
        bias = jnp.full(shape, -1.0, dtype)
        return bias if self.background_class is None else bias.at[self.background_class].set(1.0)


def _over(scores: jax.Array, size: tuple[int, int], stride: int) -> jax.Array:
    """Returns the cells that lie over the image."""
    return _fit(scores, tuple(-(-n // stride) for n in size))


def _fit(scores: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns the first rows and columns, repeating the last ones where a backbone rounded sizes
    down."""
    scores = scores[:, : size[0], : size[1]]
    short = [(0, m - n) for n, m in zip(scores.shape[1:3], size, strict=True)]
    return jnp.pad(scores, ((0, 0), *short, (0, 0)), mode="edge")
