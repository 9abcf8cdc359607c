"""The folder of a run: that it can be written to, and that one process at a time uses it."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from flaxseg.errors import CheckpointError
from flaxseg.training.run_directory import RunDirectory

HOLD = """
import sys
from flaxseg.training.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_file_as_workdir_is_refused(tmp_path):
    path = tmp_path / "run"
    path.write_text("mine")
    with pytest.raises(CheckpointError, match=r"run is a file; it must be a folder"):
        RunDirectory(path).create()
    assert path.read_text() == "mine"


def test_a_workdir_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written to"):
        RunDirectory(tmp_path / "file" / "run").create()


def test_a_read_only_workdir_is_refused(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")  # mode bits do not stop root

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        RunDirectory(tmp_path).create()


def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path, repository):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=repository,
    )
    try:
        assert holder.stdout.readline() == "held\n"
        directory = RunDirectory(tmp_path)
        with (
            pytest.raises(CheckpointError, match=f"in use by process {holder.pid} on "),
            directory.lock(),
        ):
            pass
        holder.kill()
        holder.wait()
        with directory.lock():  # the lock of a killed process is free at once
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        assert (tmp_path / ".lock").read_text() == ""
    finally:
        holder.kill()
        holder.communicate()


def test_a_lock_of_another_host_counts_while_it_is_renewed(tmp_path):
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"host": f"not-{socket.gethostname()}", "pid": 5}))
    directory = RunDirectory(tmp_path)
    with pytest.raises(CheckpointError, match="process 5 on not-"), directory.lock():
        pass
    old = time.time() - 1000
    os.utime(path, (old, old))
    with directory.lock():
        pass


def test_a_half_written_lock_does_not_block(tmp_path):
    (tmp_path / ".lock").write_text('{"host": "x')
    with RunDirectory(tmp_path).lock():
        pass
