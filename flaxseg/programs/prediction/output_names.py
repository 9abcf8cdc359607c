"""Names the files of each image, and refuses names at which another file would be lost."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from flaxseg.errors import ConfigError
from flaxseg.programs.prediction.prediction_record import (
    RECORD_FILE,
    PredictionRecord,
    folded,
)

ENDINGS = {
    "mask": "_mask.png",
    "overlay": "_overlay.png",
    "probabilities": "_probabilities.npz",
}
"""How the name of an image ends, by kind of file."""

_MOST_NAMED = 5


@dataclasses.dataclass(frozen=True)
class ImageTask:
    """Names an image file and the files that belong to it.

    Attributes:
      source: the image.
      files: the files to write for it, by kind.
      reserved: all files that may belong to it; `files` are some of them.
    """

    source: pathlib.Path
    files: Mapping[str, pathlib.Path]
    reserved: Sequence[pathlib.Path]


def plan_tasks(
    names: Mapping[pathlib.Path, pathlib.Path], out: str | os.PathLike, kinds: Sequence[str]
) -> list[ImageTask]:
    """Returns what is to be written: of `street.jpg` `street_mask.png`, `street_overlay.png` and
    `street_probabilities.npz`.

    Args:
      names: the name of each image in the output folder without suffix.
      out: folder of the results.
      kinds: kinds of files, from `ENDINGS`.
    """
    out = pathlib.Path(os.path.abspath(out))
    tasks = []
    for source, name in names.items():
        files = {kind: out / f"{name}{ending}" for kind, ending in ENDINGS.items()}
        tasks.append(ImageTask(source, {kind: files[kind] for kind in kinds}, [*files.values()]))
    return tasks


class _Conflict(NamedTuple):
    """Says which file two images would have, and names the images, as far as they are known."""

    text: str
    images: tuple[str, ...]


def check_names(
    tasks: Sequence[ImageTask], record: PredictionRecord, *, root_helps: bool = True
) -> None:
    """Checks that no file is lost: each belongs to one image, whatever the case of its letters.

    Args:
      tasks: what is to be written.
      record: the record of the output folder.
      root_helps: whether `--root` changes the names.

    Raises:
      ConfigError: two images would have the same files, or a result would replace that of another
        image, or a file that is not recorded; the message says what to do.
    """
    conflicts = [*_among_tasks(tasks), *_with_what_exists(tasks, record)]
    if not conflicts:
        return
    lines = [f"  - {conflict.text}" for conflict in conflicts[:_MOST_NAMED]]
    if len(conflicts) > _MOST_NAMED:
        lines.append(f"  and {len(conflicts) - _MOST_NAMED} more")
    advice = _advice(conflicts[0].images, root_helps)
    raise ConfigError("\n".join(["files would be lost; nothing was done:", *lines, advice]))


def _among_tasks(tasks: Sequence[ImageTask]) -> list[_Conflict]:
    """Returns the images that would have the same files as an earlier one."""
    conflicts, taken = [], {}
    for task in tasks:
        first = taken.setdefault(folded(str(task.reserved[0])), task)
        if first is not task:
            text = f"{first.source} and {task.source} would both become {task.reserved[0]}"
            conflicts.append(_Conflict(text, (str(first.source), str(task.source))))
    return conflicts


def _with_what_exists(tasks: Sequence[ImageTask], record: PredictionRecord) -> list[_Conflict]:
    """Returns the images that would get a file that exists and is not theirs."""
    conflicts = []
    for task in tasks:
        for path in task.reserved:
            owner = record.other_owner(task.source, path)
            if owner is None:
                continue
            now = f"is the result of {owner}"
            if not owner:
                now = f"exists, and no {RECORD_FILE} says which image it belongs to"
            text = f"{path} {now}; that of {task.source} would replace it"
            conflicts.append(_Conflict(text, (owner, str(task.source)) if owner else ()))
            break
    return conflicts


def _advice(images: tuple[str, ...], root_helps: bool) -> str:
    """Returns how the files of two images can be kept apart."""
    if not images:
        return "Choose another --out, or move the file away."
    first, second = map(pathlib.Path, images)
    if not root_helps or first.parent == second.parent:
        return "Choose another --out for one of them."
    root = os.path.commonpath([first.parent, second.parent])
    name = second.relative_to(root).with_suffix("")
    return (
        f"Choose another --out for one of them, or give --root={root}: results are then named by "
        f"the path of their image below it ({name}{ENDINGS['mask']})."
    )
