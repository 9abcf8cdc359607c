"""Compares exported files with the models they were made from."""

import os
import pathlib
from collections.abc import Callable, Iterable, Mapping

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from flaxseg.export.onnx_file import read_onnx_card
from flaxseg.export.requirements import INSTALL_ONNX, require
from flaxseg.export.stablehlo import read_stablehlo_card
from flaxseg.inference import Protocol, predict


def load_exported(path: str | os.PathLike) -> tuple[dict, Callable[[np.ndarray], dict]]:
    """Reads a file as its user does, without flaxseg: with JAX, or with ONNX Runtime.

    Args:
      path: of a file of `export_stablehlo`, or with the suffix .onnx of `export_onnx`.

    Returns:
      Its card, and a function of uint8 [N, H, W, 3] that returns its outputs by name.

    Raises:
      DataError: it is no such file.
      ExportError: a package is missing.
    """
    path = pathlib.Path(path)
    if path.suffix == ".onnx":
        card = read_onnx_card(path)
        runtime = require("onnxruntime", "ONNX", INSTALL_ONNX)
        session = runtime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return card, lambda image: dict(
            zip(names, session.run(names, {"image": image}), strict=True)
        )
    card = read_stablehlo_card(path)
    call = jax.jit(jax.export.deserialize(path.read_bytes()).call)
    return card, lambda image: jax.tree.map(np.asarray, call(image))


def agreement(
    path: str | os.PathLike, model: nn.Module, variables: Mapping, images: Iterable[np.ndarray]
) -> list[float]:
    """Returns the share of pixels of each image to which a file with the output "classes" gives the
    class that the model gives, in [0, 1].

    Args:
      path: of the file.
      model: that it was made from.
      variables: of the model.
      images: uint8 [H, W, 3] of any size; they are resized to that of the file.

    Raises:
      DataError, ExportError: as for `load_exported`.
    """
    card, run = load_exported(path)
    batch, height, width, _ = card["input"]["shape"]
    count = 1 if batch == "batch" else batch
    shares = []
    for image in images:
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
        found = run(np.repeat(image[None], count, 0))["classes"]
        wanted = predict(model, variables, image, protocol=Protocol())
        shares.append(float(np.mean(found == wanted)))
    return shares
