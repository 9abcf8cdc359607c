"""Implements `python -m flaxseg tune-crf`: a coarse-to-fine search for the parameters of a CRF.

(Krähenbühl and Koltun 2011, section 4; DeepLab, Chen et al. 2015 and 2018, experiments: on 100
images of the validation set, with the smoothness kernel fixed.)
"""

import argparse
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

import flaxseg
from flaxseg.errors import ConfigError, DataError
from flaxseg.files import write_text
from flaxseg.programs import arguments
from flaxseg.progress import several
from flaxseg.settings import above

if TYPE_CHECKING:  # slow to import, and `--help` needs none of it
    from flaxseg.crf import CrfPreset
    from flaxseg.evaluation.metrics import SegmentationMetrics
    from flaxseg.inference import Segmenter

NAME = "tune-crf"
SUMMARY = "search the parameters of a CRF"
TEXT = """Searches the parameters of a dense CRF for a saved model, as the papers did: tries all
combinations of some values of w1, sigma_alpha and sigma_beta, then those around the best one. The
smoothness kernel stays fixed. Prints a table, and the text for --crf of evaluate and predict.
"""
EPILOG = """examples:
  python -m flaxseg tune-crf runs/camvid --data=camvid --split=val --out=runs/crf
  python -m flaxseg tune-crf runs/camvid --data=camvid --w1 3 5 --sigma_alpha 40 80 \\
      --sigma_beta 4 --limit=20
"""

SEARCHED = ("w1", "sigma_alpha", "sigma_beta")
_SHOWN = 20

Point = tuple[float, ...]  # values of SEARCHED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.model(parser)
    arguments.data_flag(parser)
    arguments.split(parser, "val, or else the evaluation split")
    arguments.data_dir(parser)
    arguments.manual_dir(parser)
    arguments.output_stride(parser)
    arguments.protocol(parser)
    for name, values, what in (
        ("w1", (3.0, 5.0), "weights of the appearance kernel"),
        ("sigma_alpha", (40.0, 60.0, 80.0), "its standard deviations in position, in pixels"),
        ("sigma_beta", (3.0, 5.0), "its standard deviations in colour, in grey levels"),
    ):
        arguments.flag(
            parser,
            f"--{name}",
            type=arguments.number(above(0)),
            nargs="+",
            default=values,
            metavar="X",
            help=f"{what} (default: {' '.join(f'{v:g}' for v in values)})",
        )
    text = "searches around the best point, each at half the distance"
    arguments.count(parser, "--refinements", "N", 1, text, least=0, most=20)
    arguments.count(parser, "--limit", "N", 100, "number of images, spread over the split")
    arguments.crf(parser, default="deeplab_v2_vgg16")
    parser.add_argument("--out", metavar="DIR", help="folder for crf.json")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg import data
    from flaxseg.crf.options import format_crf
    from flaxseg.inference import Segmenter

    base = arguments.crf_of(args)
    card = flaxseg.read_model_card(args.model)
    name, info = arguments.data_of(args, card)
    usual = data.split_for("val", info.splits) or info.eval_split
    split = data.chosen_split(info, args.split, usual)
    records = data.open_split(name, split, args.data_dir)
    out = arguments.output_folder(args.out) if args.out else None
    segmenter = Segmenter(*arguments.load_model(args), arguments.protocol_of(args, card))
    with several("inference") as show:
        tuned = tune_crf(
            segmenter,
            records,
            info.num_classes,
            base,
            {name: getattr(args, name) for name in SEARCHED},
            limit=args.limit,
            refinements=args.refinements,
            progress=show,
        )
    print(f"{card['model']} from {args.model} on {info.name} {split}: {tuned.images} images\n")
    print(tuned.table())
    print(f'\nbest: --crf="{format_crf(tuned.best)}"')
    if out is not None:
        write_text(out / "crf.json", json.dumps(tuned.to_dict(), indent=2) + "\n")
        arguments.print_written([out / "crf.json"])
    return 0


