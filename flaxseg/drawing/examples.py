"""A sheet of augmented training examples with their labels laid over them, to look at before a
training.
"""

import os
import pathlib
import runpy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from flaxseg import data
from flaxseg.classes import IGNORE_LABEL
from flaxseg.drawing.images import (
    enlarge,
    overlay,
    save_picture,
    stack,
    stripes,
    titled,
    with_legend,
)
from flaxseg.errors import ConfigError

_CELL = 272  # pixels that the longer side of a picture has at most
_SMALLEST = 160  # and at least
_COLUMNS = 3  # of pairs
_GAP = 10
_PAPER = 255


def show_data(
    name: str,
    out: pathlib.Path,
    *,
    config: str | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    allow_problems: str = "",
    num_examples: int = 12,
    **settings: Any,
) -> str:
    """Writes the first examples that a training would see as one picture.

    Args:
      name: of the data set; it is prepared if it is not.
      out: the PNG to write.
      config: a recipe, FILE or FILE:ARGUMENT, whose settings are taken; None for the defaults.
      manual_dir, data_dir, allow_problems: see `flaxseg.data.prepare`.
      num_examples: how many.
      **settings: in place of those of the recipe: split, seed, crop_size, and the attributes of
        `flaxseg.data.Augmentation`.

    Returns:
      What is shown, in words.

    Raises:
      ConfigError: a setting is not possible, or the recipe can not be read.
      DataError: there is no such data, or it can not be read or written.
    """
    name = data.full_name(name, manual_dir)
    info = data.dataset_info(name)
    chosen = {**_of_recipe(config), **settings}
    split = chosen.pop("split", info.splits[0])
    crop_size = tuple(chosen.pop("crop_size", (256, 256)))
    seed = chosen.pop("seed", 0)
    augmentation = data.Augmentation(**chosen)
    data.prepare(name, data_dir, manual_dir, allow_problems=allow_problems)
    batches = data.train_batches(
        name,
        split,
        data_dir=data_dir,
        batch_size=num_examples,
        crop_size=crop_size,
        augmentation=augmentation,
        seed=seed,
        num_threads=0,
    )
    try:
        batch = next(batches)
    finally:
        batches.close()
    title = f"{info.name} {split}, seed {seed}: {_words(crop_size, augmentation)}"
    save_picture(out, draw_examples(batch, info, title))
    return f"{num_examples} examples of {title}"


def draw_examples(batch: dict[str, np.ndarray], info: data.DatasetInfo, title: str) -> np.ndarray:
    """Each example beside itself with its label laid over it; the classes that occur below.

    Ignored pixels are striped.

    Args:
      batch: "image" uint8 `[N, H, W, 3]`, "label" uint8 `[N, H, W]` and "id" `[N]`.
      info: names and colours of the classes.
      title: written above.

    Returns:
      uint8 `[H', W', 3]`.
    """
    cells = [
        _cell(image, label, str(name), info)
        for image, label, name in zip(batch["image"], batch["label"], batch["id"], strict=True)
    ]
    rows = [_side_by_side(cells[i : i + _COLUMNS]) for i in range(0, len(cells), _COLUMNS)]
    sheet = titled(_below_each_other(rows), title)
    return with_legend(sheet, np.unique(batch["label"]), info.class_names, info.class_colors)


def _cell(image: np.ndarray, label: np.ndarray, name: str, info: data.DatasetInfo) -> np.ndarray:
    """One example: the picture, and the picture with its label."""
    image, label = _fit(image, label)
    seen = overlay(image, label, info.class_colors)
    ignored = label == IGNORE_LABEL
    half = (image.astype(np.uint16) + stripes(*label.shape)) // 2
    seen[ignored] = half[ignored].astype(np.uint8)
    space = np.full((image.shape[0], 2, 3), _PAPER, np.uint8)
    return titled(np.hstack([image, space, seen]), name)


def _fit(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture and its label at a size to look at; of the label, whole pixels are taken."""
    longer = max(label.shape)
    factor = -(-longer // _CELL)
    if factor > 1:
        return np.asarray(Image.fromarray(image).reduce(factor)), label[::factor, ::factor]
    return enlarge(image, _SMALLEST), enlarge(label, _SMALLEST)


def _side_by_side(cells: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((cells[0].shape[0], _GAP, 3), _PAPER, np.uint8)
    return np.hstack([gap, *(part for cell in cells for part in (cell, gap))])


def _below_each_other(rows: Iterable[np.ndarray]) -> np.ndarray:
    gap = np.full((_GAP, 1, 3), _PAPER, np.uint8)
    return stack([part for row in rows for part in (row, gap)])


def _words(crop_size: tuple[int, ...], augmentation: data.Augmentation) -> str:
    """The settings in words, as "crop 256 x 256, scale 0.5 to 2, flip"."""
    words = [f"crop {crop_size[0]} x {crop_size[1]}"]
    words.append(f"scale {augmentation.scale[0]:g} to {augmentation.scale[1]:g}")
    words += ["flip"] if augmentation.flip else []
    words += [f"rotate {augmentation.rotate:g}"] if augmentation.rotate else []
    words += [f"blur {augmentation.blur:g}"] if augmentation.blur else []
    words += [f"photometric {augmentation.photometric:g}"] if augmentation.photometric else []
    return ", ".join(words)


def _of_recipe(config: str | None) -> dict[str, Any]:
    """The settings of a recipe that `show_data` takes."""
    if config is None:
        return {}
    file, colon, argument = config.partition(":")
    try:
        get_config = runpy.run_path(file)["get_config"]
    except OSError as error:
        raise ConfigError(f"--config={config}: {file} can not be read: {error.strerror}") from None
    except KeyError:
        raise ConfigError(f"--config={config}: {file} has no function get_config") from None
    recipe = get_config(argument) if colon else get_config()
    fields = ("crop_size", "scale", "scale_step", "flip", "rotate", "blur", "photometric")
    settings = {field: getattr(recipe.data, field) for field in fields}
    return {**settings, "split": recipe.data.train_split, "seed": recipe.seed}
