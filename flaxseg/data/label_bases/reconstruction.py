"""Measures what the bases are worth: how well they reconstruct patches of other images."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from flaxseg.data.label_bases.components import LabelBases
from flaxseg.data.label_bases.patches import LabelPatches
from flaxseg.errors import ConfigError
from flaxseg.layers.resize import interpolation_matrix


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """States how well held-out patches of each class are reconstructed from few numbers.

    Attributes:
      numbers: how many bases were used, 1 to K.
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
        """Returns the wrong pixels in percent, a line for each class and one for the mean."""
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
        """Returns the numbers for JSON; an unknown share is null."""

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
    """Measures how well bases reconstruct patches of other images, compared with bilinear grids.

    A patch is reconstructed as the class's mean patch plus its components times their best
    coefficients. The comparison is bilinear interpolation from a grid of 1x1, 2x2, 3x3 or 4x4
    values at the cells' centres, also chosen by least squares, so that both choose the same number
    of values freely.

    Args:
      bases: as returned by `learn_bases`.
      held_out: patches of the same size and classes from other images.

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
    """Returns the share of pixels on the wrong side of one half and the root mean squared error."""
    wrong = np.mean((rebuilt >= 0.5) != (patches >= 0.5))
    return float(wrong), float(np.sqrt(np.mean((rebuilt - patches) ** 2)))
