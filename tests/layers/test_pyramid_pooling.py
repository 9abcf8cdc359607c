"""Pooling over bins by brute force and against PyTorch; the pyramid that is made of it."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from flaxseg.layers import (
    ConvBlock,
    PyramidPooling,
    adaptive_average_pool,
    adaptive_max_pool,
    average_pool,
    resize,
)

POOLS = {"average": adaptive_average_pool, "max": adaptive_max_pool}


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_variables(module, x, seed=0):
    """Random variables, positive variances."""
    rng = np.random.default_rng(seed)

    def value(path, leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32) * 0.3
        return np.abs(values) + 0.5 if path[-1].key in ("var", "scale") else values

    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(value, shapes)


def pooled_by_hand(x, bins, reduce):
    y = np.zeros((x.shape[0], *bins, x.shape[3]))
    for i, j in itertools.product(range(bins[0]), range(bins[1])):
        start = [math.floor(k * n / b) for k, n, b in zip((i, j), x.shape[1:3], bins, strict=True)]
        end = [
            math.ceil((k + 1) * n / b) for k, n, b in zip((i, j), x.shape[1:3], bins, strict=True)
        ]
        y[:, i, j] = reduce(x[:, start[0] : end[0], start[1] : end[1]].astype(np.float64), (1, 2))
    return y


SIZES = [
    (2, 1),
    (13, 4),
    *(pytest.param(size, marks=pytest.mark.slow) for size in ((1, 1), (5, 7), (6, 12), (60, 45))),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bins", [(1, 1), (3, 3), (6, 6), (2, 5)])
def test_adaptive_pools_by_brute_force(size, bins):
    x = random(2, *size, 3)
    y = adaptive_average_pool(x, bins)
    np.testing.assert_allclose(y, pooled_by_hand(x, bins, np.mean), atol=1e-6)
    np.testing.assert_array_equal(adaptive_max_pool(x, bins), pooled_by_hand(x, bins, np.max))


@pytest.mark.peer
@pytest.mark.parametrize("size", [(1, 2), (5, 7), (13, 9)])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
@pytest.mark.parametrize("method", list(POOLS))
def test_adaptive_pools_and_their_gradients_equal_torch(method, size, bins):
    functional = peers.import_torch().nn.functional
    # Few values, so that most bins have several maxima: the first takes the gradient.
    x = np.random.default_rng(0).integers(-2, 2, (2, *size, 3)).astype(np.float32)
    y, transpose = jax.vjp(functools.partial(POOLS[method], bins=bins), x)
    their_x = peers.to_torch(x).requires_grad_()
    theirs = {"average": functional.adaptive_avg_pool2d, "max": functional.adaptive_max_pool2d}
    wanted = theirs[method](their_x, bins)
    np.testing.assert_allclose(y, peers.from_torch(wanted), atol=1e-6)
    weight = random(*y.shape)
    wanted.backward(peers.to_torch(weight))
    np.testing.assert_allclose(transpose(weight)[0], peers.from_torch(their_x.grad), atol=1e-6)


@pytest.mark.peer
@pytest.mark.parametrize("ceil_mode", [True, False])
@pytest.mark.parametrize(("window", "strides"), [(3, 3), ((4, 2), (2, 3)), (2, 1), (5, 2)])
def test_average_pool_equals_torch(window, strides, ceil_mode):
    functional = peers.import_torch().nn.functional
    x = random(2, 11, 8, 3)
    wanted = functional.avg_pool2d(peers.to_torch(x), window, strides, ceil_mode=ceil_mode)
    y = average_pool(x, window, strides=strides, ceil_mode=ceil_mode)
    np.testing.assert_allclose(y, peers.from_torch(wanted), atol=1e-6)


def test_pools_keep_bfloat16_and_sum_in_float32():
    x = jnp.full((1, 64, 64, 1), 1.0078125, jnp.bfloat16)  # the next above one
    for pool in POOLS.values():
        y, transpose = jax.vjp(functools.partial(pool, bins=2), x)
        assert y.dtype == jnp.bfloat16
        assert bool((y == x[:, :2, :2]).all())
        (gradient,) = transpose(jnp.ones_like(y))
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(gradient.astype(jnp.float32).sum(), 4, rtol=1e-2)


def test_mistakes_of_pooling_are_named():
    with pytest.raises(ValueError, match="bins is 0"):
        adaptive_average_pool(random(1, 4, 4, 1), 0)
    with pytest.raises(ValueError, match="window is"):
        average_pool(random(1, 4, 4, 1), (2, 0))


@pytest.mark.parametrize("method", list(POOLS))
@pytest.mark.parametrize("bins", [(1, 2, 3, 6), pytest.param((6, 3, 2, 1), marks=pytest.mark.slow)])
@pytest.mark.parametrize("align_corners", [True, False])
def test_pyramid_by_its_parts(method, bins, align_corners):
    """Each scale computed alone, concatenated after the features in the order of the bins."""
    x = random(2, 7, 9, 20)
    module = PyramidPooling(bins, method, align_corners=align_corners)
    variables = random_variables(module, x)
    parts = [x]
    for number in bins:
        pooled = pooled_by_hand(x, (number, number), {"average": np.mean, "max": np.max}[method])
        block = {k: v[f"pool{number}"] for k, v in variables.items()}
        reduced = ConvBlock(5, 1).apply(block, pooled.astype(np.float32))
        parts.append(resize(reduced, (7, 9), align_corners=align_corners))
    y = jax.jit(module.apply)(variables, x)
    assert y.shape == (2, 7, 9, 20 + 4 * 5)
    np.testing.assert_allclose(y, jnp.concatenate(parts, -1), atol=1e-5)


def test_the_order_of_the_bins_does_not_change_the_parameters():
    x = jnp.zeros((1, 4, 4, 8))
    trees = [
        jax.eval_shape(PyramidPooling(bins).init, jax.random.key(0), x)
        for bins in ((1, 2, 3, 6), (6, 3, 2, 1))
    ]
    assert trees[0] == trees[1]


def test_without_reduction_there_are_no_parameters():
    x = random(1, 6, 6, 3)
    y = PyramidPooling((1, 2), reduce=False).apply({}, x)
    assert y.shape == (1, 6, 6, 9)
    np.testing.assert_allclose(
        y[..., 3:6], np.broadcast_to(x.mean((1, 2)), (1, 6, 6, 3)), atol=1e-6
    )
    np.testing.assert_allclose(y[:, 0, 0, 6:], x[:, :3, :3].mean((1, 2)), atol=1e-6)
    np.testing.assert_array_equal(PyramidPooling(()).apply({}, x), x)


def test_sum_adds_the_scales():
    x = random(1, 5, 4, 3)
    concatenated = PyramidPooling(reduce=False).apply({}, x)
    y = PyramidPooling(reduce=False, fusion="sum").apply({}, x)
    np.testing.assert_allclose(y, concatenated.reshape(1, 5, 4, 5, 3).sum(3), atol=1e-5)


@pytest.mark.parametrize("method", list(POOLS))
def test_fixed_windows_equal_adaptive_ones_at_their_size(method):
    """The Caffe release's windows at crops of 473 and 713, at a third of the size of their maps."""
    for side, windows in ((20, (20, 10, 7, 4)), (30, (30, 15, 10, 5))):
        x = random(1, side, side, 8)
        bins = (1, 2, 3, 6) if side == 30 else (1, 2)
        module = PyramidPooling(bins, method)
        variables = random_variables(module, x)
        fixed = module.clone(windows=windows[: len(bins)])
        y, wanted = jax.jit(lambda *vx, f=fixed, m=module: (f.apply(*vx), m.apply(*vx)))(
            variables, x
        )
        np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_fixed_windows_keep_their_size_on_other_maps():
    x = random(1, 7, 4, 1)
    y = PyramidPooling((1, 2), windows=(9, 3), reduce=False).apply({}, x)
    np.testing.assert_allclose(y[..., 1], np.broadcast_to(x.mean(), (1, 7, 4)), atol=1e-6)
    # Rows 0-2, 3-5 and the one that is left; columns 0-2 and 3.
    cells = [[x[0, a : a + 3, b : b + 3, 0].mean() for b in (0, 3)] for a in (0, 3, 6)]
    np.testing.assert_allclose(y[0, ::3, ::3, 2], cells, atol=1e-6)


