"""Represents files in archives, and bounds what an archive may hold."""

import dataclasses
import errno
import os
import pathlib
from collections.abc import Callable

from flaxseg.errors import DataError

MAX_ENTRIES = 200_000
"""An archive with more entries is refused; the largest published one has about 94,000."""

MAX_FILE_BYTES = 64 * 2**20
"""A larger file in an archive is refused if it is wanted."""

MAX_GROWTH = 20
"""An archive that unpacks to more than this many times its size plus `FREE_BYTES` is refused;
images hardly compress."""

FREE_BYTES = 64 * 2**20


@dataclasses.dataclass(frozen=True)
class PackedFile:
    """Stands for a file in an archive, and is read like a path.

    Attributes:
      archive: the path of the archive.
      name: the name of the file in it.
    """

    archive: pathlib.Path
    name: str
    _read: Callable[[], bytes] | None = dataclasses.field(repr=False, compare=False)

    def read_bytes(self) -> bytes:
        """Reads the file; can be called from any thread.

        Raises:
          FileNotFoundError: it is not in the archive.
          UndecodableError: it is damaged.
        """
        if self._read is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return self._read()

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


def check_entry_name(path: pathlib.Path, name: str) -> None:
    """Raises DataError for the name of an entry that leads out of the archive."""
    parts = name.rstrip("/").split("/")
    strange = "\\" in name or "\0" in name or ":" in parts[0] or {"", ".", ".."} & set(parts)
    if name.startswith("/") or strange:
        raise DataError(f"{path} holds an entry outside its folder: {name!r}; refused")


def check_size(path: pathlib.Path, name: str, size: int) -> None:
    """Raises DataError for an entry of more than `MAX_FILE_BYTES`."""
    if not 0 <= size <= MAX_FILE_BYTES:
        raise DataError(f"{path}: {name!r} has {size} bytes; refused")


class Account:
    """Counts the entries and bytes of an archive; each method raises DataError when they are too
    many.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._entries = self._bytes = 0
        self._limit = MAX_GROWTH * path.stat().st_size + FREE_BYTES
        self._names: set[str] = set()

    def entry(self) -> None:
        """Counts an entry."""
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise DataError(f"{self._path} holds more than {MAX_ENTRIES} entries; refused")

    def unpacked(self, number: int, name: str) -> None:
        """Counts unpacked bytes of the named entry."""
        self._bytes += number
        if self._bytes > self._limit:
            raise DataError(
                f"{self._path} unpacks to more than {self._limit} bytes, {MAX_GROWTH} times its "
                f"size and more; refused at {name!r}"
            )

    def wanted(self, name: str, size: int, is_file: bool) -> None:
        """Accepts an entry that will be read."""
        if not is_file:
            raise DataError(f"{self._path} holds a link or device: {name!r}; refused")
        check_size(self._path, name, size)
        if name in self._names:
            raise DataError(f"{self._path} holds {name!r} twice; refused")
        self._names.add(name)
