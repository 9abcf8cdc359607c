"""Computes what Cityscapes reports beside mIoU: IoU of categories, and IoU weighted by instances.

The iIoU of a class is iTP / (iTP + FP + iFN), where each pixel of an instance counts as often as
the class's average instance is larger than this one, so that near and far ones weigh the same.
False positives belong to no instance and count as pixels. Pixels of groups of instances, which are
not told apart, are neither found nor missed. For a category, a pixel is right that is predicted as
any of its classes.

Source: Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016,
section 4.1; cityscapesScripts, `evaluation/evalPixelLevelSemanticLabeling.py`, whose average sizes
these are.
"""

import dataclasses

import numpy as np

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data.sets.cityscapes import CATEGORIES, INFO
from flaxseg.errors import DataError
from flaxseg.evaluation.metrics import SegmentationMetrics, json_number, percent

# Average pixels of an instance in the training set, of the classes that have instances.
_AVERAGE_PIXELS = {
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
_WEIGHTS = np.array([_AVERAGE_PIXELS.get(name, 0.0) for name in INFO.class_names])
_GROUPS = tuple(CATEGORIES.values())
_CATEGORY_OF = np.array(
    [next(c for c, group in enumerate(_GROUPS) if i in group) for i in range(INFO.num_classes)]
)
# Categories all of whose classes have instances.
_WITH_INSTANCES = tuple(bool((_WEIGHTS[list(group)] > 0).all()) for group in _GROUPS)


@dataclasses.dataclass(frozen=True, eq=False)
class CityscapesScores:
    """Holds the scores of a split, as fractions; nan where a value does not exist.

    Attributes:
      categories: metrics of the seven categories.
      class_iiou: float64 [19], nan for classes without instances; None if instances are not known.
      category_iiou: float64 [7], likewise.
    """

    categories: SegmentationMetrics
    class_iiou: np.ndarray | None = None
    category_iiou: np.ndarray | None = None

    @property
    def mean_class_iiou(self) -> float:
        """Returns the mean over the classes that have one."""
        return _mean(self.class_iiou)

    @property
    def mean_category_iiou(self) -> float:
        """Returns the mean over the categories that have one."""
        return _mean(self.category_iiou)

    def table(self) -> str:
        """Returns a text table of the categories, and of the classes that have instances."""
        lines = [f"{'category':<14}{'IoU %':>8}{'iIoU %':>9}"]
        category_iiou = self._or_nan(self.category_iiou, len(CATEGORIES))
        for name, iou, iiou in zip(CATEGORIES, self.categories.iou, category_iiou, strict=True):
            lines.append(f"{name:<14}{percent(iou):>8}{percent(iiou):>9}")
        lines.append(
            f"{'mean':<14}{percent(self.categories.miou):>8}{percent(self.mean_category_iiou):>9}"
        )
        if self.class_iiou is not None:
            lines += ["", f"{'class':<14}{'':>8}{'iIoU %':>9}"]
            for index, name in enumerate(INFO.class_names):
                if _WEIGHTS[index]:
                    lines.append(f"{name:<14}{'':>8}{percent(self.class_iiou[index]):>9}")
            lines.append(f"{'mean':<14}{'':>8}{percent(self.mean_class_iiou):>9}")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Returns the same numbers for a JSON file, None where a value does not exist."""
        found = {
            "category_miou": json_number(self.categories.miou),
            "categories": dict(zip(CATEGORIES, map(json_number, self.categories.iou), strict=True)),
        }
        if self.class_iiou is not None:
            found |= {
                "mean_class_iiou": json_number(self.mean_class_iiou),
                "class_iiou": dict(
                    zip(INFO.class_names, map(json_number, self.class_iiou), strict=True)
                ),
                "mean_category_iiou": json_number(self.mean_category_iiou),
                "category_iiou": dict(
                    zip(CATEGORIES, map(json_number, self.category_iiou), strict=True)
                ),
            }
        return found

    @staticmethod
    def _or_nan(values: np.ndarray | None, number: int) -> np.ndarray:
        return np.full(number, np.nan) if values is None else values


class InstanceCounts:
    """Counts the weighted pixels of instances that are found and missed, image by image."""

    def __init__(self):
        """Starts with nothing counted."""
        # Right and wrong pixels, by class and, where the right category is enough, by category.
        self._classes = np.zeros((2, INFO.num_classes))
        self._categories = np.zeros((2, len(CATEGORIES)))

    def update(
        self, instances: np.ndarray, classes: np.ndarray, pred: np.ndarray, source: str = ""
    ) -> None:
        """Counts one image.

        Args:
          instances: integers [H, W], 0 where there is no instance, as `read_instances` of the
            builder gives it.
          classes: train id of each instance by its number, or 255 if it does not count.
          pred: train ids [H, W].
          source: what an error message calls the image.

        Raises:
          DataError: sizes differ, or an instance is of a class that has none.
        """
        if instances.shape != pred.shape:
            raise DataError(
                f"the instances of {source or 'the image'} are {instances.shape} and the "
                f"prediction is {pred.shape} (height, width); give the files of this data set."
            )
        numbers, pred = instances.ravel(), pred.ravel()
        counts = np.bincount(numbers, minlength=len(classes))
        counted = (classes != IGNORE_LABEL) & (counts > 0)
        counted[0] = False
        strange = sorted({int(c) for c in classes[counted] if not _WEIGHTS[c]})
        if strange:
            raise DataError(
                f"{source or 'the image'} has instances of {INFO.class_names[strange[0]]!r}, "
                "which has none in Cityscapes; give its own instanceIds."
            )
        inside = counted[numbers]
        numbers, pred = numbers[inside], pred[inside]
        truth = classes[numbers]
        right = np.bincount(numbers[pred == truth], minlength=len(classes))
        near = np.bincount(
            numbers[_CATEGORY_OF[pred] == _CATEGORY_OF[truth]], minlength=len(classes)
        )
        which = np.flatnonzero(counted)
        weights = _WEIGHTS[classes[which]] / counts[which]
        for totals, found, places in (
            (self._classes, right, classes[which]),
            (self._categories, near, _CATEGORY_OF[classes[which]]),
        ):
            np.add.at(totals[0], places, weights * found[which])
            np.add.at(totals[1], places, weights * (counts - found)[which])

    def iiou(self, metrics: SegmentationMetrics) -> tuple[np.ndarray, np.ndarray]:
        """Returns the iIoU of classes, float64 [19], and of categories, [7]; nan where there is
        none.

        Args:
          metrics: of all pixels of the same images; they give the false positives.
        """
        return (
            _iiou(self._classes, metrics, _WEIGHTS > 0),
            _iiou(self._categories, metrics.merged(_GROUPS), np.array(_WITH_INSTANCES)),
        )


def cityscapes_scores(
    metrics: SegmentationMetrics, instances: InstanceCounts | None = None
) -> CityscapesScores:
    """Returns the scores of a split.

    Args:
      metrics: of Cityscapes' 19 classes.
      instances: counted over the same images; without them there is no iIoU.
    """
    iiou = instances.iiou(metrics) if instances is not None else ()
    return CityscapesScores(metrics.merged(_GROUPS), *iiou)


def _iiou(totals: np.ndarray, metrics: SegmentationMetrics, exists: np.ndarray) -> np.ndarray:
    false_positive = metrics.matrix.sum(0) - np.diagonal(metrics.matrix)
    union = totals.sum(0) + false_positive
    result = np.full(len(union), np.nan)
    np.divide(totals[0], union, out=result, where=exists & (union > 0))
    return result


def _mean(values: np.ndarray | None) -> float:
    if values is None or np.isnan(values).all():
        return float("nan")
    return float(np.nanmean(values))
