"""Builds the training step as a pure function of arrays.

There is one body for one device and for many, for `jax.jit` and for `jax.pmap`: sums and counts are
added up over the whole global batch (`parallel.global_sum`), then divided once.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from flaxseg.errors import ConfigError
from flaxseg.layers import normalize
from flaxseg.layers.split_rows import everywhere
from flaxseg.models.segmentation_model import Prediction
from flaxseg.settings import check_rules, count_from, within
from flaxseg.training import losses, optimizer, parallel
from flaxseg.training.objective import Objective, Scales, Targets
from flaxseg.training.schedules import Schedule
from flaxseg.training.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

_LARGE = 2**21  # numbers of an array that is tested by itself


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Holds how a step processes its batch and what it keeps.

    Accumulation cuts the batch into `accumulate_steps` micro-batches, rows ``j, j +
    accumulate_steps, ...``, one after the other in memory. Their sums and counts are added up
    before the one division: loss and gradient are those of the whole batch, however the ignored
    pixels are spread. Only BatchNorm sees the difference: it normalises over a micro-batch (over
    all devices), and moves its running statistics `accumulate_steps` times per step.

    Attributes:
      accumulate_steps: micro-batches per step, >= 1; they must divide each device's part of the
        batch.
      ema_decay: d of the moving averages ``ema += (1 - d) * (value - ema)``, in ``[0, 1)``; in
        early steps ``min(d, (1 + step) / (10 + step))``, so that they forget the initial values. 0:
        the state has none.
      frozen: see `optimizer.is_frozen`; no gradient is computed for these.

    Raises:
      SettingsError: for values out of range.
    """

    accumulate_steps: int = 1
    ema_decay: float = 0.0
    frozen: Sequence[str] = ()

    def __post_init__(self):
        check_rules(vars(self), {"accumulate_steps": count_from(1), "ema_decay": within(0, 1)})


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    schedule: Schedule,
    objective: Objective | None = None,
    **settings,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns the function that `Parallel.compile_train_step` compiles.

    When the loss, the gradient's norm, or anything in the new parameters or statistics is not
    finite, the step changes nothing but ``step`` and ``first_bad_step``. Nothing waits for that on
    the host: read ``first_bad_step`` when the metrics are read, and before a state is saved.

    Args:
      model: of the contract of `flaxseg.create_model`.
      tx: from `make_optimizer`: an update that is still to be multiplied by ``-learning_rate``.
      schedule: from `make_schedule`; the learning rate is ``schedule(state.step)``.
      objective: the losses; `Objective()` if None.
      **settings: attributes of `StepSettings`.

    Returns:
      ``step_fn(state, batch, axis_name=None) -> (state, metrics)``; it is a pytree of the plain
      numbers of all arguments, see `flaxseg.training.numbers`. The batch is ``{"image": uint8
      [N, H, W, 3], "label": integer [N, H, W]}``; `axis_name` is the name of the axis over devices
      under pmap. Metrics are float32 scalars: ``loss``; ``accuracy`` of the main output over valid
      pixels; ``learning_rate``; ``grad_norm``, before clipping; ``valid_fraction`` of the pixels.
      With a sample rate, ``accuracy`` and ``valid_fraction`` are those of the pixels that are kept.

    Raises:
      ConfigError: for a value out of range; from `step_fn`, as it is traced, when the batch does
        not divide, the objective does not fit the model's outputs (`Objective.check_outputs`), the
        state has moving averages and `ema_decay` is 0 or the other way round, or model and axis
        name do not fit.
    """
    objective = Objective() if objective is None else objective
    settings = StepSettings(**settings)
    given = objective

    def train_step(
        numbers: _Numbers, state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        schedule, tx, of_loss, ema_decay = numbers
        objective = given.with_numbers(of_loss)
        gradient_of_sum = _gradient_of_sum(model, objective, settings.frozen)
        _check_fit(model, axis_name, state, settings.ema_decay)
        image, label = batch["image"], batch["label"]
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        if objective.sample_rate < 1:
            key, sample_key = jax.random.split(key)
            label = objective.sampled(label, parallel.device_key(sample_key, axis_name))
        targets, scales = Targets(label, {}), {}
        if objective.has_own_targets:
            outputs = _output_shapes(model, state, image)
            targets = objective.targets(label, outputs)
            scales = objective.scales(targets, outputs, axis_name)

        rows = _Rows(image, targets)
        key = parallel.device_key(key, axis_name)
        if settings.accumulate_steps == 1:
            gradient, (sums, batch_stats) = gradient_of_sum(
                state.params, state.batch_stats, rows, key, scales
            )
        else:
            gradient, (sums, batch_stats) = _accumulated(
                gradient_of_sum, state, _micro_batches(rows, settings.accumulate_steps), key, scales
            )
        # Where rows are split, XLA would split the gradients of large kernels by their rows too.
        gradient, sums = parallel.global_sum((everywhere(gradient), sums), axis_name)
        pixels = parallel.global_sum(jnp.int32(label.size), axis_name)

        divisor = losses.safe_divisor(sums["weight"])
        loss = sums["loss"] / divisor
        if objective.reduction == "sum":
            divisor = parallel.global_sum(jnp.float32(len(label)), axis_name)
        gradient = jax.tree.map(lambda g: g / divisor, gradient)
        norm, rate = optax.tree.norm(gradient), schedule(state.step)
        state = _updated(state, tx, gradient, batch_stats, rate, (loss, norm), ema_decay)
        valid, correct, pixels = (
            count.astype(jnp.float32) for count in (sums["valid"], sums["correct"], pixels)
        )
        metrics = {
            "loss": loss,
            "accuracy": correct / losses.safe_divisor(valid),
            "learning_rate": rate,
            "grad_norm": norm,
            "valid_fraction": valid / pixels,
        }
        return state, metrics

    numbers = _Numbers(schedule, tx, objective.numbers, np.float32(settings.ema_decay))
    return Partial(train_step, numbers)


class _Numbers(NamedTuple):
    """What a step computes with, a pytree of numbers."""

    schedule: Schedule
    tx: optax.GradientTransformation
    of_loss: dict
    ema_decay: np.ndarray | jax.Array


class _Rows(NamedTuple):
    """Images and what the outputs for them are compared with."""

    image: jax.Array
    targets: Targets


def _gradient_of_sum(model: nn.Module, objective: Objective, frozen: Sequence[str]) -> Callable:
    """Returns the function of a gradient and of what goes with it.

    It is ``(params, batch_stats, rows, key, scales) -> (gradient, (sums, batch_stats))``: the
    gradient of the loss summed over the rows, these and other sums, and the new statistics.
    """

    def loss_sum(params: dict, batch_stats: dict, rows: _Rows, key: jax.Array, scales: Scales):
        if frozen:
            params = _stop_gradient(params, frozen)
        prediction, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            normalize(rows.image, model.normalization),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        label = rows.targets.label
        weight = objective.weight(label, prediction.logits.shape[-1])
        total = objective.loss(prediction, rows.targets, scales)
        correct, valid = losses.pixel_accuracy(
            prediction.logits, label, ignore_label=objective.ignore_label
        )
        sums = {"loss": total, "weight": weight, "correct": correct, "valid": valid}
        return total, (sums, updates.get("batch_stats", batch_stats))

    return jax.grad(loss_sum, has_aux=True)


def _accumulated(
    gradient_of_sum: Callable, state: TrainState, micro_batches: _Rows, key: jax.Array, scales
) -> tuple[dict, tuple[dict, dict]]:
    """Returns what `gradient_of_sum` does, of one micro-batch after the other."""

    def add(carry, micro):
        total, batch_stats = carry
        number, rows = micro
        gradient, (sums, batch_stats) = gradient_of_sum(
            state.params, batch_stats, rows, jax.random.fold_in(key, number), scales
        )
        return (jax.tree.map(jnp.add, total, (gradient, sums)), batch_stats), None

    first = jax.tree.map(lambda x: x[0], micro_batches)
    gradient, (sums, _) = jax.eval_shape(
        gradient_of_sum, state.params, state.batch_stats, first, key, scales
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradient, sums))
    numbers = jnp.arange(len(micro_batches.image))
    ((gradient, sums), batch_stats), _ = jax.lax.scan(
        add, (zeros, state.batch_stats), (numbers, micro_batches)
    )
    return gradient, (sums, batch_stats)


def _updated(
    state: TrainState,
    tx: optax.GradientTransformation,
    gradient: dict,
    batch_stats: dict,
    rate: jax.Array,
    measured: tuple[jax.Array, ...],
    ema_decay: np.ndarray | jax.Array,
) -> TrainState:
    """Returns the state after a step; where not all numbers are finite, all but counters stays."""
    update, opt_state = tx.update(gradient, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, update)
    new = {"params": params, "batch_stats": batch_stats}
    ema = _moved_averages(state, new, ema_decay)
    good = _all_finite((*measured, new))
    changed = {**new, "opt_state": opt_state, "ema": ema}
    kept = jax.tree.map(
        lambda after, before: jnp.where(good, after, before),
        changed,
        {name: getattr(state, name) for name in changed},
    )
    is_first = ~good & (state.first_bad_step < 0)
    return state.replace(
        step=state.step + 1,
        first_bad_step=jnp.where(is_first, state.step, state.first_bad_step),
        **kept,
    )


def _output_shapes(model: nn.Module, state: TrainState, image: jax.Array) -> Prediction:
    """Returns the shapes of what the model returns in training; nothing is computed."""
    apply = partial(
        model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
    )
    pixels = jax.ShapeDtypeStruct(image.shape, jnp.float32)
    return jax.eval_shape(lambda v, x: apply(v, x)[0], state.variables(), pixels)


def _stop_gradient(params: Mapping, frozen: Sequence[str]) -> dict:
    """Cuts off the frozen parameters, so that XLA drops what only their gradient needs."""
    fixed = optimizer.frozen_parameters(params, frozen)
    return jax.tree.map(lambda p, cut: jax.lax.stop_gradient(p) if cut else p, params, fixed)


def _micro_batches(rows: _Rows, count: int) -> _Rows:
    """Returns each ``[N, ...]`` as ``[count, N / count, ...]``; micro-batch j has rows j, j +
    count, ...

    With this choice every device's rows are spread over all micro-batches in place, and under jit
    as under pmap they are the same.
    """
    size = len(rows.image)
    if size % count:
        raise ConfigError(
            f"a batch of {size} does not divide into accumulate_steps {count} micro-batches; "
            f"set batch_size to a multiple of {count}."
        )
    return jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(size // count, count, *x.shape[1:]), 0, 1), rows
    )


def _moved_averages(state: TrainState, new: dict, decay: jax.Array) -> dict | None:
    """Returns the moving averages after a step; None for a state without any."""
    if state.ema is None:
        return None
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda ema, value: ema + (1.0 - decay) * (value - ema), state.ema, new)


def _all_finite(tree) -> jax.Array:
    """Returns whether all numbers are finite.

    One test covers all small arrays, which are copied into one: with one test each, compiling takes
    a fifth longer. A copy of the large ones would be a copy of nearly all parameters.
    """
    leaves = [jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]
    small = jnp.concatenate([leaf for leaf in leaves if leaf.size < _LARGE])
    large = [leaf for leaf in leaves if leaf.size >= _LARGE]
    return jnp.stack([jnp.all(jnp.isfinite(part)) for part in (small, *large)]).all()


def _check_fit(
    model: nn.Module, axis_name: str | None, state: TrainState, ema_decay: float
) -> None:
    """Raises ConfigError when model, state and way of running do not go together."""
    model_axis = getattr(model, "batch_norm_axis", axis_name)
    if model_axis != axis_name:
        raise ConfigError(
            f"the model has batch_norm_axis {model_axis!r}, the step runs with axis {axis_name!r}; "
            "create the model with batch_norm_axis=parallel.batch_norm_axis."
        )
    if (state.ema is not None) != (ema_decay > 0):
        have = "no moving averages" if state.ema is None else "moving averages"
        raise ConfigError(
            f"the state has {have} and ema_decay is {ema_decay}; "
            f"create the state with ema={ema_decay > 0}."
        )
