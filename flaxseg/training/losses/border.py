"""Finds borders between classes, for a target and for the weights of a loss."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flaxseg.errors import ConfigError
from flaxseg.training.losses.cross_entropy import pixel_cross_entropy
from flaxseg.training.losses.pixels import valid_pixels


def border_target(
    label: jax.Array, num_classes: int, *, radius: int = 4, ignore_label: int = 255
) -> jax.Array:
    """Returns where another class is near: the target of a network that finds borders.

    A valid pixel is border when a valid pixel of another class is at most `radius` rows and columns
    away, so that a straight border is ``2 * radius`` pixels wide. A pixel that is not valid makes
    no border and stays ignored. The order of the classes does not matter.

    The border network of DFN (Yu et al., 2018, section 3.2) is trained on edges of the label map,
    dilated: the released code runs Canny on the class indices as grey values, with ignored pixels
    as background, and dilates by 7 x 7, which gives borders 7 to 8 pixels wide. Radius 4 gives the
    same width and place, except along the ignored rings around objects, where it has no border.

    Args:
      label: integer ``[N, H, W]``.
      num_classes: labels outside of ``[0, num_classes)`` are not valid.
      radius: pixels, at least 1.
      ignore_label: the label of pixels that do not count.

    Returns:
      uint8 ``[N, H, W]``: 1 border, 0 elsewhere, 255 where the label is not valid.

    Raises:
      ConfigError: for a radius out of its range.

    Examples:
      >>> label = jnp.array([[[0, 0, 0, 0, 3, 3, 3, 3, 255, 1]]])
      >>> print(border_target(label, 4, radius=2)[0, 0])
      [  0   0   1   1   1   1   0   1 255   1]
    """
    if isinstance(radius, bool) or not isinstance(radius, int) or radius < 1:
        raise ConfigError(f"radius {radius} must be a whole number of pixels, at least 1.")
    valid = valid_pixels(label, num_classes, ignore_label)
    label = label.astype(jnp.int32)
    largest = _window(jnp.where(valid, label, -1), radius, jax.lax.max, -1)
    smallest = _window(jnp.where(valid, label, num_classes), radius, jax.lax.min, num_classes)
    is_border = (largest > label) | (smallest < label)
    return jnp.where(valid, is_border.astype(jnp.uint8), jnp.uint8(255))


def boundary_loss(
    logits: jax.Array,
    label: jax.Array,
    *,
    factor: float = 5.0,
    radius: int = 4,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    ignore_label: int = 255,
    align_corners: bool | str = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Returns cross entropy with larger weights near the borders between classes.

    The weight of a valid pixel is :math:`b = ` `factor` where `border_target` is 1 and 1 elsewhere,
    and the mean :math:`\sum b\, \ell / \sum b\, w_y` with :math:`\ell` of `segmentation_loss`. With
    factor 1 it is cross entropy. (A step in place of the falling weights that Ronneberger et al.,
    "U-Net", 2015, equation 2, have between touching cells.)

    Args:
      logits, label, label_smoothing, class_weights, ignore_label, align_corners: see
        `segmentation_loss`.
      factor: finite, above 0.
      radius: how near, in pixels, at least 1; see `border_target`.

    Returns:
      ``(sum, weight)``, float32 scalars; ``weight`` is the sum of :math:`b\, w_y` over the valid
      pixels.

    Raises:
      ConfigError: for an argument out of its range.
      ValueError: as `segmentation_loss`.

    Examples:
      >>> logits = jnp.array([[[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]])
      >>> total, weight = boundary_loss(logits, jnp.array([[[0, 0, 1]]]), radius=1)
      >>> print(f"{total / weight:.4f}, weight {weight:.0f}")
      0.3133, weight 11
    """
    if not (math.isfinite(factor) and factor > 0):
        raise ConfigError(f"factor {factor} must be a number above 0.")
    pixels = pixel_cross_entropy(
        logits, label, label_smoothing, class_weights, ignore_label, align_corners
    )
    border = border_target(label, logits.shape[-1], radius=radius, ignore_label=ignore_label)
    near = jnp.where(border == 1, jnp.float32(factor), 1.0)
    weight = near if pixels.weight is None else near * pixels.weight
    return (
        jnp.sum(jnp.where(pixels.valid, near * pixels.loss, 0.0)),
        jnp.sum(jnp.where(pixels.valid, weight, 0.0)),
    )


def _window(x: jax.Array, radius: int, reduce, initial: int) -> jax.Array:
    """Returns the largest or smallest value of ``[N, H, W]`` in the square around each pixel."""
    for axis in (1, 2):
        size = [1, 1, 1]
        size[axis] = 2 * radius + 1
        x = jax.lax.reduce_window(x, jnp.int32(initial), reduce, size, (1, 1, 1), "SAME")
    return x
