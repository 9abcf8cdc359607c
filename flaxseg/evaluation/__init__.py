"""Metrics, evaluation over a split, prediction for a picture, and pictures to look at."""

from flaxseg.evaluation.boundary_metrics import BoundaryMetrics, BoundaryScores
from flaxseg.evaluation.crf_options import format_crf, parse_crf
from flaxseg.evaluation.evaluate import evaluate, pad_image
from flaxseg.evaluation.image_file import ImageFile, read_image, read_image_file
from flaxseg.evaluation.inference import InferencePlan, plan_inference
from flaxseg.evaluation.metrics import IGNORE_LABEL, ConfusionMatrix, SegmentationMetrics
from flaxseg.evaluation.named_protocols import PROTOCOLS, parse_protocol
from flaxseg.evaluation.pictures import (
    colorize,
    error_picture,
    overlay,
    overlay_with_legend,
    save_palette_png,
    save_picture,
    side_by_side,
    voc_colors,
    with_legend,
)
from flaxseg.evaluation.predict import make_predict_fn, make_predict_step, predict
from flaxseg.evaluation.protocol import Protocol
from flaxseg.evaluation.record_scores import RecordScores
from flaxseg.evaluation.segmenter import Segmenter

__all__ = [
    "IGNORE_LABEL",
    "PROTOCOLS",
    "BoundaryMetrics",
    "BoundaryScores",
    "ConfusionMatrix",
    "ImageFile",
    "InferencePlan",
    "Protocol",
    "RecordScores",
    "SegmentationMetrics",
    "Segmenter",
    "colorize",
    "error_picture",
    "evaluate",
    "format_crf",
    "make_predict_fn",
    "make_predict_step",
    "overlay",
    "overlay_with_legend",
    "pad_image",
    "parse_crf",
    "parse_protocol",
    "plan_inference",
    "predict",
    "read_image",
    "read_image_file",
    "save_palette_png",
    "save_picture",
    "side_by_side",
    "voc_colors",
    "with_legend",
]
