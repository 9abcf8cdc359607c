"""`python -m flaxseg verify-data`."""

import argparse
import json

from flaxseg.errors import DataError
from flaxseg.programs import arguments
from flaxseg.programs.output import output_folder

NAME = "verify-data"
SUMMARY = "check a data set and count"
TEXT = """Reads a whole data set, says everything that is wrong with it, and counts what it
holds: pixels of each class, weights that balance them, sizes of the pictures. With --manual_dir
the files there are checked, before anything is made of them; without, the prepared records.

All problems are printed, one a line, and with --out they are in report.json beside a picture of
the classes and sizes. The exit code is 1 if there is a problem; warnings do not count.
"""
EPILOG = """examples:
  python -m flaxseg verify-data camvid --manual_dir=downloads/CamVid
  python -m flaxseg verify-data folder --manual_dir=my_pictures --out=runs/check
  python -m flaxseg verify-data folder --manual_dir=my_pictures --json > report.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    arguments.data_set(parser)
    arguments.data_dir(parser)
    parser.add_argument(
        "--manual_dir", "--manual-dir", metavar="DIR", help="folder with the files to check"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for report.txt, .json and .png")
    parser.add_argument(
        "--json", action="store_true", help="print the report as JSON in place of text"
    )
    parser.add_argument(
        "--num_threads",
        "--num-threads",
        type=arguments.at_least(1),
        metavar="N",
        help="decode in so many threads (default: one per core, at most 32)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg import data
    from flaxseg.programs.data_report import write_report

    out = output_folder(args.out) if args.out else None
    report = data.verify_data(
        args.name, args.manual_dir, args.data_dir, num_threads=args.num_threads
    )
    print(json.dumps(report.to_dict(), indent=2) if args.json else report.text())
    if out is not None:
        written = write_report(report, out)
        if not args.json:
            print("\n".join(["", "written:", *(f"  {path}" for path in written)]))
    if not report.errors:
        return 0
    number = "1 problem" if len(report.errors) == 1 else f"{len(report.errors)} problems"
    raise DataError(f"{report.name} has {number}; they are listed above")
