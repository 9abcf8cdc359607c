"""L2 normalisation against NumPy and against PyTorch's `normalize`, gradient included."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import random_image, relative_difference

from flaxseg.layers import L2Norm


def test_cells_have_the_length_of_the_scale():
    x = random_image(2, 3, 4) * np.float32([1e4, 1.0, 1e-4])
    y, variables = L2Norm().init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["params"]["scale"], np.full(3, 10.0))
    np.testing.assert_allclose(np.linalg.norm(y, axis=-1), 10.0, rtol=1e-5)
    np.testing.assert_array_equal(L2Norm().apply(variables, jnp.zeros((1, 1, 1, 3))), 0.0)
    half = L2Norm(dtype=jnp.bfloat16).apply(variables, x)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), y, atol=0.05)


@pytest.mark.peer
def test_value_and_gradient_are_torchs():
    torch = peers.import_torch()
    x, scale = random_image(1, 5, 4), np.float32([3.0, -2.0, 7.0])

    @jax.jit
    def gradients(x, scale):
        def loss(x, scale):
            y = L2Norm().apply({"params": {"scale": scale}}, x)
            return jnp.sin(y).sum(), y

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, scale)

    (_, y), (x_gradient, scale_gradient) = gradients(x, scale)
    theirs = peers.to_torch(x).requires_grad_()
    factor = torch.from_numpy(scale).requires_grad_()
    wanted = torch.nn.functional.normalize(theirs, dim=1) * factor[:, None, None]
    wanted.sin().sum().backward()
    assert relative_difference(y, peers.from_torch(wanted)) < 1e-6
    assert relative_difference(x_gradient, peers.from_torch(theirs.grad)) < 1e-5
    assert relative_difference(scale_gradient, factor.grad.numpy()) < 1e-5
