"""Reads DFN of the first author's PyTorch code (TorchSeg)."""

from collections.abc import Mapping

import numpy as np

from flaxseg.layers.image_normalization import IMAGENET
from flaxseg.weights.backbone_names.resnet_names import deep_stem_resnet_module
from flaxseg.weights.layouts.layout import Layout, Network, bottleneck_resnet, count_classes
from flaxseg.weights.name_map import NameMap, behind, conv_block, module_names

_STEM = {
    "conv1_1": "conv1.0",
    "bn1_1": "conv1.1",
    "conv1_2": "conv1.3",
    "bn1_2": "conv1.4",
    "conv1_3": "conv1.6",
    "bn1_3": "bn1",
}
_BLOCK = {"unify": "conv_1x1", "conv1": "cbr.conv", "bn": "cbr.bn", "conv2": "conv_refine"}

IDLE = "border_aft_rrbs.0."
"""Beginning of the names of a block that the code builds and never runs."""


def _rules() -> dict[str, str]:
    rules = conv_block("global_context", "global_context.1.conv", "global_context.1.bn")
    for place, level in enumerate(("c2", "c3", "c4", "c5")):
        for network, number in (("smooth", 3 - place), ("border", place)):
            for ours, theirs in _BLOCK.items():
                for kind, name in (
                    ("before", f"{network}_pre_rrbs.{number}"),
                    ("after", f"{network}_aft_rrbs.{number}"),
                    ("head", f"{network}_heads.{number}.rrb"),
                ):
                    rules[f"{network}_{level}_{kind}/{ours}"] = f"{name}.{theirs}"
            rules[f"{network}_{level}_classifier"] = f"{network}_heads.{number}.conv"
            for ours, theirs in (("dense1", "fc.0"), ("dense2", "fc.2")):
                rules[f"{network}_{level}_attention/{ours}"] = (
                    f"cabs.{number}.channel_attention.{theirs}"
                )
    return rules


TORCHSEG_DFN = NameMap(
    "TorchSeg dfn",
    module_names(_rules(), backbone=behind("backbone.", deep_stem_resnet_module(_STEM))),
)


def read_dfn(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads DFN from the first author's code."""
    options = {
        "backbone": bottleneck_resnet(tensors, r"backbone\.layer3\.(\d+)\.", source),
    }
    num_classes = count_classes(tensors, "smooth_heads.3.conv.weight", source)
    used = {name: value for name, value in tensors.items() if not name.startswith(IDLE)}
    protocol = "dfn(window=800, window_stride=534)" if num_classes == 19 else "dfn"
    return Network("dfn", num_classes, options, IMAGENET, TORCHSEG_DFN, used, protocol=protocol)


LAYOUTS = (Layout("TorchSeg's DFN", (r"smooth_pre_rrbs\.0\.conv_1x1\.weight",), read_dfn),)
