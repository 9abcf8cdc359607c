"""Reads GCN of the widespread PyTorch port.

The authors published none. The port and its forks have a torchvision ResNet in `layer0` to
`layer4`, global convolutions `gcm1` (of stride 32) to `gcm4`, refinements `brm1` to `brm9`; forks
that upsample by deconvolutions call them `deconv1` to `deconv5`.
"""

import re
from collections.abc import Mapping

import numpy as np

from flaxseg.layers.image_normalization import IMAGENET
from flaxseg.weights.backbone_names.resnet_names import deep_stem_resnet_module
from flaxseg.weights.layouts.layout import Layout, Network, bottleneck_resnet, count_classes
from flaxseg.weights.name_map import NameMap, module_names

_LEVELS = ("c5", "c4", "c3", "c2", "s2", "s1")
_LINES = {
    "left_vertical": "conv_l1",
    "left_horizontal": "conv_l2",
    "right_horizontal": "conv_r1",
    "right_vertical": "conv_r2",
}
_resnet = deep_stem_resnet_module({"conv1": "layer0.0", "bn1": "layer0.1"})


def _rules() -> dict[str, str]:
    rules = {}
    for number, level in enumerate(_LEVELS):
        if number < 4:
            rules |= {f"gcn_{level}/{line}": f"gcm{number + 1}.{_LINES[line]}" for line in _LINES}
            rules[f"br_{level}/(.+)"] = rf"brm{number + 1}.\1"
        if number > 0:
            rules[f"refine_{level}/(.+)"] = rf"brm{number + 4}.\1"
            rules[f"up_{level}"] = f"deconv{number}"
    return rules


gcn_module = module_names(
    _rules(), backbone=lambda path: re.sub(r"^layer1\.", "layer1.1.", _resnet(path))
)
"""Names the modules of `GCN` on a ResNet as the port does."""

PORT_GCN = NameMap("gcn port", gcn_module, transposed=tuple(f"up_{level}" for level in _LEVELS[1:]))


def read_gcn(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads GCN from the PyTorch ports.

    Where they upsample bilinearly, corners are taken to be aligned.
    """
    num_classes = count_classes(tensors, "gcm1.conv_l1.weight", source)
    options = {
        "backbone": bottleneck_resnet(tensors, r"layer3\.(\d+)\.", source),
        "kernel_size": tensors["gcm1.conv_l1.weight"].shape[2],
        "upsampling": "dense" if "deconv1.weight" in tensors else "resize",
    }
    return Network("gcn", num_classes, options, IMAGENET, PORT_GCN, tensors)


LAYOUTS = (Layout("ports of GCN", (r"gcm1\.conv_l1\.weight",), read_gcn),)
