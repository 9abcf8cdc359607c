"""Reports what the check of a data set found: problems, and how often classes and sizes occur."""

import collections
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data.raw.problems import KINDS, Problem

_MAX_SIZES = 12  # lines of the table of sizes; JSON lists all


@dataclasses.dataclass(eq=False)
class Statistics:
    """Counts the usable images of a split.

    Attributes:
      num_images: the number of images.
      pixels: int64 [C], pixels of each class.
      class_images: int64 [C], images that hold the class.
      pixels_beside: int64 [C], labelled pixels of any class in the images that hold the class.
      ignored: pixels whose label is "ignore".
      sizes: (H, W) -> number of images.
    """

    num_images: int
    pixels: np.ndarray
    class_images: np.ndarray
    pixels_beside: np.ndarray
    ignored: int
    sizes: collections.Counter[tuple[int, int]]

    @classmethod
    def zero(cls, num_classes: int) -> "Statistics":
        """Returns counts of zero."""
        counts = [np.zeros(num_classes, np.int64) for _ in range(3)]
        return cls(0, *counts, 0, collections.Counter())

    def add(self, size: tuple[int, int], pixels: np.ndarray) -> None:
        """Counts one image.

        Args:
          size: its (H, W).
          pixels: int64 [256], pixels of each train id, including that of "ignore".
        """
        of_classes = pixels[: len(self.pixels)]
        self.num_images += 1
        self.pixels += of_classes
        self.class_images += of_classes > 0
        self.pixels_beside += np.where(of_classes > 0, of_classes.sum(), 0)
        self.ignored += int(pixels[IGNORE_LABEL])
        self.sizes[size] += 1

    def absent(self, class_names: Sequence[str]) -> list[str]:
        """Returns the names of the classes without a pixel."""
        return [name for name, n in zip(class_names, self.pixels, strict=True) if not n]

    def __add__(self, other: "Statistics") -> "Statistics":
        """Returns the counts of both together."""
        return Statistics(
            self.num_images + other.num_images,
            self.pixels + other.pixels,
            self.class_images + other.class_images,
            self.pixels_beside + other.pixels_beside,
            self.ignored + other.ignored,
            self.sizes + other.sizes,
        )

    def median_frequency_weights(self) -> np.ndarray:
        """Returns a weight per class, float64 [C]: the median frequency over that of the class.

        The frequency of a class is its number of pixels over the number of labelled pixels in the
        images that hold it. A class without a pixel has weight 1 and is not in the median.

        Source: Eigen and Fergus, "Predicting depth, surface normals and semantic labels with a
        common multi-scale convolutional architecture", ICCV 2015, where unlabelled pixels count
        as well.
        """
        present = self.pixels > 0
        weights = np.ones(len(self.pixels))
        if present.any():
            frequency = self.pixels[present] / self.pixels_beside[present]
            weights[present] = np.median(frequency) / frequency
        return weights


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """Holds the result of `verify_data`.

    Attributes:
      name: the name of the data set.
      source: where its files are.
      class_names, class_colors: of its classes.
      num_pairs: the number of pairs in each split.
      problems: everything that is wrong, and warnings.
      statistics: counts over the usable images of each split.
      unusable: the indices, in each split, of the pairs that cannot be used.
      training_split: the split from which the class weights are computed; "" if no split is meant
        for training.
    """

    name: str
    source: str
    class_names: tuple[str, ...]
    class_colors: tuple[tuple[int, int, int], ...]
    num_pairs: Mapping[str, int]
    problems: tuple[Problem, ...]
    statistics: Mapping[str, Statistics]
    unusable: Mapping[str, frozenset[int]]
    training_split: str = ""

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Returns the problems that make the check fail."""
        return tuple(problem for problem in self.problems if problem.is_error)

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Returns the problems that do not."""
        return tuple(problem for problem in self.problems if not problem.is_error)

    @property
    def total(self) -> Statistics:
        """Returns the counts of all splits together."""
        return sum(self.statistics.values(), Statistics.zero(len(self.class_names)))

    def class_weights(self) -> np.ndarray | None:
        """Returns the median-frequency weights of the training split, float64 [C], if there is
        one.
        """
        if not self.training_split:
            return None
        return self.statistics[self.training_split].median_frequency_weights()

    def to_dict(self) -> dict[str, Any]:
        """Returns the whole report for JSON."""
        total, weights = self.total, self.class_weights()
        return {
            "data": self.name,
            "source": self.source,
            "ok": not self.errors,
            "num_errors": len(self.errors),
            "num_warnings": len(self.warnings),
            "problems": [problem.to_dict() for problem in self.problems],
            "splits": {
                split: {
                    "pairs": self.num_pairs[split],
                    "unusable": len(self.unusable[split]),
                    "ignored_pixels": counted.ignored,
                    "class_pixels": _by_name(self.class_names, counted.pixels),
                    "class_images": _by_name(self.class_names, counted.class_images),
                }
                for split, counted in self.statistics.items()
            },
            "class_pixels": _by_name(self.class_names, total.pixels),
            "ignored_pixels": total.ignored,
            "median_frequency_weights": None
            if weights is None
            else {
                name: round(float(weight), 6)
                for name, weight in zip(self.class_names, weights, strict=True)
            },
            "sizes": [
                {"height": size[0], "width": size[1], "images": number}
                for size, number in sorted(total.sizes.items())
            ],
        }

    def text(self) -> str:
        """Returns the whole report as text."""
        parts = [f"{self.name} from {self.source}: {self.splits_line()}"]
        for title, problems in (("problem", self.errors), ("warning", self.warnings)):
            if problems:
                parts.append(_list(title, problems))
        if self.total.num_images:
            parts += [self._class_table(), self._weights_line(), self._size_table()]
        if not self.errors:
            parts.append(f"No problem found in {sum(self.num_pairs.values())} pairs.")
        return "\n\n".join(parts)

    def splits_line(self) -> str:
        """Returns how many pairs each split has and how many of them cannot be used."""
        parts = []
        for split, number in self.num_pairs.items():
            bad = len(self.unusable[split])
            parts.append(f"{split} {number}" + (f" ({bad} unusable)" if bad else ""))
        return ", ".join(parts)

    def _class_table(self) -> str:
        total, weights = self.total, self.class_weights()
        width = max(len(name) for name in (*self.class_names, "ignored"))
        splits = [f"{split} %" for split in self.statistics] if len(self.statistics) > 1 else []
        column = max([9, *map(len, splits)])
        head = f"{'':>3}  {'class':<{width}}  {'pixels':>15}  {'share %':>7}  {'images':>8}"
        head += "".join(f"  {split:>{column}}" for split in splits)
        head += "" if weights is None else f"  {'weight':>8}"
        lines = [head, "-" * len(head)]
        counted = max(1, int(total.pixels.sum()))
        for index, name in enumerate(self.class_names):
            shares = "".join(
                f"  {100 * of_split.pixels[index] / max(1, of_split.pixels.sum()):>{column}.3f}"
                for of_split in self.statistics.values()
                if splits
            )
            lines.append(
                f"{index:>3}  {name:<{width}}  {total.pixels[index]:>15,}  "
                f"{100 * total.pixels[index] / counted:>7.3f}  {total.class_images[index]:>8}"
                f"{shares}" + ("" if weights is None else f"  {weights[index]:>8.3f}")
            )
        ignored = 100 * total.ignored / (counted + total.ignored)
        lines.append(
            f"{'':>3}  {'ignored':<{width}}  {total.ignored:>15,}  ({ignored:.3f} % of all pixels)"
        )
        return "\n".join(lines)

    def _weights_line(self) -> str:
        weights = self.class_weights()
        if weights is None:
            return (
                "No median-frequency weights: no split is meant for training by its name, such as "
                "train or training"
            )
        numbers = ", ".join(f"{weight:.3g}" for weight in weights)
        return (
            f"Median-frequency weights, from {self.training_split}:\n"
            f'  --config.loss.class_weights="({numbers})"'
        )

    def _size_table(self) -> str:
        """Returns a table of all sizes, or, if they are many, of ranges of heights and widths."""
        sizes = self.total.sizes
        if len(sizes) <= _MAX_SIZES:
            lines = [f"{'height x width':>14}  {'images':>8}"]
            for (height, width), number in sizes.most_common():
                lines.append(f"{height:>6} x {width:<5}  {number:>8}")
            return "\n".join(lines)
        heights, widths = _in_ranges(sizes, 0), _in_ranges(sizes, 1)
        lines = [f"{'height':>12}  {'images':>8}    {'width':>12}  {'images':>8}"]
        for height, width in itertools.zip_longest(heights, widths, fillvalue=("", "")):
            left = f"{height[0]:>12}  {height[1]:>8}"
            lines.append(f"{left}    {width[0]:>12}  {width[1]:>8}".rstrip())
        return "\n".join(lines)


