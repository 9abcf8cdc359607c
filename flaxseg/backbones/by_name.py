"""Builds the backbones by name, and tells which of them can do what is asked."""

import flax.linen as nn

from flaxseg.backbones.alexnet import AlexNet
from flaxseg.backbones.mobile import EfficientNetLite0, MobileNetV2
from flaxseg.backbones.resnet import (
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet50Beta,
    ResNet101,
    ResNet101Beta,
    ResNet152,
)
from flaxseg.backbones.resnet_gcn import ResNet50GCN
from flaxseg.backbones.segnet_basic_encoder import SegNetBasicEncoder
from flaxseg.backbones.unet_encoder import UNetEncoder
from flaxseg.backbones.vgg import VGG16, VGG16BN
from flaxseg.backbones.xception import Xception41, Xception65, Xception71
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

# Settings that have nothing to act on in a backbone without BatchNorm.
_BATCH_NORM_SETTINGS = ("batch_norm_momentum", "batch_norm_axis", "frozen_batch_norm")


def list_backbones() -> list[str]:
    """Returns the names that `create_backbone` knows."""
    return list(BACKBONES)


def create_backbone(name: str, *, remat: bool = False, **options) -> nn.Module:
    """Returns the backbone of that name.

    Args:
      name: one of `list_backbones()`.
      remat: whether its blocks are recomputed in the backward pass to save memory.
      **options: attributes of the backbone, such as `output_stride` and `dtype`. Those for
        BatchNorm may be given to a backbone that has none.

    Raises:
      ConfigError: there is no such backbone, or it cannot recompute its blocks.
      TypeError: the backbone has no such attribute.
    """
    if name not in BACKBONES:
        raise ConfigError(
            f"there is no backbone {name!r}.{near(name, BACKBONES)} "
            f"Backbones: {', '.join(BACKBONES)}."
        )
    known = _attributes(name)
    if remat:
        if "remat" not in known:
            able = ", ".join(other for other in BACKBONES if "remat" in _attributes(other))
            raise ConfigError(
                f"remat is set, and {name} cannot recompute its blocks; turn it off, or use a "
                f"backbone that can: {able}."
            )
        options["remat"] = True
    options = {k: v for k, v in options.items() if k in known or k not in _BATCH_NORM_SETTINGS}
    return BACKBONES[name](**options)


def check_call_option(backbone: nn.Module, option: str, reader: str) -> None:
    """Raises ValueError, naming the backbones that fit, unless a backbone declares that option of
    its `__call__` in `call_options`.

    Args:
      backbone: a module that returns named features.
      option: such as `"halve_c3"`.
      reader: the model that needs it, for the message.
    """
    if option in getattr(backbone, "call_options", ()):
        return
    able = ", ".join(name for name in BACKBONES if option in _class(name).call_options)
    raise ValueError(
        f"{type(backbone).__name__} does not declare {option} in its call_options, so it cannot "
        f"serve {reader}; use one of {able}, or see their __call__."
    )


def _class(name: str) -> type[nn.Module]:
    backbone = BACKBONES[name]
    return getattr(backbone, "func", backbone)  # some are partials


def _attributes(name: str) -> frozenset[str]:
    return frozenset(_class(name).__dataclass_fields__)
