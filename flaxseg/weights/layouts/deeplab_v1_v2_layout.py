"""Reads DeepLab v1 and v2: Caffe's nets, their TensorFlow conversion and two PyTorch ports.

Known are, each on images of blue, green, red less the mean (104.008, 116.669, 122.675):

* Caffe, VGG16: `conv1_1` ..., `fc6`, `fc7`, `fc8_voc12`; with ASPP `fc6_1`, `fc7_1`,
  `fc8_voc12_1` to `_4`; with MSc `data_conv`, `data_fc`, `data_ms`, `pool1_conv` ...
* Caffe, ResNet: `conv1`, `bn_conv1`, `scale_conv1`, `res2a_branch1` ..., `bn2a_branch1` ...,
  `scale2a_branch1` ..., `fc1_voc12_c0` to `c3`. Copies of layers at other scales (`_res075`,
  `_res05`), which share their weights, are left out.
* PyTorch, kazuto1011/deeplab-pytorch: `layer2.block1.reduce.conv` ..., `aspp.c0` to `c3`.
* PyTorch, isht7/pytorch-deeplab-resnet: torchvision's names and `layer5.conv2d_list.0` to `3`.

What stands for `voc12` may be any word.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np

from flaxseg.errors import WeightsError
from flaxseg.layers.image_normalization import CAFFE, ImageNormalization
from flaxseg.models.deeplab_v2 import RATES
from flaxseg.weights.backbone_names.families import NAME_MAPS
from flaxseg.weights.backbone_names.resnet_names import CaffeResNetNames, caffe_resnet_module
from flaxseg.weights.backbone_names.vgg_names import caffe_vgg_module
from flaxseg.weights.layouts.layout import Layout, Network, bottleneck_resnet, count_classes
from flaxseg.weights.name_map import NameMap, module_names

MEAN = (122.675, 116.669, 104.008)

# Tensors of which each file has one, with the word for the classes in between.
CAFFE_RESNET_ANCHOR = r"fc1_(?!\w*_(?:c[1-9]|res0\d+)\.)\w+\.weight"
CAFFE_VGG_ANCHOR = r"fc8_(?!\w*_[2-9]\.)\w+\.weight"
KAZUTO_ANCHOR = r"aspp\.c0\.weight"
ISHT7_ANCHOR = r"layer5\.conv2d_list\.0\.weight"

# Caffe's name of the input of a branch of v1's MSc, by the key of our feature.
_MSC_INPUTS = {"image": "data", "c1": "pool1", "c2": "pool2", "c3": "pool3", "c4": "pool4"}
_MSC_LAYERS = {"conv1": "conv", "conv2": "fc", "classifier": "ms"}


def read_deeplab_v1(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads Caffe's VGG16 nets of both versions.

    LargeFOV has the same tensors in version 1, with an average pool before fc6, and in version 2,
    without; it is taken for the former. A 4x4 kernel is taken to have rate 4, not 8.
    """
    word = _word(tensors, r"fc8_(\w+?)(_1)?\.weight")
    if "fc6_1.weight" in tensors:
        branches = sum(re.fullmatch(r"fc6_\d\.weight", name) is not None for name in tensors)
        options = {"backbone": "vgg16", "rates": _rates(branches, source), "fc_features": 1024}
        kernel, model = f"fc8_{word}_1.weight", "deeplabv2"
    else:
        fc6 = tensors.get("fc6.weight")
        shape = None if fc6 is None else fc6.shape
        rates = {3: 12, 4: 4, 7: 4}
        if shape is None or len(shape) != 4 or shape[2] not in rates:
            raise WeightsError(
                f"{source}: fc6.weight has shape {shape}; wanted [features, 512, k, k] with k 3, 4 "
                "or 7, as in DeepLab's nets."
            )
        options = {
            "backbone": "vgg16",
            "kernel_size": shape[2],
            "rate": rates[shape[2]],
            "features": shape[0],
            "average_pool": shape[2] == 3,
            "multi_scale": "data_ms.weight" in tensors,
        }
        kernel, model = f"fc8_{word}.weight", "deeplabv1"
        tensors = _one_bias(tensors, kernel.replace("weight", "bias"))
    name_map = NameMap(
        f"Caffe {model} vgg16",
        deeplab_vgg_module(word),
        bgr=("backbone/conv1_1", "image_mlp/conv1"),
        normalization=CAFFE,
    )
    return _network(model, options, kernel, name_map, tensors, source)


