"""`python -m flaxseg models`."""

import argparse

import flaxseg

NAME = "models"
SUMMARY = "list models, backbones and data sets"
TEXT = "Lists what can be built by name."
EPILOG = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg import data
    from flaxseg.backbones import list_backbones

    for title, names in (
        ("models", flaxseg.list_models()),
        ("backbones", list_backbones()),
        ("data sets", data.list_datasets()),
    ):
        print(f"{title}:")
        for name in names:
            print(f"  {name}")
    print("  folder: your own pictures and masks, with --manual_dir=FOLDER; see docs/data.md")
    return 0
