"""Renders an evaluation as one self-contained HTML page: no network, no other file.

Images are embedded as data and charts as SVG. A few lines of script toggle what lies over an image,
set its opacity, and sort tables.
"""

import base64
import dataclasses
import html
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from flaxseg.drawing.images import Colors, colorize, error_image
from flaxseg.evaluation.metrics import SegmentationMetrics
from flaxseg.files import write_text
from flaxseg.programs.report_frame import PAGE, SCRIPT, STYLE

# Larger images are reduced to this longer side.
_SIDE = 720
_JPEG_QUALITY = 85
# The chart's drawing area, in its own units.
_CHART = 520, 200
_MARGIN = 46, 10, 10, 24  # left, top, right, bottom


@dataclasses.dataclass(frozen=True, eq=False)
class ReportImage:
    """Holds an image that the page shows.

    Attributes:
      id: id of the record.
      miou: mIoU of this image alone, as a fraction.
      image: uint8 [H, W, 3].
      label: integers [H, W], 255 is "ignore".
      pred: integers [H, W].
    """

    id: str
    miou: float
    image: np.ndarray
    label: np.ndarray
    pred: np.ndarray


@dataclasses.dataclass(frozen=True)
class Curve:
    """Describes a line chart.

    Attributes:
      title: title above the chart.
      lines: points (step, value) by the name of the line.
      percent: whether values are fractions that are shown in per cent.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    percent: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class ReportData:
    """Holds the content of a page.

    Attributes:
      title: title of the page.
      facts: (name, value) pairs of the summary.
      metrics: metrics of the split.
      class_names: one name per class.
      class_colors: one RGB triple per class.
      curves: curves of the training run, if there was one.
      worst: images with the lowest mIoU, worst first.
      best: images with the highest mIoU, best first.
      records: (id, mIoU, pixel accuracy) of every image of the split; nan for an image of which
        all pixels are ignored.
      details: further sections by title: plain text, or settings that are shown as JSON.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    metrics: SegmentationMetrics
    class_names: Sequence[str]
    class_colors: Colors
    curves: Sequence[Curve] = ()
    worst: Sequence[ReportImage] = ()
    best: Sequence[ReportImage] = ()
    records: Sequence[tuple[str, float, float]] = ()
    details: Mapping[str, object] = dataclasses.field(default_factory=dict)


def render_page(report: ReportData) -> str:
    """Returns the page as text."""
    parts = [
        f"<h1>{_text(report.title)}</h1>",
        _facts(report),
        _section("Training", "".join(_chart(curve) for curve in report.curves)),
        _section("Classes", _classes(report)),
        _section("Confusion", _confusion(report)),
        _section("Worst images", _images(report.worst, report)),
        _section("Best images", _images(report.best, report)),
        _section("All images", _records(report)),
        *(_section(title, _detail(value)) for title, value in report.details.items()),
    ]
    return PAGE.format(title=_text(report.title), style=STYLE, body="\n".join(parts), script=SCRIPT)


def write_page(path: pathlib.Path, report: ReportData) -> None:
    """Writes the page.

    Raises:
      WriteError: it cannot be written there.
    """
    write_text(path, render_page(report))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>" if body else ""


def _facts(report: ReportData) -> str:
    metrics = report.metrics
    headline = (
        ("mIoU", metrics.miou),
        ("pixel accuracy", metrics.pixel_accuracy),
        ("mean accuracy", metrics.mean_accuracy),
        ("frequency-weighted IoU", metrics.frequency_weighted_iou),
    )
    tiles = "".join(
        f"<div class=tile><b>{_percent(value)}</b><span>{name}</span></div>"
        for name, value in headline
    )
    rows = "".join(
        f"<tr><th scope=row>{_text(name)}</th><td>{_text(value)}</td></tr>"
        for name, value in report.facts
    )
    return f"<div class=tiles>{tiles}</div><table class=facts>{rows}</table>"


