"""Turns images into probabilities and classes, by a protocol."""

from flaxseg.inference.image_file import ImageFile, read_image, read_image_file
from flaxseg.inference.named_protocols import PROTOCOLS, parse_protocol
from flaxseg.inference.plan import InferencePlan, plan_inference
from flaxseg.inference.protocol import Protocol
from flaxseg.inference.segmenter import Segmenter
from flaxseg.inference.whole_image import make_predict_fn, make_predict_step, predict

__all__ = [
    "PROTOCOLS",
    "ImageFile",
    "InferencePlan",
    "Protocol",
    "Segmenter",
    "make_predict_fn",
    "make_predict_step",
    "parse_protocol",
    "plan_inference",
    "predict",
    "read_image",
    "read_image_file",
]
