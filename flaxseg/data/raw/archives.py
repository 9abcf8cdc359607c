"""Reads published archives where they are, without trusting them.

Nothing is unpacked to disk under a name from the archive. Files of a zip or a plain tar are read in
place, those of a compressed tar from one nameless temporary file. Each is read whole, and has at
most `MAX_FILE_BYTES`. Paths that lead out of the archive, links in place of files, sparse or
encrypted files, and archives that unpack to far more than their size are refused by name.
"""

import io
import os
import pathlib
import stat
import struct
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable

from flaxseg.data.raw.packed_files import Account, PackedFile, check_entry_name, check_size
from flaxseg.data.raw.tar_files import read_tar
from flaxseg.errors import DataError
from flaxseg.image_files import UndecodableError

_MAX_DIRECTORY_BYTES = 64 * 2**20  # of the list of entries at the end of a zip


def read_archive(
    path: pathlib.Path, wanted: Callable[[str], bool], progress: bool = False
) -> dict[str, PackedFile]:
    """Finds the wanted files of an archive and checks all names in it.

    Args:
      path: a zip, a tar, or a tar compressed by gzip; told apart by their first bytes.
      wanted: returns whether the file of a name is wanted.
      progress: show the progress of reading a tar on stderr.

    Returns:
      The wanted files by name, in the order of the archive.

    Raises:
      DataError: the archive is damaged, cut off, or hostile; the archive and the entry are named.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start[:2] == b"PK":
            return _read_zip(path, wanted)
        return read_tar(path, wanted, progress, compressed=start[:2] == b"\x1f\x8b")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    """Opens a zip whose list of entries has a bounded length.

    Raises:
      DataError: it is not a whole zip, or has more than `MAX_ENTRIES` entries.
    """
    file = _WatchedFile(path)
    try:
        opened = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, struct.error) as error:
        raise DataError(
            f"{path} is not a zip that can be read: {error}. Is it whole? Download it again."
        ) from None
    file.watch = False
    return opened


class _WatchedFile(io.BufferedReader):
    """Bounds the list of entries that `zipfile` reads from a file.

    What a zip states about the length of its list cannot be trusted. But `zipfile` reads the list
    by one call and only then makes an object of each entry, so the call is checked.

    Attributes:
      watch: False once the list has been read.
    """

    def __init__(self, path: pathlib.Path):
        number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, number)
        super().__init__(io.FileIO(number, closefd=False))
        self._path = path
        self.watch = True

    def read(self, number: int | None = -1) -> bytes:
        if not self.watch:
            return super().read(number)
        limit = _MAX_DIRECTORY_BYTES
        there = max(0, os.fstat(self.fileno()).st_size - self.tell())
        asked = there if number is None or number < 0 else min(number, there)
        if asked > limit:
            raise DataError(
                f"{self._path} has a list of entries of more than {limit} bytes; refused"
            )
        content = super().read(asked)
        account = Account(self._path)
        for _ in range(content.count(b"PK\1\2")):
            account.entry()
        return content


def _read_zip(path: pathlib.Path, wanted: Callable[[str], bool]) -> dict[str, PackedFile]:
    opened = open_zip(path)
    account = Account(path)
    lock = threading.Lock()
    found = {}
    for member in opened.infolist():
        name = member.filename
        check_entry_name(path, name)
        if member.is_dir() or not wanted(name):
            continue
        _check_zip_member(path, member)
        account.wanted(name, member.file_size, True)
        account.unpacked(member.file_size, name)
        found[name] = PackedFile(path, name, _zip_reader(opened, lock, member))
    return found


def _check_zip_member(path: pathlib.Path, member: zipfile.ZipInfo) -> None:
    """Raises DataError for an entry that is not a plain file of bounded size."""
    name = member.filename
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        raise DataError(f"{path} holds a link or device: {name!r}; refused")
    check_size(path, name, member.file_size)
    if member.flag_bits & 1:
        raise DataError(f"{path}: {name!r} is encrypted; refused")
    # Other methods can expand without bound while a few bytes are read.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(
            f"{path}: {name!r} is compressed by method {member.compress_type}, which no published "
            "archive uses; refused"
        )


def _zip_reader(
    opened: zipfile.ZipFile, lock: threading.Lock, member: zipfile.ZipInfo
) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            # From Python 3.12 on, opening a member skips the extra field of its header from where
            # the file stands. Another thread may have moved it; a sound file then seems damaged.
            with lock, opened.open(member) as file:
                return file.read(member.file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
            raise UndecodableError(f"damaged in its archive: {error}") from None

    return read
