"""Walks through folders: leaves out what is hidden, and follows each link to a folder once."""

import errno
import os
import pathlib
from collections.abc import Callable, Iterator

from flaxseg.errors import DataError

# Folders that file servers, archivers and systems make for themselves, in lower case.
_OWN_FOLDERS = {
    *("@eadir", "@tmp", "#recycle", "@recycle", "__macosx", "$recycle.bin"),
    *("system volume information", "lost+found"),
}


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder of this name is not meant for the user.

    >>> is_hidden(".ipynb_checkpoints"), is_hidden("@eaDir"), is_hidden("photos")
    (True, True, False)
    """
    return name.startswith(".") or name.lower() in _OWN_FOLDERS


def walk(
    root: str | os.PathLike,
    *,
    on_hidden: Callable[[pathlib.Path], None] | None = None,
    on_error: Callable[[OSError], None] | None = None,
) -> Iterator[tuple[pathlib.Path, list[str], list[str]]]:
    """Yields each folder from `root` down, with the names of the folders and files in it, sorted.

    Links to folders are followed after the folders themselves, so that a folder keeps its own path
    when a link to it is added; none is visited twice. A link that leads nowhere is among the files
    if it has a suffix; else it may be one to a folder, such as one on a disk that is not mounted.

    Args:
      root: where to begin; nothing is yielded if it is missing or is a file.
      on_hidden: called with each hidden folder, which is left out, as hidden files are.
      on_error: called where a folder cannot be read, or a link that may be one to a folder leads
        nowhere; by default DataError is raised.

    Yields:
      (folder, names of folders, names of files); a folder that is removed from the second list is
      not entered.
    """
    seen: set[str] = set()
    waiting = [pathlib.Path(root)]
    on_error = on_error or _refuse
    while waiting:
        for place, folders, files in os.walk(waiting.pop(0), onerror=on_error):
            real = os.path.realpath(place)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folder = pathlib.Path(place)
            for name in filter(is_hidden, sorted(folders)):
                if on_hidden is not None:
                    on_hidden(folder / name)
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            yield folder, folders, _files(folder, files, on_error)
            waiting += [folder / name for name in folders if (folder / name).is_symlink()]


def _files(
    folder: pathlib.Path, names: list[str], on_error: Callable[[OSError], None]
) -> list[str]:
    """Returns the names that are of files and not hidden, sorted; the others are errors."""
    files = []
    for name in sorted(name for name in names if not is_hidden(name)):
        broken = "" if "." in name else broken_link(folder / name)
        if broken:
            on_error(OSError(errno.ENOLINK, broken, str(folder / name)))
        else:
            files.append(name)
    return files


def files_below(root: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields all files below a folder as `walk` finds them.

    Raises:
      DataError: a folder cannot be read.
    """
    for folder, _, names in walk(root):
        yield from (folder / name for name in names)


def broken_link(path: str | os.PathLike) -> str:
    """Returns what is wrong with a link to something that is missing; "" for all else."""
    if os.path.exists(path) or not os.path.islink(path):
        return ""
    return f"is a link to {os.readlink(path)}, which does not exist"


def _refuse(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise DataError(f"cannot search {error.filename}: {error.strerror}") from error
