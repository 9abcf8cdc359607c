"""ICNet's fusion of a coarse and a fine branch."""

from collections.abc import Callable

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.classifier import classifier
from flaxseg.layers.resize import resize


class CascadeFeatureFusion(nn.Module):
    """Computes `relu(bn(conv3x3(up(low))) + bn(conv1x1(high)))`, and logits of `up(low)` for a
    loss.

    (Zhao et al., "ICNet", 2018, section 3.3, figure 4.) The 3x3 convolution has rate 2, so that it
    sees as much of the coarse features as it would before their upsampling. The logits of cascade
    label guidance read the upsampled coarse features themselves, not the convolved ones.

    Attributes:
      features: channels of the output.
      num_classes: channels of the logits; None for a fusion without label guidance.
      norm: makes both normalisations; called as `norm(name=...)`.
      dtype: dtype of the computation; that of the input by default. Logits are float32.
    """

    features: int
    num_classes: int | None = None
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Dtype | None = None

    @nn.compact
    def __call__(
        self, low: jax.Array, high: jax.Array, *, train: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """Fuses two branches.

        Args:
          low: coarse features `[N, h, w, C]`, resized to those of `high` with corners aligned.
          high: fine features `[N, H, W, D]`.
          train: whether BatchNorm uses the statistics of the batch, and logits are wanted.

        Returns:
          `[N, H, W, features]`, and logits `[N, H, W, num_classes]` of the coarse branch or None:
          in evaluation nothing needs them.
        """
        low = resize(low, high.shape[1:3], align_corners=True)
        logits = None
        if self.num_classes is not None and (train or self.is_initializing()):
            logits = classifier(self.num_classes)(low)
        low = AtrousConv(self.features, 3, rate=2, dtype=self.dtype, name="low_conv")(low)
        low = self.norm(name="low_bn")(low, train=train)
        high = AtrousConv(self.features, 1, dtype=self.dtype, name="high_conv")(high)
        high = self.norm(name="high_bn")(high, train=train)
        return nn.relu(low + high), logits
