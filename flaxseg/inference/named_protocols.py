"""Lists the protocols of the papers by name, and reads protocols written as text."""

import dataclasses

import flax.linen as nn

from flaxseg.call_text import check_arguments, check_name, parse_call
from flaxseg.inference.protocol import Protocol

_SEMSEG = {"flip": True, "flip_fusion": "logit_sum", "pad_place": "centre"}
_SEMSEG_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_TF_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
_SEMSEG_473 = {**_SEMSEG, "window": 473, "window_stride": 316, "long_side": 512}
_SEMSEG_713 = {**_SEMSEG, "window": 713, "window_stride": 476, "long_side": 2048}
_DFN = {
    "window": 512,
    "window_stride": 342,
    "overlap": "sum",
    "pad_place": "centre",
    "flip_fusion": "product",
}
_REFINENET = {"short_side": (450, 800)}

PROTOCOLS: dict[str, Protocol] = {
    # The image as it is.
    "whole": Protocol(),
    # DeepLabv3 and v3+, Chen et al. 2017 and 2018: on the canvas of VOC; at several scales with the
    # mirror image, mean of the probabilities.
    "deeplab_voc": Protocol(pad_to=(513, 513)),
    "deeplab_ms": Protocol(scales=_TF_SCALES, flip=True),
    # PSPNet, Zhao et al. 2017, as its author's PyTorch code (semseg) has it: mirror images also at
    # a single scale, logits of both added. For VOC and ADE20K, and for Cityscapes.
    "pspnet": Protocol(**_SEMSEG_473),
    "pspnet_ms": Protocol(scales=_SEMSEG_SCALES, **_SEMSEG_473),
    "pspnet_cityscapes": Protocol(**_SEMSEG_713),
    "pspnet_cityscapes_ms": Protocol(scales=_SEMSEG_SCALES, **_SEMSEG_713),
    # ICNet, Zhao et al. 2018: Cityscapes resized to 1025x2049.
    "icnet": Protocol(long_side=2049),
    # RefineNet, Lin et al. 2017, the MatConvNet release; for Cityscapes short_side=(600, 1100).
    "refinenet_ms": Protocol(scales=(0.4, 0.6, 0.8, 1.0, 1.2), **_REFINENET),
    # LRR, Ghiasi and Fowlkes 2016, on VOC.
    "lrr_ms": Protocol(scales=(0.6, 0.8, 1.0), pad_multiple=32, pad_place="centre", fusion="max"),
    # GCN, Peng et al. 2017: whole images of VOC padded to 512; four windows on Cityscapes.
    "gcn_voc": Protocol(pad_to=(512, 512)),
    "gcn_cityscapes": Protocol(window=1024, window_stride=342),
    # DFN, Yu et al. 2018, the author's code (TorchSeg), on VOC; on Cityscapes window=800.
    "dfn": Protocol(**_DFN),
    "dfn_ms": Protocol(scales=(0.5, 0.75, 1.0, 1.5, 1.75), flip=True, **_DFN),
    # mmsegmentation's slide inference with its crop of 512 and, for Cityscapes, 769.
    "mmseg_slide": Protocol(window=512, window_stride=341, softmax="image"),
    "mmseg_cityscapes": Protocol(window=769, window_stride=513, softmax="image"),
    # For large images of any kind.
    "windows": Protocol(window=512, window_weights="gaussian"),
}
"""Protocols by name; `parse_protocol` also changes their fields."""


def parse_protocol(text: str) -> Protocol:
    """Returns the protocol of a name, with fields changed: `"pspnet_ms"`, `"whole(flip=True)"`.

    Raises:
      ConfigError: there is no such name or field, or a value is out of range.
    """
    call = parse_call(text, "protocol")
    check_name(call.name, PROTOCOLS, "protocol")
    check_arguments(call, [field.name for field in dataclasses.fields(Protocol)], "protocol")
    return dataclasses.replace(PROTOCOLS[call.name], **call.arguments)


def model_protocol(model: nn.Module) -> Protocol:
    """Returns the protocol that a model names as its own; `whole` where it names none."""
    return parse_protocol(getattr(model, "protocol", "whole"))
