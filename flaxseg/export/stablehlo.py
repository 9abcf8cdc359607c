"""StableHLO files: `jax.export`'s, with the card at the end.

`jax.export.deserialize` reads the program from the start of the file and stops where it ends, so
the card does not disturb it; a mark stands between the two.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax import export, lax

from flaxseg.errors import DataError
from flaxseg.export.file_card import card_text, read_card_text, write_file
from flaxseg.export.program import image_program, prepare
from flaxseg.export.requirements import require

CARD_MARK = b"\nmodel card\n"
PLATFORMS = ("cpu", "cuda", "tpu")


def export_stablehlo(
    model: nn.Module,
    variables: Mapping,
    path: str | os.PathLike,
    size: tuple[int, int],
    *,
    batch: int | None = None,
    outputs: Sequence[str] = ("classes",),
    platforms: Sequence[str] = PLATFORMS,
    class_names: Sequence[str] | None = None,
    class_colors: Sequence[Sequence[int]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a model as one StableHLO program, weights inside, that needs JAX alone to run.

    The program takes `image`, uint8 [N, H, W, 3] RGB, and returns a dict with the outputs that were
    asked for. Normalisation is inside and BatchNorm folded. On CPUs it computes convolutions in the
    form that is fast there, elsewhere in XLA's own.

    Example:

        model, variables = flaxseg.load_model("runs/camvid")
        export_stablehlo(model, variables, "camvid.stablehlo", (360, 480))

        data = pathlib.Path("camvid.stablehlo").read_bytes()
        segment = jax.jit(jax.export.deserialize(data).call)
        classes = segment(image)["classes"]

    Args:
      model: a flaxseg model.
      variables: its parameters and statistics.
      path: of the file.
      size: (height, width) of the images.
      batch: how many images at a time; None for any number.
      outputs: of `flaxseg.export.OUTPUTS`: "classes", uint8 [N, H, W]; "probabilities" and
        "logits", float32 [N, H, W, C].
      platforms: on which it is to run, of "cpu", "cuda", "rocm", "tpu".
      class_names: one for each class; by default "class 0", "class 1", ...
      class_colors: one RGB colour for each class; by default those of PASCAL VOC.
      extra: anything else to keep in the card that JSON can hold.

    Returns:
      The file.

    Raises:
      ConfigError: the size, batch, outputs or platforms are impossible.
      ExportError: a package is missing.
      WriteError: the file cannot be written.
      ValueError: names or colours do not fit the classes.
    """
    require("flatbuffers", "StableHLO")
    named = {"class_names": class_names, "class_colors": class_colors, "extra": extra}
    card, folded, image = prepare(model, variables, size, batch, outputs, **named)
    card["platforms"] = list(platforms)
    card["jax_version"] = jax.__version__

    def run(image: jax.Array) -> dict[str, jax.Array]:
        return lax.platform_dependent(
            folded,
            image,
            cpu=image_program(model, outputs, "products"),
            default=image_program(model, outputs, "native"),
        )

    program = export.export(jax.jit(run), platforms=tuple(platforms))(image)
    data = bytes(program.serialize()) + CARD_MARK + card_text(card).encode()
    return write_file(path, data)


def read_stablehlo_card(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the card of a file of `export_stablehlo`.

    Raises:
      DataError: the file cannot be read, or has no card.
    """
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    return read_card_text(data.rpartition(CARD_MARK)[2], path)
