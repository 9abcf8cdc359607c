"""Gradients to updates: SGD, Adam, AdamW; rate multipliers, decay, clipping and freezing by path.

An optimizer here is an optax transformation *without* the learning rate. The train step multiplies
its update by the rate at ``state.step``; so the optimizer's own state holds no counter that a
resumed or rewound run could disagree with.

The update is a pytree of the optimizer's plain numbers, which a compiled step takes as arguments:
see `flaxseg.training.numbers`.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from jax.tree_util import Partial

from flaxseg.errors import near
from flaxseg.settings import (
    above,
    at_least,
    broken_rules,
    one_of,
    raise_problems,
    within,
)

OPTIMIZERS = ("sgd", "adam", "adamw")

_RULES = {
    "name": one_of(*OPTIMIZERS),
    "momentum": within(0, 1),
    "b1": within(0, 1),
    "b2": within(0, 1),
    "eps": above(0),
    "weight_decay": at_least(0),
    "head_lr_multiplier": at_least(0),
    "bias_lr_multiplier": at_least(0),
    "grad_clip_norm": at_least(0),
}


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """Holds how gradients become updates.

    The rules are those of ``torch.optim``, so that published recipes carry over: ``sgd`` adds the
    decay to the gradient, then folds it into the momentum buffer, and the rate is applied to the
    buffer (Caffe and TensorFlow differ when the rate changes); ``adam`` adds the decay to the
    gradient; ``adamw`` applies it apart from the moments, multiplied by the rate.

    Attributes:
      name: one of `OPTIMIZERS`.
      momentum: of ``sgd``, in ``[0, 1)``.
      nesterov: of ``sgd``; it needs momentum.
      b1: of ``adam`` and ``adamw``, in ``[0, 1)``.
      b2: of ``adam`` and ``adamw``, in ``[0, 1)``.
      eps: of ``adam`` and ``adamw``, > 0.
      weight_decay: >= 0; of kernels, and of the scales and biases only with `decay_bn_and_bias`.
      decay_bn_and_bias: decay biases and the parameters of normalisations, too.
      head_lr_multiplier: rate of the head over that of the rest; >= 0.
      bias_lr_multiplier: rate of the biases of convolutions and dense layers, over that of their
        kernels; >= 0. Normalisations are not affected.
      head: what is head, in the form of `frozen`; by default all that is not under the top-level
        key "backbone", or "backbone_2" and so on.
      lr_multipliers: rates of further parts over the base rate, >= 0, by entries in the form of
        `frozen`. The last one that fits takes the place of `head_lr_multiplier`.
      grad_clip_norm: largest global norm of the gradient, > 0; 0 switches clipping off.
      frozen: what is not trained at all, see `is_frozen`. Give the same to `make_train_step`.

    Raises:
      SettingsError: for all values out of range at once.
    """

    name: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-4
    decay_bn_and_bias: bool = False
    head_lr_multiplier: float = 1.0
    bias_lr_multiplier: float = 1.0
    head: Sequence[str] = ()
    lr_multipliers: Mapping[str, float] = dataclasses.field(default_factory=dict)
    grad_clip_norm: float = 0.0
    frozen: Sequence[str] = ()

    def __post_init__(self):
        problems = broken_rules(vars(self), _RULES)
        of_parts = dict.fromkeys(self.lr_multipliers, at_least(0))
        problems += [
            ("lr_multipliers", f"of {part!r} {text}")
            for part, text in broken_rules(self.lr_multipliers, of_parts)
        ]
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            problems.append(("nesterov", "needs momentum > 0; set one or leave the other."))
        raise_problems(problems)


def make_optimizer(params: Mapping, **settings) -> optax.GradientTransformation:
    """Returns an optimizer whose update is still to be multiplied by ``-learning_rate``.

    In this order: frozen gradients to zero, clip by the global norm of all others, decay, moments,
    multipliers.

    Args:
      params: the parameters, or their shapes.
      **settings: attributes of `OptimizerSettings`.

    Returns:
      An optax transformation. ``params - learning_rate * update`` is the step; with optax alone,
      chain it with ``optax.scale_by_learning_rate``.

    Raises:
      SettingsError: for all values out of range at once, or for an entry of `frozen`, `head` or
        `lr_multipliers` that fits no parameter.

    Examples:
      >>> params = {"backbone": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
      >>> tx = make_optimizer(params, momentum=0.0, weight_decay=0.0, head_lr_multiplier=10.0)
      >>> update, _ = tx.update(params, tx.init(params), params)
      >>> print(update["backbone"]["kernel"][0, 0], update["head"]["kernel"][0, 0])
      1.0 10.0
    """
    own = OptimizerSettings(**settings)
    kinds = parameter_kinds(params)
    trained = jax.tree.map(lambda is_fixed: not is_fixed, frozen_parameters(params, own.frozen))
    decayed = jax.tree.map(lambda kind: own.decay_bn_and_bias or kind == "weight", kinds)
    multipliers = _multipliers(kinds, trained, _rates(params, own), own.bias_lr_multiplier)
    # One number for all parameters of a rate: a step has arguments by the part, not by the leaf.
    distinct = sorted(set(jax.tree.leaves(multipliers)) - {0.0, 1.0})
    numbers = {
        "momentum": np.float32(own.momentum),
        "eps": np.float32(own.eps),
        "weight_decay": np.float32(own.weight_decay),
        "grad_clip_norm": np.float32(own.grad_clip_norm),
        "multipliers": [np.float32(value) for value in distinct],
    }

    def chain(numbers: dict) -> optax.GradientTransformation:
        rates = {0.0: 0.0, 1.0: 1.0, **dict(zip(distinct, numbers["multipliers"], strict=True))}
        scaled = any(value != 1.0 for value in jax.tree.leaves(multipliers))
        parts = [
            _scale_each(jax.tree.map(float, trained)) if own.frozen else None,
            optax.clip_by_global_norm(numbers["grad_clip_norm"]) if own.grad_clip_norm else None,
            *_moments(own, numbers, decayed),
            _scale_each(jax.tree.map(rates.get, multipliers)) if scaled else None,
        ]
        return optax.chain(*[part for part in parts if part is not None])

    def update(
        numbers: dict, gradient: dict, state: optax.OptState, params: dict | None = None
    ) -> tuple[dict, optax.OptState]:
        return chain(numbers).update(gradient, state, params)

    return optax.GradientTransformation(chain(numbers).init, Partial(update, numbers))


def _moments(
    own: OptimizerSettings, numbers: dict, decayed: dict
) -> tuple[optax.GradientTransformation | None, ...]:
    """Returns decay and moments in their order; those of value 0 are left out."""
    decay = trace = None
    if own.weight_decay:
        decay = optax.add_decayed_weights(numbers["weight_decay"], mask=decayed)
    if own.momentum:
        trace = optax.trace(decay=numbers["momentum"], nesterov=own.nesterov)
    # b1 and b2 stay constants: in float32 ``1 - 0.999`` has only four digits.
    adam = optax.scale_by_adam(b1=own.b1, b2=own.b2, eps=numbers["eps"])
    return {"sgd": (decay, trace), "adam": (decay, adam), "adamw": (adam, decay)}[own.name]


def parameter_kinds(params: Mapping) -> dict:
    """Returns the kind of each parameter, "weight", "bias" or "normalization", as a tree.

    A ``bias`` beside a ``kernel`` is a bias; any other ``bias``, and every ``scale``, belongs to a
    normalisation; the rest are weights.
    """
    flat = traverse_util.flatten_dict(params)

    def kind(path: tuple[str, ...]) -> str:
        if path[-1] == "bias" and (*path[:-1], "kernel") in flat:
            return "bias"
        return "normalization" if path[-1] in ("bias", "scale") else "weight"

    return traverse_util.unflatten_dict({path: kind(path) for path in flat})


def is_frozen(path: str, frozen: Sequence[str]) -> bool:
    """Returns whether the parameter at `path`, as ``"backbone/stem/kernel"``, is not trained.

    An entry of `frozen` is the path of a parameter, of a module that holds it, or a pattern with
    ``*`` for one of these: ``"backbone"``, ``"backbone/stem"``, ``"backbone/*/scale"``.

    Examples:
      >>> is_frozen("backbone/stem/kernel", ["backbone/stem"])
      True
      >>> is_frozen("backbone_2/kernel", ["backbone"])
      False
    """
    return any(
        fnmatch.fnmatchcase(path, entry) or fnmatch.fnmatchcase(path, f"{entry}/*")
        for entry in frozen
    )


def frozen_parameters(params: Mapping, frozen: Sequence[str]) -> dict:
    """Returns a tree like `params` with True where a parameter is frozen.

    Raises:
      SettingsError: when an entry fits no parameter.
    """
    return _matching(params, frozen, "frozen")


def _matching(params: Mapping, entries: Sequence[str], name: str) -> dict:
    """Returns a tree like `params` with True where an entry fits.

    Raises:
      SettingsError: an entry of the setting `name` fits nothing.
    """
    paths = traverse_util.flatten_dict(params, sep="/")
    parts = sorted({path.split("/")[0] for path in paths})
    modules = {path.rsplit("/", 1)[0] for path in paths} | set(parts)
    raise_problems(
        [
            (
                name,
                f"has {entry!r}, which fits no parameter; the model's parts are {parts}."
                f"{near(entry, sorted(modules))}",
            )
            for entry in entries
            if not any(is_frozen(path, [entry]) for path in paths)
        ]
    )
    return traverse_util.unflatten_dict({path: is_frozen(path, entries) for path in paths}, sep="/")


def _rates(params: Mapping, own: OptimizerSettings) -> dict:
    """Returns the rate of each parameter over the base rate, by the part it belongs to."""
    if own.head:
        in_head = _matching(params, own.head, "head")
    else:
        backbones = [key for key in params if re.fullmatch(r"backbone(_\d+)?", key)]
        in_backbone = frozen_parameters(params, backbones)
        in_head = jax.tree.map(lambda is_backbone: not is_backbone, in_backbone)
    rates = jax.tree.map(lambda is_head: own.head_lr_multiplier if is_head else 1.0, in_head)
    for part, value in own.lr_multipliers.items():
        fits = _matching(params, [part], "lr_multipliers")
        rates = jax.tree.map(lambda rate, fit, value=value: value if fit else rate, rates, fits)
    return rates


def _multipliers(kinds: dict, trained: dict, rates: dict, bias: float) -> dict:
    """Returns the rate of each parameter over the base rate, as a tree of floats."""

    def multiplier(kind: str, is_trained: bool, rate: float) -> float:
        return float(rate * (bias if kind == "bias" else 1.0)) if is_trained else 0.0

    return jax.tree.map(multiplier, kinds, trained, rates)


def _scale_each(factors: dict) -> optax.GradientTransformation:
    """Returns what multiplies each leaf by its own factor: 0.0, 1.0 or any array."""

    def scale(update: jax.Array, factor: float | jax.Array) -> jax.Array:
        if not isinstance(factor, float):
            return update * factor
        # Not a product where the factor is 0: a frozen parameter stays, whatever its gradient.
        return update if factor else jnp.zeros_like(update)

    return optax.stateless(lambda updates, params: jax.tree.map(scale, updates, factors))
