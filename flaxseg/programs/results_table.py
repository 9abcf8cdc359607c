"""Runs and evaluations as the rows of one table, so that no number is copied by hand.

A run has `metrics.jsonl` beside the settings and the best model (`flaxseg.training.run_directory`);
`evaluate --out` leaves a `metrics.json`. Both say of which model they speak.
"""

import dataclasses
import json
import os
import pathlib
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flaxseg.errors import DataError, FlaxsegError

RUN_LOG = "metrics.jsonl"
EVALUATION = "metrics.json"
# Folders of a run that hold no results, and may hold many files.
_NOT_SEARCHED = {"checkpoints", "model", "pictures", "tensorboard"}


@dataclasses.dataclass(frozen=True)
class Result:
    """A model measured on a split; None where it was not recorded.

    Attributes:
      source: the run's or the evaluation's folder.
      model: name for `create_model`.
      backbone: its name.
      data: "name/split".
      steps: of the training that were done.
      planned_steps: of the training.
      best_step: after which the model was taken.
      protocol: as text of `parse_protocol`, with the CRF.
      miou: in [0, 1].
      pixel_accuracy: in [0, 1].
      images_per_second: median of the training.
      parameters: trained numbers.
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
        """Whether the training stopped before its end, or goes on."""
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
      folders: runs, evaluations, or folders with such in them.

    Returns:
      The results in the order of their paths, and (path, reason) of those that are not among them
      because nothing was measured yet or a file can not be read.

    Raises:
      DataError: a folder is not there, or there is no run or evaluation in any.
    """
    results, problems, seen = [], [], set()
    for folder in folders:
        if not pathlib.Path(folder).is_dir():
            raise DataError(f"there is no folder {folder}; give folders of runs or evaluations.")
        for place in _places(pathlib.Path(folder)):
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
            f"no {RUN_LOG} of a training and no {EVALUATION} of 'evaluate --out' is in "
            f"{', '.join(map(str, folders))} or below."
        )
    return _with_their_runs(results), problems


def _places(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The folder and those below it, links included, each once."""
    seen = set()
    for path, names, _ in os.walk(folder, followlinks=True):
        place = pathlib.Path(path)
        if place.resolve() in seen:
            names.clear()
            continue
        seen.add(place.resolve())
        names[:] = sorted(n for n in names if n not in _NOT_SEARCHED and not n.startswith("."))
        yield place


def _read_run(folder: pathlib.Path) -> Result:
    from flaxseg.saved_model import read_model_card

    # What follows the last line break is half a line of a run that was killed, or that is writing.
    whole = _text(folder / RUN_LOG).rpartition("\n")[0].splitlines()
    lines = [_json(line, RUN_LOG) for line in whole if line.strip()]
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
        data=f"{config['data']['name']}/{config['data']['eval_split']}",
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
    """Evaluations in a run's folder get what only the run knows."""
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
    """The protocol of a training's evaluations, as `evaluate` writes it."""
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
        value = json.loads(text)
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
