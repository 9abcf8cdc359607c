"""Where other libraries keep the weights of our networks: one naming scheme per family.

A scheme goes from our names to theirs, so that every variable of a model is looked for and none can
be forgotten. It maps the path of a module (`"layer1_0/conv1"`) to the prefix of its tensors
(`"layer1.0.conv1"`); the variables inside a module are named in one way by all PyTorch libraries
(`kernel` is `weight`, BatchNorm's `scale` is `weight` and its `mean` is `running_mean`).
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from flaxseg.backbones.mobile import EFFICIENTNET_LITE0_STAGES, MOBILENET_V2_STAGES, Stage
from flaxseg.layers.image_normalization import CAFFE, IMAGENET, ImageNormalization
from flaxseg.weights.name_maps_slim import (
    slim_mobilenet_v2_module,
    slim_resnet_module,
    slim_xception_module,
)

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class NameMap:
    """A naming scheme.

    Attributes:
      name: for messages and reports.
      module: from the path of one of our modules to the prefix of its tensors; KeyError where the
        scheme has no such module.
      body: pattern of the beginning of names that belong to what the network is, in contrast to an
        ImageNet classifier on top; such a tensor may not be left over, or it is another network.
      channels_last: whether kernels are stored as ours are, and not as `[out, in, h, w]`.
      grids: `(height, width)` of the features before a fully connected layer that is a convolution
        here, by the path of our module; its matrix is `[out, in * height * width]`.
      bgr: paths of our convolutions that read the picture, where the file's read blue, green, red.
        Channels beyond the third, such as a depth, stay where they are.
      transposed: paths of our transposed convolutions; theirs are `[in, out, h, w]`.
      normalization: of the pictures that networks with these names were trained on, where the names
        tell.
    """

    name: str
    module: Callable[[str], str]
    body: str = ""
    channels_last: bool = False
    grids: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    bgr: Sequence[str] = ()
    transposed: Sequence[str] = ()
    normalization: ImageNormalization | None = None

    def tensor_name(self, path: str) -> str:
        """Returns their name of our variable `"params/layer1_0/conv1/kernel"`.

        Raises:
          KeyError: the scheme has no such variable.
        """
        _, *module, leaf = path.split("/")
        return f"{self.module('/'.join(module))}.{_LEAVES[leaf]}"

    def convert(self, path: str, tensor: np.ndarray) -> np.ndarray:
        """Returns their tensor in our layout.

        Kernels of convolutions go from `[out, in, h, w]` to `[h, w, in, out]`, which takes
        depthwise ones from `[C, 1, h, w]` to `[h, w, 1, C]`, and linear layers are transposed.
        """
        if self.channels_last or not path.endswith("/kernel"):
            return tensor
        module = path.removesuffix("/kernel").partition("/")[2]
        if tensor.ndim == 2 and module in self.grids:
            grid = self.grids[module]
            tensor = tensor.reshape(len(tensor), -1, *grid)
        if tensor.ndim == 4:
            tensor = tensor.transpose((2, 3, 0, 1) if module in self.transposed else (2, 3, 1, 0))
            if module in self.bgr:
                tensor = np.concatenate([tensor[:, :, 2::-1], tensor[:, :, 3:]], 2)
            return tensor
        return tensor.T if tensor.ndim == 2 else tensor


class _FlaxsegNames(NameMap):
    """Our own names, as in `model.safetensors` of a saved model."""

    def tensor_name(self, path: str) -> str:
        collection, rest = path.split("/", 1)
        return f"{collection}/backbone/{rest}"


_SLIM_LEAVES = {
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}


class SlimNames(NameMap):
    """The variables of TF-slim, under `scope/weights` and `scope/BatchNorm/gamma`.

    Kernels lie as ours do, but that those of depthwise convolutions are `[h, w, C, 1]`.
    """

    def tensor_name(self, path: str) -> str:
        _, *module, leaf = path.split("/")
        scope = self.module("/".join(module))
        if scope.endswith("/BatchNorm"):
            return f"{scope}/{_SLIM_LEAVES[leaf]}"
        if leaf == "bias":
            return f"{scope}/biases"
        return f"{scope}/{'depthwise_' if module[-1] == 'depthwise_conv' else ''}weights"

    def convert(self, path: str, tensor: np.ndarray) -> np.ndarray:
        if path.endswith("depthwise_conv/kernel") and tensor.ndim == 4:
            return tensor.swapaxes(2, 3)
        if path.endswith("aspp/project/conv/kernel") and tensor.ndim == 4:
            # Their concatenation begins with image pooling, ours ends with it.
            return np.roll(tensor, -tensor.shape[3], 2)
        return tensor


# What an optimizer and an averaging of parameters leave beside a variable of TensorFlow.
SLIM_SLOTS = r"(Momentum|ExponentialMovingAverage|RMSProp(_1)?|Adam(_1)?)"


def _slim(name: str, module: Callable[[str], str], body: str) -> SlimNames:
    return SlimNames(f"TF-slim {name}", module, rf"{body}(?!.*/{SLIM_SLOTS}$)")


def _resnet_module(path: str) -> str:
    if path in ("conv1", "bn1"):
        return path
    if path == "classifier":
        return "fc"
    if stem := re.fullmatch(r"(conv|bn)1_(\d)", path):
        # timm's deep stem: three convolutions, and the last BatchNorm in its old place.
        kind, number = stem[1], int(stem[2])
        if kind == "bn" and number == 3:
            return "bn1"
        return f"conv1.{3 * (number - 1) + (kind == 'bn')}"
    stage, index, part = re.fullmatch(r"layer(\d)_(\d+)/(\w+)", _known(path)).groups()
    part = {"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"}.get(part, part)
    return f"layer{stage}.{index}.{part}"


# Where a deep stem of three convolutions stands in a PyTorch `Sequential`, after each of which come
# its BatchNorm and a ReLU.
DEEP_STEM = {"conv1_1": 0, "bn1_1": 1, "conv1_2": 3, "bn1_2": 4, "conv1_3": 6, "bn1_3": 7}
_SEMSEG_STEM = {part: part.replace("1_", "") for part in DEEP_STEM}
_MMSEG_STEM = {part: f"stem.{number}" for part, number in DEEP_STEM.items()}


def deep_stem_resnet_module(stem: Mapping[str, str]) -> Callable[[str], str]:
    """torchvision's names of a ResNet, but for those of its deep stem."""

    def module(path: str) -> str:
        if path in stem:
            return stem[path]
        if path in ("conv1", "bn1"):
            raise KeyError(path)
        return _resnet_module(path)

    return module


