"""Batches read ahead, with the state that belongs to each; the clock of the steps."""

import threading
import time

import numpy as np
import pytest

from flaxseg.errors import HungError
from flaxseg.training import prefetch
from flaxseg.training.prefetch import Prefetch, decode_iterator_state, encode_iterator_state
from flaxseg.training.window import Window


class Counter:
    """Yields batches 0, 1, ...; its state is how many were taken."""

    def __init__(self, stop_at=None, gate=None):
        self.taken, self.stop_at, self.gate = 0, stop_at, gate

    def __next__(self):
        if self.gate is not None:
            self.gate.wait()
        if self.taken == self.stop_at:
            raise ValueError(f"record {self.taken} is broken")
        self.taken += 1
        return {"image": np.array([self.taken]), "id": np.array([f"r{self.taken}"])}

    def get_state(self):
        return {"taken": self.taken}

    def close(self):
        self.closed = True


def test_the_state_is_that_of_the_batch_not_of_the_iterator():
    iterator = Counter()
    batches = Prefetch(iterator, lambda batch: {"image": batch["image"]})
    for number in range(1, 6):
        batch = batches.next()
        assert batch.arrays["image"][0] == number
        assert batch.ids == (f"r{number}",)
        assert decode_iterator_state(batch.iterator_state) == {"taken": number}
    batches.close()
    assert iterator.taken > 5  # it was ahead
    assert not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_an_error_comes_with_the_batch_it_belongs_to():
    batches = Prefetch(Counter(stop_at=2), lambda batch: dict(batch))
    batches.next()
    batches.next()
    with pytest.raises(ValueError, match="record 2 is broken"):
        batches.next()


def test_a_source_that_hangs_for_ever_is_an_error(monkeypatch):
    monkeypatch.setattr(prefetch, "HANG_SECONDS", 0.1)
    monkeypatch.setattr(prefetch, "_CLOSE_SECONDS", 0.1)
    gate = threading.Event()
    batches = Prefetch(Counter(gate=gate), lambda batch: dict(batch))
    with pytest.raises(HungError, match=r"no batch has come for 0 s(.|\n)*self.gate.wait"):
        batches.next()
    batches.close()  # does not wait for it
    gate.set()


class Running:
    def __init__(self, ready):
        self.ready = ready

    def is_ready(self):
        return self.ready


@pytest.mark.parametrize("device_is_busy", [True, False])
def test_only_time_in_which_the_device_is_idle_is_waiting(device_is_busy):
    gate = threading.Event()
    batches = Prefetch(Counter(gate=gate), lambda batch: dict(batch))
    timer = threading.Timer(0.2, gate.set)
    timer.start()
    batches.next(Running(ready=not device_is_busy))
    batches.close()
    if device_is_busy:
        assert batches.seconds_waited == 0
    else:
        assert 0.1 < batches.seconds_waited < 5


def test_a_source_that_hangs_is_reported(monkeypatch, caplog):
    monkeypatch.setattr(prefetch, "PATIENCE", 0.1)
    gate = threading.Event()
    batches = Prefetch(Counter(gate=gate), lambda batch: dict(batch))
    timer = threading.Timer(0.5, gate.set)
    timer.start()
    batches.next()
    batches.close()
    assert caplog.messages
    assert "no batch has come" in caplog.messages[0]
    assert "self.gate.wait()" in caplog.messages[0]  # where the reading thread stands


def test_states_with_bytes_survive():
    state = {"a": b"\x00\xff", "b": [1, {"c": np.int64(3)}]}
    assert decode_iterator_state(encode_iterator_state(state)) == {
        "a": b"\x00\xff",
        "b": [1, {"c": 3}],
    }


def test_a_window_averages_and_leaves_pauses_out(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    window = Window(batch_size=4)

    def add(step, loss):
        metrics = {"loss": loss, "accuracy": 0.5, "valid_fraction": 1.0}
        metrics |= {"learning_rate": 0.1 / step, "grad_norm": float(step)}
        window.add(step, {k: np.float32(v) for k, v in metrics.items()}, [f"id{step}"])

    add(1, 2.0)  # before the clock starts: the step that compiles
    window.resume()
    add(2, 4.0)
    now[0] += 2.0
    window.pause()
    now[0] += 50.0
    window.resume()
    add(3, 6.0)
    now[0] += 2.0
    assert window.ids(2) == ["id2"]
    assert window.metrics(2)["loss"] == 4.0
    values = window.report(seconds_waited=1.0)
    assert values["loss"] == 4.0
    assert values["grad_norm"] == 3.0
    assert values["images_per_second"] == 2.0  # 2 steps of 4 images in 4 seconds
    assert values["data_wait"] == 0.25
    assert window.ids(2) == ()
