"""Filtering on the permutohedral lattice in plain NumPy, a dictionary of vertices in float64.

(Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010,
section 3.)
"""

import numpy as np


def lattice(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]:
    """Barycentric weights `[N, d + 1]`, indices of the vertices `[N, d + 1]`, and their
    coordinates."""
    n, d = features.shape
    weights, indices, table = np.zeros((n, d + 1)), np.zeros((n, d + 1), int), {}
    scale = [np.sqrt(2 / 3) * (d + 1) / np.sqrt((i + 1) * (i + 2)) for i in range(d)]
    for point in range(n):
        c = features[point].astype(np.float64) * scale
        y = np.array([c[j:].sum() - (j * c[j - 1] if j else 0) for j in range(d + 1)])
        nearest = (d + 1) * np.rint(y / (d + 1))
        # The coordinates of a vertex sum to zero: as many as are too many are moved back, those
        # with the smallest residuals first, or forth, the largest first.
        order = list(np.argsort(-(y - nearest), kind="stable"))
        excess = round(nearest.sum() / (d + 1))
        moved = order[d + 1 - excess :] if excess > 0 else order[:-excess]
        nearest[moved] -= np.sign(excess) * (d + 1)
        residual = y - nearest
        order = np.argsort(-residual, kind="stable")
        sorted_residual = residual[order] / (d + 1)
        for r in range(d + 1):
            vertex = nearest + r
            if r:
                vertex[order[d + 1 - r :]] -= d + 1
                weights[point, r] = sorted_residual[d - r] - sorted_residual[d - r + 1]
            else:
                weights[point, r] = 1 - (sorted_residual[0] - sorted_residual[d])
            key = tuple(int(v) for v in vertex)
            indices[point, r] = table.setdefault(key, len(table))
    return weights, indices, list(table)


def matrix(features: np.ndarray) -> np.ndarray:
    """The filter as a matrix `[N, N]`."""
    weights, indices, vertices = lattice(features)
    n, d = features.shape
    splat = np.zeros((len(vertices), n))
    np.add.at(splat, (indices, np.arange(n)[:, None]), weights)
    table = {key: index for index, key in enumerate(vertices)}
    values = splat
    for axis in range(d + 1):
        step = -np.ones(d + 1, int)
        step[axis] = d
        blurred = values.copy()
        for index, key in enumerate(vertices):
            for sign in (1, -1):
                other = table.get(tuple(int(v) for v in np.array(key) + sign * step))
                if other is not None:
                    blurred[index] += 0.5 * values[other]
        values = blurred
    return splat.T @ values / (1 + 2.0**-d)
