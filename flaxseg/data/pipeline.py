"""The endless stream of training batches.

Order of steps: shuffle anew for each epoch, repeat, augment, take every `process_count`-th record,
batch. Augmentation comes before the split over processes, so that a record's random numbers depend
on its place in the global stream alone: the union of what all processes see is the same whatever
their number, and so are the batches whatever the number of threads or workers.
"""

import os

import cv2
import grain
import numpy as np
from absl import flags

from flaxseg.data.augmentation import Augmentation, augment
from flaxseg.data.preparation import PathLike
from flaxseg.data.records import Record, open_split
from flaxseg.errors import CheckpointError, ConfigError

_MAX_THREADS = 16
_PRACTICALLY_ENDLESS = 2**50  # records


def train_batches(
    name: str,
    split: str,
    *,
    data_dir: PathLike | None = None,
    batch_size: int,
    crop_size: tuple[int, int],
    augmentation: Augmentation | None = None,
    seed: int = 0,
    num_threads: int | None = None,
    num_workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> "TrainBatches":
    """Opens a split for training.

    Args:
      name: of the data set.
      split: its split, such as "train".
      data_dir: the folder of all prepared data sets; `default_data_dir()` if None or "".
      batch_size: records per step over all processes; a multiple of `process_count`.
      crop_size: `(h, w)` of all batches.
      augmentation: what is drawn per record; `Augmentation()` if None.
      seed: 0..2**32 - 1; the stream is a function of it, of the data, and of the arguments above.
      num_threads: threads that decode and augment, per worker; the number of cores (at most 16) if
        None; 0 uses the caller's.
      num_workers: processes to do so; 0 stays in this one, which is enough where the cores are
        fewer than some 16.
      process_index, process_count: which part of the global batch this process gets.

    Returns:
      An endless iterator of `{"image": uint8 [B, h, w, 3], "label": uint8 [B, h, w], "id": str
      [B]}` with `B = batch_size // process_count`.

    Raises:
      ConfigError: sizes or numbers that can not be.
      DataError: unknown or unprepared data set, or an empty split.
    """
    _check_numbers(
        batch_size, crop_size, seed, num_threads, num_workers, process_index, process_count
    )
    records = open_split(name, split, data_dir)
    _use_one_cv2_thread()
    # Grain computes lengths in floating point, where those of its endless repeat() overflow.
    epochs = _PRACTICALLY_ENDLESS // len(records)
    stream = grain.MapDataset.source(records).seed(seed).shuffle().repeat(epochs)
    stream = stream.random_map(_Augment(tuple(crop_size), augmentation or Augmentation()))
    batches = stream[process_index::process_count].batch(batch_size // process_count)
    if num_threads is None:
        num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    return TrainBatches(batches, num_threads, num_workers)


class TrainBatches(grain.DatasetIterator):
    """An endless iterator over batches, with a state that fits any number of threads and workers.

    Grain's own state depends on the number of workers. Here it is the number of batches taken, and
    setting it opens the stream anew at that place, which costs nothing because every element can be
    computed from its place alone.
    """

    def __init__(self, batches: grain.MapDataset, num_threads: int, num_workers: int):
        super().__init__()
        self._batches = batches
        self._num_threads = num_threads
        self._num_workers = num_workers
        self._taken = 0
        self._opened: grain.DatasetIterator | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        if self._opened is None:
            self._opened = self._open()
        batch = next(self._opened)
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the place in the stream; JSON can hold it."""
        return {"batches_taken": self._taken}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues from a place that `get_state` returned.

        Raises:
          CheckpointError: the state is not one of this iterator.
        """
        taken = state.get("batches_taken") if isinstance(state, dict) else None
        if not isinstance(taken, int) or taken < 0:
            raise CheckpointError(
                f"the state of the data iterator is {state!r}, wanted {{'batches_taken': number}}"
            )
        self.close()
        self._taken = taken

    def close(self) -> None:
        """Stops the threads and workers; the next batch starts them again."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _open(self) -> grain.DatasetIterator:
        # Elements are whole batches: a few in flight are enough, and more would only take memory.
        options = grain.ReadOptions(
            num_threads=self._num_threads,
            prefetch_buffer_size=self._num_threads + 1 if self._num_threads else 0,
        )
        stream = self._batches[self._taken :].to_iter_dataset(options)
        if self._num_workers:
            if not flags.FLAGS.is_parsed():
                # Grain's workers read absl flags, which only absl.app parses.
                flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._num_workers, per_worker_buffer_size=2
                ),
                worker_init_fn=_init_worker,
            )
        return iter(stream)


class _Augment(grain.transforms.RandomMap):
    """One record through `augment`; Grain gives each place in the stream its own generator."""

    def __init__(self, crop_size: tuple[int, int], augmentation: Augmentation):
        self._crop_size = crop_size
        self._augmentation = augmentation

    def random_map(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image, label = augment(
            record["image"], record["label"], self._crop_size, self._augmentation, rng
        )
        return {"image": image, "label": label, "id": np.array(record["id"])}


def _init_worker(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    _use_one_cv2_thread()


def _use_one_cv2_thread() -> None:
    """Parallelism is over batches; OpenCV's own threads on top of that would fight for the same
    cores.
    """
    cv2.setNumThreads(0)


def _check_numbers(
    batch_size: int,
    crop_size: tuple[int, int],
    seed: int,
    num_threads: int | None,
    num_workers: int,
    process_index: int,
    process_count: int,
) -> None:
    wrong = []
    if not 0 <= process_index < process_count:
        wrong.append(f"process_index {process_index} must be in 0..{process_count - 1}")
    elif batch_size < 1 or batch_size % process_count:
        wrong.append(
            f"batch_size {batch_size} must be a positive multiple of the {process_count} processes"
        )
    if len(crop_size) != 2 or min(crop_size) < 1:
        wrong.append(f"crop_size {crop_size} must be (height, width), both at least 1")
    if not 0 <= seed < 2**32:
        wrong.append(f"seed {seed} must be in 0..2**32 - 1")
    if num_workers < 0 or (num_threads is not None and num_threads < 0):
        wrong.append(f"num_threads {num_threads} and num_workers {num_workers} must be 0 or more")
    if wrong:
        raise ConfigError("training data: " + "; ".join(wrong))
