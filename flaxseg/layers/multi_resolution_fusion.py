"""RefineNet's fusion of features of several resolutions."""

from collections.abc import Sequence

import flax.linen as nn
import jax
from flax.typing import Dtype, Initializer

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.classifier import classifier_init
from flaxseg.layers.resize import resize


class MultiResolutionFusion(nn.Module):
    """Convolves each input at its own resolution, resizes all to the largest and sums them.

    (Lin et al., "RefineNet", 2017, section 3.2, figure 2 c.) A single input is returned unchanged:
    there is nothing to fuse.

    Each input has a convolution without bias, named by its position: `conv1`, `conv2`, ...

    Attributes:
      features: channels of the output.
      kernel_size: of the convolutions; 3, or 1 for the light-weight fusion (Nekrasov et al.,
        "Light-Weight RefineNet", 2018).
      convolved: positions, from 1, of the inputs that have a convolution; None for all. The others
        must have `features` channels.
      align_corners: convention of the resizing, see `resize`; True as released.
      kernel_init: initialiser of the kernels; normal with deviation 0.01, as released, by default.
      dtype: dtype of the computation; that of the first input by default.
    """

    features: int
    kernel_size: int = 3
    convolved: Sequence[int] | None = None
    align_corners: bool | str = True
    kernel_init: Initializer = classifier_init
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, inputs: Sequence[jax.Array]) -> jax.Array:
        """Returns `[N, H, W, features]`.

        Args:
          inputs: at least one, each `[N, h, w, C]` with any h, w and C; H and W are the largest h
            and w.

        Raises:
          ValueError: there is no input, or one that is not convolved has other channels.
        """
        if not inputs:
            raise ValueError("inputs is empty; there must be at least one to fuse.")
        dtype = self.dtype or inputs[0].dtype
        if len(inputs) == 1:
            return inputs[0].astype(dtype)
        size = tuple(max(x.shape[axis] for x in inputs) for axis in (1, 2))
        fused = 0
        for position, x in enumerate(inputs, 1):
            if self.convolved is None or position in self.convolved:
                conv = AtrousConv(
                    self.features,
                    self.kernel_size,
                    kernel_init=self.kernel_init,
                    dtype=dtype,
                    name=f"conv{position}",
                )
                x = conv(x)
            elif x.shape[-1] != self.features:
                raise ValueError(
                    f"input {position} has {x.shape[-1]} channels and no convolution; it must have "
                    f"{self.features}, or be among convolved={tuple(self.convolved)}."
                )
            fused = fused + resize(x.astype(dtype), size, align_corners=self.align_corners)
        return fused
