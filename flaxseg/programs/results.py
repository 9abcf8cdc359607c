"""`python -m flaxseg results`."""

import argparse
import csv
import dataclasses
import io
import json
import sys

NAME = "results"
SUMMARY = "collect runs and evaluations into one table"
TEXT = """Prints a table of all trainings and evaluations in the given folders and below them: of a
training its best evaluation, of 'evaluate --out' what it measured. Those without a score, and those
whose files are damaged, are named after the table (for csv on stderr).
"""
EPILOG = """examples:
  python -m flaxseg results runs
  python -m flaxseg results runs/camvid runs/pspnet --format=csv > results.csv
"""

_FORMATS = ("markdown", "csv", "json")
_SORTS = ("miou", "path", "data", "model", "steps", "parameters", "images_per_second")
_LARGEST_FIRST = ("miou", "images_per_second")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument("folders", nargs="+", metavar="DIR", help="runs, or folders with runs")
    parser.add_argument("--format", choices=_FORMATS, default="markdown", help="default: markdown")
    parser.add_argument(
        "--sort",
        choices=_SORTS,
        default="data",
        help="default: data, within it by mIoU; mIoU and images per second largest first",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    from flaxseg.programs.results_table import collect_results

    results, problems = collect_results(args.folders)
    results = _sorted(results, args.sort)
    if args.format == "json":
        rows = [dataclasses.asdict(r) | {"unfinished": r.is_unfinished} for r in results]
        missing = [{"source": path, "reason": reason} for path, reason in problems]
        print(json.dumps({"results": rows, "not_in_table": missing}, indent=2))
    elif args.format == "csv":
        print(_csv(results), end="")
        for path, reason in problems:
            print(f"not in the table: {path}: {reason}", file=sys.stderr)
    else:
        print(_markdown(results))
        if problems:
            print("\nNot in the table:\n")
            print("\n".join(f"* {path}: {reason}" for path, reason in problems))
    return 0


def _sorted(results: list, name: str) -> list:
    """By one column, then by mIoU, then by path; what is not known comes last."""

    def miou(result) -> tuple:
        return result.miou is None, -(result.miou or 0.0), result.source

    def key(result) -> tuple:
        value = getattr(result, "source" if name == "path" else name)
        if value is not None and name in _LARGEST_FIRST:
            value = -value
        return (value is None, *([] if value is None else [value]), *miou(result))

    return sorted(results, key=key)


def _csv(results: list) -> str:
    from flaxseg.programs.results_table import Result

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Result)]
    writer.writerow([*names, "unfinished"])
    for result in results:
        # None becomes an empty cell.
        writer.writerow([*(getattr(result, name) for name in names), result.is_unfinished])
    return text.getvalue()


def _markdown(results: list) -> str:
    columns = {
        "data": lambda r: r.data,
        "model": lambda r: r.model,
        "backbone": lambda r: r.backbone,
        "steps": _steps,
        "protocol": lambda r: r.protocol and f"`{r.protocol}`",
        "mIoU": lambda r: _percent(r.miou),
        "pixel accuracy": lambda r: _percent(r.pixel_accuracy),
        "images/s in training": lambda r: r.images_per_second and f"{r.images_per_second:.3g}",
        "parameters": lambda r: r.parameters and f"{r.parameters / 1e6:.1f} M",
        "from": lambda r: r.source,
    }
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for result in results:
        cells = (str(show(result) or "").replace("|", "\\|") for show in columns.values())
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"


def _steps(result) -> str:
    if result.steps is None:
        return str(result.best_step or "")
    text = f"{result.steps} of {result.planned_steps}" if result.is_unfinished else result.steps
    best = result.best_step
    return f"{text}, best at {best}" if best not in (None, result.steps) else str(text)
