"""Each loss against its formula, written out pixel by pixel in float64, and against the peer's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import import_timm, import_torch, to_torch

from flaxseg.errors import ConfigError
from flaxseg.layers import convolution_form
from flaxseg.training.losses import (
    border_target,
    boundary_loss,
    dice_loss,
    focal_loss,
    lovasz_loss,
    ohem_loss,
    segmentation_loss,
    top_k_loss,
)

CLASSES = 4
WEIGHTS = (0.5, 2.0, 0.0, 1.5)


def random_case(seed: int = 0, classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels of two images with regions; the second lacks the last class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (2, 3, 4)).repeat(3, 1).repeat(2, 2)
    label[1] = np.minimum(label[1], classes - 2)
    label[rng.random(label.shape) < 0.2] = 255
    logits = rng.normal(scale=2.0, size=(*label.shape, classes)).astype(np.float32)
    return logits, label.astype(np.int32)


def images(logits, label):
    """``(probabilities, labels)`` of the valid pixels of each image, in float64."""
    for z, y in zip(logits.astype(np.float64), label, strict=True):
        p = np.exp(z - z.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        yield p[y != 255], y[y != 255]


def pixels(logits, label):
    """The same over the batch."""
    probs, labels = zip(*images(logits, label), strict=True)
    return np.concatenate(probs), np.concatenate(labels)


def check(got, wanted, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(np.array(got), wanted, rtol=rtol)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal(gamma, weights):
    logits, label = random_case()
    total = weight = 0.0
    for p, y in zip(*pixels(logits, label), strict=True):
        w = 1.0 if weights is None else weights[y]
        total -= w * (1 - p[y]) ** gamma * np.log(p[y])
        weight += w
    got = focal_loss(logits, label, gamma=gamma, class_weights=weights)
    check(got, (total, weight))
    if gamma == 0:
        check(got, segmentation_loss(logits, label, class_weights=weights))


@pytest.mark.parametrize("alpha", [None, 0.25, 1.0])
def test_binary_focal_on_one_logit_and_on_two(alpha):
    logits, label = random_case(classes=2)
    total = 0.0
    for p, y in zip(*pixels(logits, label), strict=True):
        a = 1.0 if alpha is None else (1 - alpha, alpha)[y]
        total -= a * (1 - p[y]) ** 2 * np.log(p[y])
    check(focal_loss(logits, label, alpha=alpha), (total, np.sum(label != 255)))
    one = logits[..., 1:] - logits[..., :1]
    check(focal_loss(one, label, alpha=alpha), (total, np.sum(label != 255)))


def test_focal_rises_with_the_error_and_is_never_negative():
    """DFN's published loss falls to -0.23 at "border everywhere", whatever the label."""
    logit = jnp.linspace(-8.0, 8.0, 33).reshape(33, 1, 1, 1)
    of_each = jax.jit(
        jax.vmap(lambda z, y: focal_loss(z[None], y, alpha=0.25)[0], in_axes=(0, None))
    )
    for label, sign in ((1, -1), (0, 1)):
        loss = of_each(logit, jnp.full((1, 1, 1), label))
        assert np.all(np.diff(loss) * sign > 0)
        assert np.all(np.asarray(loss) >= 0)


def test_alpha_is_for_two_classes():
    with pytest.raises(ConfigError, match="for two classes, and the output has 4"):
        focal_loss(*random_case(), alpha=0.25)


@pytest.mark.parametrize("squared", [True, False])
def test_dice(squared):
    logits, label = random_case()
    total = 0.0
    for probs, labels in images(logits, label):
        losses = []
        for c in np.unique(labels):
            p, g = probs[:, c], labels == c
            size = np.sum(p**2) if squared else np.sum(p)
            losses.append(1 - 2 * np.sum(p * g) / (size + np.sum(g)))
        total += np.mean(losses)
    check(dice_loss(logits, label, squared=squared), (total, 2))


def jaccard_loss(wrong: np.ndarray, is_class: np.ndarray) -> float:
    """One minus the IoU of a class when the pixels of `wrong` are."""
    missed, added = np.sum(wrong & is_class), np.sum(wrong & ~is_class)
    return 1 - (is_class.sum() - missed) / (is_class.sum() + added)


