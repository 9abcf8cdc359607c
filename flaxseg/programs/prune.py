"""Implements `python -m flaxseg prune`."""

import argparse

import flaxseg
from flaxseg.programs import arguments

NAME = "prune"
SUMMARY = "remove channels from a trained ICNet"
TEXT = """Removes the filters with the smallest L1 norms from a saved ICNet on a ResNet. The result
has fewer channels in every layer and must be trained further, with --config.init.model. Layers
whose outputs are added keep the same channels.
"""
EPILOG = """examples:
  python -m flaxseg prune runs/full --keep=0.5 --out=models/half
  python -m flaxseg train icnet --config.init.model=models/half --workdir=runs/half

The paper keeps 3/4, trains, and then keeps 2/3 of that.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.model(parser)
    parser.add_argument(
        "--keep",
        type=arguments.number(_share),
        default=0.5,
        metavar="SHARE",
        help="share of the channels to keep (default: 0.5)",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the smaller model")


def _share(value: float) -> str:
    """Returns the rule of a share that leaves something, and something out."""
    return "" if 0 < value < 1 else "more than 0 and less than 1"


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg.weights import prune_model

    before = flaxseg.read_model_card(args.model)["weights"]["parameters"]
    folder = prune_model(args.model, args.out, keep=args.keep)
    after = flaxseg.read_model_card(folder)["weights"]["parameters"]
    print(f"{after:,} of {before:,} parameters remain; the model to train further is in {folder}")
    return 0
