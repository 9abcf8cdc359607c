"""Measures a segmentation near the boundaries between classes.

Three measures, over a whole split, each a ratio of sums of pixels as mIoU is:

* trimap: mIoU and accuracy of the pixels that lie nearer than a width to a boundary of the label.
  (Kohli et al., "Robust Higher Order Potentials", 2009; Krahenbuhl and Koltun, "Efficient Inference
  in Fully Connected CRFs", 2011; Chen et al., "DeepLab", section 4, with widths of 1 to 40 pixels.)
* boundary and internal accuracy: the accuracy inside of such a band of 7 pixels and outside of it
  (Peng et al., "Large Kernel Matters", 2017, table 5).
* boundary IoU: intersection over union of the parts of the true and the predicted mask of a class
  that lie near their own contours (Cheng et al., "Boundary IoU", CVPR 2021).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.ndimage

from flaxseg.evaluation.metrics import (
    IGNORE_LABEL,
    ConfusionMatrix,
    SegmentationMetrics,
    json_number,
    percent,
)

# Share of the diagonal of an image that is near a contour: the default of Cheng et al.
_DILATION_RATIO = 0.02
_GCN_WIDTH = 7


@dataclasses.dataclass(frozen=True, eq=False)
class BoundaryScores:
    """Holds the measures of a split, as fractions.

    Attributes:
      trimap: metrics of the pixels nearer than each width to a boundary, by width in pixels.
      boundary_accuracy: share of right pixels nearer than 7 pixels to a boundary; nan without any.
      internal_accuracy: the same of all others.
      boundary_iou: mean of `class_boundary_iou` over the classes that have one.
      class_boundary_iou: float64 [C], nan for a class that is neither in labels nor predictions.
    """

    trimap: dict[int, SegmentationMetrics]
    boundary_accuracy: float
    internal_accuracy: float
    boundary_iou: float
    class_boundary_iou: np.ndarray

    def table(self) -> str:
        """Returns a text table with a line for each width, and the other measures below it."""
        lines = ["within      mIoU %  pixel accuracy %"]
        for width, metrics in self.trimap.items():
            lines.append(
                f"{width:>3} pixels  {percent(metrics.miou):>7}  "
                f"{percent(metrics.pixel_accuracy):>16}"
            )
        lines += [
            "",
            f"accuracy within {_GCN_WIDTH} pixels of a boundary  "
            f"{percent(self.boundary_accuracy):>6} %",
            f"accuracy elsewhere                      {percent(self.internal_accuracy):>6} %",
            f"boundary IoU                            {percent(self.boundary_iou):>6} %",
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Returns the same numbers for a JSON file, None where a value does not exist."""
        return {
            "trimap": {
                str(width): {
                    "miou": json_number(metrics.miou),
                    "pixel_accuracy": json_number(metrics.pixel_accuracy),
                }
                for width, metrics in self.trimap.items()
            },
            "boundary_accuracy": json_number(self.boundary_accuracy),
            "internal_accuracy": json_number(self.internal_accuracy),
            "boundary_iou": json_number(self.boundary_iou),
            "class_boundary_iou": [json_number(value) for value in self.class_boundary_iou],
        }


class BoundaryMetrics:
    """Counts pixels near boundaries, image by image.

    >>> label = np.array([[0, 0, 0, 0, 1, 1, 1, 1]])
    >>> metrics = BoundaryMetrics(2, widths=(1, 3))
    >>> metrics.update(label, np.array([[0, 0, 0, 0, 0, 1, 1, 1]]))
    >>> [round(m.pixel_accuracy, 3) for m in metrics.scores().trimap.values()]
    [0.5, 0.833]
    """

    def __init__(
        self,
        num_classes: int,
        widths: Sequence[int] = (1, 2, 5, 10, 20, 40),
        *,
        dilation_ratio: float = _DILATION_RATIO,
    ):
        """Starts with nothing counted.

        Args:
          num_classes: C.
          widths: of the trimaps, in pixels, each at least 1.
          dilation_ratio: how near to a contour counts for boundary IoU, as a share of the diagonal
            of the image; at least one pixel.

        Raises:
          ValueError: a width or the ratio is out of range.
        """
        if not widths or any(width < 1 for width in widths):
            raise ValueError(f"widths is {tuple(widths)}; it must hold numbers of at least 1.")
        if not 0 < dilation_ratio < 1:
            raise ValueError(f"dilation_ratio is {dilation_ratio}; it must be between 0 and 1.")
        self._dilation_ratio = dilation_ratio
        self._bands = {width: ConfusionMatrix(num_classes) for width in widths}
        self._near, self._far = ConfusionMatrix(num_classes), ConfusionMatrix(num_classes)
        self._overlap, self._union = (np.zeros(num_classes, np.int64) for _ in range(2))
        self._num_classes = num_classes

    def update(self, label: np.ndarray, pred: np.ndarray, source: str = "") -> None:
        """Counts one image.

        Args:
          label: integers [H, W], 0..C-1 or 255 for pixels that do not count. These are a side of a
            boundary, too: void borders of VOC lie between objects.
          pred: integers [H, W] in 0..C-1.
          source: what the error message calls the label.

        Raises:
          DataError, ValueError: as `ConfusionMatrix.update`.
        """
        label, pred = np.asarray(label), np.asarray(pred)
        distance = boundary_distance(label)
        for width, matrix in self._bands.items():
            matrix.update(np.where(distance < width, label, IGNORE_LABEL), pred, source)
        near = distance < _GCN_WIDTH
        self._near.update(np.where(near, label, IGNORE_LABEL), pred, source)
        self._far.update(np.where(near, IGNORE_LABEL, label), pred, source)
        reach = max(1, round(self._dilation_ratio * float(np.hypot(*label.shape))))
        pred = np.where(label == IGNORE_LABEL, IGNORE_LABEL, pred)
        for index in np.union1d(np.unique(label), np.unique(pred)):
            if index != IGNORE_LABEL:
                truth = _near_contour(label == index, reach)
                guess = _near_contour(pred == index, reach)
                self._overlap[index] += np.count_nonzero(truth & guess)
                self._union[index] += np.count_nonzero(truth | guess)

    def scores(self) -> BoundaryScores:
        """Returns the measures of all that was counted so far."""
        with np.errstate(invalid="ignore"):
            iou = np.where(self._union > 0, self._overlap / self._union, np.nan)
        return BoundaryScores(
            {width: matrix.metrics() for width, matrix in self._bands.items()},
            self._near.metrics().pixel_accuracy,
            self._far.metrics().pixel_accuracy,
            float(np.nanmean(iou)) if np.any(self._union) else float("nan"),
            iou,
        )


def boundary_distance(label: np.ndarray) -> np.ndarray:
    """Returns how far, in pixels, each pixel is from the nearest one that touches another label.

    Args:
      label: integers [H, W].

    Returns:
      float64 [H, W]: 0 on both sides of a boundary (above, below, left or right of another value),
      infinity where the image has one value only.
    """
    edge = np.zeros(label.shape, bool)
    down, right = label[1:] != label[:-1], label[:, 1:] != label[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    if not edge.any():
        return np.full(label.shape, np.inf)
    return scipy.ndimage.distance_transform_edt(~edge)


def _near_contour(mask: np.ndarray, reach: int) -> np.ndarray:
    """Returns the pixels of a mask with a pixel outside it, or outside the image, in the square of
    `reach` around them."""
    if not mask.any():
        return mask
    inside = scipy.ndimage.minimum_filter(
        mask.view(np.uint8), size=2 * reach + 1, mode="constant", cval=0
    )
    return mask & (inside == 0)
