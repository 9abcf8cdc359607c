"""Normalisations and composite blocks: BatchNorm, ASPP, separable convolution, auxiliary head."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import random_image

from flaxseg.layers import (
    ASPP,
    IMAGENET,
    AtrousConv,
    AuxiliaryHead,
    BatchNorm,
    ConvBlock,
    ImagePooling,
    SeparableConv,
    local_response_norm,
    normalize,
)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(shapes, seed=0):
    """Random variables, positive variances."""
    rng = np.random.default_rng(seed)

    def value(path, s):
        values = rng.normal(size=s.shape).astype(np.float32) * 0.3
        return np.abs(values) + 0.5 if path[-1].key in ("var", "scale") else values

    return jax.tree_util.tree_map_with_path(value, shapes)


def random_variables(module, x):
    return filled(jax.eval_shape(module.init, jax.random.key(0), x))


@pytest.mark.peer
@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_equals_torch(train):
    torch = peers.import_torch()
    x, weight = random(3, 5, 4, 6) * 2 + 1, random(3, 5, 4, 6, seed=1)
    norm = BatchNorm(momentum=0.8, epsilon=1e-3)
    variables = random_variables(norm, x)
    theirs = torch.nn.BatchNorm2d(6, eps=1e-3, momentum=0.2)
    for name, value in (
        ("weight", variables["params"]["scale"]),
        ("bias", variables["params"]["bias"]),
        ("running_mean", variables["batch_stats"]["mean"]),
        ("running_var", variables["batch_stats"]["var"]),
    ):
        getattr(theirs, name).data.copy_(torch.from_numpy(value))
    theirs.train(train)

    def value(params, x):
        return norm.apply({**variables, "params": params}, x, train=train, mutable="batch_stats")

    (y, updates), transpose = jax.vjp(value, variables["params"], x)
    their_x = peers.to_torch(x).requires_grad_()
    wanted = theirs(their_x)
    np.testing.assert_allclose(y, peers.from_torch(wanted), atol=1e-5)
    wanted.backward(peers.to_torch(weight))
    zero = jax.tree.map(jnp.zeros_like, updates)
    params_gradient, x_gradient = transpose((jnp.asarray(weight), zero))
    np.testing.assert_allclose(x_gradient, peers.from_torch(their_x.grad), atol=1e-5)
    np.testing.assert_allclose(params_gradient["scale"], theirs.weight.grad.numpy(), rtol=1e-4)
    np.testing.assert_allclose(params_gradient["bias"], theirs.bias.grad.numpy(), rtol=1e-4)
    np.testing.assert_allclose(
        updates["batch_stats"]["mean"], theirs.running_mean.numpy(), atol=1e-6
    )
    # PyTorch's running variance is the unbiased one; the paper's and ours is that of the batch.
    n = 3 * 5 * 4
    moved = theirs.running_var.numpy()
    if train:
        old = 0.8 * variables["batch_stats"]["var"]
        moved = old + (moved - old) * (n - 1) / n
    np.testing.assert_allclose(updates["batch_stats"]["var"], moved, rtol=1e-5)


def test_batch_norm_statistics_are_float32_in_bfloat16():
    # In bfloat16 the sum of 4096 values near 100 would be far off.
    x = jnp.asarray(100 + random(1, 64, 64, 2), jnp.bfloat16)
    norm = BatchNorm(momentum=0.0)
    variables = norm.init(jax.random.key(0), x)
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    wide = np.asarray(x, np.float64)
    assert y.dtype == jnp.bfloat16
    assert updates["batch_stats"]["mean"].dtype == jnp.float32
    np.testing.assert_allclose(updates["batch_stats"]["mean"], wide.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(updates["batch_stats"]["var"], wide.var((0, 1, 2)), rtol=2e-2)


def test_frozen_batch_norm_trains_on_running_statistics():
    x = random(2, 3, 3, 4)
    norm = BatchNorm(frozen=True)
    variables = random_variables(norm, x)
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_array_equal(y, norm.apply(variables, x))
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


def test_aspp_by_its_parts():
    """Each branch computed alone, concatenated in the documented order, projected."""
    x = random(2, 7, 9, 20)
    aspp = ASPP(rates=(1, 3), features=8)
    variables = random_variables(aspp, x)

    def part(name, module, y):
        chosen = {k: v[name] for k, v in variables.items()}
        return module.apply(chosen, y)

    branches = [
        part("aspp0", ConvBlock(8, 1), x),
        part("aspp1", ConvBlock(8, 3, rate=1), x),
        part("aspp2", ConvBlock(8, 3, rate=3), x),
        part("image_pooling", ImagePooling(8), x),
    ]
    pooled = branches[-1]
    np.testing.assert_array_equal(pooled, np.broadcast_to(pooled[:, :1, :1], pooled.shape))
    wanted = part("project", ConvBlock(8, 1), jnp.concatenate(branches, -1))
    np.testing.assert_allclose(aspp.apply(variables, x), wanted, atol=1e-5)
    mean = x.mean((1, 2), keepdims=True)
    pooling = {k: v["image_pooling"]["block"] for k, v in variables.items()}
    np.testing.assert_allclose(pooled[:, :1, :1], ConvBlock(8, 1).apply(pooling, mean), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 33)])
@pytest.mark.parametrize("separable", [True, False])
def test_aspp_of_any_size(size, separable):
    x = random(1, *size, 16)
    aspp = ASPP(features=4, separable=separable)
    variables = random_variables(aspp, x)
    y = aspp.apply(variables, x)
    assert y.shape == (1, *size, 4)
    assert bool(np.isfinite(y).all())


def test_aspp_parameters_are_those_of_the_paper():
    x = jax.ShapeDtypeStruct((1, 5, 5, 2048), jnp.float32)
    shapes = jax.eval_shape(ASPP().init, jax.random.key(0), x)
    assert sum(p.size for p in jax.tree.leaves(shapes["params"])) == 15_535_104


def test_separable_conv_normalises_after_each_half():
    x = random(1, 6, 5, 3)
    layer = SeparableConv(4)
    variables = random_variables(layer, x)
    assert set(variables["params"]) == {
        "depthwise_conv",
        "depthwise_bn",
        "pointwise_conv",
        "pointwise_bn",
    }
    p, s = variables["params"], variables["batch_stats"]

    def norm(y, name):
        scale = p[name]["scale"] / np.sqrt(s[name]["var"] + 1e-5)
        return np.maximum((y - s[name]["mean"]) * scale + p[name]["bias"], 0)

    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = p["depthwise_conv"]["kernel"][:, :, 0]
    y = sum(padded[:, i : i + 6, j : j + 5] * kernel[i, j] for i in range(3) for j in range(3))
    y = norm(y, "depthwise_bn") @ p["pointwise_conv"]["kernel"][0, 0]
    np.testing.assert_allclose(layer.apply(variables, x), norm(y, "pointwise_bn"), atol=1e-5)


def test_auxiliary_head_has_a_quarter_of_the_channels():
    x = random(1, 4, 4, 64)
    head = AuxiliaryHead(5)
    variables = random_variables(head, x)
    assert variables["params"]["block"]["conv"]["kernel"].shape == (3, 3, 64, 16)
    assert head.apply(variables, x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_normalize_is_the_documented_formula():
    image = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    y = normalize(image, IMAGENET)
    wanted = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, wanted, atol=1e-5)
    with pytest.raises(ValueError, match="RGB"):
        normalize(image[..., :2], IMAGENET)


def test_local_response_norm_is_its_formula():
    x = random_image(2, 3, 4)[..., :1] * np.linspace(1, 90, 7, dtype=np.float32)
    squares = np.pad(x.astype(np.float64) ** 2, ((0, 0), (0, 0), (0, 0), (2, 2)))
    sums = sum(squares[..., shift : shift + 7] for shift in range(5))
    wanted = x / (1 + 1e-2 / 5 * sums) ** 0.75
    np.testing.assert_allclose(local_response_norm(x, alpha=1e-2), wanted, rtol=1e-5)


@pytest.mark.peer
def test_local_response_norm_equals_torch():
    torch = peers.import_torch()
    x = random_image(2, 5, 4)[..., :1] * np.linspace(1, 90, 7, dtype=np.float32)
    layer = torch.nn.LocalResponseNorm(5, alpha=1e-2, beta=0.75, k=1.0)
    wanted = peers.from_torch(layer(peers.to_torch(x)))
    np.testing.assert_allclose(local_response_norm(x, alpha=1e-2), wanted, rtol=1e-5)
    with pytest.raises(ValueError, match="positive odd number"):
        local_response_norm(x, 4)


def test_each_group_sees_its_own_channels():
    x, kernel = (
        np.random.default_rng(0).normal(size=shape).astype(np.float32)
        for shape in ((2, 5, 4, 6), (1, 1, 3, 4))
    )
    y = AtrousConv(4, 1, groups=2).apply({"params": {"kernel": kernel}}, x)
    wanted = [x[..., :3] @ kernel[0, 0, :, :2], x[..., 3:] @ kernel[0, 0, :, 2:]]
    np.testing.assert_allclose(y, np.concatenate(wanted, -1), atol=1e-5)


@pytest.mark.peer
@pytest.mark.parametrize(("strides", "rate"), [(1, 1), (2, 1), (1, 2)])
def test_groups_equal_torch(strides, rate):
    torch = peers.import_torch()
    x, kernel = (
        np.random.default_rng(0).normal(size=shape).astype(np.float32)
        for shape in ((2, 9, 8, 6), (3, 3, 3, 4))
    )
    layer = AtrousConv(4, 3, strides, rate, groups=2)
    y = layer.apply({"params": {"kernel": kernel}}, x)
    wanted = torch.nn.functional.conv2d(
        peers.to_torch(x),
        torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()),
        stride=strides,
        padding=rate,
        dilation=rate,
        groups=2,
    )
    np.testing.assert_allclose(y, peers.from_torch(wanted), atol=1e-4)
    with pytest.raises(ValueError, match="groups must divide both"):
        AtrousConv(4, groups=4).init(jax.random.key(0), x)
