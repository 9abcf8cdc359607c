"""Builds what is exported: a function from uint8 images to maps that needs nothing else."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export

from flaxseg.errors import ConfigError
from flaxseg.export.batch_norm_folding import fold_batch_norm
from flaxseg.export.file_card import OUTPUTS, export_card
from flaxseg.inference.forward import MAX_CLASSES
from flaxseg.layers import convolution_form, largest_class, normalize


def _check_request(
    model: nn.Module,
    variables: Mapping,
    size: Sequence[int],
    batch: int | None,
    outputs: Sequence[str],
) -> None:
    """Raises ConfigError for what cannot be exported in any format."""
    if len(size) != 2 or not all(isinstance(n, int) and n >= 1 for n in size):
        raise ConfigError(f"size is {size!r}; it must be (height, width), both at least 1.")
    if batch is not None and (not isinstance(batch, int) or batch < 1):
        raise ConfigError(f"batch is {batch!r}; it must be at least 1, or None for any number.")
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs or len(set(outputs)) != len(outputs):
        raise ConfigError(
            f"outputs is {tuple(outputs)!r}; give one or several of {', '.join(OUTPUTS)}, each "
            "once."
        )
    if "classes" in outputs and model.num_classes > MAX_CLASSES:
        raise ConfigError(
            f"the model has {model.num_classes} classes, and a class map is uint8; at most "
            f"{MAX_CLASSES} fit. Export its logits alone: outputs=('logits',)."
        )
    try:
        jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    except ValueError as error:
        raise ConfigError(f"the model takes no images of {size[0]} x {size[1]}: {error}") from error


def prepare(
    model: nn.Module,
    variables: Mapping,
    size: tuple[int, int],
    batch: int | None,
    outputs: Sequence[str],
    **card: Any,
) -> tuple[dict[str, Any], dict, jax.ShapeDtypeStruct]:
    """Checks what is asked for, and returns what every format needs.

    Args:
      model, variables, size, batch, outputs: as of `export_stablehlo`.
      **card: further arguments of `export_card`.

    Returns:
      The card; the variables with BatchNorm folded, and without those that have no part in
      evaluation; and the shape of the images.

    Raises:
      ConfigError: the size, batch or outputs are impossible.
      ValueError: names or colours do not fit the classes.
    """
    _check_request(model, variables, size, batch, outputs)
    described = export_card(model, size, batch, outputs, **card)
    one = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    count = export.symbolic_shape("batch")[0] if batch is None else batch
    image = jax.ShapeDtypeStruct((count, *size, 3), jnp.uint8)
    return described, fold_batch_norm(model, variables, one), image


def image_program(
    model: nn.Module, outputs: Sequence[str], form: str
) -> Callable[[Mapping, jax.Array], dict[str, jax.Array]]:
    """Returns `run(variables, image)`: image uint8 [N, H, W, 3] RGB -> `{name: [N, H, W] or
    [N, H, W, C]}` as in `OUTPUTS`.

    Unlike `flaxseg.inference.Segmenter` it runs the images of a batch together: their
    number may then be left open, and an accelerator is kept busy.

    Args:
      model: a flaxseg model.
      outputs: names in `OUTPUTS`.
      form: of its convolutions, see `flaxseg.layers.convolution_form`.
    """

    def run(variables: Mapping, image: jax.Array) -> dict[str, jax.Array]:
        with convolution_form(form):
            logits = model.apply(variables, normalize(image, model.normalization)).logits
        values = {
            "classes": lambda: largest_class(logits, form=form).astype(jnp.uint8),
            "probabilities": lambda: jax.nn.softmax(logits),
            "logits": lambda: logits,
        }
        return {name: values[name]() for name in outputs}

    return run
