"""Protocols of inference against a plain NumPy reading of what they say."""

import itertools
import math

import jax
import numpy as np
import pytest
from tiny_model import TinyModel, init

from flaxseg.errors import ConfigError
from flaxseg.inference import segmenter as segmenter_module
from flaxseg.inference.named_protocols import PROTOCOLS, parse_protocol
from flaxseg.inference.protocol import Protocol, window_starts
from flaxseg.inference.segmenter import Segmenter, predict
from flaxseg.layers import ImageNormalization

CLASSES = 5
# A mean that is not 0 tells padding with it from padding with black.
NORMALIZATION = ImageNormalization((90.0, 120.0, 150.0), (60.0, 50.0, 40.0))


@pytest.fixture(scope="module")
def tiny():
    model = TinyModel(num_classes=CLASSES, blur=True, normalization=NORMALIZATION)
    variables = init(model)
    # Scores far enough apart that probabilities are not all alike.
    variables["params"]["head"]["kernel"] *= 4.0
    return model, variables


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def interpolated(x, size):
    """Bilinear, half-pixel centres, each pixel by its own sum."""
    for axis in (0, 1):
        n, m = x.shape[axis], size[axis]
        lines = []
        for target in range(m):
            place = min(max((target + 0.5) * n / m - 0.5, 0), n - 1)
            low = math.floor(place)
            high = min(low + 1, n - 1)
            a, b = np.take(x, low, axis), np.take(x, high, axis)
            lines.append(a + (place - low) * (b - a))
        x = np.stack(lines, axis)
    return x


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(tiny, image, protocol):
    """Fused values of an image by the text of `Protocol`: the whole canvas at once, in float64."""
    model, variables = tiny
    apply = jax.jit(lambda x: model.apply(variables, x).logits)
    fused = []
    mirrors = [False, True] if protocol.flip and protocol.softmax != "window" else [False]
    for scale, mirrored in itertools.product(protocol.scales, mirrors):
        x = image[:, ::-1] if mirrored else image
        scaled = protocol.scaled_size(image.shape[:2], scale)
        x = interpolated(x.astype(np.float64), scaled)
        x = (x - NORMALIZATION.mean) / np.array(NORMALIZATION.std)
        if protocol.window is not None:
            window = (protocol.window,) * 2
            stride = (protocol.window_stride or math.ceil(protocol.window * 2 / 3),) * 2
        elif protocol.pad_to is not None:
            window = stride = protocol.pad_to
        else:
            multiple = protocol.pad_multiple
            window = stride = tuple(math.ceil(n / multiple) * multiple for n in scaled)
        spare = [max(w - n, 0) for w, n in zip(window, scaled, strict=True)]
        before = [n // 2 if protocol.pad_place == "centre" else 0 for n in spare]
        around = [(b, n - b) for b, n in zip(before, spare, strict=True)]
        canvas = np.pad(x, (*around, (0, 0)))
        total = np.zeros((*canvas.shape[:2], CLASSES))
        weight = np.zeros(canvas.shape[:2])
        grids = [
            sorted({min(i * s, n - w) for i in range(100) if i * s < n - w + s})
            for n, w, s in zip(canvas.shape, window, stride, strict=False)
        ]
        for top, left in itertools.product(*grids):
            here = slice(top, top + window[0]), slice(left, left + window[1])
            part = canvas[here].astype(np.float32)[None]
            logits = np.asarray(apply(part)[0], np.float64)
            if protocol.softmax != "window":
                value = logits
            elif not protocol.flip:
                value = softmax(logits)
            else:
                other = np.asarray(apply(part[:, :, ::-1])[0], np.float64)[:, ::-1]
                value = {
                    "probabilities": lambda a, b: (softmax(a) + softmax(b)) / 2,
                    "logits": lambda a, b: softmax((a + b) / 2),
                    "logit_sum": lambda a, b: softmax(a + b),
                    "product": lambda a, b: softmax(a) * softmax(b),
                }[protocol.flip_fusion](logits, other)
            total[here] += protocol.weights(window)[..., None] * value
            weight[here] += protocol.weights(window)
        if protocol.overlap == "mean":
            total /= weight[..., None]
        crop = total[before[0] : before[0] + scaled[0], before[1] : before[1] + scaled[1]]
        value = interpolated(crop, image.shape[:2])
        if protocol.softmax == "image":
            value = softmax(value)
        fused.append(value[:, ::-1] if mirrored else value)
    result = np.max(fused, 0) if protocol.fusion == "max" else np.mean(fused, 0)
    return softmax(result) if protocol.softmax == "end" else result / result.sum(-1, keepdims=True)


CASES = {
    "whole": Protocol(),
    "flip": Protocol(flip=True),
    "flip_logits": Protocol(flip=True, flip_fusion="logits"),
    "scales_max": Protocol(scales=(0.5, 1.0, 1.7), fusion="max"),
    "padded": Protocol(scales=(0.6, 1.0), pad_multiple=8, pad_place="centre"),
    "canvas": Protocol(pad_to=(64, 50)),
    "windows": Protocol(window=16, window_stride=7, flip=True, flip_fusion="logit_sum"),
    "gaussian": Protocol(scales=(0.7, 1.3), window=15, window_weights="gaussian"),
    "larger_than_image": Protocol(window=60, pad_place="centre"),
    "larger_than_one_side": Protocol(window=45, pad_place="centre"),
    "image_softmax": Protocol(
        scales=(0.8, 1.2), window=16, window_stride=10, flip=True, softmax="image"
    ),
    "end_softmax": Protocol(scales=(0.8, 1.2), flip=True, softmax="end"),
    "summed": Protocol(
        scales=(0.75, 1.25), window=16, overlap="sum", flip=True, flip_fusion="product"
    ),
    "long_side": Protocol(scales=(0.5, 1.5), long_side=50, window=24),
    "short_side": Protocol(short_side=(45, 80)),
}


@pytest.mark.parametrize("name", CASES)
def test_is_what_the_description_says(tiny, name, monkeypatch):
    monkeypatch.setattr(segmenter_module, "_LINES", 16)  # so that a small image has several
    image, protocol = random_image(41, 48), CASES[name]
    segmenter = Segmenter(*tiny, protocol)
    probabilities = segmenter.run(image).probabilities
    wanted = reference(tiny, image, protocol)
    np.testing.assert_allclose(probabilities, wanted, atol=2e-5)
    classes = segmenter.run(image).classes
    assert len(np.unique(classes)) > 2
    unsure = np.sort(wanted, -1)
    clear = unsure[..., -1] - unsure[..., -2] > 1e-4
    np.testing.assert_array_equal(classes[clear], wanted.argmax(-1)[clear])


@pytest.mark.parametrize("name", ["windows", "image_softmax", "long_side", "flip"])
def test_wide_images_are_done_in_blocks_with_the_same_result(tiny, name, monkeypatch):
    image = random_image(20, 61)
    segmenter = Segmenter(*tiny, CASES[name])
    whole = segmenter.run(image).probabilities
    monkeypatch.setattr(segmenter_module, "_BLOCK", 17)
    np.testing.assert_allclose(segmenter.run(image).probabilities, whole, atol=1e-6)


def test_a_window_that_covers_the_image_is_the_whole_image(tiny):
    image = random_image(33, 40)
    whole = Segmenter(*tiny).run(image).probabilities
    for protocol in (
        Protocol(window=(33, 40)),
        Protocol(window=(33, 40), window_weights="gaussian"),
    ):
        np.testing.assert_allclose(
            Segmenter(*tiny, protocol).run(image).probabilities, whole, atol=1e-6
        )
    np.testing.assert_array_equal(Segmenter(*tiny).run(image).classes, predict(*tiny, image))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_result_does_not_depend_on_how_many_windows_run_at_a_time(tiny, count):
    image, protocol = random_image(30, 50), CASES["windows"]
    one = Segmenter(*tiny, protocol).run(image).probabilities
    several = Segmenter(*tiny, protocol, windows_per_device=count).run(image).probabilities
    np.testing.assert_array_equal(one, several)


def test_over_devices_equals_one_device(tiny):
    devices = jax.devices()
    assert len(devices) > 1
    image, protocol = random_image(30, 50), CASES["windows"]
    one = Segmenter(*tiny, protocol).run(image).probabilities
    several = Segmenter(*tiny, protocol, devices=devices[:4]).run(image).probabilities
    np.testing.assert_allclose(one, several, atol=1e-6)


@pytest.mark.usefixtures("no_leaked_tracers")
@pytest.mark.parametrize("size", [(1, 1), (1, 70), (70, 1), (3, 2)])
@pytest.mark.parametrize("name", ["windows", "scales_max", "flip", "padded"])
def test_any_size(tiny, name, size):
    probabilities = Segmenter(*tiny, CASES[name]).run(random_image(*size)).probabilities
    assert probabilities.shape == (*size, CLASSES)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)


