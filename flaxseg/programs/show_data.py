"""`python -m flaxseg show-data`."""

import argparse
import pathlib

from flaxseg.programs import arguments
from flaxseg.programs.output import output_folder

NAME = "show-data"
SUMMARY = "look at augmented examples"
TEXT = """Writes a sheet of pictures as training would see them: the first examples of the stream,
scaled, cropped, flipped and coloured at random, each beside itself with its label laid over it.
Look at it before a training: labels that are shifted, swapped or missing are seen at once.

With --config the settings are those of a recipe; flags given here come before them.
"""
EPILOG = """examples:
  python -m flaxseg show-data camvid --config=configs/deeplab.py:data=camvid --out=sheet.png
  python -m flaxseg show-data folder --manual_dir=my_pictures --photometric=0.5 --rotate=10
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    arguments.data_set(parser)
    arguments.data_dir(parser)
    arguments.manual_dir(parser)
    arguments.allow_problems(parser)
    parser.add_argument("--split", metavar="NAME", help="default: the one to train on")
    parser.add_argument(
        "--config", metavar="FILE[:ARGUMENT]", help="take the settings from this recipe"
    )
    parser.add_argument(
        "--crop_size", "--crop-size", type=arguments.at_least(1), nargs=2, metavar=("H", "W"),
        help="of the examples",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=float, nargs=2, metavar=("LEAST", "MOST"), help="range of the random scale"
    )
    parser.add_argument("--rotate", type=float, metavar="DEGREES", help="greatest angle")
    parser.add_argument("--blur", type=float, metavar="P", help="probability")
    parser.add_argument("--photometric", type=float, metavar="S", help="strength, 0 to 1")
    parser.add_argument(
        "--flip", action=argparse.BooleanOptionalAction, default=None, help="mirror half of them"
    )
    parser.add_argument(
        "--seed", type=arguments.at_least(0), metavar="N", help="of the stream (default: 0)"
    )
    parser.add_argument(
        "--num_examples", "--num-examples", type=arguments.at_least(1), default=12, metavar="N",
        help="default: 12",
    )  # fmt: skip
    parser.add_argument(
        "--out", default="data.png", metavar="FILE", help="the picture (default: data.png)"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg.drawing.examples import show_data

    out = pathlib.Path(args.out)
    output_folder(out.parent)
    given = ("crop_size", "scale", "flip", "rotate", "blur", "photometric", "seed", "split")
    shown = show_data(
        args.name,
        out,
        config=args.config,
        manual_dir=args.manual_dir,
        data_dir=args.data_dir,
        allow_problems=args.allow_problems,
        num_examples=args.num_examples,
        **{key: getattr(args, key) for key in given if getattr(args, key) is not None},
    )
    print(f"{shown}\nwritten:\n  {out}")
    return 0