def _torchvision_mobilenet_v2_module(path: str) -> str:
    fixed = {
        "stem_conv": "features.0.0",
        "stem_bn": "features.0.1",
        "head_conv": "features.18.0",
        "head_bn": "features.18.1",
        "classifier": "classifier.1",
    }
    if path in fixed:
        return fixed[path]
    number, part = re.fullmatch(r"block(\d+)/(\w+)", _known(path)).groups()
    first = {
        "depthwise_conv": "0.0",
        "depthwise_bn": "0.1",
        "project_conv": "1",
        "project_bn": "2",
    }
    others = {
        "expand_conv": "0.0",
        "expand_bn": "0.1",
        "depthwise_conv": "1.0",
        "depthwise_bn": "1.1",
        "project_conv": "2",
        "project_bn": "3",
    }
    return f"features.{number}.conv.{(first if number == '1' else others)[part]}"


def _timm_mobile_module(stages: Iterable[Stage]) -> Callable[[str], str]:
    """timm's names of a network of inverted residuals, `blocks.<stage>.<index>`."""
    places = [(s, i) for s, stage in enumerate(stages) for i in range(stage.blocks)]
    fixed = {
        "stem_conv": "conv_stem",
        "stem_bn": "bn1",
        "head_conv": "conv_head",
        "head_bn": "bn2",
        "classifier": "classifier",
    }
    first = {
        "depthwise_conv": "conv_dw",
        "depthwise_bn": "bn1",
        "project_conv": "conv_pw",
        "project_bn": "bn2",
    }
    others = {
        "expand_conv": "conv_pw",
        "expand_bn": "bn1",
        "depthwise_conv": "conv_dw",
        "depthwise_bn": "bn2",
        "project_conv": "conv_pwl",
        "project_bn": "bn3",
    }

    def module(path: str) -> str:
        if path in fixed:
            return fixed[path]
        number, part = re.fullmatch(r"block(\d+)/(\w+)", _known(path)).groups()
        stage, index = places[int(number) - 1]
        return f"blocks.{stage}.{index}.{(others if stage else first)[part]}"

    return module


# torchvision's VGG16 numbers its layers: convolution, ReLU, ..., pool, and so on. Ours by theirs.
VGG16_CONVOLUTIONS = tuple(
    f"{stage}_{index}"
    for stage, size in enumerate((2, 2, 3, 3, 3), 1)
    for index in range(1, size + 1)
)
VGG_GRIDS = {"fc6": (7, 7), "fc7": (1, 1), "classifier": (1, 1)}


