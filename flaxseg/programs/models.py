"""Implements `python -m flaxseg models`."""

import argparse

import flaxseg

NAME = "models"
SUMMARY = "list models, backbones and data sets"
TEXT = "Lists the models, backbones and data sets that are known by name."
EPILOG = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no arguments, as the command has none."""
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
    print("  folder: your own images and masks, with --manual_dir=FOLDER; see docs/data.md")
    return 0
