"""Reads the released ICNet: maps its layers in Caffe and in ports, and brings its tensors into one
form."""

import re
from collections.abc import Mapping

import numpy as np

from flaxseg.errors import WeightsError
from flaxseg.weights.layouts.layout import Layout, Network, count_classes
from flaxseg.weights.layouts.pspnet_layout import CAFFE_PSPNET_NORMALIZATION, caffe_resnet_module
from flaxseg.weights.name_map import NameMap, module_names

# The modules of our head, and theirs: (path, Caffe, meetps' pytorch-semseg).
_HEAD = (
    ("conv5_4/{}", "conv5_4_k1", "conv5_4_k1.cbr_unit"),
    ("fusion24/low_{}", "conv_sub4", "cff_sub24.low_dilated_conv_bn.cb_unit"),
    ("fusion24/high_{}", "conv3_1_sub2_proj", "cff_sub24.high_proj_conv_bn.cb_unit"),
    ("fusion12/low_{}", "conv_sub2", "cff_sub12.low_dilated_conv_bn.cb_unit"),
    ("fusion12/high_{}", "conv3_sub1_proj", "cff_sub12.high_proj_conv_bn.cb_unit"),
    ("conv1_sub1/{}", "conv1_sub1", "convbnrelu1_sub1.cbr_unit"),
    ("conv2_sub1/{}", "conv2_sub1", "convbnrelu2_sub1.cbr_unit"),
    ("conv3_sub1/{}", "conv3_sub1", "convbnrelu3_sub1.cbr_unit"),
)
_STEM = {
    "conv1_1_3x3_s2": "convbnrelu1_1.cbr_unit",
    "conv1_2_3x3": "convbnrelu1_2.cbr_unit",
    "conv1_3_3x3": "convbnrelu1_3.cbr_unit",
}
_CLASSIFIERS = {
    "classifier": ("conv6_cls", "classification"),
    "fusion24/classifier": ("sub4_out", "cff_sub24.low_classifier_conv"),
    "fusion12/classifier": ("sub24_out", "cff_sub12.low_classifier_conv"),
}
# Convolutions that read the image.
_FIRST = ("conv1_1_3x3_s2", "conv1_sub1")

# Names of a layer's arrays in converted files: of a convolution, and of Caffe's BN layer, whose
# blobs are slope, bias, mean and variance.
_CONV_ARRAYS = {
    **dict.fromkeys(("weight", "weights", "kernel", "0"), "weight"),
    **dict.fromkeys(("bias", "biases", "1"), "bias"),
}
_BN_ARRAYS = {
    **dict.fromkeys(("weight", "slope", "gamma", "scale", "0"), "weight"),
    **dict.fromkeys(("bias", "beta", "shift", "1"), "bias"),
    **dict.fromkeys(("running_mean", "mean", "moving_mean", "2"), "running_mean"),
    **dict.fromkeys(("running_var", "var", "variance", "moving_variance", "3"), "running_var"),
}
_EPSILON = 1e-5


def _meetps_conv(conv: str) -> str:
    """Returns meetps' prefix of a convolution and its BatchNorm, `.0` and `.1`, by the Caffe
    name."""
    theirs = _STEM | {name: theirs for _, name, theirs in _HEAD}
    if conv in theirs:
        return theirs[conv]
    stage, unit, part = re.fullmatch(
        r"conv(\d)_(\d+)_(1x1_reduce|3x3|1x1_increase|1x1_proj)", conv
    ).groups()
    index = int(unit) - 1
    block = f"res_block{stage}"
    if stage == "3":
        block, index = ("res_block3_conv", 0) if index == 0 else ("res_block3_identity", index - 1)
    inner = {
        "1x1_reduce": "cbr1.cbr_unit",
        "3x3": "cbr2.cbr_unit",
        "1x1_increase": "cb3.cb_unit",
        "1x1_proj": "cb4.cb_unit",
    }[part]
    return f"{block}.layers.{index}.{inner}"


_RULES = {path: caffe for path, (caffe, _) in _CLASSIFIERS.items()}
for _path, _caffe, _ in _HEAD:
    _RULES |= {_path.format("conv"): _caffe, _path.format("bn"): f"{_caffe}/bn"}
CAFFE_ICNET = NameMap("Caffe icnet", module_names(_RULES, backbone=caffe_resnet_module))


