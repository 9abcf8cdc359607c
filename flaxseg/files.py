"""Writes files and folders that appear whole or not at all, and survive a power cut."""

import contextlib
import glob
import hashlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from flaxseg.errors import WriteError

PathLike = str | os.PathLike

_LONGEST = 60  # letters of a name, which may have four bytes each
_PLAIN = re.compile(r"[\w-][\w.-]*")
_NOT_PLAIN = re.compile(r"^\.|[^\w.-]+")

# One letter is a drive, and a data set has a name such as folder:/home/me/images.
_SCHEME = re.compile(r"(?!folder:)([A-Za-z][A-Za-z0-9+.-]+):/")


def local_path(path: PathLike) -> str:
    """Returns "" for a path that this machine can have, else what is wanted, after "it must be".

    >>> local_path("runs/camvid")
    ''
    >>> local_path("s3://bucket/run")
    'a path on this machine; mount the storage of s3:// as a folder and give that'
    """
    text = os.fspath(path)
    wanted = local_text(text)
    if wanted:
        return wanted
    try:
        pathlib.Path(text).expanduser().lstat()
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, ValueError) as error:  # a long name, an unknown ~user, NUL
        return f"a path that this machine can have ({getattr(error, 'strerror', None) or error})"
    return ""


def local_text(text: str) -> str:
    """Returns "" for a text that is not the path of another machine's file, nor cut short by a NUL
    character; else what is wanted, as `local_path`."""
    scheme = _SCHEME.match(text)
    if scheme:
        return (
            f"a path on this machine; mount the storage of {scheme[1]}:// as a folder and give that"
        )
    return "a text without NUL characters" if "\0" in text else ""


def local_folder(path: PathLike) -> str:
    """Returns "" for the path of a folder, there or not, else what is wanted, as `local_path`."""
    wanted = local_path(path)
    if not wanted and path and pathlib.Path(path).expanduser().is_file():
        return "a folder, and it is a file"
    return wanted


def file_name(subject: str) -> str:
    """Returns a name without suffix for a file about a subject, such as the id of an image.

    It depends on the subject alone, and differs for different ones: what cannot be kept is replaced
    by a digest.

    >>> file_name("val/street_1"), file_name("a b")
    ('val__street_1', 'a_b-c8687a08')
    """
    parts = subject.split("/")
    name = "__".join(parts)
    if len(name) <= _LONGEST and _PLAIN.fullmatch(name) and name.split("__") == parts:
        return name
    digest = hashlib.sha256(subject.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{_NOT_PLAIN.sub('_', name)[:_LONGEST]}-{digest}"


def readable(path: PathLike) -> str:
    r"""Returns a path as text that can be printed and written, even where it is not UTF-8.

    >>> print(readable(os.fsdecode(b"caf\xe9.png")))
    caf\xe9.png
    """
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_readable(path: PathLike) -> bool:
    """Returns whether a path is UTF-8, so that it can be printed and written as it is."""
    return readable(path) == os.fspath(path)


@contextlib.contextmanager
def writing(target: PathLike, advice: str = "") -> Iterator[None]:
    """Raises WriteError, with the name of what is written, where the system refuses to write.

    Args:
      target: the file or folder to name; a WriteError from within keeps the name that it has.
      advice: what to do then, to end the message with.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        reason = f"{error.strerror or error}."
        wrapped = WriteError(f"cannot write {target}: {reason} {advice}".rstrip())
        wrapped.errno = error.errno
        raise wrapped from error


@contextlib.contextmanager
def whole_file(path: PathLike, advice: str = "") -> Iterator[BinaryIO]:
    """Opens a file for writing that gets its name once everything is written and on the disk.

    If anything is raised meanwhile, nothing is left and a file of that name stays as it was.

    Args:
      path: the file; its folder must exist.
      advice: what to do where it cannot be written, to end the message with.

    Raises:
      WriteError: it cannot be written.
    """
    path = pathlib.Path(path)
    with writing(path, advice):
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


def make_folder(folder: PathLike) -> None:
    """Creates a folder and its missing parents, and waits until their names are on the disk.

    Raises:
      WriteError: it cannot be created.
    """
    folder = pathlib.Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync_folder(path.parent)


def replace_folder(staged: PathLike, target: PathLike) -> None:
    """Gives a finished folder its final name; a folder that has this name is deleted.

    At every moment, and after a power cut, there is a whole folder at `target` or, between two
    renames, at `previous_of(target)`; see `take_back`.

    Args:
      staged: the folder, on the same disk, that nothing writes to any more.
      target: its final place.

    Raises:
      OSError: it cannot be written; the old folder is in its place.
    """
    staged, target = pathlib.Path(staged), pathlib.Path(target)
    previous = previous_of(target)
    sync_tree(staged)
    if target.exists():
        _discard(previous)
        target.rename(previous)
        sync_folder(target.parent)
    try:
        staged.rename(target)
    except BaseException:
        take_back(target)
        raise
    sync_folder(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def previous_of(target: PathLike) -> pathlib.Path:
    """Returns where `replace_folder` keeps the old folder until the new one has its name."""
    target = pathlib.Path(target)
    return target.parent / f".{target.name}.previous"  # with_name refuses the root


def take_back(target: PathLike) -> None:
    """Gives the old folder its name back where `replace_folder` was interrupted."""
    target, previous = pathlib.Path(target), previous_of(target)
    if previous.exists() and not target.exists():
        previous.rename(target)


def sync_tree(folder: PathLike) -> None:
    """Waits until a folder and all files and folders below it are on the disk."""

    def fail(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, topdown=False, onerror=fail):
        for name in names:
            # Windows refuses to sync what is not open for writing.
            mode = "r+b" if os.name == "nt" else "rb"
            with open(os.path.join(parent, name), mode) as file:
                os.fsync(file.fileno())
        sync_folder(parent)


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


def _discard(folder: pathlib.Path) -> None:
    """Deletes a folder, or renames what cannot be deleted, such as files that NFS keeps for a
    process that has them open."""
    for path in [folder, *folder.parent.glob(f"{glob.escape(folder.name)}.left-*")]:
        shutil.rmtree(path, ignore_errors=True)
    if folder.exists():
        folder.rename(tempfile.mkdtemp(prefix=f"{folder.name}.left-", dir=folder.parent))


def _umask() -> int:
    """Returns the umask of the process, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
