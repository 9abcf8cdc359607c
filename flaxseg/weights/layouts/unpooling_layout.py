"""Reads the released SegNets and DeconvNet by their Caffe names, which PyTorch ports keep."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from flaxseg.errors import WeightsError
from flaxseg.layers.image_normalization import ImageNormalization
from flaxseg.weights.layouts.layout import Layout, Network, count_classes
from flaxseg.weights.name_map import NameMap, module_names

# Of VGG16, and so of the decoders' stages.
_STAGES = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}
# That of our BatchNorm, to make one that only scales and shifts.
_EPSILON = 1e-5
# SegNet sees raw pixels.
_RAW = ImageNormalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_DECONVNET_MEAN = ImageNormalization((122.675, 116.669, 104.008), (1.0, 1.0, 1.0))


def _segnet_rules() -> dict[str, str]:
    rules = {"classifier": "conv1_1_D"}
    for stage, size in _STAGES.items():
        for number in range(1, size + 1):
            ours, theirs = f"{stage}_{number}", f"conv{stage}_{number}"
            rules |= {f"backbone/conv{ours}": theirs, f"backbone/bn{ours}": f"{theirs}_bn"}
            # They count a stage of the decoder backwards.
            theirs = f"conv{stage}_{size + 1 - number}_D"
            rules |= {f"decoder/conv{ours}": theirs, f"decoder/bn{ours}": f"{theirs}_bn"}
    return rules


_SEGNET_BASIC_RULES = {
    "classifier": "conv_classifier",
    r"backbone/conv(\d)": r"conv\1",
    r"backbone/bn(\d)": r"conv\1_bn",
    r"decoder/conv(\d)_1": r"conv_decode\1",
    r"decoder/bn(\d)_1": r"conv_decode\1_bn",
}
_DECONVNET_RULES = {
    "(fc6|fc7)": r"\1",
    "(fc6|fc7)_bn": r"bn\1",
    "fc6_deconv": "fc6-deconv",
    "fc6_deconv_bn": "fc6-deconv-bn",
    "classifier": "seg-score-voc",
    r"backbone/((conv|bn)\d_\d)": r"\1",
    r"decoder/((conv|bn)\d_\d)": r"de\1",
}


class DeconvNetNames(NameMap):
    """Turns the kernels of transposed convolutions of stride 1 round; they are convolutions
    here."""

    def convert(self, path: str, tensor: np.ndarray) -> np.ndarray:
        """Returns their tensor in our layout; see `NameMap`."""
        if path.startswith("params/decoder/") and tensor.ndim == 4:
            return np.ascontiguousarray(tensor.transpose(2, 3, 0, 1)[::-1, ::-1])
        return super().convert(path, tensor)


SEGNET = NameMap(
    "Caffe segnet", module_names(_segnet_rules()), bgr=("backbone/conv1_1",), normalization=_RAW
)
SEGNET_BASIC = NameMap(
    "Caffe segnet_basic",
    module_names(_SEGNET_BASIC_RULES),
    bgr=("backbone/conv1",),
    normalization=_RAW,
)
DECONVNET = DeconvNetNames(
    "Caffe deconvnet",
    module_names(_DECONVNET_RULES),
    grids={"fc6": (7, 7), "fc7": (1, 1)},
    bgr=("backbone/conv1_1",),
    transposed=("fc6_deconv",),
    normalization=_DECONVNET_MEAN,
)


def read_unpooling_net(name: str, tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads a released net.

    Its BN layers have two blobs, `[1, C, 1, 1]`. A file for inference has the statistics of the
    training set worked into them: the layer scales and shifts, and becomes a BatchNorm that does
    the same. One with running statistics, as of a port, keeps them. A training snapshot, whose
    scale and shift belong to the statistics of a batch, looks like the first and is of no use: run
    the release's script over it.

    Args:
      name: the model's, `"segnet"`, `"segnet_basic"` or `"deconvnet"`.
      tensors: by names such as `"conv5_3_D.weight"`, in Caffe's layouts, for images in blue,
        green, red.
      source: what to call the tensors in messages.

    Raises:
      WeightsError: a blob of a BN layer does not have one number per channel.
    """
    name_map = {"segnet": SEGNET, "segnet_basic": SEGNET_BASIC, "deconvnet": DECONVNET}[name]
    options: dict[str, Any] = {}
    if name == "deconvnet" and "fc6.weight" in tensors:
        options["fc_features"] = len(tensors["fc6.weight"])
    result = dict(tensors)
    for key in tensors:
        layer, _, array = key.rpartition(".")
        if array != "weight" or not re.search(r"_bn$|^(de)?bn\w+$|-bn$", layer):
            continue
        for blob in ("weight", "bias", "running_mean", "running_var"):
            values = tensors.get(f"{layer}.{blob}")
            if values is None:
                continue
            if values.size != max(values.shape, default=1):
                raise WeightsError(
                    f"{source}: {layer}.{blob} has shape {list(values.shape)}; wanted [C] or "
                    "[1, C, 1, 1]."
                )
            result[f"{layer}.{blob}"] = values.reshape(-1)
        if f"{layer}.running_mean" not in tensors:
            scale = result[f"{layer}.weight"]
            result[f"{layer}.running_mean"] = np.zeros_like(scale)
            result[f"{layer}.running_var"] = np.full_like(scale, 1 - _EPSILON)
    num_classes = count_classes(tensors, f"{name_map.module('classifier')}.weight", source)
    return Network(name, num_classes, options, name_map.normalization, name_map, result)


LAYOUTS = tuple(
    Layout(name, (anchor,), partial(read_unpooling_net, name))
    for name, anchor in (
        ("segnet", r"conv5_3_D\.weight"),
        ("segnet_basic", r"conv_decode4\.weight"),
        ("deconvnet", r"fc6-deconv\.weight"),
    )
)
