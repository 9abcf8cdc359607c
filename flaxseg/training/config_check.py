"""Checks a config: everything that is wrong with it, before anything is read or compiled."""

from typing import Any

from ml_collections import config_dict

from flaxseg.errors import near
from flaxseg.saved_model.card import MAX_OPTION
from flaxseg.settings import raise_listed
from flaxseg.training.assemble import Settings, assemble
from flaxseg.training.config import default_config, flat_fields, output_loss_section
from flaxseg.training.losses import OutputLoss
from flaxseg.training.network import Network, build_network

# Sections whose fields depend on the model.
_FREE_SECTIONS = ("model.options.",)

_MAX_TEXT = 4000  # characters
_MAX_ITEMS = 1000  # of a tuple
_MAX_NUMBER = 1e300  # that Python can turn into a float, and print


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
    for name, value in given.items():
        if name.startswith(_FREE_SECTIONS):
            problems += [f"{name} {problem}" for problem in _not_plain(value)]
        elif name not in expected:
            problems.append(f"there is no field {name!r}.{near(name, expected)}")
    for name, default in expected.items():
        if name not in given:
            problems.append(f"the field {name!r} is missing; its default is {default!r}")
        else:
            found = _endless(given[name]) or _mistyped(name, given[name], default)
            problems += [f"{name} {problem}" for problem in found]
    raise_listed(problems)


def _mistyped(name: str, value: Any, default: Any) -> list[str]:
    """Returns what is wrong with the type of a field."""
    if name.endswith(".align_corners") and isinstance(value, (bool, str)):
        return []  # which of them, `OutputLoss` checks
    if _has_type_of(value, default):
        return []
    return [f"is {value!r}; it must be a {_kind(default)}, such as {default!r}"]


def _endless(value: Any) -> list[str]:
    """Returns what is wrong with a value that no check of a field needs to see."""
    if isinstance(value, str):
        if "\0" in value:
            return ["has a NUL character; leave it out"]
        if len(value) > _MAX_TEXT:
            return [f"is a text of {len(value)} characters; the most is {_MAX_TEXT}"]
    if isinstance(value, (tuple, list)):
        if len(value) > _MAX_ITEMS:
            return [f"has {len(value)} items; the most is {_MAX_ITEMS}"]
        return [problem for item in value for problem in _endless(item)]
    if isinstance(value, int) and abs(value) > _MAX_NUMBER:
        return [f"has a number of {value.bit_length()} bits; the most is {_MAX_NUMBER:g}"]
    return []


def _not_plain(value: Any) -> list[str]:
    """Returns what is wrong with an option of a model, which is kept and compared as JSON."""
    if isinstance(value, (tuple, list)) and len(value) <= _MAX_ITEMS:
        return [problem for item in value for problem in _not_plain(item)]
    if isinstance(value, (int, float)) and not abs(value) <= MAX_OPTION:
        return [f"has a number above {MAX_OPTION}, or one that is not finite"]
    if value is None or isinstance(value, (bool, int, float, str, tuple, list)):
        return _endless(value)
    return [f"is a {type(value).__name__}; it must be made of numbers, texts, bools and tuples"]


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
