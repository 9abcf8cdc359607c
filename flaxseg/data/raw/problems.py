"""Lists what can be wrong with the files of a data set."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flaxseg.errors import ConfigError, DataError, near
from flaxseg.paths import readable

MAX_LISTED_PROBLEMS = 50

KINDS: dict[str, str] = {
    "files": "a list or folder with something wrong in it",
    "missing_file": "an image or label file that is missing",
    "orphan": "a file that belongs to no pair",
    "file_name": "a file whose name is not UTF-8",
    "unreadable": "a file that cannot be read",
    "undecodable": "a file that is not a whole image of a known format",
    "too_large": "an image or file beyond the limits",
    "pixel_format": "an image or label with bands or a depth that are not read",
    "converted_image": "an image that was changed when it was read",
    "exif_rotation": "an image stored turned",
    "jpeg_label": "a label stored as JPEG",
    "color_label": "a label that holds colours where ids are wanted",
    "deep_label": "a label of 16 bits",
    "image_as_label": "an image that is its own label",
    "shared_label": "a label of two images",
    "size_mismatch": "an image and a label of different sizes",
    "unknown_ids": "label ids outside the map",
    "unknown_colors": "label colours outside the map",
    "duplicate_id": "two images with one name",
    "duplicate_across_splits": "the same image in two splits",
    "duplicate_in_split": "the same image twice in a split",
    "absent_class": "a class without a pixel",
    "nothing_labelled": "a label with ignored pixels only",
    "unlabelled_split": "a split without labels, which is left out",
}
"""Every kind of problem, in the order of a report."""

_HARMLESS = (
    "files",
    "orphan",
    "converted_image",
    "shared_label",
    "deep_label",
    "duplicate_across_splits",
    "duplicate_in_split",
    "absent_class",
    "nothing_labelled",
    "unlabelled_split",
)
UNUSABLE = frozenset(KINDS) - frozenset(_HARMLESS)
"""The kinds that make a pair unusable."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Describes one thing that is wrong.

    Attributes:
      kind: a key of `KINDS`.
      message: what is wrong, with the names of the files.
      split: the split; "" if it does not concern one split.
      id: the id of the pair; "" if it does not concern one pair.
      files: the files concerned.
      details: the numbers of the message, for programs.
      is_error: whether the check fails because of it; otherwise it is a warning.
    """

    kind: str
    message: str
    split: str = ""
    id: str = ""
    files: tuple[str, ...] = ()
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_error: bool = True

    def __post_init__(self):
        assert self.kind in KINDS, self.kind
        # Messages are printed and written, whatever the names of files.
        object.__setattr__(self, "message", readable(self.message))
        object.__setattr__(self, "files", tuple(map(readable, self.files)))

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """Returns the problem for JSON."""
        return {
            "kind": self.kind,
            "severity": "error" if self.is_error else "warning",
            "split": self.split,
            "id": self.id,
            "files": list(self.files),
            "message": self.message,
            "details": dict(self.details),
        }


def as_problems(found: Iterable[Problem | str]) -> list[Problem]:
    """Returns what was found in lists and folders as problems; text becomes the kind "files"."""
    return [
        item if isinstance(item, Problem) else Problem("files", item, files=_first_word(item))
        for item in found
    ]


def _first_word(message: str) -> tuple[str, ...]:
    """Returns the file that a message begins with, as in "/data/train.txt, line 3: ..."."""
    file = message.partition(":")[0].partition(", line")[0]
    return (file,) if "/" in file else ()


def problem_kinds(text: str) -> frozenset[str]:
    """Returns the kinds of problems in a comma-separated list; "all" stands for all of them.

    >>> sorted(problem_kinds("orphan, undecodable"))
    ['orphan', 'undecodable']

    Raises:
      ConfigError: there is no such kind.
    """
    kinds = frozenset(filter(None, (part.strip() for part in text.split(","))))
    if "all" in kinds:
        return frozenset(KINDS)
    unknown = sorted(kinds - set(KINDS))
    if unknown:
        raise ConfigError(
            f"allow_problems names {', '.join(map(repr, unknown))}, no kind of problem."
            f"{near(unknown[0], KINDS)} "
            f"Kinds: {', '.join(KINDS)}; or 'all'."
        )
    return kinds


def raise_problems(name: str, problems: Sequence[Problem], advice: str) -> None:
    """Raises one DataError that lists all problems, if there are any."""
    if not problems:
        return
    listed = "\n".join(f"  - {problem}" for problem in problems[:MAX_LISTED_PROBLEMS])
    more = len(problems) - MAX_LISTED_PROBLEMS
    if more > 0:
        listed += f"\n  ... and {more} more"
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise DataError(f"data set {name!r} cannot be prepared, {number}:\n{listed}\n{advice}")
