"""Names of DeepLab v1 and v2: Caffe's nets, their TensorFlow conversion and two PyTorch ports.

Known are, each on pictures of blue, green, red less the mean (104.008, 116.669, 122.675):

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
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from flaxseg.errors import WeightsError
from flaxseg.layers.image_normalization import CAFFE
from flaxseg.weights.name_maps import (
    NAME_MAPS,
    CaffeResNetNames,
    NameMap,
    caffe_resnet_module,
    caffe_vgg_module,
)

MEAN = (122.675, 116.669, 104.008)

# Tensors of which each file has one, with the word for the classes in between.
CAFFE_RESNET_ANCHOR = r"fc1_(?!\w*_(?:c[1-9]|res0\d+)\.)\w+\.weight"
CAFFE_VGG_ANCHOR = r"fc8_(?!\w*_[2-9]\.)\w+\.weight"
KAZUTO_ANCHOR = r"aspp\.c0\.weight"
ISHT7_ANCHOR = r"layer5\.conv2d_list\.0\.weight"

# Caffe's name of the input of a branch of v1's MSc, by the key of our feature.
_MSC_INPUTS = {"image": "data", "c1": "pool1", "c2": "pool2", "c3": "pool3", "c4": "pool4"}
_MSC_LAYERS = {"conv1": "conv", "conv2": "fc", "classifier": "ms"}

_TENSORFLOW_LEAVES = {
    "weights": ("", "weight"),
    "biases": ("", "bias"),
    "gamma": ("scale", "weight"),
    "beta": ("scale", "bias"),
    "moving_mean": ("", "running_mean"),
    "moving_variance": ("", "running_var"),
}


def caffe_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors of a converted Caffe net with PyTorch's leaves and layout.

    Two forms are converted, other tensors are returned as they are. `<layer>.<blob>`, such as
    `conv1_1.0`, has Caffe's blobs by number; BatchNorm's third is a factor of the other two.
    `<layer>/weights`, `biases`, `gamma`, `beta`, `moving_mean` and `moving_variance` is TensorFlow,
    kernels `[h, w, in, out]`.
    """
    result = dict(tensors)
    blobs: dict[str, dict[int, np.ndarray]] = {}
    for name in tensors:
        if match := re.fullmatch(r"(\w+)[./](\d)", name):
            blobs.setdefault(match[1], {})[int(match[2])] = result.pop(name)
            continue
        layer, _, leaf = name.rpartition("/")
        if leaf in _TENSORFLOW_LEAVES:
            kind, leaf = _TENSORFLOW_LEAVES[leaf]
            layer = re.sub(r"(^|/)bn(?=[^/]*$)", rf"\1{kind}", layer) if kind else layer
            value = result.pop(name)
            if value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)
            result[f"{layer.replace('/', '.')}.{leaf}"] = value
    for layer, values in blobs.items():
        if len(values) > 3:  # not a layer of Caffe's own
            result |= {f"{layer}.{blob}": value for blob, value in values.items()}
            continue
        if 2 in values and values[2].size == 1:
            factor = float(values[2].item())
            factor = 1.0 / factor if factor else 0.0  # Caffe's own rule for a net without training
            result[f"{layer}.running_mean"] = values[0].reshape(-1) * factor
            result[f"{layer}.running_var"] = values[1].reshape(-1) * factor
            continue
        result[f"{layer}.weight"] = values[0]
        if 1 in values:
            result[f"{layer}.bias"] = values[1].reshape(-1)
    return result


