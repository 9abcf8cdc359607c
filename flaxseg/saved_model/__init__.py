"""A trained model as a folder to keep, share and load: `config.json` beside `model.safetensors`.

`config.json` says how the model is made (`create_model(model, num_classes, **options)`), how it
wants its pictures normalised, what its classes are called and which colours they have, and the
SHA-256 of the weights. `model.safetensors` holds every array of `variables` under its path, for
example `params/backbone/stem/conv/kernel`. Loading runs no code from the folder, and no array is
allocated before its name and shape are found to be those that the model has.

A save is written beside the folder and then renamed into place; whenever it is interrupted, the
folder can be loaded and is either the old or the new model.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from flaxseg.errors import CheckpointError, FlaxsegError, WeightsError

CARD_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "flaxseg-model"
FORMAT_VERSION = 1

# Options that describe how a program is run, not what the model is; they are not saved.
_RUN_OPTIONS = ("batch_norm_axis",)
# The size with which shapes are derived; nothing is computed at this size.
_PROBE_SIZE = (65, 65)
_MAX_LISTED = 8

PathLike = str | os.PathLike


def save_model(
    directory: PathLike,
    variables: Mapping,
    *,
    name: str,
    num_classes: int,
    options: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    class_colors: Sequence[Sequence[int]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a model folder; an existing one at the same place is replaced as a whole.

    Args:
      directory: the folder to write; its parents are made.
      variables: {"params": ..., "batch_stats": ...} of the model, arrays on device or host.
      name: the model's name for `create_model`.
      num_classes: number of classes.
      options: further keyword arguments of `create_model` (backbone, output_stride, ...): numbers,
        strings, booleans, None, dtypes, tuples, dataclasses of these.
      class_names: one name per class; by default "class 0", "class 1", ...
      class_colors: one RGB colour (0..255) per class; by default the colours of PASCAL VOC.
      extra: anything else to keep in the card that JSON can hold: data set, step, metrics.

    Returns:
      The folder.

    Raises:
      WeightsError: `variables` are not those of this model, or hold a value that is not finite;
        nothing is written.
      ValueError: names or colours do not fit num_classes, or an option can not be written as JSON.
      CheckpointError: the folder could not be written (permissions, disk full); an existing model
        stays as it was.
    """
    directory = pathlib.Path(os.path.abspath(directory))
    options = {k: v for k, v in (options or {}).items() if k not in _RUN_OPTIONS}
    names, colors = check_classes(num_classes, class_names, class_colors)
    flat = _flatten(jax.device_get(variables))
    model = _create(name, num_classes, options, "options")
    _check_tensors(
        {key: (value.shape, str(value.dtype)) for key, value in flat.items()},
        _expected_tensors(model),
        f"the variables to save do not belong to {_describe(name, num_classes, options)}",
        "Give save_model the name and options with which the model was made.",
    )
    _check_finite(flat)
    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "flaxseg_version": _version(),
        "model": name,
        "num_classes": num_classes,
        "options": {key: _to_json(value, f"option {key!r}") for key, value in options.items()},
        "normalization": _normalization_of(model),
        "class_names": names,
        "class_colors": colors,
        "weights": {"file": WEIGHTS_FILE, "parameters": _count(flat), "sha256": ""},
        "extra": _to_json(dict(extra or {}), "extra"),
    }
    weights = safetensors.numpy.save(flat, metadata={"format": FORMAT})
    card["weights"]["sha256"] = hashlib.sha256(weights).hexdigest()
    # Lists of numbers, such as colours, on one line each.
    text = re.sub(
        r"\[\n\s*([-+.\deE,\s]+?)\n\s*\]",
        lambda match: f"[{' '.join(match[1].split())}]",
        json.dumps(card, indent=2, allow_nan=False) + "\n",
    )
    try:
        _write_folder(directory, {WEIGHTS_FILE: weights, CARD_FILE: text.encode()})
    except OSError as error:
        raise CheckpointError(
            f"could not write the model to {directory}: {error.strerror or error}. It needs "
            f"{len(weights) / 1e6:.1f} MB; "
            "free some space or choose a folder that can be written. A model saved there before "
            "is unchanged."
        ) from error
    return directory


