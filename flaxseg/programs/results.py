"""Implements `python -m flaxseg results`: one table of runs and evaluations.

A run has `metrics.jsonl` beside its settings and its best model (`flaxseg.training.run_directory`);
`evaluate --out` leaves a `metrics.json`. The table is made from these files, so that no number is
copied by hand.
"""

import argparse
import csv
import dataclasses
import io
import json
import os
import pathlib
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flaxseg.errors import DataError, FlaxsegError
from flaxseg.folder_walk import walk
from flaxseg.json_lines import read_run_log
from flaxseg.json_text import parse_json

NAME = "results"
SUMMARY = "collect runs and evaluations into one table"
TEXT = """Prints a table of all training runs and evaluations in the given folders and below them:
the best evaluation of each run, and what each 'evaluate --out' measured. Those without a score and
those with damaged files are listed after the table (for csv on stderr).
"""
EPILOG = """examples:
  python -m flaxseg results runs
  python -m flaxseg results runs/camvid runs/pspnet --format=csv > results.csv
"""

RUN_LOG = "metrics.jsonl"
EVALUATION = "metrics.json"
# Folders of a run that hold no results, and may hold many files.
_NOT_SEARCHED = {"checkpoints", "model", "images", "tensorboard"}
_FORMATS = ("markdown", "csv", "json")
_SORTS = ("miou", "path", "data", "model", "steps", "parameters", "images_per_second")
_LARGEST_FIRST = ("miou", "images_per_second")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    parser.add_argument(
        "folders", nargs="+", metavar="DIR", help="training runs, or folders that contain some"
    )
    parser.add_argument(
        "--format",
        choices=_FORMATS,
        default="markdown",
        help="format of the table (default: markdown)",
    )
    parser.add_argument(
        "--sort",
        choices=_SORTS,
        default="data",
        help="column to sort by (default: data, within it by mIoU); mIoU and images per second "
        "sort largest first",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
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


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds what is known of a model measured on a split; None stands for what was not recorded.

    Attributes:
      source: folder of the run or of the evaluation.
      model: name of the model, as for `create_model`.
      backbone: name of the backbone.
      data: "name/split".
      steps: training steps done.
      planned_steps: training steps planned.
      best_step: step at which the model was taken.
      protocol: the protocol, as text of `parse_protocol`, with the CRF.
      miou: mIoU in [0, 1].
      pixel_accuracy: pixel accuracy in [0, 1].
      images_per_second: median training speed.
      parameters: number of parameters.
    """

    source: str
    model: str | None = None
    backbone: str | None = None
    data: str | None = None
    steps: int | None = None
    planned_steps: int | None = None
    best_step: int | None = None
    protocol: str | None = None
    miou: float | None = None
    pixel_accuracy: float | None = None
    images_per_second: float | None = None
    parameters: int | None = None

    @property
    def is_unfinished(self) -> bool:
        """Returns whether the training stopped before its end, or is still running."""
        return (
            self.steps is not None
            and self.planned_steps is not None
            and self.steps < self.planned_steps
        )


def collect_results(
    folders: Iterable[str | os.PathLike],
) -> tuple[list[Result], list[tuple[str, str]]]:
    """Reads all runs and evaluations in folders and below them.

    Args:
      folders: runs, evaluations, or folders that contain some.

    Returns:
      The results in the order of their paths, and (path, reason) of those left out because nothing
      has been measured yet or a file cannot be read.

    Raises:
      DataError: a folder does not exist, or none contains a run or an evaluation.
    """
    results, problems, seen = [], [], set()
    for folder in folders:
        if not pathlib.Path(folder).is_dir():
            raise DataError(f"there is no folder {folder}; give folders of runs or evaluations.")
        for place in _places(pathlib.Path(folder), problems):
            if place.resolve() in seen:
                continue
            seen.add(place.resolve())
            for name, read in ((RUN_LOG, _read_run), (EVALUATION, _read_evaluation)):
                if not (place / name).is_file():
                    continue
                try:
                    results.append(read(place))
                except (OSError, ValueError, KeyError, TypeError, FlaxsegError) as error:
                    problems.append((str(place), _reason(error)))
    if not results and not problems:
        raise DataError(
            f"no {RUN_LOG} of a training run and no {EVALUATION} of 'evaluate --out' is in "
            f"{', '.join(map(str, folders))} or below."
        )
    return _with_their_runs(results), problems


def _places(folder: pathlib.Path, problems: list[tuple[str, str]]) -> Iterator[pathlib.Path]:
    """Yields the folder and those below it, each once; adds those that cannot be read."""

    def unreadable(error: OSError) -> None:
        problems.append((str(error.filename), _reason(error)))

    for place, folders, _ in walk(folder, on_error=unreadable):
        folders[:] = [name for name in folders if name not in _NOT_SEARCHED]
        yield place


def _read_run(folder: pathlib.Path) -> Result:
    from flaxseg.saved_model import read_model_card

    lines = read_run_log(folder / RUN_LOG)
    config = _json(_text(folder / "config.json"), "config.json")
    planned = config["steps"]
    steps = max((line["step"] for line in lines), default=0)
    scores = [line for line in lines if line["kind"] == "eval" and line.get("miou") is not None]
    if not scores:
        raise ValueError(f"no evaluation yet, step {steps} of {planned}")
    best = max(scores, key=lambda line: line["miou"])
    card = read_model_card(folder)
    speeds = [line["images_per_second"] for line in lines if line.get("images_per_second")]
    return Result(
        source=str(folder),
        **_of_card(card),
        # Only the card knows the own name of a data set that the config calls 'folder'.
        data=card.get("extra", {}).get("data")
        or f"{config['data']['name']}/{config['data']['eval_split']}",
        steps=steps,
        planned_steps=planned,
        best_step=best["step"],
        protocol=_protocol(config.get("eval", {})),
        miou=best["miou"],
        pixel_accuracy=best["pixel_accuracy"],
        images_per_second=statistics.median(speeds) if speeds else None,
    )


def _read_evaluation(folder: pathlib.Path) -> Result:
    report = _json(_text(folder / EVALUATION), EVALUATION)
    protocol = [_short(report.get("protocol", "whole()"))]
    if report.get("output_stride"):
        protocol.append(f"output stride {report['output_stride']}")
    if report.get("crf"):
        protocol.append(f"CRF {report['crf']}")
    return Result(
        source=str(folder),
        model=report["model"],
        backbone=report.get("backbone"),
        data=f"{report['data']}/{report['split']}",
        best_step=report.get("step"),
        protocol=", ".join(protocol),
        miou=report["miou"],
        pixel_accuracy=report["pixel_accuracy"],
        parameters=report.get("parameters"),
    )


def _with_their_runs(results: Sequence[Result]) -> list[Result]:
    """Completes evaluations in the folder of a run with what only the run knows."""
    runs = {result.source: result for result in results if result.steps is not None}
    whole = []
    for result in results:
        around = [result.source, *map(str, pathlib.Path(result.source).parents)]
        run = next((runs[folder] for folder in around if folder in runs), None)
        if result.steps is None and run is not None and run.model == result.model:
            known = {
                name: value
                for name, value in dataclasses.asdict(result).items()
                if value is not None
            }
            result = dataclasses.replace(run, **known)
        whole.append(result)
    return whole


def _of_card(card: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": card["model"],
        "backbone": card["options"].get("backbone"),
        "parameters": card["weights"]["parameters"],
    }


def _protocol(settings: Mapping[str, Any]) -> str:
    """Returns the protocol of a run's evaluations, as `evaluate` writes it."""
    from flaxseg.inference.named_protocols import parse_protocol

    protocol = parse_protocol(settings.get("protocol", "whole"))
    if any(settings.get("pad_to", ())):
        protocol = dataclasses.replace(protocol, pad_to=tuple(settings["pad_to"]))
    return _short(protocol.describe())


def _short(protocol: str) -> str:
    return "whole" if protocol == "whole()" else protocol


def _text(path: pathlib.Path) -> str:
    return path.read_text(encoding="utf-8")


def _json(text: str, name: str) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} is damaged: no JSON object")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename}"
    if isinstance(error, KeyError):
        return f"{error} is missing in its files"
    return str(error)


def _sorted(results: list, name: str) -> list:
    """Sorts by one column, then by mIoU, then by path; unknown values come last."""

    def miou(result) -> tuple:
        return result.miou is None, -(result.miou or 0.0), result.source

    def key(result) -> tuple:
        value = getattr(result, "source" if name == "path" else name)
        if value is not None and name in _LARGEST_FIRST:
            value = -value
        return (value is None, *([] if value is None else [value]), *miou(result))

    return sorted(results, key=key)


def _csv(results: list) -> str:
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
