import doctest

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_segmenter
from tiny_segmenter import TinySegmenter, tiny_batch

from flaxseg.errors import ConfigError, WeightsError
from flaxseg.inference import predict
from flaxseg.layers import normalize, resize
from flaxseg.training import losses, parallel, schedules, state, step
from flaxseg.training.losses import OutputLoss
from flaxseg.training.parallel import make_parallel
from flaxseg.training.schedules import make_schedule
from flaxseg.training.state import TrainState, create_state

SIZE = (9, 11)
STEPS = 4


def new_run(model: nn.Module, *, optimizer: dict | None = None, **options):
    """A state and a step function of `model`."""
    settings = {"head_lr_multiplier": 5.0, "weight_decay": 1e-3} | (optimizer or {})
    options = {"schedule": make_schedule("poly", 0.05, 10)} | options
    return tiny_segmenter.new_run(model, SIZE, optimizer=settings, **options)


_compiled: dict[str, tuple] = {}


def train(
    model: nn.Module,
    batches: list[dict],
    *,
    kind: str = "jit",
    devices: int = 1,
    begin: dict | None = None,
    **options,
) -> tuple[TrainState, list[dict]]:
    """State and metrics, on the host, after a step on each batch; `begin` has fields of the state
    to begin with."""
    key = repr((model, kind, devices, options))
    if key not in _compiled:
        across = make_parallel(kind, jax.devices()[:devices])
        start, step_fn = new_run(model.clone(batch_norm_axis=across.batch_norm_axis), **options)
        _compiled[key] = across, start, across.compile_train_step(step_fn)
    across, start, run = _compiled[key]
    now, metrics = across.put_state(start.replace(**(begin or {}))), []
    for batch in batches:
        now, measured = run(now, across.put_batch(batch))
        metrics.append(jax.device_get(measured))
    return across.get_state(now), metrics


def batches(count: int = STEPS, **options) -> list[dict]:
    return [tiny_batch(seed, **options) for seed in range(count)]


def all_close(got, wanted, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, wanted)


def all_equal(got, wanted) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


def all_finite(tree) -> bool:
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


FULL = {
    "ema_decay": 0.9,
    "label_smoothing": 0.1,
    "class_weights": (0.5, 1.0, 2.0, 1.0),
    "optimizer": {"grad_clip_norm": 0.5, "bias_lr_multiplier": 2.0, "nesterov": True},
}


@pytest.fixture(scope="module")
def one_device() -> tuple[TrainState, list[dict]]:
    return train(TinySegmenter(auxiliary=True), batches(), **FULL)


@pytest.mark.parametrize(
    ("kind", "devices"),
    [
        ("jit", 8),
        ("pmap", 8),
        pytest.param("pmap", 1, marks=pytest.mark.slow),
        pytest.param("jit", 2, marks=pytest.mark.slow),
    ],
)
def test_several_steps_are_the_same_on_any_devices_in_both_kinds(one_device, kind, devices):
    final, metrics = train(
        TinySegmenter(auxiliary=True), batches(), kind=kind, devices=devices, **FULL
    )
    all_close(metrics, one_device[1])
    all_close(final, one_device[0])
    assert final.step == STEPS
    assert final.first_bad_step == -1


def test_uneven_ignored_pixels_make_a_mean_per_device_differ(one_device):
    """The equality above would not tell a global mean from a mean of means on an even batch."""
    batch = batches()[0]
    per_device = [train(TinySegmenter(auxiliary=True), [one_row(batch, i)], **FULL) for i in (0, 7)]
    assert abs(per_device[0][1][0]["loss"] - per_device[1][1][0]["loss"]) > 0.05
    assert per_device[0][1][0]["valid_fraction"] < 0.2 < per_device[1][1][0]["valid_fraction"]


def one_row(batch: dict, index: int) -> dict:
    return {key: value[index : index + 1] for key, value in batch.items()}