def load_model(directory: PathLike, **overrides: Any) -> tuple[nn.Module, dict]:
    """Makes the model of a folder and loads its weights.

    Example:

        model, variables = flaxseg.load_model("runs/camvid")

    Args:
      directory: a folder written by `save_model`, or the working directory of a training run (its
        `model` folder is taken).
      **overrides: options of `create_model` to use in place of the saved ones, for example
        `dtype=jnp.bfloat16`. With another `output_stride`, saved rates and windows are scaled to
        it, see `flaxseg.models.at_output_stride`.

    Returns:
      The model and its variables, on the default device.

    Raises:
      WeightsError: there is no model; the weights were changed or damaged after they were saved; a
        tensor is missing, unexpected, or of another shape; or the folder was written by a newer
        flaxseg.
    """
    for attempt in range(3):
        folder = _find_folder(directory)
        card = _read_card_or_none(folder)
        try:
            return _load(folder, _read_card(folder), overrides)
        except (WeightsError, OSError) as error:
            # A training run may replace the folder while it is read; then the card on disk is
            # another one by now.
            replaced = _read_card_or_none(_find_folder(directory)) != card
            if not replaced or attempt == 2:
                if isinstance(error, OSError):
                    raise WeightsError(f"could not read {folder}: {error}.") from error
                raise
    raise AssertionError("unreachable")


def read_model_card(directory: PathLike) -> dict[str, Any]:
    """The contents of a model's `config.json`, checked to be one that this version understands.

    Args:
      directory: as for `load_model`.

    Returns:
      A dict with format, format_version, flaxseg_version, model, num_classes, options,
      normalization, class_names, class_colors (tuples), weights and extra.

    Raises:
      WeightsError: there is no model, the file is not a model card, or it was written by a newer
        flaxseg.
    """
    return _read_card(_find_folder(directory))


# Folders


