"""Pads for convolutions and pools, in the conventions of the three frameworks whose weights are
read."""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Padding = str | int | Sequence[tuple[int, int]]


def pair(value: int | Sequence[int], name: str = "value") -> tuple[int, int]:
    """Returns `(height, width)` of an int or of a pair; ValueError for anything below 1."""
    if isinstance(value, Sequence):
        values = tuple(operator.index(v) for v in value)
    else:
        values = (operator.index(value),) * 2
    if len(values) != 2 or min(values) < 1:
        raise ValueError(f"{name} is {value!r}; it must be a positive int or a pair of them.")
    return values


def explicit_padding(
    padding: Padding,
    size: tuple[int, int],
    kernel_size: tuple[int, int],
    strides: tuple[int, int] = (1, 1),
    rate: tuple[int, int] = (1, 1),
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Returns `((top, bottom), (left, right))` cells of padding.

    Args:
      padding: `"torch"` (also Caffe's convolutions): `rate * (kernel - 1) // 2` on every side.
        `"tf"`: TensorFlow's SAME. The output has `ceil(size / stride)` cells, and an odd cell of
        padding goes to the bottom and right, so at stride 2 an even input of a 3x3 kernel is padded
        by 0 at the top and 1 at the bottom. `"valid"`: none. An int pads every side by that many
        cells; a pair of pairs is returned unchanged.
      size: `(height, width)` of the input.
      kernel_size: `(height, width)` of the kernel, undilated.
      strides: steps between outputs.
      rate: dilation of the kernel.

    Raises:
      ValueError: the name is unknown or the pair is not one.
    """
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0), (0, 0)
        if padding == "torch":
            vertical, horizontal = (
                r * (k - 1) // 2 for k, r in zip(kernel_size, rate, strict=True)
            )
            return (vertical, vertical), (horizontal, horizontal)
        if padding == "tf":
            sides = []
            for n, k, s, r in zip(size, kernel_size, strides, rate, strict=True):
                total = max((-(-n // s) - 1) * s + r * (k - 1) + 1 - n, 0)
                sides.append((total // 2, total - total // 2))
            return sides[0], sides[1]
        raise ValueError(
            f"padding is {padding!r}; it must be 'torch', 'tf', 'valid', an int or a pair of pairs."
        )
    if isinstance(padding, int):
        return (padding, padding), (padding, padding)
    try:
        (top, bottom), (left, right) = padding
    except (TypeError, ValueError):
        raise ValueError(
            f"padding is {padding!r}; as a pair of pairs it must be ((top, bottom), (left, right))."
        ) from None
    return (top, bottom), (left, right)


def pad_to_grid(image: jax.Array, stride: int) -> jax.Array:
    """Returns images with zeros added at the bottom and the right, up to the next `stride * k + 1`
    pixels a side.

    On such an image, a network of centred windows has its cell i exactly at pixel `stride * i`,
    the last one included, whether its pools round up or down; and resizing with aligned corners
    by the stride leads back to the pixels. DeepLab's releases pad images so, with the mean
    colour, which is zero after normalisation.

    Args:
      image: `[N, H, W, C]`, H and W from 1.
      stride: of the grid in pixels, at least 1.
    """
    bottom, right = (-(n - 1) % stride for n in image.shape[1:3])
    return jnp.pad(image, ((0, 0), (0, bottom), (0, right), (0, 0)))


def mirror_pad(
    image: jax.Array, vertical: tuple[int, int], horizontal: tuple[int, int]
) -> jax.Array:
    """Returns images continued by their reflection, the border pixel itself not repeated.

    A margin wider than the image goes back and forth in it. Networks without padding get their
    margin so (U-Net, Dilated-Net).

    Args:
      image: `[N, H, W, C]`, H and W from 1.
      vertical: pixels to add at the top and at the bottom.
      horizontal: pixels to add at the left and at the right.
    """
    rows, columns = (
        np.pad(np.arange(n), margin, mode="reflect")
        for n, margin in zip(image.shape[1:3], (vertical, horizontal), strict=True)
    )
    return image[:, rows][:, :, columns]
