"""Builds what is exported: a function from uint8 images to maps that needs nothing else."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxseg.errors import ConfigError
from flaxseg.export.batch_norm_folding import fold_batch_norm
from flaxseg.inference.forward import MAX_CLASSES
from flaxseg.layers import convolution_form, largest_class, normalize


class Output(NamedTuple):
    """Describes what can come out of an exported file.

    Attributes:
      dtype: its name.
      per_class: whether a pixel has a value for each class.
      meaning: in words.
    """

    dtype: str
    per_class: bool
    meaning: str


OUTPUTS = {
    "classes": Output("uint8", False, "index of the most likely class"),
    "probabilities": Output("float32", True, "probability of each class; they sum to 1"),
    "logits": Output("float32", True, "score of each class before the softmax"),
}


def check_request(
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


def folded_variables(model: nn.Module, variables: Mapping, size: Sequence[int]) -> dict:
    """Returns the model's variables with BatchNorm folded, and without those that have no part in
    evaluation."""
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return fold_batch_norm(model, variables, image)


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
