"""Turns the nested variables of a model into arrays by path, and back."""

from collections.abc import Mapping

import flax.core
import flax.traverse_util
import jax


def flatten(variables: Mapping) -> dict[str, jax.Array]:
    """Returns arrays by path, such as `"params/conv1/kernel"`."""
    return flax.traverse_util.flatten_dict(flax.core.unfreeze(dict(variables)), sep="/")


def unflatten(flat: Mapping) -> dict:
    """Returns the nested variables of `flatten`'s result."""
    return flax.traverse_util.unflatten_dict(flat, sep="/")
