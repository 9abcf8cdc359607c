import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxseg.errors import ConfigError
from flaxseg.training import schedules
from flaxseg.training.schedules import make_schedule


def rates(schedule, steps) -> np.ndarray:
    return np.array([schedule(step) for step in steps])


def test_poly_is_the_papers_formula_from_end_to_end():
    schedule = make_schedule("poly", 0.007, 300, power=0.9)
    steps = [0, 1, 150, 299, 300, 1000]
    expected = [0.007 * max(0.0, 1 - t / 300) ** 0.9 for t in steps]
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-5)
    assert schedule(0) == np.float32(0.007)
    assert schedule(299) > 0
    assert schedule(300) == 0


def test_end_value_is_reached_and_kept():
    for name in ("poly", "cosine"):
        schedule = make_schedule(name, 1.0, 10, end_value=0.25)
        np.testing.assert_allclose(rates(schedule, [0, 10, 11]), [1.0, 0.25, 0.25], rtol=1e-6)
        assert np.all(np.diff(rates(schedule, range(11))) < 0)


def test_cosine_is_half_a_period():
    schedule = make_schedule("cosine", 2.0, 8)
    expected = [2.0 * (1 + math.cos(math.pi * t / 8)) / 2 for t in range(9)]
    np.testing.assert_allclose(rates(schedule, range(9)), expected, atol=1e-7)


def test_step_drops_at_each_milestone():
    schedule = make_schedule("step", 1.0, 10, step_milestones=(3, 7), step_factor=0.1)
    expected = [1.0] * 3 + [0.1] * 4 + [0.01] * 3
    np.testing.assert_allclose(rates(schedule, range(10)), expected, rtol=1e-6)


def test_constant_stays():
    schedule = make_schedule("constant", 0.3, 5)
    np.testing.assert_allclose(rates(schedule, [0, 4, 100]), 0.3, rtol=1e-6)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_warm_up_rises_in_a_line_to_the_schedule(name):
    options = {"step_milestones": (50,)} if name == "step" else {}
    plain = make_schedule(name, 1.0, 100, **options)
    warm = make_schedule(name, 1.0, 100, warmup_steps=4, **options)
    ratio = rates(warm, range(8)) / rates(plain, range(8))
    np.testing.assert_allclose(ratio, [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_inside_jit_it_is_the_same_float32(name):
    options = {"step_milestones": (2,)} if name == "step" else {}
    schedule = make_schedule(name, 0.1, 5, warmup_steps=1, **options)
    step = jnp.int32(3)
    traced = jax.jit(schedule)(step)
    assert traced.dtype == schedule(3).dtype == jnp.float32
    assert traced.shape == ()
    np.testing.assert_allclose(traced, schedule(3), rtol=1e-6)


def test_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"name is 'polly'.*Did you mean 'poly'\?"):
        make_schedule("polly", 0.1, 10)


def test_all_problems_are_listed_at_once():
    with pytest.raises(ConfigError) as error:
        make_schedule("poly", -1.0, 10, power=0.0, warmup_steps=10)
    for part in ("learning_rate is -1.0", "power is 0.0", "warmup_steps is 10"):
        assert part in str(error.value)


@pytest.mark.parametrize("milestones", [(), (0, 3), (3, 3), (5, 2)])
def test_milestones_must_rise(milestones):
    with pytest.raises(ConfigError, match="increasing"):
        make_schedule("step", 0.1, 10, step_milestones=milestones)


def test_examples():
    result = doctest.testmod(schedules)
    assert result.attempted > 0
    assert result.failed == 0
