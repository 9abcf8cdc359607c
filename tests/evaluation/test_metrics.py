"""The confusion matrix and its metrics against hand numbers, loops and scikit-learn."""

import csv
import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from flaxseg.errors import DataError
from flaxseg.evaluation import ConfusionMatrix, SegmentationMetrics
from flaxseg.evaluation import metrics as metrics_module


def random_maps(seed, num_classes, shape=(3, 17, 23), ignored=0.2):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, shape).astype(np.uint8)
    pred = np.where(rng.random(shape) < 0.6, label, rng.integers(0, num_classes, shape))
    label[rng.random(shape) < ignored] = 255
    return label, pred.astype(np.uint8)


def counted(label, pred, num_classes):
    matrix = ConfusionMatrix(num_classes)
    matrix.update(label, pred)
    return matrix


def test_hand_numbers():
    # Class 0: 3 of 4 right; class 1: 2 of 2 right; class 2 only predicted; class 3 nowhere.
    label = np.array([[0, 0, 0, 0], [1, 1, 255, 255]])
    pred = np.array([[0, 0, 0, 2], [1, 1, 0, 3]])
    metrics = counted(label, pred, 4).metrics()
    np.testing.assert_array_equal(
        metrics.matrix, [[3, 0, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(metrics.iou, [0.75, 1.0, 0.0, np.nan])
    np.testing.assert_array_equal(metrics.accuracy, [0.75, 1.0, np.nan, np.nan])
    assert metrics.absent_classes == (3,)
    assert metrics.miou == pytest.approx(1.75 / 3)
    assert metrics.pixel_accuracy == pytest.approx(5 / 6)
    assert metrics.mean_accuracy == pytest.approx(0.875)
    assert metrics.frequency_weighted_iou == pytest.approx((4 * 0.75 + 2 * 1.0) / 6)
    assert metrics.counted_pixels == 6
    assert metrics.ignored_pixels == 2


@pytest.mark.parametrize("num_classes", [1, 2, 11, 255])
def test_equals_a_loop_over_pixels(num_classes):
    label, pred = random_maps(num_classes, num_classes)
    wanted = np.zeros((num_classes, num_classes), np.int64)
    for true, predicted in zip(label.ravel(), pred.ravel(), strict=True):
        if true != 255:
            wanted[true, predicted] += 1
    metrics = counted(label, pred, num_classes).metrics()
    np.testing.assert_array_equal(metrics.matrix, wanted)
    ious = []
    for c in range(num_classes):
        union = wanted[c].sum() + wanted[:, c].sum() - wanted[c, c]
        if union:
            ious.append(wanted[c, c] / union)
    assert metrics.miou == pytest.approx(sum(ious) / len(ious), abs=1e-12)


def street_maps(shared_dir):
    """Labels of CamVid, each with that of the next frame for its prediction; 11 is "ignore"."""
    files = sorted((shared_dir / "data/camvid/testannot").glob("*.png"))[:4]
    frames = []
    for file in files:
        with Image.open(file) as image:
            frames.append(np.asarray(image))
    label, pred = np.stack(frames[:-1]), np.stack(frames[1:])
    return np.where(label == 11, 255, label), np.where(pred == 11, 0, pred)


@pytest.mark.peer
@pytest.mark.parametrize("source", ["random", "streets"])
def test_equals_scikit_learn(source, request):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    if source == "random":
        label, pred = random_maps(1, 7)
    else:
        label, pred = street_maps(request.getfixturevalue("shared_dir"))
    num_classes = int(pred.max()) + 1
    metrics = counted(label, pred, num_classes).metrics()
    valid = label != 255
    true, predicted = label[valid], pred[valid]
    np.testing.assert_array_equal(
        metrics.matrix, sklearn_metrics.confusion_matrix(true, predicted, labels=range(num_classes))
    )
    assert 0.2 < metrics.miou < 0.9
    assert metrics.pixel_accuracy == pytest.approx(sklearn_metrics.accuracy_score(true, predicted))
    assert metrics.mean_accuracy == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(true, predicted)
    )
    assert metrics.miou == pytest.approx(
        sklearn_metrics.jaccard_score(true, predicted, average="macro")
    )
    assert metrics.frequency_weighted_iou == pytest.approx(
        sklearn_metrics.jaccard_score(true, predicted, average="weighted")
    )


def test_batching_and_chunking_change_nothing(monkeypatch):
    label, pred = random_maps(2, 5)
    whole = counted(label, pred, 5)
    one_by_one = ConfusionMatrix(5)
    monkeypatch.setattr(metrics_module, "_CHUNK", 7)
    for image_label, image_pred in zip(label, pred, strict=True):
        one_by_one.update(image_label, image_pred)
    merged = counted(label[:1], pred[:1], 5)
    merged.merge(counted(label[1:], pred[1:], 5))
    for other in (one_by_one, merged):
        np.testing.assert_array_equal(other.matrix, whole.matrix)
        assert other.ignored_pixels == whole.ignored_pixels == np.count_nonzero(label == 255)


def test_predictions_on_ignored_pixels_do_not_matter():
    label, pred = random_maps(3, 5)
    changed = np.where(label == 255, 255, pred)
    np.testing.assert_array_equal(counted(label, pred, 5).matrix, counted(label, changed, 5).matrix)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64, np.uint16, np.uint64])
