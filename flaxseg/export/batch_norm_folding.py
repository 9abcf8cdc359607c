"""Folds BatchNorm into the convolution before it, for evaluation.

With running statistics, `(conv(x) - mean) / sqrt(var + epsilon) * scale + bias` is a convolution
with other filters and a bias (Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", 2018, section 3.2).
"""

import collections
from collections.abc import Iterator, Mapping

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.depthwise import DepthwiseConv
from flaxseg.layers.line_conv import LineConv
from flaxseg.layers.transposed_convolution import TransposedConv

# Layers that are linear in their `kernel`, whose last axis is that of the output's channels.
_CONVOLUTIONS = (AtrousConv, DepthwiseConv, LineConv, TransposedConv, nn.Conv)


def fold_batch_norm(module: nn.Module, variables: Mapping, *inputs) -> dict:
    """Returns variables of the same function in evaluation, with no BatchNorm left to compute.

    A BatchNorm that reads nothing but the output of a convolution, which nothing else reads, goes
    into the convolution's kernel; what remains of it is the addition of its parameter `shift`. Any
    other keeps a `factor` for each channel as well. The module takes the new variables as it took
    the old ones, in evaluation only; the result differs by rounding.

    >>> block = nn.Sequential([AtrousConv(4), BatchNorm()])
    >>> image = jnp.ones((1, 5, 5, 3))
    >>> variables = block.init(jax.random.key(0), image)
    >>> folded = fold_batch_norm(block, variables, image)
    >>> sorted(folded), sorted(folded["params"]["layers_1"])
    (['params'], ['shift'])

    Args:
      module: any Linen module with `BatchNorm` of this package in it. Other normalisations, and
        layers that are not called in evaluation, keep their variables.
      variables: its parameters and statistics.
      *inputs: what the module is called with, as arrays or as `jax.ShapeDtypeStruct`.

    Returns:
      `{"params": ...}` and, where statistics are left, `"batch_stats"`.
    """
    flat = {
        path: np.asarray(value)
        for path, value in flax.traverse_util.flatten_dict(variables).items()
    }
    norms, sources = _find(module, variables, inputs)
    for path, epsilon in norms.items():
        scale, bias = (flat.pop(("params", *path, name)) for name in ("scale", "bias"))
        mean, var = (flat.pop(("batch_stats", *path, name)) for name in ("mean", "var"))
        factor = scale.astype(np.float64) / np.sqrt(var.astype(np.float64) + epsilon)
        flat["params", *path, "shift"] = (bias - mean * factor).astype(np.float32)
        if path in sources:
            for name in ("kernel", "bias"):
                key = ("params", *sources[path], name)
                if key in flat:
                    flat[key] = (flat[key] * factor).astype(flat[key].dtype)
        else:
            flat["params", *path, "factor"] = factor.astype(np.float32)
    return jax.tree.map(jnp.asarray, flax.traverse_util.unflatten_dict(flat))


_Path = tuple[str, ...]


def _find(
    module: nn.Module, variables: Mapping, inputs: tuple
) -> tuple[dict[_Path, float], dict[_Path, _Path]]:
    """Traces the module and reads from the program what feeds what.

    Returns:
      The epsilon of each BatchNorm by path, and of those that can be folded into a convolution the
      path of that.
    """
    norms: dict[_Path, float] = {}
    names: list[tuple[str, _Path]] = []

    def named(x: jax.Array, kind: str, path: _Path) -> jax.Array:
        names.append((kind, path))
        return checkpoint_name(x, str(len(names) - 1))

    def mark(call, args, kwargs, context):
        layer = context.module
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        if isinstance(layer, BatchNorm):
            norms[layer.path] = layer.epsilon
            return call(named(args[0], "norm", layer.path), *args[1:], **kwargs)
        y = call(*args, **kwargs)
        return named(y, "conv", layer.path) if isinstance(layer, _CONVOLUTIONS) else y

    with nn.intercept_methods(mark):
        program = jax.make_jaxpr(module.apply)(variables, *inputs)
    # A layer that is called several times is folded where all calls agree.
    readers, read = collections.defaultdict(set), collections.defaultdict(set)
    for conv, norm in _links(program.jaxpr, names):
        readers[conv].add(norm)
        read[norm].add(conv)
    sources = {}
    for norm in norms:
        convs = read[norm]
        conv = next(iter(convs), None)
        if len(convs) == 1 and conv is not None and readers[conv] == {norm}:
            sources[norm] = conv
    return norms, sources


def _links(jaxpr, names: list[tuple[str, _Path]]) -> Iterator[tuple[_Path | None, _Path | None]]:
    """Returns (convolution, BatchNorm) for each mark in a program: None for the convolution where a
    BatchNorm reads something else, and for the BatchNorm where something else reads a
    convolution."""
    conv_of, uses = {}, collections.Counter(v for v in jaxpr.outvars if _is_variable(v))
    marks = []
    for equation in jaxpr.eqns:
        uses.update(v for v in equation.invars if _is_variable(v))
        if equation.primitive.name == "name" and equation.params["name"].isdecimal():
            kind, path = names[int(equation.params["name"])]
            marks.append((kind, path, equation.invars[0]))
            if kind == "conv":
                conv_of[equation.outvars[0]] = path
        for inner in _inner_programs(equation.params):
            yield from _links(inner, names)
    linked = set()
    for kind, path, variable in marks:
        if kind == "norm":
            conv = conv_of.get(variable) if uses[variable] == 1 else None
            if conv is not None:
                linked.add(variable)
            yield conv, path
    yield from ((conv, None) for variable, conv in conv_of.items() if variable not in linked)


def _inner_programs(params: Mapping) -> Iterator:
    for value in jax.tree.leaves(tuple(params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner


def _is_variable(atom) -> bool:
    return not hasattr(atom, "val")  # a literal has one
