"""Evaluates a network on a split, for training and the command line; each image counts once.

Images are read ahead in background threads, gathered by size into batches of one shape, and only
uint8 label maps leave the device. Neither images nor predictions are kept: memory is bounded by a
few batches whatever the size of the split.
"""

import collections
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jax.experimental import multihost_utils

from flaxseg.classes import IGNORE_LABEL
from flaxseg.errors import ConfigError, DataError
from flaxseg.evaluation.metrics import ConfusionMatrix, SegmentationMetrics

Record = Mapping[str, np.ndarray | str]

_READ_THREADS = 4
# Images that wait, over all sizes, for others of their size; beyond it the fullest batch is run
# short.
_MAX_WAITING = 64
# Each size is a compilation; from this many on, the log proposes pad_to.
_MANY_SIZES = 8

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Item:
    """Holds a record, its place in the split, and its image and label on the canvas, if there is
    one."""

    index: int
    record: Record
    image: np.ndarray
    label: np.ndarray


def evaluate(
    run_batch: Callable[[np.ndarray], np.ndarray],
    records: Sequence[Record],
    num_classes: int,
    *,
    batch_size: int = 1,
    pad_to: tuple[int, int] | None = None,
    pad_color: Sequence[float] | None = None,
    device_count: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    progress: Callable[[int, int], None] | None = None,
    on_prediction: Callable[[int, Record, np.ndarray], None] | None = None,
) -> SegmentationMetrics:
    """Runs a network over a split and returns the metrics over all its pixels.

    The result does not depend on `batch_size` or `device_count` if that of `run_batch` does not
    (see `Segmenter.run_batch`): an image is never padded because of its batch, and a batch that
    lacks images is filled up with black ones whose label is all "ignore".

    Args:
      run_batch: uint8 [B, H, W, 3] -> integers [B, H, W] in 0..num_classes-1; may return before
        the device is done. It is called with one batch size only, and compiles once per image size.
      records: random access to {"image": uint8 [H, W, 3], "label": uint8 [H, W], "id": str}; read
        by several threads.
      num_classes: number of classes.
      batch_size: images per call over all devices; rounded up to a multiple of device_count.
      pad_to: (H, W) of a canvas that every image is put on, at the top left, the rest filled with
        pad_color and label 255 (the DeepLab protocol: 513 x 513). One size, so one compilation; but
        the network sees the border, so the value can differ from that at native size, which is the
        default (None).
      pad_color: RGB 0..255 of the canvas, the model's mean colour `model.normalization.mean`;
        needed with pad_to.
      device_count: number of devices that run_batch spreads a batch over.
      process_index: of this process, 0..process_count-1.
      process_count: where several JAX processes evaluate together, each takes every
        process_count-th record on its own devices, all call this function, and all get the metrics
        of the whole split. run_batch must then use devices of its own process only.
      progress: called with (images done, images in all) after each batch.
      on_prediction: called with (index of the record, the record, its prediction uint8 [H, W] at
        the record's own size) once per image, in the order of completion.

    Returns:
      The metrics of the whole split.

    Raises:
      DataError: the split is empty, an image and its label differ in size, a label value is out of
        range, or an image does not fit on the canvas; each names the record's id.
      ConfigError: batch_size or device_count is below 1, or pad_to comes without pad_color.
    """
    if batch_size < 1 or device_count < 1:
        raise ConfigError(
            f"batch_size and device_count must be at least 1, got {batch_size} and {device_count}."
        )
    if pad_to is not None and pad_color is None:
        raise ConfigError(
            "pad_to needs pad_color, the colour of the canvas; give model.normalization.mean."
        )
    if len(records) == 0:
        raise DataError(
            "the split holds no images, so there is nothing to evaluate; check the name of the "
            "split."
        )
    batch_size = -(-batch_size // device_count) * device_count
    matrix = ConfusionMatrix(num_classes)
    mine = range(process_index, len(records), process_count)
    done = 0
    items = (_prepare(i, record, pad_to, pad_color) for i, record in _read_ahead(records, mine))
    for batch, pred in _predictions(run_batch, _batches(items, batch_size), batch_size):
        for item, item_pred in zip(batch, pred, strict=False):
            matrix.update(item.label, item_pred, source=f"image {item.record['id']!r}")
            if on_prediction is not None:
                height, width = item.record["label"].shape
                on_prediction(item.index, item.record, item_pred[:height, :width].astype(np.uint8))
        done += len(batch)
        if progress is not None:
            progress(done, len(mine))
    return _of_all_processes(matrix) if process_count > 1 else matrix.metrics()


def pad_image(image: np.ndarray, size: tuple[int, int], color: Sequence[float]) -> np.ndarray:
    """Returns the uint8 image [h, w, 3] at the top left of a canvas [H, W, 3] of one (rounded)
    colour."""
    canvas = np.empty((*size, 3), np.uint8)
    canvas[:] = np.clip(np.rint(np.asarray(color, np.float64)), 0, 255).astype(np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas


def _prepare(
    index: int, record: Record, pad_to: tuple[int, int] | None, pad_color: Sequence[float] | None
) -> _Item:
    """Checks the sizes of a record and puts it on the canvas."""
    image, label = record["image"], record["label"]
    if image.shape[:2] != label.shape:
        raise DataError(
            f"image {record['id']!r} is {_size(image.shape)} but its label is "
            f"{_size(label.shape)}; "
            "both must have the same size. Repair or remove the pair."
        )
    if pad_to is None:
        return _Item(index, record, image, label)
    if image.shape[0] > pad_to[0] or image.shape[1] > pad_to[1]:
        raise DataError(
            f"image {record['id']!r} is {_size(image.shape)} and does not fit on the canvas "
            f"pad_to = {_size(pad_to)}; "
            "use a canvas at least as large as the largest image, windows, or no pad_to to "
            "evaluate at native size (protocols 'windows' and 'whole')."
        )
    padded_label = np.full(pad_to, IGNORE_LABEL, label.dtype)
    padded_label[: label.shape[0], : label.shape[1]] = label
    return _Item(index, record, pad_image(image, pad_to, pad_color), padded_label)


def _read_ahead(records: Sequence[Record], indices: Sequence[int]) -> Iterator[tuple[int, Record]]:
    """Yields the records in order; threads read and decode the next few while the caller works on
    one."""
    with ThreadPoolExecutor(_READ_THREADS, thread_name_prefix="evaluate-read") as pool:
        ahead = collections.deque()
        try:
            for index in indices:
                ahead.append((index, pool.submit(records.__getitem__, index)))
                if len(ahead) > 2 * _READ_THREADS:
                    first, future = ahead.popleft()
                    yield first, future.result()
            while ahead:
                first, future = ahead.popleft()
                yield first, future.result()
        finally:
            for _, future in ahead:
                future.cancel()


def _batches(items: Iterator[_Item], batch_size: int) -> Iterator[list[_Item]]:
    """Yields lists of at most batch_size items of one size; about _MAX_WAITING items are held at
    most."""
    waiting: dict[tuple[int, int], list[_Item]] = {}
    held = 0
    sizes = set()
    for item in items:
        size = item.label.shape
        sizes.add(size)
        if len(sizes) == _MANY_SIZES and size not in waiting:
            _log.warning(
                "the images have many different sizes, and each size is compiled once; pad_to = "
                "(height, width) compiles once."
            )
        waiting.setdefault(size, []).append(item)
        held += 1
        if len(waiting[size]) == batch_size:
            batch = waiting.pop(size)
        elif held > max(_MAX_WAITING, batch_size):
            batch = waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
        else:
            continue
        held -= len(batch)
        yield batch
    yield from waiting.values()


def _predictions(
    run_batch: Callable[[np.ndarray], np.ndarray], batches: Iterator[list[_Item]], batch_size: int
) -> Iterator[tuple[list[_Item], np.ndarray]]:
    """Yields each batch with its predictions; the next is given to the device before one is waited
    for."""
    running = None
    for batch in batches:
        image = np.zeros((batch_size, *batch[0].image.shape), np.uint8)
        for row, item in enumerate(batch):
            image[row] = item.image
        started = (batch, run_batch(image))
        if running is not None:
            yield _fetch(*running)
        running = started
    if running is not None:
        yield _fetch(*running)


def _of_all_processes(matrix: ConfusionMatrix) -> SegmentationMetrics:
    """Returns the metrics of the counts of all processes.

    JAX carries 32 bits unless told otherwise, so each count travels as two halves.
    """
    counts = np.append(matrix.matrix.ravel(), matrix.ignored_pixels)
    halves = np.stack([counts & 0xFFFFFFFF, counts >> 32]).astype(np.uint32)
    low, high = multihost_utils.process_allgather(halves).astype(np.int64).sum(axis=0)
    counts = low + (high << 32)
    return SegmentationMetrics.from_matrix(counts[:-1].reshape(matrix.matrix.shape), counts[-1])


def _fetch(batch: list[_Item], pred: np.ndarray) -> tuple[list[_Item], np.ndarray]:
    """Waits for the predictions of a batch; those of the images that fill it up are dropped."""
    return batch, np.asarray(pred)[: len(batch)]


def _size(shape: Sequence[int]) -> str:
    """Returns '360 x 480 (height x width)'."""
    return f"{shape[0]} x {shape[1]} (height x width)"
