"""The first signal asks, the second one ends."""

import os
import signal
import subprocess
import sys

import pytest

from flaxseg.training.signals import stop_on_signals

WAIT = """
import time
from flaxseg.training.signals import stop_on_signals
with stop_on_signals() as stop:
    stop.hold()
    print("ready", flush=True)
    while not stop:
        time.sleep(0.01)
    print("asked by", stop.signal_name, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_signal_ends_the_process_at_once(repository, number):
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=repository,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stdout.readline() == f"asked by {signal.Signals(number).name}\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == -number
    assert "once more stops now" in said


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        assert not stop
        stop.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        assert stop.signal_name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before
