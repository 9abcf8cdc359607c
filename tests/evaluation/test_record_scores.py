"""Which images are kept, and their own scores."""

import numpy as np

from flaxseg.evaluation.metrics import ConfusionMatrix
from flaxseg.evaluation.record_scores import RecordScores


def split(count=9):
    rng = np.random.default_rng(0)
    for index in range(count):
        label = rng.integers(0, 3, (6, 7))
        wrong = rng.random(label.shape) < index / count
        yield index, {"id": f"r{index}", "label": label}, np.where(wrong, 2 - label, label)


def test_keeps_the_first_the_worst_and_the_best_whatever_the_order():
    records = list(split())
    kept = []
    for order in (records, records[::-1]):
        scores = RecordScores(2, 3)
        for index, record, pred in order:
            scores.see(index, record, pred)
        assert len(scores.scores) == len(records)
        kept.append([[s.score for s in some] for some in (scores.first, scores.worst, scores.best)])
    assert kept[0] == kept[1]
    single = {}
    for index, record, pred in records:
        matrix = ConfusionMatrix(3)
        matrix.update(record["label"], pred)
        single[index] = matrix.metrics().miou
    first, worst, best = ([score.index for score in some] for some in kept[0])
    ranked = sorted(single, key=single.get)
    assert (first, worst, best) == ([0, 1], ranked[:2], ranked[:-3:-1])
    assert kept[0][1][0].miou == single[ranked[0]]


def test_images_without_valid_pixels_have_no_rank():
    scores = RecordScores(2, 3)
    scores.see(0, {"id": "a", "label": np.full((2, 2), 255)}, np.zeros((2, 2), int))
    assert np.isnan(scores.scores[0].miou)
    assert not scores.worst
    assert not scores.best
    assert len(scores.first) == 1
