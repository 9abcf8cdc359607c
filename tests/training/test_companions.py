"""Processes of one run stop together, and none waits for one that hangs or is gone."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from flaxseg.training.companions import _name_hung

PROGRAM = pathlib.Path(__file__).with_name("companions_program.py")


def run_two(repository, scenario):
    """Runs two processes to their end; returns their exit codes, and what each said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, PROGRAM, scenario, str(rank), address],
            env=os.environ | {"PYTHONPATH": str(repository)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def test_a_signal_to_one_process_stops_all_after_the_same_step(repository):
    codes, outputs = run_two(repository, "within")
    assert codes == [75, 75], outputs
    said = {output for output, _ in outputs}
    assert len(said) == 1
    assert "stopped by SIGTERM to process 1" in said.pop()
    assert "SIGTERM to process 1: all processes stop" in outputs[0][1]
    assert "SIGTERM: saving after this step" in outputs[1][1]


def test_a_signal_before_the_first_step_ends_all_at_once(repository):
    codes, outputs = run_two(repository, "before")
    assert codes == [75, 75], outputs
    assert all("stopped by SIGTERM to process 1 before" in said for _, said in outputs)


def test_a_process_that_hangs_is_named_and_ends_the_run(repository):
    codes, outputs = run_two(repository, "hang")
    assert codes == [4, 4], outputs
    for _, said in outputs:
        assert "the run hangs at process 1 on " in said
        assert "(reading the batch of step 20)" in said


def test_a_process_that_fails_ends_the_others_with_its_reason(repository):
    codes, outputs = run_two(repository, "fail")
    assert codes == [1, 1], outputs
    assert "process 1 on " in outputs[0][1]
    assert "has ended: record 7 is broken" in outputs[0][1]
    assert outputs[1][1].endswith("error: record 7 is broken\n")


@pytest.mark.parametrize(
    ("steps", "waits", "named"),
    [((41, 42), (False, True), "process 0"), ((42, 42), (True, False), "process 1")],
)
def test_the_process_that_the_others_wait_for_is_named(steps, waits, named):
    places = {
        str(rank): {"step": step, "waits": wait, "doing": "work", "host": "h"}
        for rank, (step, wait) in enumerate(zip(steps, waits, strict=True))
    }
    text = _name_hung(places | {"2": {"done": True}}, 1800)
    assert text == f"nothing has happened for 30 minutes; the run hangs at {named} on h (work)"
