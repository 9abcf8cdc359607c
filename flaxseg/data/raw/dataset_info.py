"""Defines the facts of a data set, which are known before any image is read."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from flaxseg.classes import IGNORE_LABEL


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
      splits: names of the splits, the one to train on first.
      split_sizes: the number of images in each split of the published set.
      eval_split: the split whose score is reported.
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
        assert self.eval_split in self.splits
        assert {*self.split_sizes, *self.combined, *self.repeated, *self.optional} <= {*self.splits}

    @property
    def num_classes(self) -> int:
        """Returns the number of train ids."""
        return len(self.class_names)

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
        """Returns the facts from `to_json`; raises KeyError or TypeError if they are incomplete."""
        return cls(
            **{
                **facts,
                "class_names": tuple(facts["class_names"]),
                "class_colors": tuple(map(tuple, facts["class_colors"])),
                "label_map": dict(facts["label_map"]),
                "splits": tuple(facts["splits"]),
                "prepared": prepared,
            }
        )
