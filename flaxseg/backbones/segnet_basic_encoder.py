"""The encoder of SegNet-Basic (Badrinarayanan et al., "SegNet: A Deep Convolutional Encoder-Decoder
Architecture for Image Segmentation", 2017, section 3)."""

from typing import ClassVar

import flax.linen as nn
import jax

from flaxseg.backbones.backbone import BatchNormBackbone
from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.image_normalization import ImageNormalization
from flaxseg.layers.local_response_norm import local_response_norm
from flaxseg.layers.pooling import max_pool

# Raw pixels: the encoder normalises its own input.
_RAW = ImageNormalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class SegNetBasicEncoder(BatchNormBackbone):
    """Normalises the image by its local response, then has four 7x7 convolutions with BatchNorm,
    ReLU and a 2x2 max pool.

    Trained from random weights. Its last feature is `"c4"`, at stride 16: it serves SegNet-Basic
    alone.

    Attributes:
      features: channels of all convolutions.

    Raises:
      ValueError: another output stride.
    """

    features: int = 64

    normalization: ClassVar[ImageNormalization] = _RAW

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns features by name.

        Returns:
          `"conv1"` to `"conv4"`, what goes into the pools, with stride 1, 2, 4, 8, and `"c1"` to
          `"c4"`, what comes out, `[N, ceil(H / s), ceil(W / s), features]` for stride s.
        """
        self._check_not_dilated()
        x = self._cast(local_response_norm(image, 5, alpha=1e-4, beta=0.75))
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
            x = self._norm()(name=f"bn{stage}")(x, train=train)
            x = features[f"conv{stage}"] = nn.relu(x)
            x = features[f"c{stage}"] = max_pool(x, 2, strides=2, ceil_mode=True)
        return features
