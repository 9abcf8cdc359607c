"""Global convolution and boundary refinement: against PyTorch, by sums over taps, and the
properties that the paper builds on."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import relative_difference

from flaxseg.layers import BoundaryRefinement, GlobalConvolution, LineConv, line_conv

KINDS = ("global", "baseline", "trivial", "stack")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_variables(module, x):
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32) * 0.3, shapes)


def by_taps(x, kernel, rate=1):
    """The convolution, cell by cell and tap by tap."""
    kh, kw = kernel.shape[:2]
    top, left = rate * (kh - 1) // 2, rate * (kw - 1) // 2
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, top), (left, left), (0, 0)))
    y = np.zeros((*x.shape[:3], kernel.shape[3]))
    for i in range(kh):
        for j in range(kw):
            window = padded[:, rate * i :, rate * j :][:, : x.shape[1], : x.shape[2]]
            y += window @ kernel[i, j].astype(np.float64)
    return y


@pytest.mark.parametrize("form", ["native", "products"])
@pytest.mark.parametrize(("size", "rate"), [((7, 1), 1), ((1, 7), 2), ((25, 1), 1)])
def test_lines_equal_the_sum_over_taps(form, size, rate):
    # As many channels as make the form of products take its one product.
    x, kernel = random(2, 5, 9, 256), random(*size, 256, 3, seed=1)
    y = jax.jit(lambda x, kernel: line_conv(x, kernel, rate=rate, form=form))(x, kernel)
    assert relative_difference(y, by_taps(x, kernel, rate)) < 1e-5


@pytest.mark.peer
@pytest.mark.parametrize("form", ["native", "products"])
def test_lines_and_their_gradient_equal_torch(form):
    torch = peers.import_torch()
    for size, strides, channels in (((5, 1), 1, 256), ((1, 5), 1, 256), ((5, 1), 2, 4)):
        x, kernel = random(2, 8, 7, channels), random(*size, channels, 3, seed=1)
        theirs = peers.to_torch(x).requires_grad_()
        weight = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()).requires_grad_()
        wanted = torch.nn.functional.conv2d(
            theirs,
            weight,
            stride=(strides, 1),
            padding=((size[0] - 1) // 2, (size[1] - 1) // 2),
        )
        probe = random(*np.moveaxis(np.empty(wanted.shape), 1, 3).shape)
        wanted.backward(peers.to_torch(probe))

        @jax.jit
        def value_and_gradients(x, kernel, probe, strides=strides):
            y, pull = jax.vjp(lambda x, k: line_conv(x, k, strides=strides, form=form), x, kernel)
            return y, *pull(probe)

        y, x_gradient, kernel_gradient = value_and_gradients(x, kernel, probe)
        assert relative_difference(y, peers.from_torch(wanted)) < 1e-5
        assert relative_difference(x_gradient, peers.from_torch(theirs.grad)) < 1e-5
        wanted = weight.grad.numpy().transpose(2, 3, 1, 0)
        assert relative_difference(kernel_gradient, wanted) < 1e-5


def test_the_two_paths_by_hand():
    """The sum of the two paths is the sum of two k x k kernels, products of lines."""
    x = random(1, 6, 7, 4)
    layer = GlobalConvolution(3, 5, use_bias=False)
    variables = random_variables(layer, x)
    kernels = {name: p["kernel"] for name, p in variables["params"].items()}
    assert {name: k.shape for name, k in kernels.items()} == {
        "left_vertical": (5, 1, 4, 3),
        "left_horizontal": (1, 5, 3, 3),
        "right_horizontal": (1, 5, 4, 3),
        "right_vertical": (5, 1, 3, 3),
    }
    left = by_taps(by_taps(x, kernels["left_vertical"]), kernels["left_horizontal"])
    right = by_taps(by_taps(x, kernels["right_horizontal"]), kernels["right_vertical"])
    assert relative_difference(layer.apply(variables, x), left + right) < 1e-5
    # Inside, where no padding is met, as one dense kernel.
    dense = np.einsum(
        "ycm,xmf->yxcf", kernels["left_vertical"][:, 0], kernels["left_horizontal"][0]
    )
    dense += np.einsum(
        "xcm,ymf->yxcf", kernels["right_horizontal"][0], kernels["right_vertical"][:, 0]
    )
    middle = (slice(None), slice(2, -2), slice(2, -2))
    assert relative_difference((left + right)[middle], by_taps(x, dense)[middle]) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_linear_and_sees_a_square(kind):
    """No kind has a ReLU, and an impulse reaches exactly k x k cells; the baseline's only one."""
    layer = GlobalConvolution(2, 7, kind, use_bias=False)
    x = np.zeros((1, 15, 15, 3), np.float32)
    x[0, 7, 6] = [1.0, -2.0, 0.5]
    variables = random_variables(layer, x)
    apply = jax.jit(layer.apply)
    impulse = np.asarray(apply(variables, x))
    support = np.zeros((15, 15), bool)
    reach = 0 if kind == "baseline" else 3
    support[7 - reach : 8 + reach, 6 - reach : 7 + reach] = True
    np.testing.assert_array_equal(np.abs(impulse[0]).max(-1) > 1e-6, support)
    other = random(1, 15, 15, 3)
    wanted = 2 * impulse - 3 * np.asarray(apply(variables, other))
    assert relative_difference(apply(variables, 2 * x - 3 * other), wanted) < 1e-5


