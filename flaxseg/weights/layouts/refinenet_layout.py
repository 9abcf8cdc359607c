"""Reads the public PyTorch checkpoints of RefineNet and of Light-Weight RefineNet, by the author of
the latter."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from flaxseg.backbones.mobile import MOBILENET_V2_STAGES
from flaxseg.layers.image_normalization import IMAGENET
from flaxseg.weights.backbone_names.families import NAME_MAPS
from flaxseg.weights.layouts.network import (
    Layout,
    Network,
    bottleneck_resnet,
    count_classes,
)
from flaxseg.weights.name_map import NameMap

# Our features by their path, which counts from coarse to fine.
_PATHS = {"c5": 1, "c4": 2, "c3": 3, "c2": 4}
_UNIT = {"1": "conv", "2": "conv_relu_varout_dimred"}
_MOBILE_PARTS = {"expand": 0, "depthwise": 1, "project": 2}

_ANCHORS = {
    "p_ims1d2_outl1_dimred.weight": "clf_conv.weight",
    "conv_adapt4.weight": "segm.weight",
}
"""A tensor that tells each of the two layouts, and the kernel of its classifier."""


def refinenet_module(path: str) -> str:
    """Returns the checkpoints' name for a module of `RefineNet` with four blocks at one scale, or
    of `RefineNetLW` in the form for a ResNet."""
    part, _, rest = path.partition("/")
    if part == "backbone":
        return NAME_MAPS["resnet"][0].module(rest)
    if path == "classifier":
        return "clf_conv"
    if part.startswith("reduce_"):
        return f"p_ims1d2_outl{_PATHS[part.removeprefix('reduce_')]}_dimred"
    block = re.fullmatch(r"block([1-4])", part)
    if block is None:
        raise KeyError(path)
    number = int(block[1])
    if unit := re.fullmatch(r"(input1|output)_(\d)/conv([12])", rest):
        chain = "adapt_stage" if unit[1] == "input1" else "mflow_conv_g"
        return f"{chain}{number}_b.0.{unit[2]}_{_UNIT[unit[3]]}"
    if link := re.fullmatch(r"pooling/conv(\d)", rest):
        return f"mflow_conv_g{number}_pool.0.{link[1]}_outvar_dimred"
    if rest == "fusion/conv1":
        return f"adapt_stage{number}_b2_joint_varout_dimred"
    if rest == "fusion/conv2":
        return f"mflow_conv_g{number - 1}_b3_joint_varout_dimred"
    raise KeyError(path)


def light_weight_mobilenet_module(path: str) -> str:
    """Returns the checkpoint's name for a module of `RefineNetLW` in the form for a MobileNetV2."""
    part, _, rest = path.partition("/")
    if part == "backbone":
        return _mobilenet_v2_module(rest)
    if path == "classifier":
        return "segm"
    if stage := re.fullmatch(r"reduce_stage([2-7])", part):
        return f"conv{int(stage[1]) + 1}"
    block = re.fullmatch(r"block([1-4])/(pooling|fusion)/conv(\d)", path)
    if block is None:
        raise KeyError(path)
    number = int(block[1])
    if block[2] == "pooling":
        return f"crp{5 - number}.0.{block[3]}_outvar_dimred"
    return f"conv_adapt{6 - number}"


def _mobilenet_v2_module(path: str) -> str:
    """Returns their name for a module of MobileNetV2: layer1 is the stem, layer2 the first
    stage."""
    if stem := re.fullmatch(r"stem_(conv|bn)", path):
        return f"layer1.{0 if stem[1] == 'conv' else 1}"
    match = re.fullmatch(r"block(\d+)/(expand|depthwise|project)_(conv|bn)", path)
    if match is None:
        raise KeyError(path)
    stage, index = _MOBILE_PLACES[int(match[1]) - 1]
    return f"layer{stage}.{index}.output.{_MOBILE_PARTS[match[2]]}.{0 if match[3] == 'conv' else 1}"


_MOBILE_PLACES = tuple(
    (number, index)
    for number, stage in enumerate(MOBILENET_V2_STAGES, 2)
    for index in range(stage.blocks)
)

REFINENET = NameMap("DrSleep's refinenet-pytorch", refinenet_module, normalization=IMAGENET)
REFINENET_LW = dataclasses.replace(REFINENET, name="light-weight-refinenet")
REFINENET_LW_MOBILENET = NameMap(
    "light-weight-refinenet mbv2", light_weight_mobilenet_module, normalization=IMAGENET
)


def read_refinenet(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Returns which of the networks has these tensors.

    A chain of residual convolution units tells RefineNet from the light-weight one; units of the
    third stage tell the ResNet; the pooling chain its length. Images are normalised as for
    torchvision's networks.

    Raises:
      WeightsError: the ResNet has another depth than 50, 101 or 152.
    """
    options = {"normalization": dataclasses.asdict(IMAGENET)}
    mobile, resnet = "conv_adapt4.weight", "p_ims1d2_outl1_dimred.weight"
    if resnet not in tensors:
        options |= {
            "backbone": "mobilenet_v2",
            "backbone_options": {"padding": "torch", "expand_first": True},
            "pooling_blocks": _count(r"crp4\.0\.(\d+)_", tensors),
        }
        num_classes = count_classes(tensors, _ANCHORS[mobile], source)
        return Network("refinenet_lw", num_classes, options, REFINENET_LW_MOBILENET, tensors)
    options |= {
        "backbone": bottleneck_resnet(tensors, r"layer3\.(\d+)\.", source),
        "pooling_blocks": _count(r"mflow_conv_g1_pool\.0\.(\d+)_", tensors),
    }
    num_classes = count_classes(tensors, _ANCHORS[resnet], source)
    if "adapt_stage1_b.0.1_conv.weight" in tensors:
        return Network("refinenet", num_classes, options, REFINENET, tensors)
    return Network("refinenet_lw", num_classes, options, REFINENET_LW, tensors)


def _count(pattern: str, tensors: Mapping[str, np.ndarray]) -> int:
    """Returns how many values the pattern's group has."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


LAYOUTS = (
    Layout("RefineNet and Light-Weight RefineNet", tuple(map(re.escape, _ANCHORS)), read_refinenet),
)
