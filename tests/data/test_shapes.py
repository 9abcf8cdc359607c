"""`shapes`: what is promised about its images."""

import numpy as np
import pytest

import flaxseg.data
from flaxseg.data.sets import shapes

NUMBER = 150


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    pairs = [shapes.draw("train", number) for number in range(NUMBER)]
    return np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs])


def test_every_class_is_common_and_some_pixels_are_ignored(drawn):
    _, labels = drawn
    images_with = [(labels == c).any((1, 2)).mean() for c in range(9)]
    assert images_with[0] == 1.0
    assert min(images_with[1:]) > 0.2
    share = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert share[9:255].sum() == 0.0
    assert 0.02 < share[255] < 0.15
    assert min(share[1:9]) > 0.005


def test_a_border_of_255_lies_around_each_object(drawn):
    """No object touches the ground or another class; the border is one or two pixels wide."""
    _, labels = drawn
    for a, b in ((labels[:, 1:], labels[:, :-1]), (labels[:, :, 1:], labels[:, :, :-1])):
        touching = (a != b) & (a != 255) & (b != 255)
        assert not touching.any()
    ignored = labels == 255
    three_by_three = np.stack(
        [ignored[:, y : y + 94, x : x + 126] for y in range(3) for x in range(3)]
    )
    assert three_by_three.all(0).mean() < 1e-3


def test_there_are_small_objects_and_thin_parts(drawn):
    """Some objects have fewer than 150 pixels; some parts are at most 4 pixels wide in a row."""
    _, labels = drawn
    smallest = [min(n for n in np.bincount(x.ravel())[1:9] if n) for x in labels]
    assert np.mean(np.array(smallest) < 150) > 0.15
    bar_or_ring = np.isin(labels, (5, 8))
    padded = np.pad(bar_or_ring, ((0, 0), (0, 0), (1, 1))).astype(np.int8)
    edges = np.diff(padded, axis=2).reshape(-1, labels.shape[2] + 1)
    lengths = np.concatenate([np.flatnonzero(e == -1) - np.flatnonzero(e == 1) for e in edges])
    assert np.mean(lengths <= 4) > 0.1


def test_colour_does_not_tell_the_class(drawn):
    """Colour histograms and nearest mean colours are near chance, 1/9, on new images."""
    images, labels = drawn
    half = NUMBER // 2

    def split(part):
        x, y = images[part].reshape(-1, 3), labels[part].ravel()
        return x[y != 255], y[y != 255]

    (x, y), (x_new, y_new) = split(slice(half)), split(slice(half, None))

    def balanced_accuracy(pred):
        return np.mean([(pred[y_new == c] == c).mean() for c in range(9)])

    means = np.stack([x[y == c].mean(0) for c in range(9)])
    nearest = ((x_new[:, None].astype(float) - means) ** 2).sum(2).argmin(1)
    assert balanced_accuracy(nearest) < 0.16

    def bins(colors):
        return (colors // 32 * [64, 8, 1]).sum(1)

    histogram = np.stack([np.bincount(bins(x[y == c]), minlength=512) for c in range(9)]) + 1.0
    histogram /= histogram.sum(1, keepdims=True)
    assert balanced_accuracy(histogram.argmax(0)[bins(x_new)]) < 0.16


def test_an_object_stands_out_from_its_ground(drawn):
    """Across most borders the colour changes much more than along the ground."""
    images, labels = drawn
    contrast = []
    for image, label in zip(images[:40].astype(float), labels[:40], strict=True):
        ground = image[label == 0].mean(0)
        contrast += [
            np.linalg.norm(image[label == c].mean(0) - ground) for c in set(label[label % 255 > 0])
        ]
    assert np.mean(np.array(contrast) > 50) > 0.9


def test_drawing_is_deterministic_and_splits_differ():
    image, label = shapes.draw("train", 3)
    again, label_again = shapes.draw("train", 3)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(label, label_again)
    assert (shapes.draw("val", 3)[0] != image).mean() > 0.5
    assert (shapes.draw("train", 4)[0] != image).mean() > 0.5


def test_prepared_records_are_the_drawn_images(shapes_dir):
    info = flaxseg.data.dataset_info("shapes")
    for split, number in (("train", 599), ("val", 0)):
        records = flaxseg.data.open_split("shapes", split, shapes_dir)
        assert len(records) == info.split_sizes[split]
        image, label = shapes.draw(split, number)
        assert records[number]["id"] == f"shapes_{split}_{number:04d}"
        np.testing.assert_array_equal(records[number]["image"], image)
        np.testing.assert_array_equal(records[number]["label"], label)
    assert info.num_classes == 9
    assert info.class_names[0] == "background"
