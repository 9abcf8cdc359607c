"""Predictions for many picture files: which files are meant, what their results are called, and
running them."""

import collections
import dataclasses
import glob
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from flaxseg.errors import ConfigError, DataError, FlaxsegError
from flaxseg.inference.image_file import SUFFIXES, ImageFile, read_image_file
from flaxseg.inference.segmenter import Segmenter
from flaxseg.programs.prediction.prediction_files import ENDINGS
from flaxseg.programs.prediction.prediction_record import PredictionRecord, Stamp

_READ_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class PictureTask:
    """One picture file and the files to write for it, by kind."""

    source: pathlib.Path
    files: Mapping[str, pathlib.Path]


@dataclasses.dataclass(frozen=True)
class PictureResult:
    """What became of a task: notes in words, or the error that ended it."""

    task: PictureTask
    notes: tuple[str, ...] = ()
    error: Exception | None = None


class Writer(Protocol):
    """Writes what is wanted of a picture: `FileWriter` or `Submission`."""

    def write(
        self, files: Mapping[str, pathlib.Path], image: np.ndarray, segment: Segmenter
    ) -> object:
        """Runs the network on a picture and writes the files, by kind."""


def find_pictures(
    inputs: Sequence[str], out: str | os.PathLike, listed: Sequence[str] = ()
) -> dict[pathlib.Path, pathlib.Path]:
    """Finds the pictures that are meant.

    A folder stands for all picture files in it and in its subfolders, and keeps these subfolders in
    the names.

    Args:
      inputs: files, folders, or patterns with `*`, `?`, `[...]`, `**`; a path that exists is taken
        as it is.
      out: folder of the results; its own files are never taken as input.
      listed: files of a list, taken as they are; one that is missing fails when it is read, as a
        damaged one does.

    Returns:
      By picture, its name in the output folder without suffix, in order and each once.

    Raises:
      ConfigError: the output folder is one of the input folders.
      DataError: an input does not exist, a pattern matches nothing, or a folder has no pictures;
        all are listed.
    """
    out = pathlib.Path(os.path.abspath(out))
    found: dict[pathlib.Path, pathlib.Path] = {}
    problems = []
    for text in inputs:
        files = _files_of(text, out)
        if not files:
            problems.append(_nothing_found(text))
        for source, name in files:
            found.setdefault(source, name)
    if problems:
        raise DataError("\n".join(problems))
    for text in listed:
        source = pathlib.Path(os.path.abspath(text))
        found.setdefault(source, pathlib.Path(source.stem))
    return found


def plan_pictures(
    found: Mapping[pathlib.Path, pathlib.Path],
    out: str | os.PathLike,
    kinds: Sequence[str] = ("mask", "overlay"),
) -> list[PictureTask]:
    """Gives each picture its own output names.

    `street.jpg` becomes `street_mask.png`, `street_overlay.png` and `street_probabilities.npz`;
    where two pictures would get the same name, both are called by their suffix too
    (`street_jpg_mask.png`), and then numbered.

    Args:
      found: by `find_pictures`.
      out: folder of the results.
      kinds: of files, of `ENDINGS`.

    Raises:
      ConfigError: a result would overwrite an input.
    """
    out = pathlib.Path(os.path.abspath(out))
    tasks = [
        PictureTask(source, {kind: out / f"{name}{ENDINGS[kind]}" for kind in kinds})
        for source, name in _distinct(found).items()
    ]
    overwritten = found.keys() & {path for task in tasks for path in task.files.values()}
    if overwritten:
        raise ConfigError(
            f"the result of another picture would overwrite the input {min(overwritten)}; choose "
            "another output folder."
        )
    return tasks


