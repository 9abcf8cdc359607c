"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", 2015, table 1).

The default layout is torchvision's ("v1.5"): a 7x7 stem, and the stride of a stage on the 3x3
convolution of its first unit. Attributes of `ResNet` select the layouts of other releases:

release                                attributes
Caffe, He et al. ("v1")                `stride_on="1x1", pool="caffe"`
Caffe, DeepLabv2                       the same and `dilate_first_unit=True`
PyTorch, semseg (PSPNet)               `deep_stem=(64, 64, 128), dilate_first_unit=True`
PyTorch, mmsegmentation ("v1c")        `deep_stem=(32, 32, 64)`
TensorFlow, DeepLabv3 ("v1")           `stride_unit="last", pool="tf"`
TensorFlow, DeepLabv3 ("v1 beta")      `ResNetBeta`: the same and `deep_stem=(64, 64, 128)`
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import flax.linen as nn
import jax
from flax.typing import Dtype

from flaxseg.backbones.backbone import BatchNormBackbone
from flaxseg.backbones.stages import StrideBudget, block_runner
from flaxseg.layers.atrous import AtrousConv
from flaxseg.layers.image_normalization import SYMMETRIC, ImageNormalization
from flaxseg.layers.pooling import global_average_pool, max_pool
from flaxseg.layers.resize import shrink


class ResidualUnit(nn.Module):
    """Adds a shortcut to a branch of convolutions; it is projected where size or channels change.

    Attributes:
      features: channels of the branch's first convolutions.
      strides: of the unit.
      rate: dilation of the unit's strided convolution.
      next_rate: dilation of the units after it.
      norm: makes the normalisations; called as `norm(name=...)`.
      dtype: dtype of the computation; that of the input by default.
      stride_on: which convolution of a `Bottleneck` has the stride: `"3x3"` or the first `"1x1"`.
      with_branch: whether `(output, branch)` is returned, with what the convolutions gave before
        the shortcut was added.
      expansion: of the class: channels of the output over `features`.
    """

    features: int
    strides: int
    rate: int
    next_rate: int
    norm: type[nn.Module]
    dtype: Dtype | None
    stride_on: str = "3x3"
    with_branch: bool = False

    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        conv = partial(AtrousConv, dtype=self.dtype)
        features = self.expansion * self.features
        if x.shape[-1] == features:
            # A unit that only subsamples, as the last of a stage in TensorFlow's release, projects
            # nothing.
            shortcut = x[:, :: self.strides, :: self.strides]
        else:
            shortcut = conv(features, 1, self.strides, name="downsample_conv")(x)
            shortcut = self.norm(name="downsample_bn")(shortcut, train=train)
        branch = self._branch(x, conv, train)
        output = nn.relu(branch + shortcut)
        return (output, branch) if self.with_branch else output


class BasicBlock(ResidualUnit):
    """Has two 3x3 convolutions.

    The stride, or what stands for it, lies between the two, so the second has the rate of the
    units after it.
    """

    expansion: ClassVar[int] = 1

    def _branch(self, x: jax.Array, conv: Callable[..., nn.Module], train: bool) -> jax.Array:
        y = conv(self.features, 3, self.strides, self.rate, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = conv(self.features, 3, rate=self.next_rate, name="conv2")(y)
        return self.norm(name="bn2")(y, train=train)


class Bottleneck(ResidualUnit):
    """Reduces channels to `features` by a 1x1 convolution, convolves 3x3 with dilation, and expands
    to `4 * features` by a 1x1 convolution."""

    def _branch(self, x: jax.Array, conv: Callable[..., nn.Module], train: bool) -> jax.Array:
        first, second = (self.strides, 1) if self.stride_on == "1x1" else (1, self.strides)
        y = conv(self.features, 1, first, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train=train))
        y = conv(self.features, 3, second, self.rate, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train=train))
        y = conv(4 * self.features, 1, name="conv3")(y)
        return self.norm(name="bn3")(y, train=train)


