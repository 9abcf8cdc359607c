"""Keeps the processes of a run together: they stop at one step, and none waits for one that hangs.

A thread in each process writes where that process is into the key-value store that JAX keeps for
all of them, and reads what the others wrote. The main thread never waits for the network.
"""

import contextlib
import itertools
import json
import os
import socket
import threading
import time
from typing import Any

import jax
from jax._src import distributed

from flaxseg.errors import HungError
from flaxseg.training.prefetch import HANG_SECONDS
from flaxseg.training.signals import EXIT_STOPPED, StopRequest, say

_SILENT_SECONDS = 60.0
"""Seconds after which a process that wrote nothing is gone; JAX itself waits for 100."""

_LOOK_SECONDS = 1.0
_FAREWELL_SECONDS = 10.0
"""Seconds that the first process, which keeps the store, waits for the others to leave."""

_runs = itertools.count()


class Companions:
    """Speaks for this process with the others of its run; does nothing where there are none.

    Attributes:
      stop: says whether a signal came to this process.
    """

    def __init__(self, stop: StopRequest):
        """
        Args:
          stop: as above; from now on a signal is noted for the others to see.
        """
        self.stop = stop
        self._client = distributed.global_state.client if jax.process_count() > 1 else None
        self._own, self._count = jax.process_index(), jax.process_count()
        self._folder = f"flaxseg/run_{next(_runs)}/"
        self._place: dict[str, Any] = {"step": 0, "doing": "starting", "waits": False}
        self._marks = 0
        self._stopped_by, self._leaves = "", False
        self._passed, self._last = 0, 0
        self._lock, self._agreed = threading.Lock(), threading.Event()
        self._closed = threading.Event()
        if self._client is not None:
            stop.raises = False
            threading.Thread(target=self._keep_in_touch, name="companions", daemon=True).start()

    def __enter__(self) -> "Companions":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Tells the others that this process is done, or why it fails."""
        if self._client is not None and isinstance(error, jax.errors.JaxRuntimeError):
            # Communication fails where another process is gone, which the thread will find out.
            wait = _SILENT_SECONDS + _FAREWELL_SECONDS
            if not self._leaves:
                say(f"{error}\nWaiting {wait:.0f} s at most to see which other process is gone.")
            time.sleep(wait)
        self._closed.set()
        if self._client is None:
            return
        self.stop.raises = True
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            if error is None:
                self._write(f"at/{self._own}", {"done": True})
            else:
                text = (str(error).strip() or kind.__name__).splitlines()[0]
                self._farewell(getattr(error, "exit_code", 1), text)

    @property
    def stopped_by(self) -> str:
        """Returns the signal that stops the run, and which process got it, or ""."""
        return self.stop.signal_name if self._client is None else self._stopped_by

    def at(self, step: int, doing: str, *, waits: bool = False) -> None:
        """Notes where this process is.

        Args:
          step: that it works on.
          doing: what it does there, in words.
          waits: whether it may be waiting for the others.
        """
        self._place = {"step": step, "doing": doing, "waits": waits}
        self._marks += 1

    def stops_after(self, step: int) -> bool:
        """Returns whether to stop after this step; it is the same step in all processes.

        Each process asks after each step. Once a signal came, all say which step they have passed,
        and stop after the first one that none of them has.
        """
        if self._client is None:
            return bool(self.stop)
        with self._lock:
            if not self._stopped_by:
                self._passed = step
                return False
        self._agreed.wait()
        return step >= self._last

    def _keep_in_touch(self) -> None:
        """Exchanges news with the others until this process is done."""
        marks, idle, before = -1, 0.0, time.monotonic()
        heard: dict[str, tuple[int, float]] = {}
        for beat in itertools.count():
            if self._closed.wait(_LOOK_SECONDS):
                return
            # A process that was suspended must not find that everybody has been silent for hours.
            now = time.monotonic()
            elapsed, before = min(now - before, 2 * _LOOK_SECONDS), now
            try:
                self._write(f"at/{self._own}", {**self._place, "beat": beat})
                news = self._read()
                self._see_farewells(news)
                self._see_stop(news)
            except jax.errors.JaxRuntimeError:
                continue  # the first process is gone with the store, and JAX ends this one
            idle = 0.0 if self._marks != marks else idle + elapsed
            marks = self._marks
            if idle > HANG_SECONDS:
                self._leave(HungError.exit_code, _name_hung(news["at"], idle))
            for who, place in news["at"].items():
                if place.get("done") or int(who) == self._own:
                    continue
                last, silent = heard.get(who, (-1, 0.0))
                silent = 0.0 if place["beat"] != last else silent + elapsed
                heard[who] = (place["beat"], silent)
                if silent > _SILENT_SECONDS:
                    text = (
                        f"{_name(who, place)} has not been heard of for {silent:.0f} s: it was "
                        "killed or suspended, or its host is down"
                    )
                    self._leave(HungError.exit_code, text)

    def _see_farewells(self, news: dict[str, dict[str, Any]]) -> None:
        """Leaves if another process did."""
        for who, farewell in news["left"].items():
            if int(who) != self._own:
                text = farewell["text"]
                if not farewell["passed_on"]:
                    text = f"{_name(who, farewell)} has ended: {text}"
                self._leave(farewell["code"], text)

    def _see_stop(self, news: dict[str, dict[str, Any]]) -> None:
        """Passes on a signal, and agrees with the others on the last step."""
        if self.stop and not news["stop"]:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was faster
                signal = {"name": self.stop.signal_name, "process": self._own}
                self._write("stop/first", signal, overwrite=False)
        elif news["stop"] and not self._stopped_by:
            signal = news["stop"]["first"]
            words = f"{signal['name']} to process {signal['process']}"
            if self.stop.may_end:
                self._leave(EXIT_STOPPED, f"stopped by {words} before there was anything to save")
            with self._lock:
                self._stopped_by = words
            self._write(f"passed/{self._own}", {"step": self._passed})
            if not self.stop:
                say(f"{words}: all processes stop after this step or the next, and save")
        elif len(news["passed"]) == self._count and not self._agreed.is_set():
            self._last = max(passed["step"] for passed in news["passed"].values()) + 1
            self._agreed.set()

    def _leave(self, code: int, text: str) -> None:
        """Ends this process, whatever its main thread is waiting for."""
        self._leaves = True
        say(f"{text}. What was saved is whole; the same command goes on from there.")
        self._farewell(code, text, passed_on=True)
        os._exit(code)

    def _farewell(self, code: int, text: str, *, passed_on: bool = False) -> None:
        """Tells the others that this process ends; without the first one, none could read it."""
        farewell = {"code": code, "text": text, "passed_on": passed_on, "beat": 0}
        self._write(f"left/{self._own}", farewell)
        end = time.monotonic() + _FAREWELL_SECONDS
        while self._own == 0 and time.monotonic() < end:
            if len(self._read()["left"]) == self._count:
                time.sleep(_LOOK_SECONDS)  # the last of them has said it, and not yet ended
                return
            time.sleep(_LOOK_SECONDS / 4)

    def _write(self, key: str, value: dict[str, Any], *, overwrite: bool = True) -> None:
        text = json.dumps({**value, "host": socket.gethostname()})
        self._client.key_value_set(self._folder + key, text, allow_overwrite=overwrite)

    def _read(self) -> dict[str, dict[str, Any]]:
        """Returns what all processes wrote last, by kind and process."""
        news: dict[str, dict[str, Any]] = {"at": {}, "stop": {}, "passed": {}, "left": {}}
        for key, text in self._client.key_value_dir_get(self._folder):
            kind, name = key.removeprefix(self._folder).split("/")
            news[kind][name] = json.loads(text)
        return news


def _name(process: str, written: dict[str, Any]) -> str:
    return f"process {process} on {written['host']}"


def _name_hung(places: dict[str, dict[str, Any]], seconds: float) -> str:
    """Says which processes the others are waiting for: those that are behind, and do not wait."""
    running = {who: place for who, place in places.items() if not place.get("done")}
    behind = min(place["step"] for place in running.values())
    last = {who: place for who, place in running.items() if place["step"] == behind}
    guilty = {who: place for who, place in last.items() if not place["waits"]} or last
    named = " and ".join(f"{_name(who, place)} ({place['doing']})" for who, place in guilty.items())
    return f"nothing has happened for {seconds / 60:.0f} minutes; the run hangs at {named}"
