"""The residual network with large separable kernels in its last two stages.

Peng et al., "Large Kernel Matters", 2017, section 4.1.3 (ResNet-GCN).
"""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax

from flaxseg.backbones.resnet import ResidualUnit, ResNet
from flaxseg.layers.line_conv import LineConv


class GlobalBottleneck(ResidualUnit):
    """Sums two separable paths of a large kernel and expands the sum to `4 * features` by a 1x1
    convolution.

    Unlike in `flaxseg.layers.GlobalConvolution`, each convolution of a path has a BatchNorm and a
    ReLU. A `k x 1` convolution has the stride of the rows and a `1 x k` one that of the columns, so
    that a path of stride 2 returns every second cell of its output at stride 1.

    Attributes:
      kernel_size: k of the paths, odd.
      path_features: channels of the paths.
    """

    kernel_size: int = 7
    path_features: int = 128

    def _branch(self, x: jax.Array, conv: Callable[..., nn.Module], train: bool) -> jax.Array:
        def line(y: jax.Array, size: tuple[int, int], name: str) -> jax.Array:
            layer = LineConv(
                self.path_features,
                size,
                self.strides,
                self.rate,
                dtype=self.dtype,
                name=f"{name}_conv",
            )
            return nn.relu(self.norm(name=f"{name}_bn")(layer(y), train=train))

        column, row = (self.kernel_size, 1), (1, self.kernel_size)
        left = line(line(x, column, "left_vertical"), row, "left_horizontal")
        right = line(line(x, row, "right_horizontal"), column, "right_vertical")
        y = conv(4 * self.features, 1, name="conv3")(left + right)
        return self.norm(name="bn3")(y, train=train)


class ResNetGCN(ResNet):
    """Builds the last stages of a ResNet from `GlobalBottleneck`, with about as many parameters.

    The weights of a ResNet do not fit, and none were published: train it on ImageNet first.
    Attributes beyond those of `ResNet`:

      global_kernels: kernel sizes in the last stages, the very last at the end.
      global_features: channels of the paths in these stages.
    """

    global_kernels: Sequence[int] = (5, 7)
    global_features: Sequence[int] = (85, 128)

    def _block_of(self, stage: int) -> Callable[..., nn.Module]:
        first = len(self.stage_sizes) - len(self.global_kernels)
        if stage < first:
            return self.block
        return partial(
            GlobalBottleneck,
            kernel_size=self.global_kernels[stage - first],
            path_features=self._channels(self.global_features[stage - first]),
        )

    def _check(self) -> None:
        super()._check()
        if self.stride_unit != "first":
            raise ValueError(
                f"stride_unit is {self.stride_unit!r}; the stride of a ResNet-GCN lies in the "
                "first unit of a stage, so it must be 'first'."
            )
        if len(self.global_kernels) != len(self.global_features):
            raise ValueError(
                f"global_kernels {tuple(self.global_kernels)} and global_features "
                f"{tuple(self.global_features)} must have one number for each of the last stages."
            )


ResNet50GCN = partial(ResNetGCN, stage_sizes=(3, 4, 6, 3))