def _torchvision_vgg_module(batch_norm: bool, fc: Sequence[str]) -> Callable[[str], str]:
    """torchvision's names of VGG16; `fc` are those of fc6, fc7 and the classifier."""
    numbers, number = {}, 0
    for place in VGG16_CONVOLUTIONS:
        if place != "1_1" and place.endswith("_1"):
            number += 1  # the pool
        numbers[f"conv{place}"] = number
        if batch_norm:
            numbers[f"bn{place}"] = number + 1
        number += 3 if batch_norm else 2
    names = {path: f"features.{number}" for path, number in numbers.items()}
    return (names | dict(zip(VGG_GRIDS, fc, strict=True))).__getitem__


def _vgg_maps(batch_norm: bool) -> tuple[NameMap, ...]:
    suffix = "_bn" if batch_norm else ""
    return tuple(
        NameMap(
            f"{library} vgg16{suffix}",
            _torchvision_vgg_module(batch_norm, fc),
            r"features\.",
            grids=VGG_GRIDS,
            normalization=IMAGENET,
        )
        for library, fc in (
            ("torchvision", ("classifier.0", "classifier.3", "classifier.6")),
            ("timm", ("pre_logits.fc1", "pre_logits.fc2", "head.fc")),
        )
    )


def caffe_alexnet_module(path: str) -> str:
    """The name of a module of AlexNet in Caffe's nets, which is ours but for the classifier."""
    if path == "classifier":
        return "fc8"
    if path not in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"):
        raise KeyError(path)
    return path


def caffe_vgg_module(path: str) -> str:
    """The name of a module of VGG16 in Caffe's nets, which is ours but for the classifier."""
    if path == "classifier":
        return "fc8"
    if path not in VGG_GRIDS and path.removeprefix("conv") not in VGG16_CONVOLUTIONS:
        raise KeyError(path)
    return path


def _timm_xception_module(entry_blocks: int, middle_blocks: int) -> Callable[[str], str]:
    """timm's names of an aligned Xception, whose blocks are numbered through."""
    first = {"entry": 0, "middle": entry_blocks, "exit": entry_blocks + middle_blocks}

    def module(path: str) -> str:
        if path == "classifier":
            return "head.fc"
        if stem := re.fullmatch(r"entry_(conv|bn)(\d)", path):
            return f"stem.{int(stem[2]) - 1}.{stem[1]}"
        found = re.fullmatch(
            r"(entry|middle|exit)(\d+)/(?:separable(\d)/(depthwise|pointwise)|shortcut)_(conv|bn)",
            path,
        )
        if found is None:
            raise KeyError(path)
        flow, number, separable, half, kind = found.groups()
        block = f"blocks.{first[flow] + int(number) - 1}"
        if half is None:
            return f"{block}.shortcut.{kind}"
        return f"{block}.stack.conv{separable}.{kind}_{'dw' if half == 'depthwise' else 'pw'}"

    return module


class CaffeResNetNames(NameMap):
    """Names of Caffe's ResNets, whose BatchNorm is two layers: `bn...` with the statistics and
    `scale...` with the parameters."""

    def tensor_name(self, path: str) -> str:
        """Returns their name of our variable; see `NameMap`."""
        name = super().tensor_name(path)
        if name.startswith("bn") and path.endswith(("/scale", "/bias")):
            return "scale" + name.removeprefix("bn")
        return name


def caffe_resnet_module(numbered: bool) -> Callable[[str], str]:
    """Caffe's names of a ResNet of bottlenecks: `res2a_branch2a` is `layer1_0/conv1`.

    Args:
      numbered: whether the units of the third and fourth stage after the first are `b1`, `b2` and
        so on, as in ResNet-101 and 152, and not letters, as in ResNet-50.
    """

    def module(path: str) -> str:
        fixed = {"conv1": "conv1", "bn1": "bn_conv1", "classifier": "fc1000"}
        if path in fixed:
            return fixed[path]
        place = re.fullmatch(r"layer(\d)_(\d+)/(downsample_|)(conv|bn)(\d?)", path)
        if place is None:
            raise KeyError(path)
        stage, unit, kind = int(place[1]) + 1, int(place[2]), place[4]
        if numbered and stage in (3, 4) and unit:
            letter = f"b{unit}"
        else:
            letter = "abcdefghijklmnopqrstuvwxyz"[unit]
        branch = "1" if place[3] else f"2{'abc'[int(place[5]) - 1]}"
        return f"{'res' if kind == 'conv' else 'bn'}{stage}{letter}_branch{branch}"

    return module