def read_deeplab_v1(tensors: Mapping[str, np.ndarray], source: str):
    """Returns what `Pretrained` needs of Caffe's VGG16 nets of both versions.

    LargeFOV has the same tensors in version 1, with an average pool before fc6, and in version 2,
    without; it is taken for the former. A 4x4 kernel is taken to have rate 4, not 8.

    Args:
      tensors: by name, without prefix.
      source: for messages.

    Returns:
      `(model, options, name of the classifier's kernel, name map, tensors)`.
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
    return model, options, kernel, name_map, tensors


def read_deeplab_v2(tensors: Mapping[str, np.ndarray], source: str):
    """Returns what `Pretrained` needs of version 2 on a ResNet, in Caffe's or a port's names.

    All were trained, and are evaluated, at three scales; `scales=(1.0,)` among the overrides of
    `load_pretrained` is the net at one.

    Args:
      tensors: by name, without prefix.
      source: for messages.

    Returns:
      `(model, options, name of the classifier's kernel, name map, tensors)`.
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
    units = {m[1] for name in tensors if (m := re.match(unit, name))}
    depths = {6: 50, 23: 101, 36: 152}
    if len(units) not in depths:
        raise WeightsError(
            f"{source} is a DeepLabv2 on a backbone with {len(units)} units in the fourth stage; "
            "known are resnet50 (6), resnet101 (23) and resnet152 (36)."
        )
    heads = {head.format(branch) for branch in range(9)}
    branches = sum(f"{name}.weight" in tensors for name in heads)

    options = {
        "backbone": f"resnet{depths[len(units)]}",
        "rates": _rates(branches, source),
        "scales": (1.0, 0.75, 0.5),
    }
    name_map = names(
        f"{layout} deeplabv2",
        deeplab_resnet_module(body, head),
        bgr=("backbone/conv1",),
        normalization=CAFFE,
    )
    return "deeplabv2", options, f"{head.format(0)}.weight", name_map, tensors


def _word(tensors: Mapping[str, np.ndarray], pattern: str) -> str:
    """What stands for `voc12` in the names of the classifier."""
    return next(match[1] for name in sorted(tensors) if (match := re.fullmatch(pattern, name)))


def _rates(branches: int, source: str) -> tuple[int, ...]:
    from flaxseg.models.deeplab_v2 import RATES

    rates = {1: RATES["large_fov"], 4: RATES["aspp_l"]}
    if branches not in rates:
        raise WeightsError(
            f"{source} has {branches} branches in its ASPP; known are one (LargeFOV) and four."
        )
    return rates[branches]


def _one_bias(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The tensors with the biases of MSc's branches, whose scores are added, in the one of fc8."""
    extra = [f"{layer}_ms.bias" for layer in _MSC_INPUTS.values()]
    present = [tensors[key] for key in (name, *extra) if key in tensors]
    result = {key: value for key, value in tensors.items() if key not in extra}
    return result | ({name: np.sum(present, 0)} if name in tensors else {})


def deeplab_resnet_module(body: Callable[[str], str], head: str) -> Callable[[str], str]:
    """Names of `DeepLabV2` on a ResNet.

    Args:
      body: names of the backbone's modules.
      head: of the classifiers, with `{}` for their number from 0.
    """

    def module(path: str) -> str:
        part, _, rest = path.partition("/")
        if part == "backbone":
            return body(rest)
        branch = re.fullmatch(r"aspp/classifier_(\d)", path)
        if branch is None:
            raise KeyError(path)
        return head.format(int(branch[1]) - 1)

    return module


def deeplab_vgg_module(word: str) -> Callable[[str], str]:
    """Caffe's names of `DeepLabV1` and `DeepLabV2` on VGG16, with what stands for `voc12`."""

    def module(path: str) -> str:
        part, _, rest = path.partition("/")
        if part == "backbone":
            return caffe_vgg_module(rest)
        if part == "aspp":
            kind, branch = rest.rsplit("_", 1)
            return f"{'fc8_' + word if kind == 'classifier' else kind}_{branch}"
        if part.endswith("_mlp"):
            return f"{_MSC_INPUTS[part.removesuffix('_mlp')]}_{_MSC_LAYERS[rest]}"
        return {"fc6": "fc6", "fc7": "fc7", "classifier": f"fc8_{word}"}[path]

    return module


def kazuto_module(path: str) -> str:
    if path in ("conv1", "bn1"):
        return f"layer1.conv1.{path[:-1]}"
    place = re.fullmatch(r"layer(\d)_(\d+)/(downsample_|)(conv|bn)(\d?)", path)
    if place is None:
        raise KeyError(path)
    parts = ("reduce", "conv3x3", "increase")
    part = "shortcut" if place[3] else parts[int(place[5]) - 1]
    return f"layer{int(place[1]) + 1}.block{int(place[2]) + 1}.{part}.{place[4]}"


READERS: Sequence[tuple[str, Callable[..., Any]]] = (
    (KAZUTO_ANCHOR, read_deeplab_v2),
    (ISHT7_ANCHOR, read_deeplab_v2),
    (CAFFE_RESNET_ANCHOR, read_deeplab_v2),
    (CAFFE_VGG_ANCHOR, read_deeplab_v1),
)
