"""Builds the systems by name."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype

from flaxseg.backbones import create_backbone
from flaxseg.errors import ConfigError, near
from flaxseg.layers import BatchNorm, ImageNormalization
from flaxseg.models.deconvnet import DeconvNet
from flaxseg.models.deeplab import (
    DeepLabV3,
    DeepLabV3Cascade,
    DeepLabV3Plus,
)
from flaxseg.models.deeplab_v1 import DeepLabV1
from flaxseg.models.deeplab_v2 import DeepLabV2
from flaxseg.models.dfn import DFN
from flaxseg.models.dilatednet import DilatedNet
from flaxseg.models.fcn import DilatedFCN, FCN8s, FCN8sAtOnce, FCN16s, FCN32s, FCNAlexNet
from flaxseg.models.gcn import GCN
from flaxseg.models.icnet import ICNet
from flaxseg.models.lrr import LRR
from flaxseg.models.parsenet import ParseNet
from flaxseg.models.pspnet import PSPNet
from flaxseg.models.refinenet import RefineNet, RefineNetLW
from flaxseg.models.segnet import SegNet, SegNetBasic
from flaxseg.models.unet import UNet

MODELS = {
    "deeplabv1": DeepLabV1,
    "deeplabv2": DeepLabV2,
    "deeplabv3": DeepLabV3,
    "deeplabv3plus": DeepLabV3Plus,
    "deeplabv3_cascade": DeepLabV3Cascade,
    "fcn32s": FCN32s,
    "fcn16s": FCN16s,
    "fcn8s": FCN8s,
    "fcn8s_atonce": FCN8sAtOnce,
    "fcn_alexnet": FCNAlexNet,
    "fcn": DilatedFCN,
    "pspnet": PSPNet,
    "icnet": ICNet,
    "gcn": GCN,
    "dfn": DFN,
    "lrr": LRR,
    "refinenet": RefineNet,
    "refinenet_lw": RefineNetLW,
    "unet": UNet,
    "segnet": SegNet,
    "segnet_basic": SegNetBasic,
    "deconvnet": DeconvNet,
    "dilatednet": DilatedNet,
    "parsenet": ParseNet,
}


def list_models() -> list[str]:
    """Returns the names that `create_model` knows."""
    return list(MODELS)


def create_model(
    name: str,
    num_classes: int,
    *,
    backbone: str | nn.Module | None = None,
    output_stride: int | None = None,
    dtype: Dtype = jnp.float32,
    batch_norm_momentum: float = 0.9,
    batch_norm_axis: str | None = None,
    frozen_batch_norm: bool = False,
    remat: bool = False,
    normalization: ImageNormalization | dict | None = None,
    backbone_options: Mapping | None = None,
    **options,
) -> nn.Module:
    """Returns a segmentation model.

    >>> import flaxseg
    >>> model = flaxseg.create_model("deeplabv3plus", num_classes=21, backbone="mobilenet_v2")
    >>> model.normalization.mean
    (127.5, 127.5, 127.5)

    Args:
      name: one of `list_models()`.
      num_classes: channels of the logits, at least 2; a binary task has 2.
      backbone: one of `list_backbones()`, or a module of your own that returns named features; the
        paper's by default (the class's `default_backbone`).
      output_stride: of the backbone, 8, 16 or 32; by default the paper's. It may change between
        training and evaluation: the parameters are the same, but for models with a learned
        deconvolution for each doubling (`gcn`). A module of your own has its own, and must say so
        here for the rates to fit.
      dtype: dtype of the computation, such as `jnp.bfloat16`. Parameters, statistics and logits
        are float32.
      batch_norm_momentum: share of the old running statistics that is kept in a training step.
      batch_norm_axis: mapped axis name, only under `jax.pmap`.
      frozen_batch_norm: whether running statistics are used in training and stay as they are.
      remat: whether the blocks of the backbone are recomputed in the backward pass to save memory.
      normalization: what the model expects of its pixels, as `ImageNormalization` or `{"mean":
        ..., "std": ...}`; that of the backbone by default.
      backbone_options: further attributes of a backbone given by name, such as
        `{"padding": "torch"}` for MobileNetV2 weights that were trained in PyTorch's layout. They
        are added to those of the model's paper (the class's `default_backbone_options`).
      **options: attributes of the model, such as `rates` or `dropout`; see its class.

    Raises:
      ConfigError: the model or the backbone is unknown.
      ValueError: num_classes or output_stride is impossible.
      TypeError: the model has no such option.
    """
    if name not in MODELS:
        raise ConfigError(
            f"there is no model {name!r}.{near(name, MODELS)} Models: {', '.join(MODELS)}."
        )
    if num_classes < 2:
        raise ValueError(
            f"num_classes is {num_classes}; it must be at least 2 (background is a class)."
        )
    model = MODELS[name]
    backbone = model.default_backbone if backbone is None else backbone
    output_stride = model.default_output_stride if output_stride is None else output_stride
    fields = set(model.__dataclass_fields__) - {"parent", "name"}
    unknown = sorted(set(options) - fields)
    if unknown:
        known = sorted(fields)
        raise TypeError(f"{name} has no option {', '.join(unknown)}; it has {', '.join(known)}.")
    shared = {
        "frozen": frozen_batch_norm,
        "momentum": batch_norm_momentum,
        "axis_name": batch_norm_axis,
    }
    if isinstance(backbone, str):
        defaults = dict(getattr(model, "default_backbone_options", {}).get(backbone, {}))
        if "width" in defaults:  # that of the head and of the backbone are one
            defaults["width"] = options.get("width", model.width)
        backbone = create_backbone(
            backbone,
            output_stride=output_stride,
            batch_norm_momentum=batch_norm_momentum,
            batch_norm_axis=batch_norm_axis,
            frozen_batch_norm=frozen_batch_norm,
            remat=remat,
            dtype=dtype,
            **{**defaults, **(backbone_options or {})},
        )
    elif getattr(backbone, "output_stride", output_stride) != output_stride:
        raise ValueError(
            f"the backbone's output_stride is {backbone.output_stride}, and create_model was given "
            f"{output_stride}; pass output_stride={backbone.output_stride}."
        )
    if normalization is None:
        normalization = getattr(backbone, "normalization", model.normalization)
    elif isinstance(normalization, dict):
        normalization = ImageNormalization(
            tuple(normalization["mean"]), tuple(normalization["std"])
        )
    if hasattr(model, "default_rates"):
        rates = options.get("rates")
        options["rates"] = model.default_rates(output_stride) if rates is None else tuple(rates)
    if "norm" in fields:
        options.setdefault("norm", partial(BatchNorm, **shared))
    return model(
        num_classes=num_classes,
        backbone=backbone,
        normalization=normalization,
        dtype=dtype,
        **options,
    )


def at_output_stride(name: str, options: Mapping[str, Any], output_stride: int) -> dict[str, Any]:
    """The options of the same network with its features at another output stride.

    Rates of dilation and windows of pooling count cells of features; they are scaled so that they
    reach as far in the picture. The parameters stay the same: a network that was trained at 16 is
    evaluated at 8 (Chen et al., "Rethinking Atrous Convolution", 2017, section 4).

    >>> at_output_stride("deeplabv3", {"output_stride": 16, "rates": (3, 6, 9)}, 8)
    {'output_stride': 8, 'rates': (6, 12, 18)}

    Args:
      name: one of `list_models()`.
      options: keyword arguments of `create_model`; what is left out has the model's default.
      output_stride: the new one.

    Returns:
      All options, the new ones among them.

    Raises:
      ValueError: a rate or window would not be a whole number of cells, or the network has other
        parameters there.
    """
    model = MODELS[name]
    before = options.get("output_stride") or model.default_output_stride
    if getattr(model, "one_output_stride", False) and output_stride != before:
        raise ValueError(
            f"{name} is another network at output stride {output_stride} than at {before}, where "
            f"it was made; leave output_stride out, or train it at {output_stride}."
        )
    changed = {"output_stride": output_stride}
    for option in getattr(model, "cell_options", ()):
        # A default that goes by the output stride by itself is None or absent.
        value = options.get(option, getattr(model, option, None))
        if value is None or (option not in options and hasattr(model, "default_rates")):
            continue
        cells = value if isinstance(value, Sequence) else (value,)
        if any(cell * before % output_stride for cell in cells):
            raise ValueError(
                f"{option}={value} at output stride {before} has no whole numbers at "
                f"{output_stride}; give {option} for that."
            )
        scaled = tuple(cell * before // output_stride for cell in cells)
        changed[option] = scaled if isinstance(value, Sequence) else scaled[0]
    return {**options, **changed}
