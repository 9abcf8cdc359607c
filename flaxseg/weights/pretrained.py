"""Whole segmentation networks of other libraries as flaxseg models."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.errors import WeightsError
from flaxseg.layers.image_normalization import IMAGENET, SYMMETRIC, ImageNormalization
from flaxseg.weights.files import read_tensors
from flaxseg.weights.load import load_weights
from flaxseg.weights.name_maps import (
    SLIM_SLOTS,
    NameMap,
    SlimNames,
    mobile_deeplabv3_module,
    slim_deeplab_module,
    torchvision_deeplabv3_module,
)
from flaxseg.weights.name_maps_deeplab import MEAN, READERS, caffe_tensors
from flaxseg.weights.name_maps_dfn import IDLE, TORCHSEG_DFN
from flaxseg.weights.name_maps_dilatednet import dilatednet
from flaxseg.weights.name_maps_fcn import TORCHVISION_FCN, caffe_fcn
from flaxseg.weights.name_maps_gcn import PORT_GCN
from flaxseg.weights.name_maps_icnet import CAFFE_ICNET, icnet_tensors
from flaxseg.weights.name_maps_lrr import LRR_ANCHOR, MATCONVNET_LRR, lrr_tensors
from flaxseg.weights.name_maps_pspnet import (
    CAFFE_PSPNET,
    MMSEGMENTATION_PSPNET,
    SEMSEG_PSPNET,
)
from flaxseg.weights.name_maps_refinenet import ANCHORS as REFINENET_ANCHORS
from flaxseg.weights.name_maps_refinenet import refinenet_layout
from flaxseg.weights.name_maps_unet import SMP_UNET
from flaxseg.weights.name_maps_unpooling import unpooling_net
from flaxseg.weights.report import LoadReport
from flaxseg.weights.sources import find_source

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
# Of TensorFlow Lite's DeepLab models: to about [-1, 1].
_TFLITE = ImageNormalization((128.0, 128.0, 128.0), (128.0, 128.0, 128.0))
# Of the Caffe nets of PSPNet's authors: the mean only. Red, green, blue, as all our pictures; the
# nets' blue, green, red is undone in the first convolution.
_CAFFE_PSPNET = ImageNormalization((123.68, 116.779, 103.939), (1.0, 1.0, 1.0))
# Of TF-slim's ResNets with a 7x7 convolution: the mean only.
_SLIM_RESNET = ImageNormalization((123.15, 115.90, 103.06), (1.0, 1.0, 1.0))


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network as `create_model` and `save_model` want it.

    Attributes:
      name: for `create_model`.
      num_classes: for `create_model`.
      options: further arguments of `create_model`.
      variables: params and batch_stats.
      class_names: one a class, or None where they are not known.
      report: of the loading.
    """

    name: str
    num_classes: int
    options: dict[str, Any]
    variables: dict
    class_names: tuple[str, ...] | None
    report: LoadReport

    def create_model(self, **overrides: Any) -> nn.Module:
        """Returns the model; `overrides` replace options, such as `dtype`."""
        from flaxseg.models import create_model

        return create_model(self.name, self.num_classes, **(self.options | overrides))


def load_pretrained(source: str | os.PathLike, **overrides: Any) -> tuple[nn.Module, dict]:
    """Loads a whole network: model and variables.

    Example:

        model, variables = load_pretrained("deeplabv3_mobilenet_v2_voc21.safetensors")

    Args:
      source: as for `read_pretrained`, or the folder of a model that flaxseg saved.
      **overrides: options of `create_model` in place of the network's own, such as `dtype`.

    Raises:
      WeightsError: as `read_pretrained`.
    """
    from flaxseg.saved_model import CARD_FILE, load_model

    if (pathlib.Path(source) / CARD_FILE).is_file():
        return load_model(source, **overrides)
    pretrained = read_pretrained(source)
    return pretrained.create_model(**overrides), pretrained.variables


