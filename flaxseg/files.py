"""Writes files and folders that appear whole or not at all, and survive a power cut."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from flaxseg.errors import WriteError

PathLike = str | os.PathLike


@contextlib.contextmanager
def writing(target: PathLike) -> Iterator[None]:
    """Raises WriteError, with the name of what is written, where the system refuses to write.

    Args:
      target: the file or folder to name; a WriteError from within keeps the name that it has.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        wrapped = WriteError(f"cannot write {target}: {error.strerror or error}.")
        wrapped.errno = error.errno
        raise wrapped from error


@contextlib.contextmanager
def whole_file(path: PathLike) -> Iterator[BinaryIO]:
    """Opens a file for writing that gets its name once everything is written and on the disk.

    If anything is raised meanwhile, nothing is left and a file of that name stays as it was.

    Args:
      path: the file; its folder must exist.

    Raises:
      WriteError: it cannot be written.
    """
    path = pathlib.Path(path)
    with writing(path):
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem[:100]}.", suffix=".part", dir=path.parent
        )
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                sync_file(file)
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            pathlib.Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_text(path: PathLike, text: str) -> None:
    """Replaces a file by one that holds `text` in UTF-8, as a whole.

    Raises:
      WriteError: it cannot be written.
    """
    with whole_file(path) as file:
        file.write(text.encode())


def sync_file(file: BinaryIO) -> None:
    """Waits until everything written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: PathLike) -> None:
    """Waits until the names in a folder are on the disk, where the system has a way to do so."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Returns the umask of the process, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
