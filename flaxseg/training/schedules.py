"""Defines learning rates as functions of the step.

A schedule is a pure function of ``state.step``: a run that resumes from a checkpoint, or has
skipped an update, has the rate of its step.

The numbers of a schedule are the leaves of a pytree: a compiled step takes them as arguments (see
`flaxseg.training.numbers`), and schedules of one name share its program.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from flaxseg.settings import LARGEST_COUNT, Rule, above, check_rules, count_from, one_of

Schedule = Callable[[jax.Array | int], jax.Array]


def make_schedule(
    name: str,
    learning_rate: float,
    steps: int,
    *,
    power: float = 0.9,
    end_value: float = 0.0,
    step_milestones: Sequence[int] = (),
    step_factor: float = 0.1,
    warmup_steps: int = 0,
) -> Schedule:
    r"""Returns the function of the learning rate at each step.

    With base rate :math:`r`, end value :math:`e`, and :math:`s = t / \mathit{steps}`, step
    :math:`t` counted from 0:

    * ``poly``: :math:`e + (r - e)(1 - s)^{\mathit{power}}`, the rule of DeepLab and PSPNet
    * ``cosine``: :math:`e + (r - e)(1 + \cos \pi s) / 2`
    * ``step``: :math:`r \cdot \mathit{step\_factor}^k` with k the number of milestones :math:`\le
      t`
    * ``constant``: :math:`r`

    ``poly`` and ``cosine`` are at r for t = 0, reach e at t = steps, which is one after the last
    step, and stay there. Over the first ``warmup_steps`` steps the rate is multiplied by ``(t + 1)
    / (warmup_steps + 1)``: no step is lost at rate zero, and step ``warmup_steps`` is the first at
    the full rate.

    Args:
      name: one of `SCHEDULES`.
      learning_rate: base rate, > 0.
      steps: length of the run, >= 1.
      power: exponent of ``poly``, > 0.
      end_value: rate at the end of ``poly`` and ``cosine``, in ``[0, learning_rate]``.
      step_milestones: increasing step numbers > 0; ``step`` needs at least one.
      step_factor: for ``step``, > 0.
      warmup_steps: >= 0 and < steps.

    Returns:
      A function from a step, int or integer array, to a float32 scalar. It can be called inside
      jit. It is a pytree of its numbers.

    Raises:
      SettingsError: for all values out of range at once.

    Examples:
      >>> schedule = make_schedule("poly", 0.01, 1000)
      >>> print(f"{schedule(0):.4f} {schedule(500):.4f} {schedule(1000):.4f}")
      0.0100 0.0054 0.0000

    References:
      Liu et al., ParseNet (2015), for poly; Loshchilov and Hutter, SGDR (2017), for cosine.
    """
    values = {
        "name": name,
        "learning_rate": learning_rate,
        "steps": steps,
        "power": power,
        "end_value": end_value,
        "step_milestones": tuple(step_milestones),
        "step_factor": step_factor,
        "warmup_steps": warmup_steps,
    }
    check_rules(values, _rules(learning_rate, steps, is_step=name == "step"))
    numbers = {
        "learning_rate": learning_rate,
        "power": power,
        "end_value": end_value,
        "span": learning_rate - end_value,
        "step_factor": step_factor,
    }
    numbers = {key: np.float32(value) for key, value in numbers.items()}
    # Factors, as XLA makes of divisions by constants: a step of either kind has the same bits.
    numbers["per_step"] = np.float32(1) / np.float32(steps)
    numbers["per_warmup_step"] = np.float32(1) / np.float32(warmup_steps + 1.0)
    return Partial(_SHAPES[name], numbers, np.asarray(step_milestones, np.int32))


def _poly(numbers: dict, milestones: np.ndarray, step: jax.Array | int) -> jax.Array:
    left = _left(numbers, step)
    return _warmed(numbers, step, numbers["end_value"] + numbers["span"] * left ** numbers["power"])


def _cosine(numbers: dict, milestones: np.ndarray, step: jax.Array | int) -> jax.Array:
    wave = 1.0 - jnp.cos(math.pi * _left(numbers, step))
    return _warmed(numbers, step, numbers["end_value"] + numbers["span"] * 0.5 * wave)


def _step(numbers: dict, milestones: np.ndarray, step: jax.Array | int) -> jax.Array:
    passed = jnp.sum(jnp.asarray(step) >= milestones)
    return _warmed(
        numbers, step, numbers["learning_rate"] * lax.pow(numbers["step_factor"], passed)
    )


def _constant(numbers: dict, milestones: np.ndarray, step: jax.Array | int) -> jax.Array:
    return _warmed(numbers, step, numbers["learning_rate"])


_SHAPES = {"poly": _poly, "cosine": _cosine, "step": _step, "constant": _constant}
SCHEDULES = tuple(_SHAPES)


def _left(numbers: dict, step: jax.Array | int) -> jax.Array:
    """Returns the share of the run that is still to come."""
    return jnp.clip(1.0 - jnp.asarray(step).astype(jnp.float32) * numbers["per_step"], 0.0, 1.0)


def _warmed(numbers: dict, step: jax.Array | int, rate: jax.Array) -> jax.Array:
    """Returns the rate, smaller in the first steps."""
    share = (jnp.asarray(step).astype(jnp.float32) + 1.0) * numbers["per_warmup_step"]
    return (rate * jnp.minimum(1.0, share)).astype(jnp.float32)


def _rules(learning_rate: float, steps: int, *, is_step: bool) -> dict[str, Rule]:
    """Returns the rule of each argument of `make_schedule`."""

    def end_value(value: float) -> str:
        return "" if 0 <= value <= learning_rate else f"in [0, learning_rate {learning_rate}]"

    def milestones(value: tuple[int, ...]) -> str:
        rising = all(a < b for a, b in zip((0, *value), value, strict=False))
        whole = all(number <= LARGEST_COUNT and number == int(number) for number in value)
        good = rising and whole and (value or not is_step)
        return "" if good else "increasing step numbers above 0, such as (400, 500)"

    def warmup_steps(value: int) -> str:
        return "" if 0 <= value < max(steps, 1) else f"at least 0 and less than steps {steps}"

    return {
        "name": one_of(*SCHEDULES),
        "learning_rate": above(0),
        "steps": count_from(1),
        "power": above(0),
        "end_value": end_value,
        "step_milestones": milestones,
        "step_factor": above(0),
        "warmup_steps": warmup_steps,
    }
