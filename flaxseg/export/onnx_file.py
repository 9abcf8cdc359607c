"""ONNX files, by way of jax2onnx, with the card in their metadata."""

import contextlib
import io
import logging
import os
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from flaxseg.errors import DataError, ExportError
from flaxseg.export.file_card import card_text, read_card_text, write_file
from flaxseg.export.onnx_program import onnx_program
from flaxseg.export.program import image_program, prepare
from flaxseg.export.requirements import INSTALL_ONNX, require

CARD_KEY = "model_card"
# The largest that runtimes of the last years take, and with all that is needed here.
OPSET = 18
# A message of protobuf, which an ONNX file is, must be smaller.
_MAX_BYTES = 2**31 - 1


def export_onnx(
    model: nn.Module,
    variables: Mapping,
    path: str | os.PathLike,
    size: tuple[int, int],
    *,
    batch: int | None = None,
    outputs: Sequence[str] = ("classes",),
    class_names: Sequence[str] | None = None,
    class_colors: Sequence[Sequence[int]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a model as an ONNX file, weights inside.

    The network takes `image`, uint8 [N, H, W, 3] RGB; its outputs are named as asked for. Few
    runtimes compute in bfloat16: load such a model with `dtype=jnp.float32`.

    Example:

        model, variables = flaxseg.load_model("runs/camvid")
        export_onnx(model, variables, "camvid.onnx", (360, 480))

        session = onnxruntime.InferenceSession("camvid.onnx")
        (classes,) = session.run(["classes"], {"image": image})

    Args:
      model, variables, path, size, batch, outputs, class_names, class_colors, extra: as of
        `export_stablehlo`.

    Returns:
      The file.

    Raises:
      ConfigError: the size, batch or outputs are impossible.
      ExportError: packages are missing, or ONNX has no such network: it has an operation that
        cannot be converted, or more than 2 GB of weights.
      WriteError: the file cannot be written.
      ValueError: names or colours do not fit the classes.
    """
    with _quiet():
        jax2onnx = require("jax2onnx", "ONNX", INSTALL_ONNX)
    named = {"class_names": class_names, "class_colors": class_colors, "extra": extra}
    card, folded, image = prepare(model, variables, size, batch, outputs, **named)
    run = image_program(model, outputs, "native")

    def arrays(image: jax.Array) -> list[jax.Array]:
        values = run(folded, image)
        return [values[name] for name in outputs]

    program = onnx_program(arrays, image)
    with _quiet():
        try:
            network = jax2onnx.to_onnx(
                program,
                [image],
                model_name=type(model).__name__,
                opset=OPSET,
                input_names=["image"],
                output_names=list(outputs),
            )
        except Exception as error:  # of many kinds, for whatever it does not know
            raise ExportError(
                f"jax2onnx cannot convert this {type(model).__name__}: {type(error).__name__}: "
                f"{error}. Export it to StableHLO, or in float32 without operations of your own."
            ) from error
    card["opset"] = OPSET
    for key, value in ((CARD_KEY, card_text(card)), ("classes", "\n".join(card["class_names"]))):
        entry = network.metadata_props.add()
        entry.key, entry.value = key, value
    if network.ByteSize() > _MAX_BYTES:
        raise ExportError(
            f"the network has {network.ByteSize() / 1e9:.1f} GB, and an ONNX file at most 2; "
            "export it to StableHLO."
        )
    return write_file(path, network.SerializeToString())


def read_onnx_card(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the card of a file of `export_onnx`.

    Raises:
      ExportError: the package onnx is missing.
      DataError: the file cannot be read, or has no card.
    """
    onnx = require("onnx", "ONNX", INSTALL_ONNX)
    try:
        network = onnx.load(os.fspath(path), load_external_data=False)
    except Exception as error:  # protobuf's kinds
        raise DataError(f"{path} cannot be read as ONNX: {error}.") from error
    texts = [entry.value for entry in network.metadata_props if entry.key == CARD_KEY]
    return read_card_text(texts[0] if texts else "", path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the messages of jax2onnx and its dependencies, some of which go to stdout."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.disable(level)
