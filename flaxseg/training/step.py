"""One training step and the prediction step, as pure functions of arrays.

There is one body for one device and for many, for `jax.jit` and for `jax.pmap`: sums and counts are
added up over the whole global batch (`parallel.global_sum`), then divided once.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from flaxseg.errors import ConfigError
from flaxseg.layers import normalize
from flaxseg.layers.split_rows import everywhere
from flaxseg.models.prediction import Prediction
from flaxseg.training import losses, optimizer, parallel
from flaxseg.training.losses import OutputLoss
from flaxseg.training.schedules import Schedule
from flaxseg.training.state import TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]

_OTHERS = "auxiliary"  # the entry of auxiliary outputs without one of their own
_DEFAULT_OUTPUTS = {"logits": OutputLoss(), _OTHERS: OutputLoss(weight=0.4)}
_TARGET = "target/"  # begins the names of targets among the arrays of a batch


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    schedule: Schedule,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    ignore_label: int = 255,
    reduction: str = "mean",
    sample_rate: float = 1.0,
    outputs: Mapping[str, OutputLoss] | None = None,
    accumulate_steps: int = 1,
    ema_decay: float = 0.0,
    frozen: Sequence[str] = (),
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The function that `Parallel.compile_train_step` compiles.

    The loss is the sum over all outputs of their weights times their means: of cross entropy, the
    sum over the valid pixels of the global batch over their count (with class weights: over the sum
    of their weights). The learning rate is ``schedule(state.step)``.

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
      outputs: the loss of each output: `"logits"` is the main one, the others are the model's
        auxiliary outputs by name, and `"auxiliary"` is for those without an entry of their own.
        None: cross entropy, of the main output with weight 1, of all others with 0.4.
      label_smoothing: of all outputs that are compared with the label by a loss that has it; see
        `losses.segmentation_loss`.
      class_weights: the same.
      ignore_label: see `losses.segmentation_loss`.
      reduction: `"mean"` as above, or `"sum"`: the gradient is that of the sum over the valid
        pixels of an image (with class weights: of their weighted terms), averaged over the images
        of the batch, as in Caffe's nets with ``normalize: false``. An image of S valid pixels has S
        times the gradient of its mean: a rate of 1e-10 for the sum is one of S * 1e-10, 1.9e-5 for
        500 x 375, for the mean, and a weight decay of d is one of d / S. What stays different is
        that an image with few valid pixels counts less. The ``loss`` among the metrics is the mean
        in both cases. A loss that is a mean over images is weighed as those over pixels are.
      sample_rate: see `losses.sample_pixels`; 1 keeps every pixel. ``accuracy`` and
        ``valid_fraction`` are those of the pixels that are kept.
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
        not divide, an output has no entry in `outputs` or an entry no output, an output that is
        compared with the label has not one channel per class, the state has moving averages and
        `ema_decay` is 0 or the other way round, or model and axis name do not fit.
    """
    if accumulate_steps < 1:
        raise ConfigError(f"accumulate_steps {accumulate_steps} must be at least 1.")
    if not 0.0 <= ema_decay < 1.0:
        raise ConfigError(f"ema_decay {ema_decay} must be in [0, 1); 0 switches it off.")
    if reduction not in losses.REDUCTIONS:
        raise ConfigError(f"reduction {reduction!r} must be one of {losses.REDUCTIONS}.")
    if not 0.0 < sample_rate <= 1.0:
        raise ConfigError(f"sample_rate {sample_rate} must be in (0, 1]; 1 keeps every pixel.")

    described = _DEFAULT_OUTPUTS if outputs is None else dict(outputs)
    _check_used(described, label_smoothing=label_smoothing, class_weights=class_weights)
    whole = [name for name, own in described.items() if own.weight and own.needs_whole_labels]
    if sample_rate < 1 and whole:
        raise ConfigError(
            f"sample_rate is {sample_rate}, and the losses of {', '.join(whole)} need whole "
            "labels; set it to 1."
        )
    terms = {
        name: own.terms(
            label_smoothing=label_smoothing, class_weights=class_weights, ignore_label=ignore_label
        )
        for name, own in described.items()
        if own.weight
    }
    all_plain = all(term.counts_label for own in terms.values() for term in own)

    def outputs_of(state: TrainState, batch: Batch):
        """The shapes of what the model gives in training; nothing is computed."""
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        apply = partial(model.apply, train=True, mutable=["batch_stats"])
        rngs = {"dropout": jax.random.key(0)}
        image = jax.ShapeDtypeStruct(batch["image"].shape, jnp.float32)
        return jax.eval_shape(lambda v, x: apply(v, x, rngs=rngs)[0], variables, image)

    def prepared(state: TrainState, batch: Batch, axis_name: str | None):
        """The batch with the targets of outputs that have their own, and what each of their sums is
        multiplied by, as all is divided by the weight of the whole label's valid pixels."""
        if all_plain:
            return batch, {}
        shapes = outputs_of(state, batch)
        whole = losses.label_weight(
            batch["label"],
            shapes.logits.shape[-1],
            class_weights=class_weights,
            ignore_label=ignore_label,
        )
        whole = losses.safe_divisor(parallel.global_sum(whole, axis_name))
        targets, scales = {}, {}
        for name, entry in _entries(described, shapes.auxiliary, outputs is not None).items():
            if entry not in terms or all(term.counts_label for term in terms[entry]):
                continue
            logits = _output(shapes, name)
            target = described[entry].target_of(
                batch["label"], logits.shape[1:3], shapes.logits.shape[-1], ignore_label
            )
            targets[_TARGET + name] = target
            zeros = jnp.zeros(logits.shape)  # counts are those of labels: the rest is not computed
            counts = [term.loss(zeros, target)[1] for term in terms[entry]]
            scales[name] = [
                whole / losses.safe_divisor(parallel.global_sum(own, axis_name)) for own in counts
            ]
        return {**batch, **targets}, scales

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
        weight = losses.label_weight(
            batch["label"],
            prediction.logits.shape[-1],
            class_weights=class_weights,
            ignore_label=ignore_label,
        )
        total = 0.0
        # Outputs share the label, hence the valid pixels and their weight, or are scaled to them.
        for name, entry in _entries(described, prediction.auxiliary, outputs is not None).items():
            own = terms.get(entry, ())
            if own:
                _check_classes(prediction, name, described[entry])
            target = batch.get(_TARGET + name, batch["label"])
            for term, scale in zip(own, scales.get(name, (1.0,) * len(own)), strict=True):
                factor = described[entry].weight * term.weight * scale
                total += factor * term.loss(_output(prediction, name), target)[0]
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
        if sample_rate < 1:
            key, sample_key = jax.random.split(key)
            sample_key = parallel.device_key(sample_key, axis_name)
            label = losses.sample_pixels(
                batch["label"], sample_key, sample_rate, ignore_label=ignore_label
            )
            batch = {**batch, "label": label}
        batch, scales = prepared(state, batch, axis_name)
        gradient, sums, batch_stats = gradient_and_sums(
            state, batch, parallel.device_key(key, axis_name), scales
        )
        # Where rows are split, XLA would split the gradients of large kernels by their rows too.
        gradient, sums = parallel.global_sum((everywhere(gradient), sums), axis_name)
        pixels = parallel.global_sum(jnp.int32(batch["label"].size), axis_name)

        divisor = losses.safe_divisor(sums["weight"])
        loss = sums["loss"] / divisor
        if reduction == "sum":
            divisor = parallel.global_sum(jnp.float32(len(batch["label"])), axis_name)
        gradient = jax.tree.map(lambda g: g / divisor, gradient)
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