def test_any_integer_dtype(dtype):
    label, pred = random_maps(4, 5, ignored=0)
    np.testing.assert_array_equal(
        counted(label.astype(dtype), pred.astype(dtype), 5).matrix, counted(label, pred, 5).matrix
    )


def test_counts_beyond_32_bits():
    matrix = ConfusionMatrix(2)
    matrix.matrix[:] = [[2**40, 1], [0, 2**40]]
    matrix.update(np.array([0]), np.array([1]))
    assert matrix.metrics().matrix.tolist() == [[2**40, 2], [0, 2**40]]


@pytest.mark.parametrize(("bad", "words"), [(5, "value 5 (1 pixel)"), (-1, "value -1 (1 pixel)")])
def test_out_of_range_values_are_errors_and_count_nothing(bad, words):
    good, wrong = np.zeros((2, 2), np.int32), np.array([[0, 0], [0, bad]], np.int32)
    matrix = ConfusionMatrix(5)
    with pytest.raises(DataError, match="label of image 'a'") as error:
        matrix.update(wrong, good, source="image 'a'")
    assert words in str(error.value)
    assert "0..4" in str(error.value)
    with pytest.raises(ValueError, match="prediction holds") as error:
        matrix.update(good, wrong)
    assert words in str(error.value)
    assert not matrix.matrix.any()


def test_wrong_arguments_are_errors():
    matrix = ConfusionMatrix(5)
    with pytest.raises(ValueError, match=r"\(2, 3\) and prediction \(3, 2\)"):
        matrix.update(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="dtype float64"):
        matrix.update(np.zeros((2, 3), int), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="ignore_label 3"):
        ConfusionMatrix(5, ignore_label=3)
    with pytest.raises(ValueError, match="5 and 4 classes"):
        matrix.merge(ConfusionMatrix(4))
    with pytest.raises(ValueError, match="2 names for 5 classes"):
        matrix.table(["a", "b"])


def test_nothing_counted_gives_nan_without_warning():
    matrix = counted(np.full((4, 4), 255), np.zeros((4, 4), int), 3)
    metrics = matrix.metrics()
    assert math.isnan(metrics.miou)
    assert math.isnan(metrics.pixel_accuracy)
    assert metrics.absent_classes == (0, 1, 2)
    assert "-" in metrics.table()
    assert json.loads(json.dumps(metrics.to_dict(), allow_nan=False))["miou"] is None


def test_groups_of_classes_are_counted_as_one():
    label, pred = random_maps(5, 6)
    groups = [(0, 3), (1,), (2, 4, 5)]
    number = np.full(256, 255)
    for index, group in enumerate(groups):
        number[list(group)] = index
    wanted = counted(number[label], number[pred], 3).metrics()
    found = counted(label, pred, 6).metrics().merged(groups)
    np.testing.assert_array_equal(found.matrix, wanted.matrix)
    assert found.ignored_pixels == wanted.ignored_pixels
    assert found.miou == wanted.miou


def test_the_matrix_as_a_table_for_spreadsheets():
    metrics = SegmentationMetrics.from_matrix([[3, 1], [0, 4]])
    text = metrics.matrix_as_csv(["sky", 'grass, "wet"'])
    assert text.splitlines()[2] == '"grass, ""wet""",0,4'
    assert [row[1:] for row in csv.reader(io.StringIO(text))][1:] == [["3", "1"], ["0", "4"]]


def test_table_says_everything():
    metrics = SegmentationMetrics.from_matrix(
        [[3_000_000, 1_000_000, 0], [0, 2_000_000, 0], [0, 0, 0]], ignored_pixels=12
    )
    table = metrics.table(["sky", "a very long class name", "bird"])
    lines = table.splitlines()
    sky = next(line for line in lines if "sky" in line)
    assert sky.split() == ["0", "sky", "75.00", "75.00", "4,000,000", "66.67"]
    assert "70.83 %   over 2 of 3 classes" in table
    assert "left out of the mean: bird" in table
    assert "6,000,000 counted, 12 ignored" in table
    widths = {len(line) for line in lines[2:5]}
    assert len(widths) == 1, "the columns are not aligned"
