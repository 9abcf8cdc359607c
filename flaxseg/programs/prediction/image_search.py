"""Finds the images that files, folders, patterns and lists stand for."""

import collections
import dataclasses
import fnmatch
import glob
import os
import pathlib
from collections.abc import Sequence

from flaxseg.errors import ConfigError, DataError, listed
from flaxseg.folder_walk import broken_link, walk
from flaxseg.image_files import SUFFIXES, is_image_name, is_unread_image_name
from flaxseg.programs.prediction.prediction_record import RECORD_FILE, recorded_files

_ALL = ("**",)


@dataclasses.dataclass(frozen=True)
class FoundImages:
    """Holds the images that are meant, and what was found beside them.

    Attributes:
      names: for each image, its name in the output folder without suffix.
      left_out: what was not taken on purpose, a line each.
      missed: what was meant and cannot be taken, a line each: links that lead nowhere, folders that
        cannot be read, and images of formats that are not.
    """

    names: dict[pathlib.Path, pathlib.Path]
    left_out: list[str]
    missed: list[str]


def find_images(
    inputs: Sequence[str],
    listed_files: Sequence[str],
    out: str | os.PathLike,
    root: str | os.PathLike | None = None,
) -> FoundImages:
    """Finds the images that are meant, and names them.

    A name depends on the image and on what it was found by, never on other images: in a folder, or
    by a pattern, it is the path below the folder where the search began; of a file that is given or
    listed, its own name. An image that is found in several ways has the longest of these names.

    Args:
      inputs: files, folders, or patterns with `*`, `?`, `[...]`, `**`; a path that exists is never
        read as a pattern.
      listed_files: files of a list, which are not patterns; a missing one fails when it is read, as
        a damaged one does.
      out: folder of the results; it is not searched.
      root: if given, the folder that all names begin below.

    Raises:
      ConfigError: the output folder is one of the input folders, or an image is not below `root`.
      DataError: an input does not exist, a pattern matches nothing, or a folder has no images; all
        of these are listed.
    """
    search = _Search(out, root)
    problems = [problem for text in inputs if (problem := search.take(text))]
    if problems:
        raise DataError("\n".join([*problems, *search.missed()]))
    for text in listed_files:
        search.add_file(_absolute(text))
    if not search.names:
        raise DataError(
            "\n".join(["no image is left to predict:", *search.left_out(), *search.missed()])
        )
    return FoundImages(search.names, search.left_out(), search.missed())


