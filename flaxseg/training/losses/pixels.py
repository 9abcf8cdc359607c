"""Decides which pixels count, and counts them; all losses share it."""

import jax
import jax.numpy as jnp

from flaxseg.layers import largest_class, resize
from flaxseg.layers.channels import along_channels
from flaxseg.settings import check_rules, share


def sample_pixels(
    label: jax.Array, key: jax.Array, rate: float, *, ignore_label: int = 255
) -> jax.Array:
    """Keeps each pixel's loss with a probability, independently: patchwise training as a loss.

    (Long et al., "Fully Convolutional Networks for Semantic Segmentation", 2015, section 3.4.)
    Training on patches is training on whole images with some of the terms of the loss. The paper
    takes ``1 / rate`` times as many images per step to keep the number of terms, and finds that
    convergence per step is the same while each step is slower.

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
    check_rules({"rate": rate}, {"rate": share})
    kept = jax.random.bernoulli(key, rate, label.shape)
    return jnp.where(kept, label, jnp.asarray(ignore_label, label.dtype))


def pixel_accuracy(
    logits: jax.Array, label: jax.Array, *, ignore_label: int = 255
) -> tuple[jax.Array, jax.Array]:
    """Returns how many valid pixels have the largest logit at their label, and how many are valid.

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
    check_shapes(logits, label)
    valid = valid_pixels(label, logits.shape[-1], ignore_label)
    correct = valid & (largest_class(logits) == label.astype(jnp.int32))
    return jnp.sum(correct, dtype=jnp.int32), jnp.sum(valid, dtype=jnp.int32)


def valid_pixels(label: jax.Array, num_classes: int, ignore_label: int = 255) -> jax.Array:
    """Returns where the label is in ``[0, num_classes)`` and not ``ignore_label``, as bool."""
    label = label.astype(jnp.int32)  # uint8 cannot be compared with 300 classes or with -1
    return (label >= 0) & (label < num_classes) & (label != ignore_label)


def one_hot(label: jax.Array, num_classes: int) -> jax.Array:
    """Returns where a pixel's label is each class: bool ``[N, H, W, C]``, of integers
    ``[N, H, W]``."""
    classes = jnp.arange(num_classes)
    return label[..., None].astype(jnp.int32) == along_channels(classes, label[..., None])


def safe_divisor(weight: jax.Array) -> jax.Array:
    """Returns `weight`, or 1 where it is 0: a mean over no pixel at all is zero, not NaN."""
    return jnp.where(weight > 0, weight, 1)


def count(valid: jax.Array) -> jax.Array:
    """Returns the number of True, counted in integers, as float32."""
    return jnp.sum(valid, dtype=jnp.int32).astype(jnp.float32)


def masked_logits(
    logits: jax.Array, label: jax.Array, ignore_label: int, align_corners: bool | str
) -> tuple[jax.Array, jax.Array]:
    """Returns logits of the label's size, zero where the label is not valid.

    Args:
      logits: float ``[N, h, w, C]``, ``C >= 2``.
      label: integer ``[N, H, W]``.
      ignore_label: the label of pixels that do not count.
      align_corners: how logits of another size are resized.

    Returns:
      Logits ``[N, H, W, C]``, float32, zero where the label is not valid, and the valid pixels,
      bool ``[N, H, W]``.

    Raises:
      ValueError: when logits and label do not fit together.
    """
    check_shapes(logits, label)
    logits = logits.astype(jnp.float32)
    size = label.shape[1:]
    if logits.shape[1:3] != size:
        logits = resize(logits, size, method="bilinear", align_corners=align_corners)
    valid = valid_pixels(label, logits.shape[-1], ignore_label)
    # An ignored pixel takes part with zeros, so that nothing at it, not even NaN, reaches the
    # gradient.
    return jnp.where(valid[..., None], logits, 0.0), valid


def images_with_pixels(valid: jax.Array) -> jax.Array:
    """Returns how many images have a valid pixel, as float32: the count of a mean over images."""
    return count(jnp.any(valid, axis=(1, 2)))


def check_shapes(logits: jax.Array, label: jax.Array) -> None:
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
