"""Reports what a loader did, in numbers and names."""

import dataclasses
from collections.abc import Iterable

_MAX_LISTED = 6


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """Holds the outcome of loading weights.

    Attributes:
      source: where they came from.
      layout: the naming scheme that was recognised, such as `"torchvision mobilenet_v2"`.
      loaded: paths of the model's variables that were set.
      missing: paths of the model's variables that the source lacks; they keep their values.
      mismatched: `(path, shape in the source, shape in the model)` of variables whose shapes
        differ; they keep their values.
      unused: names of the source's tensors that the model has no place for, such as the classifier
        of an ImageNet network.
      notes: what else the user should know, such as another padding in the original network.
    """

    source: str
    layout: str
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.source} ({self.layout}): {len(self.loaded)} loaded, "
            f"{len(self.mismatched)} of another shape, {len(self.missing)} missing, "
            f"{len(self.unused)} of the source unused"
        ]
        lines += item_lines("of another shape", [describe_mismatch(*m) for m in self.mismatched])
        lines += item_lines("missing", self.missing)
        lines += item_lines("unused", self.unused)
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def describe_mismatch(path: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Returns one line on a variable whose shapes differ."""
    return f"{path}: the source has {list(found)}, the model has {list(wanted)}"


def item_lines(title: str, items: Iterable[str]) -> list[str]:
    """Returns the first few items as indented lines, and how many more there are."""
    items = list(items)
    lines = [f"  {title}: {item}" for item in items[:_MAX_LISTED]]
    if len(items) > _MAX_LISTED:
        lines.append(f"  {title}: ... and {len(items) - _MAX_LISTED} more")
    return lines
