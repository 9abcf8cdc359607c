"""Gradients to updates: SGD, Adam, AdamW; rate multipliers, decay, clipping and freezing by path.

An optimizer here is an optax transformation *without* the learning rate. The train step multiplies
its update by the rate at ``state.step``; so the optimizer's own state holds no counter that a
resumed or rewound run could disagree with.
"""

import difflib
import fnmatch
import math
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from flaxseg.errors import ConfigError

OPTIMIZERS = ("sgd", "adam", "adamw")


def make_optimizer(
    params: Mapping,
    *,
    name: str = "sgd",
    momentum: float = 0.9,
    nesterov: bool = False,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
    decay_bn_and_bias: bool = False,
    head_lr_multiplier: float = 1.0,
    bias_lr_multiplier: float = 1.0,
    head: Sequence[str] = (),
    lr_multipliers: Mapping[str, float] = MappingProxyType({}),
    grad_clip_norm: float = 0.0,
    frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
    """An optimizer whose update is still to be multiplied by ``-learning_rate``.

    The rules are those of ``torch.optim``, so that published recipes carry over: ``sgd`` adds the
    decay to the gradient, then folds it into the momentum buffer, and the rate is applied to the
    buffer (Caffe and TensorFlow differ when the rate changes); ``adam`` adds the decay to the
    gradient; ``adamw`` takes it apart from the moments, multiplied by the rate.

    In this order: frozen gradients to zero, clip by the global norm of all others, decay, moments,
    multipliers.

    Args:
      params: the parameters, or their shapes.
      name: one of `OPTIMIZERS`.
      momentum: of ``sgd``, in ``[0, 1)``.
      nesterov: of ``sgd``.
      b1: of ``adam`` and ``adamw``, in ``[0, 1)``.
      b2: of ``adam`` and ``adamw``, in ``[0, 1)``.
      eps: of ``adam`` and ``adamw``, > 0.
      weight_decay: >= 0; of kernels, and of the scales and biases only with `decay_bn_and_bias`.
      decay_bn_and_bias: decay the parameters of normalisations, and biases, too.
      head_lr_multiplier: rate of the head over that of the rest; >= 0.
      bias_lr_multiplier: rate of the biases of convolutions and dense layers, over that of their
        kernels; >= 0. Not of normalisations.
      head: what is head, in the form of `frozen`; by default all that is not under the top-level
        key "backbone", or "backbone_2" and so on.
      lr_multipliers: rates of further parts over the base rate, >= 0, by entries in the form of
        `frozen`. The last one that fits takes the place of `head_lr_multiplier`.
      grad_clip_norm: largest global norm of the gradient, > 0; 0 switches clipping off.
      frozen: what is not trained at all, see `is_frozen`. Give the same to `make_train_step`.

    Returns:
      An optax transformation. ``params - learning_rate * update`` is the step; with optax alone,
      chain it with ``optax.scale_by_learning_rate``.

    Raises:
      ConfigError: for an unknown name, for all values out of range at once, and for an entry of
        `frozen` or `head` that fits no parameter.

    Examples:
      >>> params = {"backbone": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
      >>> tx = make_optimizer(params, momentum=0.0, weight_decay=0.0, head_lr_multiplier=10.0)
      >>> update, _ = tx.update(params, tx.init(params), params)
      >>> print(update["backbone"]["kernel"][0, 0], update["head"]["kernel"][0, 0])
      1.0 10.0
    """
    _check(
        name,
        in_unit_interval={"momentum": momentum, "b1": b1, "b2": b2},
        not_negative={
            "weight_decay": weight_decay,
            "head_lr_multiplier": head_lr_multiplier,
            "bias_lr_multiplier": bias_lr_multiplier,
            "grad_clip_norm": grad_clip_norm,
            **{f"lr_multipliers of {part!r}": value for part, value in lr_multipliers.items()},
        },
        eps=eps,
        nesterov_without_momentum=name == "sgd" and nesterov and momentum == 0,
    )
    fixed = frozen_parameters(params, frozen)
    kinds = parameter_kinds(params)
    trained = jax.tree.map(lambda is_fixed: not is_fixed, fixed)
    decayed = jax.tree.map(lambda kind: decay_bn_and_bias or kind == "weight", kinds)
    if head:
        in_head = _matching(params, head, "head")
    else:
        backbones = [key for key in params if re.fullmatch(r"backbone(_\d+)?", key)]
        in_backbone = frozen_parameters(params, backbones)
        in_head = jax.tree.map(lambda is_backbone: not is_backbone, in_backbone)
    rates = jax.tree.map(lambda is_head: head_lr_multiplier if is_head else 1.0, in_head)
    for part, value in lr_multipliers.items():
        fits = _matching(params, [part], "lr_multipliers")
        rates = jax.tree.map(lambda rate, fit, value=value: value if fit else rate, rates, fits)
    multipliers = _multipliers(kinds, trained, rates, bias_lr_multiplier)
    decay = optax.add_decayed_weights(weight_decay, mask=decayed) if weight_decay else None
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps)
    moments = {
        "sgd": (decay, optax.trace(decay=momentum, nesterov=nesterov) if momentum else None),
        "adam": (decay, adam),
        "adamw": (adam, decay),
    }[name]
    parts = [
        _scale_each(jax.tree.map(float, trained)) if frozen else None,
        optax.clip_by_global_norm(grad_clip_norm) if grad_clip_norm else None,
        *moments,
        _scale_each(multipliers),
    ]
    return optax.chain(*[part for part in parts if part is not None])


