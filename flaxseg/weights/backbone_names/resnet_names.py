"""Names the ResNets' modules as torchvision, timm, semseg, mmsegmentation, TF-slim and Caffe do."""

import re
from collections.abc import Callable, Mapping

from flaxseg.layers.image_normalization import CAFFE
from flaxseg.weights.name_map import FLAXSEG, NameMap, module_names
from flaxseg.weights.slim_names import slim_names, slim_scope

_resnet_module = module_names(
    {
        "(conv1|bn1)": r"\1",
        "classifier": "fc",
        # timm's deep stem: three convolutions, and the last BatchNorm in its old place.
        "conv1_1": "conv1.0",
        "bn1_1": "conv1.1",
        "conv1_2": "conv1.3",
        "bn1_2": "conv1.4",
        "conv1_3": "conv1.6",
        "bn1_3": "bn1",
        r"layer(\d)_(\d+)/downsample_conv": r"layer\1.\2.downsample.0",
        r"layer(\d)_(\d+)/downsample_bn": r"layer\1.\2.downsample.1",
        r"layer(\d)_(\d+)/(\w+)": r"layer\1.\2.\3",
    }
)

# Where a deep stem of three convolutions stands in a PyTorch `Sequential`, after each of which come
# its BatchNorm and a ReLU.
DEEP_STEM = {"conv1_1": 0, "bn1_1": 1, "conv1_2": 3, "bn1_2": 4, "conv1_3": 6, "bn1_3": 7}
_SEMSEG_STEM = {part: part.replace("1_", "") for part in DEEP_STEM}
_MMSEG_STEM = {part: f"stem.{number}" for part, number in DEEP_STEM.items()}


def deep_stem_resnet_module(stem: Mapping[str, str]) -> Callable[[str], str]:
    """Returns torchvision's names for a ResNet, with other names for a deep stem."""

    def module(path: str) -> str:
        if path in stem:
            return stem[path]
        if path in ("conv1", "bn1"):
            raise KeyError(path)
        return _resnet_module(path)

    return module


def slim_resnet_module(path: str) -> str:
    """Returns the scope of a module of `ResNet` with bottlenecks."""
    if found := re.fullmatch(r"(conv|bn)1(_\d)?", path):
        return slim_scope(f"conv1{found[2] or ''}", found[1])
    found = re.fullmatch(r"layer(\d)_(\d+)/(?:(downsample)_(conv|bn)|(conv|bn)(\d))", path)
    if found is None:
        raise KeyError(path)
    stage, index, shortcut, shortcut_kind, kind, number = found.groups()
    unit = f"block{stage}/unit_{int(index) + 1}/bottleneck_v1"
    if shortcut:
        return slim_scope(f"{unit}/shortcut", shortcut_kind)
    return slim_scope(f"{unit}/conv{number}", kind)


class CaffeResNetNames(NameMap):
    """Maps to Caffe's ResNets, whose BatchNorm is two layers: `bn...` with the statistics and
    `scale...` with the parameters."""

    def tensor_name(self, path: str) -> str:
        """Returns their name for our variable; see `NameMap`."""
        name = super().tensor_name(path)
        if name.startswith("bn") and path.endswith(("/scale", "/bias")):
            return "scale" + name.removeprefix("bn")
        return name


def caffe_resnet_module(numbered: bool) -> Callable[[str], str]:
    """Returns Caffe's names for a ResNet of bottlenecks: `res2a_branch2a` is `layer1_0/conv1`.

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


def _caffe_resnet_map(numbered: bool) -> NameMap:
    return CaffeResNetNames(
        f"Caffe ResNet-{'101' if numbered else '50'}",
        caffe_resnet_module(numbered),
        r"(conv1|res\d)",
        bgr=("conv1",),
        normalization=CAFFE,
    )


RESNET = (
    NameMap("torchvision and timm resnet", _resnet_module, r"(conv1|bn1|layer\d+)\."),
    *(
        NameMap(name, deep_stem_resnet_module(stem), r"(stem|conv\d|bn\d|layer\d+)\.")
        for name, stem in (
            ("semseg resnet", _SEMSEG_STEM),
            ("mmsegmentation resnet", _MMSEG_STEM),
        )
    ),
    slim_names("resnet_v1", slim_resnet_module, r"(conv1|block\d)"),
    _caffe_resnet_map(numbered=True),
    _caffe_resnet_map(numbered=False),
    FLAXSEG,
)
