"""Finds where a coarse segmentation is unsure or changes: the mask of LRR through which finer
scores are added."""

import jax
import jax.numpy as jnp


def boundary_mask(scores: jax.Array, window: int) -> jax.Array:
    """Returns the local maximum minus the local minimum of the probability of each class.

    It is 1 where a class is certain at one cell of the window and excluded at another, as near a
    boundary of that class, and 0 where the probability is flat. (Ghiasi and Fowlkes, "Laplacian
    Pyramid Reconstruction and Refinement for Semantic Segmentation", 2016.) Gradients flow through
    both maxima and the softmax, as in the release.

    Args:
      scores: `[N, H, W, C]`, before the softmax.
      window: side of the square window, odd: 9 in the release's training, 17 in its network for
        Cityscapes. Cells outside the image never win.

    Returns:
      `[N, H, W, C]` float32 in [0, 1].

    Raises:
      ValueError: the window is even or less than 1.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window is {window}; it must be odd and at least 1, such as 9.")
    probs = jax.nn.softmax(scores.astype(jnp.float32), axis=-1)
    return local_extreme(probs, window, largest=True) - local_extreme(probs, window, largest=False)


def masked_residual(
    coarse: jax.Array, residual: jax.Array, window: int
) -> tuple[jax.Array, jax.Array]:
    """Adds finer scores where the coarse ones have a boundary: `coarse + mask * residual`.

    Args:
      coarse: `[N, H, W, C]` scores, upsampled to the size of the finer ones.
      residual: `[N, H, W, C]`.
      window: of `boundary_mask`; 0 adds the residual everywhere.

    Returns:
      The sum, and the mask (ones for a window of 0), both `[N, H, W, C]`.
    """
    mask = boundary_mask(coarse, window) if window else jnp.ones_like(coarse)
    return coarse + mask * residual, mask


def local_extreme(x: jax.Array, window: int, *, largest: bool) -> jax.Array:
    """Returns the maximum or minimum over a square window around every cell; cells beyond the
    border do not count.

    Windows of 2, 4, 8, ... cells are made of two of half the size, first along rows, then along
    columns: 8 comparisons for a window of 9 and 10 for one of 17, in place of 81 and 289. The
    gradient goes to the first extreme of a window in row order, as of `max_pool`.

    Args:
      x: `[N, H, W, C]` floats.
      window: side of the window, odd.
      largest: whether the maximum is wanted.
    """
    for axis in (2, 1):
        reach = [(window // 2,) * 2 if i == axis else (0, 0) for i in range(4)]
        x = jnp.pad(x, reach, constant_values=-jnp.inf if largest else jnp.inf)
        seen = 1
        while seen < window:
            step = min(seen, window - seen)
            first, second = (
                jax.lax.slice_in_dim(x, start, x.shape[axis] - step + start, axis=axis)
                for start in (0, step)
            )
            x = jnp.where(first >= second if largest else first <= second, first, second)
            seen += step
    return x
