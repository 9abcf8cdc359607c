"""Draws how often each class and each size of images occurs in a data set."""

import collections
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flaxseg.data import Report
from flaxseg.drawing.texts import drawable, drawable_names

_PAPER = (255, 255, 255)
_INK = (32, 33, 36)
_PALE = (110, 113, 120)
_FRAME = (190, 193, 198)
_BAR = (84, 124, 178)
_MARGIN = 24
_LINE = 24
_BARS = 420  # width of the longest bar of a class
_HISTOGRAM = (300, 170)  # width and height
_MAX_BINS, _WIDEST_BIN = 24, 40


def draw_report(report: Report) -> np.ndarray:
    """Draws the shares of the classes, and histograms of heights and widths.

    The bars of the classes are logarithmic, as the shares differ by orders of magnitude.

    Returns:
      uint8 `[H, W, 3]`.
    """
    total = report.total
    font, small = ImageFont.load_default(size=15), ImageFont.load_default(size=12)
    names = drawable_names(report.class_names)
    left = _MARGIN + int(max(map(font.getlength, (*names, "ignored")))) + 40
    width = max(left + _BARS + 190, 2 * (_MARGIN + 56 + _HISTOGRAM[0]) + _MARGIN)
    top = 100
    classes_end = top + (len(report.class_names) + 1) * _LINE
    height = classes_end + 52 + _HISTOGRAM[1] + 40
    canvas = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    title = drawable(f"{report.name}: {report.splits_line()}")
    _fitted(draw, (_MARGIN, 14), title, 20, width - 2 * _MARGIN)
    draw.text((_MARGIN, 46), "share of the labelled pixels", fill=_INK, font=font)
    draw.text((left + _BARS + 76, top - 22), "in images", fill=_PALE, font=small)
    _draw_classes(draw, report, left, top, font, small)
    below = classes_end + 52
    sizes = total.sizes
    for column, (what, axis) in enumerate((("height", 0), ("width", 1))):
        x = _MARGIN + 44 + column * (_HISTOGRAM[0] + 80)
        counts: collections.Counter[int] = collections.Counter()
        for size, number in sizes.items():
            counts[size[axis]] += number
        draw.text((x, below - 26), f"{what} of images, pixels", fill=_INK, font=font)
        _draw_histogram(draw, counts, x, below, small)
    return np.asarray(canvas)


def _draw_classes(draw: ImageDraw.ImageDraw, report: Report, left: int, top: int, font, small):
    """Draws a bar for each class and for what is ignored, over a scale of powers of ten."""
    total = report.total
    labelled = max(1, int(total.pixels.sum()))
    rows: list[tuple[str, float, str, Sequence[int]]] = [
        (name, int(pixels) / labelled, f"{int(images)}", color)
        for name, pixels, images, color in zip(
            drawable_names(report.class_names),
            total.pixels,
            total.class_images,
            report.class_colors,
            strict=True,
        )
    ]
    rows.append(("ignored", total.ignored / (labelled + total.ignored), "", (228, 228, 228)))
    least = min((share for _, share, *_ in rows if share > 0), default=0.1)
    decades = max(1, min(6, math.ceil(-math.log10(least))))
    bottom = top + len(rows) * _LINE
    for power in range(decades + 1):
        x = left + _BARS * power // decades
        draw.line((x, top - 4, x, bottom), fill=(232, 234, 237))
        text = f"{100 * 10.0 ** (power - decades):g} %"
        draw.text((x, top - 22), text, fill=_PALE, font=small, anchor="ma")
    for row, (name, share, images, color) in enumerate(rows):
        y = top + row * _LINE
        draw.text((left - 12, y + _LINE // 2), name, fill=_INK, font=font, anchor="rm")
        if share > 0:
            end = max(2, round(_BARS * (1 + math.log10(share) / decades)))
            box = (left, y + 4, left + end, y + _LINE - 4)
            draw.rectangle(box, fill=tuple(color), outline=_FRAME)
        numbers = f"{100 * share:.3g} %" if share > 0 else "none"
        x = left + _BARS + 12
        draw.text((x, y + _LINE // 2), numbers, fill=_INK, font=font, anchor="lm")
        draw.text((x + 130, y + _LINE // 2), images, fill=_PALE, font=font, anchor="rm")


def _draw_histogram(
    draw: ImageDraw.ImageDraw, counts: collections.Counter[int], x: int, y: int, font
) -> None:
    """Draws bars over equal ranges of the values, with the number of images in the largest."""
    width, height = _HISTOGRAM
    draw.line((x, y + height, x + width, y + height), fill=_FRAME)
    if not counts:
        return
    edges = _edges(min(counts), max(counts))
    bins = [0] * (len(edges) - 1)
    for value, number in counts.items():
        bins[np.searchsorted(edges, value, side="right") - 1] += number
    most = max(bins)
    step = min(width / len(bins), _WIDEST_BIN)
    for number, count in enumerate(bins):
        if count:
            tall = max(1, round(height * count / most))
            box = (
                x + number * step + 1,
                y + height - tall,
                x + (number + 1) * step - 1,
                y + height,
            )
            draw.rectangle(box, fill=_BAR)
    draw.text((x - 6, y), f"{most}", fill=_PALE, font=font, anchor="rt")
    draw.text((x - 6, y + height), "0", fill=_PALE, font=font, anchor="rm")
    below = y + height + 6
    draw.text((x, below), f"{edges[0]}", fill=_PALE, font=font)
    last = edges[-1] - 1
    if last > edges[0]:
        end = x + round(step * len(bins))
        anchor = "ra" if end > x + 90 else "la"  # where there is no room between the two
        draw.text((end, below), f"{last}", fill=_PALE, font=font, anchor=anchor)


def _edges(least: int, greatest: int) -> list[int]:
    """Returns the edges of at most 24 equal ranges of whole numbers; the last one is beyond the
    greatest."""
    step = max(1, -(-(greatest - least + 1) // _MAX_BINS))
    number = -(-(greatest - least + 1) // step)
    return [least + i * step for i in range(number + 1)]


def _fitted(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, size: int, width: int
) -> None:
    """Draws one line of text, as large as fits."""
    font = ImageFont.load_default(size=size)
    while size > 9 and font.getlength(text) > width:
        size -= 1
        font = ImageFont.load_default(size=size)
    draw.text(place, text, fill=_INK, font=font)
