"""The folder of a run: that it can be written to, and that one process at a time uses it."""

import errno
import json
import os
import socket
import subprocess
import sys
import time

import pytest

from flaxseg.errors import CheckpointError, ConfigError
from flaxseg.training import run_directory
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
    with pytest.raises(ConfigError, match=r"it must be a folder, and it is a file"):
        RunDirectory(path)
    assert path.read_text() == "mine"


def test_a_lock_that_is_a_folder_is_refused(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ConfigError, match=r"the workdir is .* where \.lock is not a folder itself"):
        RunDirectory(tmp_path)


def test_a_workdir_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Not a directory"):
        RunDirectory(tmp_path / "file" / "run")


def test_a_read_only_workdir_is_refused(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")  # mode bits do not stop root

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(CheckpointError, match="Permission denied"):
        RunDirectory(tmp_path).create()


def test_a_run_that_lost_its_checkpoints_is_refused(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.check_checkpoints()  # a new run
    directory.checkpoints.mkdir()
    directory.config_file.write_text("{}")
    directory.metrics_file.write_text("")
    directory.check_checkpoints()  # killed before its first checkpoint
    directory.checkpoints.rmdir()
    with pytest.raises(CheckpointError, match=r"holds metrics.jsonl of .* not in .*checkpoints"):
        directory.check_checkpoints()
    directory.checkpoints.mkdir()
    directory.model.mkdir()
    with pytest.raises(CheckpointError, match=r"holds metrics.jsonl, model of an earlier run"):
        directory.check_checkpoints()  # a model is written after the first checkpoint
    (directory.checkpoints / "5").mkdir()
    directory.check_checkpoints()


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


@pytest.fixture
def other_host(tmp_path, monkeypatch):
    """A run whose lock a process on another host wrote a moment ago; waits are short."""
    monkeypatch.setattr(run_directory, "_STALE_SECONDS", 0.4)
    monkeypatch.setattr(run_directory, "_LOOK_SECONDS", 0.02)
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"host": f"not-{socket.gethostname()}", "pid": 5}))
    return path


def test_the_lock_of_another_host_is_waited_out(other_host, caplog):
    """As after a kill, where the run is started again on another host at once."""
    began = time.monotonic()
    with RunDirectory(other_host.parent).lock():
        assert time.monotonic() - began >= 0.3
        assert json.loads(other_host.read_text())["pid"] == os.getpid()
    (said,) = caplog.messages
    assert f"process 5 on not-{socket.gethostname()} held the run in {other_host.parent}" in said
    assert "Waiting at most 0 s for a sign of life" in said


def test_an_old_lock_of_another_host_does_not_count(other_host, caplog):
    old = time.time() - 1000
    os.utime(other_host, (old, old))
    with RunDirectory(other_host.parent).lock():
        assert not caplog.messages


def test_another_host_that_renews_its_lock_keeps_the_run(other_host, monkeypatch):
    def renew(seconds):
        os.utime(other_host, (time.time() + 1, time.time() + 1))

    monkeypatch.setattr(run_directory.time, "sleep", renew)
    with (
        pytest.raises(CheckpointError, match="in use by process 5 on not-"),
        RunDirectory(other_host.parent).lock(),
    ):
        pass


@pytest.mark.parametrize("living", [False, True])
def test_a_disk_without_locks_goes_by_the_owner_that_the_file_names(
    other_host, monkeypatch, caplog, living
):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_directory.fcntl, "flock", refuse)
    process = subprocess.Popen(["sleep", "60"])
    try:
        other_host.write_text(json.dumps({"host": socket.gethostname(), "pid": process.pid}))
        if not living:
            process.kill()
            process.wait()
        with RunDirectory(other_host.parent).lock():  # nobody renews it
            pass
    finally:
        process.kill()
        process.wait()
    assert "No locks available" in caplog.messages[0]
    assert len(caplog.messages) == 1 + living  # a process that is gone is not waited for


def test_a_half_written_lock_does_not_block(tmp_path):
    (tmp_path / ".lock").write_text('{"host": "x')
    with RunDirectory(tmp_path).lock():
        pass
