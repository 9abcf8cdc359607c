"""SegNet and SegNet-Basic.

Badrinarayanan, Kendall and Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for
Image Segmentation", 2017 (PAMI). Layers are those of the authors' tutorial.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax

from flaxseg.layers import (
    CAFFE,
    BatchNorm,
    ImageNormalization,
    UnpoolingDecoder,
    classifier,
    mirrored_features,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel


class SegNet(SegmentationModel):
    """Mirrors VGG16's convolutions in a decoder: each stage unpools its values to where the
    encoder's pool of that size found its maxima, and convolves them (figure 2 of the paper).

    Parameters of the decoder's stages are `decoder/conv5_1` to `decoder/conv1_1` in the order of
    computation; the release counts a stage backwards (`conv5_3_D` is the first).

    On backbones without pools, the positions are those of the maxima in 2x2 windows of features
    `"c4"` to `"c1"`, and the logits are at stride 2 and resized.

    Attributes:
      backbone: a module that returns what its pools read (`VGG`), or features `"c1"` to `"c5"`.
      convs: convolutions of each stage of the decoder before the classifier, from coarse to fine;
        with fewer stages, the last ones.
      kernel_size: of the decoder's convolutions.
      relu: whether a ReLU follows each BatchNorm of the decoder.
      classifier_kernel_size: of the classifier.
      norm: makes every normalisation of the decoder; called as `norm(name=...)`.
    """

    convs: Sequence[int] = (3, 3, 3, 2, 1)
    kernel_size: int = 3
    relu: bool = True
    classifier_kernel_size: int = 3
    normalization: ImageNormalization = CAFFE
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Raises:
          ValueError: the backbone lacks the features.
        """
        features = self.backbone(image, train=train)
        x, levels, convs = mirrored_features(features, self.convs)
        decoder = UnpoolingDecoder(
            convs,
            self.kernel_size,
            relu=self.relu,
            norm=self.norm,
            dtype=self.dtype,
            name="decoder",
        )
        x = decoder(x, levels, train=train)
        logits = classifier(
            self.num_classes,
            kernel_size=self.classifier_kernel_size,
            kernel_init=nn.initializers.he_normal(),
        )(x)
        return Prediction(resize(logits, image.shape[1:3], align_corners="cells"), {})


class SegNetBasic(SegNet):
    """Has four 7x7 convolutions of 64 channels down and four up, without ReLU on the way up. It
    reads pixels from 0 to 255 and normalises them by their local response."""

    convs: Sequence[int] = (1, 1, 1, 1)
    kernel_size: int = 7
    relu: bool = False
    classifier_kernel_size: int = 1
