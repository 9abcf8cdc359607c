"""The transposed convolution ("deconvolution", "up-convolution") with parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer

from flaxseg.layers.bilinear_deconv import transposed_conv
from flaxseg.layers.channels import along_channels


class TransposedConv(nn.Module):
    """Runs `transposed_conv`, without padding, and adds a bias.

    Parameters are `kernel` `[k, k, C, features]` and `bias` `[features]`, both float32. With a
    kernel as large as the stride, every cell becomes a square of its own.

    Attributes:
      features: channels of the output.
      kernel_size: of the square kernel.
      strides: the factor of upsampling.
      kernel_init: initialiser of the kernel.
      dtype: dtype of the computation and the output; that of the input by default.
    """

    features: int
    kernel_size: int
    strides: int = 1
    kernel_init: Initializer = nn.initializers.he_normal()
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[N, (H - 1) * strides + k, (W - 1) * strides + k, features]` of `[N, H, W,
        C]`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        dtype = self.dtype or x.dtype
        y = transposed_conv(x.astype(dtype), kernel.astype(dtype), self.strides)
        return y + along_channels(bias.astype(dtype), y)
