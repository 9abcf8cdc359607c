"""A model and a backbone with the interfaces of the real ones that compile in a moment."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype

from flaxseg.layers import BatchNorm, ConvBlock, ImageNormalization
from flaxseg.models import Prediction


class TinyModel(nn.Module):
    """Two convolutions; with `blur` the first is 3x3 and sees the border of the image."""

    num_classes: int
    blur: bool = False
    dtype: str = "float32"
    normalization: ImageNormalization = ImageNormalization((0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
    protocol: str = "whole"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        size = (3, 3) if self.blur else (1, 1)
        x = nn.Conv(4, size, name="backbone")(image)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return Prediction(nn.Conv(self.num_classes, (1, 1), name="head")(x).astype(jnp.float32), {})


class TinyBackbone(nn.Module):
    """A convolution, BatchNorm and ReLU for each of five levels, at output stride 16."""

    frozen_batch_norm: bool = False
    dtype: Dtype = jnp.float32
    output_stride: int = 16

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Returns the features `"c1"` to `"c5"`."""
        norm = partial(BatchNorm, frozen=self.frozen_batch_norm)
        x, features = image.astype(self.dtype), {}
        for level, strides in enumerate((2, 2, 2, 2, 1), 1):
            block = ConvBlock(8, 3, strides, norm=norm, dtype=self.dtype, name=f"stage{level}")
            features[f"c{level}"] = x = block(x, train=train)
        return features


def create_tiny(name: str, num_classes: int, **options) -> nn.Module:
    """Stands in for `flaxseg.create_model`."""
    if name != "tiny":
        raise ValueError(f"there is no model {name!r}")
    if isinstance(options.get("normalization"), dict):
        values = options["normalization"]
        options["normalization"] = ImageNormalization(tuple(values["mean"]), tuple(values["std"]))
    return TinyModel(num_classes=num_classes, **options)


def init(model: nn.Module, seed: int = 0) -> dict:
    """Variables whose predictions hold several classes: mid-grey pixels score 0 for each class."""
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 8, 8, 3)))
    conv = variables["params"]["backbone"]
    conv["bias"] = -0.5 * conv["kernel"].sum(axis=(0, 1, 2))
    return variables
