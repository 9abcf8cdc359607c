"""Turns uint8 pixels into what a network expects; nothing else in the package does."""

import dataclasses

import jax
import jax.numpy as jnp

from flaxseg.layers.channels import along_channels


@dataclasses.dataclass(frozen=True)
class ImageNormalization:
    """Holds what is subtracted from each colour channel, and what then divides it.

    Attributes:
      mean: red, green and blue, in 0..255.
      std: red, green and blue, in 0..255.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# The mean and deviation of ImageNet's training images that torchvision and timm use.
IMAGENET = ImageNormalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# To [-1, 1]: TensorFlow's MobileNet and Xception.
SYMMETRIC = ImageNormalization((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
# Caffe's ImageNet nets, trained on blue, green, red less the mean (104.007, 116.669, 122.679). Here
# images are red, green, blue: the weights' import turns the first convolution's channels around.
CAFFE = ImageNormalization((122.67891434, 116.66876762, 104.00698793), (1.0, 1.0, 1.0))
# EfficientNet-Lite.
EFFICIENTNET_LITE = ImageNormalization((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))


def normalize(image: jax.Array, normalization: ImageNormalization) -> jax.Array:
    """Returns `(image - mean) / std` in float32.

    Args:
      image: `[..., H, W, 3]` RGB in 0..255, uint8 or float.
      normalization: of the model that will see the image, `model.normalization`.

    Raises:
      ValueError: the last axis is not three colours.
    """
    if image.shape[-1] != 3:
        raise ValueError(f"image has shape {image.shape}; wanted [..., H, W, 3], RGB.")
    mean = jnp.asarray(normalization.mean, jnp.float32)
    std = jnp.asarray(normalization.std, jnp.float32)
    return (image.astype(jnp.float32) - along_channels(mean, image)) / along_channels(std, image)
