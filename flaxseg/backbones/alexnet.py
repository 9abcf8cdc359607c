"""AlexNet in the form of Caffe's reference net, with its fully connected layers as convolutions.

(Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", 2012.) The
reference net normalises after pooling, where the paper does before; FCN-AlexNet is built on it.
"""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax

from flaxseg.backbones.backbone import Backbone
from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.image_normalization import CAFFE, ImageNormalization
from flaxseg.layers.local_response_norm import local_response_norm
from flaxseg.layers.pooling import max_pool


class AlexNet(Backbone):
    """Has five convolutions, three pools, local response normalisation, and optionally fc6 and fc7.

    Attributes:
      features: channels of the five convolutions; the second, fourth and fifth have two groups.
      first_padding: cells around the image at the first convolution: 0, or the 100 of FCN.
      fc_features: channels of fc6 (6x6, without padding) and of fc7; () for neither.
      dropout: rate of dropout after fc6 and after fc7, in training.
      num_classes: with a number, `"logits"` of an ImageNet-style classifier, 1x1, are among the
        features, `[N, H', W', num_classes]`. fc_features is then `(4096, 4096)` where not given.

    Raises:
      ValueError: another output stride, or an image whose padded height or width is below 39
        pixels, with fc6 199, where a kernel would not fit.
    """

    features: Sequence[int] = (96, 256, 384, 384, 256)
    first_padding: int = 0
    fc_features: Sequence[int] = ()
    dropout: float = 0.5
    num_classes: int | None = None

    normalization: ClassVar[ImageNormalization] = CAFFE

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns features by name.

        Returns:
          `"c2"` (after the first convolution, stride 4), `"c3"` (second pool's input, 8), `"c4"`
          (fifth convolution, 16), `"c5"` (last pool, 32) and, with `fc_features`, `"fc7"`. No
          convolution before the second pads, so that maps are smaller than the image over the
          stride.
        """
        self._check_not_dilated()
        fc_features = self.fc_features or (() if self.num_classes is None else (4096, 4096))
        smallest = (199 if fc_features else 39) - 2 * self.first_padding
        if min(image.shape[1:3]) < smallest:
            raise ValueError(
                f"an image of {image.shape[1:3]} is too small for AlexNet with first_padding "
                f"{self.first_padding}; height and width must be at least {smallest}."
            )
        widths = self.features
        conv = partial(AtrousConv, use_bias=True, dtype=self.dtype)
        pool = partial(max_pool, window=3, strides=2, ceil_mode=True)
        x = self._cast(image)
        x = nn.relu(conv(widths[0], 11, 4, padding=self.first_padding, name="conv1")(x))
        features = {"c2": x}
        x = local_response_norm(pool(x))
        x = nn.relu(conv(widths[1], 5, groups=2, name="conv2")(x))
        features["c3"] = x
        x = local_response_norm(pool(x))
        x = nn.relu(conv(widths[2], 3, name="conv3")(x))
        x = nn.relu(conv(widths[3], 3, groups=2, name="conv4")(x))
        x = nn.relu(conv(widths[4], 3, groups=2, name="conv5")(x))
        features["c4"] = x
        x = pool(x)
        features["c5"] = x
        if fc_features:
            dropout = partial(nn.Dropout(self.dropout), deterministic=not train)
            x = dropout(nn.relu(conv(fc_features[0], 6, padding="valid", name="fc6")(x)))
            x = dropout(nn.relu(conv(fc_features[1], 1, name="fc7")(x)))
            features["fc7"] = x
        if self.num_classes is not None:
            features["logits"] = conv(self.num_classes, 1, name="classifier")(x)
        return features
