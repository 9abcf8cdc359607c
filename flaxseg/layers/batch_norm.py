"""Batch normalisation over the global batch, with float32 statistics whatever the dtype of the
computation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import lax

from flaxseg.layers.channels import along_channels
from flaxseg.layers.precision import at_least_float32


class BatchNorm(nn.Module):
    """Normalises each channel to zero mean and unit variance, then scales and shifts it.

    In training, `y = (x - mean) / sqrt(variance + epsilon) * scale + bias` with the mean and the
    biased variance of the batch (Ioffe and Szegedy, "Batch Normalization", 2015, algorithm 1), and
    the running statistics move: `running = momentum * running + (1 - momentum) * batch`. In
    evaluation and where `frozen`, the running statistics stand for those of the batch and do not
    change. Under `jax.jit` the batch is the global batch, however it is sharded; under `jax.pmap`
    pass the mapped axis.

    Parameters `scale`, `bias` and statistics (collection `batch_stats`) `mean`, `var` are `[C]`
    float32, as in `nn.BatchNorm`. Where `fold_batch_norm` has put a parameter `shift` in their
    place, `y = x + shift`, and with `factor` too, `y = x * factor + shift`.

    Attributes:
      momentum: share of the old running statistics that is kept, in [0, 1); PyTorch's momentum m
        is 1 - m here.
      epsilon: added to the variance.
      axis_name: mapped axis over which statistics are averaged; None outside `jax.pmap`.
      frozen: whether the running statistics are used in training too.
      dtype: dtype of the output; that of the input by default.

    Raises:
      ValueError: folded variables are used in training.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None
    frozen: bool = False
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if self.has_variable("params", "shift"):
            return self._folded(x, train)
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if train and not self.frozen:
            axes = tuple(range(x.ndim - 1))
            wide = x.astype(jnp.float32)
            mean, mean_of_squares = wide.mean(axes), (wide * wide).mean(axes)
            if self.axis_name is not None and not self.is_initializing():
                mean, mean_of_squares = lax.pmean((mean, mean_of_squares), self.axis_name)
            var = jnp.maximum(mean_of_squares - mean * mean, 0.0)
            if not self.is_initializing():
                keep = self.momentum
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * var
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * lax.rsqrt(var + self.epsilon)
        wide = x.astype(at_least_float32(x.dtype))
        y = wide * along_channels(factor, x) + along_channels(bias - mean * factor, x)
        return y.astype(self.dtype or x.dtype)

    def _folded(self, x: jax.Array, train: bool) -> jax.Array:
        if train:
            raise ValueError(
                "the variables come from fold_batch_norm, which is for evaluation; train with "
                "those that it was given."
            )
        y = x.astype(at_least_float32(x.dtype))
        if self.has_variable("params", "factor"):
            y = y * along_channels(self.get_variable("params", "factor"), y)
        y = y + along_channels(self.get_variable("params", "shift"), y)
        return y.astype(self.dtype or x.dtype)
