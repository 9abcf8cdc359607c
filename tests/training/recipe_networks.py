"""The recipes in `configs/` and their networks: a network that several data sets and tests share is
traced once."""

import functools
import importlib.util
import itertools
import pathlib
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from ml_collections import config_dict

import flaxseg

DATA = ("voc", "cityscapes", "ade20k", "camvid", "shapes")
CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


@functools.cache
def load_recipe(name: str) -> Callable[..., config_dict.ConfigDict]:
    """Returns the `get_config` of a file of `configs/`."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


def every_recipe(variants: Sequence[str], data: Sequence[str] = DATA) -> list:
    """Returns each variant with each data set. Not slow are those with the first data set, and the
    first variant with CamVid, whose backbone is another one. That the settings of all of them are
    valid is checked with the recipes' declarations."""
    first_variant, first_data = variants[0], data[0]
    quick = {(variant, first_data) for variant in variants} | {(first_variant, "camvid")}
    return [
        pytest.param(
            variant,
            name,
            marks=[] if (variant, name) in quick else [pytest.mark.slow],
        )
        for variant, name in itertools.product(variants, data)
    ]


def create_model(config: config_dict.ConfigDict, num_classes: int = 5, **options) -> nn.Module:
    """Returns the network of a recipe."""
    return flaxseg.create_model(
        config.model.name,
        num_classes,
        backbone=config.model.backbone,
        output_stride=config.model.output_stride,
        **options,
        **config.model.options.to_dict(),
    )


_traced: dict[str, tuple] = {}


def trace(model: nn.Module, size: tuple[int, int] = (65, 65), *, train: bool = True) -> tuple:
    """Returns the shapes of a prediction and of the variables; nothing is computed."""
    key = repr((model, size, train))
    if key not in _traced:
        _traced[key] = jax.eval_shape(
            lambda key, image: model.init_with_output(
                {"params": key, "dropout": key}, image, train=train
            ),
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, *size, 3), jnp.float32),
        )
    return _traced[key]


def parameters(model: nn.Module, size: tuple[int, int] = (65, 65)) -> dict:
    """Returns the shapes of a network's parameters."""
    return trace(model, size)[1]["params"]


def auxiliary_outputs(model: nn.Module, size: tuple[int, int] = (65, 65)) -> set[str]:
    """Returns the names of a network's auxiliary outputs in training."""
    return set(trace(model, size)[0].auxiliary)
