"""From uint8 images to label maps."""

import gc

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TinyModel, init

from flaxseg.inference import Protocol, Segmenter, predict
from flaxseg.inference.segmenter import _last_segmenter
from flaxseg.layers import ImageNormalization, normalize
from flaxseg.models import Prediction


@pytest.fixture(scope="module")
def tiny():
    model = TinyModel(num_classes=5, blur=True)
    return model, init(model)


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def test_is_the_argmax_of_the_logits_of_normalised_pixels(tiny):
    model, variables = tiny
    image = random_images(2, 7, 9, 3)
    logits = model.apply(variables, normalize(jnp.asarray(image), model.normalization)).logits
    pred = Segmenter(model, variables).run_batch(image)
    assert pred.dtype == jnp.uint8
    np.testing.assert_array_equal(pred, np.argmax(np.asarray(logits), axis=-1))
    assert len(np.unique(pred)) > 1, "a test with one class says little"


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5)])
def test_any_size_one_image_or_several(tiny, size):
    image = random_images(2, *size, 3)
    both = predict(*tiny, image)
    assert both.shape == (2, *size)
    np.testing.assert_array_equal(predict(*tiny, image[1]), both[1])


def test_compiles_once_per_size(tiny):
    model, variables = tiny
    image = random_images(11, 13, 3)
    predict(model, variables, image)
    programs = _last_segmenter(model, None, None)._batch_classes
    before = programs._cache_size()
    predict(model, variables, image[:, ::-1].copy())
    assert programs._cache_size() == before
    predict(model, variables, image[:5])
    assert programs._cache_size() == before + 1


def test_other_variables_share_the_programs(tiny):
    model, variables = tiny
    image = random_images(7, 9, 3)
    one = Segmenter(model, variables)
    first = one.run(image).probabilities
    other = one.with_variables(jax.tree.map(lambda x: 2 * x, variables))
    changed = other.run(image).probabilities
    assert one._image_probabilities._cache_size() == 1
    assert np.abs(changed - first).max() > 0.01
    np.testing.assert_array_equal(one.run(image).probabilities, first)


def test_programs_are_freed_with_their_segmenter():
    model = TinyModel(num_classes=7, blur=True)
    variables = init(model)
    client = jax.devices()[0].client

    def programs():
        gc.collect()
        return len(client.live_executables())

    before = programs()
    protocols = Protocol(), Protocol(scales=(1.0, 0.5)), Protocol(window=8)
    segmenters = [Segmenter(model, variables, protocol) for protocol in protocols]
    for segmenter in segmenters:
        segmenter.run(random_images(9, 12, 3)).classes  # noqa: B018 (computes)
        segmenter.run(random_images(9, 12, 3)).probabilities  # noqa: B018 (computes)
    assert programs() > before
    del segmenter, segmenters
    assert programs() == before


def test_values_of_a_result_are_computed_once(tiny):
    segmenter = Segmenter(*tiny)
    result = segmenter.run(random_images(7, 9, 3))
    assert segmenter._batch_classes._cache_size() == 0
    assert result.classes is result.classes
    assert result.probabilities is result.probabilities
    again = segmenter.run(result.image)
    np.testing.assert_array_equal(again.probabilities.argmax(-1), again.classes)
    np.testing.assert_array_equal(again.classes, result.classes)


@pytest.mark.parametrize(
    "way", ["predict", "batch", pytest.param("scales", marks=pytest.mark.slow), "probabilities"]
)
def test_many_sizes_keep_the_programs_of_a_few(way, monkeypatch):
    monkeypatch.setattr("flaxseg.inference.program_cache.MAX_SIZES", 3)
    model = TinyModel(num_classes=6, blur=True)
    variables = init(model)
    segmenter = Segmenter(
        model, variables, Protocol(scales=(1.0, 0.5)) if way == "scales" else Protocol()
    )
    run = {
        "predict": lambda image: predict(model, variables, image),
        "batch": lambda image: segmenter.run_batch(image[None]),
        "scales": lambda image: segmenter.run(image).classes,
        "probabilities": lambda image: segmenter.run(image).probabilities,
    }[way]
    client = jax.devices()[0].client
    images = [random_images(6, width, 3) for width in range(8, 20, 2)]
    first = [np.asarray(run(image)) for image in images[:3]]
    gc.collect()
    few = len(client.live_executables())
    for image in images[3:]:
        run(image)
    gc.collect()
    assert len(client.live_executables()) <= few
    again = [np.asarray(run(image)) for image in images[:3]]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_over_devices_equals_one_device(tiny):
    model, variables = tiny
    image = random_images(8, 6, 7, 3)
    spread = Segmenter(model, variables, devices=jax.devices()[:8]).run_batch(image)
    assert len(spread.sharding.device_set) == 8
    np.testing.assert_array_equal(spread, predict(model, variables, image))


def test_wrong_images_are_errors(tiny):
    with pytest.raises(ValueError, match="dtype float32"):
        predict(*tiny, np.zeros((4, 4, 3), np.float32))
    for shape in [(4, 4), (4, 4, 4), (0, 4, 3), (1, 2, 4, 4, 3)]:
        with pytest.raises(ValueError, match="RGB"):
            predict(*tiny, np.zeros(shape, np.uint8))


def test_more_classes_than_a_byte_holds():
    with pytest.raises(ValueError, match="at most 255"):
        Segmenter(TinyModel(num_classes=256), {})


class SeesItsBatch(nn.Module):
    """A network whose answer tells how many images it is given at a time, as rounding does."""

    num_classes: int = 9
    normalization: ImageNormalization = ImageNormalization((0.0,) * 3, (1.0,) * 3)

    def __call__(self, image, *, train=False):
        number = jnp.full(image.shape[:-1], image.shape[0])
        return Prediction(jax.nn.one_hot(number, self.num_classes), {})


@pytest.mark.parametrize(("batch_size", "device_count"), [(1, 1), (4, 1), (8, 2)])
def test_the_network_never_sees_more_than_one_image(batch_size, device_count):
    """So that sums are rounded in one way for any batch size and device count."""
    segmenter = Segmenter(SeesItsBatch(), {}, devices=jax.devices()[:device_count])
    np.testing.assert_array_equal(segmenter.run_batch(random_images(batch_size, 3, 4, 3)), 1)
