"""Learning rates as functions of the step.

A schedule is a pure function of ``state.step``: a run that goes on from a checkpoint, or has
skipped an update, is at the rate that belongs to its step.
"""

import difflib
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.errors import ConfigError

Schedule = Callable[[jax.Array | int], jax.Array]

SCHEDULES = ("poly", "cosine", "step", "constant")


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
    r"""The learning rate at each step, float32.

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
      step_milestones: for ``step``, at least one: increasing step numbers > 0.
      step_factor: for ``step``, > 0.
      warmup_steps: >= 0 and < steps.

    Returns:
      A function from a step, int or integer array, to a float32 scalar. It can be called inside
      jit.

    Raises:
      ConfigError: for an unknown name, and for all values out of range at once.

    Examples:
      >>> schedule = make_schedule("poly", 0.01, 1000)
      >>> print(f"{schedule(0):.4f} {schedule(500):.4f} {schedule(1000):.4f}")
      0.0100 0.0054 0.0000

    References:
      Liu et al., ParseNet (2015), for poly; Loshchilov and Hutter, SGDR (2017), for cosine.
    """
    _check(name, learning_rate, steps, power, end_value, step_milestones, step_factor, warmup_steps)
    span = learning_rate - end_value
    milestones = np.asarray(step_milestones, np.int32)

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step)
        left = jnp.clip(1.0 - step.astype(jnp.float32) / steps, 0.0, 1.0)
        if name == "poly":
            rate = end_value + span * left**power
        elif name == "cosine":
            rate = end_value + span * 0.5 * (1.0 - jnp.cos(math.pi * left))
        elif name == "step":
            passed = jnp.sum(step >= milestones)
            rate = learning_rate * jnp.float32(step_factor) ** passed
        else:
            rate = jnp.float32(learning_rate)
        warm = jnp.minimum(1.0, (step.astype(jnp.float32) + 1.0) / (warmup_steps + 1.0))
        return (rate * warm).astype(jnp.float32)

    return schedule


def _check(
    name: str,
    learning_rate: float,
    steps: int,
    power: float,
    end_value: float,
    step_milestones: Sequence[int],
    step_factor: float,
    warmup_steps: int,
) -> None:
    """Raises ConfigError that lists all that is wrong."""
    problems = []
    if name not in SCHEDULES:
        near = difflib.get_close_matches(str(name), SCHEDULES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        problems.append(f"schedule {name!r} is not known; use one of {', '.join(SCHEDULES)}.{hint}")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        problems.append(f"learning_rate {learning_rate} must be a positive number.")
    if steps < 1:
        problems.append(f"steps {steps} must be at least 1.")
    if not power > 0:
        problems.append(f"power {power} must be > 0.")
    if name in ("poly", "cosine") and not 0 <= end_value <= learning_rate:
        problems.append(f"end_value {end_value} must be in [0, learning_rate {learning_rate}].")
    if name == "step":
        rising = all(a < b for a, b in zip((0, *step_milestones), step_milestones, strict=False))
        if not step_milestones or not rising:
            problems.append(
                f"step_milestones {tuple(step_milestones)} must be one or more increasing step "
                "numbers > 0."
            )
        if not step_factor > 0:
            problems.append(f"step_factor {step_factor} must be > 0.")
    if not 0 <= warmup_steps < max(steps, 1):
        problems.append(f"warmup_steps {warmup_steps} must be >= 0 and less than steps {steps}.")
    if problems:
        raise ConfigError("\n".join(problems))
