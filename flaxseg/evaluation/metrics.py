"""Counts the confusion matrix of a whole split, and computes the FCN paper's four metrics from it.

With n[i, j] the number of pixels of true class i predicted as class j, t[i] = sum_j n[i, j] and
p[j] = sum_i n[i, j]:

    IoU[i]                    n[i, i] / (t[i] + p[i] - n[i, i])
    mIoU                      mean of IoU[i] over the classes with t[i] + p[i] > 0
    pixel accuracy            sum_i n[i, i] / sum_i t[i]
    mean accuracy             mean of n[i, i] / t[i] over the classes with t[i] > 0
    frequency-weighted IoU    sum_i t[i] IoU[i] / sum_i t[i]

A class that is predicted but occurs in no label has IoU 0 and counts; a class that occurs in
neither is left out of the mean and listed. Counts are int64 sums over all pixels of the split, so
no value depends on how the images were batched.

Source: Long, Shelhamer, Darrell, "Fully convolutional networks for semantic segmentation", CVPR
2015, section 5.
"""

import csv
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from flaxseg.classes import IGNORE_LABEL
from flaxseg.errors import DataError

# Pixels counted at a time: bounds the int64 scratch memory to 32 MiB whatever the size of an image.
_CHUNK = 1 << 22


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationMetrics:
    """Holds what a confusion matrix says, as fractions; the formulas head this module.

    Attributes:
      miou: mean IoU over the classes that occur in the labels or the predictions; nan when nothing
        was counted.
      iou: float64 [C], nan where a class occurs in neither.
      accuracy: float64 [C], the share of the class's pixels that were found; nan where the labels
        lack the class.
      pixel_accuracy: share of the counted pixels that are right.
      mean_accuracy: mean of `accuracy` over the classes that the labels hold.
      frequency_weighted_iou: IoU weighted by the pixels of each class in the labels.
      absent_classes: the classes left out of `miou`.
      matrix: int64 [C, C], rows are the true class, columns the predicted one.
      ignored_pixels: pixels whose label was "ignore".
    """

    miou: float
    iou: np.ndarray
    accuracy: np.ndarray
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iou: float
    absent_classes: tuple[int, ...]
    matrix: np.ndarray
    ignored_pixels: int

    @classmethod
    def from_matrix(cls, matrix: np.ndarray, ignored_pixels: int = 0) -> "SegmentationMetrics":
        """Returns the metrics of an integer confusion matrix [C, C] (rows true, columns
        predicted)."""
        matrix = np.array(matrix, np.int64)
        right = np.diagonal(matrix).astype(np.float64)
        truth = matrix.sum(axis=1).astype(np.float64)
        union = truth + matrix.sum(axis=0) - right
        total = truth.sum()
        iou = _divide(right, union)
        accuracy = _divide(right, truth)
        present = truth > 0
        return cls(
            miou=_mean(iou[union > 0]),
            iou=iou,
            accuracy=accuracy,
            pixel_accuracy=float(right.sum() / total) if total else float("nan"),
            mean_accuracy=_mean(accuracy[present]),
            frequency_weighted_iou=(
                float((truth[present] * iou[present]).sum() / total) if total else float("nan")
            ),
            absent_classes=tuple(int(c) for c in np.flatnonzero(union == 0)),
            matrix=matrix,
            ignored_pixels=int(ignored_pixels),
        )

    @property
    def num_classes(self) -> int:
        """Returns the number of classes C."""
        return len(self.iou)

    @property
    def counted_pixels(self) -> int:
        """Pixels in the matrix: all but the ignored ones."""
        return int(self.matrix.sum())

    def merged(self, groups: Sequence[Sequence[int]]) -> "SegmentationMetrics":
        """Returns the metrics of fewer classes, each of them several of these taken together.

        >>> metrics = SegmentationMetrics.from_matrix([[3, 1, 0], [2, 2, 0], [0, 1, 1]])
        >>> metrics.merged([(0, 1), (2,)]).matrix
        array([[8, 0],
               [1, 1]])

        Args:
          groups: the classes of each; every class is in one of them.

        Raises:
          ValueError: a class is in no group or in several.
        """
        members = sorted(index for group in groups for index in group)
        if members != list(range(self.num_classes)):
            raise ValueError(
                f"groups hold the classes {members}; each of 0..{self.num_classes - 1} must be in "
                "one group."
            )
        belongs = np.zeros((len(groups), self.num_classes), np.int64)
        for number, group in enumerate(groups):
            belongs[number, list(group)] = 1
        return SegmentationMetrics.from_matrix(
            belongs @ self.matrix @ belongs.T, self.ignored_pixels
        )

    def matrix_as_csv(self, class_names: Sequence[str] | None = None) -> str:
        """Returns the confusion matrix for a spreadsheet: a line for each true class, whose pixels
        are counted by predicted class; names at the top and at the left."""
        names = _names(class_names, self.num_classes)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["true \\ predicted", *names])
        for name, row in zip(names, self.matrix.tolist(), strict=True):
            writer.writerow([name, *row])
        return text.getvalue()

    def summary(self) -> str:
        """Returns one line with the four metrics in per cent.

        >>> print(SegmentationMetrics.from_matrix([[3, 1], [0, 4]]).summary())
        mIoU 77.50 %, pixel accuracy 87.50 %, mean accuracy 87.50 %, fwIoU 77.50 %
        """
        return (
            f"mIoU {percent(self.miou)} %, pixel accuracy {percent(self.pixel_accuracy)} %, "
            f"mean accuracy {percent(self.mean_accuracy)} %, "
            f"fwIoU {percent(self.frequency_weighted_iou)} %"
        )

    def table(self, class_names: Sequence[str] | None = None) -> str:
        """Returns a text table: IoU, accuracy and label pixels of each class, and the means below
        it.

        Args:
          class_names: C names; without them the classes are called by their index.
        """
        names = _names(class_names, self.num_classes)
        pixels = self.matrix.sum(axis=1)
        total = max(self.counted_pixels, 1)
        width = max(len("class"), *(len(name) for name in names))
        head = (
            f"{'':>3}  {'class':<{width}}  {'IoU %':>7}  {'accuracy %':>10}  {'pixels':>15}  "
            f"{'share %':>7}"
        )
        rule = "-" * len(head)
        lines = [head, rule]
        for index, name in enumerate(names):
            lines.append(
                f"{index:>3}  {name:<{width}}  {percent(self.iou[index]):>7}  "
                f"{percent(self.accuracy[index]):>10}  {pixels[index]:>15,}  "
                f"{percent(pixels[index] / total):>7}"
            )
        counted = self.num_classes - len(self.absent_classes)
        lines += [
            rule,
            f"{'':>3}  {'mean':<{width}}  {percent(self.miou):>7}  "
            f"{percent(self.mean_accuracy):>10}  "
            f"{self.counted_pixels:>15,}  {'':>7}".rstrip(),
            "",
            f"mIoU                    {percent(self.miou):>6} %   over {counted} of "
            f"{self.num_classes} classes",
            f"pixel accuracy          {percent(self.pixel_accuracy):>6} %",
            f"mean accuracy           {percent(self.mean_accuracy):>6} %",
            f"frequency-weighted IoU  {percent(self.frequency_weighted_iou):>6} %",
            f"pixels: {self.counted_pixels:,} counted, {self.ignored_pixels:,} ignored",
        ]
        if self.absent_classes:
            absent = ", ".join(names[c] for c in self.absent_classes)
            lines.append(f"neither in the labels nor predicted, so left out of the mean: {absent}")
        return "\n".join(lines)

    def to_dict(self, class_names: Sequence[str] | None = None) -> dict:
        """Returns the same numbers for a JSON file, None where a value does not exist."""
        names = _names(class_names, self.num_classes)
        pixels = self.matrix.sum(axis=1)
        return {
            "miou": json_number(self.miou),
            "pixel_accuracy": json_number(self.pixel_accuracy),
            "mean_accuracy": json_number(self.mean_accuracy),
            "frequency_weighted_iou": json_number(self.frequency_weighted_iou),
            "classes": [
                {
                    "index": index,
                    "name": name,
                    "iou": json_number(self.iou[index]),
                    "accuracy": json_number(self.accuracy[index]),
                    "pixels": int(pixels[index]),
                }
                for index, name in enumerate(names)
            ],
            "absent_classes": [names[c] for c in self.absent_classes],
            "counted_pixels": self.counted_pixels,
            "ignored_pixels": self.ignored_pixels,
            "confusion_matrix": self.matrix.tolist(),
        }


