"""Reads files of bases that `python -m flaxseg learn-basis` wrote into the parameters of a
model."""

import fnmatch
import os
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from flaxseg.errors import WeightsError, listed
from flaxseg.variable_paths import flatten, unflatten
from flaxseg.weights.npz_file import read_npz

_WAY_OUT = "Learn them with: python -m flaxseg learn-basis NAME --out=DIR"


def read_bases(path: str | os.PathLike) -> tuple[np.ndarray, tuple[str, ...]]:
    """Reads the filters and the names of the classes.

    Args:
      path: an `.npz` file, or the folder that `learn-basis` wrote it into as `bases.npz`.

    Returns:
      float32 `[C, K, k, k]` and C names.

    Raises:
      WeightsError: there is no such file, or it holds something else.
    """
    path = os.fspath(path)
    file = os.path.join(path, "bases.npz") if os.path.isdir(path) else path
    if not os.path.exists(file):
        raise WeightsError(f"there are no bases at {file}. {_WAY_OUT}")
    try:
        arrays = read_npz(file)
        filters = np.asarray(arrays["filters"], np.float32)
        names = tuple(str(name) for name in np.atleast_1d(arrays["class_names"]))
    except (WeightsError, ValueError, KeyError) as error:
        raise WeightsError(f"{file} holds no bases: {error}. {_WAY_OUT}") from error
    if filters.ndim != 4 or len(filters) != len(names) or filters.shape[2] != filters.shape[3]:
        raise WeightsError(
            f"{file} has filters of shape {filters.shape} for {len(names)} classes; wanted "
            f"[classes, bases, k, k]. {_WAY_OUT}"
        )
    if not np.isfinite(filters).all():
        raise WeightsError(f"{file} has filters that are not finite. {_WAY_OUT}")
    return filters, names


def load_bases(
    variables: Mapping,
    path: str | os.PathLike,
    *,
    class_names: Sequence[str] | None = None,
    parts: str = "*reconstruction*",
) -> tuple[dict, tuple[str, ...]]:
    """Puts learned bases into every `LearnedBasisDeconv` of a model.

    Args:
      variables: of the model; not changed.
      path: see `read_bases`.
      class_names: of the model's classes, where they are to be compared with the file's.
      parts: pattern of the paths of these layers under `params`, such as
        `"reconstruction_32x"`; `*` stands for anything.

    Returns:
      New variables, and the paths of the kernels that were replaced.

    Raises:
      WeightsError: as `read_bases`; or the model has no such layer, or one with other classes, or
        another number or size of bases.
    """
    filters, names = read_bases(path)
    if class_names is not None and tuple(class_names) != names:
        different = [
            f"{i} ({ours!r} in the data, {theirs!r} in the file)"
            for i, (ours, theirs) in enumerate(zip(class_names, names, strict=False))
            if ours != theirs
        ]
        raise WeightsError(
            f"the bases in {os.fspath(path)} are of {len(names)} classes and the data set has "
            f"{len(class_names)}; different: {listed(different) or 'their number'}. Learn "
            "bases of the classes that are trained."
        )
    kernel = _as_kernel(filters)
    flat = dict(flatten(variables))
    found = [
        name
        for name in flat
        if name.endswith("/kernel")
        and fnmatch.fnmatchcase(name.partition("/")[2].removesuffix("/kernel"), parts)
    ]
    if not found:
        raise WeightsError(f"the model has no layer {parts!r} to put bases into; choose lrr.")
    for name in found:
        if flat[name].shape != kernel.shape:
            classes, bases, size = filters.shape[:3]
            raise WeightsError(
                f"{name} is {flat[name].shape}, and {os.fspath(path)} has {bases} bases of {size} "
                f"x {size} for each of {classes} classes, {kernel.shape}; make the model with "
                f"num_bases={bases}, or learn others (--num_bases)."
            )
        flat[name] = jnp.asarray(kernel)
    return unflatten(flat), tuple(found)


def _as_kernel(filters: np.ndarray) -> np.ndarray:
    """Returns `[C, K, k, k]` in the layout of `LearnedBasisDeconv`, `[k, k, 1, C * K]`."""
    size = filters.shape[2]
    return filters.transpose(2, 3, 0, 1).reshape(size, size, 1, -1)
