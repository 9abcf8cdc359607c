"""Bases of label patches: what the masks of a class look like nearby, learned from the labels of a
data set.

(Ghiasi and Fowlkes, "Laplacian Pyramid Reconstruction and Refinement for Semantic Segmentation",
2016; scales and sizes are those of the released code.) `LearnedBasisDeconv` paints with them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import scipy.linalg

from flaxseg.classes import IGNORE_LABEL
from flaxseg.data.prepared.records import Record
from flaxseg.errors import ConfigError, DataError
from flaxseg.layers.resize import interpolation_matrix

SCALES = ("released", "unit")

# The released code's: a window counts for a class that fills this share of it.
_MIN_SHARE = 0.02
_WINDOWS_PER_PICTURE = 100
# For a class that is still short of windows after a pass over all pictures.
_FURTHER_WINDOWS = 1000
_MAX_PASSES = 4
# Singular values grow with the square root of the number of patches; scales are as for so many.
_REFERENCE_PATCHES = 10_000


@dataclasses.dataclass(frozen=True)
class LabelBases:
    """The bases of every class, C classes and K bases each.

    Attributes:
      class_names: C names.
      filters: float32 `[C, K, k, k]`, what `LearnedBasisDeconv` paints with.
      components: float32 `[C, K, P, P]`, the principal components they are made of, of unit norm.
      mean: float32 `[C, P, P]`, the mean patch, which is no basis.
      singular_values: float32 `[C, K]`, as for 10,000 patches.
      explained: float32 `[C, K]`, the share of the variance in the first 1, 2, ... components.
      num_patches: int64 `[C]`, patches of each class.
      shared: names of the classes with too few patches of their own, which have the bases of all
        classes together.
    """

    class_names: tuple[str, ...]
    filters: np.ndarray
    components: np.ndarray
    mean: np.ndarray
    singular_values: np.ndarray
    explained: np.ndarray
    num_patches: np.ndarray
    shared: tuple[str, ...]


class LabelPatches:
    """Binary patches of every class, a bit for each pixel.

    Args:
      num_classes: C.
      patch_size: P, side of a patch.
      capacity: patches of each class that are kept, a random choice of all that are added: memory
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
        """The patches kept of class `index`."""
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
    """Cuts windows at random places out of the labels, and keeps them as masks of the classes that
    fill at least 2 % of them.

    Each picture gives 100 windows, in the label's own resolution; pixels of label 255 are not of
    any class. All pictures are visited once, so that frequent classes are sampled from all of them
    (the released code stops at the first 10,000 patches); those with a class that is still short of
    `num_patches` are visited again, up to three times for 1000 windows.

    Args:
      records: with `"label"` uint8 `[H, W]`.
      num_classes: C.
      patch_size: side of the windows, in pixels.
      num_patches: patches of each class to keep.
      seed: of the places.
      progress: called with the pictures visited and those to visit at this time.

    Returns:
      The patches; a class that is nowhere has none.

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
                count = _FURTHER_WINDOWS if number else _WINDOWS_PER_PICTURE
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
    """Adds the windows of one picture; returns the wanted classes that are in the picture."""
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


def learn_bases(
    patches: LabelPatches,
    class_names: Sequence[str],
    *,
    num_bases: int = 10,
    kernel_size: int = 8,
    scale: str = "released",
) -> LabelBases:
    """The first principal components of each class's patches, as filters.

    Component i has the norm `sqrt(s_i)` as a filter of full size, s_i its singular value, and is
    resized to the kernel by antialiased bicubic interpolation: the initialisation of the release.

    Args:
      patches: of `sample_patches`.
      class_names: C names.
      num_bases: K, at most the pixels of a kernel.
      kernel_size: side of the filters.
      scale: `"released"`, as above, which gives the first filters norms of 5 to 10 and asks for
        small learning rates of what multiplies them; or `"unit"`, all filters of norm 1.

    Returns:
      The bases. A class with fewer than `10 * num_bases` patches has those of all classes together.

    Raises:
      ConfigError: a number or `scale` is out of range.
      DataError: there are too few patches altogether.
    """
    if not 1 <= num_bases <= kernel_size**2:
        raise ConfigError(
            f"num_bases is {num_bases}; it must be from 1 to {kernel_size**2}, the pixels of a "
            f"filter of {kernel_size} x {kernel_size}."
        )
    if scale not in SCALES:
        raise ConfigError(f"scale is {scale!r}; it must be one of {', '.join(SCALES)}.")
    counts = np.array([patches.count(index) for index in range(len(class_names))])
    if counts.sum() < 10 * num_bases:
        raise DataError(
            f"the labels gave {counts.sum()} patches; {num_bases} bases need at least "
            f"{10 * num_bases}."
        )
    short = counts < 10 * num_bases
    together = _principal_components(patches.of_all(), num_bases) if short.any() else None
    parts = [
        together if is_short else _principal_components(patches.of_class(index), num_bases)
        for index, is_short in enumerate(short)
    ]
    mean, components, variance, explained = (np.stack(part) for part in zip(*parts, strict=True))
    side = patches.patch_size
    components = components.reshape(len(class_names), num_bases, side, side)
    singular_values = np.sqrt(variance * _REFERENCE_PATCHES)
    filters = _resize(components, kernel_size)
    if scale == "unit":
        filters = filters / np.linalg.norm(filters, axis=(2, 3), keepdims=True)
    else:
        filters = filters * np.sqrt(singular_values)[..., None, None]
    return LabelBases(
        class_names=tuple(class_names),
        filters=filters.astype(np.float32),
        components=components.astype(np.float32),
        mean=mean.reshape(-1, side, side).astype(np.float32),
        singular_values=singular_values.astype(np.float32),
        explained=explained.astype(np.float32),
        num_patches=counts,
        shared=tuple(name for name, is_short in zip(class_names, short, strict=True) if is_short),
    )


def _principal_components(
    patches: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The mean, the first components `[number, P * P]`, their variances, and the share of the
    whole variance that they have up to each."""
    mean = patches.mean(0)
    centred = patches - mean
    covariance = (centred.T @ centred).astype(np.float64) / len(patches)
    size = len(covariance)
    variance, vectors = scipy.linalg.eigh(covariance, subset_by_index=[size - number, size - 1])
    variance, components = np.maximum(variance[::-1], 0), vectors.T[::-1]
    # The sign is arbitrary: the largest value is positive.
    largest = np.abs(components).argmax(1)
    components = components * np.sign(components[np.arange(number), largest])[:, None]
    total = max(np.trace(covariance), np.finfo(np.float64).tiny)
    return mean, components, variance, np.cumsum(variance) / total


