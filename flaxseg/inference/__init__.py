"""Turns images into probabilities and classes, by a protocol."""

from flaxseg.image_files import ImageFile, read_image, read_image_file
from flaxseg.inference.named_protocols import PROTOCOLS, model_protocol, parse_protocol
from flaxseg.inference.protocol import Protocol
from flaxseg.inference.segmenter import Segmentation, Segmenter, predict

__all__ = [
    "PROTOCOLS",
    "ImageFile",
    "Protocol",
    "Segmentation",
    "Segmenter",
    "model_protocol",
    "parse_protocol",
    "predict",
    "read_image",
    "read_image_file",
]