@pytest.mark.usefixtures("no_leaked_tracers")
@pytest.mark.parametrize(
    "weights", [None, pytest.param((0.5, 1.0, 2.0, 0.25), marks=pytest.mark.slow)]
)
def test_first_step_equals_one_written_out_by_hand(weights):
    """Loss, metrics, SGD, multiplier and decay, with optax's loss and no code of the step."""
    model, batch = TinySegmenter(auxiliary=True), tiny_batch(3)
    settings = {"weight_decay": 0.01, "head_lr_multiplier": 5.0}
    outputs = {"logits": OutputLoss(), "auxiliary": OutputLoss(weight=0.3)}
    start, step_fn = new_run(model, optimizer=settings, outputs=outputs, class_weights=weights)
    label = jnp.asarray(batch["label"], jnp.int32)
    valid = label != 255
    weight = jnp.where(valid, jnp.asarray(weights or (1.0,) * 4)[jnp.where(valid, label, 0)], 0.0)

    def mean(logits):
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, label, 0))
        return jnp.sum(loss * weight) / jnp.sum(weight)

    def loss_of(params):
        prediction, updates = model.apply(
            {"params": params, "batch_stats": start.batch_stats},
            normalize(batch["image"], model.normalization),
            train=True,
            mutable=["batch_stats"],
        )
        auxiliary = resize(prediction.auxiliary["stride2"], SIZE, align_corners=False)
        total = mean(prediction.logits) + 0.3 * mean(auxiliary)
        return total, (prediction.logits, updates["batch_stats"])

    gradient_of = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (loss, (logits, batch_stats)), gradient = gradient_of(start.params)
    moved = {}
    for part, leaves in start.params.items():
        rate = 0.05 if part == "backbone" else 0.25

        def move(path, p, g, rate=rate):
            decay = 0.01 if path[-1].key == "kernel" else 0.0
            return p - rate * (g + decay * p)

        moved[part] = jax.tree.map_with_path(move, leaves, gradient[part])

    after, metrics = jax.jit(step_fn)(start, batch)
    all_close(after.params, moved)
    all_close(after.batch_stats, batch_stats)
    correct = (logits.argmax(-1) == label) & valid
    wanted = {
        "loss": loss,
        "accuracy": correct.sum() / valid.sum(),
        "learning_rate": 0.05,
        "grad_norm": optax.tree.norm(gradient),
        "valid_fraction": valid.mean(),
    }
    all_close(metrics, wanted)
    assert all(m.dtype == jnp.float32 and m.shape == () for m in metrics.values())


@pytest.mark.parametrize(
    ("kind", "devices"),
    [("jit", 1), pytest.param("jit", 2, marks=pytest.mark.slow), ("pmap", 2)],
)
def test_accumulation_equals_the_whole_batch_without_batch_norm(kind, devices):
    model = TinySegmenter(batch_norm=False, auxiliary=True)
    options = {"class_weights": (0.5, 1.0, 2.0, 1.0), "optimizer": {"grad_clip_norm": 0.5}}
    whole = train(model, batches(), **options)
    parts = train(model, batches(), kind=kind, devices=devices, accumulate_steps=4, **options)
    all_close(parts[1], whole[1])
    all_close(parts[0], whole[0])


def test_micro_batches_are_the_same_rows_on_any_devices_in_both_kinds():
    """With BatchNorm the rows of a micro-batch matter."""
    model = TinySegmenter()
    one = train(model, batches(), accumulate_steps=2)
    for kind in ("jit", "pmap"):
        all_close(train(model, batches(), kind=kind, devices=4, accumulate_steps=2)[0], one[0])
    whole = train(model, batches())
    difference = (
        one[0].batch_stats["backbone"]["bn"]["mean"]
        - whole[0].batch_stats["backbone"]["bn"]["mean"]
    )
    assert np.max(np.abs(difference)) > 1e-3


def test_moving_averages_follow_the_formula():
    start, _ = new_run(TinySegmenter(), ema_decay=0.3)
    expected = start.variables()
    for t in range(STEPS):
        now, _ = train(TinySegmenter(), batches(t + 1), ema_decay=0.3)
        decay = min(0.3, (1 + t) / (10 + t))
        expected = jax.tree.map(
            lambda e, v, d=decay: d * e + (1 - d) * v, expected, now.variables()
        )
    all_close(now.ema, expected)
    assert now.eval_variables() is now.ema
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), now.ema, now.variables())
    assert max(jax.tree.leaves(moved)) > 1e-4