def test_overlapping_windows_are_those_of_the_released_icnet():
    """At its map of 33x65: windows of 8x15 every 5x10 give 6x6 cells, and so on."""
    x = random(1, 33, 65, 1)
    windows, strides = (
        ((33, 65), (17, 33), (13, 25), (8, 15)),
        ((33, 65), (16, 32), (10, 20), (5, 10)),
    )
    y = PyramidPooling(reduce=False, windows=windows, strides=strides).apply({}, x)
    np.testing.assert_allclose(y[0, 0, 0, 1:], [x[0, :h, :w].mean() for h, w in windows], atol=1e-6)
    np.testing.assert_allclose(
        y[0, -1, -1, 1:], [x[0, -h:, -w:].mean() for h, w in windows], atol=1e-6
    )
    assert [
        average_pool(x, w, strides=s, ceil_mode=True).shape[1:3]
        for w, s in zip(windows, strides, strict=True)
    ] == [(1, 1), (2, 2), (3, 3), (6, 6)]


@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        pytest.param((2, 1), marks=pytest.mark.slow),
        pytest.param((5, 33), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("options", [{}, {"pooling": "max"}, {"windows": (60, 30, 20, 10)}])
def test_pyramid_of_any_size(size, options):
    x = random(1, *size, 16)
    module = PyramidPooling(**options)
    y = jax.jit(module.apply)(random_variables(module, x), x)
    assert y.shape == (1, *size, 32)
    assert bool(np.isfinite(y).all())


def test_parameters_are_those_of_the_paper():
    x = jax.ShapeDtypeStruct((1, 5, 5, 2048), jnp.float32)
    shapes = jax.eval_shape(PyramidPooling().init, jax.random.key(0), x)
    assert sum(p.size for p in jax.tree.leaves(shapes["params"])) == 4 * (2048 * 512 + 2 * 512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": (1, 1)}, "distinct"),
        ({"bins": (0, 1)}, "from 1"),
        ({"pooling": "median"}, "'average' or 'max'"),
        ({"fusion": "product"}, "'concat' or 'sum'"),
        ({"fusion": "sum"}, "set features=8 or reduce=False"),
        ({"windows": (4, 2)}, "one for each"),
        ({"strides": (1, 2, 3, 6)}, "without windows"),
        ({"bins": tuple(range(1, 10))}, "set features"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PyramidPooling(**options).init(jax.random.key(0), jnp.zeros((1, 4, 4, 8)))