def _xception_maps(depth: int, entry_blocks: int, middle_blocks: int) -> tuple[NameMap, ...]:
    return (
        NameMap(
            f"timm xception{depth}",
            _timm_xception_module(entry_blocks, middle_blocks),
            r"(stem|blocks)\.",
        ),
        _slim("xception", slim_xception_module, r"(entry|middle|exit)_flow/"),
        FLAXSEG,
    )


def _known(path: str) -> str:
    """The path, if it has the form of a module inside of a block."""
    if not re.fullmatch(r"(layer\d_\d+|block\d+)/\w+", path):
        raise KeyError(path)
    return path


FLAXSEG = _FlaxsegNames(
    "a flaxseg model", lambda path: path, r"(params|batch_stats)/backbone/", channels_last=True
)

CAFFE_VGG16 = NameMap(
    "Caffe VGG16",
    caffe_vgg_module,
    "conv",
    grids=VGG_GRIDS,
    bgr=("conv1_1",),
    normalization=CAFFE,
)

CAFFE_ALEXNET = NameMap(
    "Caffe AlexNet",
    caffe_alexnet_module,
    "conv",
    grids=VGG_GRIDS | {"fc6": (6, 6)},
    bgr=("conv1",),
    normalization=CAFFE,
)


def _caffe_resnet_map(numbered: bool) -> NameMap:
    return CaffeResNetNames(
        f"Caffe ResNet-{'101' if numbered else '50'}",
        caffe_resnet_module(numbered),
        r"(conv1|res\d)",
        bgr=("conv1",),
        normalization=CAFFE,
    )


_TIMM_BODY = r"(conv_stem|bn1|blocks)\."

NAME_MAPS: dict[str, tuple[NameMap, ...]] = {
    "resnet": (
        NameMap("torchvision and timm resnet", _resnet_module, r"(conv1|bn1|layer\d+)\."),
        *(
            NameMap(name, deep_stem_resnet_module(stem), r"(stem|conv\d|bn\d|layer\d+)\.")
            for name, stem in (
                ("semseg resnet", _SEMSEG_STEM),
                ("mmsegmentation resnet", _MMSEG_STEM),
            )
        ),
        _slim("resnet_v1", slim_resnet_module, r"(conv1|block\d)"),
        _caffe_resnet_map(numbered=True),
        _caffe_resnet_map(numbered=False),
        FLAXSEG,
    ),
    "mobilenet_v2": (
        NameMap(
            "torchvision mobilenet_v2", _torchvision_mobilenet_v2_module, r"features\.(?!18\.)"
        ),
        NameMap("timm mobilenetv2_100", _timm_mobile_module(MOBILENET_V2_STAGES), _TIMM_BODY),
        _slim("MobilenetV2", slim_mobilenet_v2_module, r"expanded_conv"),
        FLAXSEG,
    ),
    "efficientnet_lite0": (
        NameMap(
            "timm efficientnet_lite0",
            _timm_mobile_module(EFFICIENTNET_LITE0_STAGES),
            _TIMM_BODY,
        ),
        FLAXSEG,
    ),
    "xception41": _xception_maps(41, entry_blocks=3, middle_blocks=8),
    "xception65": _xception_maps(65, entry_blocks=3, middle_blocks=16),
    "xception71": _xception_maps(71, entry_blocks=5, middle_blocks=16),
    "alexnet": (CAFFE_ALEXNET, FLAXSEG),
    "vgg16": (*_vgg_maps(batch_norm=False), CAFFE_VGG16, FLAXSEG),
    "vgg16_bn": (*_vgg_maps(batch_norm=True), FLAXSEG),
}


def family_of(flat: Mapping[str, object]) -> str | None:
    """Returns the key of `NAME_MAPS` that fits a backbone's flat variables, or None."""
    modules = {path.split("/")[1] for path in flat}
    if "layer1_0" in modules:
        return "resnet"
    if "entry1" in modules:
        if "entry5" in modules:
            return "xception71"
        return "xception65" if "middle16" in modules else "xception41"
    if {"conv1", "conv5"} <= modules:
        return "alexnet"
    if "conv1_1" in modules:
        return "vgg16_bn" if "bn1_1" in modules else "vgg16"
    blocks = sum(bool(re.fullmatch(r"block\d+", module)) for module in modules)
    for family, stages in (
        ("mobilenet_v2", MOBILENET_V2_STAGES),
        ("efficientnet_lite0", EFFICIENTNET_LITE0_STAGES),
    ):
        if blocks == sum(stage.blocks for stage in stages):
            return family
    return None
