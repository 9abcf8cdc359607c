"""Reads tars, plain and compressed by gzip, forward, once, and in bounded memory."""

import contextlib
import dataclasses
import gzip
import os
import pathlib
import tarfile
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

from flaxseg.data.raw.decode import UndecodableError
from flaxseg.data.raw.packed_files import Account, PackedFile, check_entry_name
from flaxseg.errors import DataError
from flaxseg.progress import Progress

_BLOCK = 512
_CHUNK = 1 << 20
# Of names and attributes.
_MAX_HEADER_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class _TarEntry:
    name: str
    size: int
    is_file: bool
    is_folder: bool


class _Bytes:
    """Reads forward through a file, at most so many bytes at once."""

    def __init__(self, path: pathlib.Path, file: BinaryIO, skip: Callable[[int], None] | None):
        self._path, self._file, self._skip = path, file, skip
        self.position = 0

    def read(self, number: int) -> bytes:
        content = self._file.read(number)
        self.position += len(content)
        return content

    def skip(self, number: int) -> Iterator[int]:
        """Goes on by so many bytes; yields after each part how many they were."""
        if self._skip is not None:
            self._skip(number)
            self.position += number
            return
        while number > 0:
            part = len(self.read(min(number, _CHUNK)))
            if not part:
                raise _cut_off(self._path)
            number -= part
            yield part


def _cut_off(path: pathlib.Path) -> DataError:
    return DataError(f"{path} ends early; is it whole? Download it again.")


def _tar_entries(path: pathlib.Path, source: _Bytes, account: Account) -> Iterator[_TarEntry]:
    """Yields the entries of a tar, each with the source at the first byte of its content; the
    caller goes to the end of the content.

    Python's own reader keeps headers of any size in memory, so headers are read here: those of
    POSIX.1-2001 (pax), and GNU's for long names.
    """
    attributes: dict[str, str] = {}
    while True:
        block = source.read(_BLOCK)
        if not block.strip(b"\0"):
            if len(block) < _BLOCK:
                raise _cut_off(path)
            return
        account.entry()
        account.unpacked(len(block), "a header")
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise DataError(
                f"{path} is not a tar that can be read: {error} at byte "
                f"{source.position - len(block)}. Is it whole? Download it again."
            ) from None
        if header.size < 0:
            raise DataError(f"{path}: {header.name!r} has {header.size} bytes; refused")
        if header.type in (b"L", b"K", b"x", b"X", b"g"):
            content = _header_content(path, source, header)
            account.unpacked(len(content), header.name)
            if header.type == b"L":
                name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
                attributes["path"] = name
            elif header.type in (b"x", b"X"):
                attributes |= _pax_attributes(path, content)
            continue
        name = attributes.get("path", header.name)
        size = header.size
        if "size" in attributes:
            digits = attributes["size"]
            size = int(digits) if digits.isdecimal() and len(digits) < 20 else -1
        sparse = header.type == b"S" or "sparse" in attributes
        attributes = {}
        while name.startswith("./"):  # as `tar -c .` writes them
            name = name[2:]
        is_folder = header.type == tarfile.DIRTYPE or name.endswith("/") or name in ("", ".")
        if name not in ("", "."):
            check_entry_name(path, name)
        has_content = header.type in (b"0", b"\0", b"7", b"S")
        yield _TarEntry(name, size if has_content else 0, has_content and not sparse, is_folder)


