"""DeconvNet.

Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015. Layers are
those of the release.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxseg.layers import (
    CAFFE,
    AtrousConv,
    BatchNorm,
    ImageNormalization,
    TransposedConv,
    UnpoolingDecoder,
    classifier,
    mirrored_features,
    resize,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel

# Of everything behind the classifier's layers; those begin as the classifier's.
_INIT = nn.initializers.normal(0.01)


class DeconvNet(SegmentationModel):
    """Encodes an image by VGG16 down to a vector, and decodes it by deconvolutions and unpooling up
    to the image's size (figure 2 of the paper).

    A transposed convolution of stride 1 is a convolution with the kernel turned round. The
    deconvolutions are therefore convolutions here, and the import turns their kernels. The paper's
    network sees a proposal of 224 x 224 pixels; fusing the scores of an image's proposals by their
    maximum (section 4.3) is left to the caller. The network is fully convolutional, so a larger
    image is one large proposal; a smaller one is padded with zeros.

    Other backbones have no pools, see `SegNet`.

    Attributes:
      backbone: a module that returns what its pools read (`VGG`), or features `"c1"` to `"c5"`.
      fc_features: channels of fc6 and of fc7.
      fc_kernel_size: of fc6, which pads nothing, and of its deconvolution.
      convs: deconvolutions of each stage, from coarse to fine; with fewer stages, the last ones.
      norm: makes every normalisation of the head; called as `norm(name=...)`.
    """

    fc_features: int = 4096
    fc_kernel_size: int = 7
    convs: Sequence[int] = (3, 3, 3, 2, 2)
    normalization: ImageNormalization = CAFFE
    norm: Callable[..., nn.Module] = BatchNorm

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        """Segments images; see `SegmentationModel`.

        Images below the window of fc6, 193 pixels on VGG16, are padded by zeros at the bottom and
        right.

        Raises:
          ValueError: the backbone lacks the features.
        """
        size = image.shape[1:3]
        window = getattr(self.backbone, "output_stride", 32) * (self.fc_kernel_size - 1) + 1
        missing = [(0, max(window - n, 0)) for n in size]
        image = jnp.pad(image, ((0, 0), *missing, (0, 0)))
        features = self.backbone(image, train=train)
        x, levels, convs = mirrored_features(features, self.convs)
        fc6, fc7 = (
            AtrousConv(
                self.fc_features,
                kernel_size,
                padding="valid",
                use_bias=True,
                dtype=self.dtype,
                name=name,
            )
            for name, kernel_size in (("fc6", self.fc_kernel_size), ("fc7", 1))
        )
        back = TransposedConv(
            x.shape[-1],
            self.fc_kernel_size,
            kernel_init=_INIT,
            dtype=self.dtype,
            name="fc6_deconv",
        )
        for layer in (fc6, fc7, back):
            x = nn.relu(self.norm(name=f"{layer.name}_bn")(layer(x), train=train))
        x = UnpoolingDecoder(
            convs, norm=self.norm, kernel_init=_INIT, dtype=self.dtype, name="decoder"
        )(x, levels, train=train)
        logits = resize(classifier(self.num_classes)(x), image.shape[1:3], align_corners="cells")
        return Prediction(logits[:, : size[0], : size[1]], {})
