"""Draws label maps: palette masks, overlays, legends, and truth beside prediction and errors.

Images are uint8 NumPy arrays [H, W, 3]. Labels and predictions are integers [H, W], classes from 0
or 255 for "ignore". There is one name and one colour, an RGB triple 0..255, per class.
"""

import os
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flaxseg.classes import IGNORE_LABEL, voc_colors
from flaxseg.drawing.texts import drawable, drawable_names
from flaxseg.files import whole_file

Colors = Sequence[Sequence[int]]

_IGNORE_COLOR = (224, 224, 192)  # what PASCAL VOC paints "void" in
_ERROR_COLOR = (230, 25, 60)
_PAPER = (255, 255, 255)
_INK = (32, 33, 36)
_FRAME = (190, 193, 198)
# Below this many pixels on the longer side an image is enlarged, so that it and the text beside it
# can be read.
_MIN_SIDE = 360


def colorize(pred: np.ndarray, colors: Colors) -> np.ndarray:
    """Returns class indices as colours, "ignore" as a pale one.

    Raises:
      ValueError: an index has no colour, or the arguments have other shapes.
    """
    return _palette(colors)[_check_map(pred, colors)]


def overlay(
    image: np.ndarray, pred: np.ndarray, colors: Colors, opacity: float = 0.5
) -> np.ndarray:
    """Returns the image tinted by class, with a light line where two classes meet.

    Ignored pixels stay as they are; `opacity` is the share of the class colour, 0..1.
    """
    pred = _check_map(pred, colors)
    _check_image(image, pred)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in 0..1, got {opacity}.")
    tint = _palette(colors)[pred].astype(np.float32)
    mixed = image + opacity * (tint - image.astype(np.float32))
    mixed[pred == IGNORE_LABEL] = image[pred == IGNORE_LABEL]
    edge = _edges(pred)
    mixed[edge] = 0.35 * mixed[edge] + 0.65 * 255
    return np.rint(mixed).astype(np.uint8)


