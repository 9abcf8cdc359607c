"""Appends to the logs of a run; a disk without room neither ends the run nor makes it wait."""

import logging
import math
import os
import pathlib
import time

from flaxseg.files import writing
from flaxseg.paths import as_path, is_remote

_MOST_WAITING = 64 * 2**20
"""Bytes that are kept in memory for a file that cannot be written."""

# An object of a bucket is written as a whole: after so many seconds at the earliest, and so many
# times as long as the last writing took.
_PAUSE = 30.0
_SHARE = 20.0

_log = logging.getLogger(__name__)


class LogFile:
    """Appends entries to a file, and raises nothing.

    Entries that cannot be written are kept, and written with a later one when there is room again.
    A warning names the file when it cannot be written any more, and when it can be again.

    Args:
      path: of the file; what it holds is kept.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = as_path(path)
        self._object: bytes | None = None  # all of it, where it is in a bucket
        self._written, self._took = -math.inf, 0.0
        self._waiting: list[bytes] = []
        self._lost = 0  # entries for which there was no memory either
        self._failing = False
        self._torn_from: int | None = None  # where an entry begins of which a part may be written

    def append(self, entry: bytes) -> None:
        """Appends an entry; it has left the process when this returns, if there is room for it."""
        if sum(map(len, self._waiting)) + len(entry) > _MOST_WAITING:
            self._lost += 1
        else:
            self._waiting.append(entry)
        pause = max(_PAUSE, _SHARE * self._took) if is_remote(self._path) else 0.0
        if time.monotonic() - self._written >= pause:
            self._write()

    def sync(self) -> None:
        """Waits until all that could be written is on the disk."""
        self._write()
        if is_remote(self._path):
            return
        try:
            with open(self._path, "rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            _log.debug("%s is not synced: %s", self._path, error)

    def close(self) -> None:
        """Writes what is left if there is room, and says how much is not written."""
        self._write()
        missing = len(self._waiting) + self._lost
        if missing:
            _log.warning("%s lacks the last %d entries", self._path, missing)

    def _write(self) -> None:
        if not self._waiting:
            return
        try:
            if is_remote(self._path):
                self._replace_object()
            else:
                self._append_to_file()
        except OSError as error:
            if not self._failing:
                _log.warning(
                    "%s cannot be written: %s. The run goes on; free some room, and what is "
                    "missing will be written.",
                    self._path,
                    error.strerror or error,
                )
            self._failing = True
            return
        if self._failing:
            lost = f"{self._lost} entries are lost" if self._lost else "nothing is missing"
            _log.warning("%s is written again; %s", self._path, lost)
        self._waiting, self._lost = [], 0
        self._failing, self._torn_from = False, None

    def _append_to_file(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab") as file:
            if self._torn_from is not None:
                file.truncate(min(self._torn_from, file.tell()))
            self._torn_from = file.seek(0, os.SEEK_END)
            file.write(b"".join(self._waiting))

    def _replace_object(self) -> None:
        """Writes the whole log anew: nothing can be appended to an object of a bucket."""
        began = time.monotonic()
        try:
            with writing(self._path):
                if self._object is None:
                    self._object = _content(self._path)
                content = self._object + b"".join(self._waiting)
                self._path.write_bytes(content)
            self._object = content
        finally:
            self._written = time.monotonic()
            self._took = self._written - began


def _content(path: pathlib.Path) -> bytes:
    """Returns what a file holds, nothing where it is not there."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
