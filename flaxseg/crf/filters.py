"""Filters with a kernel between all pixels of an image, on the lattice or exactly."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from flaxseg.crf.kernels import BilateralKernel, GaussianKernel, Kernel
from flaxseg.crf.lattice import Lattice, build_lattice, lattice_filter, scale_lattice

BACKENDS = ("lattice", "exact")

# Pairs of pixels whose kernel is held at a time: 64 MiB.
_PAIRS = 1 << 24
# Of the sum of a pixel's kernel: what is less came from no other pixel, but from rounding.
_NOTHING = 1e-5


@flax.struct.dataclass
class LatticeFilter:
    """Applies the approximation by `lattice_filter`."""

    lattice: Lattice

    def __call__(self, values: jax.Array) -> jax.Array:
        """Returns K values, `[N, C]`."""
        return lattice_filter(self.lattice, values)

    def self_weight(self) -> jax.Array:
        """Returns `[N]`: how much of a pixel comes back to itself.

        From one vertex of a simplex to another one, k remainders on, lead k steps forth along as
        many axes, or d + 1 - k back along the others; and once along all axes, forth or back, leads
        to the same one. All vertices on the way are taken to exist; where some do not, this is more
        than comes back.
        """
        weight = self.lattice.weight
        d = len(weight) - 1
        total = jnp.zeros(weight.shape[1])
        for r in range(d + 1):
            for s in range(d + 1):
                k = abs(r - s)
                ways = 2.0**-k + 2.0 ** -(d + 1 - k) if k else 1 + 2.0**-d
                total += ways * weight[r] * weight[s]
        return total / (1 + 2.0**-d)

    def vertices_per_point(self) -> jax.Array:
        return self.lattice.num_vertices / self.lattice.vertex.shape[1]

    def fits(self) -> jax.Array:
        return self.lattice.fits


@flax.struct.dataclass
class ExactFilter:
    """Sums over all pairs of pixels, in blocks: time grows with the square of N."""

    features: jax.Array  # [N, d]

    def __call__(self, values: jax.Array) -> jax.Array:
        """Returns K values, `[N, C]`."""
        features = self.features
        n = len(features)
        rows = max(1, min(n, _PAIRS // n))
        blocks = -(-n // rows)
        padded = jnp.pad(features, ((0, blocks * rows - n), (0, 0)))

        # The kernel is computed again for the gradient: N^2 of it would have to be kept.
        @jax.checkpoint
        def block(part):
            distance = sum(
                (part[:, None, k] - features[None, :, k]) ** 2 for k in range(features.shape[1])
            )
            return jnp.matmul(jnp.exp(-0.5 * distance), values, precision=lax.Precision.HIGHEST)

        result = lax.map(block, padded.reshape(blocks, rows, -1))
        return result.reshape(blocks * rows, -1)[:n]

    def self_weight(self) -> jax.Array:
        return jnp.ones(len(self.features))

    def vertices_per_point(self) -> jax.Array:
        return jnp.zeros(())

    def fits(self) -> jax.Array:
        return jnp.ones((), bool)


@flax.struct.dataclass
class GridFilter:
    """Applies the Gaussian of positions alone, exactly: one sum along columns, one along rows."""

    sigma: jax.Array  # [2], along x and y
    size: tuple[int, int] = flax.struct.field(pytree_node=False)

    def __call__(self, values: jax.Array) -> jax.Array:
        """Returns K values, `[N, C]`."""
        height, width = self.size
        columns, rows = (
            _line_kernel(length, self.sigma[k]) for k, length in ((1, height), (0, width))
        )
        product = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)
        x = product("ij,jwc->iwc", columns, values.reshape(height, width, -1))
        return product("kw,iwc->ikc", rows, x).reshape(height * width, -1)

    def self_weight(self) -> jax.Array:
        return jnp.ones(self.size[0] * self.size[1])

    def vertices_per_point(self) -> jax.Array:
        return jnp.zeros(())

    def fits(self) -> jax.Array:
        return jnp.ones((), bool)


Filter = LatticeFilter | ExactFilter | GridFilter


@flax.struct.dataclass
class NormalizedFilter:
    """Computes `scale_out * (K - diag(self)) (scale_in * values)`."""

    filter: Filter
    own: jax.Array | None
    scale_in: jax.Array | None
    scale_out: jax.Array | None

    def __call__(self, values: jax.Array) -> jax.Array:
        """Returns `[N, C]` of `[N, C]`."""
        if self.scale_in is not None:
            values = values * self.scale_in
        result = self.filter(values)
        if self.own is not None:
            result = result - self.own * values
        return result if self.scale_out is None else result * self.scale_out


@functools.partial(jax.jit, static_argnames=("backend", "self_term", "capacity"))
def make_filter(
    kernel: Kernel,
    image: jax.Array,
    *,
    backend: str = "lattice",
    self_term: bool = True,
    capacity: float | None = None,
) -> NormalizedFilter:
    """Returns the normalised filter of a kernel over an image. For a `GaussianKernel` it depends on
    the size of the image alone.

    Args:
      kernel: which.
      image: `[H, W, 3]`, 0..255.
      backend: `"lattice"` or `"exact"`.
      self_term: whether a pixel counts among its own neighbours, as it does in the C++; in the
        paper's sum it does not.
      capacity: of the lattice; see `build_lattice`.
    """
    filter = _make(kernel, image, backend, capacity)
    n = image.shape[0] * image.shape[1]
    total = filter(jnp.ones((n, 1)))
    own = None
    if not self_term:
        own = jnp.minimum(filter.self_weight()[:, None], total)
        others = total - own
        alone = others <= _NOTHING * total
        total = jnp.where(alone, 1.0, others)
    scale_in = scale_out = None
    match kernel.normalization:
        case "symmetric":
            scale_in = scale_out = lax.rsqrt(total + 1e-20)
        case "after":
            scale_out = 1 / (total + 1e-20)
        case "before":
            scale_in = 1 / (total + 1e-20)
    if not self_term:
        scale_out = jnp.where(alone, 0.0, 1.0 if scale_out is None else scale_out)
    elif isinstance(filter, LatticeFilter):
        # Two products less in each iteration.
        ones = jnp.ones(n)
        before, after = (ones if s is None else s[:, 0] for s in (scale_in, scale_out))
        filter = LatticeFilter(scale_lattice(filter.lattice, before, after))
        scale_in = scale_out = None
    return lax.stop_gradient(NormalizedFilter(filter, own, scale_in, scale_out))


def _make(kernel: Kernel, image: jax.Array, backend: str, capacity: float | None) -> Filter:
    height, width = image.shape[:2]
    if isinstance(kernel, GaussianKernel):
        sigma = jnp.broadcast_to(jnp.asarray(kernel.sigma, jnp.float32), (2,))
        if backend == "exact":
            return GridFilter(sigma, (height, width))
        features = _places(height, width, sigma)
    else:
        features = bilateral_features(kernel, image)
        if backend == "exact":
            return ExactFilter(features)
    return LatticeFilter(build_lattice(features, capacity))


def bilateral_features(kernel: BilateralKernel, image: jax.Array) -> jax.Array:
    """Returns `[H * W, 5]`: x, y and the channels of an image over their standard deviations."""
    sigma = jnp.broadcast_to(jnp.asarray(kernel.sigma_xy, jnp.float32), (2,))
    sigma_rgb = jnp.broadcast_to(jnp.asarray(kernel.sigma_rgb, jnp.float32), (3,))
    colors = image.astype(jnp.float32).reshape(-1, 3) / sigma_rgb[None]
    return jnp.concatenate([_places(*image.shape[:2], sigma), colors], -1)


def _places(height: int, width: int, sigma: jax.Array) -> jax.Array:
    """Returns `[H * W, 2]`: x and y over their standard deviations."""
    y, x = jnp.mgrid[:height, :width].astype(jnp.float32)
    return jnp.stack([x.ravel() / sigma[0], y.ravel() / sigma[1]], -1)


def _line_kernel(length: int, sigma: jax.Array) -> jax.Array:
    place = jnp.arange(length, dtype=jnp.float32) / sigma
    return jnp.exp(-0.5 * (place[:, None] - place[None]) ** 2)
