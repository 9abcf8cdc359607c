"""Programs in ONNX's operations compute what they did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flaxseg.export.onnx_program import onnx_program
from flaxseg.layers import convolution_form, depthwise_conv, max_pool

IMAGE = np.random.default_rng(0).normal(size=(2, 7, 9, 3)).astype(np.float32) - 5.0
KERNEL = np.random.default_rng(1).normal(size=(3, 3, 1, 3)).astype(np.float32)


def depthwise(x):
    with convolution_form("products"):  # with a barrier and a gradient of its own
        return depthwise_conv(x, KERNEL)


PROGRAMS = {
    "max_pool": lambda x: max_pool(x, 3, strides=2, padding="torch"),
    "max_pool_rate": lambda x: max_pool(x, (2, 3), strides=(2, 1), rate=2, padding=1),
    "max_pool_ceil": lambda x: max_pool(x, 2, strides=2, ceil_mode=True),
    "pad": lambda x: lax.pad(x, np.float32(2.5), [(0, 0, 0), (1, 2, 1), (-1, 3, 0), (0, 0, 0)]),
    "edge": lambda x: jnp.pad(x, ((0, 0), (0, 2), (0, 0), (0, 0)), mode="edge"),
    "edge_of_nothing": lambda x: jnp.pad(x, ((0, 0),) * 4, mode="edge"),
    "remat": jax.checkpoint(lambda x: jax.nn.relu(x + 5) * jnp.where(x > 0, 1, x)),
    "depthwise": depthwise,
}
NOT_CONVERTED = ("reduce_window", "optimization_barrier", "custom_vjp", "custom_jvp", "pad[")


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("batch", [2, None])
def test_the_same_result_in_operations_that_are_converted(name, batch):
    count = jax.export.symbolic_shape("batch")[0] if batch is None else batch
    spec = jax.ShapeDtypeStruct((count, *IMAGE.shape[1:]), np.float32)
    program = onnx_program(lambda x: [PROGRAMS[name](x)], spec)
    text = str(jax.make_jaxpr(program)(spec))
    assert not [word for word in NOT_CONVERTED if word in text]
    if batch is not None:
        (found,) = program(IMAGE)
        np.testing.assert_allclose(found, PROGRAMS[name](IMAGE), rtol=1e-6)