def predict_pictures(
    segment: Segmenter,
    tasks: Sequence[PictureTask],
    writer: Writer,
    *,
    record: PredictionRecord | None = None,
    on_new_size: Callable[[tuple[int, int]], None] | None = None,
) -> Iterator[PictureResult]:
    """Writes the files of every task, and yields what became of each; one bad picture does not stop
    the others.

    The next pictures are decoded while one is computed. Each file appears whole or not at all.

    Args:
      segment: the network and its protocol. As a whole each new size of pictures is compiled; the
        protocol's `pad_multiple` bounds the number of sizes. Windows have one size.
      tasks: from `plan_pictures`.
      writer: runs the network and writes the files.
      record: gets what is done.
      on_new_size: called with (H, W) before a size is run for the first time, that is, compiled.
    """
    protocol, seen = segment.protocol, set()
    for task, read in _read_ahead(tasks):
        try:
            stamp, image_file = read()
            image = image_file.pixels
            for scale in protocol.scales:
                size = protocol.layout(image.shape[:2], scale).window
                if size not in seen and on_new_size is not None:
                    on_new_size(size)
                seen.add(size)
            for path in task.files.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            writer.write(task.files, image, segment)
            if record is not None:
                record.add(task.source, stamp, task.files)
        except (FlaxsegError, OSError) as error:
            yield PictureResult(task, error=error)
        else:
            yield PictureResult(task, image_file.notes)


def _read_ahead(
    tasks: Sequence[PictureTask],
) -> Iterator[tuple[PictureTask, Callable[[], tuple[Stamp, ImageFile]]]]:
    """Each task with a function that waits for its picture, or raises what reading it raised."""
    with ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="predict-read") as pool:
        ahead = collections.deque()
        try:
            for task in tasks:
                ahead.append((task, pool.submit(_read, task.source).result))
                if len(ahead) > _READ_AHEAD:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(source: pathlib.Path) -> tuple[Stamp, ImageFile]:
    try:
        stamp = Stamp.of(source)  # before reading: a picture that changes meanwhile is not done
    except OSError as error:
        raise DataError(f"{source}: {error.strerror or error}") from None
    except ValueError as error:  # a name with a zero in it
        raise DataError(f"{source!s:.200}: {error}") from None
    return stamp, read_image_file(source)


def _files_of(text: str, out: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """(file, its name in the output without suffix) of all that one argument stands for, sorted."""
    path = pathlib.Path(os.path.abspath(text))
    if path.is_dir():
        if path == out:
            raise ConfigError(
                f"the output folder {out} is an input folder too; choose another output folder."
            )
        files = sorted(p for p in path.rglob("*") if _is_picture(p) and not p.is_relative_to(out))
        return [(p, p.relative_to(path).with_suffix("")) for p in files]
    if path.exists():
        return [(path, pathlib.Path(path.stem))]
    if glob.has_magic(text):
        matches = (pathlib.Path(os.path.abspath(p)) for p in glob.glob(text, recursive=True))
        return sorted((p, pathlib.Path(p.stem)) for p in matches if _is_picture(p))
    return []


def _is_picture(path: pathlib.Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def _nothing_found(text: str) -> str:
    """Why an argument stands for no file."""
    if os.path.isdir(text):
        return f"{text} has no pictures in it ({', '.join(SUFFIXES)})."
    if glob.has_magic(text):
        return f"no picture matches {text!r}; check the pattern and the folder."
    return f"{text} does not exist; check the path."


def _distinct(found: Mapping[pathlib.Path, pathlib.Path]) -> dict[pathlib.Path, pathlib.Path]:
    """Names made distinct, whatever their case: by the suffix of the file, then by a number."""

    def key(name: pathlib.Path) -> str:
        return str(name).casefold()

    count = collections.Counter(key(name) for name in found.values())
    named = {
        source: name
        if count[key(name)] == 1
        else name.with_name(f"{name.name}_{source.suffix.lstrip('.').lower() or 'file'}")
        for source, name in found.items()
    }
    taken = {key(name) for name in named.values()}
    used = set()
    for source, name in named.items():
        number = 2
        while key(named[source]) in used:
            candidate = name.with_name(f"{name.name}_{number}")
            if key(candidate) not in taken:
                named[source] = candidate
            number += 1
        used.add(key(named[source]))
    return named
