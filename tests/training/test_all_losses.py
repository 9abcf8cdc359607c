"""What holds for every kind of loss: see `KINDS`, which the tests go through."""

import doctest
import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxseg.errors import ConfigError
from flaxseg.layers import resize
from flaxseg.training.losses import KINDS, OutputLoss, safe_divisor

CLASSES = 4
SIZE = (4, 7, 9)
# Arguments that are not the defaults: small ones for small images.
ARGUMENTS = {
    "focal": "focal(gamma=0.5)",
    "dice": "dice(squared=False)",
    "top_k": "top_k(fraction=0.4)",
    "ohem": "ohem(threshold=0.5, min_kept=7)",
    "boundary": "boundary(factor=3.0, radius=1)",
}
# Kinds that are at their least where the logits say what the label says.
OF_LABELS = ("cross_entropy", "focal", "dice", "lovasz", "top_k", "ohem", "boundary")
ALL = [*KINDS, *ARGUMENTS.values(), "0.5 * cross_entropy + 2 * dice + lovasz"]


def random_case(seed: int = 0, ignored=(255,)) -> tuple[np.ndarray, np.ndarray]:
    """Logits, labels with regions, a third of them ignored, one image nearly whole."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=(*SIZE, CLASSES)).astype(np.float32)
    label = rng.integers(0, CLASSES, (SIZE[0], 3, 3)).repeat(3, 1).repeat(3, 2)[:, : SIZE[1]]
    label = label.astype(np.int32)
    spoilt = rng.random(SIZE) < np.array([0.6, 0.3, 0.1, 0.02])[:, None, None]
    label[spoilt] = rng.choice(ignored, spoilt.sum())
    return logits, label


def pairs(kind: str, logits, label) -> list[tuple]:
    """``(weight, sum, count)`` of each summand of a kind."""
    return [(term.weight, *term.loss(logits, label)) for term in OutputLoss(kind=kind).terms()]


@functools.cache
def compiled(kind: str):
    """``(logits, label) -> ((value, pairs), gradient)`` of the mean."""

    def mean(logits, label):
        parts = pairs(kind, logits, label)
        return sum(weight * total / safe_divisor(n) for weight, total, n in parts), parts

    return jax.jit(jax.value_and_grad(mean, has_aux=True))


def run(kind: str, logits, label) -> tuple[np.ndarray, np.ndarray]:
    """Value and gradient of the mean."""
    (value, _), gradient = jax.device_get(compiled(kind)(np.float32(logits), np.int32(label)))
    return value, gradient


@pytest.mark.parametrize("kind", ALL)
def test_ignored_pixels_change_neither_value_nor_gradient(kind):
    logits, label = random_case(ignored=(255, -1, CLASSES, 254, 100_000))
    ignored = (label < 0) | (label >= CLASSES)
    value, gradient = run(kind, logits, label)
    assert value > 0
    assert np.all(gradient[ignored] == 0)
    assert np.any(gradient[~ignored] != 0)
    for spoilt in (np.nan, np.inf, -np.inf, 1e30, -3.0):
        other = run(kind, np.where(ignored[..., None], np.float32(spoilt), logits), label)
        assert other[0] == value
        np.testing.assert_array_equal(other[1], gradient)
    # Which number an ignored pixel has plays no part either.
    other = run(kind, logits, np.where(ignored, 255, label))
    assert other[0] == value
    np.testing.assert_array_equal(other[1], gradient)


@pytest.mark.parametrize("kind", ALL)
def test_with_nothing_valid_value_and_gradient_are_zero(kind):
    logits, label = random_case()
    value, gradient = run(kind, logits, np.full_like(label, 255))
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.parametrize("kind", ALL)
def test_sums_and_counts_of_two_devices_add_up_and_counts_depend_on_labels_alone(kind):
    logits, label = random_case()
    label[1] = 255  # an image without a valid pixel

    def part(logits, label):
        return jax.lax.psum(pairs(kind, logits, label), "data")

    (_, whole), _ = compiled(kind)(logits, label)
    halves = [x.reshape(2, x.shape[0] // 2, *x.shape[1:]) for x in (logits, label)]
    spread = jax.pmap(part, axis_name="data", devices=jax.devices()[:2])(*halves)
    np.testing.assert_allclose(
        np.array(spread)[:, 1:, 0], np.array(whole)[:, 1:], rtol=1e-5, err_msg=kind
    )
    (_, other), _ = compiled(kind)(-2.0 * logits[:, ::-1], label)
    np.testing.assert_array_equal([n for _, _, n in other], [n for _, _, n in whole])
    assert all(x.dtype == jnp.float32 for _, *pair in whole for x in pair)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_logits_are_computed_with_in_float32(kind):
    logits, label = random_case()
    half = jnp.asarray(logits, jnp.bfloat16)
    (_, total, n), *_ = jax.jit(lambda z, y: pairs(kind, z, y))(half, label)
    assert total.dtype == n.dtype == jnp.float32
    np.testing.assert_allclose(total / n, run(kind, half, label)[0], rtol=1e-6)


@pytest.mark.parametrize("kind", ALL)
def test_saturated_logits_have_finite_values_and_gradients(kind):
    logits, label = random_case()
    right = np.where(label[..., None] == np.arange(CLASSES), 1e4, -1e4)
    for saturated in (right, -right, 1e4 * np.sign(logits), np.full_like(logits, 1e4)):
        value, gradient = run(kind, saturated, label)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("kind", OF_LABELS)
def test_what_is_right_costs_nothing_and_what_is_wrong_more_than_chance(kind):
    _, label = random_case()
    right = np.where(label[..., None] == np.arange(CLASSES), 30.0, -30.0)
    values = [run(kind, sign * right, label)[0] for sign in (1, 0, -1)]
    assert values[0] < 1e-6
    assert values[0] < values[1] < values[2]


@pytest.mark.parametrize("kind", ALL)
def test_the_gradient_is_that_of_the_value(kind):
    logits, label = random_case()
    gradient = run(kind, logits, label)[1]
    slope = np.linalg.norm(gradient)
    ahead, behind = (run(kind, logits + s * gradient / slope, label)[0] for s in (0.02, -0.02))
    np.testing.assert_allclose((ahead - behind) / 0.04, slope, rtol=0.02)


@pytest.mark.parametrize("kind", OF_LABELS)
def test_logits_of_another_stride_are_resized_and_labels_of_small_types_are_read(kind):
    logits, label = random_case()
    small = jnp.asarray(logits[:, ::2, ::2])
    large = resize(small, SIZE[1:], align_corners=True)
    (term,) = OutputLoss(kind=kind, align_corners=True).terms()
    total, n = jax.jit(term.loss)(small, np.uint8(label))
    np.testing.assert_allclose(total / n, run(kind, large, label)[0], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_that_does_not_fit_is_refused(kind):
    logits, label = random_case()
    with pytest.raises(ValueError, match="do not fit together"):
        pairs(kind, logits, label[:1])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("focal(gamma=-1)", "gamma -1 must be"),
        ("focal(alpha=1.5)", r"alpha 1.5 must be in \[0, 1\]"),
        ("top_k(fraction=0)", r"fraction 0 must be in \(0, 1\]"),
        ("ohem(threshold=1.5)", "threshold 1.5"),
        ("ohem(min_kept=0.5)", "min_kept 0.5 must be a whole number"),
        ("boundary(factor=0)", "factor 0 must be"),
        ("boundary(radius=0)", "radius 0 must be"),
        ("cross_entropy + 0.5 * dise", "no loss 'dise'.*Did you mean 'dice'"),
        ("dice(gamma=2)", "'dice' has no argument 'gamma'; it has squared"),
        ("lovasz(squared=True)", "it has none"),
        ("ohem(thresh=0.5)", "Did you mean 'threshold'"),
    ],
)
def test_impossible_arguments_are_refused_before_anything_is_compiled(kind, message):
    with pytest.raises(ConfigError, match=message):
        OutputLoss(kind=kind)
    with pytest.raises(ConfigError, match="align_corners is None"):
        OutputLoss(align_corners=None)
    with pytest.raises(ConfigError, match="radius"):
        OutputLoss(target="border(radius=0)")
    with pytest.raises(ConfigError, match=r"'border' has no argument 'width'; it has radius"):
        OutputLoss(target="border(width=3)")


@pytest.mark.parametrize(
    "name",
    ["border", "cross_entropy", "description", "dice", "focal", "hard_pixels", "lovasz", "pixels"],
)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"flaxseg.training.losses.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
