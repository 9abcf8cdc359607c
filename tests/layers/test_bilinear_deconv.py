"""Bilinear deconvolution against PyTorch's transposed convolution, and by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import relative_difference

from flaxseg.layers import BilinearDeconv, bilinear_deconv, bilinear_kernel, transposed_conv

KERNELS = [(4, 2), (16, 8), (63, 32), (64, 32), (5, 2), (3, 3), (2, 3)]


def random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_kernels_by_hand():
    np.testing.assert_array_equal(bilinear_kernel(4), [0.25, 0.75, 0.75, 0.25])
    np.testing.assert_array_equal(bilinear_kernel(3), [0.5, 1.0, 0.5])
    for size in (4, 16, 32, 63, 64):
        factor = (size + 1) // 2
        assert bilinear_kernel(size).sum() == factor
        np.testing.assert_array_equal(bilinear_kernel(size), bilinear_kernel(size)[::-1])


@pytest.mark.peer
@pytest.mark.parametrize(("kernel_size", "strides"), KERNELS)
def test_fixed_form_equals_the_transposed_convolution(kernel_size, strides):
    torch = peers.import_torch()
    x = random(2, 3, 5, 3)
    line = torch.from_numpy(bilinear_kernel(kernel_size))
    weight = torch.outer(line, line)[None, None].repeat(3, 1, 1, 1)
    wanted = torch.nn.functional.conv_transpose2d(
        peers.to_torch(x), weight, stride=strides, groups=3
    )
    wanted = peers.from_torch(wanted)
    y = jax.jit(lambda x: bilinear_deconv(x, kernel_size, strides))(x)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    part = bilinear_deconv(x, kernel_size, strides, offset=1, size=(4, 2))
    np.testing.assert_allclose(part, wanted[:, 1:5, 1:3], atol=1e-5)


@pytest.mark.peer
@pytest.mark.parametrize(("kernel_size", "strides"), KERNELS)
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("form", ["native", "phases"])
def test_both_forms_and_their_gradients_equal_the_transposed_convolution(
    kernel_size, strides, depthwise, form
):
    torch = peers.import_torch()
    channels, features = 3, 3 if depthwise else 4
    x = random(2, 3, 5, channels)
    kernel = random(kernel_size, kernel_size, 1 if depthwise else channels, features)
    theirs = peers.to_torch(x).requires_grad_()
    order = (3, 2, 0, 1) if depthwise else (2, 3, 0, 1)
    weight = torch.from_numpy(kernel.transpose(order).copy()).requires_grad_()
    wanted = torch.nn.functional.conv_transpose2d(
        theirs, weight, stride=strides, groups=channels if depthwise else 1
    )
    probe = random(*np.moveaxis(np.empty(wanted.shape), 1, 3).shape)
    wanted.backward(peers.to_torch(probe))

    @jax.jit
    def value_and_gradients(x, kernel):
        y, pull = jax.vjp(lambda x, k: transposed_conv(x, k, strides, form=form), x, kernel)
        return y, *pull(jnp.asarray(probe))

    y, x_gradient, kernel_gradient = value_and_gradients(x, kernel)
    assert relative_difference(y, peers.from_torch(wanted)) < 1e-5
    assert relative_difference(x_gradient, peers.from_torch(theirs.grad)) < 1e-5
    wanted = weight.grad.numpy().transpose(np.argsort(order))
    assert relative_difference(kernel_gradient, wanted) < 1e-5


@pytest.mark.parametrize(("kernel_size", "strides"), [(4, 2), (64, 32), (5, 2), (2, 3)])
def test_forms_and_their_gradients_agree(kernel_size, strides):
    x, kernel = random(2, 3, 5, 3), random(kernel_size, kernel_size, 3, 4)

    @partial(jax.jit, static_argnames="form")
    def values_and_gradients(x, kernel, form):
        def both(x, kernel):
            fixed = bilinear_deconv(x, kernel_size, strides, offset=1, size=(4, 2), form=form)
            return fixed, transposed_conv(x, kernel, strides, form=form)

        y, pull = jax.vjp(both, x, kernel)
        return y, pull(jax.tree.map(lambda y: jnp.cos(jnp.arange(y.size)).reshape(y.shape), y))

    wanted = values_and_gradients(x, kernel, "native")
    found = values_and_gradients(x, kernel, "phases")
    for ours, native in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert relative_difference(ours, native) < 1e-5


@pytest.mark.parametrize("learned", ["depthwise", "dense"])
def test_learned_forms_begin_as_the_fixed_one(learned):
    x = random(1, 4, 3, 5)
    layer = BilinearDeconv(8, 4, learned)
    variables = layer.init(jax.random.key(0), x)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (8, 8, 5 if learned == "dense" else 1, 5)
    y = layer.apply(variables, x, offset=2, size=(16, 12))
    np.testing.assert_allclose(y, bilinear_deconv(x, 8, 4, offset=2, size=(16, 12)), atol=1e-6)
    assert "params" not in BilinearDeconv(8, 4).init(jax.random.key(0), x)


def test_a_constant_stays_constant_inside_and_a_cell_peaks_at_its_middle():
    y = bilinear_deconv(jnp.ones((1, 5, 5, 1)), 64, 32)[0, :, :, 0]
    np.testing.assert_allclose(y[32:-32, 32:-32], 1.0, atol=1e-6)
    one = jnp.zeros((1, 5, 5, 1)).at[0, 2, 1, 0].set(1.0)
    y = np.asarray(bilinear_deconv(one, 64, 32)[0, :, :, 0])
    row, column = np.nonzero(y == y.max())
    assert (row.mean(), column.mean()) == (2 * 32 + 31.5, 32 + 31.5)


def test_mistakes_are_named():
    x = jnp.ones((1, 3, 3, 2))
    with pytest.raises(ValueError, match="does not lie within"):
        bilinear_deconv(x, 4, 2, offset=3, size=(6, 6))
    with pytest.raises(ValueError, match="must be one of"):
        BilinearDeconv(4, 2, "all").init(jax.random.key(0), x)
