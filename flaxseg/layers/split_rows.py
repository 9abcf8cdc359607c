"""Keeps the rows of images split over several devices through layers that mix rows.

Under `jax.jit` over a mesh with an axis named "space", XLA splits the height of every activation as
that of the images is split, and fetches the rows that a convolution needs from the neighbours.
Left to itself it does worse where rows are multiplied with a matrix, as in a resizing: it makes all
rows on each device, adds them up over all, and throws most away. There, `whole_rows` before and
`split_rows` after say what is meant. Without such a mesh in the context (`jax.set_mesh`, or
`flaxseg.training.parallel`, which sets it) both return what they were given.
"""

from typing import TypeVar

import jax
from jax.sharding import AxisType, PartitionSpec, get_abstract_mesh

SPACE_AXIS = "space"

Tree = TypeVar("Tree")


def rows_are_split() -> bool:
    """Returns whether the mesh in the context splits the rows of images."""
    return _parts() > 1


def rows_per_device(height: int) -> int:
    """Returns how many of `height` rows a device has; the last device may have fewer."""
    return -(-height // _parts())


def missing_rows(height: int) -> int:
    """Returns the padding rows needed to divide `height` evenly among devices; what then reshapes
    rows sends none around."""
    return -height % _parts()


def split_rows(x: jax.Array) -> jax.Array:
    """Returns `x` `[N, H, ...]` with each device holding its part of the rows."""
    return _constrained(x, SPACE_AXIS)


def whole_rows(x: jax.Array) -> jax.Array:
    """Returns `x` `[N, H, ...]` with each device holding all rows of its images; for small
    arrays."""
    return _constrained(x, None)


def everywhere(tree: Tree) -> Tree:
    """Returns a tree of arrays without rows, such as gradients of parameters, whole on each
    device."""
    if not rows_are_split():
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


def _parts() -> int:
    mesh = get_abstract_mesh()
    axes = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    # Within `jax.shard_map` a device sees its own rows only, as if they were all there are.
    return mesh.shape[SPACE_AXIS] if axes.get(SPACE_AXIS) == AxisType.Auto else 1


def _constrained(x: jax.Array, rows: str | None) -> jax.Array:
    if not rows_are_split():
        return x
    free = PartitionSpec.UNCONSTRAINED
    return jax.lax.with_sharding_constraint(x, PartitionSpec(free, rows, *[free] * (x.ndim - 2)))
