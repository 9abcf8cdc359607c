"""The networks, weights and images whose outputs are recorded in `fixtures/peer_outputs.npz`."""

import zlib
from typing import NamedTuple

import flax.linen as nn
import numpy as np
from random_weights import shapes_of, torch_tensors

import flaxseg
from flaxseg.backbones import MobileNetV2, create_backbone
from flaxseg.weights import NAME_MAPS, NameMap
from flaxseg.weights.layouts.deeplab_v3_layout import torchvision_deeplabv3_module

SIZE = (65, 50)
# Every so many pixels and channels of an output are recorded.
PIXELS, CHANNELS = 16, 16


class Case(NamedTuple):
    """A network and the naming scheme of the library that its outputs were recorded from."""

    module: nn.Module
    name_map: NameMap


def cases() -> dict[str, Case]:
    """All recorded networks by name."""
    resnet, mobilenet = NAME_MAPS["resnet"][0], NAME_MAPS["mobilenet_v2"]
    lite = NAME_MAPS["efficientnet_lite0"][0]
    deeplab = NameMap("torchvision", torchvision_deeplabv3_module)
    options = {"output_stride": 8, "head_conv": True, "align_corners": False, "auxiliary": True}
    return {
        "torchvision resnet50 os32": Case(create_backbone("resnet50", num_classes=1000), resnet),
        "torchvision resnet50 os8": Case(
            create_backbone("resnet50", num_classes=1000, output_stride=8), resnet
        ),
        "timm resnet18 os16": Case(
            create_backbone("resnet18", num_classes=1000, output_stride=16), resnet
        ),
        "torchvision mobilenet_v2 os32": Case(
            MobileNetV2(num_classes=1000, padding="torch"), mobilenet[0]
        ),
        "timm mobilenetv2_100 os8": Case(
            MobileNetV2(num_classes=1000, padding="torch", output_stride=8), mobilenet[1]
        ),
        "timm tf_efficientnet_lite0 os16": Case(
            create_backbone("efficientnet_lite0", num_classes=1000, output_stride=16), lite
        ),
        "torchvision deeplabv3_resnet50": Case(
            flaxseg.create_model("deeplabv3", 21, backbone="resnet50", **options), deeplab
        ),
        "torchvision deeplabv3_resnet101": Case(
            flaxseg.create_model("deeplabv3", 21, backbone="resnet101", **options), deeplab
        ),
    }


def weights(case: Case) -> dict[str, np.ndarray]:
    """The seeded weights of a case, with the names and layouts of its library."""
    return torch_tensors(shapes_of(case.module), case.name_map)


def fingerprint(tensors: dict[str, np.ndarray]) -> int:
    """A number that changes if NumPy ever draws other weights from the same seeds."""
    return zlib.crc32(b"".join(tensors[name].tobytes() for name in sorted(tensors)))


def sample(output) -> np.ndarray:
    """What is recorded of an output `[1, H, W, C]` or `[1, C]`."""
    output = np.asarray(output)
    if output.ndim == 2:
        return output[:, ::CHANNELS]
    pixels = output[:, ::PIXELS, ::PIXELS] if output.shape[1:3] == SIZE else output[:, ::2, ::2]
    return pixels if output.shape[3] <= 2 * CHANNELS else pixels[..., ::CHANNELS]
