"""Seeded weights for parity tests, made by NumPy name by name, so that a fixture need not store
them."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.variable_paths import flatten
from flaxseg.weights.name_map import NameMap


def shapes_of(module, size: tuple[int, int] = (65, 65)):
    """The shapes of a module's variables; nothing is computed, and a module is asked once."""
    try:
        shapes = _asked(module, size)
    except TypeError:  # a field of the module cannot be hashed
        shapes = _asked.__wrapped__(module, size)
    return jax.tree.map(lambda leaf: leaf, shapes)


@functools.lru_cache(maxsize=64)
def _asked(module, size: tuple[int, int]):
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), image)


def fresh(module, size: tuple[int, int] = (33, 33)):
    """Variables as at the start of a training, drawn by NumPy: compiling `init` would take as long
    as a test."""
    rng = np.random.default_rng(0)

    def value(path, leaf):
        if path[-1].key == "kernel":
            deviation = np.sqrt(2 / np.prod(leaf.shape[:3]))
            return (rng.normal(size=leaf.shape) * deviation).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(value, shapes_of(module, size))


def torch_tensors(shapes, name_map: NameMap, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors with the names and layouts that a PyTorch library has for a module.

    Running statistics and scales are random too, and scales are below one so that deep residual
    networks neither blow up nor fade.
    """
    tensors = {}
    for path, value in flatten(shapes).items():
        name = name_map.tensor_name(path)
        shape = value.shape
        if len(shape) == 4:
            shape = (shape[3], shape[2], shape[0], shape[1])
        elif len(shape) == 2:
            shape = shape[::-1]
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        leaf = path.rsplit("/", 1)[1]
        if leaf == "kernel":
            values = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif leaf == "scale":
            values = rng.uniform(0.3, 0.9, shape)
        elif leaf == "var":
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(size=shape) * 0.1
        tensors[name] = values.astype(np.float32)
    return tensors


def random_image(*shape: int, seed: int = 0) -> np.ndarray:
    """Normalised random images, `[N, H, W, 3]` float32."""
    return np.random.default_rng(seed).normal(size=(*shape, 3)).astype(np.float32)


def relative_difference(value, wanted) -> float:
    """The largest difference over the largest magnitude of `wanted`."""
    value, wanted = np.asarray(value, np.float64), np.asarray(wanted, np.float64)
    assert value.shape == wanted.shape
    return float(np.abs(value - wanted).max() / np.abs(wanted).max())
