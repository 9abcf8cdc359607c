"""Builds the systems by name, each from a record of what its paper fixes."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype

from flaxseg.backbones import create_backbone
from flaxseg.errors import ConfigError, near
from flaxseg.layers import BatchNorm, ImageNormalization
from flaxseg.models import (
    deeplab_v1,
    deeplab_v2,
    dfn,
    dilatednet,
    fcn,
    icnet,
    lrr,
    pspnet,
)
from flaxseg.models.deconvnet import DeconvNet
from flaxseg.models.deeplab import (
    DeepLabV3,
    DeepLabV3Cascade,
    DeepLabV3Plus,
    aspp_rates,
    cascade_rates,
)
from flaxseg.models.gcn import GCN
from flaxseg.models.parsenet import ParseNet
from flaxseg.models.refinenet import RefineNet, RefineNetLW
from flaxseg.models.segnet import SegNet, SegNetBasic
from flaxseg.models.unet import UNet

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Records what `create_model` must know of a model besides the attributes of its class.

    Attributes:
      module: the class.
      backbone: the paper's, one of `list_backbones()`.
      output_stride: the paper's.
      backbone_options: the form that the paper's release gives to a backbone, by its name.
      shared_options: options of the model that the backbones in `backbone_options` have too, with
        the same value.
      rates: the default of the option `rates` by output stride, where it depends on it.
      options_in_cells: options that count cells of the features: rates of dilation, windows.
      fixed_output_stride: whether the network has other parameters at another output stride.
    """

    module: type[nn.Module]
    backbone: str
    output_stride: int
    backbone_options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    shared_options: tuple[str, ...] = ()
    rates: Callable[[int], tuple[int, ...]] | None = None
    options_in_cells: tuple[str, ...] = ()
    fixed_output_stride: bool = False

    @property
    def options(self) -> frozenset[str]:
        """Returns the options of `create_model` that the class has."""
        return frozenset(self.module.__dataclass_fields__) - {"parent", "name"}

    def form_of(self, backbone: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the attributes that the paper's release gives to a backbone.

        Args:
          backbone: its name.
          options: of the model; where they lack a shared option, it has the model's default.
        """
        if backbone not in self.backbone_options:
            return {}
        shared = {
            option: options.get(option, getattr(self.module, option))
            for option in self.shared_options
        }
        return {**self.backbone_options[backbone], **shared}


_deeplab_v3 = partial(
    ModelSpec,
    backbone="resnet50",
    output_stride=16,
    rates=aspp_rates,
    options_in_cells=("rates",),
)
_fcn = partial(
    ModelSpec, backbone="vgg16", output_stride=32, backbone_options={"vgg16": fcn.VGG_OPTIONS}
)

MODELS: dict[str, ModelSpec] = {
    "deeplabv1": ModelSpec(
        deeplab_v1.DeepLabV1,
        "vgg16",
        8,
        {"vgg16": deeplab_v1.VGG_OPTIONS},
        options_in_cells=("rate",),
    ),
    "deeplabv2": ModelSpec(
        deeplab_v2.DeepLabV2,
        "resnet101",
        8,
        {
            "vgg16": deeplab_v1.VGG_OPTIONS,
            "resnet50": deeplab_v2.RESNET_OPTIONS,
            "resnet101": deeplab_v2.RESNET_OPTIONS,
            "resnet152": deeplab_v2.RESNET_OPTIONS,
        },
        options_in_cells=("rates",),
    ),
    "deeplabv3": _deeplab_v3(DeepLabV3),
    "deeplabv3plus": _deeplab_v3(DeepLabV3Plus),
    "deeplabv3_cascade": _deeplab_v3(DeepLabV3Cascade, rates=cascade_rates),
    "fcn32s": _fcn(fcn.FCN32s),
    "fcn16s": _fcn(fcn.FCN16s),
    "fcn8s": _fcn(fcn.FCN8s),
    "fcn8s_atonce": _fcn(fcn.FCN8sAtOnce),
    "fcn_alexnet": ModelSpec(fcn.FCNAlexNet, "alexnet", 32, {"alexnet": fcn.ALEXNET_OPTIONS}),
    "fcn": ModelSpec(fcn.DilatedFCN, "resnet50", 8),
    "pspnet": ModelSpec(
        pspnet.PSPNet,
        "resnet50",
        8,
        dict.fromkeys(_RESNETS, pspnet.RESNET_OPTIONS),
        options_in_cells=("windows",),
    ),
    # The stride counts on the half image, before its features shrink; on the whole image it is 32.
    "icnet": ModelSpec(
        icnet.ICNet,
        "resnet50",
        8,
        dict.fromkeys(_RESNETS, icnet.RESNET_OPTIONS),
        shared_options=("width",),
    ),
    # Kernels count cells, and every grid has a deconvolution to the next.
    "gcn": ModelSpec(GCN, "resnet152", 32, fixed_output_stride=True),
    "dfn": ModelSpec(dfn.DFN, "resnet101", 32, dict.fromkeys(_RESNETS, dfn.RESNET_OPTIONS)),
    "lrr": ModelSpec(lrr.LRR, "vgg16", 32, dict.fromkeys(("vgg16", "vgg16_bn"), lrr.VGG_OPTIONS)),
    "refinenet": ModelSpec(RefineNet, "resnet101", 32),
    "refinenet_lw": ModelSpec(RefineNetLW, "resnet50", 32),
    "unet": ModelSpec(UNet, "unet_encoder", 32),
    "segnet": ModelSpec(SegNet, "vgg16_bn", 32),
    "segnet_basic": ModelSpec(SegNetBasic, "segnet_basic_encoder", 32),
    "deconvnet": ModelSpec(DeconvNet, "vgg16_bn", 32),
    "dilatednet": ModelSpec(
        dilatednet.DilatedNet,
        "vgg16",
        8,
        {"vgg16": dilatednet.VGG_OPTIONS},
        options_in_cells=("rates",),
    ),
    "parsenet": ModelSpec(
        ParseNet,
        "vgg16",
        8,
        {"vgg16": deeplab_v1.VGG_OPTIONS},
        options_in_cells=("rate",),
    ),
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
        paper's by default.
      output_stride: of the backbone, 8, 16 or 32; by default the paper's. It may change between
        training and evaluation: the parameters are the same, except for models with a learned
        deconvolution for each doubling (`gcn`). With your own module as backbone, pass its output
        stride here, so that the rates fit.
      dtype: dtype of the computation, such as `jnp.bfloat16`. Parameters, statistics and logits
        are float32.
      batch_norm_momentum: share of the old running statistics that is kept in a training step.
      batch_norm_axis: mapped axis name, only under `jax.pmap`.
      frozen_batch_norm: whether training uses the running statistics and leaves them unchanged.
      remat: whether the blocks of the backbone are recomputed in the backward pass to save memory.
      normalization: what the model expects of its pixels, as `ImageNormalization` or `{"mean":
        ..., "std": ...}`; that of the backbone by default.
      backbone_options: further attributes of a backbone given by name, such as
        `{"padding": "torch"}` for MobileNetV2 weights that were trained in PyTorch's layout. They
        are added to those of the model's release (`ModelSpec.backbone_options`).
      **options: attributes of the model, such as `rates` or `dropout`; see its class.

    Raises:
      ConfigError: the model or the backbone is unknown, the backbone cannot do what is asked, or
        what is asked is for backbones given by name.
      ValueError: num_classes or output_stride is impossible.
      TypeError: the model has no such option.
    """
    spec = _spec(name)
    if num_classes < 2:
        raise ValueError(
            f"num_classes is {num_classes}; it must be at least 2 (background is a class)."
        )
    unknown = sorted(set(options) - spec.options)
    if unknown:
        raise TypeError(
            f"{name} has no option {', '.join(unknown)}; it has {', '.join(sorted(spec.options))}."
        )
    output_stride = spec.output_stride if output_stride is None else output_stride
    statistics = {
        "batch_norm_momentum": batch_norm_momentum,
        "batch_norm_axis": batch_norm_axis,
        "frozen_batch_norm": frozen_batch_norm,
    }
    backbone = spec.backbone if backbone is None else backbone
    if isinstance(backbone, str):
        form = {**spec.form_of(backbone, options), **(backbone_options or {})}
        backbone = create_backbone(
            backbone, output_stride=output_stride, remat=remat, dtype=dtype, **statistics, **form
        )
    else:
        _check_own_backbone(backbone, output_stride, remat, backbone_options)
    if normalization is None:
        normalization = getattr(backbone, "normalization", spec.module.normalization)
    elif isinstance(normalization, dict):
        normalization = ImageNormalization(
            tuple(normalization["mean"]), tuple(normalization["std"])
        )
    if spec.rates is not None:
        rates = options.get("rates")
        options["rates"] = spec.rates(output_stride) if rates is None else tuple(rates)
    if "norm" in spec.options:
        norm = partial(
            BatchNorm,
            frozen=frozen_batch_norm,
            momentum=batch_norm_momentum,
            axis_name=batch_norm_axis,
        )
        options.setdefault("norm", norm)
    return spec.module(
        num_classes=num_classes,
        backbone=backbone,
        normalization=normalization,
        dtype=dtype,
        **options,
    )


def _check_own_backbone(
    backbone: nn.Module, output_stride: int, remat: bool, backbone_options: Mapping | None
) -> None:
    """Raises where something is asked of a module that only a backbone given by name can be."""
    if remat or backbone_options:
        given = "remat" if remat else "backbone_options"
        raise ConfigError(
            f"{given} is for a backbone given by name; set it on your {type(backbone).__name__}."
        )
    if getattr(backbone, "output_stride", output_stride) != output_stride:
        raise ValueError(
            f"the backbone's output_stride is {backbone.output_stride}, and create_model was given "
            f"{output_stride}; pass output_stride={backbone.output_stride}."
        )


def _spec(name: str) -> ModelSpec:
    if name not in MODELS:
        raise ConfigError(
            f"there is no model {name!r}.{near(name, MODELS)} Models: {', '.join(MODELS)}."
        )
    return MODELS[name]


def at_output_stride(name: str, options: Mapping[str, Any], output_stride: int) -> dict[str, Any]:
    """Returns the options of the same network with its features at another output stride.

    Rates of dilation and windows of pooling count cells of features; they are scaled so that they
    reach as far in the image. The parameters stay the same: a network that was trained at 16 is
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
    spec = _spec(name)
    before = options.get("output_stride") or spec.output_stride
    if spec.fixed_output_stride and output_stride != before:
        raise ValueError(
            f"{name} is another network at output stride {output_stride} than at {before}, where "
            f"it was made; leave output_stride out, or train it at {output_stride}."
        )
    changed = {"output_stride": output_stride}
    for option in spec.options_in_cells:
        if option not in options and spec.rates is not None:
            continue  # the default follows the output stride by itself
        value = options.get(option, getattr(spec.module, option, None))
        if value is None:
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
