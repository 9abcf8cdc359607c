"""Samples binary patches of each class from labels."""

from collections.abc import Callable, Sequence

import numpy as np

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data.prepared.records import Record
from flaxseg.errors import ConfigError, DataError

# A window counts for a class that fills this share of it, as in the released code.
_MIN_SHARE = 0.02
_WINDOWS = 100  # of an image
# For a class that is still short of windows after a pass over all images.
_FURTHER_WINDOWS = 1000
_MAX_PASSES = 4


class LabelPatches:
    """Holds binary patches of every class, one bit per pixel.

    Args:
      num_classes: C.
      patch_size: P, the side of a patch.
      capacity: the number of patches kept per class, a random choice of all that are added. Memory
        is bounded by `C * capacity * P * P / 8` bytes, 27 MB for 21 classes of 10,000.
      seed: of the choice.
    """

    def __init__(self, num_classes: int, patch_size: int, capacity: int, seed: int):
        self.patch_size = patch_size
        self.capacity = capacity
        self.seen = np.zeros(num_classes, np.int64)
        self._bits: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
        self._rng = np.random.default_rng([seed, num_classes])

    def add(self, index: int, mask: np.ndarray) -> None:
        """Adds a patch of class `index`, bool `[P, P]`."""
        self.seen[index] += 1
        kept, bits = self._bits[index], np.packbits(mask)
        if len(kept) < self.capacity:
            kept.append(bits)
        elif (place := self._rng.integers(self.seen[index])) < self.capacity:
            kept[place] = bits

    def count(self, index: int) -> int:
        """Returns the number of patches kept of class `index`."""
        return len(self._bits[index])

    def of_class(self, index: int) -> np.ndarray:
        """Returns float32 `[n, P * P]` zeros and ones."""
        if not self._bits[index]:
            return np.zeros((0, self.patch_size**2), np.float32)
        bits = np.unpackbits(np.stack(self._bits[index]), axis=1, count=self.patch_size**2)
        return bits.astype(np.float32)

    def of_all(self) -> np.ndarray:
        """Returns float32 `[n, P * P]`, at most `capacity`, taken evenly from all classes."""
        each = -(-self.capacity // max(sum(bool(bits) for bits in self._bits), 1))
        return np.concatenate([self.of_class(i)[:each] for i in range(len(self._bits))])


def sample_patches(
    records: Sequence[Record],
    num_classes: int,
    *,
    patch_size: int = 32,
    num_patches: int = 10_000,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> LabelPatches:
    """Cuts random windows out of the labels and keeps them as masks of the classes in them.

    A window counts for every class that fills at least 2 % of it. Each image gives 100 windows at
    the resolution of its label; pixels of label 255 belong to no class. All images are visited
    once, so that frequent classes are sampled from all of them (the released code stops at the
    first 10,000 patches). Images with a class that is still short of `num_patches` are visited
    again, up to three times, for 1000 windows each.

    Args:
      records: with `"label"` uint8 `[H, W]`.
      num_classes: C.
      patch_size: the side of a window, in pixels.
      num_patches: how many patches to keep per class.
      seed: of the random places.
      progress: called with the number of images visited and to visit.

    Returns:
      The patches; a class that occurs nowhere has none.

    Raises:
      ConfigError: a number is out of range.
      DataError: all labels are smaller than a patch.
    """
    if patch_size < 4 or num_patches < 2:
        raise ConfigError(
            f"patch_size is {patch_size} and num_patches {num_patches}; they must be at least 4 "
            "and 2."
        )
    patches = LabelPatches(num_classes, patch_size, num_patches, seed)
    least = max(1, round(_MIN_SHARE * patch_size**2))
    with_class: list[list[int]] = [[] for _ in range(num_classes)]
    todo, done, total, large = list(range(len(records))), 0, len(records), 0
    wanted = set(range(num_classes))
    for number in range(_MAX_PASSES):
        for index in todo:
            label = records[index]["label"]
            if min(label.shape) >= patch_size:
                large += 1
                rng = np.random.default_rng([seed, number, index])
                count = _FURTHER_WINDOWS if number else _WINDOWS
                found = _add_windows(label, patches, wanted, least, count, rng)
                if not number:
                    for present in found:
                        with_class[present].append(index)
            done += 1
            if progress is not None:
                progress(done, total)
        if not large:
            raise DataError(
                f"all {len(records)} labels are smaller than {patch_size} x {patch_size} pixels; "
                "choose a smaller patch size."
            )
        wanted = {i for i in range(num_classes) if with_class[i] and patches.count(i) < num_patches}
        todo = sorted({index for i in wanted for index in with_class[i]})
        if not todo:
            break
        total += len(todo)
    return patches


def _add_windows(
    label: np.ndarray,
    patches: LabelPatches,
    wanted: set[int],
    least: int,
    count: int,
    rng: np.random.Generator,
) -> set[int]:
    """Adds the windows of one image and returns the wanted classes that it holds."""
    size = patches.patch_size
    present = {int(i) for i in np.unique(label) if i != IGNORE_LABEL} & wanted
    corners = rng.integers(0, np.subtract(label.shape, size - 1), (count, 2))
    for row, column in corners:
        window = label[row : row + size, column : column + size]
        counts = np.bincount(window.ravel(), minlength=256)
        for index in present:
            if counts[index] >= least:
                patches.add(index, window == index)
    return present
