"""`evaluate`: each image once, whatever the batch size, the devices, the sizes and the order."""

import threading

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from tiny_model import TinyModel, init

from flaxseg.errors import ConfigError, DataError
from flaxseg.evaluation import ConfusionMatrix, evaluate, pad_image
from flaxseg.evaluation import evaluate as _evaluate_function
from flaxseg.inference import Segmenter, predict

CLASSES = 4
SIZES = [(6, 9), (9, 6), (6, 9), (5, 5), (9, 6), (6, 9), (1, 1), (6, 9), (6, 9), (12, 3), (6, 9)]


def make_records(sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)
    records = []
    for number, (height, width) in enumerate(sizes):
        label = rng.integers(0, CLASSES, (height, width)).astype(np.uint8)
        label[rng.random((height, width)) < 0.1] = 255
        image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        records.append({"image": image, "label": label, "id": f"r{number}"})
    return records


def red_class(image):
    """A network whose answer is known: the class is the red value modulo the number of classes."""
    return np.asarray(image)[..., 0] % CLASSES


def direct(records):
    matrix = ConfusionMatrix(CLASSES)
    for record in records:
        matrix.update(record["label"], red_class(record["image"]))
    return matrix


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 64])
def test_equals_a_loop_over_images_for_any_batch_size(batch_size):
    records = make_records()
    wanted = direct(records)
    metrics = evaluate(red_class, records, CLASSES, batch_size=batch_size)
    np.testing.assert_array_equal(metrics.matrix, wanted.matrix)
    assert metrics.ignored_pixels == wanted.ignored_pixels


def test_each_image_is_seen_once_with_its_own_prediction():
    records = make_records()
    seen = {}
    done = []

    def see(index, record, pred):
        assert index not in seen
        seen[index] = record["id"]
        assert pred.dtype == np.uint8
        np.testing.assert_array_equal(pred, red_class(record["image"]))

    evaluate(
        red_class,
        records,
        CLASSES,
        batch_size=3,
        on_prediction=see,
        progress=lambda *x: done.append(x),
    )
    assert seen == {i: record["id"] for i, record in enumerate(records)}
    assert done[-1] == (len(records), len(records))
    assert [d for d, _ in done] == sorted({d for d, _ in done})


def test_one_batch_shape_per_size():
    shapes = []

    def run_batch(image):
        shapes.append(image.shape)
        return red_class(image)

    evaluate(run_batch, make_records(), CLASSES, batch_size=3)
    assert {shape[0] for shape in shapes} == {3}
    assert {shape[1:3] for shape in shapes} == set(SIZES)


@pytest.mark.parametrize("device_count", [1, 2, 8])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_same_value_on_any_number_of_devices(device_count, batch_size):
    model = TinyModel(CLASSES, blur=True)
    variables = init(model)
    records = make_records()
    wanted = ConfusionMatrix(CLASSES)
    for record in records:
        wanted.update(record["label"], predict(model, variables, record["image"]))
    assert np.count_nonzero(wanted.matrix.sum(axis=0)) > 1, "the network says one class only"
    metrics = evaluate(
        Segmenter(model, variables, devices=jax.devices()[:device_count]).run_batch,
        records,
        CLASSES,
        batch_size=batch_size,
        device_count=device_count,
    )
    np.testing.assert_array_equal(metrics.matrix, wanted.matrix)


def test_padding_counts_only_real_pixels_and_uses_the_mean_colour():
    records = make_records()
    canvases = []

    def run_batch(image):
        canvases.append(image)
        return red_class(image)

    seen = []
    metrics = evaluate(
        run_batch,
        records,
        CLASSES,
        batch_size=4,
        pad_to=(13, 10),
        pad_color=(10.4, 20.6, 300.0),
        on_prediction=lambda index, record, pred: seen.append((record["label"].shape, pred.shape)),
    )
    np.testing.assert_array_equal(metrics.matrix, direct(records).matrix)
    assert metrics.ignored_pixels > direct(records).ignored_pixels - 1
    assert {canvas.shape for canvas in canvases} == {(4, 13, 10, 3)}
    first = canvases[0][0]
    np.testing.assert_array_equal(first[:6, :9], records[0]["image"])
    np.testing.assert_array_equal(first[6:].reshape(-1, 3), [[10, 21, 255]] * 70)
    assert all(label == pred for label, pred in seen)


