"""Takes the plain numbers out of a function, so that one compiled program serves all their values.

A step is a `jax.tree_util.Partial`, a pytree of the numbers of its schedule, optimizer and losses.
Called as it is, it computes with those it was made with. `Parallel.compile_train_step` makes them
arguments: neither the program nor its key in a cache depends on their values.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

Made = TypeVar("Made")


def split_numbers(made: Made) -> tuple[list[np.ndarray], Callable[[list], Made]]:
    """Returns the numbers of a pytree, and the function that puts others in their place.

    Leaves that are functions stay; an ordinary function is such a leaf itself.

    >>> numbers, with_numbers = split_numbers(jax.tree_util.Partial(max, np.float32(2)))
    >>> print(numbers[0], with_numbers([np.float32(7)])(5))
    2.0 7.0
    """
    leaves, structure = jax.tree.flatten(made)

    def with_numbers(numbers: list) -> Made:
        left = iter(numbers)
        return structure.unflatten([leaf if callable(leaf) else next(left) for leaf in leaves])

    return [np.asarray(leaf) for leaf in leaves if not callable(leaf)], with_numbers
