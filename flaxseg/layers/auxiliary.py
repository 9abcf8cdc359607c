"""Gives a deeper stage a small head, and so a loss of its own in training."""

from collections.abc import Callable

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.classifier import classifier
from flaxseg.layers.conv_block import ConvBlock


class AuxiliaryHead(nn.Module):
    """Classifies after a 3x3 convolution block to a quarter of the channels and dropout.

    (Zhao et al., "Pyramid Scene Parsing Network", 2017, section 3.3; torchvision's `FCNHead`.)

    Attributes:
      num_classes: channels of the logits.
      dropout: rate of dropout before the classifier, in [0, 1).
      channel_dropout: whether dropout takes whole channels of an image and not single elements.
      norm: makes the normalisation; called as `norm(name=...)`.
      dtype: dtype of the block; the logits are float32.
    """

    num_classes: int
    dropout: float = 0.1
    channel_dropout: bool = False
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = ConvBlock(x.shape[-1] // 4, 3, norm=self.norm, dtype=self.dtype, name="block")(
            x, train=train
        )
        dropped_together = (1, 2) if self.channel_dropout else ()
        x = nn.Dropout(self.dropout, broadcast_dims=dropped_together)(x, deterministic=not train)
        return classifier(self.num_classes)(x)
