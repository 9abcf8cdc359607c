"""Large kernels for scores, and the refinement of scores at boundaries.

(Peng et al., "Large Kernel Matters", 2017, sections 3.1 and 3.2.)
"""

import flax.linen as nn
import jax
from flax.typing import Dtype, Initializer

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.classifier import classifier_init
from flaxseg.layers.line_conv import LineConv, check_odd

KINDS = ("global", "baseline", "trivial", "stack")


class GlobalConvolution(nn.Module):
    """Sees a k x k window through two separable paths: `k x 1` then `1 x k`, `1 x k` then `k x 1`.

    The paths are summed; nothing is normalised or rectified in between, so the layer is linear: a
    k x k kernel of low rank for `O(2 / k)` of its cost. Its two convolutions that read the input
    are `left_vertical` and `right_horizontal`, the others `left_horizontal` and `right_vertical`.

    >>> layer = GlobalConvolution(features=21, kernel_size=15)
    >>> scores, _ = layer.init_with_output(jax.random.key(0), jnp.ones((1, 16, 16, 64)))
    >>> scores.shape
    (1, 16, 16, 21)

    Attributes:
      features: channels of the output, and of what is between the two convolutions of a path.
      kernel_size: k, odd. With `k >= 2 n - 1`, every one of n x n cells sees every other.
      kind: `"global"`, or what the paper compares with: `"baseline"`, a 1x1 convolution
        (`kernel_size` has no effect); `"trivial"`, a k x k one; `"stack"`, `(k - 1) / 2`
        convolutions of 3x3 without ReLU, which see as much (tables 1 to 4).
      stack_features: channels between the convolutions of a stack; those of the input by default.
      use_bias: whether each convolution has a bias.
      kernel_init: initialiser of the kernels. LeCun's by default, because no ReLU halves what goes
        through; the paper does not say.
      dtype: dtype of the computation and the output; that of the input by default.

    Raises:
      ValueError: the kernel is even or below 1, or a stack's below 3; or the kind is unknown.
    """

    features: int
    kernel_size: int = 15
    kind: str = "global"
    stack_features: int | None = None
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[N, H, W, features]` of `x` `[N, H, W, C]`."""
        k = self.kernel_size
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}.")
        check_odd(k)
        if self.kind == "stack" and k < 3:
            raise ValueError(f"kernel_size is {k}; a stack of 3x3 convolutions needs 3 or more.")
        common = {
            "use_bias": self.use_bias,
            "kernel_init": self.kernel_init,
            "dtype": self.dtype,
        }
        if self.kind == "global":
            left = LineConv(self.features, (k, 1), **common, name="left_vertical")(x)
            left = LineConv(self.features, (1, k), **common, name="left_horizontal")(left)
            right = LineConv(self.features, (1, k), **common, name="right_horizontal")(x)
            right = LineConv(self.features, (k, 1), **common, name="right_vertical")(right)
            return left + right
        if self.kind != "stack":
            size = k if self.kind == "trivial" else 1
            return AtrousConv(self.features, size, **common, name="conv")(x)
        between = self.stack_features or x.shape[-1]
        depth = (k - 1) // 2
        for index in range(1, depth + 1):
            features = self.features if index == depth else between
            x = AtrousConv(features, 3, **common, name=f"conv{index}")(x)
        return x


class BoundaryRefinement(nn.Module):
    """Computes `x + conv2(relu(conv1(x)))` with 3x3 convolutions: a learned correction of score
    maps, which are mostly wrong at boundaries.

    `conv2` starts near zero and so the layer near the identity, because several of them follow each
    other.

    Attributes:
      dtype: dtype of the computation and the output; that of the input by default.
    """

    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[N, H, W, C]` of `x` `[N, H, W, C]`."""
        common = {"use_bias": True, "dtype": self.dtype, "form": "native"}
        y = AtrousConv(
            x.shape[-1], 3, kernel_init=nn.initializers.he_normal(), **common, name="conv1"
        )(x)
        y = AtrousConv(x.shape[-1], 3, kernel_init=classifier_init, **common, name="conv2")(
            nn.relu(y)
        )
        return x.astype(y.dtype) + y
