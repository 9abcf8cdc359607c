"""Defines the facts of a data set, which are known before any image is read."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from flaxseg.classes import IGNORE_LABEL, check_class_names
from flaxseg.data.raw.split_names import TRAIN, own_name, split_for
from flaxseg.json_text import Form, has_form

_FORMS: dict[str, Form] = {
    **dict.fromkeys(("name", "version", "description", "eval_split", "license"), str),
    **dict.fromkeys(("citation", "homepage"), str),
    "class_names": [str],
    "class_colors": [(int, int, int)],
    "label_map": [(int, int)],
    "splits": [str],
    "split_sizes": {"": int},
    "combined": {"": [str]},
    "repeated": {"": str},
    "optional": {"": str},
}


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """States the public facts of a data set.

    Attributes:
      name: its name in `flaxseg.data`.
      version: changes whenever the prepared records would change.
      description: one sentence.
      class_names: the name of each train id, in order.
      class_colors: the RGB uint8 triple of each train id, for drawings.
      label_map: raw label id in the published files -> train id, or 255 (ignore). An id that is not
        a key is an error.
      splits: names of the splits, in the order train, val, test, others.
      split_sizes: the number of images in each split of the published set.
      eval_split: the split whose score is reported; "" where none is meant for that by its name.
      license, citation, homepage: terms of use, what to cite, and where it comes from.
      combined: splits that are not stored but are concatenations of others: name -> their names.
      repeated: splits that hold images of another split again: name -> the other's name.
      optional: splits that are left out if their files are not given: name -> which files.
      prepared: the folder of its records, for a set that is named by that folder; else None.
    """

    name: str
    version: str
    description: str
    class_names: tuple[str, ...]
    class_colors: tuple[tuple[int, int, int], ...]
    label_map: Mapping[int, int]
    splits: tuple[str, ...]
    split_sizes: Mapping[str, int]
    eval_split: str
    license: str
    citation: str
    homepage: str
    combined: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    repeated: Mapping[str, str] = dataclasses.field(default_factory=dict)
    optional: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prepared: pathlib.Path | None = None

    def __post_init__(self):
        assert len(self.class_names) == len(self.class_colors)
        assert set(self.label_map.values()) <= {*range(len(self.class_names)), IGNORE_LABEL}
        assert self.eval_split in ("", *self.splits)
        assert {*self.split_sizes, *self.combined, *self.repeated, *self.optional} <= {*self.splits}

    @property
    def num_classes(self) -> int:
        """Returns the number of train ids."""
        return len(self.class_names)

    @property
    def train_split(self) -> str:
        """Returns the split that is meant for training by its name; "" if none clearly is."""
        return split_for(TRAIN, self.splits)

    def in_own_names(self, split: str) -> str:
        """Returns a spec of splits with the names of this data set: `"validation[:9]"` for
        `"val[:9]"`; a name that means none of its splits stays.
        """

        def own(part: str) -> str:
            name, bracket, rest = part.strip().partition("[")
            return own_name(name.strip(), self.splits) + bracket + rest

        return "+".join(map(own, split.split("+")))

    def differences(self, sizes: Mapping[str, int]) -> Iterator[str]:
        """Describes which splits differ from the published ones.

        Args:
          sizes: the number of images in each stored split.

        Yields:
          A line for all splits that lack the same files, and one for all splits of other sizes.
        """
        left_out: dict[str, list[str]] = {}
        for split in self.splits:
            if not all(part in sizes for part in self.combined.get(split, (split,))):
                left_out.setdefault(self.optional.get(split, "its files"), []).append(split)
        for files, splits in left_out.items():
            yield f"without {', '.join(splits)}, for which {files} would be needed"
        other = [
            f"{split} has {sizes[split]} images of {number}"
            for split, number in self.split_sizes.items()
            if sizes.get(split, number) != number
        ]
        if other:
            yield f"not of the size published: {', '.join(other)}"

    def to_json(self) -> dict[str, Any]:
        """Returns the facts for JSON."""
        facts = {**dataclasses.asdict(self), "label_map": sorted(self.label_map.items())}
        del facts["prepared"]
        return json.loads(json.dumps(facts))

    @classmethod
    def from_json(cls, facts: Mapping[str, Any], prepared: pathlib.Path) -> "DatasetInfo":
        """Returns the facts from `to_json`; raises KeyError, TypeError or ValueError if they are
        incomplete or impossible.
        """
        for name, form in _FORMS.items():
            if not has_form(facts[name], form):
                raise ValueError(f"its {name} have another form")
        check_class_names(facts["class_names"])
        if not all(0 <= part <= 255 for color in facts["class_colors"] for part in color):
            raise ValueError("a colour is not three values in 0..255")
        read = {
            **facts,
            "class_names": tuple(facts["class_names"]),
            "class_colors": tuple(map(tuple, facts["class_colors"])),
            "label_map": dict(facts["label_map"]),
            "splits": tuple(facts["splits"]),
            "prepared": prepared,
        }
        try:
            return cls(**read)
        except AssertionError:
            raise ValueError("its parts contradict each other") from None
