"""Reads TensorFlow's DeepLab release (TF-slim): DeepLabv3 and v3+ on Xception, ResNet-v1 with
either stem, and MobileNetV2."""

import re
from collections.abc import Callable, Mapping

import numpy as np

from flaxseg.errors import WeightsError
from flaxseg.layers.image_normalization import SYMMETRIC, ImageNormalization
from flaxseg.weights.backbone_names.mobile_names import slim_mobilenet_v2_module
from flaxseg.weights.backbone_names.resnet_names import slim_resnet_module
from flaxseg.weights.backbone_names.xception_names import slim_xception_module
from flaxseg.weights.layouts.layout import DEEPLAB_PROTOCOL, Layout, Network
from flaxseg.weights.slim_names import SLIM_SLOTS, SlimNames, slim_scope

# Of TF-slim's ResNets with a 7x7 convolution: the mean only.
_SLIM_RESNET = ImageNormalization((123.15, 115.90, 103.06), (1.0, 1.0, 1.0))
# The layout of the ResNets apart from the stem, see `ResNetBeta`.
_SLIM_LAYOUT = {"stride_unit": "last", "pool": "tf", "c2_before_addition": True}
# By scope: family of the names, backbone, its images and options.
_SLIM_BACKBONES = {
    "xception_41": ("xception", "xception41", SYMMETRIC, {}),
    "xception_65": ("xception", "xception65", SYMMETRIC, {}),
    "xception_71": ("xception", "xception71", SYMMETRIC, {}),
    "resnet_v1_50": ("resnet", "resnet50", _SLIM_RESNET, _SLIM_LAYOUT),
    "resnet_v1_101": ("resnet", "resnet101", _SLIM_RESNET, _SLIM_LAYOUT),
    # Slim's MobileNetV2 keeps the default epsilon of slim's BatchNorm.
    "MobilenetV2": ("mobilenet_v2", "mobilenet_v2", SYMMETRIC, {"batch_norm_epsilon": 1e-3}),
}


def slim_deeplab_head_module(path: str) -> str:
    """Returns the scope of a module of the heads of `DeepLabV3` and `DeepLabV3Plus`."""
    if path == "classifier":
        return "logits/semantic"
    found = re.fullmatch(
        r"(aspp/image_pooling/block|aspp/project|aspp/aspp\d|low_level|decoder\d+)"
        r"/(?:(depthwise|pointwise)_)?(conv|bn)",
        path,
    )
    if found is None:
        raise KeyError(path)
    module, half, kind = found.groups()
    fixed = {
        "aspp/image_pooling/block": "image_pooling",
        "aspp/project": "concat_projection",
        "low_level": "decoder/feature_projection0",
    }
    if module in fixed:
        scope = fixed[module]
    elif module.startswith("decoder"):
        scope = f"decoder/decoder_conv{module.removeprefix('decoder')}"
    else:
        scope = module.removeprefix("aspp/")
    return slim_scope(f"{scope}_{half}" if half else scope, kind)


def slim_deeplab_module(backbone: str, scope: str) -> Callable[[str], str]:
    """Returns the scopes, in TensorFlow's release, of the modules of `DeepLabV3` and
    `DeepLabV3Plus`.

    Args:
      backbone: `"xception"`, `"resnet"` or `"mobilenet_v2"`.
      scope: of the backbone, such as `"xception_65"`.
    """
    of_backbone = {
        "xception": slim_xception_module,
        "resnet": slim_resnet_module,
        "mobilenet_v2": slim_mobilenet_v2_module,
    }[backbone]

    def module(path: str) -> str:
        part, _, rest = path.partition("/")
        if part == "backbone":
            return f"{scope}/{of_backbone(rest)}"
        return slim_deeplab_head_module(path)

    return module


def read_slim(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads DeepLabv3 or v3+ from TensorFlow's release.

    An optimizer's variables in the file are skipped. The file tells neither multi-grid nor the
    atrous rates; they are those of the paper at output stride 16 without multi-grid.
    """
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if name != "global_step" and not re.search(rf"/{SLIM_SLOTS}$", name)
    }
    kernel = tensors["logits/semantic/weights"]
    if kernel.ndim != 4 or not 2 <= kernel.shape[3] <= 255:
        raise WeightsError(
            f"{source}: logits/semantic/weights has shape {list(kernel.shape)}; wanted "
            "[1, 1, C, classes] with 2 to 255 classes."
        )
    scopes = {name.split("/")[0] for name in tensors}
    known = [scope for scope in _SLIM_BACKBONES if scope in scopes]
    if len(known) != 1:
        raise WeightsError(
            f"{source} is a DeepLab of TensorFlow with the scopes {', '.join(sorted(scopes))}; one "
            f"of them must be of a backbone: {', '.join(_SLIM_BACKBONES)}."
        )
    family, backbone, normalization, backbone_options = _SLIM_BACKBONES[known[0]]
    if family == "resnet" and f"{known[0]}/conv1_1/weights" in tensors:
        backbone, normalization, backbone_options = f"{backbone}_beta", SYMMETRIC, {}
    branches = sum(f"aspp{i}_depthwise/depthwise_weights" in tensors for i in (1, 2, 3))
    dense_branches = sum(f"aspp{i}/weights" in tensors for i in (1, 2, 3))
    convs = {m[1] for name in tensors if (m := re.match(r"decoder/decoder_conv(\d)", name))}
    options = {
        "backbone": backbone,
        "backbone_options": backbone_options,
        "output_stride": 16,
        "separable": branches > 0 or "decoder/decoder_conv0_depthwise/depthwise_weights" in tensors,
        "image_pooling": "image_pooling/weights" in tensors,
    }
    if not branches and not dense_branches:
        options["rates"] = ()
    if convs:
        options["decoder_convs"] = len(convs)
    name_map = SlimNames("TF-slim deeplab", slim_deeplab_module(family, known[0]))
    name = "deeplabv3plus" if convs else "deeplabv3"
    num_classes = kernel.shape[3]
    # The canvases of the release; image pooling and aligned corners depend on the size.
    protocol = "whole(pad_to=(1025, 2049))" if num_classes == 19 else DEEPLAB_PROTOCOL
    return Network(name, num_classes, options, normalization, name_map, tensors, protocol=protocol)


LAYOUTS = (Layout("TensorFlow's DeepLab", ("logits/semantic/weights",), read_slim),)
