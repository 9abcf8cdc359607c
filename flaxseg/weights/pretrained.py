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
from flaxseg.layers.image_normalization import IMAGENET, ImageNormalization
from flaxseg.weights.files import read_tensors
from flaxseg.weights.load import load_weights
from flaxseg.weights.name_maps import (
    NameMap,
    mobile_deeplabv3_module,
    torchvision_deeplabv3_module,
)
from flaxseg.weights.name_maps_deeplab import MEAN, READERS, caffe_tensors
from flaxseg.weights.name_maps_icnet import CAFFE_ICNET, ICNET_MEAN, icnet_tensors
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

    Known are `deeplabv3_resnet50` and `deeplabv3_resnet101` of torchvision (any number of classes,
    with or without auxiliary classifier), `deeplabv3_mobilenet_v2_voc21`, the quantised MobileNetV2
    DeepLab of TensorFlow Lite in float (`backbone.features.*`, `head.*`), DeepLab v1 and v2 of
    Caffe and of two PyTorch ports (see `name_maps_deeplab`), and the released ICNet with its Caffe
    names, with or without merged BatchNorm, or those of meetps' pytorch-semseg (see
    `name_maps_icnet`). Tensors of other layers in an ICNet file are left out and named in the
    report.

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
    "icnet",
)


def _read_torchvision(tensors: Mapping[str, np.ndarray], source: str) -> Pretrained:
    units = {m[1] for name in tensors if (m := re.match(r"backbone\.layer3\.(\d+)\.", name))}
    depths = {6: 50, 23: 101}
    if len(units) not in depths or "backbone.layer1.0.conv3.weight" not in tensors:
        raise WeightsError(
            f"{source} is a torchvision DeepLabV3 on a backbone with {len(units)} units in "
            "layer3; known are resnet50 (6) and resnet101 (23)."
        )
    num_classes = _num_classes(tensors, "classifier.4.weight", source)
    options = {
        "backbone": f"resnet{depths[len(units)]}",
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
        "normalization": {"mean": ICNET_MEAN, "std": (1.0, 1.0, 1.0)},
    }
    # The released file has more than the network: what training needed.
    return _assemble(
        tensors, source, num_classes, options, CAFFE_ICNET, name="icnet", allow_unused=True
    )


# A tensor that tells the layout, and its reader.
_ANCHORS = {
    "classifier.0.convs.0.0.weight": _read_torchvision,
    "head.image_pooling.1.weight": _read_mobile,
    **{
        f"conv1_sub1{separator}{array}": _read_icnet
        for separator in "./"
        for array in ("weight", "weights", "0")
    },
    "convbnrelu1_sub1.cbr_unit.0.weight": _read_icnet,
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
