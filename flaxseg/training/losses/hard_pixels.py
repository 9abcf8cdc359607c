"""Computes cross entropy over the hardest pixels."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flaxseg.errors import ConfigError
from flaxseg.training.losses.cross_entropy import PixelCrossEntropy, pixel_cross_entropy
from flaxseg.training.losses.pixels import images_with_pixels, safe_divisor


def top_k_loss(
    logits: jax.Array,
    label: jax.Array,
    *,
    fraction: float = 0.25,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    ignore_label: int = 255,
    align_corners: bool | str = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Returns cross entropy over a share of each image's pixels, those with the least :math:`p_y`.

    Of an image with n valid pixels the hardest ``fraction * n`` are kept, rounded, at least one,
    the first of equal ones. The loss of the image is their mean cross entropy, with class weights
    :math:`\sum \ell / \sum w_y` over them. (The idea of Shrivastava et al., "Training Region-based
    Object Detectors with Online Hard Example Mining", 2016, for pixels in place of regions.)

    It is a mean over images, as `ohem_loss`; with ``fraction = 1`` that of their mean cross
    entropies.

    Args:
      logits, label, label_smoothing, class_weights, ignore_label, align_corners: see
        `segmentation_loss`.
      fraction: in ``(0, 1]``.

    Returns:
      ``(sum over the images, number of images with a valid pixel)``, float32 scalars.

    Raises:
      ConfigError: for an argument out of its range.
      ValueError: as `segmentation_loss`.

    Examples:
      >>> logits = jnp.array([[[[5.0, 0.0], [0.0, 0.0], [5.0, 0.0], [5.0, 0.0]]]])
      >>> total, images = top_k_loss(logits, jnp.array([[[0, 0, 0, 0]]]), fraction=0.25)
      >>> print(f"{total:.4f}")
      0.6931
    """
    if not 0.0 < fraction <= 1.0:
        raise ConfigError(f"fraction {fraction} must be in (0, 1]; 1 keeps every pixel.")
    pixels = pixel_cross_entropy(
        logits, label, label_smoothing, class_weights, ignore_label, align_corners
    )
    valid = jnp.sum(pixels.valid, axis=(1, 2), dtype=jnp.int32)
    kept = jnp.maximum(jnp.round(valid.astype(jnp.float32) * fraction).astype(jnp.int32), 1)
    return _mean_over(pixels, _hardest(pixels, kept))


def ohem_loss(
    logits: jax.Array,
    label: jax.Array,
    *,
    threshold: float = 0.7,
    min_kept: int = 10_000,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    ignore_label: int = 255,
    align_corners: bool | str = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Returns cross entropy over the pixels that are not right with some certainty.

    Of each image the valid pixels with :math:`p_y` below `threshold` are kept, and where these are
    fewer than `min_kept`, the `min_kept` hardest (all, where there are no more). The loss of the
    image is their mean cross entropy, with class weights :math:`\sum \ell / \sum w_y` over them.
    This is the form of online hard example mining (Shrivastava et al., 2016) that ports of PSPNet
    and DFN train with, and mmsegmentation's ``OHEMPixelSampler``; they count over the batch of a
    device.

    How many pixels are kept is up to the predictions, so it is a mean over images: a mean over the
    pixels kept in a whole batch would not be a sum over its parts.

    Args:
      logits, label, label_smoothing, class_weights, ignore_label, align_corners: see
        `segmentation_loss`.
      threshold: in ``(0, 1]``.
      min_kept: pixels of an image, at least 1. Ports have 100,000 for the batch of a device, which
        is some 5 % of its pixels.

    Returns:
      ``(sum over the images, number of images with a valid pixel)``, float32 scalars.

    Raises:
      ConfigError: for an argument out of its range.
      ValueError: as `segmentation_loss`.

    Examples:
      >>> logits = jnp.array([[[[5.0, 0.0], [0.0, 0.0], [5.0, 0.0], [5.0, 0.0]]]])
      >>> total, images = ohem_loss(logits, jnp.array([[[0, 0, 0, 0]]]), min_kept=1)
      >>> print(f"{total:.4f}")
      0.6931
    """
    if not 0.0 < threshold <= 1.0:
        raise ConfigError(f"threshold {threshold} must be in (0, 1].")
    if isinstance(min_kept, bool) or not isinstance(min_kept, int) or min_kept < 1:
        raise ConfigError(f"min_kept {min_kept} must be a whole number of at least 1.")
    pixels = pixel_cross_entropy(
        logits, label, label_smoothing, class_weights, ignore_label, align_corners
    )
    is_hard = pixels.surprise > -math.log(threshold)
    return _mean_over(pixels, is_hard | _hardest(pixels, min_kept))


def _hardest(pixels: PixelCrossEntropy, number: jax.Array | int) -> jax.Array:
    """Returns `number` of each image's valid pixels, or all if there are no more: those with the
    least probability of their label, the first of equal ones.

    Args:
      pixels: of N images.
      number: int32 ``[N]``, or one for all.

    Returns:
      bool ``[N, H, W]``.
    """
    # The bits of a float that is not negative rise with it, and integers are sorted several times
    # as fast on CPU.
    surprise = jnp.maximum(jax.lax.stop_gradient(pixels.surprise), 0.0)
    bits = jax.lax.bitcast_convert_type(surprise, jnp.int32)
    key = jnp.where(pixels.valid, bits, -1).reshape(surprise.shape[0], -1)
    valid = jnp.sum(key >= 0, axis=1, dtype=jnp.int32)
    number = jnp.clip(number, 1, jnp.maximum(valid, 1))[:, None]
    least = jnp.take_along_axis(jnp.sort(key, axis=1), key.shape[1] - number, axis=1)
    room = number - jnp.sum(key > least, axis=1, keepdims=True, dtype=jnp.int32)
    equal = key == least
    kept = (key > least) | (equal & (jnp.cumsum(equal, axis=1, dtype=jnp.int32) <= room))
    return kept.reshape(surprise.shape) & pixels.valid


def _mean_over(pixels: PixelCrossEntropy, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of the images' means over the pixels that are kept, and how many images have
    a mean."""
    kept &= pixels.valid
    weight = jnp.ones_like(pixels.loss) if pixels.weight is None else pixels.weight
    total = jnp.sum(jnp.where(kept, pixels.loss, 0.0), axis=(1, 2))
    weight = jnp.sum(jnp.where(kept, weight, 0.0), axis=(1, 2))
    return jnp.sum(total / safe_divisor(weight)), images_with_pixels(pixels.valid)
