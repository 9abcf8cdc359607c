"""Pooling with indices and unpooling against PyTorch's, ties and gradients included; the decoder
made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import random_image

from flaxseg.layers import UnpoolingDecoder, max_pool_with_indices, max_unpool


def features(*shape, seed=0):
    """Few different values, so that every other window has a tie."""
    return np.random.default_rng(seed).integers(0, 4, shape).astype(np.float32)


def flat_indices(indices, window, width):
    """Positions in the whole map, as PyTorch counts them."""
    indices = np.asarray(indices, np.int64)
    rows, columns = (np.arange(n) * k for n, k in zip(indices.shape[1:3], window, strict=True))
    row, column = np.divmod(indices, window[1])
    return (rows[:, None, None] + row) * width + columns[:, None] + column


@pytest.mark.peer
@pytest.mark.parametrize(
    ("size", "window", "ceil_mode"),
    [
        ((8, 6), (2, 2), False),
        ((7, 9), (2, 2), False),
        ((7, 9), (2, 2), True),
        ((7, 10), (3, 2), True),
        ((1, 5), (2, 2), True),
    ],
)
def test_pooling_and_unpooling_are_torchs(size, window, ceil_mode):
    torch = peers.import_torch()
    x = features(2, *size, 3)

    @jax.jit
    def both(x):
        def run(x):
            y, indices = max_pool_with_indices(x, window, ceil_mode=ceil_mode)
            back = max_unpool(y * y, indices, size, window)
            weight = jnp.arange(back.size, dtype=jnp.float32).reshape(back.shape)
            return (back * weight).sum() + y.sum(), (y, indices, back)

        return jax.value_and_grad(run, has_aux=True)(x)

    (_, (y, indices, back)), gradient = both(x)
    theirs = peers.to_torch(x).requires_grad_()
    pooled, positions = torch.nn.functional.max_pool2d(
        theirs, window, window, ceil_mode=ceil_mode, return_indices=True
    )
    unpooled = torch.nn.functional.max_unpool2d(
        pooled * pooled, positions, window, window, output_size=size
    )
    np.testing.assert_array_equal(y, peers.from_torch(pooled))
    assert indices.dtype == jnp.uint8
    np.testing.assert_array_equal(
        flat_indices(indices, window, size[1]), peers.from_torch(positions)
    )
    np.testing.assert_array_equal(back, peers.from_torch(unpooled))
    weight = torch.arange(unpooled.numel(), dtype=torch.float32).reshape(2, *size, 3)
    ((unpooled * weight.permute(0, 3, 1, 2)).sum() + pooled.sum()).backward()
    np.testing.assert_array_equal(gradient, peers.from_torch(theirs.grad))


def test_the_first_of_equal_values_counts_and_nan_wins():
    x = np.zeros((1, 2, 4, 1), np.float32)
    x[0, 1, 1] = np.nan
    y, indices = max_pool_with_indices(x)
    np.testing.assert_array_equal(y.ravel(), [np.nan, 0.0])
    np.testing.assert_array_equal(indices.ravel(), [3, 0])
    y, indices = max_pool_with_indices(-np.ones((1, 3, 3, 1), np.float32), ceil_mode=True)
    np.testing.assert_array_equal(y, -1.0)
    np.testing.assert_array_equal(indices, 0)


def test_pooling_an_unpooled_map_gives_the_values_back():
    y, indices = max_pool_with_indices(random_image(2, 9, 7), ceil_mode=True)
    again, positions = max_pool_with_indices(max_unpool(abs(y), indices, (9, 7)), ceil_mode=True)
    np.testing.assert_array_equal(again, abs(y))
    np.testing.assert_array_equal(positions, indices)
    half = max_unpool(y.astype(jnp.bfloat16), indices)
    assert half.dtype == jnp.bfloat16
    assert half.shape == (2, 10, 8, 3)


def test_mistakes_are_named():
    x = features(1, 5, 5, 2)
    y, indices = max_pool_with_indices(x)
    with pytest.raises(ValueError, match=r"size is \(7, 4\); windows of \(2, 2\) pool none"):
        max_unpool(y, indices, (7, 4))
    with pytest.raises(ValueError, match=r"values \(1, 2, 2, 1\) and indices \(1, 2, 2, 2\)"):
        max_unpool(y[..., :1], indices)
    with pytest.raises(ValueError, match="set ceil_mode"):
        max_pool_with_indices(x[:, :1])
    with pytest.raises(ValueError, match="at most 256 cells"):
        max_pool_with_indices(x, 17)


def test_the_decoder_names_what_does_not_fit():
    decoder = UnpoolingDecoder((1, 1))
    coarse, fine = features(1, 3, 3, 4), features(1, 5, 6, 4)
    for levels, message in (
        ((fine,), "there are 1 features and 2 stages"),
        ((features(1, 9, 6, 4), fine), r"feature of stage 2 has \(9, 6\) cells.*\(3, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(decoder.init, jax.random.key(0), coarse, levels)