def icnet_tensors(tensors: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Brings a file of the released network into one form.

    Known are the layers' names of Caffe, `conv1_sub1` with a BN `conv1_sub1/bn` or `conv1_sub1_bn`,
    their arrays behind a dot or a slash under the names of Caffe, PyTorch or TensorFlow; kernels
    `[out, in, h, w]` or, as in the TensorFlow port, `[h, w, in, out]`; and the names of meetps'
    pytorch-semseg. Where BatchNorm was merged into the convolutions, it is made again from their
    biases as one that does nothing else.

    Returns:
      The names of `CAFFE_ICNET`, `[out, in, h, w]` kernels that read red, green and blue; names of
      other layers as they are.

    Raises:
      WeightsError: a layer that reads the image does not have three channels to read.
    """
    result, layers = _uniform_names(tensors), _conv_names()
    first = result.get("conv1_sub1.weight")
    channels_last = first is not None and first.shape[:3] == (3, 3, 3)
    for conv in (*layers, *(caffe for caffe, _ in _CLASSIFIERS.values())):
        kernel = result.get(f"{conv}.weight")
        if kernel is None or kernel.ndim != 4:
            continue
        if channels_last:
            kernel = kernel.transpose(3, 2, 0, 1)
        if conv in _FIRST:
            if kernel.shape[1:] != (3, 3, 3):
                raise WeightsError(
                    f"{source}: {conv} has a kernel {list(kernel.shape)}; wanted [out, 3, 3, 3]."
                )
            kernel = kernel[:, ::-1]
        result[f"{conv}.weight"] = kernel
        if conv in layers and f"{conv}/bn.weight" not in result and f"{conv}.bias" in result:
            bias = result.pop(f"{conv}.bias")
            result |= {
                f"{conv}/bn.weight": np.ones_like(bias),
                f"{conv}/bn.bias": bias,
                f"{conv}/bn.running_mean": np.zeros_like(bias),
                f"{conv}/bn.running_var": np.full_like(bias, 1 - _EPSILON),
            }
    return result


def _conv_names() -> tuple[str, ...]:
    units = (
        f"conv{stage}_{unit}_{part}"
        for stage, count in ((2, 3), (3, 4), (4, 6), (5, 3))
        for unit in range(1, count + 1)
        for part in ("1x1_reduce", "3x3", "1x1_increase", *(["1x1_proj"] if unit == 1 else []))
    )
    return (*_STEM, *(name for _, name, _ in _HEAD), *units)


def _uniform_names(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns every array of a known layer as `conv.weight` or `conv/bn.running_mean`."""
    convs = _conv_names()
    theirs = {f"{_meetps_conv(conv)}.0": conv for conv in convs}
    theirs |= {f"{_meetps_conv(conv)}.1": f"{conv}/bn" for conv in convs}
    theirs |= {meetps: caffe for caffe, meetps in _CLASSIFIERS.values()}
    known = {*convs, *(caffe for caffe, _ in _CLASSIFIERS.values())}
    result = {}
    for name, value in tensors.items():
        layer, array = re.fullmatch(r"(?:(.*)[./])?([^./]*)", name).groups(default="")
        layer = theirs.get(layer, layer)
        base = re.sub(r"(/|_)bn$", "", layer)
        is_bn = base != layer
        array = (_BN_ARRAYS if is_bn else _CONV_ARRAYS).get(array)
        if base not in known or array is None:
            result[name] = value
            continue
        key = f"{base}/bn.{array}" if is_bn else f"{base}.{array}"
        result[key] = value if array == "weight" and not is_bn else value.reshape(-1)
    return result


def read_icnet(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads the released ICNet, its TensorFlow port or meetps' pytorch-semseg.

    Tensors of other layers, which the released file has from training, are left out.
    """
    tensors = icnet_tensors(tensors, source)
    stem = tensors.get("conv1_2_3x3.weight")
    options = {
        "backbone": "resnet50",
        "width": 0.5 if stem is None else len(stem) / 64,
        "auxiliary": "sub4_out.weight" in tensors,
    }
    num_classes = count_classes(tensors, "conv6_cls.weight", source)
    return Network(
        "icnet",
        num_classes,
        options,
        CAFFE_PSPNET_NORMALIZATION,
        CAFFE_ICNET,
        tensors,
        allow_unused=True,
        protocol="icnet" if num_classes == 19 else "whole",
    )


LAYOUTS = (
    Layout(
        "Caffe's ICNet",
        (r"conv1_sub1[./](weights?|0)", r"convbnrelu1_sub1\.cbr_unit\.0\.weight"),
        read_icnet,
    ),
)
