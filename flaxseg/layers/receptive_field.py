"""The geometry of a stack of layers: what an output sees, how far outputs lie apart, and where.

(Long et al., "Fully Convolutional Networks for Semantic Segmentation", 2015, sections 3.1 to 3.3.)
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxseg.layers.atrous import place


class Window(NamedTuple):
    """One layer along one axis: a convolution, a pool, or a transposed convolution.

    Attributes:
      kernel_size: cells of the kernel or window.
      stride: steps between outputs; of a transposed convolution, its factor.
      rate: dilation.
      padding: cells before the first input; of a transposed convolution, outputs that are dropped
        in front.
      transposed: whether it is a transposed convolution.
    """

    kernel_size: int
    stride: int = 1
    rate: int = 1
    padding: int = 0
    transposed: bool = False


class ReceptiveField(NamedTuple):
    """What one output of a stack sees of its input, along one axis.

    Attributes:
      size: cells of the input that an output depends on (of a stack with transposed convolutions,
        at most).
      stride: cells of the input between two outputs.
      centre: place of the middle of the first output's field in the input, whose first cell is 0.
    """

    size: int
    stride: Fraction
    centre: Fraction

    @property
    def padding(self) -> Fraction:
        """Cells that the first output's field reaches over the beginning of the input."""
        return Fraction(self.size - 1, 2) - self.centre


def receptive_field(layers: Sequence[Window]) -> ReceptiveField:
    """Returns the receptive field of a stack of layers, the first of them at the input.

    Layers that work cell by cell are left out. `(k, s)` after `(k', s')` is `(k' + (k - 1) s', s
    s')` (section 3.1).

    >>> receptive_field([Window(3, padding=1), Window(2, 2), Window(3, padding=1)])
    ReceptiveField(size=8, stride=Fraction(2, 1), centre=Fraction(1, 2))
    """
    size, stride, centre = 1, Fraction(1), Fraction(0)
    for layer in layers:
        reach = layer.rate * (layer.kernel_size - 1)
        if layer.transposed:
            centre -= stride * (Fraction(reach, 2) - layer.padding) / layer.stride
            size += int(stride * (reach // layer.stride))
            stride /= layer.stride
        else:
            centre += stride * (Fraction(reach, 2) - layer.padding)
            size += int(stride * reach)
            stride *= layer.stride
    return ReceptiveField(size, stride, centre)


def crop_offset(upsampled: Sequence[Window], target: Sequence[Window] = ()) -> int:
    """Returns where to crop one map so that it lies over another one.

    Args:
      upsampled: all layers from the picture to the map to crop.
      target: all layers from the picture to the map that it shall lie over; the picture itself by
        default.

    Returns:
      The index in `upsampled` of the first cell of `target`.

    Raises:
      ValueError: the two have not the same stride, or lie shifted by a part of a cell.
    """
    a, b = receptive_field(upsampled), receptive_field(target)
    offset = (b.centre - a.centre) / a.stride
    if a.stride != b.stride or offset.denominator != 1:
        raise ValueError(
            f"maps with strides {a.stride} and {b.stride}, {offset} cells apart, have no crop in "
            "common; upsample to the same stride, with an even kernel after even strides."
        )
    return int(offset)


def without_strides(layers: Sequence[Window]) -> list[Window]:
    """Returns the stack that computes the same at every cell: "filter rarefaction", or à trous.

    Each stride becomes 1 and all later layers are dilated by it (section 3.2). The parameters are
    the same; padding grows with the rate.

    Raises:
      ValueError: there is a transposed convolution among them.
    """
    if any(layer.transposed for layer in layers):
        raise ValueError("a transposed convolution can not be dilated; end the stack before it.")
    dense, rate = [], 1
    for layer in layers:
        dense.append(layer._replace(stride=1, rate=layer.rate * rate, padding=layer.padding * rate))
        rate *= layer.stride
    return dense


def shift_and_stitch(
    network: Callable[[jax.Array], jax.Array], image: jax.Array, stride: int
) -> jax.Array:
    """Runs a network of a stride on all shifts of a picture and interlaces the results.

    The picture is shifted right and down by every `(x, y)` in `[0, stride)^2`, with zeros from the
    left and the top (section 3.2). The result is that of the network `without_strides`, exactly so
    where no window touches padding; the paper preferred upsampling, which costs less.

    Args:
      network: from `[N, H, W, C]` to `[N, h, w, C']`.
      image: `[N, H, W, C]`.
      stride: between the network's outputs, in cells of the picture.

    Returns:
      `[N, h', w', C']`; output p is that of the network for the window at cell p.
    """
    shifts = list(product(range(stride), repeat=2))
    outputs = {
        (down, right): network(jnp.pad(image, ((0, 0), (down, 0), (right, 0), (0, 0))))
        for down, right in shifts
    }
    # The picture shifted by x has at output i what lies at cell stride * i - x.
    size = tuple(
        min(stride * out.shape[axis + 1] - shift[axis] for shift, out in outputs.items())
        for axis in (0, 1)
    )
    stitched = 0
    for shift, out in outputs.items():
        region = tuple(slice(-x % stride, n, stride) for x, n in zip(shift, size, strict=True))
        counts = [len(range(*where.indices(n))) for where, n in zip(region, size, strict=True)]
        skip = [1 if x else 0 for x in shift]  # what lies before the picture
        out = out[:, skip[0] : skip[0] + counts[0], skip[1] : skip[1] + counts[1]]
        stitched += place(out, region, size)
    return stitched
