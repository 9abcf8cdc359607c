"""Puts weights from other libraries, or from a saved model, into the variables of a model."""

import functools
import os
import re
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.errors import WeightsError, listed
from flaxseg.layers.image_normalization import ImageNormalization
from flaxseg.saved_model import load_model
from flaxseg.variable_paths import flatten, unflatten
from flaxseg.weights.caffe_tensors import caffe_tensors
from flaxseg.weights.fc_subsampling import load_fully_connected
from flaxseg.weights.load_report import LoadReport, describe_mismatch, item_lines
from flaxseg.weights.name_map import FLAXSEG, NameMap
from flaxseg.weights.recognition import (
    UnknownNamesError,
    in_body,
    maps_for,
    maps_of,
    names_of,
    recognise,
)
from flaxseg.weights.sources import Source, find_source

# Means may differ by so much, in 0..255, and deviations by so large a share, before two
# normalisations count as different: the (127, 128) and (127.5, 127.5) of EfficientNet-Lite do not.
_MEAN_TOLERANCE = 2.0
_STD_TOLERANCE = 0.02
# PyTorch's count of training steps, which nothing here reads.
_BOOKKEEPING = "num_batches_tracked"


def load_backbone(
    model: nn.Module,
    variables: Mapping,
    source: str | os.PathLike,
    *,
    backbone_name: str | None = None,
    prefix: str | None = None,
) -> tuple[dict, LoadReport]:
    """Loads pretrained weights into the backbone of a segmentation model, and into the copies that
    it has for other scales of the image (`"backbone_2"`, ...).

    Example:

        variables, report = load_backbone(model, variables, "timm/resnet50.tv_in1k")
        print(report)

    Args:
      model: made by `create_model`; it says how images are normalised.
      variables: of the model; not changed.
      source: a file, a folder or a name, see `sources.find_source`. Names of torchvision, of timm
        and of flaxseg's own saved models are recognised, also behind a prefix (`encoder.`,
        `state_dict.`, `module.`).
      backbone_name: key of `list_backbones()`; needed only for your own backbone with modules named
        like ours.
      prefix: of the names to take, where the file has more than one set of them.

    Returns:
      New variables and a report. Tensors of the file that the backbone has no place for, such as a
      classifier, are listed there as unused. A head with fc6 and fc7 takes those of VGG16, see
      `load_fully_connected`.

    Raises:
      WeightsError: the source cannot be had or read; its names are not recognised; a tensor of the
        backbone is missing or has another shape; or its network was trained on images normalised
        in another way than this model's.
    """
    name_maps = None if backbone_name is None else maps_of(backbone_name)
    found = find_source(source)
    if "backbone" not in variables.get("params", {}):
        raise WeightsError("the variables have no 'backbone' among their params to load into.")
    part = {key: value["backbone"] for key, value in variables.items() if "backbone" in value}
    notes = _check_preprocessing(model, found)
    tensors = found.read()
    load = functools.partial(
        load_weights,
        part,
        name_maps=name_maps,
        prefix=prefix,
        source=found.name,
        notes=notes,
        normalization=getattr(model, "normalization", None),
    )
    try:
        part, report = load(tensors)
    except UnknownNamesError:
        given, tensors = tensors, caffe_tensors(tensors)
        if tensors.keys() == given.keys():
            raise
        part, report = load(tensors)
    merged = dict(variables)
    for key, value in part.items():
        # Further backbones begin alike, in arrays of their own: a step may donate each but once.
        others = [name for name in variables[key] if re.fullmatch(r"backbone_\d+", name)]
        copies = {name: jax.tree.map(jnp.copy, value) for name in others}
        merged[key] = {**variables[key], "backbone": value, **copies}
    return load_fully_connected(merged, tensors, report)


def load_weights(
    variables: Mapping,
    tensors: Mapping[str, np.ndarray] | str | os.PathLike,
    *,
    name_maps: Sequence[NameMap] | None = None,
    prefix: str | None = None,
    source: str = "the tensors",
    notes: Sequence[str] = (),
    normalization: ImageNormalization | None = None,
) -> tuple[dict, LoadReport]:
    """Loads tensors with the names of another library into all variables of a module.

    Args:
      variables: of a backbone standing alone, or of any module with `name_maps`; not changed.
      tensors: arrays by name, or where to read them.
      name_maps: the naming schemes to try; by default those of the backbone's family.
      prefix: of the names to take, such as `"encoder."`; found automatically by default.
      source: what to call the tensors in the report.
      notes: for the report.
      normalization: of the images that the module will see, to be compared with that of the naming
        scheme, where it has one.

    Returns:
      New variables, float32, and a report.

    Raises:
      WeightsError: the names are not recognised; a variable's tensor is missing, has another
        shape or is not finite; the tensors are of a larger network; or of one that was trained on
        images normalised in another way.
    """
    if not isinstance(tensors, Mapping):
        found = find_source(tensors)
        tensors, source = found.read(), found.name
    flat = flatten(variables)
    name_maps = maps_for(flat) if name_maps is None else name_maps
    tensors = {k: v for k, v in tensors.items() if not k.endswith(_BOOKKEEPING)}
    name_map, prefix = recognise(flat, tensors, name_maps, prefix, source)
    _check_normalization(name_map.normalization, normalization, f"{source} ({name_map.name})")
    names = {path: prefix + name for path, name in names_of(name_map, flat).items()}
    result, loaded, missing, mismatched = dict(flat), [], [], []
    for path, value in flat.items():
        if names.get(path) not in tensors:
            missing.append(path)
            continue
        tensor = name_map.convert(path, tensors[names[path]])
        if tensor.shape != value.shape:
            mismatched.append((path, tensor.shape, value.shape))
            continue
        result[path] = _float32(path, tensor, source)
        loaded.append(path)
    used = set(names.values())
    report = LoadReport(
        source=source,
        layout=name_map.name,
        loaded=tuple(loaded),
        missing=tuple(missing),
        mismatched=tuple(mismatched),
        unused=tuple(name for name in tensors if name not in used),
        notes=tuple(notes),
    )
    if missing or mismatched:
        named = [f"{p} (as {names.get(p, 'no name')})" for p in missing]
        raise _misfit(
            f"{source} ({name_map.name}) does not fit the network",
            len(flat),
            mismatched,
            named,
            "Choose the weights of this very network, or the network of these weights.",
        )
    left = [name for name in report.unused if in_body(name, name_map, prefix)]
    if left:
        raise WeightsError(
            f"{source} ({name_map.name}) is of a larger network: {len(left)} of its tensors have "
            f"no place in this one, such as {listed(left)}. Choose the weights of this network."
        )
    return unflatten(result), report


