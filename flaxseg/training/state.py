"""Holds all that training carries from step to step, in one tree of arrays."""

from collections.abc import Mapping

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxseg.errors import WeightsError
from flaxseg.variable_paths import flatten


@flax.struct.dataclass
class TrainState:
    """Holds the state of a run; with the data iterator's it decides everything that follows.

    Attributes:
      step: int32, steps done, and the number of the step to come, counted from 0.
      params: parameters, float32.
      batch_stats: running statistics of the normalisations, float32; empty for a model without any.
      opt_state: the optimizer's.
      ema: ``{"params": ..., "batch_stats": ...}``, exponential moving averages of these two; None
        where they are not kept.
      rng: uint32, the data of the run's random key; it never changes, a step takes ``fold_in(key,
        step)``.
      first_bad_step: int32, the first step with a loss, a gradient or a result that was not finite,
        which was not applied; -1: none.
    """

    step: jax.Array
    params: dict
    batch_stats: dict
    opt_state: optax.OptState
    ema: dict | None
    rng: jax.Array
    first_bad_step: jax.Array

    def variables(self) -> dict:
        """Returns what ``model.apply`` takes: the parameters and statistics in training."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def eval_variables(self) -> dict:
        """Returns what to evaluate and share: the moving averages if kept, else `variables`."""
        return self.variables() if self.ema is None else self.ema


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: int,
    image_size: tuple[int, int],
    *,
    ema: bool = False,
    variables: Mapping | None = None,
) -> TrainState:
    """Returns the state before step 0.

    Args:
      model: of the contract of `flaxseg.create_model`.
      tx: the optimizer.
      seed: decides the initial parameters and everything that is random in training.
      image_size: (height, width) of the images the model is initialised with.
      ema: keep moving averages; they begin as the parameters themselves.
      variables: ``{"params": ..., "batch_stats": ...}`` to begin with in place of random ones;
        complete, of the model's shapes.

    Returns:
      A state whose arrays share no memory with `variables`.

    Raises:
      WeightsError: when `variables` are not the model's, naming each parameter that is missing,
        unknown or of another shape.
    """
    init_key, run_key = jax.random.split(jax.random.key(seed))
    image = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)

    def init(key: jax.Array) -> dict:
        fresh = model.init(key, jnp.zeros(image.shape, image.dtype))
        return {"params": fresh["params"], "batch_stats": fresh.get("batch_stats", {})}

    if variables is None:
        # Jitted, the forward pass that only serves to find the shapes is never run.
        variables = jax.jit(init)(init_key)
    else:
        given = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}
        _check_same_tree(given, jax.eval_shape(init, init_key))
        variables = jax.tree.map(lambda x: jnp.array(x, jnp.float32), given)

    def copy(tree: dict) -> dict:
        return jax.tree.map(jnp.copy, tree)

    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=jax.jit(tx.init)(variables["params"]),
        ema=copy(variables) if ema else None,
        rng=jax.random.key_data(run_key),
        first_bad_step=jnp.full((), -1, jnp.int32),
    )


def _check_same_tree(given: Mapping, wanted: Mapping) -> None:
    """Raises WeightsError where two trees of arrays differ in names or shapes."""
    given, wanted = ({k: np.shape(v) for k, v in flatten(t).items()} for t in (given, wanted))
    problems = [
        f"{k} is missing (the model has {wanted[k]})" for k in sorted(wanted.keys() - given)
    ]
    problems += [f"{k} {given[k]} is not in the model" for k in sorted(given.keys() - wanted)]
    problems += [
        f"{k} is {given[k]} and the model has {wanted[k]}"
        for k in sorted(wanted.keys() & given)
        if given[k] != wanted[k]
    ]
    if problems:
        shown = "; ".join(problems[:8]) + ("; ..." if len(problems) > 8 else "")
        raise WeightsError(
            f"the given variables do not fit the model in {len(problems)} of {len(wanted)} "
            f"arrays: {shown}. Create the model with the num_classes and options that the "
            "variables were made with."
        )
