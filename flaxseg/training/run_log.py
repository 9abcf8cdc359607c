"""Writes what a run reports: lines on the terminal, JSON lines, TensorBoard events, images."""

import contextlib
import json
import logging
import math
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from flaxseg.drawing import save_image
from flaxseg.errors import WriteError
from flaxseg.evaluation import SegmentationMetrics
from flaxseg.files import make_folder, write_text, writing
from flaxseg.json_lines import read_run_log
from flaxseg.paths import as_path, file_name
from flaxseg.training.checkpoint import best_entry
from flaxseg.training.log_file import LogFile
from flaxseg.training.resume import Position
from flaxseg.training.run import Run
from flaxseg.training.run_evaluation import Evaluation, is_exported
from flaxseg.training.run_progress import format_seconds

_log = logging.getLogger(__name__)


class RunLog:
    """Writes the numbers and images of a run to all places where they go.

    Only the first process writes. Where a disk is full, a warning says so and the run goes on.

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
            _save_images(self._run.directory.image_folder(step), found.images)
        if self._board:
            self._board.scalars("eval", step, scalars)
            self._board.scalars("iou", step, iou)
            for name, image in found.images.items():
                self._board.image(f"images/{file_name(name)}", step, image)

    def sync(self) -> None:
        """Waits until everything is on the disk that could be written."""
        for log in (self._metrics, self._board):
            if log:
                log.sync()

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
                f"model: {run.directory.model}"
                + ("" if is_exported(run, best) else " is not this model; see the warning above"),
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
          WriteError: the file cannot be written or read.
        """
        path = as_path(path)
        old = []
        with writing(path), contextlib.suppress(FileNotFoundError):
            old = read_run_log(path)
        kept = [line for line in old if line["step"] <= from_step and from_step > 0]
        write_text(path, "".join(f"{json.dumps(line)}\n" for line in kept))
        self._file = LogFile(path)

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line; numbers that are not finite become null."""
        line = json.dumps({"kind": kind, "step": step, **_jsonable(values)}, allow_nan=False)
        self._file.append(f"{line}\n".encode())

    def sync(self) -> None:
        """Waits until everything is on the disk that could be written."""
        self._file.sync()

    def close(self) -> None:
        """Writes what is left."""
        self._file.close()


class TensorBoard:
    """Writes scalars and images as a TensorBoard event file, without TensorFlow.

    Each event is written at once. The writers of tensorboardX hand events to a thread; when the
    disk is full that thread dies, and the next events wait for it for ever.
    """

    def __init__(self, directory: str | os.PathLike, *, from_step: int = 0):
        """
        Args:
          directory: of the event files.
          from_step: steps done; TensorBoard then leaves out what an earlier start wrote after it.
        """
        from tensorboardX.proto.event_pb2 import SessionLog

        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = LogFile(as_path(directory) / name)
        self._write(0, file_version="brain.Event:2")
        self._write(from_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, prefix: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes the finite numbers of `values`; others are left out."""
        from tensorboardX import summary

        event = summary.Summary()
        for name, value in values.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                event.MergeFrom(summary.scalar(f"{prefix}/{name}", value))
        self._write(step, summary=event)

    def image(self, name: str, step: int, image: np.ndarray) -> None:
        """Writes an image, uint8 [H, W, 3]."""
        from tensorboardX import summary

        self._write(step, summary=summary.image(name, image, dataformats="HWC"))

    def sync(self) -> None:
        """Waits until everything is on the disk that could be written."""
        self._file.sync()

    def close(self) -> None:
        """Writes what is left."""
        self._file.close()

    def _write(self, step: int, **content: Any) -> None:
        """Appends an event as a TFRecord: its length and its bytes, each with a checksum."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        event = Event(wall_time=time.time(), step=step, **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        sums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
        self._file.append(length + sums[0] + event + sums[1])


def _save_images(folder: pathlib.Path, images: Mapping[str, np.ndarray]) -> None:
    """Writes the images of an evaluation; a failure is only reported."""
    try:
        with writing(folder):
            make_folder(folder)
            for name, image in images.items():
                save_image(folder / f"{file_name(name)}.png", image)
    except WriteError as error:
        _log.warning("%s The run goes on without these images.", error)


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
