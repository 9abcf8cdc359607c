"""Mean-field inference in a fully connected CRF.

(Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", 2011.)
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxseg.crf.filters import BACKENDS, NormalizedFilter, make_filter
from flaxseg.crf.kernels import (
    CrfPreset,
    GaussianKernel,
    Kernel,
    check_kernel,
    concrete,
    crf_preset,
    is_traced,
)

_ITERATIONS = 10
# Vertices per pixel that are tried first for images of so many pixels: photos need fewer with all
# published parameters, and a third of the time to build a lattice with all room goes to memory that
# it does not use.
_ROOM = 3.0
_LARGE = 1 << 15


def dense_crf(
    unary: jax.Array | np.ndarray,
    image: jax.Array | np.ndarray,
    kernels: str | CrfPreset | Sequence[Kernel] = "pydensecrf_readme",
    *,
    iterations: int | None = None,
    backend: str = "lattice",
    self_term: bool = True,
    capacity: float | None = None,
) -> jax.Array:
    """Returns the label probabilities of pixels that look at each other: the mean field of a dense
    CRF.

    From `Q = softmax(-U)`, each iteration computes `Q = softmax(-U + sum_m w_m K_m Q)`; with
    compatibilities by class or pair, their products take the place of w.

    Example, for the logits of a model, on its image:

        marginals = dense_crf(-prediction.logits, image, "deeplab_v2_vgg16")
        pred = jnp.argmax(marginals, -1)

    Compiled once for each shape; other sigmas and weights use the same program. The images of a
    batch are treated one after the other. It can be called inside `jax.jit` and differentiated by
    the unary and the compatibilities; the kernels themselves, so image and sigmas, are constants to
    the gradient. Inside `jit` the values of the arguments cannot be looked at: there a capacity
    that is too small makes the image nan, and nan in the unary comes back as nan.

    Args:
      unary: energies U, `[H, W, C]` or `[N, H, W, C]`: minus the logits or log-probabilities.
      image: uint8 RGB of the same size, `[H, W, 3]` or `[N, H, W, 3]`.
      kernels: the name of a preset, a preset, or kernels.
      iterations: at least 0; by default that of the preset, 10 with kernels of your own.
      backend: `"lattice"`, or `"exact"` for the sums over all pairs, whose time grows with the
        square of the pixels.
      self_term: whether a pixel counts among its own neighbours: in the published code it does, in
        the paper it does not. On the lattice, what a pixel sends to itself is known well enough to
        leave it out, but not exactly.
      capacity: vertices of the lattice that there is room for, per pixel. By default 3, which is
        more than photos need, and where that is not enough, or inside `jit`, all that can occur.

    Returns:
      The marginals Q, float32 of the shape of the unary; they sum to 1 over the classes.

    Raises:
      TypeError: the unary is not of floats, the image not of uint8, or a kernel is none.
      ValueError: a shape or a value is wrong, or the lattice needs more than the capacity; the
        message names the argument.
    """
    if isinstance(kernels, str):
        kernels = crf_preset(kernels)
    if isinstance(kernels, CrfPreset):
        iterations = kernels.iterations if iterations is None else iterations
        kernels = kernels.kernels
    iterations = _ITERATIONS if iterations is None else iterations
    kernels = tuple(kernels)
    unary, image = jnp.asarray(unary), jnp.asarray(image)
    check_unary_and_image(unary, image, "unary")
    for kernel in kernels:
        check_kernel(kernel, unary.shape[-1])
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}; it must be 0 or more.")
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}.")
    if capacity is not None and not capacity > 0:
        raise ValueError(f"capacity is {capacity}; it must be above 0, or None for no limit.")
    batched = unary.ndim == 4
    if not batched:
        unary, image = unary[None], image[None]
    rooms = [capacity]
    large = image.shape[1] * image.shape[2] >= _LARGE
    if capacity is None and large and not is_traced((unary, image, kernels)):
        rooms = [_ROOM, None]
    for room in rooms:
        marginals, fits, needed = _marginals(
            unary.astype(jnp.float32), image, kernels, iterations, backend, self_term, room
        )
        fits = concrete(fits)
        if fits is None or fits:
            break
    if fits is not None and not fits:
        raise ValueError(_too_large(capacity, float(needed)))
    return marginals if batched else marginals[0]


def check_unary_and_image(unary: jax.Array, image: jax.Array, name: str) -> None:
    """Raises TypeError or ValueError, naming the argument, unless the two fit together; `name` is
    what the first one is called."""
    if not jnp.issubdtype(unary.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {unary.dtype}; give floats.")
    if unary.ndim not in (3, 4) or 0 in unary.shape:
        raise ValueError(
            f"{name} has shape {unary.shape}; wanted [H, W, C] or [N, H, W, C], class last."
        )
    if image.dtype != jnp.uint8:
        raise TypeError(
            f"image has dtype {image.dtype}; give the uint8 pixels 0..255: the standard deviation "
            "of colours is in these units."
        )
    if image.shape != (*unary.shape[:-1], 3):
        raise ValueError(
            f"image has shape {image.shape} and {name} {unary.shape}; wanted "
            f"{(*unary.shape[:-1], 3)}."
        )
    finite = concrete(jnp.all(jnp.isfinite(unary)))
    if finite is not None and not finite:
        raise ValueError(
            f"{name} holds nan or infinite values; clip probabilities before the logarithm, as "
            "unary_from_probabilities does."
        )


def _too_large(capacity: float | None, needed: float) -> str:
    if capacity is not None and needed > capacity:
        return (
            f"capacity is {capacity} and the image needs {needed:.2f} vertices per pixel; set "
            "capacity above it, or to None for no limit."
        )
    return (
        "sigma is too small for the size of the image: the lattice has more cells than 63 bits "
        "can number; use larger standard deviations."
    )


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _marginals(
    unary: jax.Array,
    image: jax.Array,
    kernels: tuple[Kernel, ...],
    iterations: int,
    backend: str,
    self_term: bool,
    capacity: float | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the marginals `[N, H, W, C]`, whether all lattices fit, and the vertices per pixel
    that the largest lattice needs."""
    make = functools.partial(make_filter, backend=backend, self_term=self_term, capacity=capacity)
    # Those of places are the same for all images.
    shared = {
        index: make(kernel, image[0])
        for index, kernel in enumerate(kernels)
        if isinstance(kernel, GaussianKernel)
    }

    def one(pair):
        unary, image = pair
        filters = [
            shared[index] if index in shared else make(kernel, image)
            for index, kernel in enumerate(kernels)
        ]
        compats = [kernel.compat for kernel in kernels]
        marginals = mean_field(unary.reshape(-1, unary.shape[-1]), filters, compats, iterations)
        fits = jnp.asarray([True, *(f.filter.fits() for f in filters)])
        needed = jnp.asarray([0.0, *(f.filter.vertices_per_point() for f in filters)])
        return marginals.reshape(unary.shape), jnp.all(fits), jnp.max(needed)

    marginals, fits, needed = lax.map(one, (unary, image))
    return marginals, jnp.all(fits), jnp.max(needed)


def mean_field(
    unary: jax.Array,
    filters: Sequence[NormalizedFilter],
    compats: Sequence[float | jax.Array],
    iterations: int,
) -> jax.Array:
    """Returns the marginals of one image.

    Args:
      unary: energies, float32 `[N, C]`.
      filters: from `make_filter`.
      compats: of each; see `GaussianKernel`.
      iterations: how many.

    Returns:
      float32 `[N, C]`.
    """

    # Keeps the marginals of each iteration for the gradient, and nothing else.
    @jax.checkpoint
    def iteration(q, _):
        logits = -unary
        for filter, compat in zip(filters, compats, strict=True):
            logits = logits + _message(filter(q), jnp.asarray(compat, jnp.float32))
        return jax.nn.softmax(logits), None

    return lax.scan(iteration, jax.nn.softmax(-unary), None, length=iterations)[0]


def _message(filtered: jax.Array, compat: jax.Array) -> jax.Array:
    if compat.ndim == 0:
        return compat * filtered
    if compat.ndim == 1:
        return -compat[None] * filtered
    cost = 0.5 * (compat + compat.T)
    return -jnp.matmul(filtered, cost, precision=lax.Precision.HIGHEST)