def _classes(report: ReportData) -> str:
    metrics, rows = report.metrics, []
    pixels = metrics.matrix.sum(1)
    for index, name in enumerate(report.class_names):
        iou = metrics.iou[index]
        rows.append(
            f"<tr><td>{_swatch(report.class_colors[index])}{_text(name)}</td>"
            f"{_cell(iou, bar=True)}{_cell(metrics.accuracy[index])}"
            f"<td data-v={pixels[index]}>{pixels[index]:,}</td></tr>"
        )
    head = "<th>class</th><th>IoU</th><th>accuracy</th><th>pixels in labels</th>"
    return _sortable(head, rows)


def _confusion(report: ReportData) -> str:
    matrix = report.metrics.matrix
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    names = [_text(name) for name in report.class_names]
    head = "".join(f"<th class=turned><span>{name}</span></th>" for name in names)
    rows = []
    for i, name in enumerate(names):
        cells = "".join(
            f'<td style="--s:{share[i, j]:.3f}" class="{"right" if i == j else "wrong"}" '
            f'title="{name} predicted as {names[j]}: {share[i, j]:.2%}, {matrix[i, j]:,} pixels">'
            f"{_short(share[i, j])}</td>"
            for j in range(len(names))
        )
        rows.append(f"<tr><th scope=row>{name}</th>{cells}</tr>")
    return (
        "<p>Percentage of the pixels of the class on the left that were predicted as the class "
        "at the top.</p><div class=wide><table class=confusion>"
        f"<tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
    )


def _images(images: Sequence[ReportImage], report: ReportData) -> str:
    if not images:
        return ""
    return f"<div class=images>{''.join(_image(one, report) for one in images)}</div>"


def _image(entry: ReportImage, report: ReportData) -> str:
    image, label, pred = _reduced(entry)
    layers = {
        "truth": colorize(label, report.class_colors),
        "prediction": colorize(pred, report.class_colors),
        "errors": error_image(image, label, pred),
    }
    shown = "".join(
        f'<img class="layer {name}" alt="{name}" src="{_png(layer)}">'
        for name, layer in layers.items()
    )
    buttons = "".join(
        f"<button type=button data-layer={name} aria-pressed={'true' if pressed else 'false'}>"
        f"{name}</button>"
        for name, pressed in (
            ("image", False),
            ("truth", False),
            ("prediction", True),
            ("errors", False),
        )
    )
    present = np.union1d(np.unique(label), np.unique(pred))
    legend = " ".join(
        f"<span>{_swatch(report.class_colors[c])}{_text(report.class_names[c])}</span>"
        for c in present
        if c < len(report.class_names)
    )
    height, width = image.shape[:2]
    return (
        f"<figure data-show=prediction><figcaption><b>{_text(entry.id)}</b> mIoU "
        f'{_percent(entry.miou)}</figcaption><div class=stack style="aspect-ratio:{width}/'
        f'{height}"><img alt=image src="{_jpeg(image)}">{shown}</div>'
        f"<div class=controls>{buttons}<label>opacity <input type=range min=0 max=100 value=60>"
        f"</label></div><div class=legend>{legend}</div></figure>"
    )


def _records(report: ReportData) -> str:
    rows = [
        f"<tr><td>{_text(name)}</td>{_cell(miou, bar=True)}{_cell(accuracy)}</tr>"
        for name, miou, accuracy in report.records
    ]
    if not rows:
        return ""
    return _sortable("<th>image</th><th>mIoU</th><th>pixel accuracy</th>", rows)


def _detail(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, indent=2, default=str)
    return f"<details><summary>show</summary><pre>{_text(text)}</pre></details>"


