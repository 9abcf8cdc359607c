"""Defines how a file of another library's network is recognised, and what it is read as."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flaxseg.errors import WeightsError
from flaxseg.layers.image_normalization import ImageNormalization
from flaxseg.weights.name_map import NameMap

DEEPLAB_PROTOCOL = "deeplab_voc(long_side=(1, 513))"
"""Of TensorFlow's DeepLabs for VOC: larger images are reduced to the canvas."""
TORCHVISION_PROTOCOL = "whole(short_side=(520, 520))"
"""Of torchvision's segmentation networks with VOC's 21 classes, at training and at evaluation."""


@dataclasses.dataclass(frozen=True)
class Network:
    """Holds what the tensors of a file say.

    Attributes:
      name: of the model, for `create_model`.
      num_classes: for `create_model`.
      options: further arguments of `create_model`, apart from `normalization`.
      normalization: of the images that it was trained on.
      name_map: where the model's variables are among the tensors.
      tensors: those to load, brought into the form that `name_map` knows.
      allow_unused: whether the file has tensors that are no part of the network.
      protocol: how its authors run an image, where that matters, as text of
        `flaxseg.inference.parse_protocol`.
    """

    name: str
    num_classes: int
    options: dict[str, Any]
    normalization: ImageNormalization
    name_map: NameMap
    tensors: Mapping[str, np.ndarray]
    allow_unused: bool = False
    protocol: str = "whole"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Describes a way to name and shape the tensors of a network.

    Attributes:
      title: what it is called in messages.
      anchors: patterns of names; a file has the layout if exactly one of its names fits one of
        them, behind any prefix.
      read: from the tensors by name, without prefix, and what to call the file in messages, to the
        network; raises `WeightsError`.
    """

    title: str
    anchors: tuple[str, ...]
    read: Callable[[Mapping[str, np.ndarray], str], Network]


def count_classes(tensors: Mapping[str, np.ndarray], name: str, source: str) -> int:
    """Returns how many classes a classifier's kernel, `[classes, C, h, w]`, has.

    Raises:
      WeightsError: there is no such kernel, or its classes are not 2 to 255.
    """
    classifier = tensors.get(name)
    if classifier is None or classifier.ndim != 4 or not 2 <= len(classifier) <= 255:
        shape = None if classifier is None else list(classifier.shape)
        raise WeightsError(
            f"{source}: {name} has shape {shape}; wanted [classes, C, 1, 1] with 2 to 255 classes."
        )
    return len(classifier)


def bottleneck_resnet(tensors: Mapping[str, np.ndarray], unit: str, source: str) -> str:
    """Returns the name of the ResNet that has that many units in its third stage.

    Args:
      tensors: by name.
      unit: pattern at the start of the names of that stage; its first group is the unit.
      source: for messages.

    Raises:
      WeightsError: no ResNet with bottlenecks has that many.
    """
    units = {m[1] for name in tensors if (m := re.match(unit, name))}
    depths = {6: 50, 23: 101, 36: 152}
    if len(units) not in depths:
        raise WeightsError(
            f"{source} is a network on a backbone with {len(units)} units in its third stage; "
            "known are resnet50 (6), resnet101 (23) and resnet152 (36)."
        )
    return f"resnet{depths[len(units)]}"
