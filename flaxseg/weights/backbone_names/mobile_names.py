"""Names the modules of MobileNetV2 and EfficientNet-Lite0 as torchvision, timm and TF-slim do."""

import re
from collections.abc import Callable, Iterable

from flaxseg.backbones.mobile import EFFICIENTNET_LITE0_STAGES, MOBILENET_V2_STAGES, Stage
from flaxseg.weights.name_map import FLAXSEG, NameMap, module_names
from flaxseg.weights.slim_names import slim_names, slim_scope

_torchvision_mobilenet_v2_module = module_names(
    {
        "stem_conv": "features.0.0",
        "stem_bn": "features.0.1",
        "head_conv": "features.18.0",
        "head_bn": "features.18.1",
        "classifier": "classifier.1",
        "block1/depthwise_conv": "features.1.conv.0.0",
        "block1/depthwise_bn": "features.1.conv.0.1",
        "block1/project_conv": "features.1.conv.1",
        "block1/project_bn": "features.1.conv.2",
        r"block(\d+)/expand_conv": r"features.\1.conv.0.0",
        r"block(\d+)/expand_bn": r"features.\1.conv.0.1",
        r"block(\d+)/depthwise_conv": r"features.\1.conv.1.0",
        r"block(\d+)/depthwise_bn": r"features.\1.conv.1.1",
        r"block(\d+)/project_conv": r"features.\1.conv.2",
        r"block(\d+)/project_bn": r"features.\1.conv.3",
    }
)


def _timm_mobile_module(stages: Iterable[Stage]) -> Callable[[str], str]:
    """Returns timm's names for a network of inverted residuals, `blocks.<stage>.<index>`."""
    rules = {
        "stem_conv": "conv_stem",
        "stem_bn": "bn1",
        "head_conv": "conv_head",
        "head_bn": "bn2",
        "classifier": "classifier",
    }
    places = [(s, i) for s, stage in enumerate(stages) for i in range(stage.blocks)]
    for number, (stage, index) in enumerate(places, 1):
        block = f"blocks.{stage}.{index}"
        # The blocks of the first stage expand nothing.
        first = [("depthwise", "dw"), ("project", "pw")]
        parts = [("expand", "pw"), ("depthwise", "dw"), ("project", "pwl")] if stage else first
        for place, (part, name) in enumerate(parts, 1):
            rules[f"block{number}/{part}_conv"] = f"{block}.conv_{name}"
            rules[f"block{number}/{part}_bn"] = f"{block}.bn{place}"
    return module_names(rules)


def slim_mobilenet_v2_module(path: str) -> str:
    """Returns the scope of a module of `MobileNetV2`."""
    if found := re.fullmatch(r"(stem|head)_(conv|bn)", path):
        return slim_scope({"stem": "Conv", "head": "Conv_1"}[found[1]], found[2])
    found = re.fullmatch(r"block(\d+)/(expand|depthwise|project)_(conv|bn)", path)
    if found is None:
        raise KeyError(path)
    number = "" if found[1] == "1" else f"_{int(found[1]) - 1}"
    return slim_scope(f"expanded_conv{number}/{found[2]}", found[3])


_TIMM_BODY = r"(conv_stem|bn1|blocks)\."

MOBILENET_V2 = (
    NameMap("torchvision mobilenet_v2", _torchvision_mobilenet_v2_module, r"features\.(?!18\.)"),
    NameMap("timm mobilenetv2_100", _timm_mobile_module(MOBILENET_V2_STAGES), _TIMM_BODY),
    slim_names("MobilenetV2", slim_mobilenet_v2_module, r"expanded_conv"),
    FLAXSEG,
)
EFFICIENTNET_LITE0 = (
    NameMap("timm efficientnet_lite0", _timm_mobile_module(EFFICIENTNET_LITE0_STAGES), _TIMM_BODY),
    FLAXSEG,
)
