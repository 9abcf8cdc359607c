"""Resize, max pooling and average pooling against PyTorch and by hand."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from flaxseg.layers import global_average_pool, max_pool, resize, shrink, zoom


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


FORMS = ("native", "products", "phases")
SIZES = [
    ((5, 7), (9, 13)),
    ((5, 7), (20, 28)),
    ((9, 9), (4, 5)),
    ((33, 2), (65, 3)),
    ((1, 1), (4, 3)),
    ((1, 6), (1, 3)),
    ((4, 3), (1, 1)),
    ((6, 6), (6, 6)),
    ((8, 5), (8, 10)),
]


@pytest.mark.peer
@pytest.mark.parametrize(("source", "target"), SIZES)
@pytest.mark.parametrize("mode", ["aligned", "half-pixel", "antialias", "nearest"])
def test_resize_equals_torch(source, target, mode):
    torch = peers.import_torch()
    x = random(2, *source, 3)
    align_corners, antialias = mode == "aligned", mode == "antialias"
    if mode == "nearest":
        ours, theirs = {"method": "nearest"}, {"mode": "nearest-exact"}
    else:
        theirs = {"mode": "bilinear", "align_corners": align_corners, "antialias": antialias}
        ours = {"antialias": antialias}
    wanted = torch.nn.functional.interpolate(peers.to_torch(x), target, **theirs)
    for form in FORMS:
        y = resize(x, target, align_corners=align_corners, form=form, **ours)
        # PyTorch computes positions in float32: 33 cells times its 1e-7.
        np.testing.assert_allclose(y, peers.from_torch(wanted), atol=2e-5)


def test_shrink_and_zoom_have_the_sizes_of_caffe_and_invert_each_other():
    x = random(1, 1025, 65, 1)
    half = shrink(x, 2)
    assert half.shape == (1, 513, 33, 1)
    np.testing.assert_allclose(half, x[:, ::2, ::2], atol=1e-5)
    assert shrink(random(1, 46, 6, 1), 2).shape == (1, 23, 3, 1)
    assert zoom(random(1, 23, 3, 1), 2).shape == (1, 45, 5, 1)
    assert zoom(random(1, 1, 5, 1), 4).shape == (1, 1, 17, 1)
    np.testing.assert_allclose(shrink(zoom(half[:, :9, :9], 4), 4), half[:, :9, :9], atol=1e-5)


@pytest.mark.peer
@pytest.mark.parametrize("align_corners", [True, False])
def test_gradient_of_resize_equals_torch(align_corners):
    torch = peers.import_torch()
    x, weight = random(1, 5, 6, 2), random(1, 11, 9, 2, seed=1)
    their_x = peers.to_torch(x).requires_grad_()
    torch.nn.functional.interpolate(
        their_x, (11, 9), mode="bilinear", align_corners=align_corners
    ).backward(peers.to_torch(weight))
    for form in FORMS:

        def ours(x, form=form):
            return resize(x, (11, 9), align_corners=align_corners, form=form)

        (gradient,) = jax.vjp(ours, x)[1](weight)
        np.testing.assert_allclose(gradient, peers.from_torch(their_x.grad), atol=1e-5)


@pytest.mark.parametrize("align_corners", [True, False, "cells"])
@pytest.mark.parametrize(
    ("source", "target"), [((5, 7), (17, 25)), ((33, 2), (65, 3)), ((1, 2), (70, 140)), *SIZES[3:5]]
)
@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_all_forms_of_resize_and_their_gradients_agree(source, target, align_corners, dtype):
    x, weight = random(2, *source, 3), random(2, *target, 3, seed=1)
    results = []
    for form in FORMS:

        def value(x, form=form):
            return resize(x, target, align_corners=align_corners, form=form)

        y, transpose = jax.jit(partial(jax.vjp, value))(jnp.asarray(x, dtype))
        results.append((y, *transpose(jnp.asarray(weight, dtype))))
    precision = 1e-5 if dtype == jnp.float32 else 0.1
    for native, *others in zip(*results, strict=True):
        wanted = np.asarray(native, np.float32)
        for other in others:
            assert native.dtype == other.dtype == dtype
            found = np.asarray(other, np.float32)
            np.testing.assert_allclose(found, wanted, atol=precision, rtol=precision)
    with pytest.raises(ValueError, match="form is 'fast'"):
        resize(x, target, align_corners=True, form="fast")


def test_aligned_corners_keep_a_ramp_and_the_corners():
    ramp = np.arange(5, dtype=np.float32)[None, :, None, None] * np.ones((1, 5, 3, 1), np.float32)
    y = resize(ramp, (17, 3), align_corners=True)
    np.testing.assert_allclose(y[0, :, 0, 0], np.linspace(0, 4, 17), atol=1e-6)
    x = random(1, 33, 33, 2)
    up = resize(x, (513, 513), align_corners=True)
    np.testing.assert_allclose(up[:, ::16, ::16], x, atol=1e-6)


def test_borders_meet_at_half_a_pixel_by_hand():
    row = np.array([0.0, 4.0], np.float32)[None, None, :, None]
    y = resize(row, (1, 4), align_corners=False)
    np.testing.assert_allclose(y[0, 0, :, 0], [0, 1, 3, 4], atol=1e-6)
    x = random(1, 6, 10, 2)
    halved = resize(x, (3, 5), align_corners=False)
    np.testing.assert_allclose(halved, x.reshape(1, 3, 2, 5, 2, 2).mean((2, 4)), atol=1e-6)


def test_nearest_keeps_labels_of_any_integer_type():
    label = np.random.default_rng(0).integers(0, 256, (1, 7, 5, 1)).astype(np.uint8)
    for align_corners in (True, False):
        y = resize(label, (20, 3), method="nearest", align_corners=align_corners)
        assert y.dtype == jnp.uint8
        assert set(np.unique(y)) <= set(np.unique(label))
    aligned = resize(label, (3, 3), method="nearest", align_corners=True)
    np.testing.assert_array_equal(aligned, label[:, ::3, ::2])


@pytest.mark.parametrize(
    "size",
    [
        (1, 5),
        (31, 40),
        *(pytest.param(size, marks=pytest.mark.slow) for size in ((16, 17), (33, 65), (96, 100))),
    ],
)
@pytest.mark.parametrize("stride", [2, 4, 16])
def test_features_stay_where_a_strided_convolution_took_them(size, stride):
    """A ramp that was subsampled by `stride` comes back, up to the last cell; beyond it is flat."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    ramp = np.stack([y, x], -1)[None]
    cells = ramp[:, ::stride, ::stride]
    back = resize(cells, size, align_corners="cells")
    last = [(n - 1) // stride * stride for n in size]
    wanted = np.stack([np.minimum(y, last[0]), np.minimum(x, last[1])], -1)[None]
    np.testing.assert_allclose(back, wanted, atol=1e-4)
    nearest = resize(cells, size, method="nearest", align_corners="cells")
    assert np.abs(nearest - wanted).max() <= stride / 2
    for method in ("nearest", "bilinear"):  # and the other way: the pixel below each cell
        reduced = resize(ramp, cells.shape[1:3], method=method, align_corners="cells")
        np.testing.assert_array_equal(reduced, cells)


def test_resize_by_stride_is_aligned_where_corners_coincide():
    x = random(1, 5, 9, 2)
    np.testing.assert_array_equal(
        resize(x, (65, 129), align_corners="cells"), resize(x, (65, 129), align_corners=True)
    )


def test_resize_refuses_what_is_not_defined():
    x = random(1, 4, 4, 1)
    with pytest.raises(TypeError, match="align_corners"):
        resize(x, (2, 2))
    with pytest.raises(
        ValueError, match="align_corners is None; it must be True, False or 'cells'"
    ):
        resize(x, (2, 2), align_corners=None)
    with pytest.raises(
        ValueError, match="antialias needs align_corners=False; align_corners is True"
    ):
        resize(x, (2, 2), align_corners=True, antialias=True)
    with pytest.raises(ValueError, match="labels need method='nearest'"):
        resize(x.astype(np.int32), (2, 2), align_corners=True)
    with pytest.raises(ValueError, match="both at least 1"):
        resize(x, (0, 2), align_corners=True)
    with pytest.raises(ValueError, match="'cubic'"):
        resize(x, (2, 2), method="cubic", align_corners=True)


def test_resize_in_bfloat16_stays_bfloat16():
    assert resize(jnp.ones((1, 3, 3, 1), jnp.bfloat16), (5, 5), align_corners=True).dtype == (
        jnp.bfloat16
    )


POOLS = [
    (3, 2, 1, False),
    (3, 2, 1, True),
    (2, 2, 0, False),
    (2, 2, 0, True),
    (3, 1, 1, False),
    (3, 3, 0, True),
]


@pytest.mark.peer
@pytest.mark.parametrize(("window", "strides", "padding", "ceil_mode"), POOLS)
@pytest.mark.parametrize("size", [(7, 8), (9, 6), (3, 4)])
def test_max_pool_and_its_gradient_equal_torch(window, strides, padding, ceil_mode, size):
    torch = peers.import_torch()
    # Few values, so that most windows have several maxima: the first takes the gradient.
    x = np.random.default_rng(0).integers(-2, 2, (2, *size, 3)).astype(np.float32)
    y, transpose = jax.vjp(
        lambda x: max_pool(x, window, strides=strides, padding=padding, ceil_mode=ceil_mode), x
    )
    their_x = peers.to_torch(x).requires_grad_()
    wanted = torch.nn.functional.max_pool2d(their_x, window, strides, padding, ceil_mode=ceil_mode)
    np.testing.assert_array_equal(y, peers.from_torch(wanted))
    weight = random(*y.shape)
    wanted.backward(peers.to_torch(weight))
    np.testing.assert_allclose(transpose(weight)[0], peers.from_torch(their_x.grad), atol=1e-6)


def test_padding_never_wins():
    x = np.full((1, 3, 3, 1), -5, np.float32)
    assert np.all(np.asarray(max_pool(x, 3, strides=2, padding="torch")) == -5)
    assert max_pool(np.full((1, 1, 1, 1), -5, np.float32), 3, padding="torch").item() == -5


def test_ceil_mode_covers_the_last_column():
    # Caffe's sizes: 321 -> 161 -> 81 -> 41, and an even size gains a window.
    for n, plain, ceil in ((321, 161, 161), (8, 4, 5), (7, 4, 4)):
        x = np.zeros((1, n, n, 1), np.float32)
        assert max_pool(x, 3, strides=2, padding=1).shape[1] == plain
        assert max_pool(x, 3, strides=2, padding=1, ceil_mode=True).shape[1] == ceil
    with pytest.raises(ValueError, match="smaller than the window"):
        max_pool(np.zeros((1, 2, 2, 1), np.float32), 3)


def test_max_pool_by_hand():
    x = random(1, 6, 7, 2)
    y = np.asarray(max_pool(x, (2, 3), strides=(2, 1)))
    for row, column in itertools.product(range(3), range(5)):
        wanted = x[:, 2 * row : 2 * row + 2, column : column + 3].max((1, 2))
        np.testing.assert_array_equal(y[:, row, column], wanted)


def test_global_average_is_taken_in_float32():
    x = jnp.full((1, 200, 200, 1), 1.01, jnp.bfloat16)
    pooled = global_average_pool(x)
    assert pooled.shape == (1, 1, 1, 1)
    assert pooled.dtype == jnp.bfloat16
    assert pooled.item() == x[0, 0, 0, 0].item()


@pytest.mark.peer
@pytest.mark.parametrize("window", [2, 3])
def test_dilated_max_pool_equals_torch(window):
    torch = peers.import_torch()
    x = random(2, 9, 12, 3)
    theirs = peers.to_torch(x).requires_grad_()
    wanted = torch.nn.functional.max_pool2d(theirs, window, 1, padding=1, dilation=2)
    probe = random(*np.moveaxis(np.empty(wanted.shape), 1, 3).shape)
    wanted.backward(peers.to_torch(probe))
    y, pull = jax.vjp(lambda x: max_pool(x, window, rate=2, padding=1), x)
    np.testing.assert_array_equal(y, peers.from_torch(wanted))
    np.testing.assert_allclose(pull(probe)[0], peers.from_torch(theirs.grad), atol=1e-6)