def test_without_moving_averages_the_variables_are_evaluated():
    start, _ = new_run(TinySegmenter())
    assert start.ema is None
    assert start.eval_variables()["params"] is start.params


@pytest.mark.parametrize(
    ("kind", "devices"),
    [pytest.param("jit", 1, marks=pytest.mark.slow), ("jit", 8), ("pmap", 8)],
)
def test_a_step_that_is_not_finite_changes_nothing_and_is_recorded_once(kind, devices):
    model = TinySegmenter(
        nan_above=2.3
    )  # a pixel of 255 is 2.25 to 2.65, one of 249 at most 2.53 in blue
    clean, bad = tiny_batch(0), tiny_batch(1)
    clean["image"] = np.minimum(clean["image"], 200)
    bad["image"] = np.minimum(bad["image"], 200)
    bad["image"][2, 4, 4] = 255  # on one device only
    options = {"kind": kind, "devices": devices, "ema_decay": 0.5}
    before, _ = train(model, [clean], **options)
    after, metrics = train(model, [clean, bad], **options)
    assert not np.isfinite(metrics[1]["loss"])
    assert after.step == 2
    assert after.first_bad_step == 1
    all_equal(after.replace(step=0, first_bad_step=0), before.replace(step=0, first_bad_step=0))

    later, metrics = train(model, [clean, bad, clean, bad, clean], **options)
    assert later.first_bad_step == 1
    assert later.step == 5
    assert np.isfinite(metrics[2]["loss"])
    assert all_finite(later)
    assert np.any(
        later.params["backbone"]["stem"]["kernel"] != before.params["backbone"]["stem"]["kernel"]
    )


def test_an_update_that_would_overflow_the_parameters_is_not_applied():
    def schedule(step):
        return jnp.where(step == 1, jnp.float32(3e38), 0.01)

    options = {"schedule": schedule, "optimizer": {"head_lr_multiplier": 1e6}}
    after, metrics = train(TinySegmenter(), batches(2), **options)
    assert np.isfinite(metrics[1]["loss"])
    assert np.isfinite(metrics[1]["grad_norm"])
    assert after.first_bad_step == 1
    assert all_finite(after)


@pytest.mark.parametrize("part", ["kernel", "bias"])
def test_an_overflow_is_found_in_arrays_that_are_tested_by_themselves_and_in_others(
    part, monkeypatch
):
    monkeypatch.setattr(step, "_LARGE", 10)
    options = {
        "schedule": lambda step: jnp.float32(1e30),
        "optimizer": {"lr_multipliers": {f"head/classifier/{part}": 1e15}},
    }
    after, metrics = train(TinySegmenter(), batches(1), **options)
    assert np.isfinite(metrics[0]["grad_norm"])
    assert after.first_bad_step == 0
    assert all_finite(after)
    smaller = options | {"optimizer": {}}
    assert train(TinySegmenter(), batches(1), **smaller)[0].first_bad_step == -1


def test_statistics_that_overflow_behind_a_finite_loss_are_not_kept():
    start, _ = new_run(TinySegmenter())
    huge = jax.tree.map(lambda x: x, start.params)
    huge["backbone"]["stem"] = {k: v * 1e25 for k, v in huge["backbone"]["stem"].items()}
    start = start.replace(params=huge)
    after, _ = train(TinySegmenter(), [tiny_batch(0)], begin={"params": huge})
    assert after.first_bad_step == 0
    all_equal(after.batch_stats, start.batch_stats)
    all_equal(after.params, start.params)


def test_a_batch_with_nothing_valid_is_no_error():
    batch = tiny_batch(0)
    batch["label"][:] = 255
    after, metrics = train(TinySegmenter(), [batch])
    assert after.first_bad_step == -1
    assert metrics[0]["loss"] == metrics[0]["accuracy"] == metrics[0]["valid_fraction"] == 0
    assert all_finite(after)


