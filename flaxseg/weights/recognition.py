"""Recognises what a weights file holds by the names of its tensors: a whole network of a known
layout, or a backbone in a known naming scheme."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from flaxseg.errors import WeightsError, listed
from flaxseg.weights.backbone_names.families import NAME_MAPS, family_of
from flaxseg.weights.caffe_tensors import caffe_tensors
from flaxseg.weights.layouts import LAYOUTS
from flaxseg.weights.layouts.layout import Network
from flaxseg.weights.name_map import NameMap

# A scheme fits if the file has at least this share of the names that it expects.
_RECOGNISED_SHARE = 0.5


class UnknownNamesError(WeightsError):
    """Says that no naming scheme fits."""


def maps_of(backbone_name: str) -> tuple[NameMap, ...]:
    """Returns the naming schemes of a backbone, given its name."""
    family = "resnet" if backbone_name.startswith("resnet") else backbone_name
    if family not in NAME_MAPS:
        raise WeightsError(
            f"there are no naming schemes for the backbone {backbone_name!r}; there are for "
            f"{', '.join(NAME_MAPS)}."
        )
    return NAME_MAPS[family]


def maps_for(flat: Mapping[str, object]) -> tuple[NameMap, ...]:
    """Returns the naming schemes of a backbone, given its variables by path."""
    family = family_of(flat)
    if family is None:
        raise WeightsError(
            "the modules to load into are not named as those of a known backbone "
            f"({', '.join(NAME_MAPS)}); pass name_maps. They hold {listed(flat)}."
        )
    return NAME_MAPS[family]


def names_of(name_map: NameMap, flat: Mapping) -> dict[str, str]:
    """Returns their names for those of our variables that the scheme knows."""
    names = {}
    for path in flat:
        try:
            names[path] = name_map.tensor_name(path)
        except KeyError:
            continue
    return names


def in_body(name: str, name_map: NameMap, prefix: str) -> bool:
    """Returns whether a tensor belongs to the part of the network that has no optional tensors."""
    if not name_map.body or not name.startswith(prefix):
        return False
    return re.match(name_map.body, name.removeprefix(prefix)) is not None


def recognise(
    flat: Mapping,
    tensors: Mapping,
    name_maps: Sequence[NameMap],
    prefix: str | None,
    source: str,
) -> tuple[NameMap, str]:
    """Returns the scheme and prefix under which most of our variables are found.

    Args:
      flat: our variables by path.
      tensors: of the file, by name.
      name_maps: the schemes to try.
      prefix: of the names to take; None to find it.
      source: what to call the file in messages.

    Raises:
      UnknownNamesError: no scheme has at least half of the names.
      WeightsError: several prefixes fit equally well.
    """
    candidates = []
    for name_map in name_maps:
        expected = list(names_of(name_map, flat).values())
        if not expected:
            continue
        prefixes = {
            name.removesuffix(anchor)
            for anchor in (expected[0], expected[len(expected) // 2], expected[-1])
            for name in tensors
            if name == anchor or name.endswith((f".{anchor}", f"/{anchor}"))
        }
        for p in sorted(prefixes) if prefix is None else [prefix]:
            hits = sum(p + name in tensors for name in expected)
            candidates.append((hits / len(flat), name_map, p))
    best = max((share for share, _, _ in candidates), default=0.0)
    chosen = [(name_map, p) for share, name_map, p in candidates if share == best]
    if best < _RECOGNISED_SHARE:
        expected = "; or ".join(
            f"{m.name}: {listed(sorted(names_of(m, flat).values()))}" for m in name_maps
        )
        behind = "" if prefix is None else f" behind the prefix {prefix!r}"
        raise UnknownNamesError(
            f"the names in {source} are not recognised{behind}. It holds {len(tensors)} tensors, "
            f"such as {listed(sorted(tensors))}. Expected were names as in {expected}."
        )
    # Schemes that differ only in parts that this network does not have count as one.
    different = {}
    for name_map, p in chosen:
        different.setdefault((p, *names_of(name_map, flat).values()), (name_map, p))
    chosen = list(different.values())
    if len(chosen) > 1:
        raise WeightsError(
            f"{source} holds {len(chosen)} networks of this kind, behind the prefixes "
            f"{[p for _, p in chosen]}; pass prefix to choose one."
        )
    return chosen[0]


def read_network(tensors: Mapping[str, np.ndarray], source: str) -> Network | None:
    """Returns what the tensors of a file are, or None where no layout is recognised.

    Args:
      tensors: by name, also those of a Caffe net that was converted in one of the ways of
        `caffe_tensors`.
      source: what to call the file in messages.

    Raises:
      WeightsError: a layout is recognised, and something in it is not as it should be.
    """
    for named in (tensors, caffe_tensors(tensors)):
        for layout in LAYOUTS:
            for anchor in layout.anchors:
                pattern = re.compile(rf"((?:.*\.)?){anchor}")
                ends = [match for name in named if (match := pattern.fullmatch(name))]
                if len(ends) == 1:
                    prefix = ends[0][1]
                    inside = {
                        k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)
                    }
                    return layout.read(inside, source)
    return None