def load_into(
    variables: Mapping, directory: str | os.PathLike, *, reinit_head: bool = False
) -> tuple[dict, LoadReport]:
    """Starts a model from another one that flaxseg saved.

    Args:
      variables: of the model, freshly initialised; not changed.
      directory: a saved model or the working directory of a training run.
      reinit_head: whether parts outside the backbone that are missing in the saved model or have
        another shape there, as with another number of classes, keep their fresh values.

    Returns:
      New variables and a report.

    Raises:
      WeightsError: there is no sound saved model; or variables are missing in it or have another
        shape, and they are in the backbone or `reinit_head` is off.
    """
    _, saved = load_model(directory)
    theirs, ours = flatten(saved), flatten(variables)
    loaded = [path for path in ours if path in theirs and theirs[path].shape == ours[path].shape]
    missing = [path for path in ours if path not in theirs]
    mismatched = [
        (path, theirs[path].shape, ours[path].shape)
        for path in ours
        if path in theirs and theirs[path].shape != ours[path].shape
    ]
    report = LoadReport(
        source=os.fspath(directory),
        layout=FLAXSEG.name,
        loaded=tuple(loaded),
        missing=tuple(missing),
        mismatched=tuple(mismatched),
        unused=tuple(path for path in theirs if path not in ours),
    )
    wrong = [*missing, *(path for path, _, _ in mismatched)]
    in_backbone = [path for path in wrong if path.split("/")[1] == "backbone"]
    if in_backbone or (wrong and not reinit_head):
        way_out = (
            "The backbones differ; make the model with the backbone of the saved one."
            if in_backbone
            else "To start with a fresh head where it differs, set reinit_head "
            "(--config.init.reinit_head)."
        )
        raise _misfit(
            f"the model in {os.fspath(directory)} does not fit",
            len(ours),
            mismatched,
            missing,
            way_out,
        )
    return unflatten({**ours, **{path: theirs[path] for path in loaded}}), report


def _misfit(
    what: str, count: int, mismatched: Sequence[tuple], missing: Sequence[str], way_out: str
) -> WeightsError:
    """Returns the error for weights that do not fit `count` variables."""
    lines = item_lines("of another shape", [describe_mismatch(*m) for m in mismatched])
    lines += item_lines("missing", missing)
    return WeightsError(
        f"{what}: of {count} tensors, {len(mismatched)} have another shape and {len(missing)} are "
        "missing.\n" + "\n".join(lines) + f"\n{way_out}"
    )


def _float32(path: str, tensor: np.ndarray, source: str) -> jnp.ndarray:
    values = np.asarray(tensor, np.float32)
    if not np.all(np.isfinite(values)):
        raise WeightsError(f"{source}: the tensor for {path} has values that are not finite.")
    return jnp.asarray(values)


def _check_preprocessing(model: nn.Module, source: Source) -> tuple[str, ...]:
    """Raises if named weights need other images than the model gives; returns notes on lesser
    differences."""
    if source.hub is None:
        return ()
    _check_normalization(
        source.hub.normalization, getattr(model, "normalization", None), source.name
    )
    padding = getattr(getattr(model, "backbone", None), "padding", source.hub.padding)
    if padding != source.hub.padding:
        return (
            f"the network was trained with padding {source.hub.padding!r}, the model has "
            f"{padding!r}; fine-tuning adapts to it, exact features need "
            f"MobileNetV2(padding={source.hub.padding!r}) as the backbone.",
        )
    return ()


def _check_normalization(
    wanted: ImageNormalization | None, got: ImageNormalization | None, source: str
) -> None:
    if wanted is None or got is None or _alike(wanted, got):
        return
    raise WeightsError(
        f"{source} was trained on images normalised with mean {wanted.mean} and std "
        f"{wanted.std}, and the model uses {got.mean} and {got.std}; it would see wrong "
        "colours. Make the model with "
        f"normalization={{'mean': {wanted.mean}, 'std': {wanted.std}}}."
    )


def _alike(a: ImageNormalization, b: ImageNormalization) -> bool:
    means = all(abs(x - y) <= _MEAN_TOLERANCE for x, y in zip(a.mean, b.mean, strict=True))
    stds = all(abs(x / y - 1) <= _STD_TOLERANCE for x, y in zip(a.std, b.std, strict=True))
    return means and stds
