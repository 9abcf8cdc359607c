"""Computes softmax cross entropy."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.errors import ConfigError, SettingsError
from flaxseg.layers.channels import along_channels
from flaxseg.training.losses.pixels import count, masked_logits, one_hot, valid_pixels


def segmentation_loss(
    logits: jax.Array,
    label: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    ignore_label: int = 255,
    align_corners: bool | str = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Returns softmax cross entropy, summed over the valid pixels, and the sum of their weights.

    For a valid pixel with label :math:`y`, logits :math:`z` and class weights :math:`w`,

    .. math::
      \ell = -(1 - \epsilon)\, w_y \log p_y - \frac{\epsilon}{C} \sum_c w_c \log p_c,
      \qquad p = \mathrm{softmax}(z)

    and the mean is :math:`\sum \ell / \sum w_y`: what
    ``torch.nn.functional.cross_entropy(reduction="mean")`` computes, weights, smoothing and
    ``ignore_index`` included.

    A pixel is valid when its label is in ``[0, C)`` and is not ``ignore_label``. Every other value,
    negative ones too, is left out of both sums, and the gradient at such a pixel is exactly zero
    whatever the logits are there, NaN included. Labels out of range are refused where labels are
    loaded.

    Logits of another size than the label (an auxiliary output at its own stride) are first resized
    to it, bilinearly.

    Args:
      logits: float ``[N, h, w, C]``, ``C >= 2``; any size. Computed with in float32.
      label: integer ``[N, H, W]``.
      label_smoothing: :math:`\epsilon` in ``[0, 1)``; that share of the target is spread evenly
        over all classes.
      class_weights: C finite numbers >= 0, not all zero; None weighs all classes by 1.
      ignore_label: the label of pixels that do not count.
      align_corners: how logits of another size are resized; see `flaxseg.layers.resize`.

    Returns:
      ``(sum, weight)``, float32 scalars. ``weight`` is the number of valid pixels, or with class
      weights the sum of ``w_y`` over them. It is zero when nothing is valid: divide by
      `safe_divisor(weight)`.

    Raises:
      ConfigError: for a smoothing or class weights out of their range.
      ValueError: when logits and label do not fit together.

    Examples:
      >>> logits = jnp.zeros((1, 2, 2, 4))
      >>> label = jnp.array([[[0, 1], [3, 255]]])
      >>> total, count = segmentation_loss(logits, label)
      >>> print(f"{total / count:.4f} over {count:.0f} pixels")
      1.3863 over 3 pixels
    """
    pixels = pixel_cross_entropy(
        logits, label, label_smoothing, class_weights, ignore_label, align_corners
    )
    total = jnp.sum(jnp.where(pixels.valid, pixels.loss, 0.0))
    if pixels.weight is None:
        return total, count(pixels.valid)
    return total, jnp.sum(jnp.where(pixels.valid, pixels.weight, 0.0))


class PixelCrossEntropy(NamedTuple):
    """Holds cross entropy pixel by pixel, each ``[N, H, W]``.

    Attributes:
      loss: as `segmentation_loss` sums it up; at a pixel that is not valid some finite number, with
        gradient zero.
      surprise: :math:`-\\log p_y`.
      weight: :math:`w_y`; None without class weights, where all are 1.
      valid: which pixels count.
    """

    loss: jax.Array
    surprise: jax.Array
    weight: jax.Array | None
    valid: jax.Array


def pixel_cross_entropy(
    logits: jax.Array,
    label: jax.Array,
    label_smoothing: float,
    class_weights: Sequence[float] | None,
    ignore_label: int,
    align_corners: bool | str,
) -> PixelCrossEntropy:
    """Returns the summands of `segmentation_loss`, which takes the same arguments."""
    num_classes = logits.shape[-1]
    logits, valid = masked_logits(logits, label, ignore_label, align_corners)
    weights = checked_weights(class_weights, num_classes)
    # A traced number has no value yet; it was checked where it was given, and is not 0.
    is_traced = isinstance(label_smoothing, jax.core.Tracer)
    smoothed = is_traced or label_smoothing
    if not (is_traced or 0.0 <= label_smoothing < 1.0):
        raise ConfigError(
            f"label_smoothing {label_smoothing} must be in [0, 1); 0 switches it off."
        )
    # Everything below is one pass over the logits for XLA: no gather, whose gradient is a scatter,
    # and no stored log-softmax.
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    is_label = one_hot(label, num_classes)
    surprise = log_sum - jnp.sum(jnp.where(is_label, shifted, 0.0), axis=-1)
    if weights is None and not smoothed:
        return PixelCrossEntropy(surprise, surprise, None, valid)

    class_weight = jnp.ones(num_classes, jnp.float32) if weights is None else jnp.asarray(weights)
    pixel_weight = jnp.sum(jnp.where(is_label, class_weight, 0.0), axis=-1)
    loss = (1.0 - label_smoothing) * pixel_weight * surprise
    if smoothed:
        share = label_smoothing / num_classes
        of_all = jnp.sum(along_channels(class_weight, shifted) * shifted, axis=-1)
        loss += share * (jnp.sum(class_weight) * log_sum - of_all)
    return PixelCrossEntropy(loss, surprise, None if weights is None else pixel_weight, valid)


def label_weight(
    label: jax.Array,
    num_classes: int,
    *,
    class_weights: Sequence[float] | None = None,
    ignore_label: int = 255,
) -> jax.Array:
    """Returns the count of `segmentation_loss`: the valid pixels, or the sum of their weights.

    Args:
      label: integer ``[N, H, W]``.
      num_classes: C; labels outside of ``[0, C)`` are not valid.
      class_weights: see `segmentation_loss`.
      ignore_label: the label of pixels that do not count.

    Returns:
      A float32 scalar.
    """
    weights = checked_weights(class_weights, num_classes)
    valid = valid_pixels(label, num_classes, ignore_label)
    if weights is None:
        return count(valid)
    is_label = one_hot(label, num_classes)
    pixel_weight = jnp.sum(jnp.where(is_label, jnp.asarray(weights), 0.0), axis=-1)
    return jnp.sum(jnp.where(valid, pixel_weight, 0.0))


def checked_weights(
    class_weights: Sequence[float] | jax.Array | None, num_classes: int
) -> np.ndarray | jax.Array | None:
    """Returns class weights as float32, or None where there are none."""
    if class_weights is None or len(class_weights) == 0:
        return None
    problem = ""
    if len(class_weights) != num_classes:
        problem = f"has {len(class_weights)} values for {num_classes} classes; give one per class."
    elif isinstance(class_weights, jax.core.Tracer):
        return class_weights
    elif not any(class_weights) or not all(math.isfinite(w) and w >= 0 for w in class_weights):
        problem = (
            f"is {tuple(class_weights)}; it must be finite, none negative and at least one "
            "positive."
        )
    if problem:
        raise SettingsError([("class_weights", problem)])
    return np.asarray(class_weights, np.float32)