# Tables 1 to 4 of the paper, for one level of 2048 channels and 21 classes.
@pytest.mark.parametrize(
    ("kind", "k", "options", "parameters"),
    [
        ("global", 3, {}, 260_694),
        ("global", 5, {}, 434_490),
        ("global", 7, {}, 608_286),
        ("global", 9, {}, 782_082),
        ("trivial", 3, {}, 387_072),
        ("trivial", 5, {}, 1_075_200),
        ("trivial", 7, {}, 2_107_392),
        ("trivial", 9, {}, 3_483_648),
        ("baseline", 7, {}, 2048 * 21),
        ("stack", 7, {}, 75_884_544),
        ("stack", 7, {"stack_features": 1024}, 28_505_088),
        ("stack", 7, {"stack_features": 210}, 4_307_310),
    ],
)
def test_parameters_are_those_of_the_papers_tables(kind, k, options, parameters):
    layer = GlobalConvolution(21, k, kind, use_bias=False, **options)
    x = jax.ShapeDtypeStruct((1, 4, 4, 2048), jnp.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


@pytest.mark.peer
def test_boundary_refinement_equals_torch_and_begins_near_the_identity():
    torch = peers.import_torch()
    x, layer = random(2, 6, 5, 4), BoundaryRefinement()
    variables = random_variables(layer, x)
    convs = torch.nn.ModuleList(torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
    for conv, name in zip(convs, ("conv1", "conv2"), strict=True):
        kernel = variables["params"][name]["kernel"].transpose(3, 2, 0, 1)
        conv.weight.data.copy_(torch.from_numpy(kernel.copy()))
        conv.bias.data.copy_(torch.from_numpy(variables["params"][name]["bias"]))
    theirs = peers.to_torch(x)
    wanted = peers.from_torch(theirs + convs[1](torch.relu(convs[0](theirs))))
    assert relative_difference(layer.apply(variables, x), wanted) < 1e-5
    fresh = jax.jit(layer.init)(jax.random.key(0), x)
    correction = np.asarray(layer.apply(fresh, x)) - x
    assert 0 < float(np.abs(correction).max()) < 0.3
    fresh["params"]["conv2"] = jax.tree.map(jnp.zeros_like, fresh["params"]["conv2"])
    np.testing.assert_array_equal(layer.apply(fresh, x), x)


def test_scores_keep_the_spread_of_their_features():
    """Each path of a fresh layer passes on what it gets, neither fading nor growing with k."""
    x = random(1, 24, 24, 64)
    for k in (1, 9):
        layer = GlobalConvolution(32, k)
        y, _ = jax.jit(layer.init_with_output)(jax.random.key(0), x)
        middle = np.asarray(y)[:, k // 2 : 24 - k // 2, k // 2 : 24 - k // 2]
        assert 1.0 < float(middle.std()) < 2.0  # the square root of two paths


def test_mistakes_are_named():
    x = jnp.ones((1, 4, 4, 2))
    for layer, message in (
        (GlobalConvolution(3, 4), "kernel_size is 4; it must be odd.*take 3 or 5"),
        (GlobalConvolution(3, 5, "dense"), "kind is 'dense'; it must be one of global, baseline"),
        (GlobalConvolution(3, 1, "stack"), "needs 3 or more"),
        (LineConv(3, (3, 3)), "wanted a height or a width of 1"),
        (LineConv(3, (1, 2)), "must be odd"),
    ):
        with pytest.raises(ValueError, match=message):
            layer.init(jax.random.key(0), x)
