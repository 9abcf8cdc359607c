"""Maps the label ids of published files to train ids, and refuses ids that are not in the map."""

from collections.abc import Mapping

import cv2
import numpy as np

from flaxseg.classes import IGNORE_LABEL

# Pixels counted at a time; counting makes an int64 copy, which is bounded to 32 MiB.
_CHUNK = 1 << 22


class LabelMap:
    """Maps raw label ids to train ids; an id outside the map is an error.

    Args:
      ids: raw id (0..65535) -> train id (0..254) or 255 for ignore.
    """

    def __init__(self, ids: Mapping[int, int]):
        self.ids = dict(ids)
        self._train_id = np.full(256, IGNORE_LABEL, np.uint8)
        self._unknown = np.ones(256, np.uint8)
        for raw, train in self.ids.items():
            if raw < 256:
                self._train_id[raw] = train
                self._unknown[raw] = 0

    def unknown_ids(self, raw: np.ndarray) -> dict[int, int]:
        """Returns the ids of `raw` that are not in the map, each with its number of pixels."""
        return {v: n for v, n in count_ids(raw).items() if v not in self.ids}

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """Maps a raw label `[H, W]` (uint8 or uint16) to train ids (uint8 `[H, W]`).

        Raises:
          ValueError: ids outside the map, with their pixel counts.
        """
        if raw.dtype == np.uint8:
            if not cv2.countNonZero(cv2.LUT(raw, self._unknown)):
                return cv2.LUT(raw, self._train_id)
        elif not self.unknown_ids(raw):
            table = np.full(max(self.ids) + 1, IGNORE_LABEL, np.uint8)
            table[list(self.ids)] = list(self.ids.values())
            return table[raw]
        raise ValueError(self.complaint(raw))

    def to_raw(self, train_ids: np.ndarray, ignored: int) -> np.ndarray:
        """Turns train ids into raw ids, as test servers expect predictions.

        Args:
          train_ids: integers of any shape, 0 to the last class, or 255 where nothing is predicted.
          ignored: the raw id for 255.

        Returns:
          The same shape; uint8, or uint16 where raw ids need it. A class with several raw ids gets
          the smallest.

        Raises:
          ValueError: there are other values, listed with their pixel counts; or no integers.
        """
        train_ids = np.asarray(train_ids)
        if train_ids.dtype.kind not in "iu":
            raise ValueError(f"train ids are {train_ids.dtype}; they must be integers")
        back = {t: r for r, t in sorted(self.ids.items(), reverse=True) if t != IGNORE_LABEL}
        back[IGNORE_LABEL] = ignored
        values, counts = np.unique(train_ids, return_counts=True)
        unknown = [
            f"{v} ({n} pixels)" for v, n in zip(values, counts, strict=True) if v not in back
        ]
        if unknown:
            raise ValueError(
                f"no raw label has the train ids {', '.join(unknown)}; known are {_ranges(back)}"
            )
        table = np.zeros(256, np.uint8 if max(back.values()) < 256 else np.uint16)
        table[list(back)] = list(back.values())
        return table[train_ids]

    def complaint(self, raw: np.ndarray) -> str:
        """Returns a message about the unknown ids of `raw`, with pixel counts and the known ids."""
        found = ", ".join(f"{v} ({n} pixels)" for v, n in self.unknown_ids(raw).items())
        return f"label ids outside the map: {found}; known ids are {_ranges(self.ids)}"


def count_ids(raw: np.ndarray) -> dict[int, int]:
    """Returns the number of pixels of each id in a label (uint8 or uint16), in ascending order."""
    counts = np.zeros(np.iinfo(raw.dtype).max + 1, np.int64)
    flat = raw.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        counts += np.bincount(flat[start : start + _CHUNK], minlength=counts.size)
    return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}


def _ranges(ids: Mapping[int, int]) -> str:
    """Writes ids as ranges: {0, 1, 2, 255} -> '0..2, 255'."""
    ordered = sorted(ids)
    runs: list[list[int]] = []
    for value in ordered:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)
