"""Streams training batches without end.

Each place in the stream has its own record and random generator, which depend on the seed and the
place alone. Records are shuffled again for each epoch, and epochs follow each other without a gap,
so every record occurs once per epoch whatever the batch size. Batch `b` holds the places from
`b * batch_size` on, and each of several processes gets its share of the rows of every batch. So the
global batches do not depend on the number of threads, workers or processes, and the stream can be
opened at any place.
"""

import contextlib
import logging
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

import cv2
import grain
import numpy as np
from absl import flags

from flaxseg.data.prepared.records import Records, open_split
from flaxseg.data.stream.augmentation import Augmentation, augment
from flaxseg.data.stream.decoded_cache import CachedRecords
from flaxseg.errors import CheckpointError, DataError
from flaxseg.host_memory import keep_freed_memory
from flaxseg.paths import PathLike
from flaxseg.settings import (
    MAX_WORKERS,
    SEEDS,
    Rule,
    between,
    check_rules,
    count_from,
    image_size,
    within,
)

STREAM_RULES: dict[str, Rule] = {
    "crop_size": image_size(1),
    "num_workers": between(0, MAX_WORKERS),
    "skip_broken": count_from(0),
}
"""The rules of those arguments of `train_batches` that a config sets as they are."""

_MAX_THREADS = 16
_PRACTICALLY_ENDLESS = 2**50  # records
_WORKER_DIED = re.compile(r"Worker process was terminated .* exit code (-?\d+)")  # Grain's words

_log = logging.getLogger(__name__)


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
    skip_broken: int = 0,
    cache_dir: PathLike | None = None,
) -> "TrainBatches":
    """Opens a split for training.

    Args:
      name: of the data set.
      split: its split, such as "train".
      data_dir: the folder of all prepared data sets; `default_data_dir()` if None or "".
      batch_size: the records per step over all processes; a multiple of `process_count`.
      crop_size: `(h, w)` of all batches.
      augmentation: what is drawn per record; `Augmentation()` if None.
      seed: 0..2**32 - 1; the stream is a function of it, of the data, and of the arguments above.
      num_threads: threads that decode and augment, per worker; the number of cores (at most 16) if
        None; 0 uses the caller's.
      num_workers: processes that do so; 0 uses this one, which is enough below about 16 cores.
      process_index, process_count: which part of the global batch this process gets: the first
        `batch_size // process_count` rows of every batch go to process 0, and so on.
      skip_broken: the number of broken records that are tolerated; each is named in a warning and
        replaced by records drawn at random. One more is an error.
      cache_dir: a folder to keep decoded records in, see `CachedRecords`; None or "" decodes each
        time.

    Returns:
      An endless iterator of `{"image": uint8 [B, h, w, 3], "label": uint8 [B, h, w], "id": str
      [B]}` with `B = batch_size // process_count`.

    Raises:
      ConfigError: numbers are out of range, or the data set or split is unknown.
      DataError: the data set is not prepared. The iterator raises it for broken records, named with
        data set, split, id and file, and for workers that died.
    """
    numbers = {
        "batch_size": batch_size,
        "crop_size": crop_size,
        "seed": seed,
        "num_threads": num_threads or 0,
        "num_workers": num_workers,
        "process_index": process_index,
        "skip_broken": skip_broken,
    }
    rules = {
        **STREAM_RULES,
        "batch_size": _multiple_of(process_count),
        "seed": SEEDS,
        "num_threads": between(0, MAX_WORKERS),
        "process_index": within(0, process_count),
    }
    check_rules(numbers, rules)
    records: Records | CachedRecords = open_split(name, split, data_dir)
    if cache_dir:
        records = CachedRecords(records, cache_dir)
    _use_one_cv2_thread()
    # Grain computes lengths in floating point, where those of its endless repeat() overflow.
    epochs = _PRACTICALLY_ENDLESS // len(records)
    order = grain.MapDataset.range(len(records)).seed(seed).shuffle().repeat(epochs)
    views = order.random_map(
        _View(records, tuple(crop_size), augmentation or Augmentation(), skip_broken)
    )
    rows = batch_size // process_count
    batches = _Batches(views, batch_size, process_index * rows, rows, tuple(crop_size))
    if num_threads is None:
        num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    return TrainBatches(
        grain.MapDataset.source(batches),
        num_threads,
        num_workers,
        skip_broken=skip_broken,
        source=f"{name}/{split}",
    )