def test_ignored_pixels_of_any_other_value_change_nothing():
    batch, other = tiny_batch(0), tiny_batch(0)
    batch["label"] = batch["label"].astype(np.int32)
    other["label"] = np.where(batch["label"] == 255, -7, batch["label"])
    all_equal(train(TinySegmenter(), [batch]), train(TinySegmenter(), [other]))


def test_frozen_batch_norm_leaves_its_statistics_bit_identical():
    model = TinySegmenter(frozen_batch_norm=True)
    start, _ = new_run(model)
    after, _ = train(model, batches())
    all_equal(after.batch_stats, start.batch_stats)
    assert not np.array_equal(
        after.params["backbone"]["stem"]["kernel"], start.params["backbone"]["stem"]["kernel"]
    )
    moving, _ = train(TinySegmenter(), batches())
    assert not np.array_equal(
        moving.batch_stats["backbone"]["bn"]["mean"], start.batch_stats["backbone"]["bn"]["mean"]
    )


def test_frozen_parameters_stay_and_are_no_part_of_the_gradient_norm():
    start, _ = new_run(TinySegmenter())
    after, metrics = train(TinySegmenter(), batches(2), frozen=("backbone",))
    all_equal(after.params["backbone"], start.params["backbone"])
    assert not np.array_equal(
        after.params["head"]["classifier"]["kernel"], start.params["head"]["classifier"]["kernel"]
    )
    _, free = train(TinySegmenter(), batches(1))
    assert metrics[0]["loss"] == free[0]["loss"]
    assert metrics[0]["grad_norm"] < free[0]["grad_norm"]


def test_bfloat16_keeps_parameters_statistics_and_loss_in_float32():
    full, exact = train(TinySegmenter(), batches(), ema_decay=0.3)
    half, rough = train(TinySegmenter(dtype=jnp.bfloat16), batches(), ema_decay=0.3)
    assert jax.tree.map(lambda x: x.dtype, half) == jax.tree.map(lambda x: x.dtype, full)
    losses = np.array([[a["loss"], b["loss"]] for a, b in zip(exact, rough, strict=True)])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=0.02)
    assert np.any(losses[:, 0] != losses[:, 1])


def test_dropout_is_a_function_of_seed_and_step():
    model = TinySegmenter(dropout=0.5)
    same = [tiny_batch(0)] * 3
    still = {"schedule": lambda step: jnp.float32(0.0)}  # the parameters stay, only the key changes
    _, first = train(model, same, seed=1, **still)
    _, again = train(model, same, seed=1, **still)
    assert [m["loss"] for m in first] == [m["loss"] for m in again]
    assert len({float(m["loss"]) for m in first}) == 3
    start, _ = new_run(model, seed=1, **still)
    resumed, metrics = train(model, same[:1], begin={"step": jnp.int32(2)}, seed=1, **still)
    np.testing.assert_allclose(metrics[0]["loss"], first[2]["loss"], rtol=1e-6)
    assert resumed.step == 3
    np.testing.assert_array_equal(resumed.rng, start.rng)


def test_dropout_under_pmap_differs_from_device_to_device():
    model = TinySegmenter(dropout=0.5, batch_norm=False)
    batch = {key: np.repeat(value[-1:], 2, axis=0) for key, value in tiny_batch(0).items()}
    _, two = train(model, [batch], kind="pmap", devices=2)
    _, one = train(model, [one_row(batch, 0)], kind="pmap", devices=1)
    assert two[0]["loss"] != one[0]["loss"]


def test_learning_rate_comes_from_the_step_of_the_state():
    _, metrics = train(TinySegmenter(), [tiny_batch(0)], begin={"step": jnp.int32(7)})
    np.testing.assert_allclose(metrics[0]["learning_rate"], 0.05 * 0.3**0.9, rtol=1e-5)


def first_losses(model: nn.Module, *weights: dict[str, float]) -> list[float]:
    """Of steps with outputs of these weights each; without any, of the default ones."""
    outputs = [{k: OutputLoss(weight=w) for k, w in own.items()} or None for own in weights]
    runs = [new_run(model, outputs=own) for own in outputs]
    steps = [step_fn for _, step_fn in runs]
    # All in one program, which has the network once.
    losses_of = jax.jit(lambda state, batch: [step(state, batch)[1]["loss"] for step in steps])
    return losses_of(runs[0][0], tiny_batch(0))