def test_many_sizes_compile_a_few_programs(tiny):
    segmenter = Segmenter(*tiny, Protocol(window=16))
    assert segmenter.run(random_image(19, 20)).classes.shape == (19, 20)
    before = segmenter._network.add._cache_size()
    for height, width in itertools.product((20, 25, 31), (18, 27, 32)):
        assert segmenter.run(random_image(height, width)).classes.shape == (height, width)
    assert segmenter._network.add._cache_size() == before
    assert segmenter.run(random_image(200, 20)).classes.shape == (200, 20)
    assert segmenter._network.add._cache_size() == before + 1


def test_memory_of_the_band_does_not_grow_with_the_height(tiny):
    def live(height):
        held = []
        segmenter = Segmenter(*tiny, Protocol(window=16))
        for _ in segmenter._parts(random_image(height, 30)):
            held.append(sum(x.nbytes for x in jax.live_arrays()))
        return max(held)

    # The image itself, 3 bytes a pixel, is there as a whole.
    assert live(3000) - live(300) < 4 * 48 * (4096 - 384)


def test_cityscapes_has_two_by_four_windows_in_pspnets_protocol():
    layout = PROTOCOLS["pspnet_cityscapes"].layout((1024, 2048), 1.0)
    assert layout.row_starts == (0, 311)
    assert layout.column_starts == (0, 476, 952, 1335)
    # As semseg's grid: ceil((L - crop) / stride) + 1, the last one shifted back.
    assert window_starts(713, 713, 476) == (0,)
    assert window_starts(714, 713, 476) == (0, 1)


