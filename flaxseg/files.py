"""Reads and writes files and folders on this machine, and in buckets of Google Cloud Storage.

On a disk, files and folders appear whole or not at all, and survive a power cut. In a bucket, what
is under a path that begins with gs:// is reached through `etils.epath`. Objects there appear whole,
and nothing can be appended to them; there are no folders, only names with slashes, and moving one
is copying everything in it. So a folder is made on this machine and copied, and the object
`.whole`, which lists its files, comes last: without it the folder counts for nothing.
"""

import concurrent.futures
import contextlib
import glob
import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from flaxseg.errors import ReadError, WriteError
from flaxseg.paths import PathLike, as_path, is_remote

_WHOLE = ".whole"
_TRANSFERS = 8  # at a time
_CHUNK = 16 * 2**20  # bytes of a transfer in memory


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
    except Exception as error:
        if not isinstance(error, OSError) and not is_remote(target):
            raise
        # What fails on the way to a bucket has many types.
        lines = (getattr(error, "strerror", None) or str(error).strip()).splitlines()
        reason = lines[0] if lines else type(error).__name__
        wrapped = WriteError(f"cannot write {target}: {reason.rstrip('.')}. {advice}".rstrip())
        wrapped.errno = getattr(error, "errno", None)
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
    if is_remote(path):
        buffer = io.BytesIO()
        yield buffer
        with writing(path, advice):
            as_path(path).write_bytes(buffer.getvalue())
        return
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
    if is_remote(folder):
        return  # it comes with the first object in it
    folder = pathlib.Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync_folder(path.parent)


@contextlib.contextmanager
def staging(path: PathLike) -> Iterator[pathlib.Path]:
    """Returns where a folder is made before `replace_folder` gives it its place.

    That is `path` itself, or for one in a bucket a folder of this machine, deleted in the end.
    """
    if not is_remote(path):
        yield as_path(path)
        return
    folder = _cache_folder(path)
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def fetched(path: PathLike) -> Iterator[pathlib.Path]:
    """Returns a file or a whole folder on this machine: `path` itself, or for one in a bucket a
    copy, which is deleted in the end.

    Raises:
      FileNotFoundError: it is not there.
      ReadError: it cannot be fetched.
    """
    path = as_path(path)
    if not is_remote(path):
        yield path
        return
    place = _cache_folder(path).parent
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetched-", dir=place) as folder:
        copy = pathlib.Path(folder, path.name)
        with reading(path):
            names = [""] if path.is_file() else json.loads((path / _WHOLE).read_text())
            _transfer((path / name, copy / name) for name in names)
        yield copy


def names_in(folder: PathLike) -> list[str]:
    """Returns the names of what is in a folder; none where there is no folder.

    Raises:
      ReadError: it is in a bucket that cannot be reached.
    """
    place = as_path(folder)
    if not is_remote(folder):
        return os.listdir(place) if place.is_dir() else []
    try:
        with reading(place):
            return [path.name for path in place.iterdir()]
    except FileNotFoundError:
        return []


def is_whole(folder: pathlib.Path) -> bool:
    """Returns whether a folder that `replace_folder` writes is there.

    Raises:
      ReadError: it is in a bucket that cannot be reached; `exists` would take that for a no.
    """
    return _WHOLE in names_in(folder) if is_remote(folder) else folder.is_dir()


def free_space(folder: PathLike) -> int:
    """Returns the bytes that can be written to a folder, or staged for one in a bucket."""
    place = _cache_folder(folder) if is_remote(folder) else as_path(folder)
    existing = (path for path in (place, *place.parents) if path.is_dir())
    return shutil.disk_usage(next(existing)).free


def remove_tree(folder: PathLike, on_error: Callable | None = None) -> None:
    """Deletes a folder and all in it, as far as that is possible.

    Args:
      folder: it need not exist.
      on_error: told what cannot be deleted, as `shutil.rmtree` does.
    """
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=on_error is None, onerror=on_error)
        return
    try:
        (as_path(folder) / _WHOLE).unlink(missing_ok=True)
        as_path(folder).rmtree(missing_ok=True)
    except Exception as error:
        if on_error is not None:
            on_error(remove_tree, str(folder), (type(error), error, None))


def replace_folder(staged: PathLike, target: PathLike) -> None:
    """Gives a finished folder its final name; a folder that has this name is deleted.

    At every moment, and after a power cut, there is a whole folder at `target` or, between two
    renames, at `previous_of(target)`; see `take_back`. In a bucket there is none while it is
    copied.

    Args:
      staged: the folder of `staging`, that nothing writes to any more.
      target: its final place.

    Raises:
      OSError: it cannot be written; the old folder is in its place.
    """
    if is_remote(target):
        _upload(pathlib.Path(staged), as_path(target))
        return
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
    target = as_path(target) if is_remote(target) else pathlib.Path(target)
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


def _upload(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a folder to a bucket."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    with writing(target):
        (target / _WHOLE).unlink(missing_ok=True)
        remove_tree(target)
        _transfer((folder / name, target / name) for name in names)
        (target / _WHOLE).write_text(json.dumps(names))


def _transfer(pairs: Iterable[tuple[pathlib.Path, pathlib.Path]]) -> None:
    """Copies files to or from a bucket, several at a time."""

    def copy(source: pathlib.Path, target: pathlib.Path) -> None:
        if not is_remote(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as reader, target.open("wb") as writer:
            shutil.copyfileobj(reader, writer, _CHUNK)

    with concurrent.futures.ThreadPoolExecutor(_TRANSFERS) as pool:
        list(pool.map(lambda pair: copy(*pair), pairs))


@contextlib.contextmanager
def reading(path: PathLike) -> Iterator[None]:
    """Raises ReadError for whatever fails on the way to a bucket, but for what is not there."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        if not is_remote(path):
            raise
        lines = str(error).strip().splitlines()
        reason = lines[0].rstrip(".") if lines else type(error).__name__
        raise ReadError(
            f"cannot read {path}: {reason}. Look at the name of the bucket, the connection, and "
            "the credentials of this machine."
        ) from error


def _cache_folder(path: PathLike) -> pathlib.Path:
    """Returns the folder of this machine that stands for a path in a bucket."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    name = hashlib.sha256(os.fspath(path).encode()).hexdigest()[:16]
    return pathlib.Path(base, "flaxseg", "staging", name)


def _umask() -> int:
    """Returns the umask of the process, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
