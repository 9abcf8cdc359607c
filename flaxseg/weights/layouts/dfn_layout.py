"""Reads DFN of the first author's PyTorch code (TorchSeg)."""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from flaxseg.layers.image_normalization import IMAGENET
from flaxseg.weights.backbone_names.resnet_names import deep_stem_resnet_module
from flaxseg.weights.layouts.network import Layout, Network, bottleneck_resnet, count_classes
from flaxseg.weights.name_map import NameMap

_STEM = {
    "conv1_1": "conv1.0",
    "bn1_1": "conv1.1",
    "conv1_2": "conv1.3",
    "bn1_2": "conv1.4",
    "conv1_3": "conv1.6",
    "bn1_3": "bn1",
}
_resnet = deep_stem_resnet_module(_STEM)
_LEVELS = ("c2", "c3", "c4", "c5")
_BLOCK = {"unify": "conv_1x1", "conv1": "cbr.conv", "bn": "cbr.bn", "conv2": "conv_refine"}
_CONTEXT = {"conv": "conv", "bn": "bn"}
_DENSE = {"dense1": "fc.0", "dense2": "fc.2"}

IDLE = "border_aft_rrbs.0."
"""Beginning of the names of a block that the code builds and never runs."""


def dfn_module(path: str) -> str:
    """Returns TorchSeg's name for a module of `DFN` on a ResNet with a deep stem."""
    part, _, rest = path.partition("/")
    if part == "backbone":
        return f"backbone.{_resnet(rest)}"
    if part == "global_context":
        return f"global_context.1.{_CONTEXT[rest]}"
    match = re.fullmatch(r"(smooth|border)_(c[2-5])_(before|attention|after|head|classifier)", part)
    if match is None:
        raise KeyError(path)
    network, level, kind = match.groups()
    number = _LEVELS.index(level)
    if network == "smooth":
        number = 3 - number
    if kind == "attention":
        return f"cabs.{number}.channel_attention.{_DENSE[rest]}"
    if kind == "classifier":
        return f"{network}_heads.{number}.conv"
    if kind == "head":
        return f"{network}_heads.{number}.rrb.{_BLOCK[rest]}"
    side = {"before": "pre", "after": "aft"}[kind]
    return f"{network}_{side}_rrbs.{number}.{_BLOCK[rest]}"


TORCHSEG_DFN = NameMap("TorchSeg dfn", dfn_module)


def read_dfn(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads DFN from the first author's code."""
    options = {
        "backbone": bottleneck_resnet(tensors, r"backbone\.layer3\.(\d+)\.", source),
        "normalization": dataclasses.asdict(IMAGENET),
    }
    num_classes = count_classes(tensors, "smooth_heads.3.conv.weight", source)
    used = {name: value for name, value in tensors.items() if not name.startswith(IDLE)}
    return Network("dfn", num_classes, options, TORCHSEG_DFN, used)


LAYOUTS = (Layout("TorchSeg's DFN", (r"smooth_pre_rrbs\.0\.conv_1x1\.weight",), read_dfn),)