def test_lovasz():
    logits, label = random_case()
    total = 0.0
    for probs, labels in images(logits, label):
        losses = []
        for c in np.unique(labels):
            error = np.where(labels == c, 1 - probs[:, c], probs[:, c])
            wrong, last, loss = np.zeros(len(labels), bool), 0.0, 0.0
            for pixel in np.argsort(-error):
                wrong[pixel] = True
                now = jaccard_loss(wrong, labels == c)
                loss, last = loss + error[pixel] * (now - last), now
            losses.append(loss)
        total += np.mean(losses)
    check(lovasz_loss(logits, label), (total, 2))


def test_lovasz_of_certain_predictions_is_one_minus_the_mean_iou():
    _, label = random_case()
    pred = np.random.default_rng(3).integers(0, CLASSES, label.shape)
    wanted = 0.0
    for y, x in zip(label, pred, strict=True):
        valid = y != 255
        iou = [
            np.sum(valid & (y == c) & (x == c)) / np.sum(valid & ((y == c) | (x == c)))
            for c in np.unique(y[valid])
        ]
        wanted += 1 - np.mean(iou)
    check(lovasz_loss(50.0 * np.eye(CLASSES, dtype=np.float32)[pred], label), (wanted, 2))


def test_lovasz_has_one_order_in_both_forms():
    logits, label = random_case()
    logits = jnp.round(logits)  # so that many errors are equal

    def value_and_gradient(form):
        with convolution_form(form):
            return jax.jit(jax.value_and_grad(lambda x: lovasz_loss(x, label)[0]))(logits)

    for one, other in zip(*map(value_and_gradient, ("native", "products")), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("fraction", [0.01, 0.3, 1.0])
def test_top_k(fraction, weights):
    logits, label = random_case()
    total = 0.0
    for probs, labels in images(logits, label):
        loss = -np.log(probs[np.arange(len(labels)), labels])
        kept = np.argsort(-loss)[: max(round(fraction * len(labels)), 1)]
        w = np.ones(len(kept)) if weights is None else np.array(weights)[labels[kept]]
        total += np.sum(w * loss[kept]) / max(np.sum(w), 1e-9)
    check(top_k_loss(logits, label, fraction=fraction, class_weights=weights), (total, 2))


def test_top_k_keeps_as_many_of_equal_pixels_as_it_says():
    logits = jnp.zeros((1, 1, 4, 2))
    label = jnp.zeros((1, 1, 4), jnp.int32)
    gradient = jax.grad(lambda z: top_k_loss(z, label, fraction=0.5)[0])(logits)
    np.testing.assert_array_equal(np.any(gradient[0, 0], axis=-1), [True, True, False, False])


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize(("threshold", "min_kept"), [(0.7, 1), (0.002, 20), (0.3, 10), (0.5, 1000)])
def test_ohem(threshold, min_kept, weights):
    logits, label = random_case()
    total, numbers = 0.0, []
    for probs, labels in images(logits, label):
        p = probs[np.arange(len(labels)), labels]
        kept = p < threshold
        kept[np.argsort(p)[:min_kept]] = True
        w = np.ones(len(p)) if weights is None else np.array(weights)[labels]
        total += np.sum((w * -np.log(p))[kept]) / np.sum(w[kept])
        numbers.append(kept.sum())
    # Each of the cases is one of its own: by threshold, by number, all of them.
    if (threshold, min_kept) == (0.7, 1):
        assert all(20 < n < (label[i] != 255).sum() for i, n in enumerate(numbers))
    if (threshold, min_kept) == (0.002, 20):
        assert numbers == [20, 20]
    got = ohem_loss(logits, label, threshold=threshold, min_kept=min_kept, class_weights=weights)
    check(got, (total, 2))


def border_by_hand(label: np.ndarray, radius: int, num_classes: int = CLASSES) -> np.ndarray:
    target = np.full(label.shape, 255)
    for n, i, j in np.ndindex(label.shape):
        if not 0 <= label[n, i, j] < num_classes:
            continue
        around = label[n, max(i - radius, 0) : i + radius + 1, max(j - radius, 0) : j + radius + 1]
        around = around[(around >= 0) & (around < num_classes)]
        target[n, i, j] = np.any(around != label[n, i, j])
    return target


@pytest.mark.parametrize("radius", [1, 2, 30])
def test_borders_between_classes(radius):
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, (3, 4, 3)).repeat(5, 1).repeat(6, 2)
    label[2] = 1
    label[rng.random(label.shape) < 0.1] = rng.choice([255, -1, CLASSES])
    got = border_target(jnp.asarray(label), CLASSES, radius=radius)
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(got, border_by_hand(label, radius))
    assert not np.any(got[2] == 1)  # one class has no border, however much of it is ignored
    renamed = np.where((label >= 0) & (label < CLASSES), CLASSES - 1 - label, label)
    np.testing.assert_array_equal(border_target(renamed, CLASSES, radius=radius), got)


