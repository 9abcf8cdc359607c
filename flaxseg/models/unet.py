"""U-Net.

Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015.
"""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxseg.backbones.unet_encoder import ConvPair, UNetEncoder, he_normal_fan_in
from flaxseg.layers import (
    SYMMETRIC,
    BatchNorm,
    ConvBlock,
    ImageNormalization,
    TransposedConv,
    classifier,
    mirror_pad,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel

MARGIN = 92
"""Pixels a side that the paper's convolutions without padding take off an image."""

# A tile has `_UNIT` * k + `_REST` pixels a side, for all its pools to see even sizes.
_UNIT, _REST, _SMALLEST = 16, 12, 188


class UNet(SegmentationModel):
    """Contracts an image, and expands it again with the features of the contracting path at every
    size.

    On its own encoder (`"unet_encoder"`, the default) it is the paper's network (figure 1), with
    one of two paddings, `backbone_options={"padding": ...}`:

    * "valid", the paper's and the default: convolutions pad nothing. The image is continued by
      its reflection so that the logits cover it, the paper's overlap-tile strategy (figure 2) with
      one tile; with `mirror=False` the image is a tile itself, such as 572 x 572 to 388 x 388.
    * "torch", as most later versions: convolutions keep the size, the image ends at its border.

    The paper has no BatchNorm, later versions do: `backbone_options={"batch_norm": True}` adds it
    to both paths.

    Any other backbone gets the decoder of segmentation_models.pytorch: features of strides 32, 16,
    8, 4, 2 are upsampled by repetition, concatenated with the next finer one and put through two
    3x3 convolutions with BatchNorm, up to the image's size; a 3x3 convolution classifies. The
    checkpoints of that library fit.

    Attributes:
      backbone: a `UNetEncoder`, or a module that returns features `"c1"` to `"c5"`.
      features: channels of the five stages of the decoder on other backbones; on its own encoder
        they are those of the encoder.
      mirror: whether the image is continued, see above; else logits are `2 * MARGIN` pixels
        smaller than the image, and its sides must be `16 k + 12`.
      dropout: rate of dropout at the end of the contracting path.
      norm: makes every normalisation of the head; called as `norm(name=...)`.
    """

    features: Sequence[int] = (256, 128, 64, 32, 16)
    mirror: bool = True
    dropout: float = 0.5
    normalization: ImageNormalization = SYMMETRIC
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images, on its own encoder with any number of channels; see
        `SegmentationModel`.

        Raises:
          ValueError: a tile's size is none, or the backbone lacks the features.
        """
        size = image.shape[1:3]
        own = isinstance(self.backbone, UNetEncoder)
        if own and self.backbone.padding == "valid":
            if self.mirror:
                ends = [MARGIN + (_REST - 2 * MARGIN - n) % _UNIT for n in size]
                image = mirror_pad(image, (MARGIN, ends[0]), (MARGIN, ends[1]))
            else:
                check_tile(size)
                size = tuple(n - 2 * MARGIN for n in size)
        features = dict(self.backbone(image, train=train))
        deepest = "conv5" if own else "c5"
        levels = [f"{deepest[:-1]}{level}" for level in (4, 3, 2, 1)]
        if any(name not in features for name in (deepest, *levels)):
            raise ValueError(
                f"the backbone has the features {', '.join(features)}; U-Net needs c1 to c5."
            )
        features[deepest] = nn.Dropout(self.dropout)(features[deepest], deterministic=not train)
        if own:
            x = self._expand(features, train)
            logits = classifier(self.num_classes, kernel_init=he_normal_fan_in)(x)
        else:
            x = self._upsample(features, image.shape[1:3], train)
            logits = classifier(self.num_classes, kernel_size=3)(x)
        return Prediction(logits[:, : size[0], : size[1]], {})

    def _expand(self, features: Mapping[str, jax.Array], train: bool) -> jax.Array:
        """Runs the paper's expansive path."""
        padding = self.backbone.padding
        norm = self.norm if self.backbone.batch_norm else None
        x = features["conv5"]
        for stage in (4, 3, 2, 1):
            skip = features[f"conv{stage}"]
            channels = skip.shape[-1]
            x = TransposedConv(
                channels, 2, 2, he_normal_fan_in, dtype=self.dtype, name=f"up{stage}"
            )(x)
            if padding == "valid":
                skip = _centre(skip, x.shape[1:3])
            else:  # the pool had rounded up
                x = x[:, : skip.shape[1], : skip.shape[2]]
            x = jnp.concatenate([skip, x], -1)
            x = ConvPair(channels, padding, norm, self.dtype, name=f"pair{stage}")(x, train=train)
        return x

    def _upsample(
        self, features: Mapping[str, jax.Array], size: tuple[int, int], train: bool
    ) -> jax.Array:
        """Runs the decoder of segmentation_models.pytorch."""
        x = features["c5"]
        levels = ("c4", "c3", "c2", "c1", None)
        for stage, (level, channels) in enumerate(zip(levels, self.features, strict=True), 1):
            x = _double(x, size if level is None else features[level].shape[1:3])
            if level is not None:
                x = jnp.concatenate([x, features[level].astype(x.dtype)], -1)
            for place in (1, 2):
                name = f"stage{stage}_{place}"
                x = ConvBlock(channels, 3, norm=self.norm, dtype=self.dtype, name=name)(
                    x, train=train
                )
        return x


def check_tile(size: tuple[int, int]) -> None:
    """Raises ValueError, naming the nearest sizes that work, unless both sides are `16 k + 12` and
    at least 188: only then every pool of the network without padding sees even sizes."""
    if all(n % _UNIT == _REST and n >= _SMALLEST for n in size):
        return
    nearest = []
    for n in size:
        below = max(n - (n - _REST) % _UNIT, _SMALLEST)
        nearest.append((below,) if below >= n else (below, below + _UNIT))
    heights, widths = (" or ".join(map(str, sides)) for sides in nearest)
    raise ValueError(
        f"the tile is {size[0]} x {size[1]} (height x width), and without padding both sides must "
        f"be {_UNIT} k + {_REST} from {_SMALLEST} on; give it height {heights} and width {widths}, "
        "or set mirror=True."
    )


def _centre(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    top, left = ((n - m) // 2 for n, m in zip(x.shape[1:3], size, strict=True))
    return x[:, top : top + size[0], left : left + size[1]]


def _double(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Repeats every cell in both directions and cuts the result to `size`; cells that have that
    size already stay as they are."""
    if x.shape[1:3] == tuple(size):
        return x
    n, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, height, 2, width, 2, channels))
    return x.reshape(n, 2 * height, 2 * width, channels)[:, : size[0], : size[1]]
