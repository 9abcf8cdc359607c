"""Reads tensors from a file or folder, whatever its format."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from flaxseg.errors import WeightsError
from flaxseg.weights.npz_file import read_npz
from flaxseg.weights.torch_file import read_torch_file

# `.tar` is for `.pth.tar`, as PyTorch's examples name what `torch.save` writes.
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
SUFFIXES = (".safetensors", ".npz", *TORCH_SUFFIXES)
_MAX_DEPTH = 8
_MAX_TENSORS = 100_000

_SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the tensors of a weights file by name; no code in the file is run.

    Args:
      path: a `.safetensors`, `.npz`, `.pth`, `.pt`, `.bin` or `.ckpt` file, or a folder with one
        of them (`model.safetensors` is taken where there are several).

    Returns:
      Arrays by name, in the layout of the file. Dicts inside of dicts, as training checkpoints
      have them, are joined by dots: `"state_dict.layer1.0.conv1.weight"`.

    Raises:
      WeightsError: there is no such file, its format is not known, it is damaged, or it holds
        something other than tensors.
    """
    path = find_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix in TORCH_SUFFIXES:
        tensors: dict[str, np.ndarray] = {}
        _flatten(read_torch_file(path), "", 0, tensors, path)
        if not tensors:
            raise WeightsError(f"{path} holds no tensors.")
        return tensors
    raise WeightsError(
        f"{path} has the suffix {path.suffix!r}; weights are read from {', '.join(SUFFIXES)}."
    )


def find_file(path: str | os.PathLike) -> pathlib.Path:
    """Returns the weights file that a path means: the file itself, or the one in the folder.

    Raises:
      WeightsError: there is none, or more than one without a `model.safetensors` among them.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise WeightsError(f"there is no file or folder {path}.")
    if not path.is_dir():
        return path
    found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    preferred = [p for p in found if p.name == "model.safetensors"]
    if len(found) == 1 or preferred:
        return (preferred or found)[0]
    if not found:
        raise WeightsError(f"{path} holds no weights file ({', '.join(SUFFIXES)}).")
    names = ", ".join(p.name for p in found[:8])
    raise WeightsError(f"{path} holds {len(found)} weights files ({names}); name the one to read.")


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        data = path.read_bytes()
        entries = safetensors.deserialize(data)
    except OSError as error:
        raise WeightsError(f"could not read {path}: {error.strerror or error}.") from error
    except safetensors.SafetensorError as error:
        raise WeightsError(
            f"{path} is not a readable safetensors file: {error}. Take it from its source again."
        ) from error
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise WeightsError(
                f"{path}: tensor {name} is of type {entry['dtype']}; read are "
                f"{', '.join(_SAFETENSORS_DTYPES)}."
            )
        values = np.frombuffer(entry["data"], _SAFETENSORS_DTYPES[entry["dtype"]])
        try:
            tensors[name] = values.reshape(entry["shape"])
        except ValueError as error:  # more axes than NumPy has
            raise WeightsError(f"{path}: tensor {name}: {error}.") from error
    return tensors


def _flatten(node: Any, prefix: str, depth: int, tensors: dict, path) -> None:
    if isinstance(node, np.ndarray) and prefix:
        tensors[prefix.removesuffix(".")] = node
        if len(tensors) > _MAX_TENSORS:
            raise WeightsError(f"{path} holds more than {_MAX_TENSORS} tensors.")
    elif isinstance(node, Mapping) and depth < _MAX_DEPTH:
        for key, value in node.items():
            _flatten(value, f"{prefix}{key}.", depth + 1, tensors, path)
