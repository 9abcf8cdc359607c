"""Predicts many image files: finds them, names their results, and runs the network on each."""

import collections
import dataclasses
import glob
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from flaxseg.errors import ConfigError, DataError, FlaxsegError
from flaxseg.image_files import SUFFIXES, ImageFile, Orientation, is_image_name, read_image_file
from flaxseg.inference.segmenter import Segmentation, Segmenter
from flaxseg.programs.prediction.prediction_files import ENDINGS
from flaxseg.programs.prediction.prediction_record import PredictionRecord, Stamp

_READ_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class ImageTask:
    """Names an image file and the files to write for it, by kind."""

    source: pathlib.Path
    files: Mapping[str, pathlib.Path]


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """Says how a task ended: with notes in words, or with an error."""

    task: ImageTask
    notes: tuple[str, ...] = ()
    error: Exception | None = None


class Writer(Protocol):
    """Writes the files of an image, as `FileWriter` and `Submission` do."""

    def write(self, files: Mapping[str, pathlib.Path], result: Segmentation) -> object:
        """Writes the files of an image, by kind."""


def find_images(
    inputs: Sequence[str], out: str | os.PathLike, listed: Sequence[str] = ()
) -> dict[pathlib.Path, pathlib.Path]:
    """Finds the images that are meant.

    A folder stands for all image files in it and in its subfolders, which are kept in the names of
    the results.

    Args:
      inputs: files, folders, or patterns with `*`, `?`, `[...]`, `**`; a path that exists is never
        read as a pattern.
      out: folder of the results; its own files are never taken as input.
      listed: files of a list, which are not patterns; a missing one fails when it is read, as a
        damaged one does.

    Returns:
      For each image, once and in order, its name in the output folder without suffix.

    Raises:
      ConfigError: the output folder is one of the input folders.
      DataError: an input does not exist, a pattern matches nothing, or a folder has no images; all
        of these are listed.
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


def plan_tasks(
    found: Mapping[pathlib.Path, pathlib.Path],
    out: str | os.PathLike,
    kinds: Sequence[str] = ("mask", "overlay"),
) -> list[ImageTask]:
    """Gives each image its own output names.

    `street.jpg` becomes `street_mask.png`, `street_overlay.png` and `street_probabilities.npz`; if
    two images would get the same name, their suffixes are added (`street_jpg_mask.png`), and then
    numbers.

    Args:
      found: what `find_images` returned.
      out: folder of the results.
      kinds: kinds of files, from `ENDINGS`.

    Raises:
      ConfigError: a result would overwrite an input.
    """
    out = pathlib.Path(os.path.abspath(out))
    tasks = [
        ImageTask(source, {kind: out / f"{name}{ENDINGS[kind]}" for kind in kinds})
        for source, name in _distinct(found).items()
    ]
    overwritten = found.keys() & {path for task in tasks for path in task.files.values()}
    if overwritten:
        raise ConfigError(
            f"the result of another image would overwrite the input {min(overwritten)}; choose "
            "another output folder."
        )
    return tasks


def predict_images(
    segmenter: Segmenter,
    tasks: Sequence[ImageTask],
    writer: Writer,
    *,
    record: PredictionRecord | None = None,
    on_new_size: Callable[[tuple[int, int]], None] | None = None,
    orientation: Orientation = "upright",
) -> Iterator[ImageResult]:
    """Writes the files of every task, and yields how each ended; a bad image does not stop the
    others.

    The next images are decoded while one is computed. Each file appears whole or not at all.

    Args:
      segmenter: the network and its protocol. Whole images are compiled once per size, and the
        protocol's `pad_multiple` limits the number of sizes. Windows have one size.
      tasks: what `plan_tasks` returned.
      writer: writes the files.
      record: where finished images are noted.
      on_new_size: called with (H, W) before a size is run, and so compiled, for the first time.
      orientation: what to do with images that are stored turned, as for `decode_image`.
    """
    protocol, seen = segmenter.protocol, set()
    for task, read in _read_ahead(tasks, orientation):
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
            writer.write(task.files, segmenter.run(image))
            if record is not None:
                record.add(task.source, stamp, task.files)
        except (FlaxsegError, OSError) as error:
            yield ImageResult(task, error=error)
        else:
            yield ImageResult(task, image_file.notes)


def _read_ahead(
    tasks: Sequence[ImageTask], orientation: Orientation
) -> Iterator[tuple[ImageTask, Callable[[], tuple[Stamp, ImageFile]]]]:
    """Yields each task with a function that waits for its image, or raises what reading it did."""
    with ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="predict-read") as pool:
        ahead = collections.deque()
        try:
            for task in tasks:
                ahead.append((task, pool.submit(_read, task.source, orientation).result))
                if len(ahead) > _READ_AHEAD:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(source: pathlib.Path, orientation: Orientation) -> tuple[Stamp, ImageFile]:
    try:
        stamp = Stamp.of(source)  # before reading: an image that changes meanwhile is not done
    except OSError as error:
        raise DataError(f"{source}: {error.strerror or error}") from None
    except ValueError as error:  # a name with a zero in it
        raise DataError(f"{source!s:.200}: {error}") from None
    return stamp, read_image_file(source, orientation=orientation)


def _files_of(text: str, out: pathlib.Path) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """Returns (file, its output name without suffix) for all that one argument means, sorted."""
    path = pathlib.Path(os.path.abspath(text))
    if path.is_dir():
        if path == out:
            raise ConfigError(
                f"the output folder {out} is an input folder too; choose another output folder."
            )
        files = sorted(p for p in path.rglob("*") if _is_image(p) and not p.is_relative_to(out))
        return [(p, p.relative_to(path).with_suffix("")) for p in files]
    if path.exists():
        return [(path, pathlib.Path(path.stem))]
    if glob.has_magic(text):
        matches = (pathlib.Path(os.path.abspath(p)) for p in glob.glob(text, recursive=True))
        return sorted((p, pathlib.Path(p.stem)) for p in matches if _is_image(p))
    return []


def _is_image(path: pathlib.Path) -> bool:
    return is_image_name(path) and not path.name.startswith(".") and path.is_file()


def _nothing_found(text: str) -> str:
    """Says why an argument means no file."""
    if os.path.isdir(text):
        return f"{text} has no images in it ({', '.join(SUFFIXES)})."
    if glob.has_magic(text):
        return f"no image matches {text!r}; check the pattern and the folder."
    return f"{text} does not exist; check the path."


def _distinct(found: Mapping[pathlib.Path, pathlib.Path]) -> dict[pathlib.Path, pathlib.Path]:
    """Makes names distinct in any case of letters: by the suffix of the file, then by a number."""

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
