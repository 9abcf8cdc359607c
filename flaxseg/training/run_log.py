"""What a run writes about itself: JSON lines, TensorBoard events, and prediction pictures."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from flaxseg.errors import CheckpointError
from flaxseg.training.run_directory import write_text


class MetricsFile:
    """`metrics.jsonl`: one JSON object per report, each with "kind" and "step".

    A run that goes on from step s drops the lines after s: they are written again, and a reader
    never sees two lines for one step.
    """

    def __init__(self, path: str | os.PathLike, *, from_step: int = 0):
        """
        Args:
          path: of the file.
          from_step: steps done; lines of later steps, and half a last line, are dropped.

        Raises:
          CheckpointError: the file can not be written.
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
        """Append one line; numbers that are not finite become null.

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
        self._file.close()


class TensorBoard:
    """Scalars and pictures as TensorBoard event files; TensorFlow is not needed."""

    def __init__(self, directory: str | os.PathLike, *, from_step: int = 0):
        """
        Args:
          directory: of the event files.
          from_step: steps done; TensorBoard then leaves out what an earlier start wrote after it.
        """
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(directory), purge_step=from_step + 1, flush_secs=10)

    def scalars(self, prefix: str, step: int, values: Mapping[str, Any]) -> None:
        """Write the finite numbers of `values`; others are left out."""
        for name, value in values.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def picture(self, name: str, step: int, picture: np.ndarray) -> None:
        """Write an image, uint8 [H, W, 3]."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


def _step_of(line: str) -> int | None:
    """The step of a line, None where it is none of ours."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _jsonable(value: Any) -> Any:
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
        f"{path} can not be written: {error.strerror or error}. The last checkpoint is kept; free "
        "some room and give the same command again."
    )
