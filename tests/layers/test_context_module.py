"""The context module: it begins as the identity, sees as far as the paper says, and has its
parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxseg.layers import CONTEXT_RATES, ContextModule, identity_init

CITYSCAPES = (1, 1, 2, 4, 8, 16, 32, 64, 1)


def scores(*shape):
    return np.random.default_rng(0).uniform(0.1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("pad_first", [False, True])
def test_without_noise_it_is_the_identity(large, pad_first):
    x = scores(1, 9, 11, 3)
    module = ContextModule((1, 2, 4, 1), large=large, pad_first=pad_first, noise=0.0)
    y, variables = jax.jit(module.init_with_output)(jax.random.key(0), x)
    np.testing.assert_allclose(y, x, rtol=1e-5)
    assert variables["params"]["conv3"]["kernel"].shape[3] == (24 if large else 3)


def test_noise_is_smaller_where_there_are_more_channels():
    wide = identity_init(4)(jax.random.key(0), (3, 3, 64, 128))
    narrow = identity_init(4)(jax.random.key(0), (3, 3, 64, 4))
    for kernel, share in ((wide, 4 / 128), (narrow, 1.0)):
        centre = np.asarray(kernel[1, 1])
        groups = np.repeat(np.arange(4), kernel.shape[2] // 4)[:, None] == np.repeat(
            np.arange(4), kernel.shape[3] // 4
        )
        np.testing.assert_allclose(centre[groups], share)
        noise = np.concatenate([centre[~groups], np.asarray(kernel[0]).ravel()])
        assert 0.9 < noise.std() / (0.01 * share) < 1.1
    with pytest.raises(ValueError, match="must be multiples"):
        identity_init(4)(jax.random.key(0), (3, 3, 6, 4))


@pytest.mark.parametrize(
    ("rates", "reach"), [(CONTEXT_RATES, 33), ((1, 1, 2, 4, 8, 1), 17), (CITYSCAPES, 129)]
)
def test_the_field_of_view_is_the_papers(rates, reach):
    module = ContextModule(rates)
    x = jnp.ones((1, 1, 2 * reach + 5, 1))
    ones = jax.tree.map(
        lambda leaf: jnp.ones(leaf.shape), jax.eval_shape(module.init, jax.random.key(0), x)
    )
    # Where the middle output looks: the rows above and below are padding.
    gradient = jax.jit(jax.grad(lambda x: module.apply(ones, x)[0, 0, reach + 2, 0]))(x)
    seen = np.flatnonzero(np.asarray(gradient[0, 0, :, 0]))
    assert (seen[0], seen[-1]) == (2, 2 * reach + 2)


@pytest.mark.parametrize(
    ("classes", "options", "parameters"),
    [
        (21, {}, 28_392),
        (21, {"large": True}, 6_803_139),
        (19, {"rates": CITYSCAPES}, 29_792),
    ],
)
def test_parameters_are_the_papers(classes, options, parameters):
    x = jax.ShapeDtypeStruct((1, 5, 5, classes), jnp.float32)
    shapes = jax.eval_shape(ContextModule(**options).init, jax.random.key(0), x)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_padding_first_differs_near_the_border_alone():
    # Biases make what lies beyond the border differ from zero.
    rates, x = (1, 2, 1), scores(1, 15, 15, 2)
    forms = [ContextModule(rates, pad_first=first, noise=0.1) for first in (False, True)]
    variables = forms[0].init(jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: leaf + 0.05, variables)
    each, first = (np.asarray(form.apply(variables, x)) for form in forms)
    np.testing.assert_allclose(each[:, 4:11, 4:11], first[:, 4:11, 4:11], rtol=1e-5)
    assert np.abs(each - first).max() > 1e-3
