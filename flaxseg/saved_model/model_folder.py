"""Saves and loads a model as a folder: `config.json` beside `model.safetensors`.

Loading runs no code from the folder. A save is written beside the folder and then renamed into
place; whenever it is interrupted, the folder can be loaded and is either the old or the new model.
"""

import glob
import hashlib
import os
import pathlib
import reprlib
import secrets
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import safetensors.numpy

from flaxseg import models
from flaxseg.errors import FlaxsegError, WeightsError
from flaxseg.files import (
    fetched,
    make_folder,
    names_in,
    previous_of,
    replace_folder,
    take_back,
    writing,
)
from flaxseg.inference import model_protocol
from flaxseg.paths import PathLike, any_path, as_path, is_remote
from flaxseg.saved_model.card import (
    CARD_FILE,
    FORMAT,
    WEIGHTS_FILE,
    card_text,
    check_classes,
    from_json,
    is_card,
    make_card,
    normalization_of,
    read_card,
    read_card_or_none,
    weights_file,
)
from flaxseg.saved_model.tensors import (
    Spec,
    check_finite,
    check_tensors,
    count_parameters,
    expected_tensors,
    read_tensors,
)
from flaxseg.variable_paths import flatten

# Options that describe how a program is run, not what the model is; they are not saved.
_RUN_OPTIONS = ("batch_norm_axis",)

# What file browsers and network file systems leave in a folder; nobody's work.
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir")
_LITTER_PREFIXES = ("._", ".nfs")


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
      directory: the folder to write; its parents are created.
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
      ValueError: names or colours do not fit num_classes, or an option cannot be written as JSON.
      WriteError: the folder could not be written (permissions, disk full, other files in it); an
        existing model stays as it was.
    """
    directory = as_path(directory)
    options = {k: v for k, v in (options or {}).items() if k not in _RUN_OPTIONS}
    names, colors = check_classes(num_classes, class_names, class_colors)
    flat = flatten(jax.device_get(variables))
    model, expected, _ = _create(name, num_classes, options, "options")
    check_tensors(
        {key: (value.shape, str(value.dtype)) for key, value in flat.items()},
        expected,
        f"the variables to save do not belong to {_describe(name, num_classes, options)}",
        "Give save_model the name and options with which the model was made.",
    )
    check_finite(flat)
    weights = safetensors.numpy.save(flat, metadata={"format": FORMAT})
    digest = hashlib.sha256(weights).hexdigest()
    # In a bucket no two files change at one moment: the new one comes first, then its card.
    file_name = f"model-{digest[:12]}.safetensors" if is_remote(directory) else WEIGHTS_FILE
    card = make_card(
        model,
        name,
        num_classes,
        options,
        class_names=names,
        class_colors=colors,
        weights={
            "file": file_name,
            "parameters": count_parameters(flat),
            "sha256": digest,
        },
        extra=extra or {},
    )
    files = {file_name: weights, CARD_FILE: card_text(card).encode()}
    advice = (
        f"It needs {len(weights) / 1e6:.1f} MB; free some space or choose a folder that can be "
        "written. A model saved there before is unchanged."
    )
    with writing(directory, advice):
        if is_remote(directory):
            _write_objects(directory, files)
        else:
            _write_folder(directory, files)
    return directory


def load_model(directory: PathLike, **overrides: Any) -> tuple[nn.Module, dict]:
    """Creates the model of a folder and loads its weights.

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
        card = read_card_or_none(folder)
        try:
            return _load(folder, read_card(folder), overrides)
        except (WeightsError, OSError) as error:
            # A training run may replace the folder while it is read; then the card on disk is
            # another one by now.
            replaced = read_card_or_none(_find_folder(directory)) != card
            if not replaced or attempt == 2:
                if isinstance(error, OSError):
                    raise WeightsError(f"could not read {folder}: {error}.") from error
                raise
    raise AssertionError("unreachable")


def read_model_card(directory: PathLike) -> dict[str, Any]:
    """Returns the contents of a model's `config.json`, checked to be one this version understands.

    Args:
      directory: as for `load_model`.

    Returns:
      A dict with format, format_version, flaxseg_version, model, num_classes, options,
      normalization, class_names, class_colors (tuples), weights and extra.

    Raises:
      WeightsError: there is no model, the file is not a model card, or it was written by a newer
        flaxseg.
    """
    return read_card(_find_folder(directory))


