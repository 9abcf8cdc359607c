"""Computes energies of single pixels, from probabilities or from labels."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxseg.crf.kernels import concrete

# Probabilities of bfloat16 networks sum to one within so much.
_SUM_TOLERANCE = 2e-2


def unary_from_probabilities(
    probs: jax.Array | np.ndarray, *, scale: float = 1.0, clip: float = 1e-5
) -> jax.Array:
    """Returns `-log p`, where p is at least `clip`.

    >>> np.asarray(unary_from_probabilities(np.array([[0.5, 0.5]], np.float32))).round(3)
    array([[0.693, 0.693]], dtype=float32)

    Args:
      probs: `[..., C]`, not negative, sums of 1 over the classes.
      scale: in (0, 1], how far to trust them: `scale * p + (1 - scale) / C` is taken.
      clip: above 0, and at most 1: bounds the energy.

    Returns:
      Energies, float32 of the same shape.

    Raises:
      ValueError: the probabilities are negative, nan or not normalised, or another argument is out
        of range. Traced probabilities are not looked at.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale is {scale}; it must be above 0 and at most 1.")
    if not 0 < clip <= 1:
        raise ValueError(f"clip is {clip}; it must be above 0 and at most 1.")
    probs = jnp.asarray(probs)
    if not jnp.issubdtype(probs.dtype, jnp.floating) or probs.ndim < 1:
        raise ValueError(
            f"probs has shape {probs.shape} and dtype {probs.dtype}; give floats [..., C]."
        )
    probs = probs.astype(jnp.float32)
    low_and_sums = concrete((probs.min(), *(f(probs.sum(-1)) for f in (jnp.min, jnp.max))))
    if low_and_sums is not None:
        low, *sums = low_and_sums
        if not (low >= 0 and max(abs(s - 1) for s in sums) <= _SUM_TOLERANCE):
            raise ValueError(
                f"probs has a least value of {low:.4g} and sums over the last axis from "
                f"{sums[0]:.4g} to {sums[1]:.4g}; give probabilities, class last, such as "
                "jax.nn.softmax(logits)."
            )
    if scale < 1:
        probs = scale * probs + (1 - scale) / probs.shape[-1]
    return -jnp.log(jnp.clip(probs, clip, 1.0))


def unary_from_labels(
    labels: jax.Array | np.ndarray,
    num_classes: int,
    gt_prob: float,
    *,
    unsure_label: int | None = 255,
) -> jax.Array:
    """Returns energies that give a pixel's label the probability `gt_prob`; the other labels share
    the rest.

    >>> np.asarray(unary_from_labels(np.array([0, 255]), 2, 0.75)).round(3)
    array([[0.288, 1.386],
           [0.693, 0.693]], dtype=float32)

    Args:
      labels: integers `[...]`, 0..C-1.
      num_classes: C, at least 2.
      gt_prob: in (0, 1).
      unsure_label: of pixels for which all labels are equally likely; None if there is none.

    Returns:
      Energies, float32 `[..., C]`.

    Raises:
      ValueError: a label is none of these, or another argument is out of range. Traced labels are
        not looked at; those out of range get the energies of no label.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; it must be at least 2.")
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob is {gt_prob}; it must be above 0 and below 1.")
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels has dtype {labels.dtype}; give integers.")
    unsure = jnp.zeros(labels.shape, bool) if unsure_label is None else labels == unsure_label
    labels = labels.astype(jnp.int32)
    values = concrete(jnp.where(unsure, 0, labels))
    if values is not None and values.size and not 0 <= values.min() <= values.max() < num_classes:
        raise ValueError(
            f"labels go from {values.min()} to {values.max()}; wanted 0..{num_classes - 1}"
            + ("." if unsure_label is None else f", and {unsure_label} where unsure.")
        )
    other = -np.log((1 - gt_prob) / (num_classes - 1))
    own = jax.nn.one_hot(labels, num_classes, dtype=bool)
    energy = jnp.where(own, -np.log(gt_prob), other).astype(jnp.float32)
    return jnp.where(unsure[..., None], jnp.float32(np.log(num_classes)), energy)
