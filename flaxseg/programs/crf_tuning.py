"""The search for the parameters of a dense CRF on labelled pictures, coarse to fine.

(Krähenbühl and Koltun 2011, section 4; DeepLab, Chen et al. 2015 and 2018, experiments: on 100
pictures of the validation set, with the smoothness kernel fixed.)
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
import numpy as np

from flaxseg.crf import CrfPreset, dense_crf
from flaxseg.crf.options import describe_crf, format_crf, make_crf
from flaxseg.errors import ConfigError, DataError
from flaxseg.evaluation.metrics import ConfusionMatrix, SegmentationMetrics
from flaxseg.layers import normalize

SEARCHED = ("w1", "sigma_alpha", "sigma_beta")
_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class TunedCrf:
    """What the search found.

    Attributes:
      best: the CRF with the highest mIoU; of equal ones the first tried.
      without: the metrics of the network alone.
      tried: all CRFs with their metrics, best first.
      pictures: number of pictures.
    """

    best: CrfPreset
    without: SegmentationMetrics
    tried: tuple[tuple[CrfPreset, SegmentationMetrics], ...]
    pictures: int

    def table(self) -> str:
        """The best of the CRFs tried, and the network alone."""
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
        """For a JSON file."""
        return {
            "best": describe_crf(self.best),
            "crf": format_crf(self.best),
            "pictures": self.pictures,
            "without": {"miou": self.without.miou, "pixel_accuracy": self.without.pixel_accuracy},
            "tried": [
                {**describe_crf(crf), "miou": m.miou, "pixel_accuracy": m.pixel_accuracy}
                for crf, m in self.tried
            ],
        }


def tune_crf(
    model: nn.Module,
    variables: Mapping,
    records: Sequence[Mapping],
    num_classes: int,
    base: CrfPreset,
    grid: Mapping[str, Sequence[float]],
    *,
    limit: int = 100,
    refinements: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> TunedCrf:
    """Tries all combinations of the values, then those around the best one at half the distance.

    Args:
      model: a flaxseg model.
      variables: its parameters and BatchNorm statistics.
      records: with "image", "label" and "id".
      num_classes: number of classes.
      base: gives the smoothness kernel, the normalisation and the iterations.
      grid: values of `w1`, `sigma_alpha` and `sigma_beta`.
      limit: pictures to measure on, spread evenly over the records.
      refinements: rounds after the first; each halves the distances.
      progress: called with what is done, how much of it, and of how much.

    Raises:
      ConfigError: a list of values is empty, or a value is impossible.
      DataError: there are no records.
    """
    if len(records) == 0:
        raise DataError("the split holds no images, so there is nothing to tune the CRF on.")
    for name in SEARCHED:
        values = grid[name]
        if not values or not all(0 < value < np.inf for value in values):
            raise ConfigError(f"{name} is {list(values)}; give numbers above 0.")
    number = min(limit, len(records))
    indices = [len(records) * k // number for k in range(number)]
    logits = jax.jit(
        lambda image: model.apply(variables, normalize(image[None], model.normalization)).logits[0]
    )
    steps = {name: _half_distance(grid[name]) for name in SEARCHED}
    pending = list(itertools.product(*(sorted(set(map(float, grid[n]))) for n in SEARCHED)))
    scores: dict[tuple, SegmentationMetrics] = {}
    without = ConfusionMatrix(num_classes)
    for search in range(refinements + 1):
        what = "coarse search" if search == 0 else f"refinement {search}"
        matrices = {point: ConfusionMatrix(num_classes) for point in pending}
        for done, index in enumerate(indices):
            record = records[index]
            image, label = record["image"], record["label"]
            unary = -logits(image)
            if search == 0:
                without.update(label, np.argmin(unary, -1), source=f"image {record['id']!r}")
            for tried, point in enumerate(pending):
                marginals = dense_crf(unary, image, _at(base, point))
                matrices[point].update(label, np.argmax(marginals, -1))
                if progress is not None:
                    progress(what, done * len(pending) + tried + 1, len(indices) * len(pending))
        scores |= {point: matrix.metrics() for point, matrix in matrices.items()}
        best = max(scores, key=lambda point: scores[point].miou)
        pending = [point for point in _around(best, steps) if point not in scores]
        steps = {name: step / 2 for name, step in steps.items()}
        if not pending:
            break
    ranked = sorted(scores, key=lambda point: -scores[point].miou)
    return TunedCrf(
        best=_at(base, best),
        without=without.metrics(),
        tried=tuple((_at(base, point), scores[point]) for point in ranked),
        pictures=len(indices),
    )


def write_tuned_crf(out: pathlib.Path, tuned: TunedCrf) -> pathlib.Path:
    """Writes crf.json; it appears whole or not at all."""
    path, part = out / "crf.json", out / ".crf.json.part"
    try:
        part.write_text(json.dumps(tuned.to_dict(), indent=2) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"could not write to {out}: {error.strerror or error}.") from error
    return path


def _at(base: CrfPreset, point: tuple[float, ...]) -> CrfPreset:
    return make_crf(**(describe_crf(base) | dict(zip(SEARCHED, point, strict=True))))


def _half_distance(values: Sequence[float]) -> float:
    """Half the mean distance of the values; 0 for one alone, which is not refined."""
    return (max(values) - min(values)) / max(len(set(values)) - 1, 1) / 2


def _around(point: tuple[float, ...], steps: Mapping[str, float]) -> list[tuple[float, ...]]:
    choices = [
        [v for v in (value - steps[name], value, value + steps[name]) if v > 0 or v == value]
        for name, value in zip(SEARCHED, point, strict=True)
    ]
    return list(dict.fromkeys(itertools.product(*choices)))
