"""Implements `python -m flaxseg verify-data`."""

import argparse
import json
import pathlib
from typing import TYPE_CHECKING

from flaxseg.errors import DataError
from flaxseg.files import write_text
from flaxseg.programs import arguments
from flaxseg.settings import MAX_WORKERS

if TYPE_CHECKING:  # slow to import, and `--help` needs none of it
    from flaxseg.data import Report

NAME = "verify-data"
SUMMARY = "check a data set and count its pixels"
TEXT = """Reads a whole data set, reports everything that is wrong with it, and counts what it
holds: pixels of each class, weights that balance the classes, sizes of the images. With
--manual_dir the files there are checked, before anything is prepared from them; without it, the
prepared records are.

Problems are printed one per line; --out also writes them to report.json, with a chart of classes
and sizes. The exit code is 1 if there is a problem; warnings do not count.
"""
EPILOG = """examples:
  python -m flaxseg verify-data camvid --manual_dir=downloads/CamVid
  python -m flaxseg verify-data folder --manual_dir=my_images --out=runs/check
  python -m flaxseg verify-data folder --manual_dir=my_images --json > report.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    arguments.data(parser)
    arguments.data_dir(parser)
    arguments.flag(parser, "--manual_dir", metavar="DIR", help="folder with the files to check")
    parser.add_argument("--out", metavar="DIR", help="folder for report.txt, .json and .png")
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON instead of text"
    )
    text = "number of decoding threads (default: one per core, at most 32)"
    arguments.count(parser, "--num_threads", "N", None, text, most=MAX_WORKERS)


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg import data

    out = arguments.output_folder(args.out) if args.out else None
    report = data.verify_data(
        args.data, args.manual_dir, args.data_dir, num_threads=args.num_threads
    )
    print(json.dumps(report.to_dict(), indent=2) if args.json else report.text())
    if out is not None:
        written = write_report(report, out)
        if not args.json:
            print()
            arguments.print_written(written)
    if not report.errors:
        return 0
    number = "1 problem" if len(report.errors) == 1 else f"{len(report.errors)} problems"
    raise DataError(f"{report.name} has {number}; see the list above")


def write_report(report: "Report", out: pathlib.Path) -> list[pathlib.Path]:
    """Writes `report.txt`, `report.json` and `report.png`, and returns their paths.

    Args:
      report: what `flaxseg.data.verify_data` found.
      out: a folder, which must exist.

    Raises:
      WriteError: nothing can be written there.
    """
    from flaxseg.drawing.data_report import draw_report
    from flaxseg.drawing.images import save_image

    written = [out / "report.txt", out / "report.json", out / "report.png"]
    write_text(written[0], report.text() + "\n")
    write_text(written[1], json.dumps(report.to_dict(), indent=2, allow_nan=False) + "\n")
    save_image(written[2], draw_report(report))
    return written
