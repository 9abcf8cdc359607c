"""Lists the naming schemes of each family of backbones, and tells a model's family."""

import re
from collections.abc import Mapping

from flaxseg.backbones.mobile import EFFICIENTNET_LITE0_STAGES, MOBILENET_V2_STAGES
from flaxseg.weights.backbone_names.mobile_names import EFFICIENTNET_LITE0, MOBILENET_V2
from flaxseg.weights.backbone_names.resnet_names import RESNET
from flaxseg.weights.backbone_names.vgg_names import ALEXNET, VGG16, VGG16_BN
from flaxseg.weights.backbone_names.xception_names import XCEPTION41, XCEPTION65, XCEPTION71
from flaxseg.weights.name_map import NameMap

NAME_MAPS: dict[str, tuple[NameMap, ...]] = {
    "resnet": RESNET,
    "mobilenet_v2": MOBILENET_V2,
    "efficientnet_lite0": EFFICIENTNET_LITE0,
    "xception41": XCEPTION41,
    "xception65": XCEPTION65,
    "xception71": XCEPTION71,
    "alexnet": ALEXNET,
    "vgg16": VGG16,
    "vgg16_bn": VGG16_BN,
}


def family_of(flat: Mapping[str, object]) -> str | None:
    """Returns the key of `NAME_MAPS` that fits a backbone's flat variables, or None."""
    modules = {path.split("/")[1] for path in flat}
    if "layer1_0" in modules:
        return "resnet"
    if "entry1" in modules:
        if "entry5" in modules:
            return "xception71"
        return "xception65" if "middle16" in modules else "xception41"
    if {"conv1", "conv5"} <= modules:
        return "alexnet"
    if "conv1_1" in modules:
        return "vgg16_bn" if "bn1_1" in modules else "vgg16"
    blocks = sum(bool(re.fullmatch(r"block\d+", module)) for module in modules)
    for family, stages in (
        ("mobilenet_v2", MOBILENET_V2_STAGES),
        ("efficientnet_lite0", EFFICIENTNET_LITE0_STAGES),
    ):
        if blocks == sum(stage.blocks for stage in stages):
            return family
    return None
