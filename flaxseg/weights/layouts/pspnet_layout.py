"""Reads the three published PSPNets: the author's PyTorch code (semseg), mmsegmentation and the
Caffe release."""

import re
from collections.abc import Mapping

import numpy as np

from flaxseg.layers.image_normalization import IMAGENET, ImageNormalization
from flaxseg.weights.backbone_names.resnet_names import DEEP_STEM, deep_stem_resnet_module
from flaxseg.weights.layouts.layout import Layout, Network, bottleneck_resnet, count_classes
from flaxseg.weights.name_map import NameMap, behind, conv_block, module_names

# Of all published networks.
_BINS = (1, 2, 3, 6)
# By the number of classes: VOC, ADE20K and Cityscapes, whose windows are those of the training.
_AUTHORS_PROTOCOLS = {21: "pspnet", 150: "pspnet", 19: "pspnet_cityscapes"}
# Of the Caffe nets of PSPNet's authors: the mean only. Red, green, blue, as all our images; the
# nets' blue, green, red is undone in the first convolution.
CAFFE_PSPNET_NORMALIZATION = ImageNormalization((123.68, 116.779, 103.939), (1.0, 1.0, 1.0))


def _pools(conv: str, bn: str) -> dict[str, str]:
    """Returns the rules for the pyramid, from templates with a level's `{index}` and `{bins}`."""
    rules: dict[str, str] = {}
    for index, bins in enumerate(_BINS):
        names = (template.format(index=index, bins=bins) for template in (conv, bn))
        rules |= conv_block(f"pyramid_pooling/pool{bins}", *names)
    return rules


_semseg_module = module_names(
    {
        **conv_block("head", "cls.0", "cls.1"),
        "classifier": "cls.4",
        **conv_block("auxiliary_head/block", "aux.0", "aux.1"),
        "auxiliary_head/classifier": "aux.4",
        **_pools("ppm.features.{index}.1", "ppm.features.{index}.2"),
    },
    backbone=deep_stem_resnet_module(
        {part: f"layer0.{number}" for part, number in DEEP_STEM.items()}
    ),
)
_mmsegmentation_module = module_names(
    {
        **conv_block("head", "decode_head.bottleneck.conv", "decode_head.bottleneck.bn"),
        "classifier": "decode_head.conv_seg",
        **conv_block(
            "auxiliary_head/block", "auxiliary_head.convs.0.conv", "auxiliary_head.convs.0.bn"
        ),
        "auxiliary_head/classifier": "auxiliary_head.conv_seg",
        **_pools("decode_head.psp_modules.{index}.1.conv", "decode_head.psp_modules.{index}.1.bn"),
    },
    backbone=behind(
        "backbone.",
        deep_stem_resnet_module({part: f"stem.{number}" for part, number in DEEP_STEM.items()}),
    ),
)


def caffe_resnet_module(path: str) -> str:
    """Returns the layer of a module of a ResNet in the author's Caffe nets (PSPNet, ICNet)."""
    stem = {"1": "conv1_1_3x3_s2", "2": "conv1_2_3x3", "3": "conv1_3_3x3"}
    if match := re.fullmatch(r"(conv|bn)1_([123])", path):
        return stem[match[2]] + ("/bn" if match[1] == "bn" else "")
    unit = re.fullmatch(r"layer(\d)_(\d+)/(downsample_)?(conv|bn)(\d?)", path)
    if unit is None:
        raise KeyError(path)
    stage, index, shortcut, part, number = unit.groups()
    kind = "1x1_proj" if shortcut else ("1x1_reduce", "3x3", "1x1_increase")[int(number) - 1]
    layer = f"conv{int(stage) + 1}_{int(index) + 1}_{kind}"
    return f"{layer}/bn" if part == "bn" else layer


# Its auxiliary head was not published.
_caffe_module = module_names(
    {
        **conv_block("head", "conv5_4", "conv5_4/bn"),
        "classifier": "conv6",
        **_pools("conv5_3_pool{bins}_conv", "conv5_3_pool{bins}_conv/bn"),
    },
    backbone=caffe_resnet_module,
)


class CaffeNames(NameMap):
    """Maps to the blobs of the author's Caffe nets by `<layer>.<blob>`.

    Those of a convolution are `weight` and `bias`; of a BN layer, which is named
    `<convolution>/bn`, `slope`, `bias`, `mean` and `variance`, each `[1, C, 1, 1]` or `[C]`.
    """

    def tensor_name(self, path: str) -> str:
        _, *module, leaf = path.split("/")
        blobs = {"kernel": "weight", "scale": "slope", "var": "variance"}
        return f"{self.module('/'.join(module))}.{blobs.get(leaf, leaf)}"

    def convert(self, path: str, tensor: np.ndarray) -> np.ndarray:
        return super().convert(path, tensor if path.endswith("/kernel") else tensor.reshape(-1))


SEMSEG_PSPNET = NameMap("semseg pspnet", _semseg_module)
MMSEGMENTATION_PSPNET = NameMap("mmsegmentation pspnet", _mmsegmentation_module)
CAFFE_PSPNET = CaffeNames("Caffe pspnet", _caffe_module, bgr=("backbone/conv1_1",))


def read_semseg(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads semseg's PSPNet."""
    options = {
        "backbone": bottleneck_resnet(tensors, r"layer3\.(\d+)\.", source),
        "auxiliary": "aux.4.weight" in tensors,
    }
    num_classes = count_classes(tensors, "cls.4.weight", source)
    return Network(
        "pspnet",
        num_classes,
        options,
        IMAGENET,
        SEMSEG_PSPNET,
        tensors,
        protocol=_AUTHORS_PROTOCOLS.get(num_classes, "whole"),
    )


def read_mmsegmentation(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads mmsegmentation's PSPNet.

    It is taken to be of a config for crops of 512; those for 769 align corners.
    """
    options = {
        "backbone": bottleneck_resnet(tensors, r"backbone\.layer3\.(\d+)\.", source),
        "backbone_options": {"deep_stem": (32, 32, 64), "dilate_first_unit": False},
        "auxiliary": "auxiliary_head.conv_seg.weight" in tensors,
        "align_corners": False,
    }
    num_classes = count_classes(tensors, "decode_head.conv_seg.weight", source)
    return Network("pspnet", num_classes, options, IMAGENET, MMSEGMENTATION_PSPNET, tensors)


def read_caffe(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads the authors' PSPNet, with its mean as the model's normalisation."""
    backbone = bottleneck_resnet(tensors, r"conv4_(\d+)_3x3\.", source)
    options = {
        "backbone": backbone,
        # Nothing in the file tells: so it is in the published definitions, ResNet-50 for ADE20K
        # and ResNet-101 for VOC and Cityscapes.
        "backbone_options": {"stride_on": "1x1" if backbone == "resnet50" else "3x3"},
        "bins": (6, 3, 2, 1),
        "channel_dropout": False,
    }
    num_classes = count_classes(tensors, "conv6.weight", source)
    return Network(
        "pspnet",
        num_classes,
        options,
        CAFFE_PSPNET_NORMALIZATION,
        CAFFE_PSPNET,
        tensors,
        protocol=_AUTHORS_PROTOCOLS.get(num_classes, "whole"),
    )


LAYOUTS = (
    Layout("semseg's PSPNet", (r"ppm\.features\.0\.1\.weight",), read_semseg),
    Layout(
        "mmsegmentation's PSPNet",
        (r"decode_head\.psp_modules\.0\.1\.conv\.weight",),
        read_mmsegmentation,
    ),
    Layout("Caffe's PSPNet", (r"conv5_3_pool1_conv\.weight",), read_caffe),
)
