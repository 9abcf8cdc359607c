"""Defines what every model returns."""

import flax.struct
import jax


@flax.struct.dataclass
class Prediction:
    """Holds the output of a segmentation model.

    Attributes:
      logits: `[N, H, W, num_classes]` float32 at the size of the input.
      auxiliary: logits of the other outputs that have a loss, by name, each at its own stride;
        empty in evaluation.
    """

    logits: jax.Array
    auxiliary: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
