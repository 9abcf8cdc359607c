"""Implements `python -m flaxseg export`."""

import argparse
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

import flaxseg
from flaxseg.errors import ConfigError, ExportError
from flaxseg.programs import arguments

if TYPE_CHECKING:  # slow to import, and `--help` needs none of it
    import flax.linen as nn

NAME = "export"
SUMMARY = "write a model as one StableHLO or ONNX file for other programs"
TEXT = """Writes a saved model as one file that runs without flaxseg. It takes raw uint8 RGB images
of one size and returns their class maps: normalisation, weights and a card (classes, colours,
sizes, origin) are included, and BatchNorm is folded into the convolutions.

FILE.stablehlo is read by jax.export.deserialize and runs on CPU, GPU and TPU. FILE.onnx is for ONNX
Runtime and similar runtimes; writing it needs jax2onnx, and the error message says how to install
that.
"""
EPILOG = """examples:
  python -m flaxseg export runs/camvid --size 360 480 --out=camvid.stablehlo
  python -m flaxseg export runs/camvid --size 360 480 --out=camvid.onnx --check street.png
  python -m flaxseg export runs/camvid --size 720 960 --batch=1 --outputs classes probabilities \\
      --out=camvid_large.onnx
"""

_SUFFIXES = (".stablehlo", ".onnx")
_LEAST_AGREEMENT = 0.999


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.model(parser)
    parser.add_argument(
        "--size",
        type=arguments.at_least(1),
        nargs=2,
        required=True,
        metavar=("H", "W"),
        help="height and width of the images",
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="NAME.stablehlo or NAME.onnx; overwritten"
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        default=None,
        metavar="N|any",
        help="images per call (default: any, which leaves the batch size open)",
    )
    parser.add_argument(
        "--outputs",
        nargs="+",
        choices=("classes", "probabilities", "logits"),
        default=["classes"],
        metavar="NAME",
        help="outputs of the file: classes (default, uint8), probabilities, logits (float32)",
    )
    parser.add_argument(
        "--platforms",
        nargs="+",
        choices=("cpu", "cuda", "rocm", "tpu"),
        default=None,
        metavar="NAME",
        help="platforms of a .stablehlo file (default: cpu cuda tpu)",
    )
    arguments.output_stride(parser)
    parser.add_argument(
        "--check",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="compare the file with the model on these images; the exit code is 1 if in one of "
        "them less than 99.9 %% of the pixels get the same class",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    import jax.numpy as jnp

    from flaxseg.export import PLATFORMS, export_onnx, export_stablehlo
    from flaxseg.inference import model_protocol, read_image

    out = pathlib.Path(args.out)
    _check_flags(args, out)
    arguments.output_folder(out.parent)
    images = [read_image(path) for path in args.check]
    card = flaxseg.read_model_card(args.model)
    # Few ONNX runtimes have convolutions in bfloat16.
    dtype = {"dtype": jnp.float32} if out.suffix == ".onnx" else {}
    model, variables = arguments.load_model(args, **dtype)
    common = {
        "batch": args.batch,
        "outputs": tuple(args.outputs),
        "class_names": card["class_names"],
        "class_colors": card["class_colors"],
        "extra": _origin(card, args.output_stride),
    }
    size = tuple(args.size)
    if out.suffix == ".onnx":
        export_onnx(model, variables, out, size, **common)
    else:
        platforms = tuple(args.platforms or PLATFORMS)
        export_stablehlo(model, variables, out, size, platforms=platforms, **common)
    batch = {None: "any number of images", 1: "1 image"}.get(args.batch, f"{args.batch} images")
    print(
        f"{card['model']} for {batch} of {size[0]} x {size[1]} (height x width) is in {out}, "
        f"{out.stat().st_size / 1e6:.1f} MB"
    )
    protocol = model_protocol(model)
    if not protocol.is_plain:
        print(
            f"note: the model's own protocol is {protocol.describe()}; the file runs its images as "
            "they are, so do the rest before and after it"
        )
    return _check(args.check, images, out, model, variables)


def _check_flags(args: argparse.Namespace, out: pathlib.Path) -> None:
    """Raises ConfigError for flags that do not go together."""
    if out.suffix not in _SUFFIXES:
        raise ConfigError(f"--out is {args.out}; its name must end in {' or '.join(_SUFFIXES)}.")
    if args.platforms and out.suffix == ".onnx":
        raise ConfigError("--platforms is for .stablehlo; an .onnx file is for any runtime.")
    if args.check and "classes" not in args.outputs:
        raise ConfigError("--check compares classes; add them to --outputs.")


def _origin(card: Mapping, output_stride: int | None) -> dict:
    """Returns what the card of the file says about the model."""
    return {
        "model": card["model"],
        "options": card["options"] | ({"output_stride": output_stride} if output_stride else {}),
        "weights": card["weights"],
        # The settings of the training name folders of the machine that it ran on.
        **{key: value for key, value in card.get("extra", {}).items() if key != "config"},
    }


def _check(
    paths: Sequence[str],
    images: Sequence[np.ndarray],
    out: pathlib.Path,
    model: "nn.Module",
    variables: Mapping,
) -> int:
    """Compares the file with the model and returns the exit code."""
    from flaxseg.export.check import agreement

    shares = agreement(out, model, variables, images) if images else []
    for path, share in zip(paths, shares, strict=True):
        print(f"  {path}: {100 * share:.4f} % of the pixels get the same class")
    if any(share < _LEAST_AGREEMENT for share in shares):
        raise ExportError(f"{out} does not agree with the model; do not use it.")
    return 0


def _batch(text: str) -> int | None:
    return None if text == "any" else arguments.at_least(1)(text)