def test_outputs_have_weights_by_name_or_that_of_all_auxiliary_ones():
    none, half, whole, by_all, named_first, default, *main = first_losses(
        TinySegmenter(auxiliary=True),
        {"logits": 1.0, "stride2": 0.0},
        {"logits": 1.0, "stride2": 0.5},
        {"logits": 1.0, "stride2": 1.0},
        {"logits": 1.0, "auxiliary": 0.5},
        {"logits": 1.0, "auxiliary": 0.0, "stride2": 0.5},
        {},
        {"logits": 0.0, "stride2": 1.0},
        {"logits": 0.5, "stride2": 1.0},
    )
    np.testing.assert_allclose(half, (none + whole) / 2, rtol=1e-6)
    assert abs(whole - none) > 0.1
    assert by_all == half
    assert named_first == half
    np.testing.assert_allclose(default, none + 0.4 * (whole - none), rtol=1e-6)
    np.testing.assert_allclose(main[1], (main[0] + whole) / 2, rtol=1e-6)
    assert abs(whole - main[0]) > 0.1


@pytest.mark.parametrize(
    ("kind", "devices"), [("jit", 1), pytest.param("pmap", 2, marks=pytest.mark.slow)]
)
def test_a_summed_loss_is_the_mean_at_an_equivalent_rate_and_decay(kind, devices):
    batch = tiny_batch(0)
    share = float((batch["label"] != 255).sum() / len(batch["label"]))  # valid pixels of an image
    model = TinySegmenter(batch_norm=False)
    mean, mean_metrics = train(model, [batch] * 3, kind=kind, devices=devices)
    total, sum_metrics = train(
        model,
        [batch] * 3,
        kind=kind,
        devices=devices,
        reduction="sum",
        schedule=make_schedule("poly", 0.05 / share, 10),
        optimizer={"weight_decay": 1e-3 * share},
    )
    all_close(total.params, mean.params, rtol=1e-4)
    for one, other in zip(mean_metrics, sum_metrics, strict=True):
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-4)
        np.testing.assert_allclose(other["grad_norm"], share * one["grad_norm"], rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "devices"), [("jit", 1), pytest.param("pmap", 2, marks=pytest.mark.slow)]
)
def test_sampling_keeps_a_share_of_the_pixels_and_trains_on_these_alone(kind, devices):
    batch = tiny_batch(0, hw=(33, 33))
    batch["label"] = np.where(batch["label"] == 255, 0, batch["label"]).astype(np.uint8)
    model = TinySegmenter()
    options = {"kind": kind, "devices": devices, "sample_rate": 0.3}
    first, metrics = train(model, [batch, batch], **options)
    shares = [float(m["valid_fraction"]) for m in metrics]
    assert all(0.27 < share < 0.33 for share in shares)
    assert shares[0] != shares[1]
    again, _ = train(model, [batch, batch], **options)
    all_equal(again.params, first.params)
    whole, _ = train(model, [batch, batch], kind=kind, devices=devices)
    assert any(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(first.params), strict=True)
    )


def test_sampled_pixels_keep_their_label():
    label = tiny_batch(0)["label"]
    sampled = losses.sample_pixels(label, jax.random.key(0), 0.5)
    kept = sampled != 255
    assert sampled.dtype == label.dtype
    assert 0.4 < kept.sum() / (label != 255).sum() < 0.6
    np.testing.assert_array_equal(sampled[kept], label[kept])
    np.testing.assert_array_equal(losses.sample_pixels(label, jax.random.key(0), 1.0), label)
    with pytest.raises(ConfigError, match="it must be more than 0 and at most 1"):
        losses.sample_pixels(label, jax.random.key(0), 0.0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"logits": 1.0}, "no loss for the model's output 'stride2'.*, or 'auxiliary' for all"),
        ({"stride2": 1.0}, "no loss for the model's output 'logits'"),
        ({"auxiliary": 1.0}, "no loss for the model's output 'logits'"),
        (
            {"logits": 1.0, "stride2": 1.0, "stride4": 0.0},
            r"outputs.stride4 is a loss for an output .* it has logits, stride2\..*mean 'stride2'",
        ),
        (
            {"logits": 1.0, "stride2": 1.0, "auxiliary": 0.4},
            "outputs.auxiliary is a loss for an output",
        ),
        ({"logits": 0.0, "auxiliary": 0.0}, "a weight above 0"),
    ],
)
def test_outputs_and_their_losses_fit_together(weights, message):
    with pytest.raises(ConfigError, match=message):
        first_losses(TinySegmenter(auxiliary=True), weights)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 2.0, 0.25)])
