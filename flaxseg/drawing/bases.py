"""Draws all learned bases in one image."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flaxseg.data.label_bases import LabelBases
from flaxseg.drawing.texts import drawable_names

_PAPER = (255, 255, 255)
_INK = (32, 33, 36)
_NEGATIVE = np.array([178, 24, 43], np.float32)
_POSITIVE = np.array([33, 102, 172], np.float32)
_TILE, _GAP = 64, 6


def draw_bases(bases: LabelBases) -> np.ndarray:
    """Draws a line for each class: its mean patch, its components, and the filters made of them.

    The mean goes from white, never the class, to black, always. Components and filters are white
    at 0, blue above and red below, each with its own largest value in full colour.

    Returns:
      uint8 `[H, W, 3]`.
    """
    num_bases = bases.components.shape[1]
    font = ImageFont.load_default(size=15)
    names = drawable_names(bases.class_names)
    left = 24 + int(max(map(font.getlength, names)))
    step = _TILE + _GAP
    starts = [left, left + step + 18, left + step + 36 + num_bases * step]
    width = starts[2] + num_bases * step + 12
    head = 52
    canvas = Image.new("RGB", (width, head + len(bases.class_names) * step + 8), _PAPER)
    draw = ImageDraw.Draw(canvas)
    side, size = bases.mean.shape[-1], bases.filters.shape[-1]
    titles = ("mean", f"components, {side} x {side} pixels", f"filters, {size} x {size} cells")
    for start, title in zip(starts, titles, strict=True):
        draw.text((start, 8), title, fill=_INK, font=font)
    for start in starts[1:]:
        for number in range(num_bases):
            place = (start + number * step + _TILE // 2, head - 14)
            draw.text(place, str(number + 1), fill=_INK, font=font, anchor="mm")
    for row, name in enumerate(names):
        top = head + row * step
        draw.text((12, top + _TILE // 2), name, fill=_INK, font=font, anchor="lm")
        _paste(canvas, _grey(bases.mean[row]), starts[0], top)
        for start, tiles in zip(starts[1:], (bases.components, bases.filters), strict=True):
            for number, tile in enumerate(tiles[row]):
                _paste(canvas, _signed(tile), start + number * step, top)
    return np.asarray(canvas)


def _paste(canvas: Image.Image, tile: np.ndarray, x: int, y: int) -> None:
    enlarged = Image.fromarray(tile).resize((_TILE, _TILE), Image.Resampling.NEAREST)
    framed = Image.new("RGB", (_TILE + 2, _TILE + 2), (190, 193, 198))
    framed.paste(enlarged, (1, 1))
    canvas.paste(framed, (x - 1, y - 1))


def _grey(values: np.ndarray) -> np.ndarray:
    shade = np.rint(255 * (1 - np.clip(values, 0, 1))).astype(np.uint8)
    return shade[..., None].repeat(3, -1)


def _signed(values: np.ndarray) -> np.ndarray:
    value = (values / max(np.abs(values).max(), 1e-12))[..., None]
    color = np.where(value >= 0, _POSITIVE, _NEGATIVE)
    return np.rint(255 + np.abs(value) * (color - 255)).astype(np.uint8)
