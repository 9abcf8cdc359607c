"""Reads the public PyTorch checkpoints of RefineNet and of Light-Weight RefineNet, by the author of
the latter."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from flaxseg.backbones.mobile import MOBILENET_V2_STAGES
from flaxseg.layers.image_normalization import IMAGENET
from flaxseg.weights.backbone_names.families import NAME_MAPS
from flaxseg.weights.layouts.layout import (
    Layout,
    Network,
    bottleneck_resnet,
    count_classes,
)
from flaxseg.weights.name_map import NameMap, module_names

_ANCHORS = {
    "p_ims1d2_outl1_dimred.weight": "clf_conv.weight",
    "conv_adapt4.weight": "segm.weight",
}
"""A tensor that tells each of the two layouts, and the kernel of its classifier."""


def _resnet_rules() -> dict[str, str]:
    rules = {"classifier": "clf_conv"}
    for n, level in enumerate(("c5", "c4", "c3", "c2"), 1):
        rules[f"reduce_{level}"] = f"p_ims1d2_outl{n}_dimred"
        for number, unit in (("1", "conv"), ("2", "conv_relu_varout_dimred")):
            rules[rf"block{n}/input1_(\d)/conv{number}"] = rf"adapt_stage{n}_b.0.\1_{unit}"
            rules[rf"block{n}/output_(\d)/conv{number}"] = rf"mflow_conv_g{n}_b.0.\1_{unit}"
        rules[rf"block{n}/pooling/conv(\d)"] = rf"mflow_conv_g{n}_pool.0.\1_outvar_dimred"
        rules[f"block{n}/fusion/conv1"] = f"adapt_stage{n}_b2_joint_varout_dimred"
        rules[f"block{n}/fusion/conv2"] = f"mflow_conv_g{n - 1}_b3_joint_varout_dimred"
    return rules


refinenet_module = module_names(_resnet_rules(), backbone=NAME_MAPS["resnet"][0].module)
"""Names the modules of `RefineNet` with four blocks at one scale, or of `RefineNetLW` in the form
for a ResNet, as the checkpoints do."""


def _mobilenet_rules() -> dict[str, str]:
    rules = {"classifier": "segm"}
    rules |= {f"reduce_stage{n}": f"conv{n + 1}" for n in range(2, 8)}
    for n in range(1, 5):
        rules[rf"block{n}/pooling/conv(\d)"] = rf"crp{5 - n}.0.\1_outvar_dimred"
        rules[rf"block{n}/fusion/conv\d"] = f"conv_adapt{6 - n}"
    # layer1 is the stem, layer2 the first stage.
    rules |= {"backbone/stem_conv": "layer1.0", "backbone/stem_bn": "layer1.1"}
    places = (
        (number, index)
        for number, stage in enumerate(MOBILENET_V2_STAGES, 2)
        for index in range(stage.blocks)
    )
    for n, (stage, index) in enumerate(places, 1):
        for number, part in enumerate(("expand", "depthwise", "project")):
            name = f"layer{stage}.{index}.output.{number}"
            rules[f"backbone/block{n}/{part}_conv"] = f"{name}.0"
            rules[f"backbone/block{n}/{part}_bn"] = f"{name}.1"
    return rules


REFINENET = NameMap("DrSleep's refinenet-pytorch", refinenet_module, normalization=IMAGENET)
REFINENET_LW = dataclasses.replace(REFINENET, name="light-weight-refinenet")
REFINENET_LW_MOBILENET = NameMap(
    "light-weight-refinenet mbv2", module_names(_mobilenet_rules()), normalization=IMAGENET
)


def read_refinenet(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Returns which of the networks has these tensors.

    A chain of residual convolution units tells RefineNet from the light-weight one; units of the
    third stage tell the ResNet; the pooling chain its length. Images are normalised as for
    torchvision's networks.

    Raises:
      WeightsError: the ResNet has another depth than 50, 101 or 152.
    """
    options = {}
    mobile, resnet = "conv_adapt4.weight", "p_ims1d2_outl1_dimred.weight"
    if resnet not in tensors:
        options |= {
            "backbone": "mobilenet_v2",
            "backbone_options": {"padding": "torch", "expand_first": True},
            "pooling_blocks": _count(r"crp4\.0\.(\d+)_", tensors),
        }
        num_classes = count_classes(tensors, _ANCHORS[mobile], source)
        return Network(
            "refinenet_lw", num_classes, options, IMAGENET, REFINENET_LW_MOBILENET, tensors
        )
    options |= {
        "backbone": bottleneck_resnet(tensors, r"layer3\.(\d+)\.", source),
        "pooling_blocks": _count(r"mflow_conv_g1_pool\.0\.(\d+)_", tensors),
    }
    num_classes = count_classes(tensors, _ANCHORS[resnet], source)
    if "adapt_stage1_b.0.1_conv.weight" in tensors:
        return Network("refinenet", num_classes, options, IMAGENET, REFINENET, tensors)
    return Network("refinenet_lw", num_classes, options, IMAGENET, REFINENET_LW, tensors)


def _count(pattern: str, tensors: Mapping[str, np.ndarray]) -> int:
    """Returns how many values the pattern's group has."""
    return len({match[1] for name in tensors if (match := re.match(pattern, name))})


LAYOUTS = (
    Layout("RefineNet and Light-Weight RefineNet", tuple(map(re.escape, _ANCHORS)), read_refinenet),
)