def _sortable(head: str, rows: Sequence[str]) -> str:
    head = head.replace("<th>", "<th scope=col tabindex=0 aria-sort=none class=sort>")
    return (
        f"<div class=wide><table class=sortable><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(value: float, *, bar: bool = False) -> str:
    number = -1.0 if math.isnan(value) else value
    line = f'<i style="--v:{max(number, 0):.4f}"></i>' if bar else ""
    return f"<td data-v={number:.6f}{' class=bar' if bar else ''}>{line}{_percent(value)}</td>"


def _chart(curve: Curve) -> str:
    """Draws lines over steps, with the ends of both axes labelled."""
    points = [p for line in curve.lines.values() for p in line if math.isfinite(p[1])]
    if not points:
        return ""
    (width, height), (left, top, right, bottom) = _CHART, _MARGIN
    first, last = min(p[0] for p in points), max(p[0] for p in points)
    low, high = min(0.0, min(p[1] for p in points)), max(p[1] for p in points)
    ticks = _ticks(low, high)
    high = max(high, ticks[-1])

    def place(step: float, value: float) -> tuple[float, float]:
        x = left + (step - first) / max(last - first, 1e-12) * (width - left - right)
        y = height - bottom - (value - low) / max(high - low, 1e-12) * (height - top - bottom)
        return x, y

    parts = []
    for tick in ticks:
        _, y = place(first, tick)
        label = f"{100 * tick:g} %" if curve.percent else f"{tick:g}"
        parts.append(
            f"<line class=grid x1={left} x2={width - right} y1={y:.1f} y2={y:.1f} />"
            f"<text x={left - 6} y={y + 4:.1f} text-anchor=end>{label}</text>"
        )
    for step, anchor in {last: "end", first: "start"}.items():
        x, _ = place(step, low)
        parts.append(f"<text x={x:.1f} y={height - 6} text-anchor={anchor}>{step:g}</text>")
    for number, (name, line) in enumerate(curve.lines.items()):
        places = [(*place(*p), p) for p in line if math.isfinite(p[1])]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        dots = "".join(
            f"<circle cx={x:.1f} cy={y:.1f} r=3><title>{_text(name)}, step {p[0]:g}: "
            f"{f'{p[1]:.2%}' if curve.percent else f'{p[1]:.4g}'}</title></circle>"
            for x, y, p in places
        )
        parts.append(f'<g class="line l{number % 4}"><polyline points="{path}" />{dots}</g>')
    names = " ".join(
        f'<span class="key l{number % 4}">{_text(name)}</span>'
        for number, name in enumerate(curve.lines)
    )
    return (
        f"<figure class=chart><figcaption>{_text(curve.title)} {names}</figcaption>"
        f'<svg viewBox="0 0 {width} {height}" role=img aria-label="{_text(curve.title)}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Returns three to six round numbers from `low` to at least `high`."""
    span = max(high - low, 1e-12)
    unit = 10.0 ** math.floor(math.log10(span))
    step = next(unit * m for m in (0.2, 0.5, 1, 2) if span / (unit * m) <= 5)
    count = math.ceil(span / step - 1e-9)
    start = math.floor(low / step) * step
    return [round(start + step * i, 12) for i in range(count + 1)]


def _reduced(entry: ReportImage) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns image, label and prediction at a size for the page."""
    height, width = entry.label.shape
    factor = min(1.0, _SIDE / max(height, width))
    if factor == 1.0:
        return entry.image, entry.label, entry.pred
    size = max(1, round(width * factor)), max(1, round(height * factor))
    image = Image.fromarray(entry.image).resize(size, Image.Resampling.BOX)
    label, pred = (
        np.asarray(Image.fromarray(np.asarray(x, np.uint8)).resize(size, Image.Resampling.NEAREST))
        for x in (entry.label, entry.pred)
    )
    return np.asarray(image), label, pred


def _png(array: np.ndarray) -> str:
    image = Image.fromarray(array)
    if len(image.getcolors(256) or ()) > 0:  # few colours: a palette is a fraction of the size
        image = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    return _data(image, "png", optimize=True)


def _jpeg(array: np.ndarray) -> str:
    return _data(Image.fromarray(array), "jpeg", quality=_JPEG_QUALITY)


def _data(image: Image.Image, kind: str, **options) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _swatch(color: Sequence[int]) -> str:
    return f'<i class=swatch style="background:rgb({",".join(map(str, color))})"></i>'


def _text(value: object) -> str:
    return html.escape(str(value))


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f} %"


def _short(share: float) -> str:
    return "" if share < 0.005 else f"{100 * share:.0f}"