class ConfusionMatrix:
    """Counts pixels by true and predicted class, on the host, in int64.

    >>> matrix = ConfusionMatrix(2)
    >>> matrix.update(np.array([[0, 0, 1, 255]]), np.array([[0, 1, 1, 0]]))
    >>> matrix.matrix
    array([[1, 1],
           [0, 1]])
    >>> matrix.metrics().miou
    0.5
    """

    def __init__(self, num_classes: int, ignore_label: int = IGNORE_LABEL):
        """Starts with an empty matrix.

        Args:
          num_classes: C, at least 1. Labels and predictions are in 0..C-1.
          ignore_label: the label of pixels that are not counted; must not be a class.

        Raises:
          ValueError: for a num_classes below 1, or an ignore_label that is a class.
        """
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
        if 0 <= ignore_label < num_classes:
            raise ValueError(
                f"ignore_label {ignore_label} is one of the {num_classes} classes; use a value "
                f"outside 0..{num_classes - 1}."
            )
        self.num_classes = num_classes
        self.ignore_label = ignore_label
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.ignored_pixels = 0

    def update(self, label: np.ndarray, pred: np.ndarray, source: str = "") -> None:
        """Counts the pixels of one image or batch; nothing is counted when an error is raised.

        Args:
          label: integers of any shape, 0..C-1 or the ignore label.
          pred: integers of the same shape, 0..C-1. What stands on ignored pixels is not looked at.
          source: what the error message calls the label, for example the id of the image.

        Raises:
          DataError: a label is neither a class nor the ignore label.
          ValueError: the shapes differ, a dtype is not an integer, or a prediction is not a class.
        """
        label, pred = np.asarray(label), np.asarray(pred)
        where = f" of {source}" if source else ""
        if label.shape != pred.shape:
            raise ValueError(
                f"label{where} has shape {label.shape} and prediction {pred.shape}; they must be "
                "the same."
            )
        for name, values in (("label", label), ("prediction", pred)):
            if values.dtype.kind not in "iu":
                raise ValueError(
                    f"{name}{where} has dtype {values.dtype}; class indices must be integers "
                    "(take the argmax of logits first)."
                )
        label, pred = label.ravel(), pred.ravel()
        matrix = np.zeros_like(self.matrix)
        ignored = 0
        for start in range(0, label.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            counts, skipped = self._count(label[part], pred[part], where)
            matrix += counts
            ignored += skipped
        self.matrix += matrix
        self.ignored_pixels += ignored

    def merge(self, other: "ConfusionMatrix") -> None:
        """Adds the counts of another matrix over the same classes."""
        if other.num_classes != self.num_classes:
            raise ValueError(
                f"cannot merge matrices of {self.num_classes} and {other.num_classes} classes."
            )
        self.matrix += other.matrix
        self.ignored_pixels += other.ignored_pixels

    def metrics(self) -> SegmentationMetrics:
        """Returns the metrics of all that was counted so far."""
        return SegmentationMetrics.from_matrix(self.matrix, self.ignored_pixels)

    def table(self, class_names: Sequence[str] | None = None) -> str:
        """Returns `SegmentationMetrics.table` of everything counted so far."""
        return self.metrics().table(class_names)

    def _count(self, label: np.ndarray, pred: np.ndarray, where: str) -> tuple[np.ndarray, int]:
        """Returns counts [C, C] and the number of ignored pixels of flat arrays; checks every
        value."""
        valid = label != self.ignore_label
        label, pred = label[valid], pred[valid]
        if _out_of_range(label, self.num_classes):
            raise DataError(
                f"label{where} holds {_offenders(label, self.num_classes)}; allowed are the "
                f"classes 0..{self.num_classes - 1} and {self.ignore_label} for ignore. "
                "Map the label values to class indices first."
            )
        if _out_of_range(pred, self.num_classes):
            raise ValueError(
                f"prediction{where} holds {_offenders(pred, self.num_classes)}; allowed are "
                f"0..{self.num_classes - 1}. Has the model more than {self.num_classes} classes?"
            )
        index = label.astype(np.int64) * self.num_classes + pred.astype(np.int64)
        counts = np.bincount(index, minlength=self.num_classes**2)
        return counts.reshape(self.matrix.shape), int(valid.size - label.size)


def _out_of_range(values: np.ndarray, num_classes: int) -> bool:
    return bool(values.size) and (int(values.min()) < 0 or int(values.max()) >= num_classes)


def _offenders(values: np.ndarray, num_classes: int) -> str:
    """Describes offending values, at most eight: 'the values 12 (3 pixels), 13 (40 pixels)'."""
    found, counts = np.unique(values, return_counts=True)
    bad = [(int(v), int(n)) for v, n in zip(found, counts, strict=True) if not 0 <= v < num_classes]
    text = ", ".join(f"{v} ({n:,} pixel{'s' if n > 1 else ''})" for v, n in bad[:8])
    more = f" and {len(bad) - 8} more" if len(bad) > 8 else ""
    return f"the value{'s' if len(bad) > 1 else ''} {text}{more}"


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns numerator / denominator, NaN where the denominator is 0."""
    result = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=result, where=denominator > 0)
    return result


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _names(class_names: Sequence[str] | None, num_classes: int) -> list[str]:
    if class_names is None:
        return [f"class {index}" for index in range(num_classes)]
    if len(class_names) != num_classes:
        raise ValueError(
            f"class_names has {len(class_names)} names for {num_classes} classes; give one name "
            "per class."
        )
    return [str(name) for name in class_names]


def percent(value: float) -> str:
    """Returns the fraction in per cent with two decimals; '-' for nan."""
    return "-" if np.isnan(value) else f"{100 * value:.2f}"


def json_number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
