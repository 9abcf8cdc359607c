"""Reads U-Net of segmentation_models.pytorch."""

import re
from collections.abc import Mapping

import numpy as np

from flaxseg.errors import WeightsError
from flaxseg.layers.image_normalization import IMAGENET
from flaxseg.weights.backbone_names.families import NAME_MAPS
from flaxseg.weights.layouts.layout import Layout, Network, count_classes
from flaxseg.weights.name_map import NameMap, behind, conv_block, module_names

_BLOCKS = {
    rule: name
    for stage in range(1, 6)
    for rule, name in conv_block(
        rf"stage{stage}_(\d)",
        rf"decoder.blocks.{stage - 1}.conv\1.0",
        rf"decoder.blocks.{stage - 1}.conv\1.1",
    ).items()
}
SMP_UNET = NameMap(
    "segmentation_models.pytorch unet",
    module_names(
        {**_BLOCKS, "classifier": "segmentation_head.0"},
        backbone=behind("encoder.", NAME_MAPS["resnet"][0].module),
    ),
)


def read_unet(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads a U-Net without attention, of any width of its stages."""
    units = {m[1] for name in tensors if (m := re.match(r"encoder\.layer3\.(\d+)\.", name))}
    bottleneck = "encoder.layer1.0.conv3.weight" in tensors
    depths = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101, (36, True): 152}
    depth = depths.get((len(units), bottleneck))
    if depth is None:
        raise WeightsError(
            f"{source} is a U-Net of segmentation_models.pytorch on an encoder with {len(units)} "
            f"units in layer3; known are the ResNets {', '.join(map(str, depths.values()))}."
        )
    blocks = [f"decoder.blocks.{index}.conv1.0.weight" for index in range(5)]
    options = {
        "backbone": f"resnet{depth}",
        "output_stride": 32,
        "features": tuple(len(tensors[name]) for name in blocks if name in tensors),
    }
    num_classes = count_classes(tensors, "segmentation_head.0.weight", source)
    return Network("unet", num_classes, options, IMAGENET, SMP_UNET, tensors)


LAYOUTS = (
    Layout(
        "segmentation_models.pytorch's U-Net", (r"decoder\.blocks\.0\.conv1\.0\.weight",), read_unet
    ),
)
