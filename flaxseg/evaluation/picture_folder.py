"""Predictions for many picture files: which files are meant, and what their results are called."""

import collections
import dataclasses
import glob
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import flax.linen as nn
import numpy as np

from flaxseg.crf import CrfPreset
from flaxseg.errors import ConfigError, DataError, FlaxsegError
from flaxseg.evaluation.image_file import SUFFIXES, ImageFile, read_image_file
from flaxseg.evaluation.pictures import Colors, overlay_with_legend, save_palette_png, save_picture
from flaxseg.evaluation.protocol import Protocol
from flaxseg.evaluation.segmenter import Segmenter

_READ_AHEAD = 2


@dataclasses.dataclass(frozen=True)
class PictureTask:
    """One picture file and the files to write for it."""

    source: pathlib.Path
    mask: pathlib.Path
    overlay: pathlib.Path


@dataclasses.dataclass(frozen=True)
class PictureResult:
    """What became of a task: notes in words, or the error that ended it."""

    task: PictureTask
    notes: tuple[str, ...] = ()
    error: Exception | None = None


def plan_pictures(inputs: Sequence[str], out: str | os.PathLike) -> list[PictureTask]:
    """Finds the pictures that are meant and gives each of them its own output names.

    A folder stands for all picture files in it and in its subfolders, and keeps these subfolders in
    the output. `street.jpg` becomes `street_mask.png` and `street_overlay.png`; where two pictures
    would get the same name, both are called by their suffix too (`street_jpg_mask.png`), and then
    numbered.

    Args:
      inputs: files, folders, or patterns with `*`, `?`, `[...]`, `**`; a path that exists is taken
        as it is.
      out: folder of the results; its own files are never taken as input.

    Raises:
      ConfigError: the output folder is one of the input folders, or a result would overwrite an
        input.
      DataError: an input does not exist, a pattern matches nothing, or a folder has no pictures;
        all are listed.
    """
    out = pathlib.Path(os.path.abspath(out))
    found: dict[pathlib.Path, pathlib.Path] = {}  # source -> name relative to out, without suffix
    problems = []
    for text in inputs:
        files = _files_of(text, out)
        if not files:
            problems.append(_nothing_found(text))
        for source, name in files:
            found.setdefault(source, name)
    if problems:
        raise DataError("\n".join(problems))
    tasks = [
        PictureTask(source, out / f"{name}_mask.png", out / f"{name}_overlay.png")
        for source, name in _distinct(found).items()
    ]
    overwritten = found.keys() & {path for task in tasks for path in (task.mask, task.overlay)}
    if overwritten:
        raise ConfigError(
            f"the result of another picture would overwrite the input {min(overwritten)}; choose "
            "another output folder."
        )
    return tasks


def predict_pictures(
    model: nn.Module,
    variables: Mapping,
    tasks: Sequence[PictureTask],
    class_names: Sequence[str],
    class_colors: Colors,
    *,
    protocol: Protocol = Protocol(),  # noqa: B008 (frozen)
    crf: CrfPreset | None = None,
    on_new_size: Callable[[tuple[int, int]], None] | None = None,
) -> Iterator[PictureResult]:
    """Writes mask and overlay of every task, and yields what became of each; one bad picture does
    not stop the others.

    The next pictures are decoded while one is computed. Each file appears whole or not at all.

    Args:
      model: a flaxseg model.
      variables: its parameters and BatchNorm statistics.
      tasks: from `plan_pictures`.
      class_names: one name per class.
      class_colors: one RGB triple per class.
      protocol: how each picture is run. As a whole each new size is compiled; its `pad_multiple`
        bounds the number of sizes, but the network sees the border, so classes can differ from
        those at native size, mostly near it. Windows have one size.
      crf: refines each prediction by its picture.
      on_new_size: called with (H, W) before a size is run for the first time, that is, compiled.
    """
    segment, seen = Segmenter(model, variables, protocol, crf=crf), set()
    for task, read in _read_ahead(tasks):
        try:
            image_file = read()
            image = image_file.pixels
            for scale in protocol.scales:
                size = protocol.layout(image.shape[:2], scale).window
                if size not in seen and on_new_size is not None:
                    on_new_size(size)
                seen.add(size)
            pred = segment(image)
            _write(task, image, pred, class_names, class_colors)
        except (FlaxsegError, OSError) as error:
            yield PictureResult(task, error=error)
        else:
            yield PictureResult(task, image_file.notes)


def _write(
    task: PictureTask,
    image: np.ndarray,
    pred: np.ndarray,
    class_names: Sequence[str],
    class_colors: Colors,
) -> None:
    task.mask.parent.mkdir(parents=True, exist_ok=True)
    save_palette_png(task.mask, pred, class_colors)
    save_picture(task.overlay, overlay_with_legend(image, pred, class_names, class_colors))


def _read_ahead(
    tasks: Sequence[PictureTask],
) -> Iterator[tuple[PictureTask, Callable[[], ImageFile]]]:
    """Each task with a function that waits for its picture, or raises what reading it raised."""
    with ThreadPoolExecutor(_READ_AHEAD, thread_name_prefix="predict-read") as pool:
        ahead = collections.deque()
        for task in tasks:
            ahead.append((task, pool.submit(read_image_file, task.source).result))
            if len(ahead) > _READ_AHEAD:
                yield ahead.popleft()
        yield from ahead


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
