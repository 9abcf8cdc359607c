"""Networks that turn a picture into named features `"c1"` (stride 2) to `"c5"` (stride 32, or the
output stride)."""

import flax.linen as nn

from flaxseg.backbones.alexnet import AlexNet
from flaxseg.backbones.mobile import EfficientNetLite0, MobileNetV2
from flaxseg.backbones.resnet import (
    ResNet,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet50Beta,
    ResNet101,
    ResNet101Beta,
    ResNet152,
    ResNetBeta,
)
from flaxseg.backbones.resnet_gcn import ResNet50GCN, ResNetGCN
from flaxseg.backbones.segnet_basic_encoder import SegNetBasicEncoder
from flaxseg.backbones.unet_encoder import UNetEncoder
from flaxseg.backbones.vgg import VGG, VGG16, VGG16BN
from flaxseg.backbones.xception import Xception, Xception41, Xception65, Xception71
from flaxseg.errors import ConfigError, near

BACKBONES = {
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "resnet101": ResNet101,
    "resnet152": ResNet152,
    "mobilenet_v2": MobileNetV2,
    "efficientnet_lite0": EfficientNetLite0,
    "resnet50_beta": ResNet50Beta,
    "resnet101_beta": ResNet101Beta,
    "resnet50_gcn": ResNet50GCN,
    "xception41": Xception41,
    "xception65": Xception65,
    "xception71": Xception71,
    "alexnet": AlexNet,
    "vgg16": VGG16,
    "vgg16_bn": VGG16BN,
    "unet_encoder": UNetEncoder,
    "segnet_basic_encoder": SegNetBasicEncoder,
}

# Settings of a run that every backbone takes, also one without BatchNorm or without blocks.
_RUN_SETTINGS = ("batch_norm_momentum", "batch_norm_axis", "frozen_batch_norm", "remat")


def list_backbones() -> list[str]:
    """Returns the names that `create_backbone` knows."""
    return list(BACKBONES)


def create_backbone(name: str, **options) -> nn.Module:
    """Returns the backbone of that name.

    Args:
      name: one of `list_backbones()`.
      **options: attributes of the backbone, such as `output_stride` and `dtype`. Those for
        BatchNorm, and `remat`, may be given to a backbone that has nothing for them.

    Raises:
      ConfigError: there is no such backbone.
      TypeError: the backbone has no such attribute.
    """
    if name not in BACKBONES:
        raise ConfigError(
            f"there is no backbone {name!r}.{near(name, BACKBONES)} "
            f"Backbones: {', '.join(BACKBONES)}."
        )
    backbone = BACKBONES[name]
    known = getattr(backbone, "func", backbone).__dataclass_fields__
    options = {k: v for k, v in options.items() if k in known or k not in _RUN_SETTINGS}
    return backbone(**options)


__all__ = [
    "BACKBONES",
    "VGG",
    "VGG16",
    "VGG16BN",
    "AlexNet",
    "EfficientNetLite0",
    "MobileNetV2",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet50Beta",
    "ResNet50GCN",
    "ResNet101",
    "ResNet101Beta",
    "ResNet152",
    "ResNetBeta",
    "ResNetGCN",
    "SegNetBasicEncoder",
    "UNetEncoder",
    "Xception",
    "Xception41",
    "Xception65",
    "Xception71",
    "create_backbone",
    "list_backbones",
]
