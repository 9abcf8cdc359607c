"""Records which image and settings produced each prediction file.

`predictions.jsonl` has one line of JSON per set of settings (the model with the digest of its
weights, protocol, CRF, ...) and one per finished image; later lines override earlier ones. An image
is done if it has not changed since, its files are still there, and they were written with the same
settings. Lines are only ever appended, each by a single write, so that programs that run at the
same time, or are killed, do no harm.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flaxseg.errors import DataError
from flaxseg.files import writing
from flaxseg.json_lines import read_json_lines

RECORD_FILE = "predictions.jsonl"


@dataclasses.dataclass(frozen=True)
class Stamp:
    """Identifies a state of a file by its size in bytes and the time of its last change in ns."""

    bytes: int
    changed: int

    @classmethod
    def of(cls, path: pathlib.Path) -> "Stamp":
        """Returns the stamp of a file; raises OSError if it does not exist."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


class PredictionRecord:
    """Keeps the record of a folder for one set of settings."""

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
        """Reads the record, if there is one.

        Args:
          folder: folder of the results, which need not exist yet.
          settings: all that the predictions depend on beside the image, as JSON can hold it.

        Raises:
          DataError: the record cannot be read.
        """
        self._folder = pathlib.Path(os.path.abspath(folder))
        self._path = self._folder / RECORD_FILE
        self._settings = json.loads(json.dumps(settings))
        text = json.dumps(self._settings, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._known = False  # whether the settings have their line
        self._whole = True  # whether the last line is
        # For each file: key of the settings, image, stamp of the image, bytes of the file.
        self._done: dict[str, tuple[str, str, Stamp, int]] = {}
        try:
            if self._path.exists():
                self._read()
        except OSError as error:
            raise DataError(
                f"cannot read {self._path}: {error.strerror or error}; it says which images are "
                "done."
            ) from error

    def is_done(self, source: pathlib.Path, files: Mapping[str, pathlib.Path]) -> bool:
        """Returns whether all files of an image exist and were written from it as it is now."""
        try:
            wanted = self._key, str(source), Stamp.of(source)
            return all(
                self._done.get(self._name(file)) == (*wanted, file.stat().st_size)
                for file in files.values()
            )
        except OSError:
            return False

    def add(self, source: pathlib.Path, stamp: Stamp, files: Mapping[str, pathlib.Path]) -> None:
        """Notes that an image is done.

        Args:
          source: the image.
          stamp: its stamp from before it was read.
          files: all files written for it, by kind.

        Raises:
          OSError: the files do not exist.
          WriteError: the record cannot be written.
        """
        sizes = {self._name(file): file.stat().st_size for file in files.values()}
        if not self._known:
            self._append({"settings": self._key, "are": self._settings})
            self._known = True
        self._append(
            {
                "image": str(source),
                **dataclasses.asdict(stamp),
                "settings": self._key,
                "files": sizes,
            }
        )

    def _name(self, file: pathlib.Path) -> str:
        """Returns a file's path in the folder, so that the folder can be moved."""
        return file.relative_to(self._folder).as_posix()

    def _append(self, entry: dict) -> None:
        line = json.dumps(entry) + "\n"
        # A line that a killed program left unfinished is ended first.
        text = line if self._whole else f"\n{line}"
        with writing(self._path), open(self._path, "ab", buffering=0) as file:
            self._whole = file.write(text.encode()) == len(text)

    def _read(self) -> None:
        self._whole = self._path.read_bytes()[-1:] in (b"\n", b"")
        # Images whose line is damaged are done again.
        read_json_lines(self._path, self._take)

    def _take(self, entry: dict[str, Any]) -> None:
        """Notes what a line of the record says."""
        if "files" in entry:
            stamp = Stamp(entry["bytes"], entry["changed"])
            done = entry["settings"], entry["image"], stamp
            self._done |= {name: (*done, size) for name, size in entry["files"].items()}
        elif entry["settings"] == self._key:
            self._known = True
