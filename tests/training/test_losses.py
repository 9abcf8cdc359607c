import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxseg.errors import ConfigError
from flaxseg.layers import resize
from flaxseg.training import losses
from flaxseg.training.losses import (
    cross_entropy,
    description,
    pixel_accuracy,
    pixels,
    segmentation_loss,
)

CLASSES = 5
WEIGHTS = (0.5, 2.0, 0.0, 1.5, 0.1)
VARIANTS = [(0.0, None), (0.1, None), (0.0, WEIGHTS), (0.3, WEIGHTS)]


def random_case(seed: int = 0, labels=(255,)) -> tuple[np.ndarray, np.ndarray]:
    """Logits and labels with a third of the pixels at one of `labels`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3.0, size=(2, 6, 7, CLASSES)).astype(np.float32)
    label = rng.integers(0, CLASSES, (2, 6, 7)).astype(np.int32)
    odd = rng.random(label.shape) < 0.33
    label[odd] = rng.choice(labels, odd.sum())
    return logits, label


def by_hand(logits, label, smoothing, weights, ignore_label=255) -> tuple[float, float]:
    """The formula, pixel by pixel in float64."""
    weights = np.ones(CLASSES) if weights is None else np.asarray(weights, np.float64)
    total = weight = 0.0
    for z, y in zip(logits.astype(np.float64).reshape(-1, CLASSES), label.reshape(-1), strict=True):
        if y == ignore_label or not 0 <= y < CLASSES:
            continue
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        total -= (1 - smoothing) * weights[y] * log_p[y] + smoothing / CLASSES * weights @ log_p
        weight += weights[y]
    return total, weight


@pytest.mark.parametrize(("smoothing", "weights"), VARIANTS)
def test_equals_the_formula_with_labels_of_any_value(smoothing, weights):
    logits, label = random_case(labels=(255, -1, -5, CLASSES, 254, 256, 100_000, -(2**31)))
    total, weight = segmentation_loss(
        logits, label, label_smoothing=smoothing, class_weights=weights
    )
    assert total.dtype == weight.dtype == jnp.float32
    np.testing.assert_allclose((total, weight), by_hand(logits, label, smoothing, weights), 1e-6)


@pytest.mark.peer
@pytest.mark.parametrize(("smoothing", "weights"), VARIANTS)
def test_mean_and_gradient_equal_torch(smoothing, weights):
    torch = pytest.importorskip("torch")
    logits, label = random_case()

    def mean(logits):
        total, weight = segmentation_loss(
            logits, jnp.asarray(label), label_smoothing=smoothing, class_weights=weights
        )
        return total / weight

    value, gradient = jax.jit(jax.value_and_grad(mean))(logits)
    z = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        z.permute(0, 3, 1, 2),
        torch.tensor(label, dtype=torch.int64),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
        ignore_index=255,
    )
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-6)
    np.testing.assert_allclose(gradient, z.grad.numpy(), rtol=1e-5, atol=1e-8)


@pytest.mark.peer
@pytest.mark.parametrize("align_corners", [False, True])
def test_auxiliary_logits_are_resized_as_torch_does(align_corners):
    torch = pytest.importorskip("torch")
    logits = random_case()[0][:, :4, :3]
    label = random_case(1)[1]
    total, weight = segmentation_loss(logits, label, align_corners=align_corners)
    large = torch.nn.functional.interpolate(
        torch.tensor(logits).permute(0, 3, 1, 2),
        (6, 7),
        mode="bilinear",
        align_corners=align_corners,
    )
    expected = torch.nn.functional.cross_entropy(
        large, torch.tensor(label, dtype=torch.int64), ignore_index=255, reduction="sum"
    )
    np.testing.assert_allclose(total, expected.item(), rtol=1e-5)
    assert float(weight) == np.sum(label != 255)


def test_logits_of_another_stride_are_resized_before_the_softmax():
    logits, label = random_case()
    small = jnp.asarray(logits[:, ::2, ::3])
    large = resize(small, (6, 7), align_corners=False)
    np.testing.assert_allclose(
        segmentation_loss(small, label), segmentation_loss(large, label), rtol=1e-6
    )


@pytest.mark.parametrize(("smoothing", "weights"), VARIANTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_gradient_at_ignored_pixels_is_exactly_zero_whatever_is_there(smoothing, weights, value):
    logits, label = random_case(labels=(255, -1, CLASSES))
    ignored = (label < 0) | (label >= CLASSES)

    def total(logits):
        return segmentation_loss(
            logits, jnp.asarray(label), label_smoothing=smoothing, class_weights=weights
        )[0]

    spoilt = np.where(ignored[..., None], value, logits)
    clean_value, clean = jax.value_and_grad(total)(jnp.asarray(logits))
    spoilt_value, gradient = jax.value_and_grad(total)(jnp.asarray(spoilt))
    assert np.all(np.asarray(gradient)[ignored] == 0.0)
    assert spoilt_value == clean_value
    np.testing.assert_array_equal(gradient, clean)
    if weights is None:
        assert np.all(np.abs(np.asarray(gradient)[~ignored]).sum(-1) > 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_ignore_label_can_be_a_class_or_negative(dtype):
    logits, label = random_case(labels=(3,))
    label = jnp.asarray(label, dtype)
    total, weight = segmentation_loss(logits, label, ignore_label=3)
    np.testing.assert_allclose((total, weight), by_hand(logits, label, 0.0, None, 3), rtol=1e-6)
    whole = segmentation_loss(logits, label, ignore_label=-1)
    np.testing.assert_allclose(whole, by_hand(logits, label, 0.0, None, -1), rtol=1e-6)


def test_more_classes_than_a_byte_holds():
    logits = np.zeros((1, 1, 2, 300), np.float32)
    logits[..., 256] = 9.0  # class 0 plus 256 must not count as class 0
    total, count = jax.jit(segmentation_loss)(logits, np.array([[[0, 200]]], np.uint8))
    assert count == 2
    np.testing.assert_allclose(total / count, np.log(299 + np.exp(9.0)), rtol=1e-6)


def test_nothing_valid_is_zero_with_zero_gradient():
    logits, label = random_case()
    label[:] = 255

    def mean(logits):
        total, weight = segmentation_loss(logits, jnp.asarray(label))
        return total / losses.safe_divisor(weight)

    value, gradient = jax.value_and_grad(mean)(jnp.asarray(logits))
    assert value == 0
    assert not np.any(gradient)


def test_small_class_weights_are_not_clipped():
    logits, label = random_case()
    plain = segmentation_loss(logits, label, class_weights=[1.0] * CLASSES)
    small = segmentation_loss(logits, label, class_weights=[1e-4] * CLASSES)
    assert losses.safe_divisor(small[1]) < 1
    np.testing.assert_allclose(
        small[0] / losses.safe_divisor(small[1]), plain[0] / plain[1], rtol=1e-5
    )


def test_sums_of_parts_add_up_to_the_sum_of_the_whole():
    logits, label = random_case()
    parts = [segmentation_loss(logits[i : i + 1], label[i : i + 1]) for i in range(2)]
    np.testing.assert_allclose(np.sum(parts, axis=0), segmentation_loss(logits, label), rtol=1e-6)


def test_large_logits_neither_overflow_nor_lose_their_difference():
    logits = jnp.array([[[[20_000.0, 19_999.0], [-20_000.0, 0.0]]]])
    total, _ = segmentation_loss(logits, jnp.array([[[1, 0]]]))
    np.testing.assert_allclose(total, np.log1p(np.e) + 20_000.0, rtol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    logits, label = random_case()
    half = jnp.asarray(logits, jnp.bfloat16)
    total, weight = segmentation_loss(half, label)
    assert total.dtype == weight.dtype == jnp.float32
    assert total == segmentation_loss(half.astype(jnp.float32), label)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing 1.0 must be in \[0, 1\)"),
        ({"label_smoothing": -0.1}, "label_smoothing -0.1"),
        ({"class_weights": (1.0, 2.0)}, "2 values for 5 classes"),
        ({"class_weights": (1.0, 1.0, -1.0, 1.0, 1.0)}, "none negative"),
        ({"class_weights": (1.0, 1.0, np.nan, 1.0, 1.0)}, "must be finite"),
        ({"class_weights": (0.0,) * 5}, "at least one positive"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        segmentation_loss(*random_case(), **options)


def test_shapes_that_do_not_fit_are_refused():
    logits, label = random_case()
    with pytest.raises(ValueError, match=r"\(2, 6, 7, 5\) and label of shape \(1, 6, 7\)"):
        segmentation_loss(logits, label[:1])
    with pytest.raises(ValueError, match="at least 2"):
        segmentation_loss(logits[..., :1], label)
    with pytest.raises(ValueError, match="float32; give class indices"):
        segmentation_loss(logits, label.astype(np.float32))


def test_pixel_accuracy_counts_in_integers_and_leaves_out_what_is_not_valid():
    logits, label = random_case(labels=(255, -1, CLASSES))
    correct, valid = pixel_accuracy(logits, label)
    in_range = (label >= 0) & (label < CLASSES)
    assert correct.dtype == valid.dtype == jnp.int32
    assert correct == np.sum(in_range & (logits.argmax(-1) == label))
    assert valid == in_range.sum()


def test_examples():
    for module in (cross_entropy, description, pixels):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0
