"""Implements `python -m flaxseg prepare-data`."""

import argparse

from flaxseg.programs import arguments

NAME = "prepare-data"
SUMMARY = "prepare a data set for training and evaluation"
TEXT = """Prepares a data set for training and evaluation: generates it, downloads it, or converts
the published files in --manual_dir. A data set that is already prepared is left alone.
"""
EPILOG = """examples:
  python -m flaxseg prepare-data shapes
  python -m flaxseg prepare-data camvid --manual_dir=downloads/CamVid --data_dir=/data
  python -m flaxseg prepare-data voc_segmentation
  python -m flaxseg prepare-data cityscapes --manual_dir=downloads
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.data(parser)
    arguments.data_dir(parser)
    arguments.manual_dir(parser)
    arguments.allow_problems(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg import data

    name = data.full_name(args.data, args.manual_dir)
    was_ready = data.is_prepared(name, args.data_dir)
    folder = data.prepare(name, args.data_dir, args.manual_dir, allow_problems=args.allow_problems)
    manifest = data.read_manifest(name, args.data_dir)
    sizes = ", ".join(f"{split} {count}" for split, count in manifest.splits.items())
    print(f"{name} {'was ready already' if was_ready else 'is ready'} in {folder}: {sizes}")
    if manifest.left_out:
        print(f"unusable pairs left out: {manifest.left_out}")
    return 0
