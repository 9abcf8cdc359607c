"""What is known about a data set before any of its pictures is read."""

import dataclasses
from collections.abc import Mapping

IGNORE_LABEL = 255
"""The label of a pixel that counts neither in the loss nor in a metric, in every loaded record."""


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The public facts of a data set.

    Attributes:
      name: the name under which `flaxseg.data` knows it.
      version: changes whenever the prepared records would change.
      description: one sentence.
      class_names: name of each train id, in order; `num_classes` of them.
      class_colors: RGB uint8 triple of each train id, for pictures.
      label_map: raw label id in the published files -> train id, or 255 (ignore). An id that is not
        a key is an error.
      splits: names of the splits, the one to train on first.
      split_sizes: number of pictures the published set has in each split.
      eval_split: the split whose score is reported.
      eval_size: `(H, W)` of the largest picture, a hint for padding; (0, 0) where sizes vary
        widely.
      license, citation, homepage: terms of use, what to cite, and where it comes from.
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
    eval_size: tuple[int, int]
    license: str
    citation: str
    homepage: str

    def __post_init__(self):
        assert len(self.class_names) == len(self.class_colors)
        assert set(self.label_map.values()) <= {*range(len(self.class_names)), IGNORE_LABEL}
        assert self.eval_split in self.splits

    @property
    def num_classes(self) -> int:
        """Number of train ids."""
        return len(self.class_names)
