"""Dilated and eroded class masks against a loop over disks, and their logistic loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxseg.errors import ConfigError
from flaxseg.training.losses import class_masks, dilated_masks, eroded_masks

CLASSES = 3


def some_label(height=19, width=26):
    label = np.zeros((2, height, width), np.uint8)
    label[0, 3:9, 5:12] = 1
    label[0, 12, 14] = 2
    label[1, :, width // 2 :] = 2
    label[1, 4:6, 2:6] = 255
    return label


def by_loops(label, shape, radius, erode):
    """1 or 0 at the centre of each cell, pixel by pixel of the disk."""
    result = np.zeros(shape, bool)
    for n, i, j, c in np.ndindex(*shape):
        strides = [
            2 ** int(np.ceil(np.log2(m / k)))
            for m, k in zip(label.shape[1:], shape[1:3], strict=True)
        ]
        y, x = (
            min(s * k + s // 2, m - 1)
            for s, k, m in zip(strides, (i, j), label.shape[1:], strict=True)
        )
        inside = [
            label[n, v, u] == c
            for v in range(max(y - radius, 0), min(y + radius + 1, label.shape[1]))
            for u in range(max(x - radius, 0), min(x + radius + 1, label.shape[2]))
            if (v - y) ** 2 + (u - x) ** 2 <= radius**2
        ]
        result[n, i, j, c] = all(inside) if erode else any(inside)
    return result


@pytest.mark.parametrize("erode", [False, True])
@pytest.mark.parametrize(("cells", "radius"), [((3, 4), 4), ((19, 26), 2), ((5, 7), 0)])
def test_masks_equal_a_loop_over_disks(cells, radius, erode):
    label = some_label()
    shape = (2, *cells, CLASSES)
    masks = np.asarray(class_masks(jnp.asarray(label), shape, radius, erode=erode))
    wanted = by_loops(label, shape, radius, erode)
    np.testing.assert_array_equal(masks, wanted)
    assert wanted.any()
    assert not wanted.all()


@pytest.mark.parametrize("void", [False, True])
@pytest.mark.parametrize(("loss", "erode"), [(dilated_masks, False), (eroded_masks, True)])
def test_the_loss_is_the_formula_and_ignored_cells_have_no_gradient(loss, erode, void):
    label = some_label(16, 16)
    logits = np.random.default_rng(0).normal(size=(2, 8, 8, CLASSES)).astype(np.float32)
    options = {"radius": 3, "void_is_background": void}

    def run(logits):
        total, count = loss(logits, jnp.asarray(label), **options)
        return total, count

    (total, count), gradient = jax.jit(jax.value_and_grad(run, has_aux=True))(logits)
    sign = np.where(by_loops(label, logits.shape, 3, erode), 1.0, -1.0)
    each = np.log1p(np.exp(-sign * logits)).sum(-1)
    counted = np.full(each.shape, True) if void else label[:, 1::2, 1::2] != 255
    assert int(count) == counted.sum()
    np.testing.assert_allclose(total, each[counted].sum(), rtol=1e-5)
    assert bool((np.any(np.asarray(gradient) != 0, -1) == counted).all())
    assert counted.all() == void


def test_an_absent_class_is_nowhere_near_and_a_negative_radius_is_refused():
    label = jnp.zeros((1, 8, 8), jnp.uint8)
    masks = class_masks(label, (1, 2, 2, 2), 50, erode=False)
    np.testing.assert_array_equal(masks, np.broadcast_to([True, False], (1, 2, 2, 2)))
    with pytest.raises(ConfigError, match="radius -1 must be at least 0"):
        dilated_masks(jnp.zeros((1, 2, 2, 2)), label, radius=-1)