class TrainBatches(grain.DatasetIterator):
    """Iterates over batches without end; its state fits any number of threads and workers.

    Grain's own state depends on the number of workers. This one is the number of batches taken, and
    setting it opens the stream again at that place, which costs nothing because every element is a
    function of its place. It also has the numbers of the broken records met so far.
    """

    def __init__(
        self,
        batches: grain.MapDataset,
        num_threads: int,
        num_workers: int,
        *,
        skip_broken: int = 0,
        source: str = "",
    ):
        super().__init__()
        self._batches = batches
        self._num_threads = num_threads
        self._num_workers = num_workers
        self._skip_broken = skip_broken
        self._source = source
        self._taken = 0
        self._broken: set[int] = set()
        self._opened: grain.DatasetIterator | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        try:
            if self._opened is None:
                with _unreachable_for_signals() if self._num_workers else contextlib.nullcontext():
                    self._opened = self._open()
                    batch = next(self._opened)
            else:
                batch = next(self._opened)
        except RuntimeError as error:
            died = _WORKER_DIED.search(str(error))
            if not died:
                raise
            raise self._death_of_worker(int(died[1])) from error
        self._note_broken(batch.pop("broken"))
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, int | list[int]]:
        """Returns the place in the stream, for JSON."""
        return {"batches_taken": self._taken, "broken": sorted(self._broken)}

    def set_state(self, state: dict[str, int | list[int]]) -> None:
        """Continues from a place that `get_state` returned.

        Raises:
          CheckpointError: it is not a state of this iterator.
        """
        taken = state.get("batches_taken") if isinstance(state, dict) else None
        if not isinstance(taken, int) or taken < 0:
            raise CheckpointError(
                f"the state of the data iterator is {state!r}, wanted {{'batches_taken': number}}"
            )
        self.close()
        self._taken = taken
        self._broken = set(state.get("broken", ()))

    def close(self) -> None:
        """Stops the threads and workers; the next batch starts them again."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _open(self) -> grain.DatasetIterator:
        # Elements are whole batches: a few in flight are enough; more would only take memory.
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

    def _note_broken(self, broken: dict[int, str]) -> None:
        """Warns of broken records not met before; raises DataError if they are too many."""
        for number, message in broken.items():
            if number in self._broken:
                continue
            self._broken.add(number)
            if len(self._broken) > self._skip_broken:
                raise _too_many(len(self._broken), self._skip_broken, message)
            count = f"{len(self._broken)} of at most {self._skip_broken}"
            _log.warning("broken record left out (%s): %s", count, message)

    def _death_of_worker(self, code: int) -> DataError:
        how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
        advice = "Its own message, if any, is above."
        if code == -signal.SIGKILL:
            advice = (
                "The system usually does that when memory runs out: use fewer num_workers or "
                "num_threads, or num_workers=0."
            )
        return DataError(
            f"{self._source}: a worker process that reads data died by {how} while batch "
            f"{self._taken} was awaited, counted from 0. {advice} Nothing is lost: started again, "
            "the run continues from its last checkpoint."
        )


class _View(grain.transforms.RandomMap):
    """Turns the number of a record into a view; Grain gives each place its own generator."""

    def __init__(
        self,
        records: Records | CachedRecords,
        crop_size: tuple[int, int],
        augmentation: Augmentation,
        skip_broken: int,
    ):
        self._records = records
        self._crop_size = crop_size
        self._augmentation = augmentation
        self._skip_broken = skip_broken

    def random_map(self, number: int, rng: np.random.Generator) -> dict:
        broken: dict[int, str] = {}
        record = None
        while record is None:
            try:
                record = self._records[number]
            except DataError as error:
                if not self._skip_broken:
                    raise
                broken[int(number)] = str(error)
                if len(broken) > min(self._skip_broken, len(self._records) - 1):
                    raise _too_many(len(broken), self._skip_broken, str(error)) from None
                number = rng.integers(len(self._records))
        image, label = augment(
            record["image"], record["label"], self._crop_size, self._augmentation, rng
        )
        return {"image": image, "label": label, "id": record["id"], "broken": broken}


class _Batches:
    """Holds this process's rows of every global batch, by the number of the batch."""

    def __init__(
        self,
        views: grain.MapDataset,
        batch_size: int,
        first_row: int,
        rows: int,
        crop_size: tuple[int, int],
    ):
        self._views = views
        self._batch_size = batch_size
        self._first_row = first_row
        self._rows = rows
        self._crop_size = crop_size

    def __len__(self) -> int:
        return len(self._views) // self._batch_size

    def __getitem__(self, number: int) -> dict:
        image = np.empty((self._rows, *self._crop_size, 3), np.uint8)
        label = np.empty((self._rows, *self._crop_size), np.uint8)
        names, broken = [], {}
        start = int(number) * self._batch_size + self._first_row
        for row in range(self._rows):
            view = self._views[start + row]
            image[row], label[row] = view["image"], view["label"]
            names.append(view["id"])
            broken |= view["broken"]
        return {"image": image, "label": label, "id": np.array(names), "broken": broken}


def _too_many(count: int, limit: int, last: str) -> DataError:
    return DataError(
        f"{count} records are broken, and skip_broken={limit} tolerates {limit}; "
        f"the last one: {last}"
    )


@contextlib.contextmanager
def _unreachable_for_signals() -> Iterator[None]:
    """Lets no signal that asks for a stop through to this thread, nor to processes that it starts.

    Ctrl-C and a cluster's SIGTERM reach all processes of a program; the first one ends the others
    once it has saved.
    """
    resource_tracker.ensure_running()  # its own start would let them through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _init_worker(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    threading.Thread(target=_die_with_parent, name="die-with-parent", daemon=True).start()
    _use_one_cv2_thread()
    keep_freed_memory()  # new pages for each record would cost as much as its arithmetic


def _die_with_parent() -> None:
    """Ends this process once the one that started it is gone, however that came to its end."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _use_one_cv2_thread() -> None:
    """Turns off OpenCV's own threads, which would compete for cores with those over batches."""
    cv2.setNumThreads(0)


def _multiple_of(processes: int) -> Rule:
    wanted = f"a positive multiple of the {processes} processes"
    return lambda value: "" if value >= 1 and value % processes == 0 else wanted
