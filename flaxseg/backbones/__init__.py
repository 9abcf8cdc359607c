"""Holds the networks that turn an image into named features, `"c1"` (stride 2) to `"c5"` (stride
32, or the output stride), and `create_backbone`, which builds them by name."""

from flaxseg.backbones.alexnet import AlexNet
from flaxseg.backbones.backbone import Backbone, BatchNormBackbone
from flaxseg.backbones.by_name import (
    BACKBONES,
    check_call_option,
    create_backbone,
    list_backbones,
)
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

__all__ = [
    "BACKBONES",
    "VGG",
    "VGG16",
    "VGG16BN",
    "AlexNet",
    "Backbone",
    "BatchNormBackbone",
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
    "check_call_option",
    "create_backbone",
    "list_backbones",
]
