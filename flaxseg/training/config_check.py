"""Checks a config: everything that is wrong with it, before anything is read or compiled."""

from typing import Any

from ml_collections import config_dict

from flaxseg.errors import near
from flaxseg.settings import raise_listed
from flaxseg.training.assemble import Settings, assemble
from flaxseg.training.config import default_config, flat_fields, output_loss_section
from flaxseg.training.losses import OutputLoss
from flaxseg.training.network import Network, build_network

# Sections whose fields depend on the model.
_FREE_SECTIONS = ("model.options.",)


def validate_config(
    config: config_dict.ConfigDict, *, device_count: int = 1
) -> tuple[Settings, Network]:
    """Checks all fields of a config, alone and together, and builds its model by shapes alone.

    Args:
      config: the config of a run, of the form of `default_config()`.
      device_count: devices that share one batch, over all processes.

    Returns:
      What the config describes.

    Raises:
      ConfigError: listing all problems: unknown or missing fields, wrong types, impossible values,
        unknown names, a batch that the devices cannot share; then, where there are none of these,
        those of the model: values it cannot be built with, losses for outputs it does not have,
        paths that fit none of its parameters.
    """
    _check_structure(config)
    settings = assemble(config, device_count=device_count)
    return settings, build_network(settings)


def _check_structure(config: config_dict.ConfigDict) -> None:
    """Checks that a config has all fields and no others, and that values have their types."""
    default, given = default_config(), flat_fields(config)
    problems = []
    outputs = {name.split(".")[2] for name in given if name.startswith("loss.outputs.")}
    with default.unlocked():
        for name in outputs - set(default.loss.outputs):  # each output has the same fields
            default.loss.outputs[name] = output_loss_section(OutputLoss())
    expected = flat_fields(default)
    for name in given:
        if name not in expected and not name.startswith(_FREE_SECTIONS):
            problems.append(f"there is no field {name!r}.{near(name, expected)}")
    for name, default in expected.items():
        if name not in given:
            problems.append(f"the field {name!r} is missing; its default is {default!r}")
        elif name.endswith(".align_corners"):
            pass  # a bool or a text; `OutputLoss` checks it
        elif not _has_type_of(given[name], default):
            problems.append(
                f"{name} is {given[name]!r}; it must be a {_kind(default)}, such as {default!r}"
            )
    raise_listed(problems)


def _has_type_of(value: Any, default: Any) -> bool:
    """Returns whether `value` fits the type of `default`; int fits float, and list fits tuple."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    if isinstance(default, tuple):
        return isinstance(value, (tuple, list)) and all(
            isinstance(item, (int, float)) and not isinstance(item, bool) for item in value
        )
    return isinstance(value, type(default))


def _kind(default: Any) -> str:
    """Returns what a field of this default holds, in words."""
    words = {bool: "bool", int: "whole number", float: "number", tuple: "tuple of numbers"}
    return words.get(type(default), "text")
