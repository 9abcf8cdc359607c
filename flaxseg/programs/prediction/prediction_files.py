"""Writes the files of an image: a mask, an overlay, probabilities."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from flaxseg.drawing.images import Colors, overlay_with_legend, save_image, save_palette_png
from flaxseg.errors import ConfigError, DataError, near
from flaxseg.files import whole_file
from flaxseg.inference.segmenter import Segmentation
from flaxseg.programs.prediction.output_names import ENDINGS

MAX_BYTES = 1 << 30
"""Probabilities that take more bytes before compression are refused."""


@dataclasses.dataclass(frozen=True)
class ClassProbabilities:
    """Holds the probabilities of an image, of all classes or of the most likely ones.

    Attributes:
      values: float16 [H, W, K], rounded; in the order of the model's classes, or if there are
        `classes`, in descending order.
      classes: None, or uint8 [H, W, K], the class of each value.
    """

    values: np.ndarray
    classes: np.ndarray | None = None


def check_probabilities(size: tuple[int, int], num_classes: int, top_classes: int | None) -> None:
    """Raises DataError if the probabilities of an image of that (height, width) take more than
    `MAX_BYTES`; `top_classes` as for `predict_probabilities`."""
    per_pixel = 2 * num_classes if top_classes is None else 3 * top_classes
    needed = size[0] * size[1] * per_pixel
    if needed > MAX_BYTES:
        fitting = MAX_BYTES // (3 * size[0] * size[1])
        advice = (
            f"keep only the most likely classes with --top_classes={min(fitting, 8)}"
            if fitting
            else "cut the image into parts"
        )
        raise DataError(
            f"the probabilities of {size[0]} x {size[1]} pixels take {needed / 2**30:.1f} GiB, and "
            f"the limit is {MAX_BYTES / 2**30:.0f} GiB; {advice}."
        )


def predict_probabilities(
    result: Segmentation, top_classes: int | None = None
) -> tuple[np.ndarray, ClassProbabilities]:
    """Returns the classes and the probabilities of an image from a single run.

    As far as `Segmentation.probability_parts` allows, only what is kept is held for the whole
    image.

    Args:
      result: what the network says about the image.
      top_classes: how many of the most likely classes to keep; all if None.

    Returns:
      The most likely class, uint8 [H, W], by the unrounded probabilities, and the probabilities.

    Raises:
      ConfigError: top_classes is not in 1..C.
      DataError: see `check_probabilities`.
    """
    if top_classes is not None and not 1 <= top_classes <= result.num_classes:
        raise ConfigError(
            f"top_classes is {top_classes}; the model has {result.num_classes} classes."
        )
    size = result.image.shape[:2]
    check_probabilities(size, result.num_classes, top_classes)
    pred = np.empty(size, np.uint8)
    kept = result.num_classes if top_classes is None else top_classes
    values = np.empty((*size, kept), np.float16)
    classes = None if top_classes is None else np.empty((*size, kept), np.uint8)
    for rows, columns, part in result.probability_parts():
        pred[rows, columns] = part.argmax(-1)
        if classes is None:
            values[rows, columns] = part
            continue
        # Stable, so that of equal values the first class comes first, as with argmax.
        order = np.argsort(-part, axis=-1, kind="stable")[..., :kept]
        classes[rows, columns] = order
        values[rows, columns] = np.take_along_axis(part, order, -1)
    return pred, ClassProbabilities(values, classes)


def save_probabilities(
    path: str | os.PathLike, probabilities: ClassProbabilities, class_names: Sequence[str]
) -> None:
    """Writes a compressed npz with the arrays `probabilities`, `class_names`, and `classes` if not
    all are kept; the file appears whole or not at all.

    Example, reading it:

        with np.load("street_probabilities.npz") as file:
            road = file["probabilities"][..., list(file["class_names"]).index("Road")]
    """
    arrays = {"probabilities": probabilities.values, "class_names": np.array(class_names)}
    if probabilities.classes is not None:
        arrays["classes"] = probabilities.classes
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)


def parse_kinds(text: str) -> tuple[str, ...]:
    """Returns the kinds of files that a text such as "mask,overlay" names, each once.

    >>> parse_kinds("overlay, mask,mask")
    ('mask', 'overlay')

    Raises:
      ConfigError: a kind is unknown.
    """
    wanted = {part.strip() for part in text.split(",")}
    unknown = sorted(wanted - ENDINGS.keys())
    if unknown:
        raise ConfigError(
            f"{unknown[0]!r} is no kind of file.{near(unknown[0], ENDINGS)} Kinds are "
            f"{', '.join(ENDINGS)}, separated by commas."
        )
    return tuple(kind for kind in ENDINGS if kind in wanted)


@dataclasses.dataclass(frozen=True)
class FileWriter:
    """Writes files of each kind.

    Attributes:
      class_names: one name per class.
      class_colors: one RGB triple per class.
      top_classes: how many of the most likely classes have their probabilities kept; all if None.
    """

    class_names: Sequence[str]
    class_colors: Colors
    top_classes: int | None = None

    def write(self, files: Mapping[str, os.PathLike], result: Segmentation) -> np.ndarray:
        """Writes the files of an image, by kind, into folders that exist; returns the classes."""
        if "probabilities" in files:
            pred, probabilities = predict_probabilities(result, self.top_classes)
            save_probabilities(files["probabilities"], probabilities, self.class_names)
        else:
            pred = result.classes
        if "mask" in files:
            save_palette_png(files["mask"], pred, self.class_colors)
        if "overlay" in files:
            overlay = overlay_with_legend(result.image, pred, self.class_names, self.class_colors)
            save_image(files["overlay"], overlay)
        return pred