class _Search:
    """Collects what the arguments stand for.

    Attributes:
      names: as of `FoundImages`.
    """

    def __init__(self, out: str | os.PathLike, root: str | os.PathLike | None):
        self.names: dict[pathlib.Path, pathlib.Path] = {}
        self._out = _absolute(out)
        self._root = None if root is None else _absolute(root)
        self._predictions: dict[pathlib.Path, set[pathlib.Path]] = collections.defaultdict(set)
        self._records: dict[pathlib.Path, tuple[tuple[pathlib.Path, frozenset[str]], ...]] = {}
        self._hidden: set[pathlib.Path] = set()
        self._unread: set[pathlib.Path] = set()
        self._broken: dict[pathlib.Path, str] = {}

    def take(self, text: str) -> str:
        """Takes what an argument stands for; returns what is wrong if that is nothing."""
        path = _absolute(text)
        if os.path.isdir(path):
            if path == self._out:
                raise ConfigError(
                    f"the output folder {path} is an input folder too; choose another --out."
                )
            return self._take_folder(path, _ALL, f"{text} has no images in it")
        if os.path.exists(path):
            self.add_file(path)
            return ""
        if broken := broken_link(path):
            return f"{text} {broken}; check the path."
        if not glob.has_magic(text):
            return f"{text} does not exist; check the path."
        parts = pathlib.Path(text).parts
        fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        wrong = f"no image matches {text!r}; check the pattern and the folder"
        return self._take_folder(_absolute(pathlib.Path(*parts[:fixed])), parts[fixed:], wrong)

    def add_file(self, path: pathlib.Path) -> None:
        """Takes a file that is given by its name."""
        self._add(path, pathlib.Path(path.name))

    def left_out(self) -> list[str]:
        """Returns lines about what is not taken on purpose."""
        lines = [
            f"left out, as predictions that {folder / RECORD_FILE} lists: {len(files)}"
            for folder, files in sorted(self._predictions.items())
        ]
        if self._hidden:
            lines.append(f"left out, as hidden folders: {listed(sorted(self._hidden))}")
        twins = sorted(self._unread - self._alone())
        if twins:
            lines.append(
                "left out, as not read and beside an image of the same name: "
                f"{len(twins)} ({listed(twins, 3)})"
            )
        return lines

    def missed(self) -> list[str]:
        """Returns lines about what should have been taken."""
        lines = [f"  {path} {reason}" for path, reason in sorted(self._broken.items())]
        unread = sorted(self._alone())
        if unread:
            kinds = ", ".join(sorted({path.suffix.lower() for path in unread}))
            lines.append(
                f"  images of formats that are not read ({kinds}): {len(unread)} "
                f"({listed(unread)}); convert them to JPEG or PNG."
            )
        return lines

    def _alone(self) -> set[pathlib.Path]:
        """Returns the images that are not read and have no image beside them that is: many cameras
        write a JPEG with each raw file."""
        taken = {path.with_suffix("") for path in self.names}
        return {path for path in self._unread if path.with_suffix("") not in taken}

    def _take_folder(self, folder: pathlib.Path, pattern: tuple[str, ...], nothing: str) -> str:
        """Takes the images below a folder whose paths match; returns what is wrong if none do."""
        found = False
        real_out = os.path.realpath(self._out)

        def enters(path: pathlib.Path) -> bool:
            return _may_hold(path.relative_to(folder).parts, pattern)

        def leave_out(path: pathlib.Path) -> None:
            if enters(path):
                self._hidden.add(path)

        def cannot_search(error: OSError) -> None:
            path = pathlib.Path(error.filename)
            if enters(path):
                self._broken[path] = f"cannot be searched: {error.strerror}"

        for place, folders, files in walk(folder, on_hidden=leave_out, on_error=cannot_search):
            below = place.relative_to(folder).parts
            folders[:] = [
                name
                for name in folders
                if enters(place / name) and os.path.realpath(place / name) != real_out
            ]
            for name in files:
                if _matches((*below, name), pattern):
                    found |= self._take_found(place / name, folder)
        return "" if found else f"{nothing} ({', '.join(SUFFIXES)})."

    def _take_found(self, path: pathlib.Path, folder: pathlib.Path) -> bool:
        """Takes a file that was found below a folder; returns whether it is or may be an image."""
        broken, unread = broken_link(path), is_unread_image_name(path)
        if is_image_name(path) and (os.path.isfile(path) or broken):
            self._add(path, path.relative_to(folder))
        elif broken and unread:
            self._broken[path] = broken
        elif unread:
            self._unread.add(path)
        else:
            return False
        return True

    def _add(self, source: pathlib.Path, name: pathlib.Path) -> None:
        for folder, files in self._records_over(source.parent):
            if str(source) in files:
                self._predictions[folder].add(source)
                return
        if self._root is not None:
            if not source.is_relative_to(self._root):
                raise ConfigError(
                    f"{source} is not below --root={self._root}; give a folder above."
                )
            name = source.relative_to(self._root)
        known = self.names.get(source)
        if known is None or len(name.parts) > len(known.parts):
            self.names[source] = name.with_suffix("")

    def _records_over(
        self, folder: pathlib.Path
    ) -> tuple[tuple[pathlib.Path, frozenset[str]], ...]:
        """Returns the folders from the root down to `folder` that have a record, and its files."""
        if folder not in self._records:
            above = () if folder == folder.parent else self._records_over(folder.parent)
            files = recorded_files(folder)
            self._records[folder] = (*above, (folder, files)) if files else above
        return self._records[folder]


def _absolute(path: str | os.PathLike) -> pathlib.Path:
    return pathlib.Path(os.path.abspath(path))


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Returns whether a path matches a pattern, part by part; `**` stands for any number."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[i:], pattern[1:]) for i in range(len(parts) + 1))
    return (
        bool(parts) and fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])
    )


def _may_hold(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Returns whether files below a folder may match a pattern."""
    for part, wanted in zip(parts, pattern, strict=False):
        if wanted == "**":
            return True
        if not fnmatch.fnmatch(part, wanted):
            return False
    return len(parts) < len(pattern)
