"""Rewrites a program in the operations that ONNX and its runtimes have.

Traced once and read again equation by equation: calls are laid open, what is there for the gradient
or for XLA alone is left out, and windows are brought to a form that runtimes take.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Primitives whose parameter of this name is a program that is run with their arguments.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
}
_IDENTITIES = ("optimization_barrier", "name", "stop_gradient", "sharding_constraint")


def onnx_program(
    run: Callable[..., Sequence[jax.Array]], *inputs
) -> Callable[..., list[jax.Array]]:
    """Returns a function that computes the same in fewer kinds of operations.

    Args:
      run: a function of arrays that returns a sequence of them.
      *inputs: shapes and dtypes of its arguments; dimensions may be symbols of `jax.export`.
    """

    def again(program, *values):
        return _evaluate(program.jaxpr, program.consts, values)

    # Twice: what stands for an operation is made of calls as well.
    program = jax.make_jaxpr(functools.partial(again, jax.make_jaxpr(run)(*inputs)))(*inputs)
    return functools.partial(again, program)


def _evaluate(jaxpr, consts: Sequence, inputs: Sequence) -> list:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

    def read(atom):
        return atom.val if hasattr(atom, "val") else values[atom]

    for equation in jaxpr.eqns:
        arguments = [read(atom) for atom in equation.invars]
        outputs = _apply(equation, arguments)
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation, arguments: list) -> Sequence:
    name, params = equation.primitive.name, equation.params
    if name in _IDENTITIES:
        return arguments
    if name in _CALLS:
        inner = params[_CALLS[name]]
        return _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), arguments)
    if name == "reduce_window_max":
        return [_window_maximum(arguments[0], **params)]
    if name == "concatenate":
        # Without the empty parts that `jnp.pad` makes.
        axis = params["dimension"]
        arguments = [x for x in arguments if x.shape[axis] != 0] or arguments[:1]
        if len(arguments) == 1:
            return arguments
    if name == "pad":
        return [_padded(*arguments, **params)]
    outputs = equation.primitive.bind(*arguments, **params)
    return outputs if equation.primitive.multiple_results else [outputs]


def _window_maximum(
    x: jax.Array, window_dimensions, window_strides, padding, base_dilation, window_dilation
) -> jax.Array:
    """Computes the maximum over windows as that of shifted images, along one axis after the other:
    runtimes have no windows in four dimensions."""
    del base_dilation  # 1 in all layers
    for axis, (size, stride, pads, rate) in enumerate(
        zip(window_dimensions, window_strides, padding, window_dilation, strict=True)
    ):
        if size == 1 and stride == 1 and not any(pads):
            continue
        x = _padded_axis(x, -jnp.inf, axis, *pads, 0)
        count = (x.shape[axis] - rate * (size - 1) - 1) // stride + 1
        shifted = [
            lax.slice_in_dim(x, rate * tap, rate * tap + stride * (count - 1) + 1, stride, axis)
            for tap in range(size)
        ]
        x = shifted[0]
        for other in shifted[1:]:
            x = jnp.maximum(x, other)
    return x


def _padded(x: jax.Array, value: jax.Array, padding_config) -> jax.Array:
    for axis, (before, after, between) in enumerate(padding_config):
        x = _padded_axis(x, value, axis, before, after, between)
    return x


def _padded_axis(x, value, axis: int, before: int, after: int, between: int) -> jax.Array:
    """Returns cells at constant positions, and the value elsewhere: `lax.pad` is not converted
    where a dimension is a symbol."""
    if (before, after, between) == (0, 0, 0):
        return x
    n = x.shape[axis]
    place = np.arange(-before, (n - 1) * (between + 1) + 1 + after)
    source, rest = np.divmod(place, between + 1)
    inside = (rest == 0) & (source >= 0) & (source < n)
    y = x[(slice(None),) * axis + (np.clip(source, 0, n - 1),)]
    if inside.all():
        return y
    shape = [1] * x.ndim
    shape[axis] = -1
    return jnp.where(inside.reshape(shape), y, jnp.asarray(value, x.dtype))
