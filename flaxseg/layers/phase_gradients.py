"""Computes the kernel gradients of convolutions by what cuDNN has a kernel for: the form for GPUs.

The kernel gradient of a convolution is itself a convolution, of the image with a window that is the
whole gradient. cuDNN computes it with kernels of its own, but XLA recognises it only where the
taps lie side by side, and where the output is no larger than the input; else it runs as an ordinary
convolution with a window of, say, 60x60, of which cuDNN makes little. So the image and the gradient
are divided into the phases of the dilation, on which the convolution is an ordinary one (Chen et
al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected CRFs", 2015,
section 3.1; also called space to batch), and a transposed convolution is differentiated as the
gradient of the convolution that it transposes.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from flaxseg.layers.taps import Pads, output_size, place
from flaxseg.layers.xla_convolution import native_conv, native_transposed_conv

_NO_PADS = ((0, 0), (0, 0))


def conv_phases(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, int],
    rate: tuple[int, int],
    pads: Pads,
    groups: int = 1,
) -> jax.Array:
    """Returns XLA's convolution with a kernel gradient that suits cuDNN; reverse mode only where
    XLA's own gradient would not."""
    size, kernel_size = x.shape[1:3], kernel.shape[:2]
    out = output_size(size, kernel_size, strides, rate, pads)
    if _taps_are_apart(kernel_size, rate) or _is_wider(out, strides, size):
        return _conv_phases(x, kernel, strides, rate, pads, groups)
    return native_conv(x, kernel, strides, rate, pads, groups)


def _taps_are_apart(kernel_size, rate) -> bool:
    return any(k > 1 and r > 1 for k, r in zip(kernel_size, rate, strict=True))


def _is_wider(out, strides, size) -> bool:
    """Returns whether the outputs, a stride apart, span more cells than the input has.

    XLA then takes the input for the window: it runs the kernel gradient as a convolution of the
    gradient with the image.
    """
    return any(s * (m - 1) + 1 > n for m, s, n in zip(out, strides, size, strict=True))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _conv_phases(x, kernel, strides, rate, pads, groups):
    return native_conv(x, kernel, strides, rate, pads, groups)


def _conv_phases_forward(x, kernel, strides, rate, pads, groups):
    return _conv_phases(x, kernel, strides, rate, pads, groups), (x, kernel)


def _conv_phases_backward(strides, rate, pads, groups, residuals, gradient):
    x, kernel = residuals
    _, transpose = jax.vjp(lambda x: native_conv(x, kernel, strides, rate, pads, groups), x)
    (x_gradient,) = transpose(gradient)
    return x_gradient, _kernel_gradient(x, kernel, gradient, strides, rate, pads, groups)


_conv_phases.defvjp(_conv_phases_forward, _conv_phases_backward)


def _kernel_gradient(x, kernel, gradient, strides, rate, pads, groups):
    """Returns the gradient of the kernel as that of a convolution without dilation."""
    apart = tuple(s if r > 1 else 1 for s, r in zip(strides, rate, strict=True))
    if apart != (1, 1):  # strides over a dilated kernel: the outputs between have no gradient
        out = tuple(s * (m - 1) + 1 for s, m in zip(apart, gradient.shape[1:3], strict=True))
        places = tuple(slice(0, m, s) for m, s in zip(out, apart, strict=True))
        gradient = place(gradient, places, out)
        strides = tuple(s // a for s, a in zip(strides, apart, strict=True))
    x_edges, phase_pads, gradient_edges = [], [], []
    for n, m, k, s, r, (before, _) in zip(
        x.shape[1:3], gradient.shape[1:3], kernel.shape[:2], strides, rate, pads, strict=True
    ):
        outputs = -(-m // r)
        low = before % r if before > 0 else before
        around = max(before, 0) // r
        # The cells of a phase that its outputs read.
        cells = min(-(-(low + n) // r), s * (outputs - 1) + k - around)
        x_edges.append((low, cells * r - low - n))
        phase_pads.append((around, s * (outputs - 1) + k - around - cells))
        gradient_edges.append((0, outputs * r - m))
    x, gradient = _phases(x, x_edges, rate), _phases(gradient, gradient_edges, rate)
    if _is_wider(gradient.shape[1:3], strides, x.shape[1:3]):
        # The compiler would take the padding into the convolution's.
        x = lax.optimization_barrier(jnp.pad(x, ((0, 0), *phase_pads, (0, 0))))
        phase_pads = _NO_PADS
    pads = tuple(phase_pads)
    _, transpose = jax.vjp(lambda k: native_conv(x, k, strides, (1, 1), pads, groups), kernel)
    return transpose(gradient)[0]


def _phases(x, edges, rate):
    """Returns the phases of `x` `[N, H, W, C]` as images of their own, `[N * rh * rw, H / rh, W /
    rw, C]`, after padding or cutting its edges."""
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*e, 0) for e in edges), (0, 0, 0)])
    if rate == (1, 1):
        return x
    n, height, width, channels = x.shape
    rows, columns = height // rate[0], width // rate[1]
    x = x.reshape(n, rows, rate[0], columns, rate[1], channels)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, rows, columns, channels)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def transposed_conv_phases(x: jax.Array, kernel: jax.Array, strides: int) -> jax.Array:
    """Returns XLA's transposed convolution with the gradients of the convolution that it
    transposes; reverse mode only."""
    return native_transposed_conv(x, kernel, strides)


def _transposed_forward(x, kernel, strides):
    return transposed_conv_phases(x, kernel, strides), (x, kernel)


def _transposed_backward(strides, residuals, gradient):
    x, kernel = residuals

    # `y = D(x, k)` and `x' = C(y, k)` are transposes of each other in x and y, so `<D(x, k), g> =
    # <x, C(g, k)>`: the gradient of x is C, and that of the kernel is C's at x.
    def transposed(kernel):
        return native_conv(gradient, kernel.swapaxes(2, 3), (strides, strides), (1, 1), _NO_PADS)

    x_gradient, transpose = jax.vjp(transposed, kernel)
    return x_gradient, transpose(x)[0]


transposed_conv_phases.defvjp(_transposed_forward, _transposed_backward)
