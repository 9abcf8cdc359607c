"""Walks through folders: leaves out what is hidden, and follows each link to a folder once."""

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
    when a link to it is added; none is visited twice. Links that lead nowhere are among the files.

    Args:
      root: where to begin; nothing is yielded if it is missing or is a file.
      on_hidden: called with each hidden folder, which is left out, as hidden files are.
      on_error: called where a folder cannot be read; by default DataError is raised.

    Yields:
      (folder, names of folders, names of files); a folder that is removed from the second list is
      not entered.
    """
    seen: set[str] = set()
    waiting = [pathlib.Path(root)]
    while waiting:
        for place, folders, files in os.walk(waiting.pop(0), onerror=on_error or _refuse):
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
            yield folder, folders, sorted(name for name in files if not is_hidden(name))
            waiting += [folder / name for name in folders if (folder / name).is_symlink()]


def files_below(root: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields all files below a folder as `walk` finds them.

    Raises:
      DataError: a folder cannot be read.
    """
    for folder, _, names in walk(root):
        yield from (folder / name for name in names)


def _refuse(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise DataError(f"cannot search {error.filename}: {error.strerror}") from error
