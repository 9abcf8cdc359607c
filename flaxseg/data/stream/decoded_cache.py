"""Keeps decoded records on disk, so that a large image is decoded once and not in every epoch.

A record is one file of plain pixels, four bytes each, which is mapped into memory: augmentation
touches only the pages that its crop shows, and pages that were read before stay in the system's
file cache, shared by all processes. A file appears when it is complete; its length and checksum are
checked when a process first uses it.
"""

import logging
import pathlib
import struct
import time
import urllib.parse
import zlib
from collections.abc import Sequence

import numpy as np

from flaxseg.data.prepared.records import Record, Records
from flaxseg.errors import DataError
from flaxseg.files import whole_file
from flaxseg.paths import PathLike

# Part of the folder's name, so that what another version wrote, or read otherwise, is not found.
_FORMAT = 2
# Magic, height, width, length of the id, CRC-32 of all that follows.
_HEADER = struct.Struct("<8sIIII")
_MAGIC = b"flaxseg\x01"
_ABANDONED = 3600.0  # seconds after which nobody is still writing a half-written file

_log = logging.getLogger(__name__)


class CachedRecords(Sequence):
    """Holds the records of a split; each is decoded at its first use and then read from a folder.

    The folder grows by `4 * H * W` bytes per record used: 8 MiB for 2048 x 1024, so 25 GB for the
    2,975 training images of Cityscapes. All processes, threads and runs of a machine can share it,
    and it may be deleted between runs. Its name depends on the content of the data set, so it is
    never stale. If it cannot be written to, one warning is logged and records are decoded each
    time.

    Args:
      records: as returned by `open_split`.
      cache_dir: a folder, best on a local disk; made if it is missing.

    Raises:
      DataError: the folder cannot be made.

    Attributes:
      folder: where the files of this split are.
    """

    def __init__(self, records: Records, cache_dir: PathLike):
        self._records = records
        content = f"{records.info.name}-{records.fingerprint[:16]}-{_FORMAT}"
        split = urllib.parse.quote(records.split, safe="[]:+%")
        self.folder = pathlib.Path(cache_dir).expanduser().absolute() / content / split
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._clear_abandoned()
        except OSError as error:
            raise DataError(
                f"the folder for decoded images, {self.folder}, cannot be made: "
                f"{error.strerror or error}. Give another cache_dir, or none."
            ) from error
        self._checked: set[int] = set()
        self._writable = True

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index) -> Record | list[Record]:
        """Returns record `index`, its arrays read-only; or a list of records for a slice.

        Raises:
          IndexError: there is no such record.
          DataError: the record is damaged in the data set.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = index.__index__()
        if not -len(self) <= number < len(self):
            return self._records[number]  # raises IndexError
        number %= len(self)
        path = self.folder / f"{number:08d}.pixels"
        record = self._map(path, number)
        if record is None:
            record = self._records[number]
            self._write(path, record)
            for pixels in (record["image"], record["label"]):
                pixels.flags.writeable = False
        return record

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_checked": set()}

    def _map(self, path: pathlib.Path, number: int) -> Record | None:
        """Returns the record in a file, or None where there is no good file."""
        try:
            content = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError):  # there is none, or it is empty
            return None
        if number not in self._checked:
            if not _is_whole(content):
                _log.warning("%s is damaged; its record is decoded and written again.", path)
                return None
            self._checked.add(number)
        _, height, width, name_length, _ = _HEADER.unpack(bytes(content[: _HEADER.size]))
        pixels = np.asarray(content)[_HEADER.size + name_length :]
        return {
            "image": pixels[: 3 * height * width].reshape(height, width, 3),
            "label": pixels[3 * height * width :].reshape(height, width),
            "id": bytes(content[_HEADER.size : _HEADER.size + name_length]).decode(),
        }

    def _write(self, path: pathlib.Path, record: Record) -> None:
        if not self._writable:
            return
        height, width = record["label"].shape
        name = record["id"].encode()
        image, label = (np.ascontiguousarray(record[key]) for key in ("image", "label"))
        checksum = zlib.crc32(label, zlib.crc32(image, zlib.crc32(name)))
        try:
            with whole_file(path) as file:
                file.write(_HEADER.pack(_MAGIC, height, width, len(name), checksum))
                file.write(name)
                file.write(image)
                file.write(label)
        except OSError as error:
            self._writable = False
            _log.warning(
                "decoded images cannot be kept in %s (%s); those that are not there yet are "
                "decoded each time.",
                self.folder,
                error.strerror or error,
            )

    def _clear_abandoned(self) -> None:
        """Removes half-written files of killed processes."""
        for path in self.folder.glob(".*.part"):
            try:
                if time.time() - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
            except FileNotFoundError:  # another process was faster
                continue


def _is_whole(content: np.ndarray) -> bool:
    """Returns whether a file holds what `_write` wrote."""
    if content.size < _HEADER.size:
        return False
    header = _HEADER.unpack(bytes(content[: _HEADER.size]))
    magic, height, width, name_length, checksum = header
    return (
        magic == _MAGIC
        and content.size == _HEADER.size + name_length + 4 * height * width
        and zlib.crc32(content[_HEADER.size :]) == checksum
    )
