"""Reads tars, plain and compressed by gzip, forward, once, and in bounded memory.

`tarfile` is not enough here: it keeps headers of any size in memory, takes a damaged header for the
end of the archive, and passes over attributes that it cannot read.
"""

import contextlib
import gzip
import os
import pathlib
import tarfile
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from flaxseg.data.raw.packed_files import Account, PackedFile, check_entry_name
from flaxseg.errors import DataError
from flaxseg.image_files import UndecodableError
from flaxseg.progress import Progress

_BLOCK = 512
_CHUNK = 1 << 20
_MAX_HEADER_BYTES = 1 << 16  # of names and attributes


def read_tar(
    path: pathlib.Path, wanted: Callable[[str], bool], progress: bool, *, compressed: bool
) -> dict[str, PackedFile]:
    """Finds the wanted files of a tar.

    Those of a plain tar are read where they are. Those of a compressed one are copied, one behind
    the other, to a temporary file without a name, which goes when the last of them is forgotten.
    """
    found = {}
    with (
        path.open("rb") as file,
        _opened(path, file, compressed) as source,
        Progress(f"reading {path.name}", path.stat().st_size, "B", enabled=progress) as shown,
    ):
        for entry in _entries(source):
            end = source.position + entry.size
            if entry.size < 0:
                raise DataError(f"{path}: {entry.name!r} has {entry.size} bytes; refused")
            if not compressed and end > path.stat().st_size:
                raise source.cut_off()
            if not entry.is_folder and wanted(entry.name):
                source.account.wanted(entry.name, entry.size, entry.is_file)
                found[entry.name] = PackedFile(path, entry.name, source.keep(entry))
            source.skip_to(end, entry.name)
            shown.show(file.tell())
    return found


class _Entry(NamedTuple):
    name: str
    size: int
    is_file: bool
    is_folder: bool


class _Tar:
    """Reads forward through the content of a tar.

    Args:
      path: of the archive.
      content: its content, unpacked as it is read.
      kept: where wanted files are copied; None leaves them in `content`, which is a plain file.

    Attributes:
      path: of the archive.
      position: of the next byte.
      account: what has been read so far.
    """

    def __init__(self, path: pathlib.Path, content: BinaryIO, kept: BinaryIO | None):
        self.path = path
        self.position = 0
        self.account = Account(path)
        self._content, self._kept = content, kept
        self._handle = _Handle(os.dup((kept or content).fileno()))

    def read(self, number: int, name: str) -> bytes:
        """Reads so many bytes, or fewer at the end, of the named entry."""
        self.account.unpacked(number, name)
        content = self._content.read(number)
        self.position += len(content)
        return content

    def keep(self, entry: _Entry) -> Callable[[], bytes]:
        """Returns a function that reads the content of the entry, which is next, at any time."""
        if self._kept is None:
            return _reader(self._handle, self.position, entry.size)
        place = self._kept.tell()
        content = self.read(entry.size, entry.name)
        try:
            self._kept.write(content)
            self._kept.flush()
        except OSError as error:
            raise DataError(
                f"{self.path}: what is wanted of it does not fit into {tempfile.gettempdir()}: "
                f"{error.strerror}; set TMPDIR to a folder with more space"
            ) from error
        return _reader(self._handle, place, entry.size)

    def skip_to(self, end: int, name: str) -> None:
        """Skips to the end of the named entry's content, padding included."""
        padded = -(-end // _BLOCK) * _BLOCK
        if self._kept is None:
            self.position = self._content.seek(padded)
        while self.position < padded:
            if not self.read(min(padded - self.position, _CHUNK), name):
                raise self.cut_off()

    def cut_off(self) -> DataError:
        """Returns the error for a tar that ends early."""
        return DataError(f"{self.path} ends early; is it whole? Download it again.")


@contextlib.contextmanager
def _opened(path: pathlib.Path, file: BinaryIO, compressed: bool) -> Iterator[_Tar]:
    if not compressed:
        yield _Tar(path, file, None)
        return
    with (
        gzip.GzipFile(fileobj=file) as unpacked,
        tempfile.TemporaryFile(prefix="flaxseg-") as kept,
    ):
        try:
            yield _Tar(path, unpacked, kept)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path} is damaged or cut off: {error}. Download it again.") from None


def _entries(source: _Tar) -> Iterator[_Entry]:
    """Yields the entries, each with the source at the first byte of its content; the caller skips
    to the end of the content.

    Understands the headers of POSIX.1-2001 (pax), and GNU's for long names.
    """
    path = source.path
    attributes: dict[str, str] = {}
    while True:
        block = source.read(_BLOCK, "a header")
        if not block.strip(b"\0"):
            if len(block) < _BLOCK:
                raise source.cut_off()
            return
        source.account.entry()
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
            content = _header_content(source, header)
            if header.type == b"L":
                attributes["path"] = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type in (b"x", b"X"):
                attributes |= _pax_attributes(path, content)
            continue
        yield _entry(path, header, attributes)
        attributes = {}


def _entry(path: pathlib.Path, header: tarfile.TarInfo, attributes: dict[str, str]) -> _Entry:
    """Returns the entry of a header, with the attributes that came before it."""
    name = attributes.get("path", header.name)
    digits = attributes.get("size", str(header.size))
    size = int(digits) if digits.isdecimal() and len(digits) < 20 else -1
    while name.startswith("./"):  # as `tar -c .` writes them
        name = name[2:]
    is_folder = header.type == tarfile.DIRTYPE or name.endswith("/") or name in ("", ".")
    if name not in ("", "."):
        check_entry_name(path, name)
    sparse = header.type == b"S" or "sparse" in attributes
    has_content = header.type in (b"0", b"\0", b"7", b"S")
    return _Entry(name, size if has_content else 0, has_content and not sparse, is_folder)


def _header_content(source: _Tar, header: tarfile.TarInfo) -> bytes:
    if header.size > _MAX_HEADER_BYTES:
        raise DataError(
            f"{source.path}: a header of {header.size} bytes, for {header.name!r}; refused"
        )
    padded = -(-header.size // _BLOCK) * _BLOCK
    content = source.read(padded, header.name)
    if len(content) < padded:
        raise source.cut_off()
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


class _Handle:
    """Holds a file descriptor and closes it when nothing needs it."""

    def __init__(self, number: int):
        self.number = number
        weakref.finalize(self, os.close, number)


def _reader(handle: _Handle, position: int, size: int) -> Callable[[], bytes]:
    def read() -> bytes:
        content = os.pread(handle.number, size, position)
        if len(content) < size:
            raise UndecodableError("its archive became shorter since it was opened")
        return content

    return read
