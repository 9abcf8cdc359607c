"""Names the modules of MobileNetV2 and EfficientNet-Lite0 as torchvision, timm and TF-slim do."""

import re
from collections.abc import Callable, Iterable

from flaxseg.backbones.mobile import EFFICIENTNET_LITE0_STAGES, MOBILENET_V2_STAGES, Stage
from flaxseg.weights.name_map import FLAXSEG, NameMap, known_block
from flaxseg.weights.slim_names import slim_names, slim_scope


def _torchvision_mobilenet_v2_module(path: str) -> str:
    fixed = {
        "stem_conv": "features.0.0",
        "stem_bn": "features.0.1",
        "head_conv": "features.18.0",
        "head_bn": "features.18.1",
        "classifier": "classifier.1",
    }
    if path in fixed:
        return fixed[path]
    number, part = re.fullmatch(r"block(\d+)/(\w+)", known_block(path)).groups()
    first = {
        "depthwise_conv": "0.0",
        "depthwise_bn": "0.1",
        "project_conv": "1",
        "project_bn": "2",
    }
    others = {
        "expand_conv": "0.0",
        "expand_bn": "0.1",
        "depthwise_conv": "1.0",
        "depthwise_bn": "1.1",
        "project_conv": "2",
        "project_bn": "3",
    }
    return f"features.{number}.conv.{(first if number == '1' else others)[part]}"


def _timm_mobile_module(stages: Iterable[Stage]) -> Callable[[str], str]:
    """Returns timm's names for a network of inverted residuals, `blocks.<stage>.<index>`."""
    places = [(s, i) for s, stage in enumerate(stages) for i in range(stage.blocks)]
    fixed = {
        "stem_conv": "conv_stem",
        "stem_bn": "bn1",
        "head_conv": "conv_head",
        "head_bn": "bn2",
        "classifier": "classifier",
    }
    first = {
        "depthwise_conv": "conv_dw",
        "depthwise_bn": "bn1",
        "project_conv": "conv_pw",
        "project_bn": "bn2",
    }
    others = {
        "expand_conv": "conv_pw",
        "expand_bn": "bn1",
        "depthwise_conv": "conv_dw",
        "depthwise_bn": "bn2",
        "project_conv": "conv_pwl",
        "project_bn": "bn3",
    }

    def module(path: str) -> str:
        if path in fixed:
            return fixed[path]
        number, part = re.fullmatch(r"block(\d+)/(\w+)", known_block(path)).groups()
        stage, index = places[int(number) - 1]
        return f"blocks.{stage}.{index}.{(others if stage else first)[part]}"

    return module


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
