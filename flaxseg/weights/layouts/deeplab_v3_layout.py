"""Reads DeepLabv3 of torchvision, and the MobileNetV2 DeepLab of TensorFlow Lite in float."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from flaxseg.layers.image_normalization import IMAGENET, ImageNormalization
from flaxseg.weights.backbone_names.families import NAME_MAPS
from flaxseg.weights.layouts.network import Layout, Network, bottleneck_resnet, count_classes
from flaxseg.weights.name_map import NameMap

# Of TensorFlow Lite's DeepLab models: to about [-1, 1].
_TFLITE = ImageNormalization((128.0, 128.0, 128.0), (128.0, 128.0, 128.0))


def torchvision_deeplabv3_module(path: str) -> str:
    """Returns torchvision's name for a module of `DeepLabV3` with `head_conv` on a ResNet."""
    part, _, rest = path.partition("/")
    if part == "backbone":
        return f"backbone.{NAME_MAPS['resnet'][0].module(rest)}"
    fixed = {
        "aspp/image_pooling/block/conv": "classifier.0.convs.4.1",
        "aspp/image_pooling/block/bn": "classifier.0.convs.4.2",
        "aspp/project/conv": "classifier.0.project.0",
        "aspp/project/bn": "classifier.0.project.1",
        "head/conv": "classifier.1",
        "head/bn": "classifier.2",
        "classifier": "classifier.4",
        "auxiliary_head/block/conv": "aux_classifier.0",
        "auxiliary_head/block/bn": "aux_classifier.1",
        "auxiliary_head/classifier": "aux_classifier.4",
    }
    if path in fixed:
        return fixed[path]
    branch = re.fullmatch(r"aspp/aspp(\d)/(conv|bn)", path)
    if branch is None:
        raise KeyError(path)
    return f"classifier.0.convs.{branch[1]}.{0 if branch[2] == 'conv' else 1}"


def mobile_deeplabv3_module(path: str) -> str:
    """Returns the name, in `deeplabv3_mobilenet_v2_voc21`, of a module of `DeepLabV3` without
    atrous branches on a MobileNetV2."""
    part, _, rest = path.partition("/")
    if part == "backbone":
        return f"backbone.{NAME_MAPS['mobilenet_v2'][0].module(rest)}"
    return {
        "aspp/aspp0/conv": "head.aspp0.0",
        "aspp/aspp0/bn": "head.aspp0.1",
        "aspp/image_pooling/block/conv": "head.image_pooling.1",
        "aspp/image_pooling/block/bn": "head.image_pooling.2",
        "aspp/project/conv": "head.project.0",
        "aspp/project/bn": "head.project.1",
        "classifier": "head.classifier",
    }[path]


def read_torchvision(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads torchvision's `deeplabv3_resnet50` or `deeplabv3_resnet101`."""
    options = {
        "backbone": bottleneck_resnet(tensors, r"backbone\.layer3\.(\d+)\.", source),
        "output_stride": 8,
        "rates": (12, 24, 36),
        "head_conv": True,
        "dropout": 0.5,
        "auxiliary": "aux_classifier.4.weight" in tensors,
        "align_corners": False,
        "normalization": dataclasses.asdict(IMAGENET),
    }
    num_classes = count_classes(tensors, "classifier.4.weight", source)
    name_map = NameMap("torchvision deeplabv3", torchvision_deeplabv3_module)
    return Network("deeplabv3", num_classes, options, name_map, tensors)


def read_mobile(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads `deeplabv3_mobilenet_v2_voc21`."""
    options = {
        "backbone": "mobilenet_v2",
        "output_stride": 16,
        "rates": (),
        "align_corners": True,
        "normalization": dataclasses.asdict(_TFLITE),
    }
    project = tensors.get("head.project.0.weight")
    if project is not None and project.ndim == 4:
        # Their concatenation is [image pooling, 1x1], ours [1x1, image pooling].
        pooling, branch = np.split(project, [project.shape[1] // 2], axis=1)
        tensors = {**tensors, "head.project.0.weight": np.concatenate([branch, pooling], 1)}
    num_classes = count_classes(tensors, "head.classifier.weight", source)
    name_map = NameMap("deeplabv3_mobilenet_v2_voc21", mobile_deeplabv3_module)
    return Network("deeplabv3", num_classes, options, name_map, tensors)


LAYOUTS = (
    Layout("torchvision's DeepLabv3", (r"classifier\.0\.convs\.0\.0\.weight",), read_torchvision),
    Layout("deeplabv3_mobilenet_v2_voc21", (r"head\.image_pooling\.1\.weight",), read_mobile),
)
