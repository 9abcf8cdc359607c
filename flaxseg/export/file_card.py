"""Writes exported files as a whole, and the card in which each describes itself."""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

import flaxseg
from flaxseg.errors import DataError
from flaxseg.files import whole_file
from flaxseg.inference import model_protocol
from flaxseg.json_text import parse_json
from flaxseg.saved_model import check_classes

FORMAT = "flaxseg-export"
FORMAT_VERSION = 1


class Output(NamedTuple):
    """Describes what can come out of an exported file.

    Attributes:
      dtype: its name.
      per_class: whether a pixel has a value for each class.
      meaning: in words.
    """

    dtype: str
    per_class: bool
    meaning: str


OUTPUTS = {
    "classes": Output("uint8", False, "index of the most likely class"),
    "probabilities": Output("float32", True, "probability of each class; they sum to 1"),
    "logits": Output("float32", True, "score of each class before the softmax"),
}


def export_card(
    model: nn.Module,
    size: tuple[int, int],
    batch: int | None,
    outputs: Sequence[str],
    *,
    class_names: Sequence[str] | None,
    class_colors: Sequence[Sequence[int]] | None,
    extra: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Returns the card of a file as JSON has it; the arguments are those of `export_stablehlo`.

    Raises:
      ValueError: names or colours do not fit the classes.
    """
    names, colors = check_classes(model.num_classes, class_names, class_colors)
    maps = ["batch" if batch is None else batch, *size]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "flaxseg_version": flaxseg.__version__,
        "num_classes": model.num_classes,
        "class_names": names,
        "class_colors": colors,
        "input": {
            "name": "image",
            "shape": [*maps, 3],
            "dtype": "uint8",
            "meaning": "RGB pixels 0..255 as they are: [image, row, column, colour]",
        },
        "outputs": {
            name: {
                "shape": [*maps, model.num_classes] if OUTPUTS[name].per_class else maps,
                "dtype": OUTPUTS[name].dtype,
                "meaning": OUTPUTS[name].meaning,
            }
            for name in outputs
        },
        "normalization": {
            "done_inside": True,
            "mean": list(map(float, model.normalization.mean)),
            "std": list(map(float, model.normalization.std)),
        },
        # The file itself runs the image as it is.
        "protocol": {"done_inside": False, "model_uses": model_protocol(model).describe()},
        "batch_norm": "folded",
        "extra": dict(extra or {}),
    }


def card_text(card: Mapping[str, Any]) -> str:
    return json.dumps(card, indent=1, allow_nan=False)


def read_card_text(text: str | bytes, path: str | os.PathLike) -> dict[str, Any]:
    """Returns the card of a file; `load_exported` relies on its input's shape.

    Raises:
      DataError: the text is none.
    """
    try:
        card = parse_json(text)
        if card["format"] != FORMAT:
            raise ValueError("of another format")
        batch, *sizes = card["input"]["shape"]
        if len(sizes) != 3 or not all(type(n) is int and n >= 1 for n in sizes):
            raise ValueError("no shape of images")
        if batch != "batch" and not (type(batch) is int and batch >= 1):
            raise ValueError("no number of images")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} has no model card ({type(error).__name__}: {error}); it was not written by "
            "flaxseg export, or is damaged."
        ) from None
    return card


def write_file(path: str | os.PathLike, data: bytes) -> pathlib.Path:
    """Writes a file whole or not at all.

    Raises:
      WriteError: it cannot be written.
    """
    path = pathlib.Path(path)
    advice = f"It needs {len(data) / 1e6:.1f} MB; free some room or choose another --out."
    with whole_file(path, advice) as file:
        file.write(data)
    return path
