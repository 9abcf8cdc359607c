"""Reads FCNs: the released ones by their Caffe names, which ports to other frameworks keep, and
torchvision's."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxseg.layers.bilinear_deconv import bilinear_kernel
from flaxseg.layers.image_normalization import CAFFE, IMAGENET
from flaxseg.weights.backbone_names.families import NAME_MAPS
from flaxseg.weights.backbone_names.vgg_names import (
    CAFFE_ALEXNET,
    CAFFE_VGG16,
    caffe_alexnet_module,
    caffe_vgg_module,
)
from flaxseg.weights.layouts.layout import (
    TORCHVISION_PROTOCOL,
    Layout,
    Network,
    bottleneck_resnet,
    count_classes,
)
from flaxseg.weights.name_map import NameMap, behind, conv_block, module_names

# The last deconvolution is called by its factor where there are skips.
_LAST = {
    "fcn32s": "upscore",
    "fcn16s": "upscore16",
    "fcn8s": "upscore8",
    "fcn8s_atonce": "upscore8",
}


def caffe_fcn_map(model: str) -> NameMap:
    """Returns the scheme of a released net.

    Args:
      model: its name for `create_model`: `"fcn32s"`, `"fcn16s"`, `"fcn8s"`, `"fcn8s_atonce"` or
        `"fcn_alexnet"`.
    """
    alexnet = model == "fcn_alexnet"
    heads = {
        "score_fr": "score_fr",
        "score_c4": "score_pool4",
        "score_c3": "score_pool3",
        "upscore_c4": "upscore2",
        "upscore_c3": "upscore_pool4",
        "upscore": _LAST.get(model, "upscore"),
    }
    body = CAFFE_ALEXNET if alexnet else CAFFE_VGG16
    return NameMap(
        f"Caffe {model}",
        module_names(heads, backbone=caffe_alexnet_module if alexnet else caffe_vgg_module),
        grids={f"backbone/{path}": grid for path, grid in body.grids.items()},
        bgr=tuple(f"backbone/{path}" for path in body.bgr),
        transposed=("upscore", "upscore_c4", "upscore_c3"),
        normalization=CAFFE,
    )


def read_caffe(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Returns which of the released nets has these tensors.

    The skips tell the variant. FCN-8s at once differs from FCN-8s only by the constants 0.01 and
    0.0001, which are tensors of Caffe's net (`scale_pool4.weight`, `scale_pool3.weight`) and stand
    in the code of ports: a file without them is taken for the at-once net when it is named so
    (`fcn8s-atonce...`). Deconvolutions that are bilinear are left to the model, which has them
    fixed; others are learned ones.

    Args:
      tensors: by names such as `"conv1_1.weight"`, in Caffe's layouts, for images in blue, green,
        red.
      source: what the file is called.

    Raises:
      WeightsError: the classifier has no usable shape.
    """
    base = os.path.basename(source).lower().replace("-", "").replace("_", "")
    scales = ("scale_pool4.weight", "scale_pool3.weight")
    if "conv1.weight" in tensors:
        name = "fcn_alexnet"
    elif "score_pool3.weight" in tensors:
        name = "fcn8s_atonce" if scales[0] in tensors or "atonce" in base else "fcn8s"
    else:
        name = "fcn16s" if "score_pool4.weight" in tensors else "fcn32s"
    options: dict[str, Any] = {}
    channels = tuple(
        len(tensors[f"{fc}.weight"]) for fc in ("fc6", "fc7") if f"{fc}.weight" in tensors
    )
    if len(channels) == 2 and channels != (4096, 4096):
        options["backbone_options"] = {"fc_features": channels}
    if name == "fcn8s_atonce" and scales[0] in tensors:
        options["skip_scales"] = tuple(float(np.ravel(tensors[scale])[0]) for scale in scales)
    kept = {k: v for k, v in tensors.items() if not k.startswith("scale_pool")}
    last = _LAST.get(name, "upscore")
    ups = [up for up in ("upscore2", "upscore_pool4", last) if f"{up}.weight" in tensors]
    learned = [up for up in ups if not _is_bilinear(tensors[f"{up}.weight"])]
    if learned:
        options["learned_upsampling"] = "dense"
        options["learned_last_upsampling"] = last in learned
    for up in ups:
        if not learned or (up == last and last not in learned):
            del kept[f"{up}.weight"]
    num_classes = count_classes(tensors, "score_fr.weight", source)
    return Network(name, num_classes, options, CAFFE, caffe_fcn_map(name), kept)


def _is_bilinear(kernel: np.ndarray) -> bool:
    """Returns whether `[C, C, k, k]` is bilinear as the released code sets it, or `[C, 1, k, k]`
    its diagonal."""
    if kernel.ndim != 4:
        return False
    line = bilinear_kernel(kernel.shape[-1])
    channels = np.ones((len(kernel), 1)) if kernel.shape[1] == 1 else np.eye(*kernel.shape[:2])
    return np.allclose(kernel, channels[:, :, None, None] * np.outer(line, line), atol=1e-5)


_torchvision_fcn_module = module_names(
    {
        **conv_block("head/block", "classifier.0", "classifier.1"),
        "head/classifier": "classifier.4",
        **conv_block("auxiliary_head/block", "aux_classifier.0", "aux_classifier.1"),
        "auxiliary_head/classifier": "aux_classifier.4",
    },
    backbone=behind("backbone.", NAME_MAPS["resnet"][0].module),
)
TORCHVISION_FCN = NameMap("torchvision fcn", _torchvision_fcn_module, normalization=IMAGENET)


def read_torchvision(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads torchvision's `fcn_resnet50` or `fcn_resnet101`."""
    options = {
        "backbone": bottleneck_resnet(tensors, r"backbone\.layer3\.(\d+)\.", source),
        "output_stride": 8,
        "auxiliary": "aux_classifier.4.weight" in tensors,
    }
    num_classes = count_classes(tensors, "classifier.4.weight", source)
    protocol = TORCHVISION_PROTOCOL if num_classes == 21 else "whole"
    return Network(
        "fcn", num_classes, options, IMAGENET, TORCHVISION_FCN, tensors, protocol=protocol
    )


LAYOUTS = (
    Layout("torchvision's FCN", (r"classifier\.1\.running_mean",), read_torchvision),
    Layout("Caffe's FCN", (r"score_fr\.weight",), read_caffe),
)
