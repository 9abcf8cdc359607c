"""Reconstruction by learned bases against PyTorch's grouped transposed convolution, and boundary
masks against loops."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import relative_difference

from flaxseg.layers import (
    LearnedBasisDeconv,
    boundary_mask,
    learned_basis,
    learned_basis_deconv,
    masked_residual,
)

SHAPES = [  # height, width, classes, bases, kernel size, strides
    (5, 7, 3, 10, 8, 4),
    (1, 1, 2, 4, 8, 4),
    (4, 3, 2, 3, 6, 2),
    (3, 4, 2, 3, 10, 4),
    (3, 2, 4, 1, 4, 4),
]


def inputs(height, width, classes, bases, size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, height, width, classes * bases)).astype(np.float32)
    return x, rng.normal(size=(size, size, 1, classes * bases)).astype(np.float32)


@pytest.mark.usefixtures("no_leaked_tracers")
@pytest.mark.peer
@pytest.mark.parametrize(("height", "width", "classes", "bases", "size", "strides"), SHAPES)
def test_value_and_gradient_are_those_of_the_grouped_transposed_convolution(
    height, width, classes, bases, size, strides
):
    torch = peers.import_torch()
    x, kernel = inputs(height, width, classes, bases, size)
    theirs = peers.to_torch(x).requires_grad_(), torch.from_numpy(kernel.transpose(3, 2, 0, 1))
    theirs = theirs[0], theirs[1].contiguous().requires_grad_()
    y = torch.nn.functional.conv_transpose2d(
        *theirs, stride=strides, padding=(size - strides) // 2, groups=classes
    )
    wanted = peers.from_torch(y)
    weight = np.random.default_rng(1).normal(size=wanted.shape).astype(np.float32)
    y.backward(peers.to_torch(weight))

    @jax.jit
    def run(x, kernel, weight):
        y, pull = jax.vjp(lambda *a: learned_basis_deconv(*a, classes, strides=strides), x, kernel)
        return y, *pull(weight)

    ours = run(x, kernel, weight)
    assert relative_difference(ours[0], wanted) < 1e-5
    assert relative_difference(ours[1], peers.from_torch(theirs[0].grad)) < 1e-5
    kernel_gradient = theirs[1].grad.numpy().transpose(2, 3, 1, 0)
    assert relative_difference(ours[2], kernel_gradient) < 1e-5


def test_a_single_coefficient_paints_its_basis_into_its_class():
    """By hand, without a peer: cell (1, 2), class 1, basis 3."""
    _, kernel = inputs(1, 1, 2, 4, 8)
    x = np.zeros((1, 3, 4, 8), np.float32)
    x[0, 1, 2, 4 + 3] = 2.0
    y = np.asarray(learned_basis_deconv(jnp.asarray(x), jnp.asarray(kernel), 2))
    wanted = np.zeros((1, 12, 16, 2), np.float32)
    wanted[0, 4 - 2 : 4 + 6, 8 - 2 : 8 + 6, 1] = 2 * kernel[:, :, 0, 4 + 3]
    np.testing.assert_allclose(y, wanted, rtol=1e-6, atol=1e-6)


def test_the_layer_begins_with_given_or_smooth_bases_and_may_have_a_bias():
    x, kernel = inputs(2, 3, 2, 6, 8)
    given = LearnedBasisDeconv(2, bases_init=lambda *_: jnp.asarray(kernel))
    y, variables = given.init_with_output(jax.random.key(0), x)
    np.testing.assert_array_equal(variables["params"]["kernel"], kernel)
    np.testing.assert_allclose(y, learned_basis_deconv(x, kernel, 2), rtol=1e-5, atol=1e-5)

    layer = LearnedBasisDeconv(2, use_bias=True, bias_init=lambda *_: jnp.array([1.0, -1.0]))
    y, variables = layer.init_with_output(jax.random.key(0), 0 * x)
    np.testing.assert_array_equal(y, np.broadcast_to([1.0, -1.0], y.shape))
    bases = np.asarray(variables["params"]["kernel"])[:, :, 0].reshape(64, 2, 6)
    np.testing.assert_array_equal(bases[:, 0], bases[:, 1])
    np.testing.assert_allclose(np.linalg.norm(bases[:, 0], axis=0), 1, rtol=1e-6)
    # Different images, not one six times; the first alone interpolates: neighbours fill the gaps.
    assert np.linalg.matrix_rank(bases[:, 0]) == 6
    smooth = np.zeros((1, 5, 5, 12), np.float32)
    smooth[..., [0, 6]] = 1.0
    filled = layer.apply(variables, smooth)[0, 4:-4, 4:-4, 0] - 1
    np.testing.assert_allclose(filled, filled.mean(), rtol=1e-5)
    assert doctest.testmod(learned_basis).failed == 0


def test_bfloat16_is_kept_and_near():
    x, kernel = inputs(3, 3, 2, 4, 8)
    layer = LearnedBasisDeconv(2, dtype=jnp.bfloat16)
    y = layer.apply({"params": {"kernel": kernel}}, x)
    assert y.dtype == jnp.bfloat16
    assert relative_difference(y.astype(jnp.float32), learned_basis_deconv(x, kernel, 2)) < 0.02


@pytest.mark.parametrize(
    ("shape", "classes", "size", "part"),
    [
        ((1, 2, 2, 9), 2, 8, "do not fit to 2 classes"),
        ((1, 2, 2, 8), 2, 7, "kernel_size 7 must be strides 4 or an even number more"),
        ((1, 2, 2, 8), 2, 2, "use 8"),
    ],
)
def test_what_does_not_fit_is_refused(shape, classes, size, part):
    with pytest.raises(ValueError, match=part):
        learned_basis_deconv(jnp.zeros(shape), jnp.zeros((size, size, 1, shape[3])), classes)


def mask_by_loops(scores, window):
    """Maximum minus minimum of the softmax, window by window."""
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    mask, reach = np.zeros_like(probs), window // 2
    for row in range(probs.shape[1]):
        for column in range(probs.shape[2]):
            part = probs[
                :,
                max(row - reach, 0) : row + reach + 1,
                max(column - reach, 0) : column + reach + 1,
            ]
            mask[:, row, column] = part.max((1, 2)) - part.min((1, 2))
    return mask


@pytest.mark.parametrize(
    "window",
    [1, pytest.param(3, marks=pytest.mark.slow), 9, pytest.param(17, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("size", [(13, 20), (1, 3)])
def test_masks_equal_loops_over_windows(window, size):
    scores = 3 * np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    mask = np.asarray(boundary_mask(scores, window))
    np.testing.assert_allclose(mask, mask_by_loops(scores, window), atol=2e-6)
    assert mask.min() >= 0
    assert mask.max() <= 1
    residual = np.ones_like(scores)
    total, again = masked_residual(jnp.asarray(scores), residual, window)
    np.testing.assert_array_equal(again, mask)
    np.testing.assert_allclose(total, scores + mask, rtol=1e-5, atol=1e-5)


def test_without_a_window_the_residual_is_added_everywhere_and_flat_scores_have_no_boundary():
    scores = np.random.default_rng(0).normal(size=(1, 4, 5, 3)).astype(np.float32)
    total, mask = masked_residual(jnp.asarray(scores), jnp.ones_like(scores), 0)
    np.testing.assert_allclose(total, scores + 1, rtol=1e-6)
    np.testing.assert_array_equal(mask, np.ones_like(scores))
    flat = np.broadcast_to([0.3, -1.0, 2.0], (1, 6, 6, 3)).astype(np.float32)
    np.testing.assert_array_equal(boundary_mask(flat, 9), 0)
    with pytest.raises(ValueError, match="window is 8; it must be odd"):
        boundary_mask(flat, 8)


@pytest.mark.peer
def test_the_gradient_flows_through_the_mask_as_in_pytorch():
    torch = peers.import_torch()
    rng = np.random.default_rng(0)
    coarse, residual, weight = (
        rng.normal(size=(2, 11, 12, 3)).astype(np.float32) for _ in range(3)
    )
    x = peers.to_torch(coarse).requires_grad_()
    probs = torch.softmax(x, 1)
    pool = torch.nn.MaxPool2d(9, 1, 4)
    total = x + (pool(probs) + pool(-probs)) * peers.to_torch(residual)
    total.backward(peers.to_torch(weight))

    @jax.jit
    def gradient(coarse):
        return jax.vjp(lambda x: masked_residual(x, residual, 9)[0], coarse)[1](weight)[0]

    assert relative_difference(gradient(coarse), peers.from_torch(x.grad)) < 1e-5
