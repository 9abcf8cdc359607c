"""Computes the Dice loss."""

import jax
import jax.numpy as jnp

from flaxseg.training.losses.pixels import images_with_pixels, masked_logits, one_hot, safe_divisor


def dice_loss(
    logits: jax.Array,
    label: jax.Array,
    *,
    squared: bool = True,
    ignore_label: int = 255,
    align_corners: bool | str = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Returns one minus the overlap of each class with its prediction, per image.

    With :math:`p = \mathrm{softmax}(z)` and :math:`g` the one-hot label, over the valid pixels
    :math:`i` of an image,

    .. math::
      \ell = \frac{1}{|K|} \sum_{c \in K} 1 -
        \frac{2 \sum_i p_{ic}\, g_{ic}}{\sum_i p_{ic}^2 + \sum_i g_{ic}^2}

    with :math:`K` the classes that the image has (Milletari et al., "V-Net", 2016, section 3, there
    for one class). In ``[0, 1]``. A class weighs the same whatever its number of pixels; class
    weights and label smoothing play no part.

    It is a mean over images, not over the pixels of the batch: the overlap of a whole batch would
    not be a sum over its parts.

    Args:
      logits, label, ignore_label, align_corners: see `segmentation_loss`.
      squared: whether the denominator has squares, as in the paper; without, as in many ports,
        :math:`\sum p + \sum g`. The two are one for predictions of 0 and 1.

    Returns:
      ``(sum over the images, number of images with a valid pixel)``, float32 scalars.

    Raises:
      ValueError: as `segmentation_loss`.

    Examples:
      >>> logits = jnp.array([[[[9.0, 0.0], [0.0, 9.0]]]])
      >>> total, images = dice_loss(logits, jnp.array([[[0, 1]]]))
      >>> print(f"{total:.4f}, {dice_loss(logits, jnp.array([[[1, 0]]]))[0]:.4f}")
      0.0000, 0.9999
    """
    logits, valid = masked_logits(logits, label, ignore_label, align_corners)
    probs = jnp.where(valid[..., None], jax.nn.softmax(logits, axis=-1), 0.0)
    is_label = one_hot(label, logits.shape[-1])
    is_label &= valid[..., None]

    overlap = jnp.sum(jnp.where(is_label, probs, 0.0), axis=(1, 2))  # [N, C]
    size = jnp.sum(jnp.square(probs) if squared else probs, axis=(1, 2))
    pixels = jnp.sum(is_label, axis=(1, 2), dtype=jnp.int32).astype(jnp.float32)
    loss = 1.0 - 2.0 * overlap / safe_divisor(size + pixels)
    present = pixels > 0
    classes = jnp.sum(present, axis=1, dtype=jnp.int32).astype(jnp.float32)
    image_loss = jnp.sum(jnp.where(present, loss, 0.0), axis=1) / safe_divisor(classes)
    return jnp.sum(image_loss), images_with_pixels(valid)
