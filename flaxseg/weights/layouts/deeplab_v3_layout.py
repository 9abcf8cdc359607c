"""Reads DeepLabv3 of torchvision, and the MobileNetV2 DeepLab of TensorFlow Lite in float."""

from collections.abc import Mapping

import numpy as np

from flaxseg.layers.image_normalization import IMAGENET, ImageNormalization
from flaxseg.weights.backbone_names.families import NAME_MAPS
from flaxseg.weights.layouts.layout import (
    DEEPLAB_PROTOCOL,
    TORCHVISION_PROTOCOL,
    Layout,
    Network,
    bottleneck_resnet,
    count_classes,
)
from flaxseg.weights.name_map import NameMap, behind, conv_block, module_names

# Of TensorFlow Lite's DeepLab models: to about [-1, 1].
_TFLITE = ImageNormalization((128.0, 128.0, 128.0), (128.0, 128.0, 128.0))


torchvision_deeplabv3_module = module_names(
    {
        **conv_block(
            "aspp/image_pooling/block", "classifier.0.convs.4.1", "classifier.0.convs.4.2"
        ),
        **conv_block(r"aspp/aspp(\d)", r"classifier.0.convs.\1.0", r"classifier.0.convs.\1.1"),
        **conv_block("aspp/project", "classifier.0.project.0", "classifier.0.project.1"),
        **conv_block("head", "classifier.1", "classifier.2"),
        "classifier": "classifier.4",
        **conv_block("auxiliary_head/block", "aux_classifier.0", "aux_classifier.1"),
        "auxiliary_head/classifier": "aux_classifier.4",
    },
    backbone=behind("backbone.", NAME_MAPS["resnet"][0].module),
)
"""Names the modules of `DeepLabV3` with `head_conv` on a ResNet as torchvision does."""

_mobile_deeplabv3_module = module_names(
    {
        **conv_block("aspp/aspp0", "head.aspp0.0", "head.aspp0.1"),
        **conv_block("aspp/image_pooling/block", "head.image_pooling.1", "head.image_pooling.2"),
        **conv_block("aspp/project", "head.project.0", "head.project.1"),
        "classifier": "head.classifier",
    },
    backbone=behind("backbone.", NAME_MAPS["mobilenet_v2"][0].module),
)


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
    }
    num_classes = count_classes(tensors, "classifier.4.weight", source)
    name_map = NameMap("torchvision deeplabv3", torchvision_deeplabv3_module)
    protocol = TORCHVISION_PROTOCOL if num_classes == 21 else "whole"
    return Network(
        "deeplabv3", num_classes, options, IMAGENET, name_map, tensors, protocol=protocol
    )


def read_mobile(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads `deeplabv3_mobilenet_v2_voc21`."""
    options = {
        "backbone": "mobilenet_v2",
        "output_stride": 16,
        "rates": (),
        "align_corners": True,
    }
    project = tensors.get("head.project.0.weight")
    if project is not None and project.ndim == 4:
        # Their concatenation is [image pooling, 1x1], ours [1x1, image pooling].
        pooling, branch = np.split(project, [project.shape[1] // 2], axis=1)
        tensors = {**tensors, "head.project.0.weight": np.concatenate([branch, pooling], 1)}
    num_classes = count_classes(tensors, "head.classifier.weight", source)
    name_map = NameMap("deeplabv3_mobilenet_v2_voc21", _mobile_deeplabv3_module)
    return Network(
        "deeplabv3", num_classes, options, _TFLITE, name_map, tensors, protocol=DEEPLAB_PROTOCOL
    )


LAYOUTS = (
    Layout("torchvision's DeepLabv3", (r"classifier\.0\.convs\.0\.0\.weight",), read_torchvision),
    Layout("deeplabv3_mobilenet_v2_voc21", (r"head\.image_pooling\.1\.weight",), read_mobile),
)
