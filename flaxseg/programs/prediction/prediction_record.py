"""Records which image and settings produced each prediction file.

`predictions.jsonl` has one line of JSON per set of settings (the model with the digest of its
weights, protocol, CRF, ...), and two per image: before its files are written, that they belong to
it, and afterwards, that they are done. Later lines override earlier ones. An image is done if it
has not changed since, its files are still there, and they were written with the same settings.
Lines are only ever appended, each by a single write, so that programs that run at the same time, or
are killed, do no harm.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import unicodedata
from collections.abc import Mapping
from typing import Any

from flaxseg.errors import DataError
from flaxseg.files import sync_file, writing
from flaxseg.json_lines import read_json_lines

RECORD_FILE = "predictions.jsonl"


def folded(name: str) -> str:
    """Returns a name such that two that some disk takes for one are equal."""
    return unicodedata.normalize("NFC", name.casefold())


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


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Holds what the record says about a file.

    Attributes:
      name: path of the file in the folder.
      settings: key of the settings.
      image: absolute path of the image.
      relative: path of the image from the folder.
      stamp: of the image.
      bytes: size of the file; None until it is done.
    """

    name: str
    settings: str
    image: str
    relative: str
    stamp: Stamp
    bytes: int | None


class PredictionRecord:
    """Keeps the record of a folder for one set of settings.

    Attributes:
      folder: the folder of the results, absolute.
    """

    def __init__(self, folder: str | os.PathLike, settings: Mapping[str, Any]):
        """Reads the record, if there is one.

        Args:
          folder: folder of the results, which need not exist yet.
          settings: all that the predictions depend on beside the image, as JSON can hold it.

        Raises:
          DataError: the record cannot be read.
        """
        self.folder = pathlib.Path(os.path.abspath(folder))
        self._path = self.folder / RECORD_FILE
        self._settings = json.loads(json.dumps(settings))
        text = json.dumps(self._settings, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._known = False  # whether the settings have their line
        self._whole = True  # whether the last line is
        self._entries: dict[str, _Entry] = {}  # by the name of the file, in one case of letters
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
            wanted = self._key, Stamp.of(source)
            return all(
                (entry := self._entries.get(self._index(file))) is not None
                and (entry.settings, entry.stamp) == wanted
                and entry.bytes == file.stat().st_size
                and self._is_of(entry, source)
                for file in files.values()
            )
        except OSError:
            return False

    def other_owner(self, source: pathlib.Path, file: pathlib.Path) -> str | None:
        """Returns whose file would be lost if one were written for an image.

        Returns:
          None if there is no such file, or it belongs to the image; else the image that it belongs
          to, or "" if that is not recorded.
        """
        entry = self._entries.get(self._index(file))
        if entry is None:
            return "" if os.path.lexists(file) else None
        if self._is_of(entry, source) or not os.path.lexists(self.folder / entry.name):
            return None
        return entry.image

    def claim(self, source: pathlib.Path, stamp: Stamp, files: Mapping[str, pathlib.Path]) -> None:
        """Notes that files belong to an image, before they are written.

        Args:
          source: the image.
          stamp: its stamp from before it was read.
          files: all files to be written for it, by kind.

        Raises:
          WriteError: the record cannot be written.
        """
        if not self._known:
            self._append({"settings": self._key, "are": self._settings})
            self._known = True
        self._add(source, stamp, dict.fromkeys(files.values()))

    def finish(self, source: pathlib.Path, stamp: Stamp, files: Mapping[str, pathlib.Path]) -> None:
        """Notes that an image is done; the arguments are those of `claim`.

        Raises:
          WriteError: the files do not exist, or the record cannot be written.
        """
        with writing(self.folder):
            self._add(source, stamp, {file: file.stat().st_size for file in files.values()})

    def _add(
        self, source: pathlib.Path, stamp: Stamp, sizes: Mapping[pathlib.Path, int | None]
    ) -> None:
        self._append(
            {
                "image": str(source),
                "relative": os.path.relpath(source, self.folder),
                **dataclasses.asdict(stamp),
                "settings": self._key,
                "files": {
                    file.relative_to(self.folder).as_posix(): size for file, size in sizes.items()
                },
            }
        )

    def _append(self, entry: dict) -> None:
        line = json.dumps(entry) + "\n"
        # A line that a killed program left unfinished is ended first.
        text = line if self._whole else f"\n{line}"
        self._whole = False
        with writing(self._path), open(self._path, "ab") as file:
            file.write(text.encode())
            sync_file(file)
        self._whole = True

    def _is_of(self, entry: _Entry, source: pathlib.Path) -> bool:
        """Returns whether an entry is about an image, which may have another path or have moved."""
        if entry.image == str(source):
            return True
        try:
            return os.path.samefile(entry.image, source)
        except OSError:  # one of them is not there
            return entry.relative == os.path.relpath(source, self.folder)

    def _index(self, file: pathlib.Path) -> str:
        return folded(file.relative_to(self.folder).as_posix())

    def _read(self) -> None:
        self._whole = self._path.read_bytes()[-1:] in (b"\n", b"")
        # Images whose line is damaged are done again.
        read_json_lines(self._path, self._take)

    def _take(self, line: dict[str, Any]) -> None:
        """Notes what a line of the record says."""
        if "files" in line:
            stamp = Stamp(line["bytes"], line["changed"])
            image = line["settings"], line["image"], line.get("relative", ""), stamp
            self._entries |= {
                folded(name): _Entry(name, *image, size) for name, size in line["files"].items()
            }
        elif line["settings"] == self._key:
            self._known = True


def recorded_files(folder: pathlib.Path) -> frozenset[str]:
    """Returns the absolute paths of the files that the record of a folder lists, if it has one.

    Raises:
      DataError: the record cannot be read.
    """
    if not os.path.isfile(folder / RECORD_FILE):
        return frozenset()
    record = PredictionRecord(folder, {})
    return frozenset(str(record.folder / entry.name) for entry in record._entries.values())
