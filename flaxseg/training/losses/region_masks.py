"""Losses of logits that say of each class "it is near" or "it is all around": LRR's dilation and
erosion heads."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.errors import ConfigError
from flaxseg.training.losses.pixels import one_hot, valid_pixels


def dilated_masks(
    logits: jax.Array,
    label: jax.Array,
    *,
    radius: int = 32,
    void_is_background: bool = False,
    ignore_label: int = 255,
    align_corners: bool | str = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Computes the logistic loss of each class against its mask, dilated by a disk.

    .. math::
      \ell = \sum_c \log(1 + e^{-t_c z_c})

    with :math:`t_c = 1` where the class is within `radius` pixels and -1 elsewhere. (Ghiasi and
    Fowlkes, "Laplacian Pyramid Reconstruction and Refinement for Semantic Segmentation", 2016; the
    radius is that of the released code.) The mask is made at the label's size and read at the
    centres of the logits' cells, whose stride is the power of two that fits.

    Args:
      logits: float ``[N, h, w, C]``, ``h = ceil(H / stride)`` and so on; computed with in float32.
      label: integer ``[N, H, W]``. An ignored pixel is of no class.
      radius: in pixels of the label, at least 0.
      void_is_background: whether ignored pixels count, with the mask that the others give them, as
        in the released code; else the loss at cells whose centre is ignored is left out.
      ignore_label: the label of pixels that are of no class.
      align_corners: of no influence; cells have fixed places.

    Returns:
      ``(sum, count)``, float32 scalars: the loss summed over classes and cells, and the number of
      cells.

    Raises:
      ConfigError: for a radius out of range.
      ValueError: when logits and label do not fit together.
    """
    del align_corners
    targets = class_masks(label, logits.shape, radius, erode=False, ignore_label=ignore_label)
    return _logistic(logits, targets, label, void_is_background, ignore_label)


def eroded_masks(
    logits: jax.Array,
    label: jax.Array,
    *,
    radius: int = 32,
    void_is_background: bool = False,
    ignore_label: int = 255,
    align_corners: bool | str = False,
) -> tuple[jax.Array, jax.Array]:
    """As `dilated_masks`, with masks eroded: 1 where all pixels within `radius` are of the class.

    What lies beyond the border of the image does not count. Arguments, returns and raises are
    those of `dilated_masks`.
    """
    del align_corners
    targets = class_masks(label, logits.shape, radius, erode=True, ignore_label=ignore_label)
    return _logistic(logits, targets, label, void_is_background, ignore_label)


def class_masks(
    label: jax.Array,
    shape: tuple[int, int, int, int],
    radius: int,
    *,
    erode: bool,
    ignore_label: int = 255,
) -> jax.Array:
    """Returns the masks of all classes, dilated or eroded by a disk, at the centres of cells.

    Along rows the distance to the next pixel of a class is a running maximum; then each of the `2
    radius + 1` rows that a disk meets is compared with the half width it has there. Only the rows
    and columns of cells' centres are computed.

    Args:
      label: integer ``[N, H, W]``.
      shape: ``(N, h, w, C)`` of the result.
      radius: of the disk, in pixels; all with a distance of at most that belong to it.
      erode: whether the pixels that are not of the class are dilated, and the rest is the mask.
      ignore_label: the label of pixels that are of no class.

    Returns:
      bool ``[N, h, w, C]``.
    """
    if radius < 0:
        raise ConfigError(f"radius {radius} must be at least 0.")
    rows, columns = _centres(label, shape)
    height, width = label.shape[1:]
    is_class = one_hot(label, shape[-1])
    is_class &= valid_pixels(label, shape[-1], ignore_label)[..., None]
    wanted = ~is_class if erode else is_class
    # The place of the nearest wanted pixel at or before each column, and at or after it.
    far = height + width + radius
    dtype = jnp.int16 if far + width < 2**15 else jnp.int32
    place = jnp.arange(width, dtype=dtype)[None, None, :, None]
    before = jax.lax.cummax(jnp.where(wanted, place, dtype(-far)), axis=2)
    after = jax.lax.cummin(jnp.where(wanted, place, dtype(far + width)), axis=2, reverse=True)
    nearest = jnp.minimum(place - before, after - place)[:, :, columns]
    nearest = jnp.pad(nearest, ((0, 0), (radius, radius), (0, 0), (0, 0)), constant_values=far)
    met = jnp.zeros(shape, bool)
    for offset in range(-radius, radius + 1):
        half = math.isqrt(radius**2 - offset**2)
        met |= nearest[:, rows + radius + offset] <= half
    return ~met if erode else met


def _logistic(
    logits: jax.Array,
    targets: jax.Array,
    label: jax.Array,
    void_is_background: bool,
    ignore_label: int,
) -> tuple[jax.Array, jax.Array]:
    rows, columns = _centres(label, logits.shape)
    logits = logits.astype(jnp.float32)
    if void_is_background:
        counted = jnp.ones(logits.shape[:3], bool)
    else:
        counted = valid_pixels(label[:, rows][:, :, columns], logits.shape[-1], ignore_label)
    # Zeros at cells that do not count, so that nothing there, not even NaN, reaches the gradient.
    logits = jnp.where(counted[..., None], logits, 0.0)
    loss = jax.nn.softplus(jnp.where(targets, -logits, logits)).sum(-1)
    total = jnp.sum(jnp.where(counted, loss, 0.0))
    return total, jnp.sum(counted, dtype=jnp.int32).astype(jnp.float32)


def _centres(label: jax.Array, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows and columns of pixels in the middle of cells."""
    if len(shape) != 4 or label.ndim != 3 or shape[0] != label.shape[0]:
        raise ValueError(
            f"logits of shape {shape} and label of shape {label.shape} do not fit together; "
            "give logits [N, h, w, C] and label [N, H, W]."
        )
    places = []
    for cells, pixels in zip(shape[1:3], label.shape[1:], strict=True):
        stride = 2 ** max(math.ceil(math.log2(pixels / cells)), 0)
        places.append(np.minimum(stride * np.arange(cells) + stride // 2, pixels - 1))
    rows, columns = places
    return rows, columns