def _load(
    folder: pathlib.Path, card: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[nn.Module, dict]:
    """Returns the model of a card and its variables; both are checked against each other."""
    options = {key: from_json(value) for key, value in card["options"].items()}
    if overrides.get("output_stride"):
        options = _at_output_stride(card["model"], options, overrides, folder)
    options |= overrides
    model, expected, now = _create(
        card["model"], card["num_classes"], options, str(folder / CARD_FILE)
    )
    saved = card["normalization"]
    if saved != now:
        raise WeightsError(
            f"{folder / CARD_FILE} says that images are normalised with {saved}, but the model "
            f"made from it uses {now}; its "
            f"predictions would be wrong. Use flaxseg {card.get('flaxseg_version')}, with which "
            "it was saved."
        )
    path = weights_file(folder, card)
    if not path.is_file():
        raise WeightsError(f"{path} is missing; {folder} has only a part of a saved model.")
    with fetched(path) as here:
        with open(here, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        wanted = card["weights"].get("sha256")
        if digest != wanted:
            raise WeightsError(
                f"{path} was changed or damaged after it was saved: its SHA-256 is {digest}, "
                f"{CARD_FILE} says {wanted}. "
                "Take the folder from its source again."
            )
        variables = read_tensors(
            here,
            expected,
            f"{path} does not fit {_describe(card['model'], card['num_classes'], options)}",
            f"{CARD_FILE} and {WEIGHTS_FILE} must come from the same save.",
        )
    return model, variables


def _create(
    name: str, num_classes: int, options: Mapping[str, Any], source: str
) -> tuple[nn.Module, dict[str, Spec], dict[str, list[float]]]:
    """Returns a model, its variables as `expected_tensors` has them, and its normalisation.

    Raises:
      WeightsError: the options do not make a model; it names where they came from.
    """
    try:
        dtype = {"dtype": jnp.dtype(options["dtype"])} if options.get("dtype") else {}
        model = models.create_model(name, num_classes=num_classes, **{**options, **dtype})
        model_protocol(model)  # raises for one that is not understood
        return model, expected_tensors(model), normalization_of(model)
    except Exception as error:  # of any kind: options come from cards that anyone may have written
        kind = "" if isinstance(error, FlaxsegError | ValueError) else f"{type(error).__name__}: "
        raise WeightsError(
            f"{source}: cannot make {_describe(name, num_classes, options)}: {kind}{error}"
        ) from error


def _at_output_stride(
    name: str, options: Mapping[str, Any], overrides: Mapping[str, Any], folder: pathlib.Path
) -> dict[str, Any]:
    """Returns the saved options at the output stride in `overrides`; other overrides are not
    scaled."""
    if name not in models.MODELS:  # `_create` says so
        return dict(options)
    given = {key: None for key in overrides if key != "output_stride"}
    try:
        return models.at_output_stride(name, {**options, **given}, overrides["output_stride"])
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{folder}: {error}") from error


def _describe(name: str, num_classes: int, options: Mapping[str, Any]) -> str:
    """Returns the call that creates the model."""
    arguments = "".join(f", {key}={reprlib.repr(value)}" for key, value in options.items())
    return f"create_model({name!r}, num_classes={num_classes}{arguments})"


def _write_folder(directory: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Writes all files beside the folder, then puts them in its place; at every moment one whole
    version exists.

    `_find_folder` and the next save take back the old one if the process dies in between.
    """
    make_folder(directory.parent)
    for left in directory.parent.glob(f".{glob.escape(directory.name)}.saving-*"):
        shutil.rmtree(left, ignore_errors=True)
    take_back(directory)
    _refuse_foreign(directory)
    staged = directory.with_name(f".{directory.name}.saving-{secrets.token_hex(4)}")
    try:
        staged.mkdir()
        for name, data in files.items():
            (staged / name).write_bytes(data)
        replace_folder(staged, directory)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write_objects(directory: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Writes files to a bucket, one after the other, then deletes the weights of earlier saves."""
    for name, data in files.items():
        (directory / name).write_bytes(data)
    for path in directory.iterdir():
        if path.name.endswith(".safetensors") and path.name not in files:
            path.unlink()


def _refuse_foreign(directory: pathlib.Path) -> None:
    """Raises if replacing the folder would delete anything but a saved model."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise NotADirectoryError(20, "a file of that name is in the way", str(directory))
    ours = (CARD_FILE, WEIGHTS_FILE, *_LITTER)
    foreign = sorted(
        path.name
        for path in directory.iterdir()
        if path.name not in ours and not path.name.startswith(_LITTER_PREFIXES)
    )
    if foreign:
        raise FileExistsError(
            17,
            f"the folder holds other files ({', '.join(foreign[:4])}) that replacing it would "
            "delete",
        )


def _find_folder(directory: PathLike) -> pathlib.Path:
    """Returns the directory itself, its `model` subfolder, or what an interrupted save left of
    either."""
    problem = any_path(directory)
    if problem:
        raise WeightsError(f"the model is {os.fspath(directory)!r}; it must be {problem}.")
    directory = as_path(directory)
    if is_remote(directory):
        names_in(directory)  # raises where the bucket cannot be reached
    for candidate in (directory, directory / "model"):
        for folder in (candidate, previous_of(candidate)):
            if (folder / WEIGHTS_FILE).is_file() or is_card(folder / CARD_FILE):
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
