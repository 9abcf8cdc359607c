"""The encoder of SegNet-Basic (Badrinarayanan et al., "SegNet: A Deep Convolutional Encoder-Decoder
Architecture for Image Segmentation", 2017, section 3)."""

from typing import ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.image_normalization import ImageNormalization
from flaxseg.layers.local_response_norm import local_response_norm
from flaxseg.layers.pooling import max_pool

# Raw pixels: the encoder normalises its own input.
_RAW = ImageNormalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class SegNetBasicEncoder(nn.Module):
    """Normalises the image by its local response, then has four 7x7 convolutions with BatchNorm,
    ReLU and a 2x2 max pool.

    Trained from random weights. Its last feature is `"c4"`, at stride 16: it serves SegNet-Basic
    alone.

    Attributes:
      features: channels of all convolutions.
      output_stride: 32, as of every network without dilation; this one has no dilated form.
      batch_norm_momentum: see `BatchNorm`.
      batch_norm_axis: mapped axis name, only under `jax.pmap`.
      frozen_batch_norm: whether running statistics are used in training.
      dtype: dtype of the computation; parameters are float32.

    Raises:
      ValueError: another output stride.
    """

    features: int = 64
    output_stride: int = 32
    batch_norm_momentum: float = 0.9
    batch_norm_axis: str | None = None
    frozen_batch_norm: bool = False
    dtype: Dtype | None = None

    normalization: ClassVar[ImageNormalization] = _RAW
    call_options: ClassVar[tuple[str, ...]] = ()

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns features by name.

        Args:
          image: `[N, H, W, 3]`, pixels from 0 to 255.
          train: whether BatchNorm uses the statistics of the batch.

        Returns:
          `"conv1"` to `"conv4"`, what goes into the pools, with stride 1, 2, 4, 8, and `"c1"` to
          `"c4"`, what comes out, `[N, ceil(H / s), ceil(W / s), features]` for stride s.
        """
        if self.output_stride != 32:
            raise ValueError(
                f"output_stride is {self.output_stride}; SegNet-Basic's encoder has no dilation, "
                "which 32 stands for."
            )
        x = local_response_norm(image, 5, alpha=1e-4, beta=0.75)
        x = x if self.dtype is None else x.astype(self.dtype)
        features = {}
        for stage in range(1, 5):
            x = AtrousConv(
                self.features,
                7,
                use_bias=True,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
                name=f"conv{stage}",
            )(x)
            x = BatchNorm(
                momentum=self.batch_norm_momentum,
                axis_name=self.batch_norm_axis,
                frozen=self.frozen_batch_norm,
                name=f"bn{stage}",
            )(x, train=train)
            x = features[f"conv{stage}"] = nn.relu(x)
            x = features[f"c{stage}"] = max_pool(x, 2, strides=2, ceil_mode=True)
        return features
