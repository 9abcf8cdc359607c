"""BatchNorm folded into convolutions: the same function, and only where nothing else reads it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import relative_difference

from flaxseg.export import fold_batch_norm
from flaxseg.layers import (
    AtrousConv,
    BatchNorm,
    DepthwiseConv,
    LineConv,
    TransposedConv,
)

IMAGE = np.random.default_rng(0).normal(size=(2, 6, 7, 4)).astype(np.float32)


def random_variables(module, image=IMAGE):
    """Statistics and parameters far from those at the start."""
    rng = np.random.default_rng(1)

    def value(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 2.0, leaf.shape).astype(np.float32)
        return rng.normal(size=leaf.shape).astype(np.float32)

    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    return jax.tree_util.tree_map_with_path(value, shapes)


def paths(variables):
    flat = jax.tree_util.tree_leaves_with_path(variables)
    return {"/".join(key.key for key in path) for path, _ in flat}


def test_a_block_is_a_convolution_with_a_bias():
    block = nn.Sequential([AtrousConv(5, 1), BatchNorm(epsilon=0.1)])
    variables = random_variables(block)
    folded = fold_batch_norm(block, variables, IMAGE)
    assert paths(folded) == {"params/layers_0/kernel", "params/layers_1/shift"}
    conv = np.float64(variables["params"]["layers_0"]["kernel"][0, 0])
    norm = variables["params"]["layers_1"] | variables["batch_stats"]["layers_1"]
    wanted = (IMAGE @ conv - norm["mean"]) / np.sqrt(norm["var"] + 0.1) * norm["scale"]
    wanted = wanted + norm["bias"]
    got = np.float64(IMAGE @ folded["params"]["layers_0"]["kernel"][0, 0])
    got = got + np.asarray(folded["params"]["layers_1"]["shift"])
    assert relative_difference(got, wanted) < 1e-6
    assert relative_difference(block.apply(folded, IMAGE), wanted) < 1e-6


class Net(nn.Module):
    """A convolution of each kind, and BatchNorms that cannot be folded."""

    remat: bool = False

    @nn.compact
    def __call__(self, x, *, train=False):
        norm = BatchNorm
        kinds = {
            "dense": AtrousConv(8, 3, use_bias=True, name="dense"),
            "grouped": AtrousConv(8, 3, groups=2, name="grouped"),
            "depthwise": DepthwiseConv(3, name="depthwise"),
            "line": LineConv(6, (3, 1), use_bias=True, name="line"),
            "transposed": TransposedConv(6, 2, 2, name="transposed"),
            "linen": nn.Conv(6, (3, 3), name="linen"),
        }
        for name, conv in kinds.items():
            x = nn.relu(norm(name=f"{name}_bn")(conv(x), train=train))
        x = norm(name="after_relu")(x, train=train)
        # Two readers: the shortcut needs the output as it is.
        y = AtrousConv(6, 1, name="shared")(x)
        x = norm(name="shared_bn")(y, train=train) + y
        # One convolution before two normalisations.
        y = AtrousConv(6, 1, name="forked")(x)
        x = norm(name="fork_a")(y, train=train) * norm(name="fork_b")(y, train=train)
        # One block for two inputs.
        twice, twice_bn = AtrousConv(6, 3, name="twice"), norm(name="twice_bn")
        x = twice_bn(twice(x), train=train) + twice_bn(twice(x[:, ::-1]), train=train)
        # One block for two inputs, of which one is not normalised.
        partly = AtrousConv(6, 1, name="partly")
        x = norm(name="partly_bn")(partly(x), train=train) + partly(x[:, ::-1])
        # One normalisation of two convolutions.
        both = norm(name="both_bn")
        a, b = AtrousConv(6, 1, name="left")(x), AtrousConv(6, 1, name="right")(x)
        block = nn.remat(Block) if self.remat else Block
        x = both(a, train=train) + both(b, train=train)
        x = block(name="block")(x)
        return x, AtrousConv(3, 1, name="last")(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return BatchNorm(name="bn")(AtrousConv(6, 1, name="conv")(x))


@pytest.mark.parametrize("remat", [False, True])
def test_every_kind_is_folded_and_nothing_that_is_read_twice(remat):
    net = Net(remat)
    variables = random_variables(net)
    folded = fold_batch_norm(net, variables, jax.ShapeDtypeStruct(IMAGE.shape, np.float32))
    assert set(folded) == {"params"}
    kept = {path.split("/")[1] for path in paths(folded) if path.endswith("/factor")}
    assert kept == {"after_relu", "shared_bn", "fork_a", "fork_b", "both_bn", "partly_bn"}
    for name in ("shared", "forked", "partly", "left", "right", "last"):
        same = folded["params"][name]["kernel"], variables["params"][name]["kernel"]
        np.testing.assert_array_equal(*same)
    got, wanted = (jax.jit(net.apply)(v, IMAGE) for v in (folded, variables))
    for a, b in zip(got, wanted, strict=True):
        assert relative_difference(a, b) < 1e-5


def test_other_normalisations_and_variables_stay():
    block = nn.Sequential([AtrousConv(5, 1), nn.BatchNorm(use_running_average=True)])
    variables = random_variables(block)
    folded = fold_batch_norm(block, variables, IMAGE)
    assert paths(folded) == paths(variables)
    np.testing.assert_array_equal(block.apply(folded, IMAGE), block.apply(variables, IMAGE))


def test_folded_variables_are_for_evaluation():
    block = nn.Sequential([AtrousConv(5, 1), BatchNorm()])
    folded = fold_batch_norm(block, random_variables(block), IMAGE)
    with pytest.raises(ValueError, match="for evaluation"):
        BatchNorm().apply(
            {"params": folded["params"]["layers_1"]}, jnp.zeros((1, 1, 1, 5)), train=True
        )


def test_missing_statistics_are_an_error_as_before():
    block = nn.Sequential([AtrousConv(5, 1), BatchNorm()])
    with pytest.raises(Exception, match=r"batch_stats|mean"):
        block.apply({"params": random_variables(block)["params"]}, IMAGE)
