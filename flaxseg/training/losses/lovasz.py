"""Computes the Lovász-softmax loss."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.layers import preferred_form
from flaxseg.training.losses.pixels import images_with_pixels, masked_logits, one_hot, safe_divisor


def lovasz_loss(
    logits: jax.Array,
    label: jax.Array,
    *,
    ignore_label: int = 255,
    align_corners: bool | str = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Returns the Lovász extension of one minus the intersection over union, per image.

    (Berman et al., "The Lovász-Softmax Loss", 2018, equation 11.) With :math:`p =
    \mathrm{softmax}(z)`, the error of class :math:`c` at a valid pixel is :math:`m = 1 - p_c` where
    :math:`c` is the label and :math:`p_c` elsewhere. Over the pixels of an image in falling order
    of their errors

    .. math::
      \ell_c = \sum_i m_i \, (J_i - J_{i - 1})

    with :math:`J_i` one minus the IoU of class :math:`c` when the first :math:`i` pixels are wrong
    and all others right. The loss of an image is the mean over the classes it has. In ``[0, 1]``;
    for predictions of 0 and 1 it is one minus the mean IoU over these classes. Class weights and
    label smoothing play no part. It sorts the pixels once per class and image.

    It is a mean over images, not over the pixels of the batch: the errors of a whole batch, sorted,
    are not a sum over its parts. The authors' code offers both and trains with images one by one on
    PASCAL VOC, with batches on Cityscapes.

    Args:
      logits, label, ignore_label, align_corners: see `segmentation_loss`.

    Returns:
      ``(sum over the images, number of images with a valid pixel)``, float32 scalars.

    Raises:
      ValueError: as `segmentation_loss`.

    Examples:
      >>> logits = 20.0 * jax.nn.one_hot(jnp.array([[[0, 0, 1, 1]]]), 2)
      >>> total, images = lovasz_loss(logits, jnp.array([[[0, 1, 1, 1]]]))
      >>> print(f"{total:.4f}")  # IoU 1/2 and 2/3
      0.4167
    """
    logits, valid = masked_logits(logits, label, ignore_label, align_corners)
    num_classes = logits.shape[-1]
    probs = jax.nn.softmax(logits, axis=-1)
    is_label = one_hot(label, num_classes)
    is_label &= valid[..., None]
    error = jnp.where(is_label, 1.0 - probs, probs)

    def rows(pixels: jax.Array) -> jax.Array:
        """Returns ``[N, H, W, C]`` as ``[N, C, H W]``."""
        return jnp.swapaxes(pixels.reshape(pixels.shape[0], -1, num_classes), 1, 2)

    error, is_label = rows(error), rows(is_label)
    is_valid = jnp.broadcast_to(valid.reshape(-1, 1, error.shape[2]), error.shape)
    # The order does not change under a small change of the errors: its weights are constants.
    weight = _jaccard_steps(jax.lax.stop_gradient(error), is_label, is_valid)
    loss = jnp.sum(weight * error, axis=2)  # [N, C]
    present = jnp.any(is_label, axis=2)
    classes = jnp.sum(present, axis=1, dtype=jnp.int32).astype(jnp.float32)
    image_loss = jnp.sum(jnp.where(present, loss, 0.0), axis=1) / safe_divisor(classes)
    return jnp.sum(image_loss), images_with_pixels(valid)


def _jaccard_steps(error: jax.Array, is_label: jax.Array, is_valid: jax.Array) -> jax.Array:
    """Returns how much one minus the IoU rises as each pixel becomes wrong, largest error first.

    Args:
      error: float ``[N, C, P]`` in ``[0, 1]``, P pixels, fewer than ``2**29``.
      is_label: bool ``[N, C, P]``, where the pixel has the class.
      is_valid: bool ``[N, C, P]``.

    Returns:
      float32 ``[N, C, P]``, zero where the pixel is not valid.
    """
    # One value to carry along, the place with the pixel's kind in the last two bits.
    places = jax.lax.broadcasted_iota(jnp.int32, error.shape, 2)
    kind = is_label.astype(jnp.int32) + 2 * (is_valid & ~is_label).astype(jnp.int32)
    carried = _in_falling_order(error, 4 * places + kind)
    has_class, has_other, place = carried % 4 == 1, carried % 4 == 2, carried // 4
    missed = jnp.cumsum(has_class, axis=-1, dtype=jnp.int32)
    added = jnp.cumsum(has_other, axis=-1, dtype=jnp.int32)
    size = missed[..., -1:]
    intersection = (size - missed).astype(jnp.float32)
    union = (size + added).astype(jnp.float32)
    # The differences written out: those of rounded J would have few digits left.
    step = jnp.where(has_class, 1.0 / jnp.maximum(union, 1.0), 0.0)
    step += jnp.where(has_other, intersection / jnp.maximum(union * (union - 1.0), 1.0), 0.0)
    images, classes, _ = jnp.indices(error.shape, sparse=True)
    return jnp.zeros_like(step).at[images, classes, place].set(step, unique_indices=True)


def _in_falling_order(error: jax.Array, carried: jax.Array) -> jax.Array:
    """Returns rows of `carried`, rising int32 from 0, in falling order of the errors; equal errors
    keep their order."""
    if preferred_form() != "products":
        return jax.lax.sort((-error, carried), num_keys=1)[1]
    # On a CPU numbers alone are sorted several times as fast as numbers with something attached.
    # The bits of a float that is not negative rise with it.
    with jax.enable_x64(True):
        rising = np.uint32(np.float32(1.0).view(np.uint32)) - error.view(jnp.uint32)
        both = (rising.astype(jnp.uint64) << np.uint64(32)) | carried.astype(jnp.uint64)
        return (jax.lax.sort(both) & np.uint64(0xFFFFFFFF)).astype(jnp.int32)
