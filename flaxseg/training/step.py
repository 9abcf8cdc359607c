"""One training step and the prediction step, as pure functions of arrays.

There is one body for one device and for many, for `jax.jit` and for `jax.pmap`: sums and counts are
added up over the whole global batch (`parallel.global_sum`), then divided once.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxseg.errors import ConfigError
from flaxseg.layers import normalize, resize
from flaxseg.training import losses, optimizer, parallel
from flaxseg.training.schedules import Schedule
from flaxseg.training.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    schedule: Schedule,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    ignore_label: int = 255,
    auxiliary_weight: float | Mapping[str, float] = 0.4,
    resize_labels: bool = False,
    align_corners: bool = False,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    frozen: Sequence[str] = (),
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The function that `Parallel.compile_train_step` compiles.

    The loss is the sum over the valid pixels of the global batch over their count (with class
    weights: over the sum of their weights), the main output's plus each auxiliary output's times
    its weight. The learning rate is ``schedule(state.step)``.

    Accumulation cuts the batch into `accumulate_steps` micro-batches, rows ``j, j +
    accumulate_steps, ...``, one after the other in memory. Their sums and counts are added up
    before the one division: loss and gradient are those of the whole batch, however the ignored
    pixels are spread. Only BatchNorm sees the difference: it normalises over a micro-batch (over
    all devices), and moves its running statistics `accumulate_steps` times per step.

    When the loss, the gradient's norm, or anything in the new parameters or statistics is not
    finite, the step changes nothing but ``step`` and ``first_bad_step``. Nothing waits for that on
    the host: read ``first_bad_step`` when the metrics are read, and before a state is saved.

    Args:
      model: of the contract of `flaxseg.create_model`.
      tx: from `make_optimizer`: an update that is still to be multiplied by ``-learning_rate``.
      schedule: from `make_schedule`.
      label_smoothing: see `losses.segmentation_loss`.
      class_weights: see `losses.segmentation_loss`.
      ignore_label: see `losses.segmentation_loss`.
      auxiliary_weight: weight of every auxiliary output, or by name; 0 leaves it out. An output
        without an entry is an error, and so is an entry without an output; `"logits"` may give the
        main output another weight than 1.
      resize_labels: whether labels are resized to each auxiliary output (to the nearest, so that no
        class is invented; the mean is over the valid ones there), in place of the output's logits
        to the label.
      align_corners: how auxiliary logits, or labels, are resized.
      accumulate_steps: micro-batches per step, >= 1; they must divide each device's part of the
        batch.
      ema_decay: d of the moving averages ``ema += (1 - d) * (value - ema)``, in ``[0, 1)``; in
        early steps ``min(d, (1 + step) / (10 + step))``, so that they forget the initial values. 0:
        the state has none.
      frozen: see `optimizer.is_frozen`; no gradient is computed for these.

    Returns:
      ``step_fn(state, batch, axis_name=None) -> (state, metrics)``. The batch is ``{"image": uint8
      [N, H, W, 3], "label": integer [N, H, W]}``; `axis_name` is the name of the axis over devices
      under pmap. Metrics are float32 scalars: ``loss``; ``accuracy`` of the main output over valid
      pixels; ``learning_rate``; ``grad_norm``, before clipping; ``valid_fraction`` of the pixels.

    Raises:
      ConfigError: for a value out of range; from `step_fn`, as it is traced, when the batch does
        not divide, an auxiliary output has no weight or a weight no output, the state has moving
        averages and `ema_decay` is 0 or the other way round, or model and axis name do not fit.
    """
    if accumulate_steps < 1:
        raise ConfigError(f"accumulate_steps {accumulate_steps} must be at least 1.")
    if not 0.0 <= ema_decay < 1.0:
        raise ConfigError(f"ema_decay {ema_decay} must be in [0, 1); 0 switches it off.")

    def pixel_loss(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
        return losses.segmentation_loss(
            logits,
            label,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
            ignore_label=ignore_label,
            align_corners=align_corners,
        )

    def label_for(logits: jax.Array, label: jax.Array) -> jax.Array:
        if not resize_labels:
            return label
        return resize(
            label[..., None], logits.shape[1:3], method="nearest", align_corners=align_corners
        )[..., 0]

    def outputs_of(state: TrainState, batch: Batch):
        """The shapes of what the model gives in training; nothing is computed."""
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        apply = partial(model.apply, train=True, mutable=["batch_stats"])
        rngs = {"dropout": jax.random.key(0)}
        image = jax.ShapeDtypeStruct(batch["image"].shape, jnp.float32)
        return jax.eval_shape(lambda v, x: apply(v, x, rngs=rngs)[0], variables, image)

    def label_scales(state: TrainState, batch: Batch, axis_name: str | None):
        """What the sum over each auxiliary output's own valid pixels is multiplied by, as all is
        divided by the weight of those of the whole label."""

        def weight(logits, label):
            zeros = jnp.zeros((*label.shape, logits.shape[-1]))
            return parallel.global_sum(pixel_loss(zeros, label)[1], axis_name)

        outputs = outputs_of(state, batch)
        whole = weight(outputs.logits, batch["label"])
        return {
            name: whole / losses.safe_divisor(weight(logits, label_for(logits, batch["label"])))
            for name, logits in outputs.auxiliary.items()
        }

    def loss_sum(params, batch_stats, batch, key, scales):
        """The loss summed over the rows at hand, and what goes with it."""
        if frozen:
            params = _stop_gradient(params, frozen)
        prediction, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            normalize(batch["image"], model.normalization),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        total, weight = pixel_loss(prediction.logits, batch["label"])
        weights = _output_weights(auxiliary_weight, prediction.auxiliary)
        total *= weights.pop("logits")
        # Outputs share the label, hence the valid pixels and their weight, or are scaled to them.
        for name, factor in weights.items():
            if factor:
                logits = prediction.auxiliary[name]
                own = pixel_loss(logits, label_for(logits, batch["label"]))[0]
                total += factor * scales.get(name, 1.0) * own
        correct, valid = losses.pixel_accuracy(
            prediction.logits, batch["label"], ignore_label=ignore_label
        )
        sums = {"loss": total, "weight": weight, "correct": correct, "valid": valid}
        return total, (sums, updates.get("batch_stats", batch_stats))

    gradient_of_sum = jax.grad(loss_sum, has_aux=True)

    def gradient_and_sums(state, batch, key, scales):
        """Gradient and sums over the rows at hand, and the statistics after them."""
        if accumulate_steps == 1:
            gradient, (sums, batch_stats) = gradient_of_sum(
                state.params, state.batch_stats, batch, key, scales
            )
            return gradient, sums, batch_stats

        def add(carry, micro):
            total, batch_stats = carry
            number, rows = micro
            gradient, (sums, batch_stats) = gradient_of_sum(
                state.params, batch_stats, rows, jax.random.fold_in(key, number), scales
            )
            return (jax.tree.map(jnp.add, total, (gradient, sums)), batch_stats), None

        rows = _micro_batches(batch, accumulate_steps)
        first = jax.tree.map(lambda x: x[0], rows)
        gradient, (sums, _) = jax.eval_shape(
            gradient_of_sum, state.params, state.batch_stats, first, key, scales
        )
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (gradient, sums))
        (total, batch_stats), _ = jax.lax.scan(
            add, (zeros, state.batch_stats), (jnp.arange(accumulate_steps), rows)
        )
        return *total, batch_stats

    def train_step(
        state: TrainState, batch: Batch, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        _check_fit(model, axis_name, state, ema_decay)
        key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        scales = label_scales(state, batch, axis_name) if resize_labels else {}
        gradient, sums, batch_stats = gradient_and_sums(
            state, batch, parallel.device_key(key, axis_name), scales
        )
        gradient, sums = parallel.global_sum((gradient, sums), axis_name)
        pixels = parallel.global_sum(jnp.int32(batch["label"].size), axis_name)

        divisor = losses.safe_divisor(sums["weight"])
        gradient = jax.tree.map(lambda g: g / divisor, gradient)
        loss = sums["loss"] / divisor
        norm = optax.tree.norm(gradient)
        rate = schedule(state.step)

        update, opt_state = tx.update(gradient, state.opt_state, state.params)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, update)
        new = {"params": params, "batch_stats": batch_stats}
        ema = _moved_averages(state, new, ema_decay)
        good = _all_finite((loss, norm, new))
        changed = {**new, "opt_state": opt_state, "ema": ema}
        kept = jax.tree.map(
            lambda after, before: jnp.where(good, after, before),
            changed,
            {name: getattr(state, name) for name in changed},
        )
        is_first = ~good & (state.first_bad_step < 0)
        state = state.replace(
            step=state.step + 1,
            first_bad_step=jnp.where(is_first, state.step, state.first_bad_step),
            **kept,
        )
        valid = sums["valid"].astype(jnp.float32)
        metrics = {
            "loss": loss,
            "accuracy": sums["correct"] / losses.safe_divisor(valid),
            "learning_rate": rate,
            "grad_norm": norm,
            "valid_fraction": valid / pixels,
        }
        return state, metrics

    return train_step