def read_deeplab_v2(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads version 2 on a ResNet, in Caffe's or a port's names.

    All were trained, and are evaluated, at three scales; `scales=(1.0,)` among the overrides of
    `load_pretrained` is the net at one.
    """
    tensors = {k: v for k, v in tensors.items() if not re.search(r"_res0\d+\.\w+$", k)}
    if "aspp.c0.weight" in tensors:
        layout, head, unit = "kazuto1011's port", "aspp.c{}", r"layer4\.(block\d+)\.reduce"
        body, names = kazuto_module, NameMap
    elif "layer5.conv2d_list.0.weight" in tensors:
        layout, head, unit = "isht7's port", "layer5.conv2d_list.{}", r"layer3\.(\d+)\.conv1"
        body, names = NAME_MAPS["resnet"][0].module, NameMap
    else:
        word = _word(tensors, r"fc1_(\w+?)(_c0)?\.weight")
        several = f"fc1_{word}_c0.weight" in tensors
        layout, head = "Caffe", f"fc1_{word}_c{{}}" if several else f"fc1_{word}"
        unit, names = r"res4(\w+)_branch2a", CaffeResNetNames
        body = caffe_resnet_module("res4b1_branch2a.weight" in tensors)
    heads = {head.format(branch) for branch in range(9)}
    branches = sum(f"{name}.weight" in tensors for name in heads)

    options = {
        "backbone": bottleneck_resnet(tensors, unit, source),
        "rates": _rates(branches, source),
        "scales": (1.0, 0.75, 0.5),
    }
    name_map = names(
        f"{layout} deeplabv2",
        deeplab_resnet_module(body, head),
        bgr=("backbone/conv1",),
        normalization=CAFFE,
    )
    kernel = f"{head.format(0)}.weight"
    return _network("deeplabv2", options, kernel, name_map, tensors, source)


def _network(name, options, kernel, name_map, tensors, source) -> Network:
    num_classes = count_classes(tensors, kernel, source)
    normalization = ImageNormalization(MEAN, (1.0, 1.0, 1.0))
    return Network(name, num_classes, options, normalization, name_map, tensors)


def _word(tensors: Mapping[str, np.ndarray], pattern: str) -> str:
    """Returns what stands for `voc12` in the names of the classifier."""
    return next(match[1] for name in sorted(tensors) if (match := re.fullmatch(pattern, name)))


def _rates(branches: int, source: str) -> tuple[int, ...]:
    rates = {1: RATES["large_fov"], 4: RATES["aspp_l"]}
    if branches not in rates:
        raise WeightsError(
            f"{source} has {branches} branches in its ASPP; known are one (LargeFOV) and four."
        )
    return rates[branches]


def _one_bias(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """Returns the tensors with the biases of MSc's branches, whose scores are summed, added to that
    of fc8."""
    extra = [f"{layer}_ms.bias" for layer in _MSC_INPUTS.values()]
    present = [tensors[key] for key in (name, *extra) if key in tensors]
    result = {key: value for key, value in tensors.items() if key not in extra}
    return result | ({name: np.sum(present, 0)} if name in tensors else {})


def deeplab_resnet_module(body: Callable[[str], str], head: str) -> Callable[[str], str]:
    """Returns names for `DeepLabV2` on a ResNet.

    Args:
      body: names of the backbone's modules.
      head: of the classifiers, with `{}` for their number from 0.
    """
    heads = {f"aspp/classifier_{branch + 1}": head.format(branch) for branch in range(9)}
    return module_names(heads, backbone=body)


def deeplab_vgg_module(word: str) -> Callable[[str], str]:
    """Returns Caffe's names for `DeepLabV1` and `DeepLabV2` on VGG16, with what stands for
    `voc12`."""
    return module_names(
        {
            "(fc6|fc7)": r"\1",
            "classifier": f"fc8_{word}",
            r"aspp/classifier_(\d)": rf"fc8_{word}_\1",
            r"aspp/(fc\d_\d)": r"\1",
            **{
                f"{ours}_mlp/{part}": f"{theirs}_{name}"
                for ours, theirs in _MSC_INPUTS.items()
                for part, name in _MSC_LAYERS.items()
            },
        },
        backbone=caffe_vgg_module,
    )


def kazuto_module(path: str) -> str:
    if path in ("conv1", "bn1"):
        return f"layer1.conv1.{path[:-1]}"
    place = re.fullmatch(r"layer(\d)_(\d+)/(downsample_|)(conv|bn)(\d?)", path)
    if place is None:
        raise KeyError(path)
    parts = ("reduce", "conv3x3", "increase")
    part = "shortcut" if place[3] else parts[int(place[5]) - 1]
    return f"layer{int(place[1]) + 1}.block{int(place[2]) + 1}.{part}.{place[4]}"


LAYOUTS = (
    Layout(
        "DeepLab v2 on a ResNet",
        (KAZUTO_ANCHOR, ISHT7_ANCHOR, CAFFE_RESNET_ANCHOR),
        read_deeplab_v2,
    ),
    Layout("DeepLab v1 and v2 on VGG16", (CAFFE_VGG_ANCHOR,), read_deeplab_v1),
)
