"""What stands in a folder of predictions was made of which pictures, and how.

`predictions.jsonl` has a line of JSON for each way of predicting (the model with the digest of its
weights, protocol, CRF, ...) and one for each picture done; later lines count. A picture is done if
it has not changed since, what was written for it is still there, and it was predicted in the same
way. Lines are only ever added, each by one write, so that programs which run at the same time, or
are killed, do no harm.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flaxseg.errors import DataError

RECORD_FILE = "predictions.jsonl"


@dataclasses.dataclass(frozen=True)
class Stamp:
    """By what a changed file is told: its size in bytes, and when it was last changed, in ns."""

    bytes: int
    changed: int

    @classmethod
    def of(cls, path: pathlib.Path) -> "Stamp":
        """Of a file; OSError if it is not there."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns)


class PredictionRecord:
    """The record of a folder, for one way of predicting."""

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
        """Reads what there is.

        Args:
          folder: of the results; it need not exist yet.
          settings: all that the predictions depend on beside the picture, as JSON holds it.

        Raises:
          DataError: the record can not be read.
        """
        self._folder = pathlib.Path(os.path.abspath(folder))
        self._path = self._folder / RECORD_FILE
        self._settings = json.loads(json.dumps(settings))
        text = json.dumps(self._settings, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._known = False  # whether the settings have their line
        self._whole = True  # whether the last line is
        # By file: key of the settings, picture, its stamp, bytes of the file.
        self._done: dict[str, tuple[str, str, Stamp, int]] = {}
        try:
            if self._path.exists():
                self._read()
        except OSError as error:
            raise DataError(
                f"can not read {self._path}: {error.strerror or error}; it says which pictures are "
                "done."
            ) from error

    def is_done(self, source: pathlib.Path, files: Mapping[str, pathlib.Path]) -> bool:
        """Whether all files of a picture are there, made of it as it is, in the same way."""
        try:
            wanted = self._key, str(source), Stamp.of(source)
            return all(
                self._done.get(self._name(file)) == (*wanted, file.stat().st_size)
                for file in files.values()
            )
        except OSError:
            return False

    def add(self, source: pathlib.Path, stamp: Stamp, files: Mapping[str, pathlib.Path]) -> None:
        """Notes that a picture is done.

        Args:
          source: the picture.
          stamp: of it, taken before it was read.
          files: all that was written for it, by kind.

        Raises:
          OSError: the files are not there, or the record can not be written.
        """
        sizes = {self._name(file): file.stat().st_size for file in files.values()}
        if not self._known:
            self._append({"settings": self._key, "are": self._settings})
            self._known = True
        self._append(
            {
                "picture": str(source),
                **dataclasses.asdict(stamp),
                "settings": self._key,
                "files": sizes,
            }
        )

    def _name(self, file: pathlib.Path) -> str:
        """A file's path in the folder, so that the folder can be moved."""
        return file.relative_to(self._folder).as_posix()

    def _append(self, entry: dict) -> None:
        line = json.dumps(entry) + "\n"
        # What a killed program began to write is closed first.
        text = line if self._whole else f"\n{line}"
        with open(self._path, "ab", buffering=0) as file:
            file.write(text.encode())
        self._whole = True

    def _read(self) -> None:
        content = self._path.read_bytes()
        self._whole = content.endswith(b"\n") or not content
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                if "files" in entry:
                    stamp = Stamp(entry["bytes"], entry["changed"])
                    for name, size in entry["files"].items():
                        self._done[name] = (entry["settings"], entry["picture"], stamp, size)
                elif entry["settings"] == self._key:
                    self._known = True
            except (ValueError, KeyError, TypeError, AttributeError):
                # Cut off when a program was killed; its picture is done again.
                continue
