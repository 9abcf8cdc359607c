"""`python -m flaxseg prepare-data`."""

import argparse

from flaxseg.programs import arguments

NAME = "prepare-data"
SUMMARY = "make a data set ready"
TEXT = """Makes a data set ready for training and evaluation: generates it, downloads it, or
converts the published files in --manual_dir. A data set that is ready already is left as it is.
"""
EPILOG = """examples:
  python -m flaxseg prepare-data shapes
  python -m flaxseg prepare-data camvid --manual_dir=downloads/CamVid --data_dir=/data
  python -m flaxseg prepare-data voc_segmentation
  python -m flaxseg prepare-data cityscapes --manual_dir=downloads
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    arguments.data_set(parser)
    arguments.data_dir(parser)
    arguments.manual_dir(parser)
    arguments.allow_problems(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg import data

    args.name = data.full_name(args.name, args.manual_dir)
    ready = data.is_prepared(args.name, args.data_dir)
    folder = data.prepare(
        args.name, args.data_dir, args.manual_dir, allow_problems=args.allow_problems
    )
    manifest = data.read_manifest(args.name, args.data_dir)
    sizes = ", ".join(f"{split} {count}" for split, count in manifest.splits.items())
    print(f"{args.name} {'was ready already' if ready else 'is ready'} in {folder}: {sizes}")
    if manifest.left_out:
        print(f"{manifest.left_out} pairs that can not be used are left out")
    return 0
