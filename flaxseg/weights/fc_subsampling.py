"""Thins out fc6 and fc7 of an ImageNet VGG16 to the smaller convolutions of DeepLab v1 and v2."""

import dataclasses
import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from flaxseg.errors import WeightsError
from flaxseg.variable_paths import flatten, unflatten
from flaxseg.weights.backbone_names.families import NAME_MAPS
from flaxseg.weights.load_report import LoadReport
from flaxseg.weights.name_map import FLAXSEG, NameMap


def load_fully_connected(
    variables: Mapping, tensors: Mapping[str, np.ndarray], report: LoadReport
) -> tuple[dict, LoadReport]:
    """Loads fc6 and fc7 of a VGG16 into every pair `fc6`, `fc7` of a model's head.

    A kernel of 7x7 and 4096 channels is thinned out: of its taps, and of its channels, every so
    many-th is kept, evenly spaced, in fc7's inputs as in fc6's outputs. (DeepLab v1 subsamples the
    kernel's taps, section 3.2; the rule for the 1024 channels of LargeFOV is not published.) Where
    the file has no such layers, or smaller ones, the variables stay as they are.

    Args:
      variables: of the model, its backbone loaded; not changed.
      tensors: of the file.
      report: of loading the backbone.

    Returns:
      New variables and report.

    Raises:
      WeightsError: a value is not finite.
    """
    maps = [m for m in NAME_MAPS["vgg16"] if m.name == report.layout and m is not FLAXSEG]
    flat = flatten(variables["params"])
    pairs = [
        (path.removesuffix("/kernel"), re.sub(r"fc6(_\d+)?/kernel$", r"fc7\1", path))
        for path in flat
        if not path.startswith("backbone/") and re.search(r"(^|/)fc6(_\d+)?/kernel$", path)
    ]
    if not maps or not pairs:
        return dict(variables), report
    theirs = {layer: _layer(tensors, maps[0], layer) for layer in ("fc6", "fc7")}
    if None in theirs.values():
        return dict(variables), report
    (kernel6, bias6, names6), (kernel7, bias7, names7) = theirs["fc6"], theirs["fc7"]
    for path6, path7 in pairs:
        shape6, shape7 = flat[f"{path6}/kernel"].shape, flat[f"{path7}/kernel"].shape
        if shape6[2] != kernel6.shape[2] or np.any(np.array(shape6) > kernel6.shape):
            return dict(variables), report
        rows, columns = (_spread(n, m) for n, m in zip(kernel6.shape, shape6[:2], strict=False))
        inner, outer = (_every(kernel6.shape[3], shape6[3]), _every(kernel7.shape[3], shape7[3]))
        flat[f"{path6}/kernel"] = jnp.asarray(kernel6[rows][:, columns][..., inner])
        flat[f"{path6}/bias"] = jnp.asarray(bias6[inner])
        flat[f"{path7}/kernel"] = jnp.asarray(kernel7[:, :, inner][..., outer])
        flat[f"{path7}/bias"] = jnp.asarray(bias7[outer])
    loaded = [f"params/{p}/{leaf}" for pair in pairs for p in pair for leaf in ("kernel", "bias")]
    used = {*names6, *names7}
    note = f"fc6 {list(kernel6.shape)} was taken as {list(shape6)}, and fc7 with it"
    report = dataclasses.replace(
        report,
        loaded=(*report.loaded, *loaded),
        unused=tuple(name for name in report.unused if name not in used),
        notes=(*report.notes, note),
    )
    return {**variables, "params": unflatten(flat)}, report


def _layer(tensors: Mapping[str, np.ndarray], name_map: NameMap, layer: str):
    """Returns kernel and bias of a layer in our layout, and their names; None where the file lacks
    it."""
    values, names = [], []
    for leaf in ("kernel", "bias"):
        path = f"params/{layer}/{leaf}"
        wanted = name_map.tensor_name(path)
        found = [name for name in tensors if name == wanted or name.endswith(f".{wanted}")]
        if len(found) != 1:
            return None
        value = np.asarray(name_map.convert(path, tensors[found[0]]), np.float32)
        if not np.all(np.isfinite(value)):
            raise WeightsError(f"the tensor {found[0]} has values that are not finite.")
        values.append(value)
        names.append(found[0])
    return *values, names


def _spread(n: int, m: int) -> np.ndarray:
    """Returns `m` of `n` taps from the first to the last: 0, 3, 6 and 0, 2, 4, 6 of seven."""
    return np.round(np.linspace(0, n - 1, m)).astype(np.int64)


def _every(n: int, m: int) -> np.ndarray:
    """Returns `m` of `n` channels: every fourth for 1024 of 4096."""
    return np.arange(m) * n // m