def _resize(pictures: np.ndarray, size: int) -> np.ndarray:
    """`[..., P, P]` to `[..., size, size]`: bicubic, antialiased."""
    matrix = _bicubic_matrix(pictures.shape[-1], size)
    return matrix @ pictures @ matrix.T


def _bicubic_matrix(n: int, m: int) -> np.ndarray:
    """`[m, n]` weights of the cubic convolution of Keys (a = -0.5), widened where the result is
    smaller; they sum to one."""
    reach = max(n / m, 1.0)
    source = (np.arange(m) + 0.5) * n / m - 0.5
    t = np.abs(np.arange(n)[None] - source[:, None]) / reach
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """How well held-out patches are reconstructed from few numbers, per class.

    Attributes:
      numbers: of the bases used, 1 to K.
      wrong: float64 `[C, K]`, the share of pixels on the wrong side of one half; NaN for a class
        without patches.
      rmse: float64 `[C, K]`, the root of the mean squared error.
      bilinear_numbers: 1, 4, 9 and 16: values on a grid of 1x1 to 4x4 cells.
      bilinear_wrong: float64 `[C, 4]`.
      bilinear_rmse: float64 `[C, 4]`.
      num_patches: int64 `[C]`.
    """

    numbers: tuple[int, ...]
    wrong: np.ndarray
    rmse: np.ndarray
    bilinear_numbers: tuple[int, ...]
    bilinear_wrong: np.ndarray
    bilinear_rmse: np.ndarray
    num_patches: np.ndarray

    def table(self, class_names: Sequence[str]) -> str:
        """Wrong pixels in percent, a line for each class and one for their mean."""
        ours = [k for k in (1, 2, 4, 9, 10, 16) if k in self.numbers]
        if self.numbers[-1] not in ours:
            ours.append(self.numbers[-1])
        columns = [self.wrong[:, k - 1] for k in ours] + list(self.bilinear_wrong.T)
        rows = [*zip(class_names, self.num_patches, *columns, strict=True)]
        means = [np.nanmean(column) for column in columns]
        width = max(len("mean"), *map(len, class_names))
        heads = [f"{k:>6}" for k in (*ours, *self.bilinear_numbers)]
        split = len(ours)
        line = f"{'':{width}}  {'patches':>7}  {'  '.join(heads[:split])}  | "
        blank = " " * (width + 11)
        title = f"{'bases':<{8 * split - 2}}  |  bilinear from so many values"
        lines = [
            f"wrong pixels, %{'':{max(len(blank) - 15, 1)}}{title}",
            line + "  ".join(heads[split:]),
        ]
        for name, count, *shares in [*rows, ("mean", int(self.num_patches.sum()), *means)]:
            cells = ["     -" if np.isnan(s) else f"{100 * s:6.2f}" for s in shares]
            lines.append(
                f"{name:{width}}  {count:>7}  {'  '.join(cells[:split])}  | "
                f"{'  '.join(cells[split:])}"
            )
        return "\n".join(lines)

    def to_dict(self, class_names: Sequence[str]) -> dict:
        """For JSON; a share that is not known is null."""

        def numbers(values: np.ndarray) -> list[float | None]:
            return [None if np.isnan(v) else round(float(v), 6) for v in values]

        return {
            "bases": list(self.numbers),
            "bilinear_values": list(self.bilinear_numbers),
            "mean_wrong": numbers(np.nanmean(self.wrong, 0)),
            "mean_rmse": numbers(np.nanmean(self.rmse, 0)),
            "mean_bilinear_wrong": numbers(np.nanmean(self.bilinear_wrong, 0)),
            "mean_bilinear_rmse": numbers(np.nanmean(self.bilinear_rmse, 0)),
            "classes": {
                name: {
                    "patches": int(self.num_patches[i]),
                    "wrong": numbers(self.wrong[i]),
                    "rmse": numbers(self.rmse[i]),
                    "bilinear_wrong": numbers(self.bilinear_wrong[i]),
                    "bilinear_rmse": numbers(self.bilinear_rmse[i]),
                }
                for i, name in enumerate(class_names)
            },
        }