def _output(prediction: Prediction, name: str) -> jax.Array:
    return prediction.logits if name == "logits" else prediction.auxiliary[name]


def _check_classes(prediction: Prediction, name: str, own: OutputLoss) -> None:
    """Raises ConfigError where an output is compared with a label that has other classes."""
    channels, classes = _output(prediction, name).shape[-1], prediction.logits.shape[-1]
    if own.target == "label" and channels != classes:
        raise ConfigError(
            f"the model's output {name!r} has {channels} channels, and the label {classes} "
            "classes; give it another target, or weight 0."
        )


def _entries(
    outputs: Mapping[str, OutputLoss], auxiliary: Iterable[str], all_needed: bool
) -> dict[str, str]:
    """For `"logits"` and each auxiliary output of a model the name of its entry in `outputs`.

    With `all_needed`, an `"auxiliary"` entry for a model without such outputs is an error.
    """
    names = ("logits", *auxiliary)
    entries = {name: name if name in outputs else _OTHERS for name in names}
    for name, entry in entries.items():
        if entry not in outputs or (name == "logits" and entry == _OTHERS):
            raise ConfigError(
                f"the model's output {name!r} has no loss; outputs has {sorted(outputs)}. Add it, "
                f"weight 0 leaves it out"
                + ("." if name == "logits" else f", or {_OTHERS!r} for all that are not named.")
            )
    for name, own in outputs.items():
        idle = name == _OTHERS and not (all_needed and own.weight)
        if name not in entries.values() and not idle:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"outputs has a loss for {name!r}, and the model's outputs are {list(names)}. "
                f"Leave it out, or make the model with that output.{hint}"
            )
    return entries


def _check_used(
    outputs: Mapping[str, OutputLoss],
    *,
    label_smoothing: float,
    class_weights: Sequence[float] | None,
) -> None:
    """Raises ConfigError where nothing is trained, or class weights or smoothing do nothing."""
    active = [own for own in outputs.values() if own.weight]
    if not active:
        raise ConfigError("no output has a loss of a weight above 0; give one of them a weight.")
    for name, given in (("class_weights", class_weights), ("label_smoothing", label_smoothing)):
        if given and not any(own.takes(name) for own in active):
            kinds = ", ".join(sorted({own.kind for own in active}))
            raise ConfigError(f"{name} is {given}, and no output's loss has it: {kinds}. Unset it.")


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
