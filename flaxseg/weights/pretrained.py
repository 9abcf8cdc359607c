"""Turns whole segmentation networks of other libraries into flaxseg models."""

import dataclasses
import os
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxseg.classes import VOC_CLASSES
from flaxseg.errors import WeightsError, listed
from flaxseg.models import create_model
from flaxseg.saved_model import CARD_FILE, load_model, save_model
from flaxseg.weights.layouts import LAYOUTS
from flaxseg.weights.layouts.layout import Network
from flaxseg.weights.load import load_weights
from flaxseg.weights.load_report import LoadReport
from flaxseg.weights.recognition import read_network
from flaxseg.weights.sources import find_source


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Holds a network as `create_model` and `save_model` take it.

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
        return create_model(self.name, self.num_classes, **(self.options | overrides))


def load_pretrained(source: str | os.PathLike, **overrides: Any) -> tuple[nn.Module, dict]:
    """Returns model and variables of a whole network.

    Example:

        model, variables = load_pretrained("deeplabv3_mobilenet_v2_voc21.safetensors")

    Args:
      source: as for `read_pretrained`, or the folder of a model that flaxseg saved.
      **overrides: options of `create_model` in place of the network's own, such as `dtype`.

    Raises:
      WeightsError: as `read_pretrained`.
    """
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
      WriteError: the folder cannot be written.
    """
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

    The modules of `flaxseg.weights.layouts` say which files are known, what is taken from them,
    and what is assumed where a file does not tell; docs/models.md lists them.

    Args:
      source: a file, a folder with one, or `"hf:owner/repository[/file]"`; see `find_source`.

    Raises:
      WeightsError: the source cannot be found or read; it is a backbone, or a model that flaxseg
        saved; its layout is not known; or a tensor is missing, left over or has another shape.
    """
    found = find_source(source)
    if found.hub is not None:
        raise WeightsError(
            f"{found.name} holds the ImageNet weights of a {found.hub.family} backbone, which is "
            "no segmentation network. Train a network from it with "
            f"--config.init.backbone={found.name} (load_backbone in Python), or give a file of a "
            "whole network."
        )
    if (pathlib.Path(source) / CARD_FILE).is_file():
        raise WeightsError(
            f"{found.name} is a model that flaxseg saved, which needs no import: predict and "
            "evaluate take the folder as it is (load_model in Python)."
        )
    tensors = found.read()
    network = read_network(tensors, found.name)
    if network is None:
        known = ", ".join(layout.title for layout in LAYOUTS)
        raise WeightsError(
            f"{found.name} is not a segmentation network of a known layout ({known}): it holds "
            f"{len(tensors)} tensors, such as {listed(sorted(tensors))}. The weights of a "
            "backbone alone are loaded by --config.init.backbone (load_backbone in Python)."
        )
    return _assemble(network, found.name)


def _assemble(network: Network, source: str) -> Pretrained:
    """Returns the network with its tensors in the variables of our model."""
    options = {**network.options, "normalization": dataclasses.asdict(network.normalization)}
    if network.protocol != "whole":
        options["protocol"] = network.protocol
    model = create_model(network.name, network.num_classes, **options)
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    variables, report = load_weights(
        shapes, network.tensors, name_maps=[network.name_map], prefix="", source=source
    )
    if report.unused and not network.allow_unused:
        raise WeightsError(
            f"{source} has {len(report.unused)} tensors that the network has no place for, such "
            f"as {listed(report.unused)}; it is another network than its names suggest."
        )
    class_names = VOC_CLASSES if network.num_classes == len(VOC_CLASSES) else None
    return Pretrained(network.name, network.num_classes, options, variables, class_names, report)
