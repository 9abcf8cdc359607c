"""Losses and counts over pixels, as pairs (sum, count) that add up over micro-batches and devices.

Nothing here names a device axis or divides: the train step adds the sums and the counts of the
whole global batch and divides once. A mean over each device, averaged, would weigh a pixel by how
many of its neighbours are ignored.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.errors import ConfigError
from flaxseg.layers import resize

REDUCTIONS = ("mean", "sum")


def segmentation_loss(
    logits: jax.Array,
    label: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
    ignore_label: int = 255,
    align_corners: bool = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Softmax cross entropy, summed over the valid pixels, and the sum of their weights.

    For a valid pixel with label :math:`y`, logits :math:`z` and class weights :math:`w`,

    .. math::
      \ell = -(1 - \epsilon)\, w_y \log p_y - \frac{\epsilon}{C} \sum_c w_c \log p_c,
      \qquad p = \mathrm{softmax}(z)

    and the mean is :math:`\sum \ell / \sum w_y`: what
    ``torch.nn.functional.cross_entropy(reduction="mean")`` computes, weights, smoothing and
    ``ignore_index`` included.

    A pixel is valid when its label is in ``[0, C)`` and is not ``ignore_label``. Every other value,
    negative ones too, is left out of both sums, and the gradient at such a pixel is exactly zero
    whatever the logits are there, NaN included. That no label is out of range is checked where
    labels are loaded.

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
    num_classes = logits.shape[-1]
    _check_shapes(logits, label)
    weights = _checked_weights(class_weights, num_classes)
    if not 0.0 <= label_smoothing < 1.0:
        raise ConfigError(
            f"label_smoothing {label_smoothing} must be in [0, 1); 0 switches it off."
        )

    logits = _at_size(logits.astype(jnp.float32), label.shape[1:], align_corners)
    valid = valid_pixels(label, num_classes, ignore_label)
    # An ignored pixel takes part with zeros, so that nothing at it, not even NaN, reaches the
    # gradient.
    logits = jnp.where(valid[..., None], logits, 0.0)
    # Everything below is one pass over the logits for XLA: no gather, whose gradient is a scatter,
    # and no stored log-softmax.
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    is_label = label[..., None].astype(jnp.int32) == jnp.arange(num_classes)

    if weights is None and not label_smoothing:
        loss = log_sum - jnp.sum(jnp.where(is_label, shifted, 0.0), axis=-1)
        return jnp.sum(jnp.where(valid, loss, 0.0)), _count(valid)

    class_weight = jnp.ones(num_classes, jnp.float32) if weights is None else jnp.asarray(weights)
    pixel_weight = jnp.sum(jnp.where(is_label, class_weight, 0.0), axis=-1)
    at_label = jnp.sum(jnp.where(is_label, shifted, 0.0), axis=-1)
    loss = (1.0 - label_smoothing) * pixel_weight * (log_sum - at_label)
    if label_smoothing:
        share = label_smoothing / num_classes
        loss += share * (jnp.sum(class_weight) * log_sum - jnp.sum(class_weight * shifted, axis=-1))
    total = jnp.sum(jnp.where(valid, loss, 0.0))
    if weights is None:
        return total, _count(valid)
    return total, jnp.sum(jnp.where(valid, pixel_weight, 0.0))


def sample_pixels(
    label: jax.Array, key: jax.Array, rate: float, *, ignore_label: int = 255
) -> jax.Array:
    """Keeps each pixel's loss with a probability, independently: patchwise training as a loss.

    (Long et al., "Fully Convolutional Networks for Semantic Segmentation", 2015, section 3.4.)
    Training on patches is training on whole pictures with a part of the terms of the loss. The
    paper takes ``1 / rate`` times as many pictures per step to keep the number of terms, and finds
    that convergence per step is the same and each step slower.

    Args:
      label: integer ``[N, H, W]``.
      key: random key.
      rate: probability in ``(0, 1]`` that a pixel stays.
      ignore_label: what the others become.

    Returns:
      As `label`.

    Raises:
      ConfigError: for a rate out of its range.
    """
    if not 0.0 < rate <= 1.0:
        raise ConfigError(f"sample_rate {rate} must be in (0, 1]; 1 keeps every pixel.")
    kept = jax.random.bernoulli(key, rate, label.shape)
    return jnp.where(kept, label, jnp.asarray(ignore_label, label.dtype))


def pixel_accuracy(
    logits: jax.Array, label: jax.Array, *, ignore_label: int = 255
) -> tuple[jax.Array, jax.Array]:
    """How many valid pixels have the largest logit at their label, and how many are valid.

    Args:
      logits: float ``[N, H, W, C]``.
      label: integer ``[N, H, W]``.
      ignore_label: the label of pixels that do not count.

    Returns:
      ``(correct, valid)``, int32 scalars: float32 stops counting at 16.7 million pixels.

    Examples:
      >>> logits = jnp.array([[[[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]]]])
      >>> correct, valid = pixel_accuracy(logits, jnp.array([[[0, 0, 255]]]))
      >>> print(correct, valid)
      1 2
    """
    _check_shapes(logits, label)
    valid = valid_pixels(label, logits.shape[-1], ignore_label)
    correct = valid & (jnp.argmax(logits, axis=-1) == label)
    return jnp.sum(correct, dtype=jnp.int32), jnp.sum(valid, dtype=jnp.int32)


def valid_pixels(label: jax.Array, num_classes: int, ignore_label: int = 255) -> jax.Array:
    """Where the label is in ``[0, num_classes)`` and not ``ignore_label``: bool ``[N, H, W]``."""
    label = label.astype(jnp.int32)  # uint8 can not be compared with 300 classes or with -1
    return (label >= 0) & (label < num_classes) & (label != ignore_label)


def safe_divisor(weight: jax.Array) -> jax.Array:
    """`weight`, or 1 where it is 0: a mean over no pixel at all is zero, not NaN."""
    return jnp.where(weight > 0, weight, 1)


def _count(valid: jax.Array) -> jax.Array:
    """The number of True, counted in integers, as float32."""
    return jnp.sum(valid, dtype=jnp.int32).astype(jnp.float32)


def _at_size(logits: jax.Array, size: tuple[int, ...], align_corners: bool) -> jax.Array:
    """Logits resized to `size`, (height, width), where they are not of that size."""
    if logits.shape[1:3] == size:
        return logits
    return resize(logits, size, method="bilinear", align_corners=align_corners, antialias=False)


def _check_shapes(logits: jax.Array, label: jax.Array) -> None:
    if logits.ndim != 4 or label.ndim != 3 or logits.shape[0] != label.shape[0]:
        raise ValueError(
            f"logits of shape {logits.shape} and label of shape {label.shape} do not fit together; "
            "give logits [N, h, w, C] and label [N, H, W]."
        )
    if logits.shape[-1] < 2:
        raise ValueError(
            f"logits have {logits.shape[-1]} class; give at least 2, "
            "for a binary task background and foreground."
        )
    if not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(f"label has dtype {label.dtype}; give class indices of an integer dtype.")


def _checked_weights(class_weights: Sequence[float] | None, num_classes: int) -> np.ndarray | None:
    """Class weights as float32, or None where there are none."""
    if class_weights is None or len(class_weights) == 0:
        return None
    if len(class_weights) != num_classes:
        raise ConfigError(
            f"class_weights has {len(class_weights)} values and the model {num_classes} classes; "
            "give one weight per class."
        )
    bad = [w for w in class_weights if not (math.isfinite(w) and w >= 0)]
    if bad or not any(class_weights):
        raise ConfigError(
            f"class_weights {tuple(class_weights)} must be finite, none negative and at least one "
            "positive."
        )
    return np.asarray(class_weights, np.float32)