def measure_reconstruction(bases: LabelBases, held_out: LabelPatches) -> Reconstruction:
    """Reconstructs patches that the bases were not learned from, and compares with bilinear.

    A patch is the class's mean patch plus its components times their best coefficients. The rival
    is bilinear interpolation from a grid of 1x1, 2x2, 3x3 or 4x4 values at the cells' centres, the
    best values by least squares too, so that both have the same choice for the same number of
    values.

    Args:
      bases: of `learn_bases`.
      held_out: patches of the same size and classes, of other pictures.

    Raises:
      ConfigError: the patches are of another size.
    """
    side = bases.mean.shape[-1]
    if held_out.patch_size != side:
        raise ConfigError(f"held-out patches of side {held_out.patch_size} must be of {side}.")
    num_classes, num_bases = bases.components.shape[:2]
    grids = (1, 2, 3, 4)
    projections = []
    for grid in grids:
        line = interpolation_matrix(grid, side, align_corners=False).astype(np.float64)
        basis, _ = np.linalg.qr(np.kron(line, line))
        projections.append(basis)
    wrong, rmse = (np.full((num_classes, num_bases), np.nan) for _ in range(2))
    bilinear_wrong, bilinear_rmse = (np.full((num_classes, len(grids)), np.nan) for _ in range(2))
    for index in range(num_classes):
        patches = held_out.of_class(index).astype(np.float64)
        if not len(patches):
            continue
        mean = bases.mean[index].reshape(-1).astype(np.float64)
        vectors = bases.components[index].reshape(num_bases, -1).astype(np.float64)
        coefficients = (patches - mean) @ vectors.T
        rebuilt = np.broadcast_to(mean, patches.shape)
        for k in range(num_bases):
            rebuilt = rebuilt + coefficients[:, k : k + 1] * vectors[k]
            wrong[index, k], rmse[index, k] = _errors(patches, rebuilt)
        for j, basis in enumerate(projections):
            rebuilt = patches @ basis @ basis.T
            bilinear_wrong[index, j], bilinear_rmse[index, j] = _errors(patches, rebuilt)
    return Reconstruction(
        numbers=tuple(range(1, num_bases + 1)),
        wrong=wrong,
        rmse=rmse,
        bilinear_numbers=tuple(grid**2 for grid in grids),
        bilinear_wrong=bilinear_wrong,
        bilinear_rmse=bilinear_rmse,
        num_patches=np.array([held_out.count(index) for index in range(num_classes)]),
    )


def _errors(patches: np.ndarray, rebuilt: np.ndarray) -> tuple[float, float]:
    """The share of pixels on the wrong side of one half, and the root mean squared error."""
    wrong = np.mean((rebuilt >= 0.5) != (patches >= 0.5))
    return float(wrong), float(np.sqrt(np.mean((rebuilt - patches) ** 2)))
