"""Learns the bases of each class: the principal components of its patches."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.linalg

from flaxseg.data.label_bases.patches import LabelPatches
from flaxseg.errors import ConfigError, DataError

SCALES = ("released", "unit")

# Singular values grow with the square root of the number of patches; scales are as for so many.
_REFERENCE_PATCHES = 10_000


@dataclasses.dataclass(frozen=True)
class LabelBases:
    """Holds K bases of each of C classes.

    Attributes:
      class_names: C names.
      filters: float32 `[C, K, k, k]`, the kernels of `LearnedBasisDeconv`.
      components: float32 `[C, K, P, P]`, their principal components at full size, of unit norm.
      mean: float32 `[C, P, P]`, the mean patch, which is not one of the bases.
      singular_values: float32 `[C, K]`, as for 10,000 patches.
      explained: float32 `[C, K]`, the share of the variance in the first 1, 2, ... components.
      num_patches: int64 `[C]`, the number of patches of each class.
      shared: the names of classes with too few patches of their own, which get the bases of all
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


def learn_bases(
    patches: LabelPatches,
    class_names: Sequence[str],
    *,
    num_bases: int = 10,
    kernel_size: int = 8,
    scale: str = "released",
) -> LabelBases:
    """Returns the first principal components of each class's patches as filters.

    As in the released code, component i with singular value s_i is scaled to the norm `sqrt(s_i)`
    and then resized to the kernel by antialiased bicubic interpolation.

    Args:
      patches: as returned by `sample_patches`.
      class_names: C names.
      num_bases: K, at most the number of pixels of a kernel.
      kernel_size: the side of the filters.
      scale: `"released"`, as above: the first filters have norms of 5 to 10, and the layer that
        multiplies them needs a small learning rate; or `"unit"`: all filters have norm 1.

    Returns:
      The bases. A class with fewer than `10 * num_bases` patches gets those of all
        classes together.

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
    """Returns the mean, the first components `[number, P * P]`, their variances, and the cumulative
    share of the variance that they explain."""
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


def _resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resizes `[..., P, P]` to `[..., size, size]`: bicubic, antialiased."""
    matrix = _bicubic_matrix(images.shape[-1], size)
    return matrix @ images @ matrix.T


def _bicubic_matrix(n: int, m: int) -> np.ndarray:
    """Returns `[m, n]` weights of Keys' cubic convolution (a = -0.5), widened for a smaller result;
    each row sums to one."""
    reach = max(n / m, 1.0)
    source = (np.arange(m) + 0.5) * n / m - 0.5
    t = np.abs(np.arange(n)[None] - source[:, None]) / reach
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
    return weights / weights.sum(1, keepdims=True)
