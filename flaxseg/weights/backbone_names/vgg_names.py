"""Names the modules of VGG16 and AlexNet as torchvision, timm and Caffe do."""

from collections.abc import Callable, Sequence

from flaxseg.layers.image_normalization import CAFFE, IMAGENET
from flaxseg.weights.name_map import FLAXSEG, NameMap

# torchvision's VGG16 numbers its layers: convolution, ReLU, ..., pool, and so on. Ours by theirs.
VGG16_CONVOLUTIONS = tuple(
    f"{stage}_{index}"
    for stage, size in enumerate((2, 2, 3, 3, 3), 1)
    for index in range(1, size + 1)
)
VGG_GRIDS = {"fc6": (7, 7), "fc7": (1, 1), "classifier": (1, 1)}


def _torchvision_vgg_module(batch_norm: bool, fc: Sequence[str]) -> Callable[[str], str]:
    """Returns torchvision's names for VGG16; `fc` are those of fc6, fc7 and the classifier."""
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
    """Returns the name of a module of AlexNet in Caffe's nets: ours except for the classifier."""
    if path == "classifier":
        return "fc8"
    if path not in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"):
        raise KeyError(path)
    return path


def caffe_vgg_module(path: str) -> str:
    """Returns the name of a module of VGG16 in Caffe's nets: ours except for the classifier."""
    if path == "classifier":
        return "fc8"
    if path not in VGG_GRIDS and path.removeprefix("conv") not in VGG16_CONVOLUTIONS:
        raise KeyError(path)
    return path


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


ALEXNET = (CAFFE_ALEXNET, FLAXSEG)
VGG16 = (*_vgg_maps(batch_norm=False), CAFFE_VGG16, FLAXSEG)
VGG16_BN = (*_vgg_maps(batch_norm=True), FLAXSEG)
