"""Gathers the steps since the last report: their metrics, their records, and their time."""

import math
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

_MEANS = ("loss", "accuracy", "valid_fraction")
_LATEST = ("learning_rate", "grad_norm")


class Window:
    """Gathers metrics without waiting for the device; they are fetched by `report`."""

    def __init__(self, batch_size: int, earlier: Mapping[str, Sequence[float]] | None = None):
        """
        Args:
          batch_size: images per step over all devices.
          earlier: of an interrupted run, `state` at the step that it goes on from.
        """
        self._batch_size = batch_size
        self._earlier = {name: list((earlier or {}).get(name, ())) for name in _MEANS}
        self._metrics: list[dict[str, jax.Array]] = []
        self._ids: dict[int, Sequence[str]] = {}
        self._timed_steps = 0
        self._seconds = 0.0
        self._since: float | None = None
        self._waited = 0.0

    def add(self, step: int, metrics: dict[str, jax.Array], ids: Sequence[str]) -> None:
        """Notes that step number `step`, counted from 1, was given to the device."""
        self._metrics.append(metrics)
        self._ids[step] = ids
        if self._since is not None:
            self._timed_steps += 1

    def ids(self, step: int) -> Sequence[str]:
        """Returns the records of a step since the last report."""
        return self._ids.get(step, ())

    def metrics(self, step: int) -> dict[str, float]:
        """Returns the metrics of a step since the last report, on the host."""
        place = list(self._ids).index(step) if step in self._ids else None
        if place is None:
            return {}
        return {name: float(value) for name, value in self._metrics[place].items()}

    def state(self) -> dict[str, list[float]]:
        """Fetches what the next report needs of the steps so far; waits for those under way."""
        host = jax.device_get(self._metrics) if self._metrics else []
        return {name: self._earlier[name] + [float(m[name]) for m in host] for name in _MEANS}

    def pause(self) -> None:
        """Stops the clock, for what is not training: compilation, evaluation, saving."""
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def resume(self, seconds_waited: float | None = None) -> None:
        """Starts the clock.

        Args:
          seconds_waited: for data so far, where that before is to be left out.
        """
        self._since = time.perf_counter()
        if seconds_waited is not None:
            self._waited = seconds_waited

    def report(self, seconds_waited: float) -> dict[str, float]:
        """Fetches the numbers of these steps and begins anew; waits for the steps under way.

        Args:
          seconds_waited: for data, since the run was started.

        Returns:
          Means of loss, accuracy and valid_fraction; the last learning_rate and grad_norm;
          images_per_second and data_wait, a share of the time since this start of the program; both
          are nan where no step but the one that was compiled was taken in it.
        """
        host = jax.device_get(self._metrics)
        running = self._since is not None
        self.pause()
        values = {
            name: float(np.mean([*self._earlier[name], *(m[name] for m in host)], dtype=np.float64))
            for name in _MEANS
        }
        values |= {name: float(host[-1][name]) for name in _LATEST}
        seconds, images = self._seconds, self._timed_steps * self._batch_size
        timed = seconds > 0 and images > 0
        values["images_per_second"] = images / seconds if timed else math.nan
        waited, self._waited = seconds_waited - self._waited, seconds_waited
        values["data_wait"] = min(waited / seconds, 1.0) if timed else math.nan
        self._metrics, self._ids, self._timed_steps, self._seconds = [], {}, 0, 0.0
        self._earlier = {name: [] for name in _MEANS}
        if running:
            self.resume()
        return values