def _list(title: str, problems: tuple[Problem, ...]) -> str:
    """Returns a list of all problems, grouped by kind."""
    number = f"1 {title}" if len(problems) == 1 else f"{len(problems)} {title}s"
    lines = [f"{number}:"]
    for kind, meaning in KINDS.items():
        of_kind = [problem for problem in problems if problem.kind == kind]
        if of_kind:
            lines.append(f"  {kind}: {meaning} ({len(of_kind)})")
            lines += [f"    {problem}" for problem in of_kind]
    return "\n".join(lines)


def _in_ranges(sizes: Mapping[tuple[int, int], int], axis: int) -> list[tuple[str, int]]:
    """Returns ("300..349", number of images) for at most 12 ranges of heights or widths."""
    least, greatest = min(size[axis] for size in sizes), max(size[axis] for size in sizes)
    step = next(
        unit * 10**power
        for power in itertools.count()
        for unit in (1, 2, 5)
        if greatest // (unit * 10**power) - least // (unit * 10**power) < _MAX_SIZES
    )
    counts = collections.Counter[int]()
    for size, number in sizes.items():
        counts[size[axis] // step] += number
    return [
        (f"{part * step}..{part * step + step - 1}" if step > 1 else f"{part}", counts[part])
        for part in range(least // step, greatest // step + 1)
    ]


def _by_name(names: tuple[str, ...], counts: np.ndarray) -> dict[str, int]:
    return {name: int(number) for name, number in zip(names, counts, strict=True)}
