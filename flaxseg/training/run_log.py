"""Writes what a run reports: lines on the terminal, JSON lines, TensorBoard events, images."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flaxseg.drawing import save_image
from flaxseg.errors import CheckpointError
from flaxseg.evaluation import SegmentationMetrics
from flaxseg.files import write_text
from flaxseg.training.checkpoint import best_entry
from flaxseg.training.resume import Position
from flaxseg.training.run import Run
from flaxseg.training.run_evaluation import Evaluation
from flaxseg.training.run_progress import format_seconds


class RunLog:
    """Writes the numbers and images of a run to all places where they go.

    Only the first process writes.

    Args:
      run: the run.
      from_step: steps done; what an earlier start wrote about later steps is dropped.
    """

    def __init__(self, run: Run, from_step: int):
        self._run = run
        self._metrics = self._board = None
        if jax.process_index() == 0:
            self._metrics = MetricsFile(run.directory.metrics_file, from_step=from_step)
            if run.settings.tensorboard:
                self._board = TensorBoard(run.directory.tensorboard, from_step=from_step)
        run.progress.start(from_step)

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the numbers of a log point."""
        self._run.progress.report(step, values)
        if self._metrics:
            self._metrics.write("train", step, values)
        if self._board:
            self._board.scalars("train", step, values)

    def evaluation(self, step: int, found: Evaluation) -> None:
        """Writes the numbers and images of an evaluation."""
        metrics, seconds = found.metrics, found.seconds
        self._run.progress.say(
            f"evaluation at step {step}: {metrics.summary()} ({format_seconds(seconds)})"
        )
        numbers = metrics.to_dict(self._run.settings.data.info.class_names)
        iou = {row["name"]: row["iou"] for row in numbers["classes"]}
        scalars = {name: value for name, value in numbers.items() if isinstance(value, float)}
        if self._metrics:
            self._metrics.write("eval", step, {**scalars, "iou": iou, "seconds": seconds})
            folder = self._run.directory.image_folder(step)
            folder.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(found.images):
                save_image(folder / f"{number:03d}.png", image)
        if self._board:
            self._board.scalars("eval", step, scalars)
            self._board.scalars("iou", step, iou)
            for number, image in enumerate(found.images):
                self._board.image(f"images/{number:03d}", step, image)

    def last_words(self, position: Position, stopped_by: str) -> None:
        """Says how the run ended: the table of the best evaluation, and where things are."""
        run, data = self._run, self._run.settings.data
        best = best_entry(position.history)
        if stopped_by:
            run.progress.say(
                f"stopped by {stopped_by} after step {position.step}, saved in "
                f"{run.directory.checkpoints}; the same command goes on from there"
            )
        elif best is None:
            run.progress.say("the run is complete; no evaluation gave a score")
        else:
            ignored = best["ignored_pixels"]
            metrics = SegmentationMetrics.from_matrix(np.array(best["matrix"]), ignored)
            images = sorted(run.directory.image_folder(best["step"]).glob("*.png"))
            lines = [
                metrics.table(data.info.class_names),
                f"best mIoU at step {best['step']} of {position.step}, on {data.info.name}/"
                f"{data.eval_split}",
                f"model: {run.directory.model}",
                *(["images:", *(f"  {path}" for path in images)] if images else []),
            ]
            run.progress.say("\n".join(lines))

    def close(self) -> None:
        """Closes the files."""
        if self._metrics:
            self._metrics.close()
        if self._board:
            self._board.close()


class MetricsFile:
    """Writes `metrics.jsonl`: one JSON object per report, each with "kind" and "step".

    A run that resumes from step s drops the lines after s: they are written again, and a reader
    never sees two lines for one step.
    """

    def __init__(self, path: str | os.PathLike, *, from_step: int = 0):
        """
        Args:
          path: of the file.
          from_step: steps done; lines of later steps, and half a last line, are dropped.

        Raises:
          CheckpointError: the file cannot be written.
        """
        self._path = pathlib.Path(path)
        try:
            old = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
            kept = [line for line in old if _step_of(line) is not None]
            kept = [line for line in kept if _step_of(line) <= from_step and from_step > 0]
            write_text(self._path, "".join(f"{line}\n" for line in kept))
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise _write_error(self._path, error) from error

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line; numbers that are not finite become null.

        Raises:
          CheckpointError: the disk is full, or the file is gone.
        """
        line = json.dumps({"kind": kind, "step": step, **_jsonable(values)}, allow_nan=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise _write_error(self._path, error) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Writes scalars and images as TensorBoard event files, without TensorFlow."""

    def __init__(self, directory: str | os.PathLike, *, from_step: int = 0):
        """
        Args:
          directory: of the event files.
          from_step: steps done; TensorBoard then leaves out what an earlier start wrote after it.
        """
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=from_step + 1, flush_secs=10)

    def scalars(self, prefix: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes the finite numbers of `values`; others are left out."""
        for name, value in values.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        """Writes an image, uint8 [H, W, 3]."""
        self._writer.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left and closes the files."""
        self._writer.close()


def _step_of(line: str) -> int | None:
    """Returns the step of a line; None for a line that is not one of ours."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _jsonable(value: Any) -> Any:
    """Returns a value as JSON holds it; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write_error(path: pathlib.Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be written: {error.strerror or error}. The last checkpoint is kept; free "
        "some room and give the same command again."
    )
