"""Computes the focal loss."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flaxseg.errors import ConfigError
from flaxseg.training.losses.cross_entropy import checked_weights
from flaxseg.training.losses.pixels import count, masked_logits, one_hot


def focal_loss(
    logits: jax.Array,
    label: jax.Array,
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    class_weights: Sequence[float] | None = None,
    ignore_label: int = 255,
    align_corners: bool | str = False,
) -> tuple[jax.Array, jax.Array]:
    r"""Returns cross entropy in which pixels that are already right count little.

    For a valid pixel with label :math:`y`, :math:`p = \mathrm{softmax}(z)` and class weights
    :math:`w`,

    .. math::
      \ell = -\alpha_y\, w_y\, (1 - p_y)^\gamma \log p_y

    (Lin et al., "Focal Loss for Dense Object Detection", 2017, section 3.2), and the mean is
    :math:`\sum \ell / \sum w_y`. With :math:`\gamma = 0` and without alpha it is cross entropy. It
    is computed from the logarithm of :math:`1 - p_y`, so that the gradient is finite at any finite
    logits and any gamma.

    A binary output may have one logit: it is that of class 1, and 0 is that of class 0, so that
    :math:`p_1` is its sigmoid.

    Args:
      label, class_weights, ignore_label, align_corners: see `segmentation_loss`.
      logits: float ``[N, h, w, C]``, any size and number of classes; ``C = 1`` is binary.
      gamma: finite, at least 0; the paper's best is 2.
      alpha: weight of class 1 in ``[0, 1]``, that of class 0 being ``1 - alpha``, for two classes;
        the paper has 0.25 beside ``gamma = 2``. Unlike class weights it scales the mean. None: 1
        for every class.

    Returns:
      ``(sum, weight)`` as `segmentation_loss` does.

    Raises:
      ConfigError: for a gamma, alpha or class weights out of their range, or alpha for more than
        two classes.
      ValueError: as `segmentation_loss`.

    Examples:
      >>> logits = jnp.array([[[[0.0, 0.0], [0.0, 5.0]]]])
      >>> total, count = focal_loss(logits, jnp.array([[[1, 1]]]))
      >>> print(f"{total:.4f}")  # the second pixel is right and adds next to nothing
      0.1733
    """
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ConfigError(f"gamma {gamma} must be a number of at least 0.")
    if alpha is not None and not 0.0 <= alpha <= 1.0:
        raise ConfigError(f"alpha {alpha} must be in [0, 1], or None.")
    if logits.shape[-1] == 1:
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=-1)
    logits, valid = masked_logits(logits, label, ignore_label, align_corners)
    num_classes = logits.shape[-1]
    weights = checked_weights(class_weights, num_classes)
    if alpha is not None and num_classes != 2:
        raise ConfigError(
            f"alpha {alpha} is for two classes, and the output has {num_classes}; "
            "set class_weights."
        )

    is_label = one_hot(label, num_classes)
    whole = jax.nn.logsumexp(logits, axis=-1)
    surprise = whole - jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    loss = surprise
    if gamma:
        # Not of 1 - p, which has no digits left where p is near 1, and an infinite slope there for
        # a gamma below 1.
        log_rest = jax.nn.logsumexp(logits, axis=-1, where=~is_label) - whole
        loss = jnp.exp(gamma * log_rest) * surprise
    if alpha is not None:
        loss *= jnp.where(is_label[..., 1], alpha, 1.0 - alpha)
    if weights is None:
        return jnp.sum(jnp.where(valid, loss, 0.0)), count(valid)
    pixel_weight = jnp.sum(jnp.where(is_label, jnp.asarray(weights), 0.0), axis=-1)
    return (
        jnp.sum(jnp.where(valid, pixel_weight * loss, 0.0)),
        jnp.sum(jnp.where(valid, pixel_weight, 0.0)),
    )
