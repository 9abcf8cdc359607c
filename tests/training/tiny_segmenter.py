"""A segmentation model of a few hundred parameters, of the contract of `flaxseg.create_model`, and
its training."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.layers import IMAGENET, BatchNorm, ImageNormalization, resize
from flaxseg.models import Prediction
from flaxseg.training.objective import Objective
from flaxseg.training.optimizer import make_optimizer
from flaxseg.training.state import TrainState, create_state
from flaxseg.training.step import make_train_step


class TinyBackbone(nn.Module):
    """A strided convolution, a normalisation, a convolution."""

    batch_norm_axis: str | None
    batch_norm: bool
    frozen_batch_norm: bool
    features: int
    stride: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.Conv(self.features, (3, 3), self.stride, name="stem", dtype=self.dtype)(image)
        if self.batch_norm:
            x = BatchNorm(axis_name=self.batch_norm_axis, frozen=self.frozen_batch_norm, name="bn")(
                x, train=train
            )
        return nn.Conv(self.features, (3, 3), name="conv", dtype=self.dtype)(nn.relu(x))


class TinyHead(nn.Module):
    """A classifier per position."""

    num_classes: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return nn.Conv(self.num_classes, (1, 1), name="classifier", dtype=self.dtype)(x)


class TinySegmenter(nn.Module):
    """`nan_above` makes the logits NaN when a normalised pixel is above it; `border` adds an output
    of one logit."""

    num_classes: int = 4
    normalization: ImageNormalization = IMAGENET
    batch_norm_axis: str | None = None
    batch_norm: bool = True
    frozen_batch_norm: bool = False
    auxiliary: bool = False
    dropout: float = 0.0
    features: int = 8
    stride: int = 2
    dtype: jnp.dtype = jnp.float32
    nan_above: float = np.inf
    border: bool = False

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> Prediction:
        x = TinyBackbone(
            self.batch_norm_axis,
            self.batch_norm,
            self.frozen_batch_norm,
            self.features,
            self.stride,
            self.dtype,
            name="backbone",
        )(image, train=train)
        head = TinyHead(self.num_classes, self.dropout, self.dtype, name="head")
        logits = head(x, train=train).astype(jnp.float32)
        logits = jnp.where(jnp.max(image) > self.nan_above, jnp.nan, logits)
        logits = resize(logits, image.shape[1:3], align_corners=False)
        auxiliary = {}
        if self.auxiliary:
            auxiliary["stride2"] = nn.Conv(self.num_classes, (1, 1), name="auxiliary")(x)
        if self.border:
            auxiliary["border"] = nn.Conv(1, (1, 1), name="border")(x)
        return Prediction(logits, auxiliary if train else {})


def tiny_batch(seed: int, size: int = 8, hw: tuple[int, int] = (9, 11), classes: int = 4) -> dict:
    """A random batch; nearly all of its first image is ignored, and nothing of its last."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 250, (size, *hw, 3), dtype=np.uint8)
    label = rng.integers(0, classes, (size, *hw), dtype=np.uint8)
    ignored = rng.random((size, *hw)) < np.linspace(0.95, 0.0, size)[:, None, None]
    label[ignored] = 255
    return {"image": image, "label": label}


def he_normal(shapes: dict, seed: int = 0) -> dict:
    """Returns variables of these shapes, kernels as He et al. begin with them.

    NumPy draws them in no time; compiling a model's own initialisation takes as long as compiling a
    step.
    """
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            return rng.normal(scale=deviation, size=leaf.shape).astype(np.float32)
        return np.full(leaf.shape, float(path[-1].key in ("scale", "var")), np.float32)

    return jax.tree.map_with_path(draw, shapes)


_starts: dict[str, TrainState] = {}


def new_run(
    model: nn.Module,
    size: tuple[int, int],
    *,
    schedule: Callable,
    seed: int = 0,
    ema_decay: float = 0.0,
    optimizer: dict | None = None,
    **options,
) -> tuple[TrainState, Callable]:
    """Returns a state and a step function of `model`; runs that begin alike share one state."""
    start_model = model
    if isinstance(model, TinySegmenter):  # what its initial variables do not depend on
        start_model = model.clone(
            batch_norm_axis=None,
            frozen_batch_norm=False,
            dropout=0.0,
            dtype=jnp.float32,
            nan_above=np.inf,
        )
    settings = {"frozen": options.get("frozen", ()), **(optimizer or {})}
    of_losses = {field.name for field in dataclasses.fields(Objective)} & options.keys()
    objective = Objective(**{name: options.pop(name) for name in of_losses})
    shapes = jax.eval_shape(start_model.init, jax.random.key(0), jnp.zeros((1, *size, 3)))
    tx = make_optimizer(shapes["params"], **settings)
    key = repr((start_model, size, seed, ema_decay > 0, settings))
    if key not in _starts:
        _starts[key] = create_state(
            start_model, tx, seed, size, ema=ema_decay > 0, variables=he_normal(shapes, seed)
        )
    return _starts[key], make_train_step(
        model, tx, schedule=schedule, objective=objective, ema_decay=ema_decay, **options
    )
