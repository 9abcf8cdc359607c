"""Finds the files of a published layout, unpacked or in its archive."""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from flaxseg.data.raw.archives import read_archive
from flaxseg.data.raw.packed_files import PackedFile
from flaxseg.data.raw.pairs import Pair
from flaxseg.errors import DataError, listed
from flaxseg.folder_walk import files_below
from flaxseg.image_files import UndecodableError

_MAX_LIST_BYTES = 16 * 2**20
_ID = re.compile(r"[A-Za-z0-9][\w.-]*")


class FileTree(Protocol):
    """Files below one folder, on disk or in an archive; names are relative, with slashes."""

    def file(self, name: str) -> pathlib.Path | PackedFile:
        """Returns the file of this name; whether it exists shows when it is read."""

    def names(self, folder: str, suffix: str | tuple[str, ...]) -> list[str]:
        """Returns the sorted names of all files below `folder` that end in `suffix`."""


@dataclasses.dataclass(frozen=True)
class Folder:
    """Holds a tree of files on disk."""

    root: pathlib.Path

    def file(self, name: str) -> pathlib.Path:
        return self.root / name

    def names(self, folder: str, suffix: str | tuple[str, ...]) -> list[str]:
        files = files_below(self.root / folder)
        return sorted(
            file.relative_to(self.root).as_posix() for file in files if file.name.endswith(suffix)
        )


@dataclasses.dataclass(frozen=True)
class PackedFolder:
    """Holds the files of an archive below its folder `prefix`, which ends in a slash or is ""."""

    archive: pathlib.Path
    prefix: str
    files: Mapping[str, PackedFile]

    def file(self, name: str) -> PackedFile:
        full = self.prefix + name
        return self.files.get(full) or PackedFile(self.archive, full, None)

    def names(self, folder: str, suffix: str | tuple[str, ...]) -> list[str]:
        start = f"{self.prefix}{folder}/"
        return sorted(
            name[len(self.prefix) :]
            for name in self.files
            if name.startswith(start) and name.endswith(suffix)
        )


def open_tree(
    folder: pathlib.Path,
    *,
    roots: Sequence[str],
    marker: str,
    archive: str,
    prefix: str,
    parts: Sequence[str],
    progress: bool = False,
) -> FileTree | None:
    """Finds one part of a data set in the folder that a user gave.

    Args:
      folder: holds the part unpacked, or its archive.
      roots: where in `folder` the part may be; the first that has `marker` counts.
      marker: a file or folder of the part.
      archive: the published name of the archive.
      prefix: the folder of the part in the archive, with a slash at its end; "" for none.
      parts: the files or folders of the part, below its root, that are wanted.
      progress: show the progress of reading an archive on stderr.

    Returns:
      The files of the part; None if the folder has it in neither form.

    Raises:
      DataError: the archive is damaged, hostile, or holds nothing of the part.
    """
    for root in roots:
        if (folder / root / marker).exists():
            return Folder(folder / root)
    path = folder / archive
    if not path.is_file():
        return None
    starts = tuple(f"{prefix}{part}" for part in parts)
    files = read_archive(path, lambda name: name.startswith(starts), progress)
    if not files:
        wanted = ", ".join(starts[:4])
        raise DataError(f"{path} holds nothing of what is published under its name ({wanted}, ...)")
    return PackedFolder(path, prefix, files)


def nothing_found(name: str, folder: pathlib.Path, wanted: Iterable[str]) -> DataError:
    """Returns the error for a folder that lacks files without which a data set cannot be made."""
    content = listed(sorted(path.name for path in folder.iterdir()), 8) or "nothing"
    lines = "".join(f"\n  - {item}" for item in wanted)
    return DataError(f"{name}: {folder} lacks (it holds {content}):{lines}")


def read_lines(file: pathlib.Path | PackedFile) -> list[str]:
    """Reads a text of at most 16 MiB.

    Raises:
      OSError: it is missing or cannot be read.
      UndecodableError: it is longer, or not text.
    """
    if isinstance(file, pathlib.Path):
        with file.open("rb") as opened:
            content = opened.read(_MAX_LIST_BYTES + 1)
    else:
        content = file.read_bytes()
    if len(content) > _MAX_LIST_BYTES:
        raise UndecodableError(f"more than {_MAX_LIST_BYTES} bytes")
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UndecodableError(f"not text in UTF-8: {error}") from None


def read_ids(tree: FileTree, name: str, problems: list[str]) -> list[str]:
    """Reads a list of ids, one per line; adds what is wrong with it to `problems`."""
    file = tree.file(name)
    try:
        lines = read_lines(file)
    except (OSError, UndecodableError) as error:
        problems.append(f"{file}: the list cannot be read: {error}")
        return []
    ids: list[str] = []
    for number, line in enumerate(lines, start=1):
        word = line.strip()
        if not word:
            continue
        if _ID.fullmatch(word):
            ids.append(word)
        else:
            problems.append(f"{file}, line {number}: wanted an id, got {line[:80]!r}")
    if not ids:
        problems.append(f"{file}: the list names no image")
    return ids


def pair_up(
    images: FileTree,
    image_folder: str,
    image_suffix: str,
    labels: FileTree,
    label_folder: str,
    label_suffix: str,
) -> list[Pair]:
    """Pairs the files of two folders whose names are equal up to the suffix.

    Returns:
      A pair for each name in either folder, sorted; a file that is missing shows when it is read.
      Folders below the two are part of the name, but not of the id.
    """

    def stems(tree: FileTree, folder: str, suffix: str) -> set[str]:
        names = tree.names(folder, suffix)
        return {name[len(folder) + 1 : -len(suffix)] for name in names}

    found = stems(images, image_folder, image_suffix) | stems(labels, label_folder, label_suffix)
    return [
        Pair(
            stem.rpartition("/")[2],
            images.file(f"{image_folder}/{stem}{image_suffix}"),
            labels.file(f"{label_folder}/{stem}{label_suffix}"),
            as_stored=True,
        )
        for stem in sorted(found)
    ]
