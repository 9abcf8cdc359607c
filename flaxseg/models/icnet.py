"""ICNet.

Zhao et al., "ICNet for Real-Time Semantic Segmentation on High-Resolution Images", 2018.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from flaxseg.backbones import check_call_option
from flaxseg.layers import (
    BatchNorm,
    CascadeFeatureFusion,
    ConvBlock,
    PyramidPooling,
    classifier,
    resize,
    shrink,
    zoom,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel

# A side of the image must be a multiple of this and one, for all branches to meet cell by cell.
_SIZE_UNIT = 32
# The pooling windows of the released network that do not follow its rule, as ((kernel, stride) of
# the rows, of the columns), by the size of the features and the number of bins.
_RELEASED_WINDOWS = {((33, 65), 3): ((13, 10), (25, 20))}
# The released ResNet: PSPNet's with the stride of a stage on the first 1x1 convolution.
RESNET_OPTIONS = {
    "deep_stem": (64, 64, 128),
    "stride_on": "1x1",
    "dilate_first_unit": True,
}


class ICNet(SegmentationModel):
    """Runs a deep network on a small image and a shallow one on the full image, and fuses them from
    coarse to fine.

    The network sees the image at three resolutions (figure 2 of the paper). As in the released
    network, the branch of the quarter image begins where that of the half image ends: the backbone
    runs on the half image as far as `conv3_1`, the first unit at its stride 8, and goes on with the
    features shrunk by two. Channels of the head are those of the released network at `width` 0.5,
    which is the paper's after its compression by filter pruning; 1.0 is the network before it.

    Attributes:
      backbone: a module that declares `halve_c3` in `call_options`, and with `halve_c3=True`
        returns features with `"c3_1"` and, after they were shrunk by two, `"c5"`.
      width: channels of the head over those of the network before compression. `create_model` gives
        it to a ResNet too; other backbones keep their channels.
      bins: of the pyramid pooling.
      windows: of the pyramid pooling: `"released"`, see `released_windows`, or `"adaptive"`, as in
        PSPNet. At 33 x 65, the features of a 1025 x 2049 image, they differ for 3 and 6 bins.
      auxiliary: whether the two coarser branches have classifiers of their own in training (cascade
        label guidance, section 3.3). Their losses get small weights: 0.16 and 0.4 in two ports of
        the training code, which was not released, 0.4 and 0.4 in others.
      quarter_logits: whether the logits before their last upsampling are an auxiliary output too.
        The paper's loss of the finest branch is on these, at a quarter of the image; that of
        most ports is on the logits at full size, which is the default.
      strict_sizes: whether images of other sizes than `32 k + 1` a side are refused. Branches are
        resized onto each other with corners aligned. At those sizes that equals the released chain
        of zooms; the released network accepts no others.
      norm: makes every normalisation of the head; called as `norm(name=...)`.
    """

    width: float = 0.5
    bins: Sequence[int] = (1, 2, 3, 6)
    windows: str = "released"
    auxiliary: bool = True
    quarter_logits: bool = False
    strict_sizes: bool = False
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Returns:
          In training with `auxiliary`, `auxiliary["sub4"]` are the logits of the coarsest branch at
          stride 16 and `auxiliary["sub24"]` of the two coarser at stride 8, with `quarter_logits`
          `auxiliary["sub124"]` of all three at stride 4.

        Raises:
          ValueError: the size is refused, the backbone has no `halve_c3`, or an attribute has none
            of the values above.
        """
        if self.width <= 0:
            raise ValueError(f"width is {self.width}; it must be more than 0.")
        if self.strict_sizes:
            check_size(image.shape[1:3])
        check_call_option(self.backbone, "halve_c3", "ICNet, which runs two branches on it")
        common = {"norm": self.norm, "dtype": self.dtype}
        guide = self.num_classes if self.auxiliary else None

        features = self.backbone(shrink(image, 2), train=train, halve_c3=True)
        x = self._pyramid(features["c5"].shape[1:3])(features["c5"], train=train)
        x = ConvBlock(self._channels(512), 1, **common, name="conv5_4")(x, train=train)
        fusion = CascadeFeatureFusion(self._channels(256), guide, **common, name="fusion24")
        x, sub4 = fusion(x, features["c3_1"], train=train)

        fine = image
        for index, channels in enumerate((64, 64, 128), 1):
            block = ConvBlock(self._channels(channels), 3, 2, **common, name=f"conv{index}_sub1")
            fine = block(fine, train=train)
        fusion = CascadeFeatureFusion(self._channels(256), guide, **common, name="fusion12")
        x, sub24 = fusion(x, fine, train=train)

        quarter = classifier(self.num_classes)(zoom(x, 2))
        logits = resize(quarter, image.shape[1:3], align_corners=True)
        if not train:
            return Prediction(logits, {})
        auxiliary = {"sub4": sub4, "sub24": sub24} if self.auxiliary else {}
        return Prediction(logits, auxiliary | ({"sub124": quarter} if self.quarter_logits else {}))

    def _pyramid(self, size: tuple[int, int]) -> PyramidPooling:
        """Returns the layer that adds to features of that size their averages; it has no
        parameters."""
        if self.windows not in ("released", "adaptive"):
            raise ValueError(f"windows is {self.windows!r}; it must be 'released' or 'adaptive'.")
        windows = strides = None
        if self.windows == "released":
            windows, strides = released_windows(size, self.bins)
        return PyramidPooling(
            self.bins,
            reduce=False,
            fusion="sum",
            windows=windows,
            strides=strides,
            dtype=self.dtype,
            name="pyramid_pooling",
        )

    def _channels(self, full: int) -> int:
        return round(full * self.width)


