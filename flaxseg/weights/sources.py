"""Weights by name: which file of the Hugging Face hub a name means, and how its network was
made."""

import dataclasses
import os
import pathlib

from flaxseg.errors import WeightsError
from flaxseg.layers.image_normalization import EFFICIENTNET_LITE, IMAGENET, ImageNormalization
from flaxseg.weights.files import SUFFIXES, find_file


@dataclasses.dataclass(frozen=True)
class HubWeights:
    """A weights file on the Hugging Face hub.

    Attributes:
      repository: `owner/name`.
      family: key of `name_maps.NAME_MAPS`.
      normalization: of the pictures that the network was trained on.
      padding: of the network's convolutions, where ours can differ.
      filename: in the repository.
    """

    repository: str
    family: str
    normalization: ImageNormalization
    padding: str = "torch"
    filename: str = "model.safetensors"


def _timm(name: str, family: str, normalization: ImageNormalization, padding: str = "torch"):
    return HubWeights(f"timm/{name}", family, normalization, padding)


# ImageNet weights. "tv" are torchvision's first, "a1" those of Wightman et al., "ResNet strikes
# back", 2021. Names, normalisation and padding are those of timm 1.0's own table. Reading was
# tested with files of the same names and shapes; the downloads themselves were not.
HUB_WEIGHTS = {
    weights.repository: weights
    for weights in (
        *(
            _timm(f"resnet{depth}.{recipe}_in1k", "resnet", IMAGENET)
            for recipe in ("tv", "a1")
            for depth in (18, 34, 50, 101, 152)
        ),
        _timm("vgg16.tv_in1k", "vgg16", IMAGENET),
        _timm("vgg16_bn.tv_in1k", "vgg16_bn", IMAGENET),
        _timm("mobilenetv2_100.ra_in1k", "mobilenet_v2", IMAGENET),
        # timm scales to [-1, 1]; the network was trained with (RGB - 127) / 128, all but the same.
        _timm("tf_efficientnet_lite0.in1k", "efficientnet_lite0", EFFICIENTNET_LITE, "tf"),
    )
}


@dataclasses.dataclass(frozen=True)
class Source:
    """A weights file that is on this machine.

    Attributes:
      path: the file.
      name: what the user called it.
      hub: what is known of it if it was named, else None.
    """

    path: pathlib.Path
    name: str
    hub: HubWeights | None = None


def list_hub_weights() -> list[str]:
    """Returns the names under which weights can be downloaded."""
    return list(HUB_WEIGHTS)


def find_source(source: str | os.PathLike) -> Source:
    """Returns the file that a path or a name means, downloading it if need be.

    Args:
      source: a file, a folder with one weights file, one of `list_hub_weights()`, or
        `"hf:owner/repository"` or `"hf:owner/repository/file"` for any other of the hub.

    Raises:
      WeightsError: there is no such file or name, or it could not be downloaded.
    """
    text = os.fspath(source)
    if os.path.exists(text):
        return Source(find_file(text), text)
    if text in HUB_WEIGHTS:
        hub = HUB_WEIGHTS[text]
        return Source(_download(hub.repository, hub.filename, text), text, hub)
    if text.startswith("hf:"):
        owner, _, rest = text.removeprefix("hf:").partition("/")
        repository, _, filename = rest.partition("/")
        if not owner or not repository:
            raise WeightsError(f"{text!r} must have the form hf:owner/repository[/file].")
        path = _download(f"{owner}/{repository}", filename or "model.safetensors", text)
        return Source(path, text)
    names = ", ".join(HUB_WEIGHTS)
    raise WeightsError(
        f"{text!r} is neither a file or folder nor a known name. Give a local file "
        f"({', '.join(SUFFIXES)}), a folder with one, hf:owner/repository, or one of: {names}."
    )


def _download(repository: str, filename: str, name: str) -> pathlib.Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise WeightsError(
            f"{name}: downloading needs the package huggingface_hub, which is not installed."
        ) from error
    try:
        return pathlib.Path(huggingface_hub.hf_hub_download(repository, filename))
    except (OSError, ValueError, EntryNotFoundError) as error:
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"{name} could not be taken from the Hugging Face hub ({repository}, {filename}): "
            f"{type(error).__name__}: {reason} "
            f"Without internet, fetch that file on another machine and give its path "
            f"({', '.join(SUFFIXES)}) in place of the name."
        ) from error
