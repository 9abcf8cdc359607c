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


PROGRAM = """
import hashlib, os, signal, sys, time
from flaxseg.training import signals
signals._PATIENCE = 0.2

def main():
    with signals.stop_on_signals() as stop:
        {body}
    return 3

sys.exit(signals.run_program(main))
"""
SEND = "os.kill(os.getpid(), signal.SIGTERM)"


def run_program(repository, body):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(body=body)],
        capture_output=True,
        text=True,
        cwd=repository,
        timeout=60,
    )


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(f"{SEND}; time.sleep(60)", id="python"),
        # What a library may make of it.
        pytest.param(f"\n        try: {SEND}\n        except BaseException: 1 / 0", id="error"),
        # Python prints and drops what is raised here.
        pytest.param(
            f"T = type('T', (), {{'__del__': lambda self: {SEND}}}); T(); time.sleep(60)", id="del"
        ),
        # Code outside of Python, as a compilation is: the main thread cannot handle the signal.
        pytest.param(
            "import threading; "
            f"threading.Timer(0.1, lambda: {SEND}).start(); "
            "hashlib.pbkdf2_hmac('sha256', b'x', b'x', 10**9)",
            id="deaf",
        ),
    ],
)
def test_where_nothing_is_lost_a_signal_ends_the_program_at_once(repository, body):
    done = run_program(repository, body)
    assert done.returncode == 75, done.stderr
    assert "SIGTERM: stopped; there was nothing to save" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("body", [SEND, f"import atexit; atexit.register(lambda: {SEND})"])
def test_once_everything_is_done_a_signal_changes_nothing(repository, body):
    done = run_program(repository, f"stop.hold(); stop.finish(0); {body}")
    assert (done.returncode, done.stderr) == (3, "")


IN_AN_IMPORT = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, Finder())
sys.argv = ["{program}", *{arguments}]
runpy.{run}("{program}", run_name="__main__")
"""


COMMANDS = [("run_path", "train.py", []), ("run_module", "flaxseg", ["train"])]


@pytest.mark.parametrize(
    ("command", "module"),
    [(command, "flaxseg.programs") for command in COMMANDS]
    + [(COMMANDS[0], "flaxseg.training.loop")],
)
def test_a_signal_during_the_imports_is_a_stop_too(repository, tmp_path, command, module):
    run, program, words = command
    options = ["deeplab:data=shapes", f"--workdir={tmp_path / 'run'}", "--compilation_cache=off"]
    script = IN_AN_IMPORT.format(
        run=run,
        program=program,
        module=module,
        arguments=[*words, *options],
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(repository), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        cwd=repository,
        timeout=120,
    )
    assert done.returncode == 75, done.stderr
    assert "SIGTERM: stopped" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