def error_image(image: np.ndarray, label: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """Returns the image in pale grey with wrong pixels in red; ignored pixels are striped."""
    label, pred = np.asarray(label), np.asarray(pred)
    if label.shape != pred.shape:
        raise ValueError(
            f"label has shape {label.shape} and prediction {pred.shape}; they must be the same."
        )
    _check_image(image, pred)
    grey = image.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    result = np.repeat((110 + 0.5 * grey)[..., None], 3, axis=-1)
    ignored = label == IGNORE_LABEL
    wrong = (label != pred) & ~ignored
    shade = (0.75 + 0.25 * grey[..., None] / 255) * np.array(_ERROR_COLOR, np.float32)
    result[wrong] = shade[wrong]
    result[ignored] = stripes(*label.shape)[ignored]
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def with_legend(
    image: np.ndarray,
    shown: np.ndarray | Iterable[int],
    class_names: Sequence[str],
    colors: Colors,
) -> np.ndarray:
    """Returns the image with the colours and names of the classes that occur below it.

    A small image is enlarged first. `shown` is a label map, or the class indices to be named; 255
    is called "ignored".
    """
    canvas = enlarge(image)
    return stack([canvas, _legend(canvas.shape[1], _present(shown), class_names, colors)])


def overlay_with_legend(
    image: np.ndarray,
    pred: np.ndarray,
    class_names: Sequence[str],
    colors: Colors,
    opacity: float = 0.5,
) -> np.ndarray:
    """Does `overlay` and `with_legend` in one; a small image is enlarged before lines are drawn."""
    _check_image(image, np.asarray(pred))
    tinted = overlay(enlarge(image), enlarge(np.asarray(pred)), colors, opacity)
    return with_legend(tinted, np.asarray(pred), class_names, colors)


def side_by_side(
    image: np.ndarray,
    label: np.ndarray,
    pred: np.ndarray,
    class_names: Sequence[str],
    colors: Colors,
    title: str = "",
) -> np.ndarray:
    """Draws image, truth, prediction and errors, two by two or in a row, with titles and a legend.

    `title` is a line above the images.
    """
    label, pred = _check_map(label, colors), _check_map(pred, colors)
    valid = label != IGNORE_LABEL
    wrong = np.count_nonzero((label != pred) & valid) / max(np.count_nonzero(valid), 1)
    shown = np.union1d(label, pred)
    image, label, pred = enlarge(image), enlarge(label), enlarge(pred)
    panels = [
        ("image", image),
        ("truth", overlay(image, label, colors, opacity=0.7)),
        ("prediction", overlay(image, pred, colors, opacity=0.7)),
        (
            f"errors: {100 * wrong:.1f} % of the counted pixels",
            error_image(image, label, pred),
        ),
    ]
    panels = [titled(panel, text) for text, panel in panels]
    gap = np.full((panels[0].shape[0], 8, 3), _PAPER, np.uint8)
    if image.shape[1] > 0.8 * image.shape[0]:
        rows = [np.hstack([panels[0], gap, panels[1]]), np.hstack([panels[2], gap, panels[3]])]
    else:
        rows = [np.hstack([panels[0], gap, panels[1], gap, panels[2], gap, panels[3]])]
    width = rows[0].shape[1]
    head = [_title_bar(width, title, 20)] if title else []
    return stack([*head, *rows, _legend(width, shown, class_names, colors)])


def enlarge(image: np.ndarray, min_side: int = _MIN_SIDE) -> np.ndarray:
    """Returns an image or label map enlarged by a whole factor, so that its longer side is at
    least min_side."""
    factor = -(-min_side // max(image.shape[:2]))
    if factor <= 1:
        return image
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def save_palette_png(path: str | os.PathLike, pred: np.ndarray, colors: Colors) -> None:
    """Writes class indices as a palette PNG (mode P): it stores the indices and shows the colours.

    The file appears whole or not at all.
    """
    image = Image.fromarray(_check_map(pred, colors))
    image.putpalette(_palette(colors).tobytes())
    _save_png(path, image)


def save_grey_png(path: str | os.PathLike, values: np.ndarray) -> None:
    """Writes uint8 [H, W] as a PNG without palette; the file appears whole or not at all."""
    _save_png(path, Image.fromarray(values))


def save_image(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] as PNG; the file appears whole or not at all."""
    _save_png(path, Image.fromarray(image))


def _save_png(path: str | os.PathLike, image: Image.Image) -> None:
    with whole_file(path) as file:
        image.save(file, format="PNG")


def _palette(colors: Colors) -> np.ndarray:
    """Returns uint8 [256, 3]: the class colours, VOC's beyond them, and pale for "ignore"."""
    palette = np.array(voc_colors(256), np.uint8)
    palette[: len(colors)] = np.asarray(colors, np.uint8).reshape(-1, 3)
    if len(colors) <= IGNORE_LABEL:
        palette[IGNORE_LABEL] = _IGNORE_COLOR
    return palette


def _check_map(pred: np.ndarray, colors: Colors) -> np.ndarray:
    """Returns the label map as uint8 [H, W]; raises ValueError for an index without colour."""
    pred = np.asarray(pred)
    if pred.ndim != 2 or pred.dtype.kind not in "iu":
        raise ValueError(f"a label map must be integers [H, W], got {pred.dtype} {pred.shape}.")
    bad = (pred < 0) | ((pred >= len(colors)) & (pred != IGNORE_LABEL))
    if bad.any():
        raise ValueError(
            f"class index {int(pred[bad][0])} has no colour: there are {len(colors)} (and "
            f"{IGNORE_LABEL} for ignore)."
        )
    return pred.astype(np.uint8)


def _check_image(image: np.ndarray, pred: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.shape != (*pred.shape, 3):
        raise ValueError(
            f"image is {image.dtype} {image.shape}, its label map {pred.shape}; wanted uint8 "
            f"{(*pred.shape, 3)}."
        )


def _edges(pred: np.ndarray) -> np.ndarray:
    """Returns bool [H, W]: pixels whose right or lower neighbour is of another class."""
    edge = np.zeros(pred.shape, bool)
    edge[:, :-1] |= pred[:, :-1] != pred[:, 1:]
    edge[:-1] |= pred[:-1] != pred[1:]
    return edge


def _present(shown: np.ndarray | Iterable[int]) -> np.ndarray:
    return np.unique(np.asarray(shown if isinstance(shown, np.ndarray) else list(shown)))


def _legend(
    width: int, present: np.ndarray, class_names: Sequence[str], colors: Colors
) -> np.ndarray:
    """Draws a strip of colour patches and names, at least `width` wide, in as many columns as
    fit."""
    names = drawable_names(class_names)
    entries = [
        ("ignored", None)
        if index == IGNORE_LABEL and len(colors) <= IGNORE_LABEL
        else (names[index], tuple(int(part) for part in colors[index]))
        for index in map(int, present)
    ]
    size = _font_size(width)
    font = ImageFont.load_default(size=size)
    patch, margin = size, size // 2
    cell = max((int(font.getlength(name)) for name, _ in entries), default=0) + patch + 3 * margin
    width = max(width, cell + margin)
    columns = (width - margin) // cell
    rows = -(-len(entries) // columns)
    line = size + margin
    strip = Image.new("RGB", (width, rows * line + margin), _PAPER)
    draw = ImageDraw.Draw(strip)
    for number, (name, color) in enumerate(entries):
        row, column = divmod(number, columns)
        x, y = margin + column * cell, margin + row * line
        if color is None:
            strip.paste(Image.fromarray(stripes(patch + 1, patch + 1)), (x, y))
        draw.rectangle((x, y, x + patch, y + patch), fill=color, outline=_FRAME)
        draw.text((x + patch + margin, y + patch / 2), name, fill=_INK, font=font, anchor="lm")
    return np.asarray(strip)


def stripes(height: int, width: int) -> np.ndarray:
    """Returns what ignored pixels look like, uint8 [height, width, 3]."""
    rows, columns = np.indices((height, width))
    stripe = (rows + columns) % 8 < 2
    return np.where(stripe, 165, 228).astype(np.uint8)[..., None].repeat(3, axis=-1)


def _font_size(width: int) -> int:
    return max(12, width // 56)


def titled(panel: np.ndarray, text: str) -> np.ndarray:
    """Returns the image with a line of text above it."""
    return stack([_title_bar(panel.shape[1], text, 10), panel])


def _title_bar(width: int, text: str, extra: int) -> np.ndarray:
    """Returns one line of text, as large as fits in the width."""
    text = drawable(text)
    size = max(12, min(22, width // 26))
    font = ImageFont.load_default(size=size)
    while size > 8 and font.getlength(text) > width - 8:
        size -= 1
        font = ImageFont.load_default(size=size)
    bar = Image.new("RGB", (width, size + extra), _PAPER)
    ImageDraw.Draw(bar).text((4, (size + extra) / 2), text, fill=_INK, font=font, anchor="lm")
    return np.asarray(bar)


def stack(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the parts below each other, all as wide as the widest (paper on the right)."""
    width = max(part.shape[1] for part in parts)
    rows = []
    for part in parts:
        row = np.full((part.shape[0], width, 3), _PAPER, np.uint8)
        row[:, : part.shape[1]] = part
        rows.append(row)
    return np.vstack(rows)
