"""A decoder that mirrors its encoder: it unpools to where the maxima were, then convolves."""

from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn
import jax
from flax.typing import Dtype, Initializer

from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.unpooling import max_pool_with_indices, max_unpool


def mirrored_features(
    features: Mapping[str, jax.Array], stages: Sequence[int]
) -> tuple[jax.Array, list[jax.Array], Sequence[int]]:
    """Chooses from a backbone's features what an `UnpoolingDecoder` starts from and mirrors.

    Args:
      features: by name. Where there are `"conv1"`, `"conv2"` and so on, what the pools read, they
        are mirrored from the coarsest up to the image's size; else `"c4"` to `"c1"`, up to stride
        2.
      stages: `convs` of the decoder, of which the last are taken where there are fewer features.

    Returns:
      The coarsest feature, the features to unpool to from coarse to fine, and their `convs`.

    Raises:
      ValueError: a feature is missing, or there are more of them than stages.
    """
    before_pools = sorted((name for name in features if name.startswith("conv")), reverse=True)
    levels = before_pools or ["c4", "c3", "c2", "c1"]
    coarsest = f"c{len(before_pools)}" if before_pools else "c5"
    missing = [name for name in (coarsest, *levels) if name not in features]
    if missing or len(levels) > len(stages):
        raise ValueError(
            f"the backbone has the features {', '.join(features)}; a decoder of {len(stages)} "
            f"stages that unpools needs c1 to c5, or what at most {len(stages)} pools read."
        )
    return features[coarsest], [features[name] for name in levels], stages[-len(levels) :]


class UnpoolingDecoder(nn.Module):
    """Runs stages of unpooling and convolutions, from the coarsest feature up to the finest.

    (Badrinarayanan et al., "SegNet", 2017, section 3; Noh et al., "Learning Deconvolution Network",
    2015, section 3.) Each stage puts its values where the maxima of 2x2 windows of the encoder's
    feature were, at that feature's size, and fills the gaps by convolutions with BatchNorm. They
    have the channels of that feature; the last one those of the next.

    If the input has other channels than the first feature, as in backbones whose channels grow with
    the stride, a 3x3 block (`reduce`) adapts it. A feature of the size of the coarser one, as
    beyond an output stride, has a stage without unpooling.

    Parameters of the n-th stage, counted down to 1, are `conv{n}_1`, `bn{n}_1` and so on, in the
    order of computation.

    Attributes:
      convs: convolutions of each stage.
      kernel_size: of the stages' convolutions.
      relu: whether a ReLU follows each BatchNorm.
      norm: makes every normalisation; called as `norm(name=...)`.
      kernel_init: initialiser of the kernels.
      dtype: dtype of the computation; that of the input by default.
    """

    convs: Sequence[int]
    kernel_size: int = 3
    relu: bool = True
    norm: Callable[..., nn.Module] = BatchNorm
    kernel_init: Initializer = nn.initializers.he_normal()
    dtype: Dtype | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, features: Sequence[jax.Array], *, train: bool = False
    ) -> jax.Array:
        """Decodes features from coarse to fine.

        Args:
          x: `[N, H, W, C]`, the encoder's last feature.
          features: one for each stage, from coarse to fine, `[N, H', W', C']`: what the encoder's
            pools read. Each is as large as the one before it, or its 2x2 windows are as many,
            counted up or down at an odd border.
          train: whether BatchNorm uses the statistics of the batch.

        Returns:
          `[N, H', W', C']` like the last of the features.

        Raises:
          ValueError: there are not as many features as stages, or no pool of 2x2 windows leads from
            one to the next.
        """
        if len(features) != len(self.convs):
            raise ValueError(
                f"there are {len(features)} features and {len(self.convs)} stages (convs "
                f"{tuple(self.convs)}); there must be one for each."
            )
        if x.shape[-1] != features[0].shape[-1]:
            x = self._block(x, features[0].shape[-1], 3, "reduce", train)
        following = [*features[1:], features[-1]]
        for index, (feature, finer) in enumerate(zip(features, following, strict=True)):
            number = len(features) - index
            if feature.shape[1:3] != x.shape[1:3]:
                rounded_up = tuple(-(-n // 2) for n in feature.shape[1:3]) == x.shape[1:3]
                _, indices = max_pool_with_indices(feature, ceil_mode=rounded_up)
                if indices.shape != x.shape:
                    raise ValueError(
                        f"the feature of stage {number} has {feature.shape[1:3]} cells, and what "
                        f"is unpooled to it {x.shape[1:3]}; its 2x2 windows must be as many."
                    )
                x = max_unpool(x, indices, feature.shape[1:3])
            count = self.convs[index]
            for place in range(1, count + 1):
                channels = (finer if place == count else feature).shape[-1]
                x = self._block(x, channels, self.kernel_size, f"{number}_{place}", train)
        return x

    def _block(
        self, x: jax.Array, features: int, kernel_size: int, place: str, train: bool
    ) -> jax.Array:
        """Runs a convolution with bias, BatchNorm and, with `relu`, a ReLU."""
        x = AtrousConv(
            features,
            kernel_size,
            use_bias=True,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            name=f"conv{place}",
        )(x)
        x = self.norm(name=f"bn{place}")(x, train=train)
        return nn.relu(x) if self.relu else x