def _header_content(path: pathlib.Path, source: _Bytes, header: tarfile.TarInfo) -> bytes:
    if header.size > _MAX_HEADER_BYTES:
        raise DataError(f"{path}: a header of {header.size} bytes, for {header.name!r}; refused")
    padded = -(-header.size // _BLOCK) * _BLOCK
    content = source.read(padded)
    if len(content) < padded:
        raise _cut_off(path)
    return content[: header.size]


def _pax_attributes(path: pathlib.Path, content: bytes) -> dict[str, str]:
    """Parses records such as `21 path=folder/a.png`, each ended by a newline.

    Returns:
      The few that matter: "path" and "size", and "sparse" for a file that is stored in pieces.
    """
    attributes = {}
    while content:
        length, space, _ = content.partition(b" ")
        number = int(length) if length.isdigit() and len(length) < 8 else 0
        key, equals, value = content[len(length) + 1 : number - 1].partition(b"=")
        if not (space and equals and len(length) < number <= len(content)):
            raise DataError(f"{path} is not a tar that can be read: a damaged header")
        if key in (b"path", b"size"):
            attributes[key.decode()] = value.decode("utf-8", "surrogateescape")
        elif key.startswith(b"GNU.sparse"):
            attributes["sparse"] = "yes"
        content = content[number:]
    return attributes


def read_tar(
    path: pathlib.Path, wanted: Callable[[str], bool], progress: bool
) -> dict[str, PackedFile]:
    """Finds files in a tar that is not compressed, to be read where they are."""
    length = path.stat().st_size
    account = Account(path)
    found = {}
    with (
        path.open("rb") as file,
        Progress(f"reading {path.name}", length, "B", enabled=progress) as shown,
    ):
        handle = _Handle(os.dup(file.fileno()))
        source = _Bytes(path, file, lambda number: file.seek(number, os.SEEK_CUR))
        done = 0
        for entry in _tar_entries(path, source, account):
            padded = -(-entry.size // _BLOCK) * _BLOCK
            if entry.size < 0 or source.position + entry.size > length:
                raise _cut_off(path)
            if not entry.is_folder and wanted(entry.name):
                account.wanted(entry.name, entry.size, entry.is_file)
                read = _handle_reader(handle, source.position, entry.size)
                found[entry.name] = PackedFile(path, entry.name, read)
            for _ in source.skip(padded):
                pass
            shown.advance(source.position - done)
            done = source.position
    return found


def read_compressed_tar(
    path: pathlib.Path, wanted: Callable[[str], bool], progress: bool
) -> dict[str, PackedFile]:
    """Finds files in a tar compressed by gzip and copies them, one behind the other, to a temporary
    file without a name, which goes when the last of them is forgotten.
    """
    account = Account(path)
    found = {}
    with (
        path.open("rb") as packed,
        gzip.GzipFile(fileobj=packed) as unpacked,
        tempfile.TemporaryFile(prefix="flaxseg-") as kept,
        Progress(f"reading {path.name}", path.stat().st_size, "B", enabled=progress) as shown,
        _gzip_errors(path),
    ):
        handle = _Handle(os.dup(kept.fileno()))
        source = _Bytes(path, unpacked, None)
        done = 0
        for entry in _tar_entries(path, source, account):
            remaining = -(-entry.size // _BLOCK) * _BLOCK
            if entry.size < 0:
                raise DataError(f"{path}: {entry.name!r} has {entry.size} bytes; refused")
            if not entry.is_folder and wanted(entry.name):
                account.wanted(entry.name, entry.size, entry.is_file)
                account.unpacked(entry.size, entry.name)
                content = source.read(entry.size)
                if len(content) < entry.size:
                    raise _cut_off(path)
                read = _handle_reader(handle, kept.tell(), entry.size)
                found[entry.name] = PackedFile(path, entry.name, read)
                _keep(kept, content, path)
                remaining -= entry.size
            for part in source.skip(remaining):
                account.unpacked(part, entry.name)
            shown.advance(packed.tell() - done)
            done = packed.tell()
    return found


def _keep(kept: BinaryIO, content: bytes, path: pathlib.Path) -> None:
    try:
        kept.write(content)
        kept.flush()
    except OSError as error:
        raise DataError(
            f"{path}: what is wanted of it does not fit into {tempfile.gettempdir()}: "
            f"{error.strerror}; set TMPDIR to a folder with more space"
        ) from error


@contextlib.contextmanager
def _gzip_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or cut off: {error}. Download it again.") from None


class _Handle:
    """A file descriptor that is closed when nothing needs it."""

    def __init__(self, number: int):
        self.number = number
        weakref.finalize(self, os.close, number)


def _handle_reader(handle: _Handle, position: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        content = os.pread(handle.number, size, position)
        if len(content) < size:
            raise UndecodableError("its archive became shorter since it was opened")
        return content

    return read