@dataclasses.dataclass(frozen=True)
class TunedCrf:
    """Holds what the search found.

    Attributes:
      best: the CRF with the highest mIoU; the first one tried if there are several.
      without: the metrics of the network alone.
      tried: all CRFs with their metrics, best first.
      images: how many images they were measured on.
    """

    best: "CrfPreset"
    without: "SegmentationMetrics"
    tried: "tuple[tuple[CrfPreset, SegmentationMetrics], ...]"
    images: int

    def table(self) -> str:
        """Returns the best of the CRFs tried and the network alone as a table."""
        from flaxseg.crf.options import describe_crf

        head = f"{'w1':>6}{'sigma_alpha':>13}{'sigma_beta':>12}{'mIoU %':>9}{'accuracy %':>12}"
        lines = [head, "-" * len(head)]
        for crf, metrics in self.tried[:_SHOWN]:
            values = describe_crf(crf)
            lines.append(
                f"{values['w1']:>6g}{values['sigma_alpha']:>13g}{values['sigma_beta']:>12g}"
                f"{100 * metrics.miou:>9.2f}{100 * metrics.pixel_accuracy:>12.2f}"
            )
        if len(self.tried) > _SHOWN:
            lines.append(f"... and {len(self.tried) - _SHOWN} more")
        lines += [
            "-" * len(head),
            f"{'without CRF':>31}{100 * self.without.miou:>9.2f}"
            f"{100 * self.without.pixel_accuracy:>12.2f}",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Returns the content of crf.json."""
        from flaxseg.crf.options import describe_crf, format_crf

        return {
            "best": describe_crf(self.best),
            "crf": format_crf(self.best),
            "images": self.images,
            "without": {"miou": self.without.miou, "pixel_accuracy": self.without.pixel_accuracy},
            "tried": [
                {**describe_crf(crf), "miou": m.miou, "pixel_accuracy": m.pixel_accuracy}
                for crf, m in self.tried
            ],
        }


def tune_crf(
    segmenter: "Segmenter",
    records: Sequence[Mapping],
    num_classes: int,
    base: "CrfPreset",
    grid: Mapping[str, Sequence[float]],
    *,
    limit: int = 100,
    refinements: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> TunedCrf:
    """Tries all combinations of the values, then those around the best one at half the distance.

    Args:
      segmenter: the network with its protocol, without a CRF.
      records: records with "image", "label" and "id".
      num_classes: number of classes.
      base: the CRF whose smoothness kernel, normalisation and iterations are kept.
      grid: values of `w1`, `sigma_alpha` and `sigma_beta`.
      limit: number of images to measure on, spread evenly over the records.
      refinements: rounds after the first one; each halves the distances.
      progress: called with the kind of work, the inferences done, and all of them.

    Raises:
      ConfigError: a list of values is empty, or a value is impossible.
      DataError: there are no records.
    """
    _check_search(records, grid)
    number = min(limit, len(records))
    indices = [len(records) * k // number for k in range(number)]

    def measure(what: str, points: Sequence[Point]) -> "tuple[dict, SegmentationMetrics]":
        def show(done: int) -> None:
            if progress is not None:
                progress(what, done, number * len(points))

        images = (records[index] for index in indices)
        return _measure(segmenter, images, num_classes, base, points, show)

    steps = {name: _half_distance(grid[name]) for name in SEARCHED}
    grid_points = itertools.product(*(sorted(set(map(float, grid[name]))) for name in SEARCHED))
    scores, without = measure("coarse search", list(grid_points))
    for search in range(1, refinements + 1):
        around = [point for point in _around(_best(scores), steps) if point not in scores]
        if not around:
            break
        scores |= measure(f"refinement {search}", around)[0]
        steps = {name: step / 2 for name, step in steps.items()}
    ranked = sorted(scores, key=lambda point: -scores[point].miou)
    return TunedCrf(
        best=_at(base, _best(scores)),
        without=without,
        tried=tuple((_at(base, point), scores[point]) for point in ranked),
        images=number,
    )


def _check_search(records: Sequence[Mapping], grid: Mapping[str, Sequence[float]]) -> None:
    if len(records) == 0:
        raise DataError("the split holds no images, so there is nothing to tune the CRF on.")
    for name in SEARCHED:
        values = grid[name]
        if not values or not all(0 < value < np.inf for value in values):
            raise ConfigError(f"{name} is {list(values)}; give numbers above 0.")


def _measure(
    segmenter: "Segmenter",
    records: Iterable[Mapping],
    num_classes: int,
    base: "CrfPreset",
    points: Sequence[Point],
    show: Callable[[int], None],
) -> "tuple[dict[Point, SegmentationMetrics], SegmentationMetrics]":
    """Returns the metrics with the CRF of each point, and those of the network alone."""
    from flaxseg.crf import dense_crf
    from flaxseg.evaluation.metrics import ConfusionMatrix

    without = ConfusionMatrix(num_classes)
    matrices = {point: ConfusionMatrix(num_classes) for point in points}
    done = 0
    for record in records:
        image, label = record["image"], record["label"]
        unary = segmenter.unary(image)
        without.update(label, np.argmin(unary, -1), source=f"image {record['id']!r}")
        for point in points:
            marginals = dense_crf(unary, image, _at(base, point))
            matrices[point].update(label, np.argmax(marginals, -1))
            done += 1
            show(done)
    return {point: matrix.metrics() for point, matrix in matrices.items()}, without.metrics()


def _best(scores: "Mapping[Point, SegmentationMetrics]") -> Point:
    return max(scores, key=lambda point: scores[point].miou)


def _at(base: "CrfPreset", point: Point) -> "CrfPreset":
    """Returns the CRF `base` with the searched parameters of a point."""
    from flaxseg.crf.options import describe_crf, make_crf

    return make_crf(**(describe_crf(base) | dict(zip(SEARCHED, point, strict=True))))


def _half_distance(values: Sequence[float]) -> float:
    """Returns half the mean distance of the values; 0 for a single one, which is not refined."""
    return (max(values) - min(values)) / max(len(set(values)) - 1, 1) / 2


def _around(point: Point, steps: Mapping[str, float]) -> list[Point]:
    """Returns the grid of points one step around a point, itself included."""
    choices = [
        [v for v in (value - steps[name], value, value + steps[name]) if v > 0 or v == value]
        for name, value in zip(SEARCHED, point, strict=True)
    ]
    return list(dict.fromkeys(itertools.product(*choices)))