# Padding and ceil mode of the 3x3 max pool after the stem. They differ on even sizes only.
_POOLS = {"torch": ("torch", False), "caffe": ("torch", True), "tf": ("tf", False)}


class ResNet(BatchNormBackbone):
    """Runs a residual network and returns named features.

    Attributes:
      stage_sizes: units in each of the four stages.
      block: `BasicBlock` or `Bottleneck`.
      num_classes: with a number, `"logits"` of an ImageNet-style classifier are among the features.
      width: factor of all numbers of channels; 0.5 for a half-width network (ICNet).
      deep_stem: channels of 3x3 convolutions, the first of stride 2, that replace the 7x7
        convolution: (64, 64, 128) in PSPNet and in TensorFlow's DeepLab, (32, 32, 64) in
        mmsegmentation; () is the paper's 7x7.
      pool: convention of the max pool after the stem, `"torch"`, `"tf"` (SAME) or `"caffe"` (ceil
        mode, one cell more on sides of an even number of cells).
      stride_on: which convolution of a `Bottleneck` has the stride: `"3x3"` (v1.5, more accurate),
        or `"1x1"` as in the paper's Caffe release (v1).
      stride_unit: which unit of a stage leads to the next grid: its `"first"`, as in the paper and
        in PyTorch, or the `"last"` of the stage before it, as in TensorFlow's release.
      dilate_first_unit: whether the first unit of a stage whose stride became dilation has the
        stage's rate, as in Caffe's and PSPNet's releases, and not that of the stage before it, as
        in torchvision. The latter is what the units saw in training at output stride 32, so it is
        the default. Without effect for `stride_unit="last"`, where all units of the stage have
        its rate.
      multi_grid: factors of the rates of the last stage's units, such as (1, 2, 4) (Chen et al.,
        "Rethinking Atrous Convolution", 2017, section 3.2.1); () for none. The paper's rates 2, 4,
        8 at output stride 16 need `dilate_first_unit` or `stride_unit="last"`.
      c2_before_addition: whether `"c2"` is the output of the convolutions of the first stage's last
        unit but one, before addition and ReLU, as the decoder of TensorFlow's DeepLabv3+ reads it.
      remat: whether blocks are recomputed in the backward pass to save memory.

    Raises:
      ValueError: an attribute has none of the values above.
    """

    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    block: type[nn.Module] = Bottleneck
    num_classes: int | None = None
    width: float = 1.0
    deep_stem: Sequence[int] = ()
    pool: str = "torch"
    stride_on: str = "3x3"
    stride_unit: str = "first"
    dilate_first_unit: bool = False
    multi_grid: Sequence[int] = ()
    c2_before_addition: bool = False
    remat: bool = False

    call_options: ClassVar[tuple[str, ...]] = ("halve_c3",)

    @nn.compact
    def __call__(
        self, image: jax.Array, *, train: bool = False, halve_c3: bool = False
    ) -> dict[str, jax.Array]:
        """Returns features by name.

        Args:
          image: see `Backbone`.
          train: see `Backbone`.
          halve_c3: whether the output of the second stage's first unit is returned as `"c3_1"` and
            then shrunk by two for the units after it, so that later features have twice their
            stride (ICNet).

        Returns:
          `"c1"` (after the stem's convolutions) to `"c5"`. `"c2"` to `"c5"` are the outputs of the
          four stages; with `stride_unit="last"`, what stands before the unit that subsamples.
        """
        self._check()
        norm = self._norm()
        apply = block_runner(train, self.remat)
        x = self._cast(image)
        x = self._stem(x, norm, train)
        features = {"c1": x}
        padding, ceil_mode = _POOLS[self.pool]
        x = max_pool(x, 3, strides=2, padding=padding, ceil_mode=ceil_mode)
        budget = StrideBudget(self.output_stride, 4)
        last_stage = len(self.stage_sizes) - 1
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                if self.stride_unit == "last":
                    subsamples = stage < last_stage and index == size - 1
                else:
                    subsamples = stage > 0 and index == 0
                if subsamples and self.stride_unit == "last":
                    features.setdefault(f"c{stage + 2}", x)
                tapped = self.c2_before_addition and stage == 0 and index == max(0, size - 2)
                strides, rate = budget.take(2 if subsamples else 1)
                if self.dilate_first_unit and self.stride_unit == "first":
                    rate = budget.rate
                grid = self.multi_grid[index] if stage == last_stage and self.multi_grid else 1
                block = self._block_of(stage)(
                    features=self._channels(64 * 2**stage),
                    strides=strides,
                    rate=rate * grid,
                    next_rate=budget.rate * grid,
                    norm=norm,
                    dtype=self.dtype,
                    stride_on=self.stride_on,
                    with_branch=tapped,
                    name=f"layer{stage + 1}_{index}",
                )
                if tapped:
                    x, features["c2"] = apply(block, x)
                    continue
                x = apply(block, x)
                if halve_c3 and stage == 1 and index == 0:
                    features["c3_1"] = x
                    x = shrink(x, 2)
            features.setdefault(f"c{stage + 2}", x)
        if self.num_classes is not None:
            pooled = global_average_pool(x)[:, 0, 0]
            features["logits"] = nn.Dense(self.num_classes, name="classifier")(pooled)
        return features

    def _stem(self, x: jax.Array, norm: Callable[..., nn.Module], train: bool) -> jax.Array:
        if not self.deep_stem:
            x = AtrousConv(self._channels(64), 7, 2, dtype=self.dtype, name="conv1")(x)
            return nn.relu(norm(name="bn1")(x, train=train))
        for index, features in enumerate(self.deep_stem, 1):
            strides = 2 if index == 1 else 1
            conv = AtrousConv(
                self._channels(features), 3, strides, dtype=self.dtype, name=f"conv1_{index}"
            )
            x = nn.relu(norm(name=f"bn1_{index}")(conv(x), train=train))
        return x

    def _block_of(self, stage: int) -> Callable[..., nn.Module]:
        """Makes the units of a stage, of which the first is 0."""
        return self.block

    def _channels(self, features: int) -> int:
        return max(1, round(features * self.width))

    def _check(self) -> None:
        for name, known in (
            ("pool", tuple(_POOLS)),
            ("stride_on", ("3x3", "1x1")),
            ("stride_unit", ("first", "last")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}."
                )
        if self.multi_grid and len(self.multi_grid) != self.stage_sizes[-1]:
            raise ValueError(
                f"multi_grid is {tuple(self.multi_grid)}; it must have one factor for each of the "
                f"{self.stage_sizes[-1]} units of the last stage, or none."
            )
        if self.c2_before_addition and self.stage_sizes[0] < 2:
            raise ValueError(
                f"c2_before_addition needs at least 2 units in the first stage; stage_sizes is "
                f"{tuple(self.stage_sizes)}."
            )
        if self.width <= 0:
            raise ValueError(f"width is {self.width}; it must be more than 0.")


class ResNetBeta(ResNet):
    """Is the ResNet of TensorFlow's DeepLab release ("resnet_v1_50_beta", "resnet_v1_101_beta").

    Three 3x3 convolutions in place of the 7x7 (Szegedy et al., "Inception-v4", 2016), the stride in
    the last unit of a stage, `"c2"` before its addition, images from -1 to 1.
    """

    deep_stem: Sequence[int] = (64, 64, 128)
    pool: str = "tf"
    stride_unit: str = "last"
    c2_before_addition: bool = True

    normalization: ClassVar[ImageNormalization] = SYMMETRIC


ResNet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock)
ResNet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock)
ResNet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3))
ResNet101 = partial(ResNet, stage_sizes=(3, 4, 23, 3))
ResNet152 = partial(ResNet, stage_sizes=(3, 8, 36, 3))
ResNet50Beta = partial(ResNetBeta, stage_sizes=(3, 4, 6, 3))
ResNet101Beta = partial(ResNetBeta, stage_sizes=(3, 4, 23, 3))