def test_padding_does_not_depend_on_the_batch():
    """A network that sees its border gives one value, whatever images share the batch."""
    model = TinyModel(CLASSES, blur=True)
    run_batch = Segmenter(model, init(model)).run_batch
    color = model.normalization.mean
    values = [
        evaluate(
            run_batch, make_records(), CLASSES, batch_size=b, pad_to=(12, 12), pad_color=color
        ).matrix.tolist()
        for b in (1, 4)
    ]
    assert values[0] == values[1]


def test_an_image_larger_than_the_canvas_is_named():
    with pytest.raises(DataError, match=r"'r1' is 9 x 6 .*pad_to = 8 x 10"):
        evaluate(red_class, make_records(), CLASSES, pad_to=(8, 10), pad_color=(0, 0, 0))


def test_a_label_of_another_size_is_named():
    records = make_records()
    records[4]["label"] = records[4]["label"].T
    with pytest.raises(DataError, match=r"'r4' is 9 x 6 .* its label is 6 x 9"):
        evaluate(red_class, records, CLASSES)


def test_a_label_out_of_range_is_named():
    records = make_records()
    records[5]["label"][0, 0] = 77
    with pytest.raises(DataError, match=r"image 'r5' holds the value 77 \(1 pixel\)"):
        evaluate(red_class, records, CLASSES, batch_size=2)


def test_impossible_arguments():
    with pytest.raises(DataError, match="no images"):
        evaluate(red_class, [], CLASSES)
    with pytest.raises(ConfigError, match="pad_color"):
        evaluate(red_class, make_records(), CLASSES, pad_to=(20, 20))
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        evaluate(red_class, make_records(), CLASSES, batch_size=0)


class Counting:
    """Records made when read, which counts how many were read and by whom."""

    def __init__(self, length, sizes):
        self.length, self.sizes = length, sizes
        self.read = 0
        self.threads = set()
        self.lock = threading.Lock()

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        with self.lock:
            self.read += 1
            self.threads.add(threading.current_thread())
        height, width = 4, 4 + index % self.sizes
        image = np.zeros((height, width, 3), np.uint8)
        return {"image": image, "label": image[..., 0], "id": str(index)}


def test_memory_is_bounded_and_reading_is_done_in_the_background():
    records = Counting(length=600, sizes=300)
    done = []

    def see(index, record, pred):
        done.append(index)
        assert records.read - len(done) < 120, "too many images are held"

    evaluate(red_class, records, CLASSES, batch_size=8, on_prediction=see)
    assert sorted(done) == list(range(600))
    assert threading.main_thread() not in records.threads


def test_an_error_while_reading_comes_out_and_stops_reading():
    class Broken(Counting):
        def __getitem__(self, index):
            if index == 5:
                raise DataError("image r5 is broken")
            return super().__getitem__(index)

    records = Broken(length=1000, sizes=1)
    with pytest.raises(DataError, match="r5 is broken"):
        evaluate(red_class, records, CLASSES)
    assert records.read < 50


def test_several_processes_count_every_image_once(monkeypatch):
    """Two processes, run one after the other; the exchange between them is played back."""
    records = make_records()
    sent = []
    monkeypatch.setattr(
        multihost_utils, "process_allgather", lambda x: sent.append(x) or np.stack([x] * 2)
    )
    for process in range(2):
        evaluate(red_class, records, CLASSES, process_index=process, process_count=2)
    assert all(x.dtype == np.uint32 for x in sent), "JAX would cut 64-bit counts to 32 bits"
    large = np.zeros_like(sent[0])
    large[1, 0] = 3  # 3 * 2**32 pixels in the first cell
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: np.stack([*sent, large]))
    metrics = evaluate(red_class, records, CLASSES, process_index=0, process_count=2)
    wanted = direct(records).matrix
    wanted[0, 0] += 3 << 32
    np.testing.assert_array_equal(metrics.matrix, wanted)
    assert metrics.ignored_pixels == direct(records).ignored_pixels


def test_pad_image_of_full_size_is_the_image():
    image = make_records()[0]["image"]
    np.testing.assert_array_equal(pad_image(image, image.shape[:2], (1, 2, 3)), image)


def test_public_name():
    import flaxseg

    assert flaxseg.evaluate is _evaluate_function