def _stop_gradient(params: Mapping, frozen: Sequence[str]) -> dict:
    """`params` with the frozen ones cut off, so that XLA drops what only their gradient needs."""
    fixed = optimizer.frozen_parameters(params, frozen)
    return jax.tree.map(lambda p, cut: jax.lax.stop_gradient(p) if cut else p, params, fixed)


def _output_weights(
    weights: float | Mapping[str, float], auxiliary: Mapping[str, jax.Array]
) -> dict[str, float]:
    """The weight of `"logits"` and of each auxiliary output."""
    if not isinstance(weights, Mapping):
        return {"logits": 1.0, **dict.fromkeys(auxiliary, weights)}
    for name in auxiliary:
        if name not in weights:
            raise ConfigError(
                f"the model's auxiliary output {name!r} has no weight; auxiliary_weight has "
                f"{sorted(weights)}. Add it, 0 to leave it out."
            )
    for name in weights:
        if name not in auxiliary and name != "logits":
            raise ConfigError(
                f"auxiliary_weight names {name!r}, and the model's auxiliary outputs are "
                f"{sorted(auxiliary)}. Leave it out, or make the model with that output."
            )
    return {"logits": 1.0, **weights}


def _micro_batches(batch: Batch, count: int) -> dict[str, jax.Array]:
    """Each ``[N, ...]`` as ``[count, N / count, ...]``; micro-batch j has rows j, j + count, ...

    With this choice every device's rows are spread over all micro-batches in place, and under jit
    as under pmap they are the same.
    """
    size = batch["label"].shape[0]
    if size % count:
        raise ConfigError(
            f"a batch of {size} does not divide into accumulate_steps {count} micro-batches; "
            f"set batch_size to a multiple of {count}."
        )
    return {
        key: jnp.swapaxes(value.reshape(size // count, count, *value.shape[1:]), 0, 1)
        for key, value in batch.items()
    }


def _moved_averages(state: TrainState, new: dict, decay: float) -> dict | None:
    if state.ema is None:
        return None
    step = state.step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda ema, value: ema + (1.0 - decay) * (value - ema), state.ema, new)


def _all_finite(tree) -> jax.Array:
    """Whether all numbers are finite; one test of all of them, since one for each array would be a
    fifth of what there is to compile."""
    return jnp.all(
        jnp.isfinite(jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]))
    )


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
