"""Scores the single images of a split, and keeps the images worth looking at."""

import heapq
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from flaxseg.evaluation.metrics import ConfusionMatrix


class RecordScore(NamedTuple):
    """Holds an image's own scores, as fractions; nan where all of it is ignored."""

    index: int
    id: str
    miou: float
    pixel_accuracy: float


class Seen(NamedTuple):
    """Holds an image with its prediction."""

    score: RecordScore
    record: Mapping
    pred: np.ndarray


class RecordScores:
    """Scores every image, and keeps the first few, the worst few and the best few.

    Memory: three times `number` images, and a line for each record.

    Attributes:
      scores: of every image so far, in the order of completion.
    """

    def __init__(self, number: int, num_classes: int):
        """Starts with nothing seen.

        Args:
          number: how many images of each kind are kept.
          num_classes: of the labels.
        """
        self._number, self._num_classes = number, num_classes
        self.scores: list[RecordScore] = []
        self._first: dict[int, Seen] = {}
        # Heaps whose smallest entry, the next to be dropped, is the least interesting one. The
        # index is unique, so that images are never compared.
        self._worst: list[tuple[float, int, Seen]] = []
        self._best: list[tuple[float, int, Seen]] = []

    def see(self, index: int, record: Mapping, pred: np.ndarray) -> None:
        """Takes one prediction; the `on_prediction` of `evaluate`."""
        matrix = ConfusionMatrix(self._num_classes)
        matrix.update(record["label"], pred)
        metrics = matrix.metrics()
        score = RecordScore(index, str(record["id"]), metrics.miou, metrics.pixel_accuracy)
        self.scores.append(score)
        seen = Seen(score, record, pred)
        if index < self._number:
            self._first[index] = seen
        if np.isnan(score.miou) or self._number == 0:
            return
        for heap, interest in ((self._worst, -score.miou), (self._best, score.miou)):
            heapq.heappush(heap, (interest, -index, seen))
            if len(heap) > self._number:
                heapq.heappop(heap)

    @property
    def first(self) -> list[Seen]:
        """Returns the first records of the split."""
        return [self._first[index] for index in sorted(self._first)]

    @property
    def worst(self) -> list[Seen]:
        """Returns those with the lowest mIoU, worst first; the same for any batch size."""
        seen = [entry[-1] for entry in self._worst]
        return sorted(seen, key=lambda s: (s.score.miou, s.score.index))

    @property
    def best(self) -> list[Seen]:
        """Returns those with the highest mIoU, best first."""
        seen = [entry[-1] for entry in self._best]
        return sorted(seen, key=lambda s: (-s.score.miou, s.score.index))
