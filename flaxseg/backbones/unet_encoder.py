"""The contracting path of U-Net (Ronneberger et al., "U-Net: Convolutional Networks for Biomedical
Image Segmentation", 2015, figure 1)."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.backbones.backbone import BatchNormBackbone
from flaxseg.backbones.stages import block_runner
from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.image_normalization import SYMMETRIC, ImageNormalization
from flaxseg.layers.padding import Padding
from flaxseg.layers.pooling import max_pool

he_normal_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class UNetEncoder(BatchNormBackbone):
    """Has pairs of 3x3 convolutions with ReLU, and a 2x2 max pool between pairs.

    Trained from random weights, with deviation `sqrt(2 / (9 C))`; none were published for
    classification. Its last feature has stride 16 and it has no `"c5"`: it serves U-Net alone.

    Attributes:
      features: channels of the pairs; each is a stage.
      padding: of the convolutions: "valid", the paper's, takes two pixels off a side with each, or
        "torch", which keeps the size.
      batch_norm: whether each convolution is followed by BatchNorm, as in most later versions; the
        paper has none.
      remat: whether the pairs are recomputed in the backward pass to save memory.

    Raises:
      ValueError: another output stride.
    """

    features: Sequence[int] = (64, 128, 256, 512, 1024)
    padding: Padding = "valid"
    batch_norm: bool = False
    remat: bool = False

    normalization: ClassVar[ImageNormalization] = SYMMETRIC

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns features by name.

        Images may have any number of channels.

        Returns:
          `"conv1"` to `"conv5"`: the outputs of the pairs, with stride 1, 2, 4, 8, 16. A pool of an
          odd number of cells rounds up.
        """
        self._check_not_dilated()
        norm = self._norm() if self.batch_norm else None
        x = self._cast(image)
        run = block_runner(train, self.remat)
        features = {}
        for stage, channels in enumerate(self.features, 1):
            if stage > 1:
                x = max_pool(x, 2, strides=2, ceil_mode=True)
            pair = ConvPair(channels, self.padding, norm, self.dtype, name=f"pair{stage}")
            x = features[f"conv{stage}"] = run(pair, x)
        return features


class ConvPair(nn.Module):
    """Has two 3x3 convolutions, each with bias, optional BatchNorm, and ReLU.

    Parameters are `conv1`, `conv2` and, with BatchNorm, `bn1`, `bn2`.

    Attributes:
      features: channels of both.
      padding: "valid" or "torch", see `explicit_padding`.
      norm: makes a normalisation, called as `norm(name=...)`; None for none.
      dtype: dtype of the computation; that of the input by default.
    """

    features: int
    padding: Padding = "valid"
    norm: Callable[..., nn.Module] | None = None
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        for place in (1, 2):
            x = AtrousConv(
                self.features,
                3,
                padding=self.padding,
                use_bias=True,
                kernel_init=he_normal_fan_in,
                dtype=self.dtype,
                name=f"conv{place}",
            )(x)
            if self.norm is not None:
                x = self.norm(name=f"bn{place}")(x, train=train)
            x = nn.relu(x)
        return x
