"""Measures near boundaries, against their definitions pixel by pixel."""

import itertools
import math

import cv2
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from flaxseg.evaluation.boundary_metrics import BoundaryMetrics, boundary_distance


def blobs(seed, size=(26, 31), classes=4, void=True):
    """Label maps with regions, as segmentations have."""
    rng = np.random.default_rng(seed)
    noise = scipy.ndimage.gaussian_filter(rng.normal(size=(classes, *size)), (0, 3, 3))
    label = noise.argmax(0)
    if void:
        label[scipy.ndimage.gaussian_filter(rng.normal(size=size), 2) > 0.15] = 255
    return label


def slow_distance(label):
    height, width = label.shape
    places = list(itertools.product(range(height), range(width)))
    edge = [
        (y, x)
        for y, x in places
        for b, a in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        if 0 <= b < height and 0 <= a < width and label[b, a] != label[y, x]
    ]
    return np.array([min(math.dist(p, e) for e in edge) for p in places]).reshape(label.shape)


def test_distance_is_that_to_the_nearest_pixel_beside_another_label():
    label = blobs(0)
    np.testing.assert_allclose(boundary_distance(label), slow_distance(label))
    assert np.isinf(boundary_distance(np.zeros((3, 4), int))).all()
    assert np.isinf(boundary_distance(np.zeros((1, 1), int))).all()


def test_bands_count_what_lies_in_them():
    pairs = [(blobs(seed), blobs(seed + 50, void=False)) for seed in range(3)]
    metrics = BoundaryMetrics(4, (1, 3, 6))
    right, counted = dict.fromkeys((1, 3, 6, 7, "far"), 0), dict.fromkeys((1, 3, 6, 7, "far"), 0)
    for label, pred in pairs:
        metrics.update(label, pred)
        distance = slow_distance(label)
        for y, x in np.ndindex(label.shape):
            if label[y, x] == 255:
                continue
            bands = [width for width in (1, 3, 6, 7) if distance[y, x] < width]
            for band in bands if 7 in bands else [*bands, "far"]:
                counted[band] += 1
                right[band] += label[y, x] == pred[y, x]
    scores = metrics.scores()
    for width in (1, 3, 6):
        assert scores.trimap[width].pixel_accuracy == right[width] / counted[width]
        assert scores.trimap[width].counted_pixels == counted[width]
    assert scores.boundary_accuracy == right[7] / counted[7]
    assert scores.internal_accuracy == right["far"] / counted["far"]
    assert 0 < scores.trimap[3].miou < 1


def test_boundary_iou_is_that_of_eroded_masks():
    """By the erosion of the authors: a border of zeros, then 3x3 squares as often as the reach."""
    overlap, union = np.zeros(4), np.zeros(4)
    metrics = BoundaryMetrics(4, dilation_ratio=0.05)
    for seed in range(3):
        label, pred = blobs(seed), blobs(seed + 1 if seed else 0, void=False)
        metrics.update(label, pred)
        reach = round(0.05 * math.hypot(*label.shape))
        assert reach == 2
        pred = np.where(label == 255, 255, pred)
        for index in range(4):
            near = []
            for mask in (label == index, pred == index):
                eroded = scipy.ndimage.binary_erosion(
                    np.pad(mask, 1), np.ones((3, 3)), iterations=reach
                )[1:-1, 1:-1]
                near.append(mask & ~eroded)
            overlap[index] += (near[0] & near[1]).sum()
            union[index] += (near[0] | near[1]).sum()
    scores = metrics.scores()
    np.testing.assert_allclose(scores.class_boundary_iou, overlap / union)
    assert scores.boundary_iou == pytest.approx((overlap / union).mean())


def test_boundary_iou_of_real_labels_is_that_of_opencv(shared_dir):
    """By `mask_to_boundary` of the authors, which erodes with OpenCV."""
    files = sorted((shared_dir / "data/camvid/testannot").glob("*.png"))[:2]
    label, pred = (np.asarray(Image.open(file)) for file in files)
    metrics = BoundaryMetrics(12)
    metrics.update(label, pred)
    reach = round(0.02 * math.hypot(*label.shape))
    for index in range(12):
        near = []
        for mask in (label == index, pred == index):
            padded = np.pad(mask.astype(np.uint8), 1)
            eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=reach)[1:-1, 1:-1]
            near.append(mask & (eroded == 0))
        union = (near[0] | near[1]).sum()
        wanted = (near[0] & near[1]).sum() / union if union else np.nan
        np.testing.assert_equal(metrics.scores().class_boundary_iou[index], wanted)
    assert 0.1 < metrics.scores().boundary_iou < 0.9


def test_a_perfect_prediction_and_one_without_boundaries():
    label = blobs(1)
    perfect = BoundaryMetrics(5)
    perfect.update(label, np.where(label == 255, 0, label))
    scores = perfect.scores()
    assert scores.boundary_iou == 1
    assert scores.trimap[5].miou == 1
    assert np.isnan(scores.class_boundary_iou[4])
    flat = BoundaryMetrics(3)
    flat.update(np.zeros((5, 6), int), np.zeros((5, 6), int))
    assert np.isnan(flat.scores().boundary_accuracy)
    assert flat.scores().internal_accuracy == 1
    assert "boundary IoU" in flat.scores().table()
    assert flat.scores().to_dict()["boundary_accuracy"] is None


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"widths is \(0,\)"):
        BoundaryMetrics(3, (0,))
    with pytest.raises(ValueError, match="dilation_ratio is 2"):
        BoundaryMetrics(3, dilation_ratio=2)
