"""`train.py` with one more model, small enough to be trained, killed and resumed within seconds.

Run by the tests as a program: `python tests/training/tiny_program.py --config=... --workdir=...`.
"""

import pathlib
import runpy
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

import flaxseg.models
from flaxseg.layers import ImageNormalization
from flaxseg.models import ModelSpec, Prediction

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Tiny(nn.Module):
    """Two convolutions with BatchNorm and dropout: all kinds of state that a model can have."""

    num_classes: int
    backbone: Any = None
    rates: tuple = ()
    norm: Callable = None
    normalization: ImageNormalization = ImageNormalization((127.5,) * 3, (127.5,) * 3)
    dtype: Any = jnp.float32
    protocol: str = "whole"
    width: int = 4
    dropout: float = 0.1

    @nn.compact
    def __call__(self, image, *, train: bool = False):
        x = nn.Conv(self.width, (3, 3), strides=2, name="stem")(image)
        x = self.norm(name="norm1")(x, train=train)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        x = nn.Conv(self.num_classes, (1, 1), name="classifier")(x)
        shape = (x.shape[0], *image.shape[1:3], x.shape[3])
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, : shape[1], : shape[2]]
        return Prediction(x.astype(jnp.float32), {})


TINY = ModelSpec(Tiny, backbone="resnet18", output_stride=16)


def register() -> None:
    """Let `create_model` and the config know the model "tiny"."""
    flaxseg.models.MODELS["tiny"] = TINY


if __name__ == "__main__":
    register()
    sys.argv[0] = str(REPOSITORY / "train.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