def test_a_straight_border_is_as_wide_as_dfns():
    label = np.zeros((1, 12, 40), np.uint8)
    label[:, :, 20:] = 7
    target = np.asarray(border_target(label, 19))
    np.testing.assert_array_equal(np.flatnonzero(target[0, 5]), np.arange(16, 24))


def test_what_is_ignored_can_be_a_class_for_borders_too():
    label = jnp.array([[[0, 0, 1, 1, 2, 2]]])
    target = border_target(label, 3, radius=1, ignore_label=1)
    np.testing.assert_array_equal(target[0, 0], [0, 0, 255, 255, 0, 0])


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_boundary(weights):
    logits, label = random_case()
    near = np.where(border_by_hand(label, 1) == 1, 3.0, 1.0)[label != 255]
    assert set(near) == {1.0, 3.0}
    total = weight = 0.0
    for b, p, y in zip(near, *pixels(logits, label), strict=True):
        w = 1.0 if weights is None else weights[y]
        total -= b * w * np.log(p[y])
        weight += b * w
    got = boundary_loss(logits, label, factor=3.0, radius=1, class_weights=weights)
    check(got, (total, weight))


def smp_losses():
    import_timm()  # which it imports, with torchvision
    return pytest.importorskip("segmentation_models_pytorch").losses


def in_torch(logits, label):
    return to_torch(logits).requires_grad_(True), import_torch().from_numpy(label).long()


def check_gradient(function, logits, z) -> None:
    gradient = jax.grad(lambda z: function(z)[0])(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, z.grad.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-7)


@pytest.mark.peer
def test_dice_equals_the_peers_on_each_image():
    peer = smp_losses().DiceLoss("multiclass", ignore_index=255)
    for n in range(2):
        logits, label = (x[n : n + 1] for x in random_case())
        z, y = in_torch(logits, label)
        # It has the mean over all classes, those that are missing at zero.
        value = peer(z, y) * CLASSES / len(np.unique(label[label != 255]))
        value.backward()
        check(dice_loss(logits, label, squared=False), (value.item(), 1))
        check_gradient(lambda x, y=label: dice_loss(x, y, squared=False), logits, z)


@pytest.mark.peer
def test_lovasz_equals_the_peers():
    peer = smp_losses().LovaszLoss("multiclass", per_image=True, ignore_index=255)
    logits, label = random_case()
    z, y = in_torch(logits, label)
    value = 2 * peer(z, y)  # the sum over two images
    value.backward()
    check(lovasz_loss(logits, label), (value.item(), 2))
    check_gradient(lambda x: lovasz_loss(x, label), logits, z)


@pytest.mark.peer
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_binary_focal_equals_the_peers(alpha):
    peer = smp_losses().FocalLoss("binary", alpha=alpha, gamma=2.0, ignore_index=255)
    logits, label = random_case(classes=2)
    logits = logits[..., :1]
    z, y = in_torch(logits, label)
    value = peer(z, y) * np.sum(label != 255)
    value.backward()
    check(focal_loss(logits, label, alpha=alpha), (value.item(), np.sum(label != 255)))
    check_gradient(lambda x: focal_loss(x, label, alpha=alpha), logits, z)
