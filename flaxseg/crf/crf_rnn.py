"""CRF-as-RNN: mean-field inference as layers that learn what labels mean to each other.

(Zheng et al., "Conditional Random Fields as Recurrent Neural Networks", 2015.)
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from flaxseg.crf.filters import make_filter
from flaxseg.crf.kernels import BilateralKernel, GaussianKernel
from flaxseg.crf.mean_field import check_unary_and_image


def _scaled_identity(scale: float):
    return lambda key, shape, dtype=jnp.float32: scale * jnp.eye(*shape, dtype=dtype)


class CrfRnn(nn.Module):
    """Refines logits by mean-field iterations with learned weights.

    From `q = U`, an iteration is `q = U - Mu (Ws Fs + Wb Fb)`, where Fs and Fb are the averages of
    `softmax(q)` over the other pixels by a Gaussian of place, and of place and colour. Parameters
    are the `[C, C]` matrices `spatial_weights` Ws, `bilateral_weights` Wb and `compatibility` Mu;
    they begin as 3 I, 5 I and -I, as in the release, which is then the dense CRF with the preset
    `"crfasrnn"`. The paper puts it on a trained FCN-8s and trains both together.

    >>> layer = CrfRnn(num_classes=3)
    >>> image = jnp.zeros((1, 4, 5, 3), jnp.uint8)
    >>> logits, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 4, 5, 3)), image)
    >>> logits.shape, sorted(variables["params"])
    ((1, 4, 5, 3), ['bilateral_weights', 'compatibility', 'spatial_weights'])

    Attributes:
      num_classes: C.
      iterations: in training; 5 in the paper. The gradient keeps `[H, W, C]` for each.
      eval_iterations: otherwise; 10 in the paper.
      sigma_xy: standard deviation of places in the bilateral filter, in pixels.
      sigma_rgb: of colours, in grey levels 0..255.
      sigma: standard deviation of the spatial filter, in pixels.
      spatial_weight: the diagonal of Ws at the start.
      bilateral_weight: the diagonal of Wb at the start.
      backend: `"lattice"` or `"exact"`; see `dense_crf`.
      capacity: of the lattice; see `dense_crf`. Where it is too small, the logits are nan.

    Raises:
      TypeError: the logits are not floats, or the image is not uint8.
      ValueError: the shapes do not fit.
    """

    num_classes: int
    iterations: int = 5
    eval_iterations: int = 10
    sigma_xy: float = 160.0
    sigma_rgb: float = 3.0
    sigma: float = 3.0
    spatial_weight: float = 3.0
    bilateral_weight: float = 5.0
    backend: str = "lattice"
    capacity: float | None = None

    @nn.compact
    def __call__(self, logits: jax.Array, image: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns refined logits, float32 `[N, H, W, C]`, given `logits` of that shape and the
        uint8 image `[N, H, W, 3]`."""
        check_unary_and_image(logits, image, "logits")
        if logits.ndim != 4 or logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"logits have shape {logits.shape}; wanted [N, H, W, {self.num_classes}]."
            )
        shape = (self.num_classes, self.num_classes)
        spatial = self.param("spatial_weights", _scaled_identity(self.spatial_weight), shape)
        bilateral = self.param("bilateral_weights", _scaled_identity(self.bilateral_weight), shape)
        compatibility = self.param("compatibility", _scaled_identity(-1.0), shape)
        places = GaussianKernel(self.sigma, normalization="after")
        colors = BilateralKernel(self.sigma_xy, self.sigma_rgb, normalization="after")
        common = {"backend": self.backend, "capacity": self.capacity}
        spatial_filter = make_filter(places, image[0], **common)

        def one(pair):
            logits, image = pair
            unary = logits.reshape(-1, self.num_classes)
            bilateral_filter = make_filter(colors, image, **common)

            @jax.checkpoint
            def iteration(q, _):
                p = jax.nn.softmax(q)
                message = _product(spatial_filter(p), spatial)
                message += _product(bilateral_filter(p), bilateral)
                return unary - _product(message, compatibility), None

            length = self.iterations if train else self.eval_iterations
            return lax.scan(iteration, unary, None, length=length)[0].reshape(logits.shape)

        return lax.map(one, (logits.astype(jnp.float32), image))


def _product(values: jax.Array, matrix: jax.Array) -> jax.Array:
    """Returns `matrix v` for each row v of `[N, C]`."""
    return jnp.matmul(values, matrix.T, precision=lax.Precision.HIGHEST)
