"""A compiled step takes its plain numbers as arguments."""

import doctest

import jax
import numpy as np
import pytest
import tiny_segmenter
from tiny_segmenter import TinySegmenter, tiny_batch

from flaxseg.training import numbers
from flaxseg.training.losses import OutputLoss
from flaxseg.training.parallel import make_parallel
from flaxseg.training.schedules import make_schedule

SIZE = (9, 11)
POLY = {"learning_rate": 0.05, "steps": 10, "power": 0.9, "end_value": 0.01, "warmup_steps": 2}
OPTIMIZER = {
    "momentum": 0.9,
    "weight_decay": 1e-3,
    "grad_clip_norm": 0.5,
    "head_lr_multiplier": 10.0,
    "bias_lr_multiplier": 2.0,
}
LOSS = {
    "label_smoothing": 0.1,
    "class_weights": (0.5, 1.0, 2.0, 1.0),
    "outputs": {"logits": OutputLoss(1.0), "auxiliary": OutputLoss(0.4)},
    "ema_decay": 0.9,
}
OTHER_POLY = {"learning_rate": 1.0, "steps": 777, "power": 2.0, "end_value": 0.5, "warmup_steps": 9}
OTHER_OPTIMIZER = {
    "momentum": 0.5,
    "weight_decay": 0.1,
    "grad_clip_norm": 3.0,
    "head_lr_multiplier": 7.0,
    "bias_lr_multiplier": 3.0,
}
OTHER_LOSS = {
    "label_smoothing": 0.3,
    "class_weights": (1.0, 0.0, 4.0, 2.0),
    "outputs": {"logits": OutputLoss(2.0), "auxiliary": OutputLoss(0.1)},
    "ema_decay": 0.5,
}


def new_run(schedule=None, optimizer=None, loss=None, kind="jit", name="poly", seed=0):
    """Devices, a state and a step with other values in place of those above."""
    across = make_parallel(kind, jax.devices()[:2])
    start, step = tiny_segmenter.new_run(
        TinySegmenter(auxiliary=True, batch_norm_axis=across.batch_norm_axis),
        SIZE,
        schedule=make_schedule(name, **(POLY | (schedule or {}))),
        optimizer=OPTIMIZER | (optimizer or {}),
        seed=seed,
        **(LOSS | (loss or {})),
    )
    return across, start, step


def program(*settings, **options) -> str:
    """The text of the compiled step's program."""
    across, start, step = new_run(*settings, **options)
    lowered = across.compile_train_step(step).lower(
        across.put_state(start), across.put_batch(tiny_batch(0))
    )
    return lowered.as_text()


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_runs_that_differ_in_plain_numbers_have_one_program(kind):
    others = program(OTHER_POLY, OTHER_OPTIMIZER, OTHER_LOSS, kind=kind, seed=1)
    assert others == program(kind=kind)


@pytest.mark.parametrize(
    ("name", "schedule", "other"),
    [
        ("cosine", {}, OTHER_POLY),
        ("constant", {}, OTHER_POLY),
        (
            "step",
            {"step_milestones": (3, 7)},
            {**OTHER_POLY, "step_milestones": (40, 50), "step_factor": 0.5},
        ),
    ],
)
def test_schedules_of_a_kind_have_one_program(name, schedule, other):
    assert program(schedule, name=name) == program(other, name=name)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_optimizers_of_a_kind_have_one_program(name):
    other = {**OTHER_OPTIMIZER, "name": name, "eps": 1e-3}
    with jax.numpy_dtype_promotion("standard"):  # Optax raises a float to the power of a count
        assert program(None, other) == program(None, {"name": name})


@pytest.mark.parametrize(
    "settings",
    [
        (None, {"momentum": 0.0}),
        (None, {"weight_decay": 0.0}),
        (None, {"grad_clip_norm": 0.0}),
        (None, {"bias_lr_multiplier": 1.0}),
        (None, None, {"label_smoothing": 0.0}),
        (None, None, {"class_weights": None}),
        (None, None, {"outputs": {"logits": OutputLoss(), "auxiliary": OutputLoss(0.0)}}),
    ],
    ids=str,
)
def test_what_a_number_switches_off_is_not_in_the_program(settings):
    assert len(program(*settings)) < len(program())


def test_a_compiled_step_computes_with_its_own_numbers():
    """As the same step does where they are constants; another one was compiled before it."""
    for settings in ((), (OTHER_POLY, OTHER_OPTIMIZER, OTHER_LOSS)):
        across, start, step = new_run(*settings)
        got, metrics = across.compile_train_step(step)(
            across.put_state(start), across.put_batch(tiny_batch(0))
        )
        wanted, expected = jax.jit(lambda *given, step=step: step(*given))(start, tiny_batch(0))
        for a, b in zip(
            jax.tree.leaves((got, metrics)), jax.tree.leaves((wanted, expected)), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_doctest():
    assert doctest.testmod(numbers).failed == 0
