"""Reads batches ahead of the step that uses them, each with the state of the iterator after it."""

import dataclasses
import json
import logging
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from flaxseg.errors import HungError

PATIENCE = 60.0
"""Seconds without a batch after which a warning says where the reader is."""

HANG_SECONDS = 1800.0
"""Seconds without any progress after which a run ends; no compilation should take as long."""

_CLOSE_SECONDS = 5.0

_log = logging.getLogger(__name__)


class BatchIterator(Protocol):
    """Has the methods of what `flaxseg.data.train_batches` returns."""

    def __next__(self) -> dict[str, np.ndarray]: ...
    def get_state(self) -> Any: ...
    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Batch:
    """Holds a batch on the device.

    Attributes:
      arrays: for the compiled train step.
      ids: of this process's records, in order.
      iterator_state: JSON of the iterator's state after this batch, from which a run resumes.
    """

    arrays: dict[str, jax.Array]
    ids: tuple[str, ...]
    iterator_state: str


class Prefetch:
    """Reads and places batches in a thread while the device is busy.

    The iterator runs ahead of the steps, so a checkpoint needs the state that came with the last
    batch used, not the iterator's own.

    Attributes:
      seconds_waited: time in which the device had nothing to do because no batch was ready.
    """

    def __init__(
        self,
        iterator: BatchIterator,
        put_batch: Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]],
        size: int = 2,
    ):
        self.seconds_waited = 0.0
        self._iterator = iterator
        self._put_batch = put_batch
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(size)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._read, name="prefetch", daemon=True)
        self._thread.start()

    def next(self, running: jax.Array | None = None) -> Batch:
        """Returns the next batch.

        Args:
          running: an output of the step under way; waiting counts only once it is done.

        Raises:
          Whatever the iterator raised for this batch.
          HungError: there has been none for `HANG_SECONDS`.
        """
        waited, warn_at = 0.0, PATIENCE
        while True:
            before = time.perf_counter()
            try:
                item = self._queue.get(timeout=0.002)
            except queue.Empty:
                elapsed = time.perf_counter() - before
                if running is None or running.is_ready():
                    self.seconds_waited += elapsed
                waited += min(elapsed, 1.0)  # more where this process was suspended
                if waited > HANG_SECONDS:
                    raise HungError(self._describe_silence(waited)) from None
                if waited > warn_at:
                    _log.warning(self._describe_silence(waited))
                    warn_at += PATIENCE
                continue
            if isinstance(item, BaseException):
                raise item
            return item

    def close(self) -> None:
        """Stops reading and closes the iterator; a thread that hangs in it is left behind."""
        self._closed.set()
        end = time.perf_counter() + _CLOSE_SECONDS
        while self._thread.is_alive():
            if time.perf_counter() > end:
                return
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                self._thread.join(0.05)
        self._iterator.close()

    def _describe_silence(self, seconds: float) -> str:
        frame = sys._current_frames().get(self._thread.ident)
        where = (
            "".join(traceback.format_stack(frame)[-3:]) if frame else "  nowhere: it has ended\n"
        )
        return (
            f"no batch has come for {seconds:.0f} s. The disk or a worker may hang, or records may "
            "be slow to decode with so few data.num_threads. The reading thread is at:\n"
            f"{where.rstrip()}"
        )

    def _read(self) -> None:
        try:
            while not self._closed.is_set():
                batch = next(self._iterator)
                state = encode_iterator_state(self._iterator.get_state())
                ids = tuple(str(name) for name in batch["id"])
                self._queue.put(Batch(self._put_batch(batch), ids, state))
        except BaseException as error:
            self._queue.put(error)


def encode_iterator_state(state: Any) -> str:
    """Returns the state of an iterator as JSON; bytes are marked for `decode_iterator_state`."""
    return json.dumps(state, default=_encode)


def decode_iterator_state(text: str) -> Any:
    """Returns the inverse of `encode_iterator_state`."""
    return json.loads(text, object_hook=_decode)


def _encode(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"__bytes__": value.hex()}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"the iterator's state holds a {type(value).__name__}, which JSON cannot hold")


def _decode(value: dict[str, Any]) -> Any:
    return bytes.fromhex(value["__bytes__"]) if set(value) == {"__bytes__"} else value