def _write_folder(directory: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Writes all files beside the folder, then puts them in its place; at every moment one whole
    version exists.

    A rename can not replace a folder that is not empty, so the old one is moved aside first;
    `_find_folder` and the next save take it back if the process dies between the two renames.
    """
    saving, previous = _sibling(directory, "saving"), _sibling(directory, "previous")
    directory.parent.mkdir(parents=True, exist_ok=True)
    if previous.exists():
        if directory.exists():
            shutil.rmtree(previous)
        else:
            previous.rename(directory)
    shutil.rmtree(saving, ignore_errors=True)
    try:
        saving.mkdir()
        for name, data in files.items():
            with open(saving / name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        _sync_folder(saving)
        if directory.exists():
            _refuse_foreign(directory)
            directory.rename(previous)
        saving.rename(directory)
    except BaseException:
        shutil.rmtree(saving, ignore_errors=True)
        if previous.exists() and not directory.exists():
            previous.rename(directory)
        raise
    _sync_folder(directory.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _refuse_foreign(directory: pathlib.Path) -> None:
    """Raises if replacing the folder would delete anything but a saved model."""
    if not directory.is_dir():
        raise NotADirectoryError(20, "a file of that name is in the way", str(directory))
    foreign = sorted(p.name for p in directory.iterdir() if p.name not in (CARD_FILE, WEIGHTS_FILE))
    if foreign:
        raise FileExistsError(
            17,
            f"the folder holds other files ({', '.join(foreign[:4])}) that replacing it would "
            "delete",
        )


def _sync_folder(directory: pathlib.Path) -> None:
    """Makes names in a folder durable, where the system has a way to do so."""
    if os.name == "nt":
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sibling(directory: pathlib.Path, what: str) -> pathlib.Path:
    return directory.with_name(f".{directory.name}.{what}")


def _find_folder(directory: PathLike) -> pathlib.Path:
    """The directory itself, its `model` subfolder, or what an interrupted save left of either."""
    directory = pathlib.Path(os.path.abspath(directory))
    for candidate in (directory, directory / "model"):
        for folder in (candidate, _sibling(candidate, "previous")):
            if (folder / WEIGHTS_FILE).is_file() or _is_card(folder / CARD_FILE):
                return folder
    if not directory.exists():
        raise WeightsError(
            f"there is no folder {directory}; give the folder of a saved model (with {CARD_FILE} "
            f"and {WEIGHTS_FILE}) or the "
            "working directory of a training run."
        )
    if (directory / "checkpoints").is_dir():
        raise WeightsError(
            f"the training run in {directory} has no model folder yet; it is written after the "
            "first evaluation of the run."
        )
    raise WeightsError(
        f"{directory} holds no saved model: neither {CARD_FILE} with {WEIGHTS_FILE} nor a folder "
        "'model' with them."
    )


def _is_card(path: pathlib.Path) -> bool:
    """Whether a config.json is a model's (a training run has a file of that name too)."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


# The card


def _read_card(folder: pathlib.Path) -> dict[str, Any]:
    path = folder / CARD_FILE
    try:
        card = json.loads(path.read_text())
    except OSError as error:
        raise WeightsError(
            f"could not read {path}: {error.strerror}. A saved model has {CARD_FILE} beside "
            f"{WEIGHTS_FILE}."
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
    if not isinstance(version, int) or version < 1:
        raise WeightsError(
            f"{path} has format_version {version!r}; it must be a whole number from 1 on."
        )
    if version > FORMAT_VERSION:
        raise WeightsError(
            f"{path} has format_version {version}, written by flaxseg "
            f"{card.get('flaxseg_version')}; flaxseg {_version()} "
            f"reads up to {FORMAT_VERSION}. Install a newer flaxseg."
        )
    kinds = {
        "model": str,
        "num_classes": int,
        "options": dict,
        "normalization": dict,
        "class_names": list,
        "class_colors": list,
        "weights": dict,
    }
    for key, kind in kinds.items():
        if not isinstance(card.get(key), kind):
            raise WeightsError(
                f"{path}: field {key!r} must be a {kind.__name__}, got {card.get(key)!r}. The "
                "file was changed or damaged."
            )
    try:
        names, colors = check_classes(
            card["num_classes"], card["class_names"], card["class_colors"]
        )
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path}: {error}") from error
    return card | {"class_names": tuple(names), "class_colors": tuple(map(tuple, colors))}


def _read_card_or_none(folder: pathlib.Path) -> dict[str, Any] | None:
    try:
        return _read_card(folder)
    except WeightsError:
        return None


def check_classes(
    num_classes: int, names: Sequence[str] | None, colors: Sequence[Sequence[int]] | None
) -> tuple[list[str], list[list[int]]]:
    """Names and colours as JSON has them, one per class; those of `save_model` where None.

    Raises:
      ValueError: there are not as many, or they are none.
    """
    from flaxseg.drawing.images import voc_colors

    if not 1 <= num_classes <= 255:
        raise ValueError(f"num_classes must be in 1..255, got {num_classes}.")
    names = [f"class {i}" for i in range(num_classes)] if names is None else list(names)
    colors = voc_colors(num_classes) if colors is None else colors
    colors = [[int(part) for part in color] for color in colors]
    for what, values in (("class_names", names), ("class_colors", colors)):
        if len(values) != num_classes:
            raise ValueError(
                f"{what} has {len(values)} entries for {num_classes} classes; give one per class."
            )
    if not all(isinstance(name, str) for name in names):
        raise ValueError("class_names must be strings.")
    for color in colors:
        if len(color) != 3 or not all(0 <= part <= 255 for part in color):
            raise ValueError(f"class colour {color} is not three values in 0..255.")
    return names, colors


def _to_json(value: Any, what: str) -> Any:
    """A value as JSON has it: tuples become lists, dtypes their names, dataclasses dicts.

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
            f"{what} is {value!r}, which can not be written to {CARD_FILE}; use numbers, strings, "
            "booleans, None and tuples."
        ) from None


def from_json(value: Any) -> Any:
    """Lists become tuples again: module fields must be hashable."""
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    if isinstance(value, dict):
        return {key: from_json(item) for key, item in value.items()}
    return value


# The weights


def _load(
    folder: pathlib.Path, card: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[nn.Module, dict]:
    options = {key: from_json(value) for key, value in card["options"].items()}
    if overrides.get("output_stride"):
        options = _at_output_stride(card["model"], options, overrides, folder)
    options |= overrides
    if isinstance(options.get("dtype"), str):
        options["dtype"] = jnp.dtype(options["dtype"])
    model = _create(card["model"], card["num_classes"], options, str(folder / CARD_FILE))
    saved, now = card["normalization"], _normalization_of(model)
    if saved != now:
        raise WeightsError(
            f"{folder / CARD_FILE} says that pictures are normalised with {saved}, but the model "
            f"made from it uses {now}; its "
            f"predictions would be wrong. Use flaxseg {card.get('flaxseg_version')}, with which "
            "it was saved."
        )
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise WeightsError(f"{path} is missing; {folder} has only a part of a saved model.")
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    wanted = card["weights"].get("sha256")
    if digest != wanted:
        raise WeightsError(
            f"{path} was changed or damaged after it was saved: its SHA-256 is {digest}, "
            f"{CARD_FILE} says {wanted}. "
            "Take the folder from its source again."
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            keys = file.keys()
            slices = {key: file.get_slice(key) for key in keys}
            _check_tensors(
                {
                    k: (tuple(s.get_shape()), _DTYPES.get(s.get_dtype(), s.get_dtype()))
                    for k, s in slices.items()
                },
                _expected_tensors(model),
                f"{path} does not fit {_describe(card['model'], card['num_classes'], options)}",
                f"{CARD_FILE} and {WEIGHTS_FILE} must come from the same save.",
            )
            flat = {key: jnp.asarray(file.get_tensor(key)) for key in keys}
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}.") from error
    return model, flax.traverse_util.unflatten_dict(flat, sep="/")


_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
}


def _create(name: str, num_classes: int, options: Mapping[str, Any], source: str) -> nn.Module:
    """`create_model`; an error in what it is given names where that came from."""
    from flaxseg.models import create_model

    try:
        return create_model(name, num_classes=num_classes, **options)
    except (FlaxsegError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{source}: can not make {_describe(name, num_classes, options)}: {error}"
        ) from error


def _at_output_stride(
    name: str, options: Mapping[str, Any], overrides: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, Any]:
    """The saved options at the output stride that is asked for; those given with it are not
    scaled."""
    from flaxseg.models import MODELS, at_output_stride

    if name not in MODELS:  # `_create` says so
        return dict(options)
    given = {key: None for key in overrides if key != "output_stride"}
    try:
        return at_output_stride(name, {**options, **given}, overrides["output_stride"])
    except ValueError as error:
        raise WeightsError(f"{folder}: {error}") from error


def _expected_tensors(model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every variable of the model, by path; nothing is computed or allocated."""
    image = jax.ShapeDtypeStruct((1, *_PROBE_SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return {key: (value.shape, str(value.dtype)) for key, value in _flatten(shapes).items()}


def _check_tensors(
    found: Mapping[str, tuple[tuple[int, ...], str]],
    expected: Mapping[str, tuple[tuple[int, ...], str]],
    problem: str,
    advice: str,
) -> None:
    """Raises one WeightsError that lists all that is missing, unexpected or of another shape."""
    lines = [
        f"missing: {key} {_tensor(expected[key])}" for key in sorted(expected.keys() - found.keys())
    ]
    lines += [
        f"unexpected: {key} {_tensor(found[key])}" for key in sorted(found.keys() - expected.keys())
    ]
    different = [
        key for key in sorted(found.keys() & expected.keys()) if found[key] != expected[key]
    ]
    # Different shapes first: most often they explain the rest.
    lines = [
        f"{key}: found {_tensor(found[key])}, the model has {_tensor(expected[key])}"
        for key in different
    ] + lines
    if lines:
        more = [f"... and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
        listed = "\n  ".join(lines[:_MAX_LISTED] + more)
        raise WeightsError(
            f"{problem}; {len(lines)} of {len(expected)} tensors differ:\n  {listed}\n{advice}"
        )


def _check_finite(flat: Mapping[str, np.ndarray]) -> None:
    bad = [key for key, value in sorted(flat.items()) if not np.all(np.isfinite(value))]
    if bad:
        more = f" and {len(bad) - _MAX_LISTED} more" if len(bad) > _MAX_LISTED else ""
        raise WeightsError(
            f"{', '.join(bad[:_MAX_LISTED])}{more} hold values that are not finite; such a model "
            "is not saved."
        )


def _flatten(variables: Mapping) -> dict[str, Any]:
    """{"params/backbone/.../kernel": array}."""
    return flax.traverse_util.flatten_dict(flax.core.unfreeze(dict(variables)), sep="/")


def _tensor(shape_and_dtype: tuple[tuple[int, ...], str]) -> str:
    shape, dtype = shape_and_dtype
    return f"{list(shape)} {dtype}"


def _describe(name: str, num_classes: int, options: Mapping[str, Any]) -> str:
    """The call that makes the model."""
    arguments = "".join(f", {key}={value!r}" for key, value in options.items())
    return f"create_model({name!r}, num_classes={num_classes}{arguments})"


def _normalization_of(model: nn.Module) -> dict[str, list[float]]:
    return {
        "mean": [float(value) for value in model.normalization.mean],
        "std": [float(value) for value in model.normalization.std],
    }


def _count(flat: Mapping[str, np.ndarray]) -> int:
    """Trained numbers: the elements of params."""
    return sum(int(value.size) for key, value in flat.items() if key.startswith("params/"))


def _version() -> str:
    import flaxseg

    return flaxseg.__version__