def test_labels_can_be_resized_to_auxiliary_outputs(weights, align_corners):
    """The auxiliary loss is the mean over the valid cells of the smaller label, with optax's loss
    and indices written out."""
    model, batch = TinySegmenter(auxiliary=True), tiny_batch(3)
    start, step_fn = new_run(
        model,
        outputs={
            "stride2": OutputLoss(resize_labels=True, align_corners=align_corners),
            "logits": OutputLoss(weight=0.0),
        },
        class_weights=weights,
    )
    prediction, _ = model.apply(
        start.variables(),
        normalize(batch["image"], model.normalization),
        train=True,
        mutable=["batch_stats"],
    )
    logits = prediction.auxiliary["stride2"]
    picked = []
    for n, m in zip(SIZE, logits.shape[1:3], strict=True):
        if align_corners:
            picked.append(np.int32(np.arange(m) * (n - 1) / (m - 1) + 0.5))
        else:
            picked.append(np.int32((np.arange(m) + 0.5) * n / m))
    assert logits.shape[1:3] != SIZE
    label = batch["label"].astype(np.int32)[:, picked[0]][:, :, picked[1]]
    valid = label != 255
    safe = np.where(valid, label, 0)
    weight = valid * np.asarray(weights or (1.0,) * 4)[safe]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, safe)
    measured = jax.jit(lambda state, batch: step_fn(state, batch)[1]["loss"])(start, batch)
    np.testing.assert_allclose(measured, (loss * weight).sum() / weight.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "devices", "accumulate_steps"),
    [
        pytest.param("jit", 2, 1, marks=pytest.mark.slow),
        pytest.param("pmap", 4, 1, marks=pytest.mark.slow),
        ("pmap", 2, 2),
    ],
)
def test_resized_labels_give_the_same_step_on_many_devices_and_in_micro_batches(
    kind, devices, accumulate_steps
):
    model = TinySegmenter(batch_norm=False, auxiliary=True)
    outputs = {"logits": OutputLoss(), "stride2": OutputLoss(weight=0.4, resize_labels=True)}
    options = {"outputs": outputs, "class_weights": (0.5, 1.0, 2.0, 1.0)}
    one = train(model, batches(2), **options)
    spread = {"kind": kind, "devices": devices, "accumulate_steps": accumulate_steps}
    many = train(model, batches(2), **spread, **options)
    all_close(many[1], one[1])
    all_close(many[0], one[0])


MANY = {
    "logits": OutputLoss(kind="cross_entropy + 0.5 * dice"),
    "stride2": OutputLoss(weight=0.4, kind="ohem(threshold=0.4, min_kept=3)", resize_labels=True),
    "border": OutputLoss(weight=0.1, kind="focal(alpha=0.25)", target="border(radius=1)"),
}


@pytest.fixture(scope="module")
def many_losses() -> tuple[TrainState, list[dict]]:
    return train(TinySegmenter(batch_norm=False, auxiliary=True, border=True), [rows(8)], **WITH)


def rows(size: int) -> dict:
    """A batch whose images have regions, and whose first has no valid pixel."""
    batch = tiny_batch(0, size=size)
    label = batch["label"][:, ::4, ::4].repeat(4, 1).repeat(4, 2)[:, : SIZE[0], : SIZE[1]]
    label[0] = 255
    return {**batch, "label": label}


