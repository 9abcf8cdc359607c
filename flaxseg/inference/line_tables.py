"""Finds where lines of one image lie between lines of another, and reads them there.

Positions are computed on the host and handed over as small tables of indices and fractions, so that
compiled programs know only sizes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.inference.protocol import Layout


class Table(NamedTuple):
    """Says where lines of a result lie between lines of a source: `(1 - part) * low + part * high`.

    Attributes:
      low: int32 [n].
      high: int32 [n].
      part: float32 [n] in [0, 1).
      inside: bool [n], False where there is no source.
    """

    low: np.ndarray
    high: np.ndarray
    part: np.ndarray
    inside: np.ndarray


def sampled(start: int, window: int, axis: int, layout: Layout, size: tuple[int, int]) -> Table:
    """Returns where the pixels of a window lie on the image."""
    scaled = layout.scaled[axis]
    place = np.arange(start, start + window) - layout.offset[axis]
    inside = (place >= 0) & (place < scaled)
    table = interpolation(np.clip(place, 0, scaled - 1), scaled, size[axis], 0)
    return table._replace(inside=inside)


def interpolation(targets: np.ndarray, size: int, source: int, offset: int) -> Table:
    """Places the pixels of a side of `size` pixels between those of one of `source` pixels that
    begin at `offset`: bilinear, with half-pixel centres."""
    place = np.clip((targets + 0.5) * (source / size) - 0.5, 0, source - 1)
    low = np.floor(place).astype(np.int32)
    high = np.minimum(low + 1, source - 1)
    part = (place - low).astype(np.float32)
    high = np.where(part > 0, high, low)
    return Table(
        (low + offset).astype(np.int32),
        (high + offset).astype(np.int32),
        part,
        np.ones(len(targets), bool),
    )


def filled(table: Table, count: int) -> Table:
    """Returns the table with its last line repeated until it has `count` lines."""
    return Table(*(np.pad(x, (0, count - len(x)), mode="edge") for x in table))


def filled_mask(mask: np.ndarray, count: int) -> np.ndarray:
    return np.pad(mask, (0, count - len(mask)))


def rounded(n: int) -> int:
    """Returns the next of 32, 48, 64, 96, 128, 192, ...: at most 1.5 times as large, and only
    seventeen different ones from 1 to 8192."""
    size = 32
    while size < n:
        if size * 3 // 2 >= n:
            return size * 3 // 2
        size *= 2
    return size


def sample(image: jax.Array, rows: Table, columns: Table) -> jax.Array:
    """Returns lines and columns of the image, float32 [h, w, 3]."""
    x = mix(image[rows.low], image[rows.high], rows.part[:, None, None])
    return mix(x[:, columns.low], x[:, columns.high], columns.part[None, :, None])


def mix(low: jax.Array, high: jax.Array, part: jax.Array) -> jax.Array:
    low, high = low.astype(jnp.float32), high.astype(jnp.float32)
    return low + part * (high - low)
