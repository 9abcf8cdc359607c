"""Implements `python -m flaxseg models`."""

import argparse
from collections.abc import Sequence

import flaxseg
from flaxseg.errors import MissingPackageError

NAME = "models"
SUMMARY = "list models, backbones and data sets"
TEXT = "Lists the models, backbones and data sets that are known by name."
EPILOG = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no arguments, as the command has none."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    _print("models", flaxseg.list_models())
    _print("backbones", flaxseg.list_backbones())
    try:
        _print("data sets", flaxseg.list_datasets())
    except MissingPackageError as error:
        print(f"data sets: {error}")
        return 0
    print("  folder: your own images and masks, with --manual_dir=FOLDER; see docs/data.md")
    return 0


def _print(title: str, names: Sequence[str]) -> None:
    print(f"{title}:", *names, sep="\n  ")