def import_model(source: str | os.PathLike, out_dir: str | os.PathLike) -> pathlib.Path:
    """Converts a network of another library into a saved model, for `predict` and `evaluate`.

    Args:
      source: as for `read_pretrained`.
      out_dir: folder to write, see `save_model`.

    Returns:
      The folder.

    Raises:
      WeightsError: as `read_pretrained`.
      CheckpointError: the folder can not be written.
    """
    from flaxseg.saved_model import save_model

    pretrained = read_pretrained(source)
    return save_model(
        out_dir,
        pretrained.variables,
        name=pretrained.name,
        num_classes=pretrained.num_classes,
        options=pretrained.options,
        class_names=pretrained.class_names,
        extra={"imported_from": os.path.basename(os.fspath(source))},
    )


def read_pretrained(source: str | os.PathLike) -> Pretrained:
    """Reads a whole network of another library, recognised by the names of its tensors.

    Known are:

    * `deeplabv3_resnet50` and `deeplabv3_resnet101` of torchvision (any number of classes, with or
      without auxiliary classifier);
    * `deeplabv3_mobilenet_v2_voc21`, the quantised MobileNetV2 DeepLab of TensorFlow Lite in float
      (`backbone.features.*`, `head.*`);
    * PSPNet on ResNet-50, 101 and 152 of semseg (`layer0.*`, `ppm.*`), of mmsegmentation
      (`decode_head.psp_modules.*`; with `align_corners=False`, as trained on crops of 512: those
      of its 769 configs want `load_pretrained(source, align_corners=True)`) and of Caffe
      (`conv5_3_pool1_conv.weight`, `conv5_4/bn.slope`; see `CaffeNames`), with its mean as the
      model's normalisation;
    * the released ICNet with its Caffe names, with or without merged BatchNorm, those of its
      TensorFlow port or of meetps' pytorch-semseg (see `icnet_tensors`), with its mean as the
      model's normalisation. Tensors of other layers, which the released file has from training, are
      left out and named in the report;
    * GCN on a ResNet, of the widespread PyTorch port and its forks (`gcm1.conv_l1`, `brm9`), with
      deconvolutions or with bilinear upsampling, whose corners are taken to be aligned;
    * DFN on ResNet-50 or 101 of the first author's code, TorchSeg (`smooth_pre_rrbs.0.conv_1x1`);
    * DeepLab v1 and v2 of Caffe and of two PyTorch ports (see `name_maps_deeplab`);
    * `fcn_resnet50` and `fcn_resnet101` of torchvision;
    * the released LRR networks on VGG16 with the names of their MatConvNet parameters (see
      `name_maps_lrr`);
    * the released FCNs with their Caffe names, from Caffe or from a port (see
      `name_maps_fcn.caffe_fcn`);
    * RefineNet of DrSleep's PyTorch port (`rf101_voc`), and Light-Weight RefineNet on ResNets and
      MobileNetV2 (`rf_lw50_voc`, `rf_lwmbv2_voc`, ...), as released or as its training script saves
      them.
    * the released SegNet, SegNet-Basic and DeconvNet with their Caffe names (see
      `name_maps_unpooling.unpooling_net`) and Dilated-Nets (see `name_maps_dilatednet.dilatednet`);
    * U-Net on a ResNet of segmentation_models.pytorch (`decoder.blocks.0.conv1.0.weight`), without
      attention and with five stages of any width.

    TensorFlow's DeepLab release (`xception_65/...`, `logits/semantic/weights`) is known too:
    DeepLabv3 and v3+ on Xception, ResNet-v1 with either stem, and MobileNetV2, as arrays by the
    names of the checkpoint's variables in an `.npz` or `.safetensors` file. What an optimizer left
    in it is passed over. The files do not tell multi-grid nor the atrous rates; they are those of
    the paper at output stride 16 without multi-grid.

    Args:
      source: a file, a folder with one, or `"hf:owner/repository[/file]"`.

    Raises:
      WeightsError: the source can not be had or read, its layout is not known, or a tensor is
        missing, left over or has another shape.
    """
    try:
        found = find_source(source)
    except WeightsError as error:
        if pathlib.Path(source).stem in _LAYOUTS:
            raise WeightsError(
                f"{os.fspath(source)} is not on a hub; give the path of its weights file."
            ) from error
        raise
    tensors = read_tensors(found.path)
    anchors = {re.escape(name): read for name, read in _ANCHORS.items()} | _ANCHOR_PATTERNS
    # As they are, or as a converted Caffe net.
    for named in (tensors, caffe_tensors(tensors)):
        for anchor, read in anchors.items():
            pattern = re.compile(rf"((?:.*\.)?){anchor}")
            ends = [match for name in named if (match := pattern.fullmatch(name))]
            if len(ends) == 1:
                prefix = ends[0][1]
                inside = {
                    k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)
                }
                return read(inside, found.name)
    some = ", ".join(sorted(tensors)[:6])
    raise WeightsError(
        f"{found.name} is not a segmentation network of a known layout ({', '.join(_LAYOUTS)}): "
        f"it holds {len(tensors)} tensors, such as {some}. "
        "The weights of a backbone alone are loaded by load_backbone."
    )