def parameter_kinds(params: Mapping) -> dict:
    """The kind of each parameter, as a tree like `params`: "weight", "bias" or "normalization".

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
    """Whether the parameter at `path`, as ``"backbone/stem/kernel"``, is not trained.

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
    """A tree like `params` with True where a parameter is frozen.

    Raises:
      ConfigError: when an entry fits no parameter.
    """
    return _matching(params, frozen, "frozen")


def _matching(params: Mapping, entries: Sequence[str], name: str) -> dict:
    """A tree like `params` with True where an entry fits; ConfigError for one that fits nothing."""
    paths = traverse_util.flatten_dict(params, sep="/")
    modules = sorted({path.rsplit("/", 1)[0] for path in paths} | {p.split("/")[0] for p in paths})
    for entry in entries:
        if not any(is_frozen(path, [entry]) for path in paths):
            near = difflib.get_close_matches(entry, modules, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"{name} has {entry!r}, which fits no parameter; the model's parts are "
                f"{sorted({p.split('/')[0] for p in paths})}.{hint}"
            )
    return traverse_util.unflatten_dict({path: is_frozen(path, entries) for path in paths}, sep="/")


def _multipliers(kinds: dict, trained: dict, rates: dict, bias: float) -> dict:
    """The rate of each parameter over the base rate, as a tree of floats."""

    def multiplier(kind: str, is_trained: bool, rate: float) -> float:
        return float(rate * (bias if kind == "bias" else 1.0)) if is_trained else 0.0

    return jax.tree.map(multiplier, kinds, trained, rates)


def _scale_each(factors: dict) -> optax.GradientTransformation | None:
    """Multiplies each leaf by its own factor; None where all factors are 1."""
    if all(factor == 1.0 for factor in jax.tree.leaves(factors)):
        return None

    def scale(update: jax.Array, factor: float) -> jax.Array:
        if factor == 1.0:
            return update
        # Not a product where the factor is 0: a frozen parameter stays, whatever its gradient.
        return update * factor if factor else jnp.zeros_like(update)

    return optax.stateless(lambda updates, params: jax.tree.map(scale, updates, factors))


def _check(
    name: str,
    in_unit_interval: dict[str, float],
    not_negative: dict[str, float],
    eps: float,
    nesterov_without_momentum: bool,
) -> None:
    """Raises ConfigError that lists all that is wrong."""
    problems = []
    if name not in OPTIMIZERS:
        near = difflib.get_close_matches(str(name), OPTIMIZERS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        problems.append(
            f"optimizer {name!r} is not known; use one of {', '.join(OPTIMIZERS)}.{hint}"
        )
    in_range: Callable[[float], bool] = lambda value: 0 <= value < 1  # noqa: E731
    problems += [
        f"{k} {v} must be in [0, 1)." for k, v in in_unit_interval.items() if not in_range(v)
    ]
    problems += [
        f"{k} {v} must be a finite number >= 0."
        for k, v in not_negative.items()
        if not (math.isfinite(v) and v >= 0)
    ]
    if not eps > 0:
        problems.append(f"eps {eps} must be > 0.")
    if nesterov_without_momentum:
        problems.append("nesterov needs momentum > 0; set one or leave the other.")
    if problems:
        raise ConfigError("\n".join(problems))
