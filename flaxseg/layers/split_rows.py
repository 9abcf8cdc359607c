"""Pictures whose rows are shared by several devices: what a layer has to say so that they stay so.

Under `jax.jit` over a mesh with an axis named "space", XLA splits the height of every activation as
that of the pictures is split, and fetches the rows that a convolution needs from the neighbours.
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
    """Whether the mesh in the context splits the rows of pictures."""
    return _parts() > 1


def rows_per_device(height: int) -> int:
    """How many of `height` rows a device has; the last may have fewer."""
    return -(-height // _parts())


def missing_rows(height: int) -> int:
    """How many rows more than `height` all devices would have equally many of; what is then
    reshaped by rows is not sent around."""
    return -height % _parts()


def split_rows(x: jax.Array) -> jax.Array:
    """`x` `[N, H, ...]`, each device with its part of the rows."""
    return _constrained(x, SPACE_AXIS)


def whole_rows(x: jax.Array) -> jax.Array:
    """`x` `[N, H, ...]`, each device with all rows of its pictures; for small ones."""
    return _constrained(x, None)


def everywhere(tree: Tree) -> Tree:
    """A tree of arrays without rows, such as gradients of parameters, whole on each device."""
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