def released_windows(
    size: tuple[int, int], bins: Sequence[int]
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Returns the windows and strides of the released network's pyramid pooling.

    At 33 x 65 they are the released ones. The release has no other sizes; there the rule that most
    of them follow holds, windows of `n - (bins - 1) * stride` cells at a stride of `n // bins`. An
    axis with fewer cells than bins has a bin per cell.

    >>> released_windows((33, 65), (1, 6))
    (((33, 65), (8, 15)), ((33, 65), (5, 10)))

    Args:
      size: `(height, width)` of the features.
      bins: how many windows each scale has along both axes.

    Returns:
      `(height, width)` of the windows of each scale, and the same of the steps between them.
    """
    windows, strides = [], []
    for number in bins:
        axes = _RELEASED_WINDOWS.get((tuple(size), number))
        if axes is None:
            steps = [max(n // number, 1) for n in size]
            counts = [min(number, n) for n in size]
            axes = [
                (n - (count - 1) * step, step)
                for n, step, count in zip(size, steps, counts, strict=True)
            ]
        kernel, step = zip(*axes, strict=True)
        windows.append(kernel)
        strides.append(step)
    return tuple(windows), tuple(strides)


def check_size(size: tuple[int, int]) -> None:
    """Raises ValueError, naming the nearest sizes that work, unless both sides are `32 k + 1` for
    some k from 1: only then every zoom of a coarse branch ends at the size of the finer one."""
    if all(n % _SIZE_UNIT == 1 and n > 1 for n in size):
        return
    nearest = []
    for n in size:
        below = max((n - 1) // _SIZE_UNIT, 1) * _SIZE_UNIT + 1
        nearest.append((below,) if below >= n else (below, below + _SIZE_UNIT))
    heights, widths = (" or ".join(map(str, sides)) for sides in nearest)
    raise ValueError(
        f"the image is {size[0]} x {size[1]} (height x width), and with strict_sizes both sides "
        f"must be {_SIZE_UNIT} k + 1; resize or pad it to height {heights} and width {widths}, or "
        "leave strict_sizes off."
    )
