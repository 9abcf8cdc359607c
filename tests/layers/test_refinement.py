"""The blocks of RefineNet, values and gradients, against PyTorch's layers."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import relative_difference

from flaxseg.layers import ChainedResidualPooling, MultiResolutionFusion, ResidualConvUnit


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_params(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    values = [0.3 * random(*leaf.shape, seed=i) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, values)


def torch_conv(x, params):
    """A convolution of ours in PyTorch, kept in size by zeros."""
    torch = peers.import_torch()
    kernel = params["kernel"].permute(3, 2, 0, 1)
    return torch.nn.functional.conv2d(x, kernel, params.get("bias"), padding=kernel.shape[2] // 2)


def assert_equals_torch(module, inputs, wanted):
    """Compares the output and the gradients of all inputs and parameters."""
    torch = peers.import_torch()
    params = random_params(module, inputs)

    def apply(params, inputs):
        return module.apply({"params": params}, inputs)

    y, transpose = jax.vjp(jax.jit(apply), params, inputs)
    weight = random(*y.shape, seed=9)
    their_params = jax.tree.map(lambda p: torch.from_numpy(p).requires_grad_(), params)
    their_inputs = jax.tree.map(lambda x: peers.to_torch(x).requires_grad_(), inputs)
    output = wanted(their_inputs, their_params)
    assert relative_difference(y, peers.from_torch(output)) < 1e-5
    output.backward(peers.to_torch(weight))
    params_gradient, inputs_gradient = transpose(jnp.asarray(weight))
    for ours, theirs in zip(
        jax.tree.leaves((params_gradient, inputs_gradient)),
        (
            *(p.grad.numpy() for p in jax.tree.leaves(their_params)),
            *(peers.from_torch(x.grad) for x in jax.tree.leaves(their_inputs)),
        ),
        strict=True,
    ):
        assert relative_difference(ours, theirs) < 1e-5


@pytest.mark.peer
@pytest.mark.parametrize("kernel_size", [3, 1])
def test_residual_conv_unit_equals_torch(kernel_size):
    def wanted(x, params):
        y = torch_conv(x.relu(), params["conv1"])
        assert "bias" in params["conv1"]
        assert "bias" not in params["conv2"]
        return x + torch_conv(y.relu(), params["conv2"])

    assert_equals_torch(ResidualConvUnit(kernel_size), random(2, 5, 4, 6), wanted)


@pytest.mark.peer
@pytest.mark.parametrize("kernel_size", [3, 1])
@pytest.mark.parametrize(
    ("convolved", "align_corners"), [(None, True), ((2,), False)], ids=["all", "one"]
)
def test_multi_resolution_fusion_equals_torch(kernel_size, convolved, align_corners):
    """The largest height and the largest width are those of different inputs."""
    torch = peers.import_torch()
    inputs = [random(2, 7, 3, 4), random(2, 4, 5, 6, seed=1), random(2, 1, 1, 4, seed=2)]

    def wanted(inputs, params):
        total = 0
        for position, x in enumerate(inputs, 1):
            if convolved is None or position in convolved:
                x = torch_conv(x, params[f"conv{position}"])
            total = total + torch.nn.functional.interpolate(
                x, (7, 5), mode="bilinear", align_corners=align_corners
            )
        assert len(params) == (3 if convolved is None else 1)
        return total

    fusion = MultiResolutionFusion(4, kernel_size, convolved, align_corners)
    assert_equals_torch(fusion, inputs, wanted)


def test_fusion_of_one_input_is_that_input_and_impossible_ones_are_named():
    x = random(1, 3, 2, 4)
    y, variables = MultiResolutionFusion(8).init_with_output(jax.random.key(0), [x])
    np.testing.assert_array_equal(y, x)
    assert not variables
    with pytest.raises(ValueError, match="input 2 has 6 channels and no convolution"):
        jax.eval_shape(
            MultiResolutionFusion(4, convolved=(1,)).init,
            jax.random.key(0),
            [x, random(1, 2, 2, 6)],
        )
    with pytest.raises(ValueError, match="at least one to fuse"):
        MultiResolutionFusion(4).init(jax.random.key(0), [])


@pytest.mark.peer
@pytest.mark.parametrize("pool_first", [True, False])
@pytest.mark.parametrize(("blocks", "kernel_size", "bound"), [(4, 3, None), (2, 1, 6.0)])
def test_chained_residual_pooling_equals_torch(pool_first, blocks, kernel_size, bound):
    """Inputs are whole numbers and a half, so many windows have more than one maximum, and the
    gradient must go to the first."""
    torch = peers.import_torch()

    def wanted(x, params):
        total = link = x.relu() if bound is None else x.clamp(0, bound)
        for block in range(1, blocks + 1):
            if pool_first:
                link = torch.nn.functional.max_pool2d(link, 5, 1, 2)
            link = torch_conv(link, params[f"conv{block}"])
            if not pool_first:
                link = torch.nn.functional.max_pool2d(link, 5, 1, 2)
            total = total + link
        assert len(params) == blocks
        return total

    pooling = ChainedResidualPooling(
        blocks,
        pool_first,
        kernel_size=kernel_size,
        activation=jax.nn.relu if bound is None else jax.nn.relu6,
    )
    assert_equals_torch(pooling, np.round(3 * random(2, 9, 6, 3)) + np.float32(0.5), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"blocks": 0}, "blocks is 0"), ({"window": 4}, "window is 4; it must be an odd number")],
)
def test_impossible_chains_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ChainedResidualPooling(**options).init(jax.random.key(0), random(1, 3, 3, 2))


def test_blocks_compute_in_the_dtype_asked_for():
    x = random(1, 5, 5, 4)
    for module in (ResidualConvUnit, ChainedResidualPooling):
        y, variables = jax.eval_shape(module(dtype=jnp.bfloat16).init_with_output, key(), x)
        assert y.dtype == jnp.bfloat16
        assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
    fused, variables = jax.eval_shape(
        MultiResolutionFusion(4, dtype=jnp.bfloat16).init_with_output, key(), [x, x]
    )
    assert fused.dtype == jnp.bfloat16
    assert len(variables["params"]) == 2


def key():
    return jax.random.key(0)