WITH = {"outputs": MANY, "class_weights": (0.5, 1.0, 2.0, 1.0), "label_smoothing": 0.1}


def test_losses_of_several_kinds_and_targets_are_the_sum_of_their_means(many_losses):
    model = TinySegmenter(batch_norm=False, auxiliary=True, border=True)
    batch = rows(8)
    start, _ = new_run(model)
    of_classes = {"class_weights": WITH["class_weights"], "label_smoothing": 0.1}

    @jax.jit
    def parts(label):
        image = normalize(batch["image"], model.normalization)
        prediction = model.apply(start.variables(), image, train=True)
        main, aux = prediction.logits, prediction.auxiliary["stride2"]
        small = resize(label[..., None], aux.shape[1:3], method="nearest", align_corners=False)
        border = losses.border_target(label, 4, radius=1)
        return [
            (1.0, losses.segmentation_loss(main, label, **of_classes)),
            (0.5, losses.dice_loss(main, label)),
            (0.4, losses.ohem_loss(aux, small[..., 0], threshold=0.4, min_kept=3, **of_classes)),
            (0.1, losses.focal_loss(prediction.auxiliary["border"], border, alpha=0.25)),
        ]

    terms = parts(batch["label"])
    assert terms[1][1][1] == 7  # images
    wanted = sum(weight * total / count for weight, (total, count) in terms)
    np.testing.assert_allclose(many_losses[1][0]["loss"], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "devices", "accumulate_steps"),
    [pytest.param("jit", 2, 1, marks=pytest.mark.slow), ("pmap", 2, 2)],
)
def test_losses_of_several_kinds_give_the_same_step_on_many_devices_and_in_micro_batches(
    many_losses, kind, devices, accumulate_steps
):
    model = TinySegmenter(batch_norm=False, auxiliary=True, border=True)
    spread = {"kind": kind, "devices": devices, "accumulate_steps": accumulate_steps}
    many = train(model, [rows(8)], **spread, **WITH)
    all_close(many[1], many_losses[1])
    all_close(many[0], many_losses[0])


def test_a_main_loss_over_images_leaves_the_mean_as_it_is_when_summed(many_losses):
    """With `reduction="sum"` the gradient is the mean's times the pixels of an image."""
    model, batch = TinySegmenter(batch_norm=False), tiny_batch(0)
    options = {"outputs": {"logits": OutputLoss(kind="dice")}}
    mean = train(model, [batch], **options)[1][0]
    total = train(model, [batch], reduction="sum", **options)[1][0]
    share = float((batch["label"] != 255).sum() / len(batch["label"]))
    np.testing.assert_allclose(total["loss"], mean["loss"], rtol=1e-6)
    np.testing.assert_allclose(total["grad_norm"], share * mean["grad_norm"], rtol=1e-5)
    assert 0 < mean["loss"] < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"outputs": {"logits": OutputLoss(kind="dice")}, "class_weights": (1.0,) * 4},
            r"class_weights is \(1.0, .*no output's loss has it: dice",
        ),
        (
            {"outputs": {"logits": OutputLoss(kind="focal")}, "label_smoothing": 0.1},
            "label_smoothing is 0.1, and no output's loss has it: focal",
        ),
        ({"outputs": MANY, "sample_rate": 0.5}, "the losses of border need whole labels"),
        (
            {"outputs": {"logits": OutputLoss(kind="dice + boundary")}, "sample_rate": 0.5},
            "the losses of logits need whole labels",
        ),
        (
            {"outputs": {**MANY, "border": OutputLoss(kind="focal")}},
            "outputs.border compares 1 channels with a label of 4 classes",
        ),
    ],
)
def test_losses_that_do_not_go_with_the_settings_are_refused(options, message):
    model = TinySegmenter(batch_norm=False, auxiliary=True, border=True)
    with pytest.raises(ConfigError, match=message):
        train(model, batches(1), **options)


