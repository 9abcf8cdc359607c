"""Names of U-Net's parts in segmentation_models.pytorch."""

import re

from flaxseg.weights.name_maps import NAME_MAPS, NameMap


def smp_unet_module(path: str) -> str:
    """The name of a module of `UNet` on a ResNet."""
    part, _, rest = path.partition("/")
    if part == "backbone":
        return f"encoder.{NAME_MAPS['resnet'][0].module(rest)}"
    if path == "classifier":
        return "segmentation_head.0"
    found = re.fullmatch(r"stage(\d)_(\d)/(conv|bn)", path)
    if found is None:
        raise KeyError(path)
    stage, place, kind = found.groups()
    return f"decoder.blocks.{int(stage) - 1}.conv{place}.{0 if kind == 'conv' else 1}"


SMP_UNET = NameMap("segmentation_models.pytorch unet", smp_unet_module)
