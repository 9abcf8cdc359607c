"""Reads and writes the card of a saved model: `config.json`.

It says how the model is made (`create_model(model, num_classes, **options)`), how it normalises
images, the names and colours of its classes, and the SHA-256 of the weights.
"""

import dataclasses
import json
import operator
import pathlib
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import flaxseg
from flaxseg.classes import check_class_names, voc_colors
from flaxseg.errors import WeightsError
from flaxseg.json_text import read_json

CARD_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "flaxseg-model"
FORMAT_VERSION = 1

MAX_OPTION = 10_000
"""The largest number among the options: channels, kernels, rates. A card may come from anyone, and
with larger ones its model takes minutes to describe."""
_MAX_OPTION_VALUES = 200
_MAX_OPTION_DEPTH = 6


def make_card(
    model: nn.Module,
    name: str,
    num_classes: int,
    options: Mapping[str, Any],
    *,
    class_names: Sequence[str],
    class_colors: Sequence[Sequence[int]],
    weights: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the card of a model; the arguments are those of `save_model`.

    Raises:
      ValueError: a value cannot be written as JSON.
    """
    options = {key: _to_json(value, f"option {key!r}") for key, value in options.items()}
    _check_options(options)
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "flaxseg_version": flaxseg.__version__,
        "model": name,
        "num_classes": num_classes,
        "options": options,
        "normalization": normalization_of(model),
        "class_names": class_names,
        "class_colors": class_colors,
        "weights": {"file": WEIGHTS_FILE, **weights},
        "extra": _to_json(dict(extra), "extra"),
    }


def card_text(card: Mapping[str, Any]) -> str:
    """Returns the card as JSON, with lists of numbers, such as colours, on one line each."""
    return re.sub(
        r"\[\n\s*([-+.\deE,\s]+?)\n\s*\]",
        lambda match: f"[{' '.join(match[1].split())}]",
        json.dumps(card, indent=2, allow_nan=False) + "\n",
    )


def read_card(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the checked card of a folder, with tuples for class names and colours.

    Raises:
      WeightsError: there is no card, it is damaged, or a newer flaxseg wrote it.
    """
    path = folder / CARD_FILE
    try:
        card = read_json(path)
    except OSError as error:
        raise WeightsError(
            f"could not read {path}: {error.strerror or error}. A saved model has {CARD_FILE} "
            f"beside {WEIGHTS_FILE}."
        ) from error
    except ValueError as error:
        raise WeightsError(
            f"{path} is not valid JSON: {error}. Take the file from its source again."
        ) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise WeightsError(
            f'{path} is not the card of a flaxseg model: it lacks "format": "{FORMAT}".'
        )
    version = card.get("format_version")
    if type(version) is not int or version < 1:
        raise WeightsError(
            f"{path} has format_version {version!r}; it must be a whole number of at least 1."
        )
    if version > FORMAT_VERSION:
        raise WeightsError(
            f"{path} has format_version {version}, written by flaxseg "
            f"{card.get('flaxseg_version')}; flaxseg {flaxseg.__version__} "
            f"reads up to {FORMAT_VERSION}. Install a newer flaxseg."
        )
    try:
        return _checked({"extra": {}, **card})
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: {error} The file was changed or damaged.") from error


_KINDS = {
    "model": str,
    "num_classes": int,
    "options": dict,
    "normalization": dict,
    "class_names": list,
    "class_colors": list,
    "weights": dict,
    "weights.sha256": str,
    "weights.parameters": int,
    "extra": dict,
}
_ABSENT = object()
# What programs read of `extra`, where it is there.
_KINDS_OF_EXTRA = {"data": str, "config": dict, "config.data": dict}


def _checked(card: dict[str, Any]) -> dict[str, Any]:
    """Returns a card whose fields have the types that programs rely on.

    Raises:
      ValueError: they do not, or a value is out of range.
    """
    for name, kind in _KINDS.items():
        _check_kind(name, _field(card, name), kind)
    for name, kind in _KINDS_OF_EXTRA.items():
        value = _field(card["extra"], name)
        if value is not _ABSENT:
            _check_kind(f"extra.{name}", value, kind)
    _check_options(card["options"])
    names, colors = check_classes(card["num_classes"], card["class_names"], card["class_colors"])
    return card | {"class_names": tuple(names), "class_colors": tuple(map(tuple, colors))}


def _field(card: Mapping[str, Any], name: str) -> Any:
    """Returns the value of a dotted name, `_ABSENT` where there is none."""
    *sections, last = name.split(".")
    for section in sections:
        card = card.get(section, {})
    return card.get(last, _ABSENT)


def _check_kind(name: str, value: Any, kind: type) -> None:
    if type(value) is not kind:
        got = "nothing" if value is _ABSENT else reprlib.repr(value)
        raise ValueError(f"field {name!r} must have type {kind.__name__}, got {got}.")


def _check_options(options: Mapping[str, Any]) -> None:
    """Checks that a model of these options can be described in reasonable time.

    Raises:
      ValueError: one is too large, too long or nested too deeply, or the protocol is not text.
    """
    if not isinstance(options.get("protocol", "whole"), str):
        raise ValueError(f"option 'protocol' is {reprlib.repr(options['protocol'])}, no text.")
    values = [(f"option {name!r}", value, 0) for name, value in options.items()]
    for what, value, depth in values:  # grows meanwhile
        if isinstance(value, dict | list):
            inner = value.values() if isinstance(value, dict) else value
            values += [(what, item, depth + 1) for item in inner]
        too_large = isinstance(value, int | float) and abs(value) > MAX_OPTION
        if too_large or depth > _MAX_OPTION_DEPTH or len(values) > _MAX_OPTION_VALUES:
            raise ValueError(
                f"{what} has {reprlib.repr(value)}; options are numbers up to {MAX_OPTION}, at "
                f"most {_MAX_OPTION_VALUES} of them, nested {_MAX_OPTION_DEPTH} deep at most."
            )


def weights_file(folder: pathlib.Path, card: Mapping[str, Any]) -> pathlib.Path:
    """Returns the file of the weights of a card.

    In a bucket, where two files cannot be replaced together, each save has a name of its own.
    """
    name = card["weights"].get("file")
    return folder / (
        name if re.fullmatch(r"model-[0-9a-f]+\.safetensors", str(name)) else WEIGHTS_FILE
    )


def read_card_or_none(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the card of a folder, or None where `read_card` raises."""
    try:
        return read_card(folder)
    except WeightsError:
        return None


def is_card(path: pathlib.Path) -> bool:
    """Returns whether a config.json is a model's (a training run has a file of that name too)."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def check_classes(
    num_classes: int, names: Sequence[str] | None, colors: Sequence[Sequence[int]] | None
) -> tuple[list[str], list[list[int]]]:
    """Returns names and colours as JSON has them, one per class; for None the defaults of
    `save_model`.

    Raises:
      ValueError: their number is wrong, or they are not names or colours.
    """
    if not 1 <= num_classes <= 255:
        raise ValueError(f"num_classes must be in 1..255, got {num_classes}.")
    names = [f"class {i}" for i in range(num_classes)] if names is None else list(names)
    colors = voc_colors(num_classes) if colors is None else colors
    colors = [[operator.index(part) for part in color] for color in colors]
    for what, values in (("class_names", names), ("class_colors", colors)):
        if len(values) != num_classes:
            raise ValueError(
                f"{what} has {len(values)} entries for {num_classes} classes; give one per class."
            )
    check_class_names(names)
    for color in colors:
        if len(color) != 3 or not all(0 <= part <= 255 for part in color):
            raise ValueError(f"class colour {color} is not three values in 0..255.")
    return names, colors


def normalization_of(model: nn.Module) -> dict[str, list[float]]:
    """Returns the normalisation of a model as the card has it."""
    return {
        "mean": [float(value) for value in model.normalization.mean],
        "std": [float(value) for value in model.normalization.std],
    }


def _to_json(value: Any, what: str) -> Any:
    """Returns a value as JSON has it: tuples become lists, dtypes their names, dataclasses dicts.

    Raises:
      ValueError: the value has no such form.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _to_json(item, f"{what}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_to_json(item, what) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type | nn.Module):
        return _to_json(dataclasses.asdict(value), what)
    try:
        return jnp.dtype(value).name
    except TypeError:
        raise ValueError(
            f"{what} is {value!r}, which cannot be written to {CARD_FILE}; use numbers, strings, "
            "booleans, None and tuples."
        ) from None


def from_json(value: Any) -> Any:
    """Returns a value of a card with tuples for lists, since module fields must be hashable."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if isinstance(value, dict):
        return {key: from_json(item) for key, item in value.items()}
    return value