def test_every_pixel_is_seen_and_none_by_windows_beyond_the_border():
    for length, window, stride in itertools.product((1, 16, 17, 40, 97), (16,), (1, 7, 11, 16)):
        starts = window_starts(length, window, stride)
        seen = np.zeros(max(length, window), int)
        for start in starts:
            seen[start : start + window] += 1
        assert seen.min() >= 1
        assert starts[-1] + window == max(length, window)
        assert len(set(starts)) == len(starts)


def test_named_protocols_are_valid_and_their_text_leads_back_to_them():
    for name, protocol in PROTOCOLS.items():
        assert parse_protocol(name) == protocol
        assert parse_protocol(protocol.describe()) == protocol
        protocol.layout((375, 500), protocol.scales[0])
    changed = parse_protocol("pspnet_ms(scales=[1.0], flip=False, flip_fusion='probabilities')")
    assert changed.scales == (1.0,)
    assert changed.window == 473


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pspnets", "there is no protocol 'pspnets'.*Did you mean 'pspnet'"),
        (
            "whole(scale=(1.0,))",
            "the protocol 'whole' has no argument 'scale'.*Did you mean 'scales'",
        ),
        ("whole(scales=(0.0,))", r"scales is \(0.0,\); it must be a tuple of numbers above 0"),
        ("whole(scales=())", r"scales is \(\)"),
        ("whole(flip_fusion='sum')", "flip_fusion is 'sum'; it must be one of probabilities"),
        ("whole(window=0)", "window is 0; it must be a whole number or a pair"),
        ("whole(window=16, window_stride=17)", "would leave pixels out"),
        ("whole(window_stride=17)", "there is no window"),
        ("whole(window=16, pad_to=(3, 3))", "are for whole images"),
        ("whole(long_side=3, short_side=(3, 4))", "cannot both be set"),
        ("whole(short_side=(5, 4))", "must be .least, most."),
        ("whole(long_side=(5, 4))", "must be .least, most."),
        ("whole(pad_multiple=0)", "pad_multiple is 0"),
        ("whole(flip=True, flip_fusion='product', softmax='end')", "which is for softmax='window'"),
        ("whole(1)", "is not understood"),
        ("whole(flip=yes)", "is not understood"),
        ("two words", "is not understood"),
    ],
)
def test_wrong_protocols_are_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_protocol(text)


def test_an_image_larger_than_the_canvas_runs_in_windows_of_its_size(tiny):
    image = random_image(25, 7)
    canvas, windows = (Protocol(pad_to=(16, 12)), Protocol(window=(16, 12)))
    assert canvas.layout((25, 7), 1.0) == windows.layout((25, 7), 1.0)
    np.testing.assert_array_equal(
        Segmenter(*tiny, canvas).run(image).probabilities,
        Segmenter(*tiny, windows).run(image).probabilities,
    )


def test_sides_between_bounds_keep_images_that_lie_between_them():
    between = Protocol(long_side=(10, 20))
    sizes = [(5, 3), (12, 16), (20, 20), (40, 10)]
    assert [between.scaled_size(s, 1.0) for s in sizes] == [(10, 6), (12, 16), (20, 20), (20, 5)]
    assert Protocol(long_side=7).scaled_size((14, 4), 1.0) == (7, 2)


def test_the_protocol_is_the_models_own_unless_told_otherwise(tiny):
    model, variables = tiny
    own = model.clone(protocol="whole(scales=(0.5,))")
    image, smaller = random_image(9, 11), Protocol(scales=(0.5,))
    assert Segmenter(own, variables).protocol == smaller
    assert Segmenter(own, variables, Protocol()).protocol == Protocol()
    reduced, whole = (Segmenter(*tiny, p).run(image).classes for p in (smaller, Protocol()))
    assert (reduced != whole).any()
    np.testing.assert_array_equal(predict(own, variables, image), reduced)
    np.testing.assert_array_equal(predict(own, variables, image, protocol=Protocol()), whole)


def test_images_of_another_form_are_refused(tiny):
    with pytest.raises(ValueError, match="dtype float64"):
        Segmenter(*tiny).run(np.zeros((5, 5, 3)))
    with pytest.raises(ValueError, match=r"shape \(1, 5, 5, 3\)"):
        Segmenter(*tiny).run(np.zeros((1, 5, 5, 3), np.uint8))
