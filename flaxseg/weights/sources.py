"""Finds the weights file that a path or a name means, here or on the Hugging Face hub."""

import dataclasses
import logging
import os
import pathlib

import numpy as np

from flaxseg.errors import WeightsError, near
from flaxseg.layers.image_normalization import (
    EFFICIENTNET_LITE,
    IMAGENET,
    SYMMETRIC,
    ImageNormalization,
)
from flaxseg.weights.tensor_files import SUFFIXES, find_file, read_tensors


@dataclasses.dataclass(frozen=True)
class HubWeights:
    """Describes a weights file on the Hugging Face hub.

    Attributes:
      repository: `owner/name`.
      family: key of `NAME_MAPS`.
      normalization: of the images that the network was trained on.
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
        # Stem of 3x3 convolutions to 64, 64, 128 channels, as PSPNet's ResNets have it.
        *(_timm(f"resnet{depth}s.gluon_in1k", "resnet", IMAGENET) for depth in (50, 101, 152)),
        _timm("mobilenetv2_100.ra_in1k", "mobilenet_v2", IMAGENET),
        # timm scales to [-1, 1]; the network was trained with (RGB - 127) / 128, which is nearly
        # the same.
        _timm("tf_efficientnet_lite0.in1k", "efficientnet_lite0", EFFICIENTNET_LITE, "tf"),
        # From TensorFlow's DeepLab release.
        *(
            _timm(f"xception{depth}.tf_in1k", f"xception{depth}", SYMMETRIC)
            for depth in (41, 65, 71)
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Names a weights file, on this machine or on the Hugging Face hub.

    Attributes:
      name: what the user called it.
      path: the file on this machine; None for a file on the hub.
      repository: `owner/name` on the hub, for a file there.
      filename: in the repository.
      hub: what is known about it if it is one of `list_hub_weights()`, else None.
    """

    name: str
    path: pathlib.Path | None = None
    repository: str = ""
    filename: str = "model.safetensors"
    hub: HubWeights | None = None

    def read(self) -> dict[str, np.ndarray]:
        """Returns its tensors by name, downloading the file first where it is on the hub.

        Raises:
          WeightsError: it could not be downloaded, or as `read_tensors`.
        """
        return read_tensors(_download(self) if self.path is None else self.path)


def list_hub_weights() -> list[str]:
    """Returns the names under which weights can be downloaded."""
    return list(HUB_WEIGHTS)


def find_source(source: str | os.PathLike) -> Source:
    """Returns the file that a path or a name means; nothing is read or downloaded yet.

    Whatever loads weights takes the same sources, and refuses those that it cannot use.

    Args:
      source: a file, a folder with one weights file, one of `list_hub_weights()`, or
        `"hf:owner/repository"` or `"hf:owner/repository/file"` for any other file on the hub.

    Raises:
      WeightsError: there is no such file or name.
    """
    text = os.fspath(source)
    if os.path.exists(text):
        return Source(text, path=find_file(text))
    if text in HUB_WEIGHTS:
        hub = HUB_WEIGHTS[text]
        return Source(text, repository=hub.repository, filename=hub.filename, hub=hub)
    if text.startswith("hf:"):
        owner, _, rest = text.removeprefix("hf:").partition("/")
        repository, _, filename = rest.partition("/")
        if not owner or not repository:
            raise WeightsError(f"{text!r} must have the form hf:owner/repository[/file].")
        found = Source(text, repository=f"{owner}/{repository}")
        return dataclasses.replace(found, filename=filename) if filename else found
    raise WeightsError(
        f"{text!r} is neither a file or folder nor a known name.{near(text, HUB_WEIGHTS)} Give a "
        f"local file ({', '.join(SUFFIXES)}), a folder with one, hf:owner/repository[/file], or, "
        f"for a backbone, one of: {', '.join(HUB_WEIGHTS)}."
    )


def _download(source: Source) -> pathlib.Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise WeightsError(
            f"{source.name}: downloading needs the package huggingface_hub, which is not installed."
        ) from error
    # It warns of each of its attempts; the last one's error says the same. Its modules, which set
    # the level of its logger, are imported by the first use of the name.
    download, log = huggingface_hub.hf_hub_download, logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return pathlib.Path(download(source.repository, source.filename))
    except (OSError, ValueError, EntryNotFoundError) as error:
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"{source.name} could not be downloaded from the Hugging Face hub "
            f"({source.repository}, {source.filename}): {type(error).__name__}: {reason} "
            "Without internet, fetch that file on another machine and give its path "
            f"({', '.join(SUFFIXES)}) in place of the name."
        ) from error
    finally:
        log.setLevel(level)
