"""Draws a contact sheet of training examples with their labels laid over them."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data import DatasetInfo
from flaxseg.drawing.images import (
    enlarge,
    overlay,
    stack,
    stripes,
    titled,
    with_legend,
)

_CELL = 272  # pixels that the longer side of an image has at most
_SMALLEST = 160  # and at least
_COLUMNS = 3  # of pairs
_GAP = 10
_PAPER = 255


def draw_examples(batch: dict[str, np.ndarray], info: DatasetInfo, title: str) -> np.ndarray:
    """Draws each example beside itself with its label laid over it, and a legend below.

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


def _cell(image: np.ndarray, label: np.ndarray, name: str, info: DatasetInfo) -> np.ndarray:
    """Returns one example: the image, and the image with its label."""
    image, label = _fit(image, label)
    seen = overlay(image, label, info.class_colors)
    ignored = label == IGNORE_LABEL
    half = (image.astype(np.uint16) + stripes(*label.shape)) // 2
    seen[ignored] = half[ignored].astype(np.uint8)
    space = np.full((image.shape[0], 2, 3), _PAPER, np.uint8)
    return titled(np.hstack([image, space, seen]), name)


def _fit(image: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image and its label at a size to look at; whole pixels are taken of the label."""
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
