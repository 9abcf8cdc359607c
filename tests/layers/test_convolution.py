"""Atrous and depthwise convolution: all forms, values and gradients, against the formula, the
space-to-batch identity and PyTorch."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest

from flaxseg.layers import (
    AtrousConv,
    DepthwiseConv,
    atrous_conv,
    depthwise_conv,
    explicit_padding,
    tap_products,
)

FORMS = ("native", "products", "phases")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def formula(x, kernel, strides, rate, pads):
    """`y[p] = sum_k kernel[k] x[strides p + rate k - padding]`, one output at a time."""
    x = np.pad(x.astype(np.float64), ((0, 0), *pads, (0, 0)))
    kh, kw = kernel.shape[:2]
    height = (x.shape[1] - rate[0] * (kh - 1) - 1) // strides[0] + 1
    width = (x.shape[2] - rate[1] * (kw - 1) - 1) // strides[1] + 1
    y = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for row, column, i, j in itertools.product(range(height), range(width), range(kh), range(kw)):
        cell = x[:, row * strides[0] + i * rate[0], column * strides[1] + j * rate[1]]
        y[:, row, column] += cell @ kernel[i, j]
    return y


# kernel, strides, rate, padding, size
QUICK = [
    (3, 1, 2, "torch", (9, 8)),
    (3, 1, 12, "torch", (5, 4)),  # beyond the map: only the centre tap is left
    (3, 2, 1, "tf", (8, 9)),
    (1, 2, 1, "torch", (5, 6)),
    (4, 3, 2, ((1, 3), (0, 4)), (9, 10)),
    (3, 1, 1, 5, (4, 6)),  # more outputs than inputs
    ((3, 1), (1, 2), (2, 1), ((2, 2), (0, 0)), (6, 7)),
]
FURTHER = [
    (3, 1, 1, "torch", (7, 9)),
    (3, 1, 6, "torch", (5, 7)),
    (3, 2, 1, "torch", (8, 9)),
    (3, 2, 2, "tf", (9, 6)),
    (5, 2, 1, "tf", (8, 7)),
    (5, 1, 2, "tf", (6, 11)),
    (7, 2, 1, "torch", (11, 10)),
    (1, 1, 1, "torch", (5, 6)),
    (1, 1, 1, 1, (3, 3)),
    (2, 1, 1, "valid", (4, 5)),
    (3, 1, 1, "torch", (1, 1)),
    (3, 2, 1, "tf", (1, 1)),
    (3, 2, 4, "torch", (2, 1)),
    (2, 1, 1, ((1, 1), (1, 1)), (4, 5)),
    (3, 1, (4, 3), ((5, 2), (0, 9)), (11, 10)),
    (3, 2, 1, 4, (3, 4)),
]
GEOMETRIES = [*QUICK, *(pytest.param(*further, marks=pytest.mark.slow) for further in FURTHER)]


def resolved(kernel, strides, rate, padding, size):
    pair = [v if isinstance(v, tuple) else (v, v) for v in (kernel, strides, rate)]
    return *pair, explicit_padding(padding, size, *pair)


@pytest.mark.usefixtures("no_leaked_tracers")
@pytest.mark.parametrize("channels", [3, 17])  # fewer and more than where products begin
@pytest.mark.parametrize(("kernel", "strides", "rate", "padding", "size"), GEOMETRIES)
def test_atrous_conv_is_its_formula_in_all_forms(kernel, strides, rate, padding, size, channels):
    kernel_size, *rest = resolved(kernel, strides, rate, padding, size)
    x, k = random(2, *size, channels), random(*kernel_size, channels, 4, seed=1)
    wanted = formula(x, k, *rest)
    for form in FORMS:
        options = {"strides": strides, "rate": rate, "padding": padding, "form": form}
        y = jax.jit(functools.partial(atrous_conv, **options))(x, k)
        np.testing.assert_allclose(y, wanted, atol=1e-4)


@pytest.mark.parametrize("smallest", [1, 100])  # cut once for all taps, cut for each
@pytest.mark.parametrize(("kernel", "strides", "rate", "padding", "size"), GEOMETRIES)
def test_sums_over_taps_are_their_formula(
    kernel, strides, rate, padding, size, smallest, monkeypatch
):
    monkeypatch.setattr(tap_products, "_MIN_PIECE", smallest)
    monkeypatch.setattr(tap_products, "_MAX_OVERLAP_FOR_TAPS", 2.0)
    kernel_size, *rest = resolved(kernel, strides, rate, padding, size)
    x, k = random(2, *size, 17), random(*kernel_size, 17, 4, seed=1)
    y = atrous_conv(x, k, strides=strides, rate=rate, padding=padding, form="products")
    np.testing.assert_allclose(y, formula(x, k, *rest), atol=1e-4)


@pytest.mark.parametrize("channels", [3, 17])
@pytest.mark.parametrize(("kernel", "strides", "rate", "padding", "size"), GEOMETRIES)
def test_depthwise_conv_is_its_formula_in_all_forms(kernel, strides, rate, padding, size, channels):
    kernel_size, *rest = resolved(kernel, strides, rate, padding, size)
    x, k = random(2, *size, channels), random(*kernel_size, 1, channels, seed=1)
    full = k * np.eye(channels)[None, None]
    wanted = formula(x, full, *rest)
    for form in FORMS:
        options = {"strides": strides, "rate": rate, "padding": padding, "form": form}
        y = jax.jit(functools.partial(depthwise_conv, **options))(x, k)
        np.testing.assert_allclose(y, wanted, atol=1e-4)


@pytest.mark.parametrize("function", [atrous_conv, depthwise_conv])
@pytest.mark.parametrize(("kernel", "strides", "rate", "padding", "size"), GEOMETRIES)
def test_gradients_of_all_forms_agree(function, kernel, strides, rate, padding, size):
    kernel_size, *_ = resolved(kernel, strides, rate, padding, size)
    channels = (17, 4) if function is atrous_conv else (1, 17)
    x, k = random(2, *size, 17), random(*kernel_size, *channels, seed=1)
    gradients = []
    for form in FORMS:

        def value(x, k, form=form):
            return function(x, k, strides=strides, rate=rate, padding=padding, form=form)

        y = jax.eval_shape(value, x, k)
        weight = random(*y.shape, seed=2)
        gradients.append(jax.jit(lambda *xk, w=weight, f=value: jax.vjp(f, *xk)[1](w))(x, k))
    for native, *others in zip(*gradients, strict=True):
        scale = max(1.0, float(np.abs(native).max()))
        for other in others:
            assert other.shape == native.shape
            np.testing.assert_allclose(other, native, atol=1e-5 * scale)


@pytest.mark.parametrize("function", [atrous_conv, depthwise_conv])
def test_gradients_of_products_are_the_numerical_ones(function):
    channels = (17, 2) if function is atrous_conv else (1, 17)
    x, k = random(1, 5, 4, 17), random(3, 3, *channels, seed=1)
    for strides, rate in ((1, 2), (2, 1), (1, 1)):

        def value(x, k, strides=strides, rate=rate):
            return function(x, k, strides=strides, rate=rate, form="products")

        value = jax.jit(value)
        y = value(x, k)
        weight = random(*y.shape, seed=2)
        gradients = jax.jit(lambda *xk, w=weight, f=value: jax.vjp(f, *xk)[1](w))(x, k)
        for argument, gradient in enumerate(gradients):
            direction = random(*(x, k)[argument].shape, seed=3)
            # The convolution is linear in each argument, so one difference is the derivative.
            moved = [x, k]
            moved[argument] = moved[argument] + direction
            change = np.vdot(weight, np.asarray(value(*moved), np.float64) - np.asarray(y))
            np.testing.assert_allclose(np.vdot(gradient, direction), change, rtol=1e-3, atol=1e-3)


def space_to_batch_conv(x, kernel, rate):
    """The dense convolution of the phases of the image (Chen et al. 2016, section 3.1)."""
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (0, -height % rate), (0, -width % rate), (0, 0)))
    y = np.zeros((*padded.shape[:3], kernel.shape[3]), np.float32)
    for a, b in itertools.product(range(rate), range(rate)):
        phase = padded[:, a::rate, b::rate]
        y[:, a::rate, b::rate] = atrous_conv(phase, kernel, padding="torch", form="native")
    return y[:, :height, :width]


@pytest.mark.parametrize(
    ("rate", "size"),
    [
        (2, (17, 33)),
        (6, (33, 41)),
        *(
            pytest.param(rate, size, marks=pytest.mark.slow)
            for rate, size in itertools.product((2, 4, 6, 12), ((17, 33), (33, 41), (41, 17)))
            if (rate, size) not in ((2, (17, 33)), (6, (33, 41)))
        ),
    ],
)
def test_atrous_conv_is_a_dense_one_on_phases(rate, size):
    x, k = random(1, *size, 16), random(3, 3, 16, 4, seed=1)
    wanted = space_to_batch_conv(x, k, rate)
    for form in FORMS:
        y = atrous_conv(x, k, rate=rate, form=form)
        np.testing.assert_allclose(y, wanted, atol=1e-4)


def test_a_rate_beyond_the_map_leaves_the_centre_tap():
    x, k = random(1, 5, 6, 17), random(3, 3, 17, 4, seed=1)
    for form in FORMS:
        y = atrous_conv(x, k, rate=6, form=form)
        np.testing.assert_allclose(y, x @ k[1, 1], atol=1e-4)


@pytest.mark.parametrize("rate", [(1, 1), (2, 1)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (5, 2)])
def test_tf_padding_is_lax_same(kernel, strides, rate):
    for size in itertools.product(range(1, 9), (4, 7)):
        effective = [(k - 1) * r + 1 for k, r in zip(kernel, rate, strict=True)]
        wanted = jax.lax.padtype_to_pads(size, effective, strides, "SAME")
        found = explicit_padding("tf", size, kernel, strides, rate)
        assert [tuple(map(int, p)) for p in wanted] == list(found)


def test_tf_padding_at_stride_2_pads_even_inputs_at_the_end_only():
    assert explicit_padding("tf", (8, 9), (3, 3), (2, 2)) == ((0, 1), (1, 1))
    assert explicit_padding("torch", (8, 9), (3, 3), (2, 2)) == ((1, 1), (1, 1))


@pytest.mark.parametrize("padding", ["same", ((1, 1),), 1.5])
def test_unknown_padding_is_refused(padding):
    with pytest.raises((ValueError, TypeError), match="padding is"):
        explicit_padding(padding, (4, 4), (3, 3))


def test_bad_arguments_are_refused_with_the_way_out():
    x, k = random(1, 4, 4, 3), random(3, 3, 3, 2)
    with pytest.raises(ValueError, match="do not fit"):
        atrous_conv(x, k[:, :, :2])
    with pytest.raises(ValueError, match="do not fit"):
        depthwise_conv(x, k)
    with pytest.raises(ValueError, match="enlarge the input or the padding"):
        atrous_conv(x, k, rate=2, padding="valid")
    with pytest.raises(ValueError, match="form is 'fast'"):
        atrous_conv(x, k, form="fast")
    with pytest.raises(ValueError, match="rate is 0"):
        atrous_conv(x, k, rate=0)


@pytest.mark.parametrize("layer", [AtrousConv(8, 3, rate=2), DepthwiseConv(3, rate=2)])
def test_modules_compute_in_their_dtype_and_keep_float32_parameters(layer):
    x = random(1, 9, 9, 16)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(variables))
    half = layer.clone(dtype=jnp.bfloat16)
    y, wanted = jax.jit(lambda v: (half.apply(v, x), layer.apply(v, x)))(variables)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), wanted, atol=0.05 * np.abs(wanted).max())
    gradient = jax.jit(jax.grad(lambda v: half.apply(v, x).astype(jnp.float32).sum()))(variables)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradient))


@pytest.mark.peer
@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize(
    ("strides", "rate", "padding"), [(1, 1, 1), (2, 1, 1), (1, 4, 4), (2, 2, 3)]
)
def test_convolutions_and_gradients_equal_torch(depthwise, strides, rate, padding):
    torch = peers.import_torch()
    x = random(2, 9, 10, 16)
    k = random(3, 3, *((1, 16) if depthwise else (16, 5)), seed=1)
    their_x = peers.to_torch(x).requires_grad_()
    their_k = torch.from_numpy(k.transpose(3, 2, 0, 1).copy()).requires_grad_()
    wanted = torch.nn.functional.conv2d(
        their_x, their_k, None, strides, padding, rate, groups=16 if depthwise else 1
    )
    function = depthwise_conv if depthwise else atrous_conv
    for form in FORMS:

        def value(x, k, form=form):
            return function(x, k, strides=strides, rate=rate, padding=padding, form=form)

        y, transpose = jax.vjp(value, x, k)
        np.testing.assert_allclose(y, peers.from_torch(wanted), atol=1e-4)
        weight = random(*y.shape, seed=2)
        their_x.grad = their_k.grad = None
        wanted.backward(peers.to_torch(weight), retain_graph=True)
        x_gradient, k_gradient = transpose(weight)
        np.testing.assert_allclose(x_gradient, peers.from_torch(their_x.grad), atol=1e-4)
        theirs = their_k.grad.numpy().transpose(2, 3, 1, 0)
        np.testing.assert_allclose(k_gradient, theirs, atol=1e-3)