@pytest.mark.slow
def test_two_images_are_learnt_by_heart():
    rng = np.random.default_rng(0)
    label = np.zeros((2, *SIZE), np.uint8)
    label[0, 2:6, 3:9], label[1, :, 5:], label[1, 7:, :] = 1, 2, 3
    colours = np.array([[40, 40, 40], [220, 60, 60], [60, 220, 60], [60, 60, 220]], np.uint8)
    image = colours[label] + rng.integers(0, 30, (2, *SIZE, 3), dtype=np.uint8)
    label[:, 0] = 255
    model = TinySegmenter(stride=1, features=16)
    schedule = make_schedule("poly", 0.2, 80)
    final, metrics = train(
        model,
        [{"image": image, "label": label}] * 80,
        schedule=schedule,
        optimizer={"head_lr_multiplier": 1.0},
    )
    assert metrics[-1]["accuracy"] > 0.98
    assert metrics[-1]["loss"] < 0.2 * metrics[0]["loss"]
    predicted = predict(model, final.variables(), image)
    assert np.mean((predicted == label)[label != 255]) > 0.95


def test_a_model_without_statistics_trains():
    after, metrics = train(TinySegmenter(batch_norm=False), batches(2), ema_decay=0.9)
    assert after.batch_stats == {}
    assert np.isfinite(metrics[-1]["loss"])


def test_what_does_not_fit_together_is_refused():
    start, step_fn = new_run(TinySegmenter())
    batch = tiny_batch(0)
    with pytest.raises(ConfigError, match="batch_norm_axis None, the step runs with axis 'data'"):
        step_fn(start, batch, "data")
    with pytest.raises(ConfigError, match="batch_norm_axis 'data', the step runs with axis None"):
        new_run(TinySegmenter(batch_norm_axis="data"))[1](start, batch)
    with pytest.raises(ConfigError, match="create the state with ema=True"):
        new_run(TinySegmenter(), ema_decay=0.5)[1](start, batch)
    with pytest.raises(ConfigError, match="a batch of 8 does not divide into accumulate_steps 3"):
        new_run(TinySegmenter(), accumulate_steps=3)[1](start, batch)
    with pytest.raises(ConfigError, match="accumulate_steps is 0"):
        new_run(TinySegmenter(), accumulate_steps=0)
    with pytest.raises(ConfigError, match=r"ema_decay is 1.0"):
        new_run(TinySegmenter(), ema_decay=1.0)
    with pytest.raises(ConfigError, match="reduction is 'total'; it must be one of"):
        new_run(TinySegmenter(), reduction="total")
    with pytest.raises(ConfigError, match=r"sample_rate is 1.5; it must be"):
        new_run(TinySegmenter(), sample_rate=1.5)


def test_a_state_is_a_function_of_its_seed():
    model, tx = TinySegmenter(), optax.identity()
    one, same, other = (create_state(model, tx, seed, SIZE) for seed in (1, 1, 2))
    all_equal(one, same)
    assert not np.array_equal(one.rng, other.rng)
    assert not np.array_equal(
        one.params["head"]["classifier"]["kernel"], other.params["head"]["classifier"]["kernel"]
    )
    assert one.rng.dtype == jnp.uint32
    assert one.step.dtype == one.first_bad_step.dtype == jnp.int32


def test_a_state_can_begin_with_given_variables_that_fit():
    model = TinySegmenter()
    tx = optax.identity()
    given = jax.tree.map(
        lambda x: np.asarray(x, np.float64) + 1, create_state(model, tx, 0, SIZE).variables()
    )
    begun = create_state(model, tx, 0, SIZE, variables=given)
    all_equal(begun.variables(), jax.tree.map(np.float32, given))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(begun.variables()))
    wrong = create_state(TinySegmenter(num_classes=7), tx, 0, SIZE).variables()
    del wrong["params"]["backbone"]["bn"]["scale"]
    with pytest.raises(WeightsError) as error:
        create_state(model, tx, 0, SIZE, variables=wrong)
    assert "params/head/classifier/kernel is (1, 1, 8, 7) and the model has (1, 1, 8, 4)" in str(
        error.value
    )
    assert "params/backbone/bn/scale is missing" in str(error.value)
    assert "in 3 of 10 arrays" in str(error.value)


def test_examples():
    for module in (step, state, parallel, schedules):
        assert doctest.testmod(module).failed == 0
