"""Scores predictions against labels over a whole split."""

from flaxseg.classes import IGNORE_LABEL
from flaxseg.evaluation.boundary_metrics import BoundaryMetrics, BoundaryScores
from flaxseg.evaluation.metrics import ConfusionMatrix, SegmentationMetrics
from flaxseg.evaluation.record_scores import RecordScores
from flaxseg.evaluation.split_scores import evaluate, pad_image

__all__ = [
    "IGNORE_LABEL",
    "BoundaryMetrics",
    "BoundaryScores",
    "ConfusionMatrix",
    "RecordScores",
    "SegmentationMetrics",
    "evaluate",
    "pad_image",
]