_LAYOUTS = (
    "deeplabv3_mobilenet_v2_voc21",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv1",
    "deeplabv2",
    "semseg's, mmsegmentation's or Caffe's PSPNet",
    "TensorFlow's DeepLab",
    "fcn_resnet50",
    "fcn_resnet101",
    "fcn32s",
    "fcn16s",
    "fcn8s",
    "fcn8s_atonce",
    "fcn_alexnet",
    "Caffe's ICNet",
    "ports of GCN",
    "TorchSeg's DFN",
    "MatConvNet's LRR",
    "RefineNet",
    "Light-Weight RefineNet",
    "segnet",
    "segnet_basic",
    "deconvnet",
    "dilatednet",
    "segmentation_models.pytorch's U-Net",
)


def _read_torchvision(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    backbone = _torchvision_backbone(tensors, source)
    num_classes = _num_classes(tensors, "classifier.4.weight", source)
    options = {
        "backbone": backbone,
        "output_stride": 8,
        "rates": (12, 24, 36),
        "head_conv": True,
        "dropout": 0.5,
        "auxiliary": "aux_classifier.4.weight" in tensors,
        "align_corners": False,
        "normalization": dataclasses.asdict(IMAGENET),
    }
    name_map = NameMap("torchvision deeplabv3", torchvision_deeplabv3_module)
    return _assemble(tensors, source, num_classes, options, name_map)


def _torchvision_backbone(tensors: Mapping[str, np.ndarray], source: str) -> str:
    units = {m[1] for name in tensors if (m := re.match(r"backbone\.layer3\.(\d+)\.", name))}
    depths = {6: 50, 23: 101}
    if len(units) not in depths or "backbone.layer1.0.conv3.weight" not in tensors:
        raise WeightsError(
            f"{source} is a torchvision network on a backbone with {len(units)} units in "
            "layer3; known are resnet50 (6) and resnet101 (23)."
        )
    return f"resnet{depths[len(units)]}"


def _read_torchvision_fcn(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    backbone = _torchvision_backbone(tensors, source)
    num_classes = _num_classes(tensors, "classifier.4.weight", source)
    options = {
        "backbone": backbone,
        "output_stride": 8,
        "auxiliary": "aux_classifier.4.weight" in tensors,
        "normalization": dataclasses.asdict(IMAGENET),
    }
    return _assemble(tensors, source, num_classes, options, TORCHVISION_FCN, name="fcn")


def _read_caffe_fcn(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    num_classes = _num_classes(tensors, "score_fr.weight", source)
    name, options, name_map, tensors = caffe_fcn(tensors, source)
    return _assemble(tensors, source, num_classes, options, name_map, name=name)


def _read_mobile(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    num_classes = _num_classes(tensors, "head.classifier.weight", source)
    options = {
        "backbone": "mobilenet_v2",
        "output_stride": 16,
        "rates": (),
        "align_corners": True,
        "normalization": dataclasses.asdict(_TFLITE),
    }
    project = tensors.get("head.project.0.weight")
    if project is not None and project.ndim == 4:
        # Their concatenation is [image pooling, 1x1], ours [1x1, image pooling].
        pooling, branch = np.split(project, [project.shape[1] // 2], axis=1)
        tensors = {**tensors, "head.project.0.weight": np.concatenate([branch, pooling], 1)}
    name_map = NameMap("deeplabv3_mobilenet_v2_voc21", mobile_deeplabv3_module)
    return _assemble(tensors, source, num_classes, options, name_map)


def _read_deeplab(read, tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    name, options, kernel, name_map, tensors = read(tensors, source)
    num_classes = _num_classes(tensors, kernel, source)
    options |= {"normalization": {"mean": MEAN, "std": (1.0, 1.0, 1.0)}}
    return _assemble(tensors, source, num_classes, options, name_map, name=name)


def _read_icnet(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    tensors = icnet_tensors(tensors, source)
    num_classes = _num_classes(tensors, "conv6_cls.weight", source)
    stem = tensors.get("conv1_2_3x3.weight")
    options = {
        "backbone": "resnet50",
        "width": 0.5 if stem is None else len(stem) / 64,
        "auxiliary": "sub4_out.weight" in tensors,
        "normalization": dataclasses.asdict(_CAFFE_PSPNET),
    }
    # The released file has more than the network: what training needed.
    return _assemble(
        tensors, source, num_classes, options, CAFFE_ICNET, name="icnet", allow_unused=True
    )


def _read_lrr(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    num_classes, options, tensors = lrr_tensors(tensors, source)
    return _assemble(tensors, source, num_classes, options, MATCONVNET_LRR, name="lrr")


def _read_refinenet(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    name, options, kernel, name_map = refinenet_layout(tensors, source)
    num_classes = _num_classes(tensors, kernel, source)
    return _assemble(tensors, source, num_classes, options, name_map, name=name)


def _read_unpooling_net(name: str, tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    kernel, options, name_map, tensors = unpooling_net(tensors, name, source)
    num_classes = _num_classes(tensors, kernel, source)
    return _assemble(tensors, source, num_classes, options, name_map, name=name)


def _read_dilatednet(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    kernel, options, name_map, tensors = dilatednet(tensors, source)
    num_classes = _num_classes(tensors, kernel, source)
    return _assemble(tensors, source, num_classes, options, name_map, name="dilatednet")


def _read_smp_unet(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    units = {m[1] for name in tensors if (m := re.match(r"encoder\.layer3\.(\d+)\.", name))}
    bottleneck = "encoder.layer1.0.conv3.weight" in tensors
    depths = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101, (36, True): 152}
    depth = depths.get((len(units), bottleneck))
    if depth is None:
        raise WeightsError(
            f"{source} is a U-Net of segmentation_models.pytorch on an encoder with {len(units)} "
            f"units in layer3; known are the ResNets {', '.join(map(str, depths.values()))}."
        )
    blocks = [f"decoder.blocks.{index}.conv1.0.weight" for index in range(5)]
    options = {
        "backbone": f"resnet{depth}",
        "output_stride": 32,
        "features": tuple(len(tensors[name]) for name in blocks if name in tensors),
        "normalization": dataclasses.asdict(IMAGENET),
    }
    num_classes = _num_classes(tensors, "segmentation_head.0.weight", source)
    return _assemble(tensors, source, num_classes, options, SMP_UNET, name="unet")


def _read_semseg_pspnet(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    options = {
        "backbone": _bottleneck_resnet(tensors, r"layer3\.(\d+)\.", source),
        "auxiliary": "aux.4.weight" in tensors,
        "normalization": dataclasses.asdict(IMAGENET),
    }
    num_classes = _num_classes(tensors, "cls.4.weight", source)
    return _assemble(tensors, source, num_classes, options, SEMSEG_PSPNET, name="pspnet")


def _read_mmsegmentation_pspnet(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    options = {
        "backbone": _bottleneck_resnet(tensors, r"backbone\.layer3\.(\d+)\.", source),
        "backbone_options": {"deep_stem": (32, 32, 64), "dilate_first_unit": False},
        "auxiliary": "auxiliary_head.conv_seg.weight" in tensors,
        "align_corners": False,
        "normalization": dataclasses.asdict(IMAGENET),
    }
    num_classes = _num_classes(tensors, "decode_head.conv_seg.weight", source)
    return _assemble(tensors, source, num_classes, options, MMSEGMENTATION_PSPNET, name="pspnet")


def _read_caffe_pspnet(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    backbone = _bottleneck_resnet(tensors, r"conv4_(\d+)_3x3\.", source)
    options = {
        "backbone": backbone,
        # Nothing in the file tells: so it is in the published definitions, ResNet-50 for ADE20K
        # and ResNet-101 for VOC and Cityscapes.
        "backbone_options": {"stride_on": "1x1" if backbone == "resnet50" else "3x3"},
        "bins": (6, 3, 2, 1),
        "channel_dropout": False,
        "normalization": dataclasses.asdict(_CAFFE_PSPNET),
    }
    num_classes = _num_classes(tensors, "conv6.weight", source)
    return _assemble(tensors, source, num_classes, options, CAFFE_PSPNET, name="pspnet")


def _bottleneck_resnet(tensors: Mapping[str, np.ndarray], unit: str, source: str) -> str:
    """The name of the ResNet that has so many units in its third stage."""
    units = {m[1] for name in tensors if (m := re.match(unit, name))}
    depths = {6: 50, 23: 101, 36: 152}
    if len(units) not in depths:
        raise WeightsError(
            f"{source} is a network on a backbone with {len(units)} units in its third stage; "
            "known are resnet50 (6), resnet101 (23) and resnet152 (36)."
        )
    return f"resnet{depths[len(units)]}"


def _read_gcn(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    num_classes = _num_classes(tensors, "gcm1.conv_l1.weight", source)
    options = {
        "backbone": _bottleneck_resnet(tensors, r"layer3\.(\d+)\.", source),
        "kernel_size": tensors["gcm1.conv_l1.weight"].shape[2],
        "upsampling": "dense" if "deconv1.weight" in tensors else "resize",
        "normalization": dataclasses.asdict(IMAGENET),
    }
    return _assemble(tensors, source, num_classes, options, PORT_GCN, name="gcn")


def _read_dfn(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    options = {
        "backbone": _bottleneck_resnet(tensors, r"backbone\.layer3\.(\d+)\.", source),
        "normalization": dataclasses.asdict(IMAGENET),
    }
    num_classes = _num_classes(tensors, "smooth_heads.3.conv.weight", source)
    used = {name: value for name, value in tensors.items() if not name.startswith(IDLE)}
    return _assemble(used, source, num_classes, options, TORCHSEG_DFN, name="dfn")


def _read_slim(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
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
        "normalization": dataclasses.asdict(normalization),
    }
    if not branches and not dense_branches:
        options["rates"] = ()
    if convs:
        options["decoder_convs"] = len(convs)
    name_map = SlimNames("TF-slim deeplab", slim_deeplab_module(family, known[0]))
    name = "deeplabv3plus" if convs else "deeplabv3"
    return _assemble(tensors, source, kernel.shape[3], options, name_map, name=name)


# The layout of the ResNets but for the stem, see `ResNetBeta`.
_SLIM_LAYOUT = {"stride_unit": "last", "pool": "tf", "c2_before_addition": True}
# By scope: family of the names, backbone, its pictures and options.
_SLIM_BACKBONES = {
    "xception_41": ("xception", "xception41", SYMMETRIC, {}),
    "xception_65": ("xception", "xception65", SYMMETRIC, {}),
    "xception_71": ("xception", "xception71", SYMMETRIC, {}),
    "resnet_v1_50": ("resnet", "resnet50", _SLIM_RESNET, _SLIM_LAYOUT),
    "resnet_v1_101": ("resnet", "resnet101", _SLIM_RESNET, _SLIM_LAYOUT),
    # Slim's MobileNetV2 keeps the default epsilon of slim's BatchNorm.
    "MobilenetV2": ("mobilenet_v2", "mobilenet_v2", SYMMETRIC, {"batch_norm_epsilon": 1e-3}),
}


# A tensor that tells the layout, and its reader.
_ANCHORS = {
    "classifier.0.convs.0.0.weight": _read_torchvision,
    "head.image_pooling.1.weight": _read_mobile,
    "ppm.features.0.1.weight": _read_semseg_pspnet,
    "decode_head.psp_modules.0.1.conv.weight": _read_mmsegmentation_pspnet,
    "conv5_3_pool1_conv.weight": _read_caffe_pspnet,
    "logits/semantic/weights": _read_slim,
    "classifier.1.running_mean": _read_torchvision_fcn,
    "score_fr.weight": _read_caffe_fcn,
    LRR_ANCHOR: _read_lrr,
    **{
        f"conv1_sub1{separator}{array}": _read_icnet
        for separator in "./"
        for array in ("weight", "weights", "0")
    },
    "convbnrelu1_sub1.cbr_unit.0.weight": _read_icnet,
    "gcm1.conv_l1.weight": _read_gcn,
    "smooth_pre_rrbs.0.conv_1x1.weight": _read_dfn,
    **dict.fromkeys(REFINENET_ANCHORS, _read_refinenet),
    "conv5_3_D.weight": partial(_read_unpooling_net, "segnet"),
    "conv_decode4.weight": partial(_read_unpooling_net, "segnet_basic"),
    "fc6-deconv.weight": partial(_read_unpooling_net, "deconvnet"),
    "fc-final.weight": _read_dilatednet,
    "ctx_final.weight": _read_dilatednet,
    "decoder.blocks.0.conv1.0.weight": _read_smp_unet,
}
# The same where a part of the name is any word.
_ANCHOR_PATTERNS = {pattern: partial(_read_deeplab, read) for pattern, read in READERS}


def _num_classes(tensors: Mapping[str, np.ndarray], name: str, source: str) -> int:
    classifier = tensors.get(name)
    if classifier is None or classifier.ndim != 4 or not 2 <= len(classifier) <= 255:
        shape = None if classifier is None else list(classifier.shape)
        raise WeightsError(
            f"{source}: {name} has shape {shape}; wanted [classes, C, 1, 1] with 2 to 255 classes."
        )
    return len(classifier)


def _assemble(
    tensors, source, num_classes, options, name_map, *, name="deeplabv3", allow_unused=False
) -> Pretrained:
    from flaxseg.models import create_model

    model = create_model(name, num_classes, **options)
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    variables, report = load_weights(
        shapes, tensors, name_maps=[name_map], prefix="", source=source
    )
    if report.unused and not allow_unused:
        raise WeightsError(
            f"{source} has {len(report.unused)} tensors that the network has no place for, such "
            f"as {', '.join(report.unused[:6])}; it is another network than its names suggest."
        )
    class_names = VOC_CLASSES if num_classes == len(VOC_CLASSES) else None
    return Pretrained(name, num_classes, options, variables, class_names, report)
