"""Decodes masks in which colours mark the classes."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np

from flaxseg.data.raw.decode import decode_color_label
from flaxseg.data.sets.folder_file import Color
from flaxseg.image_files import UndecodableError

_MAX_NAMED_COLORS, _MAX_KEPT_COLORS = 12, 1000
_UNKNOWN = 256  # beyond all train ids
_CHUNK = 1 << 20  # pixels looked up at a time, which bounds the memory it takes


@dataclasses.dataclass(frozen=True)
class ColorLabel:
    """Decodes the bytes of a mask of colours to train ids, uint8 `[H, W]`, 255 where ignored."""

    colors: Mapping[Color, int]

    @functools.cached_property
    def _ids(self) -> np.ndarray:
        """Returns the train id of each colour as a number, or `_UNKNOWN`; uint16 [2**24]."""
        table = np.full(1 << 24, _UNKNOWN, np.uint16)
        for color, number in self.colors.items():
            table[_packed(np.array(color, np.uint8))] = number
        return table

    def __call__(self, encoded: bytes) -> np.ndarray:
        pixels = decode_color_label(encoded)
        ids = np.empty(pixels.shape[:2], np.uint8)
        unknown = []
        rows = max(1, _CHUNK // pixels.shape[1])
        for start in range(0, len(pixels), rows):
            packed = _packed(pixels[start : start + rows])
            found = self._ids[packed]
            if (found == _UNKNOWN).any():
                unknown.append(packed[found == _UNKNOWN])
            ids[start : start + rows] = found
        if unknown:
            raise _unknown_colors(np.concatenate(unknown), len(self.colors))
        return ids


def _packed(pixels: np.ndarray) -> np.ndarray:
    """Returns colours `[..., 3]` as numbers 0xrrggbb, uint32 `[...]`."""
    red, green, blue = (pixels[..., i].astype(np.uint32) for i in range(3))
    return red << 16 | green << 8 | blue


def _unknown_colors(packed: np.ndarray, num_known: int) -> UndecodableError:
    """Returns the error for colours, as numbers `[N]`, that are not in the map."""
    values, counts = np.unique(packed, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    colors = {f"#{values[i]:06x}": int(counts[i]) for i in order[:_MAX_KEPT_COLORS]}
    named = ", ".join(f"{c} ({n} pixels)" for c, n in list(colors.items())[:_MAX_NAMED_COLORS])
    more = len(values) - _MAX_NAMED_COLORS
    if more > 0:
        named += f" and {more} more (perhaps smoothed edges: draw masks without anti-aliasing)"
    return UndecodableError(
        f"label colours outside the map: {named}; {num_known} colours are known",
        "unknown_colors",
        {"colors": colors, "pixels": len(packed)},
    )
