"""Builds the model of a run and its optimizer by their shapes alone, before anything is read."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxseg.errors import SettingsError
from flaxseg.models import Prediction, create_model
from flaxseg.saved_model.tensors import bounded_network
from flaxseg.settings import Problems
from flaxseg.training.optimizer import make_optimizer
from flaxseg.training.run_settings import ModelSettings, Settings

Made = TypeVar("Made")

# What a create_model option of this name stands under in a config; all others are model.options.
_FIELDS = {
    "backbone": "model.backbone",
    "output_stride": "model.output_stride",
    "frozen_batch_norm": "model.frozen_batch_norm",
    "dtype": "dtype",
    "remat": "remat",
}
# Options that only make sense with the backbone they were set for.
_OF_BACKBONE = ("backbone_options", "normalization")


@dataclasses.dataclass(frozen=True)
class Network:
    """Holds the model to train and its optimizer.

    Attributes:
      model: of the contract of `flaxseg.create_model`.
      tx: its optimizer, see `make_optimizer`.
    """

    model: nn.Module
    tx: optax.GradientTransformation


def check_model(settings: ModelSettings, num_classes: int) -> None:
    """Checks the names of a model's parts and options; it is not yet built.

    Raises:
      SettingsError: naming the field of a config that is at fault.
    """
    _build(lambda own: create_model(settings.name, num_classes, **own), settings)


def build_network(settings: Settings) -> Network:
    """Returns the model and the optimizer of a run; their arrays are neither made nor read.

    Raises:
      ConfigError: naming the fields with which there is no such model, the losses that do not fit
        its outputs, and the paths that fit none of its parameters.
    """
    name, num_classes = settings.model.name, settings.data.info.num_classes

    def build(arguments: Mapping[str, Any]) -> tuple[Prediction, dict]:
        model = create_model(name, num_classes, **arguments)
        return _shapes(model, settings.data.crop_size)

    problems = Problems()
    built = problems.make("", _build, build, settings.model)
    problems.raise_all()
    outputs, variables = built
    problems.make("loss.", settings.objective.check_outputs, outputs)
    own = vars(settings.optimizer)
    tx = problems.make("optimizer.", make_optimizer, variables["params"], **own)
    problems.raise_all()
    axis = settings.layout.batch_norm_axis
    arguments = settings.model.arguments
    return Network(create_model(name, num_classes, batch_norm_axis=axis, **arguments), tx)


def _shapes(model: nn.Module, size: tuple[int, int]) -> tuple[Prediction, dict]:
    """Returns the shapes of what a model returns in training, and of its variables."""
    key, image = jax.random.key(0), jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    init = partial(model.init_with_output, {"params": key, "dropout": key}, train=True)
    with bounded_network():
        return jax.eval_shape(init, image)


def _build(build: Callable[[Mapping], Made], settings: ModelSettings) -> Made:
    """Returns what `build` makes of the arguments of a model.

    Raises:
      SettingsError: it fails, and the arguments are at fault.
    """
    arguments, name = settings.arguments, settings.name
    try:
        return build(arguments)
    except Exception as error:  # whatever a wrong value leads to, as deep as it comes up
        guilty = _at_fault(build, arguments, str(error))
        if guilty is None and not isinstance(error, (TypeError, ValueError)):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if guilty is None:
            problem = ("model", f"{name} cannot be built: {reason}")
        else:
            field = _FIELDS.get(guilty, f"model.options.{guilty}")
            problem = (field, f"is {arguments[guilty]!r}; {name} cannot be built with it: {reason}")
        raise SettingsError([problem]) from error


def _at_fault(build: Callable[[Mapping], Any], arguments: Mapping, message: str) -> str | None:
    """Returns the argument without which `build` succeeds; None where there is no single one."""
    # Those that the message names come first, then the more particular ones.
    candidates = sorted(arguments, key=lambda name: (name not in message, name in _FIELDS))
    for name in candidates:
        left_out = (name, *_OF_BACKBONE) if name == "backbone" else (name,)
        try:
            build({key: value for key, value in arguments.items() if key not in left_out})
        except Exception:
            continue
        return name
    return None
