"""Names, checks and reads the tensors of a saved model: `model.safetensors`.

Each array of `variables` stands under its path, for example `params/backbone/stem/conv/kernel`.
"""

import contextlib
import itertools
import math
import pathlib
from collections.abc import Iterator, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from flaxseg.errors import WeightsError, listed
from flaxseg.variable_paths import flatten, unflatten

Spec = tuple[tuple[int, ...], str]
"""Shape and dtype of a tensor."""

# The size with which shapes are derived; nothing is computed at this size.
_PROBE_SIZE = (65, 65)
_MAX_LISTED = 8
# Calls of modules, of which the deepest network here at three scales has 1565, and values of all
# variables, of which the largest has 252 million.
_MAX_CALLS = 3000
# Cells a side, of which some forms of a convolution do one after the other; FCN-32s has 64.
_MAX_KERNEL = 128
_MAX_VALUES = 2**31

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
}


def expected_tensors(model: nn.Module) -> dict[str, Spec]:
    """Returns shape and dtype of every variable of a model, by path; nothing is computed.

    Raises:
      ValueError: it has more layers or variables than any network of this field.
    """
    image = jax.ShapeDtypeStruct((1, *_PROBE_SIZE, 3), jnp.float32)
    with bounded_network():
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    tensors = {key: (value.shape, str(value.dtype)) for key, value in flatten(shapes).items()}
    total = sum(math.prod(shape) for shape, _ in tensors.values())
    if total > _MAX_VALUES:
        raise ValueError(f"the network has {total:.3g} parameters, more than {_MAX_VALUES:.3g}.")
    return tensors


@contextlib.contextmanager
def bounded_network() -> Iterator[None]:
    """Ends the tracing of a network that has more or larger layers than any of this field.

    Raises:
      ValueError: says so.
    """
    calls = itertools.count(1)

    def count(layer, arguments, named, context):
        if next(calls) > _MAX_CALLS:
            raise ValueError(f"the network has more than {_MAX_CALLS} layers.")
        kernel = np.broadcast_to(getattr(context.module, "kernel_size", 1), 2)
        if kernel.max() > _MAX_KERNEL:
            raise ValueError(f"a kernel has {kernel.max()} cells a side, more than {_MAX_KERNEL}.")
        return layer(*arguments, **named)

    with nn.intercept_methods(count):
        yield


def read_tensors(
    path: pathlib.Path, expected: Mapping[str, Spec], problem: str, advice: str
) -> dict:
    """Reads a safetensors file as variables; no array is read before all names, shapes and dtypes
    are found to be the expected ones.

    Args:
      path: the file.
      expected: of `expected_tensors`.
      problem: what it means if they are not, for the message.
      advice: what to do then.

    Raises:
      WeightsError: the file is damaged, or its tensors differ.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            keys = file.keys()
            slices = {key: file.get_slice(key) for key in keys}
            found = {
                key: (tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype()))
                for key, part in slices.items()
            }
            check_tensors(found, expected, problem, advice)
            flat = {key: jnp.asarray(file.get_tensor(key)) for key in keys}
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}.") from error
    return unflatten(flat)


def check_tensors(
    found: Mapping[str, Spec],
    expected: Mapping[str, Spec],
    problem: str,
    advice: str,
) -> None:
    """Raises one WeightsError that lists all tensors that are missing, unexpected or of another
    shape or dtype."""
    # Different shapes first: most often they explain the rest.
    lines = [
        f"{key}: found {_tensor(found[key])}, the model has {_tensor(expected[key])}"
        for key in sorted(found.keys() & expected.keys())
        if found[key] != expected[key]
    ]
    lines += [
        f"missing: {key} {_tensor(expected[key])}" for key in sorted(expected.keys() - found.keys())
    ]
    lines += [
        f"unexpected: {key} {_tensor(found[key])}" for key in sorted(found.keys() - expected.keys())
    ]
    if lines:
        more = [f"... and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
        shown = "\n  ".join(lines[:_MAX_LISTED] + more)
        raise WeightsError(
            f"{problem}; {len(lines)} of {len(expected)} tensors differ:\n  {shown}\n{advice}"
        )


def check_finite(flat: Mapping[str, np.ndarray]) -> None:
    """Raises WeightsError if a value is infinite or not a number."""
    bad = [key for key, value in sorted(flat.items()) if not np.all(np.isfinite(value))]
    if bad:
        raise WeightsError(
            f"{listed(bad, _MAX_LISTED)} hold values that are not finite; such a model "
            "is not saved."
        )


def count_parameters(flat: Mapping[str, np.ndarray]) -> int:
    """Returns the number of trained values: the elements of params."""
    return sum(int(value.size) for key, value in flat.items() if key.startswith("params/"))


def _tensor(shape_and_dtype: Spec) -> str:
    shape, dtype = shape_and_dtype
    return f"{list(shape)} {dtype}"
