"""What can be wrong with the files of a data set."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flaxseg.errors import ConfigError, DataError, near

MAX_LISTED_PROBLEMS = 50

KINDS: dict[str, str] = {
    "files": "lists and folders that are not as they should be",
    "missing_file": "a picture or label file that is not there",
    "orphan": "a file that belongs to no pair",
    "unreadable": "a file that may not be read",
    "undecodable": "a file that is not a whole JPEG or PNG",
    "too_large": "a picture or file beyond the limits",
    "deep_image": "a grey picture of more than 8 bits",
    "exif_rotation": "a picture that is stored turned",
    "jpeg_label": "a label stored as JPEG",
    "color_label": "a label of colours where ids are wanted",
    "deep_label": "a label of 16 bits",
    "size_mismatch": "a picture and a label of different sizes",
    "unknown_ids": "label ids outside the map",
    "unknown_colors": "label colours outside the map",
    "duplicate_id": "one name for two pictures",
    "duplicate_across_splits": "the same picture in two splits",
    "duplicate_in_split": "the same picture twice in a split",
    "absent_class": "a class without a pixel",
    "nothing_labelled": "a label of ignored pixels only",
}
"""Every kind of problem, in the order of reports."""

_HARMLESS = (
    "files",
    "orphan",
    "deep_label",
    "duplicate_across_splits",
    "duplicate_in_split",
    "absent_class",
    "nothing_labelled",
)
UNUSABLE = frozenset(KINDS) - frozenset(_HARMLESS)
"""The kinds after which a pair can not be used."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
      kind: a key of `KINDS`.
      message: what is wrong in words, with the files' names.
      split: where; "" if it is not of one split.
      id: of the pair; "" if it is not of one pair.
      files: the files it is about.
      details: the numbers of the message, for programs.
      is_error: whether the data fails by it; otherwise it is a warning.
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

    def __str__(self) -> str:
        return self.message

    def to_dict(self) -> dict[str, Any]:
        """The problem as JSON holds it."""
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
    """What a builder found in lists and folders; bare words become problems of kind "files"."""
    return [
        item if isinstance(item, Problem) else Problem("files", item, files=_first_word(item))
        for item in found
    ]


def _first_word(message: str) -> tuple[str, ...]:
    """The file with which a message begins, as in "/data/train.txt, line 3: ..."."""
    file = message.partition(":")[0].partition(", line")[0]
    return (file,) if "/" in file else ()


def problem_kinds(text: str) -> frozenset[str]:
    """The kinds of problems in a comma-separated list; "all" stands for all of them.

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
    """Raises one DataError that lists all problems; does nothing if there is none."""
    if not problems:
        return
    listed = "\n".join(f"  - {problem}" for problem in problems[:MAX_LISTED_PROBLEMS])
    more = len(problems) - MAX_LISTED_PROBLEMS
    if more > 0:
        listed += f"\n  ... and {more} more"
    number = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise DataError(f"data set {name!r} can not be prepared, {number}:\n{listed}\n{advice}")
