"""Implements `python -m flaxseg learn-basis`."""

import argparse
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from flaxseg.errors import ConfigError
from flaxseg.files import whole_file, write_text
from flaxseg.programs import arguments
from flaxseg.progress import several
from flaxseg.settings import LARGEST_SEED

if TYPE_CHECKING:  # slow to import, and `--help` needs none of it
    from flaxseg.data import DatasetInfo
    from flaxseg.data.label_bases import LabelBases, LabelPatches, Reconstruction

NAME = "learn-basis"
SUMMARY = "learn LRR's bases from labels"
TEXT = """Learns from the labels of a data set what the mask of each class looks like locally: the
bases with which LRR, or any decoder with LearnedBasisDeconv, upsamples. Patches are cut out of the
training labels, and their principal components per class become the filters. Writes bases.npz, for
--config.init.bases; bases.png, which shows all bases; and report.json. Prints how many pixels of
held-out patches are wrong when they are reconstructed from a few bases, compared with bilinear
interpolation from as many values.
"""
EPILOG = """examples:
  python -m flaxseg learn-basis camvid --num_bases=10 --out=runs/bases_camvid
  python -m flaxseg train lrr:data=camvid \\
      --config.init.bases=runs/bases_camvid/bases.npz --workdir=runs/lrr
"""

# Held-out patches of each class: their error is known to a few per mille with so many.
_HELD_OUT_PATCHES = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.data(parser)
    arguments.split(parser, "its training split")
    arguments.flag(
        parser,
        "--held_out",
        metavar="SPLIT",
        help="split whose patches are reconstructed (default: its evaluation split)",
    )
    arguments.data_dir(parser)
    arguments.manual_dir(parser)
    count = functools.partial(arguments.count, parser)
    count("--num_bases", "K", 10, "number of bases per class")
    count("--patch_size", "P", 32, "side of the patches in pixels", least=4, most=1024)
    count("--num_patches", "N", 10_000, "number of patches per class to learn from", least=2)
    parser.add_argument(
        "--scale",
        choices=("released", "unit"),
        default="released",
        help="norm of the filters: that of the released ones, or 1 (default: released)",
    )
    count("--seed", "N", 0, "seed of the choice of patches", least=0, most=LARGEST_SEED)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the results")


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg import data
    from flaxseg.data.label_bases import learn_bases, measure_reconstruction

    name = data.full_name(args.data, args.manual_dir)
    out = arguments.output_folder(args.out)
    info = data.dataset_info(name)
    args.split = data.chosen_split(info, args.split, info.train_split)
    args.held_out = data.chosen_split(info, args.held_out, info.eval_split, "--held_out")
    if args.split == args.held_out:
        raise ConfigError(
            f"the bases would be learned from and measured on {args.split!r}; set --held_out to "
            f"another split or part of {', '.join(info.splits)}, such as 'train[80%:]'."
        )
    if args.num_bases > 64:
        raise ConfigError(f"num_bases is {args.num_bases}; filters of 8 x 8 have at most 64.")
    if args.manual_dir:
        data.prepare(name, args.data_dir, args.manual_dir)
    with several("image") as show:
        patches, held_out = _sample(args, name, info, show)
    bases = learn_bases(patches, info.class_names, num_bases=args.num_bases, scale=args.scale)
    reconstruction = measure_reconstruction(bases, held_out)
    report = _report(args, info, bases, reconstruction)
    written = _write(out, bases, report)
    print(_text(report, bases, reconstruction))
    arguments.print_written(written)
    return 0


def _sample(
    args: argparse.Namespace,
    name: str,
    info: "DatasetInfo",
    show: Callable[[str, int, int], None],
) -> "list[LabelPatches]":
    """Returns the patches to learn from and those to reconstruct."""
    from flaxseg import data
    from flaxseg.data.label_bases import sample_patches

    # Both are opened before any work is done.
    sources = [data.open_split(name, part, args.data_dir) for part in (args.split, args.held_out)]
    limits = (args.num_patches, min(args.num_patches, _HELD_OUT_PATCHES))
    return [
        sample_patches(
            records,
            info.num_classes,
            patch_size=args.patch_size,
            num_patches=limit,
            seed=args.seed,
            progress=lambda done, total, what=f"patches of {records.split}": show(
                what, done, total
            ),
        )
        for records, limit in zip(sources, limits, strict=True)
    ]


def _report(
    args: argparse.Namespace,
    info: "DatasetInfo",
    bases: "LabelBases",
    reconstruction: "Reconstruction",
) -> dict:
    """Returns the content of report.json."""
    return {
        "data": info.name,
        "split": args.split,
        "held_out": args.held_out,
        "num_bases": args.num_bases,
        "patch_size": args.patch_size,
        "num_patches": args.num_patches,
        "scale": args.scale,
        "seed": args.seed,
        "patches": dict(zip(info.class_names, map(int, bases.num_patches), strict=True)),
        "shared": list(bases.shared),
        "explained": {
            class_name: [round(float(v), 6) for v in shares]
            for class_name, shares in zip(info.class_names, bases.explained, strict=True)
        },
        "reconstruction": reconstruction.to_dict(info.class_names),
    }


def _text(report: dict, bases: "LabelBases", reconstruction: "Reconstruction") -> str:
    """Returns what is printed."""
    lines = [
        f"{report['num_bases']} bases per class from {bases.num_patches.sum()} patches of "
        f"{report['patch_size']} x {report['patch_size']} pixels of {report['data']} "
        f"{report['split']}; reconstructed are patches of {report['held_out']}",
        "",
        reconstruction.table(bases.class_names),
        "",
        f"The bases explain {100 * bases.explained[:, -1].mean():.1f} % of the variance of their "
        "patches, averaged over the classes.",
    ]
    if bases.shared:
        lines.append(
            "These classes have too few patches and get the bases of all classes together: "
            f"{', '.join(bases.shared)}."
        )
    return "\n".join(lines)


def _write(out: pathlib.Path, bases: "LabelBases", report: dict) -> tuple[pathlib.Path, ...]:
    """Writes bases.npz, bases.png and report.json, and returns their paths."""
    from flaxseg.drawing.bases import draw_bases
    from flaxseg.drawing.images import save_image

    arrays = {
        field.name: np.asarray(getattr(bases, field.name)) for field in dataclasses.fields(bases)
    }
    arrays["report"] = np.asarray(json.dumps(report))
    files = (out / "bases.npz", out / "bases.png", out / "report.json")
    with whole_file(files[0]) as file:
        np.savez_compressed(file, **arrays)
    save_image(files[1], draw_bases(bases))
    write_text(files[2], json.dumps(report, indent=2, allow_nan=False) + "\n")
    return files
