"""The logs of a run on a disk without room: nothing is raised, and nothing is missing later."""

import contextlib
import logging
import resource

import pytest

from flaxseg.training import log_file
from flaxseg.training.log_file import LogFile


@contextlib.contextmanager
def no_file_beyond(size):
    """Lets the system refuse to write more than so many bytes of a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_an_entry_has_left_the_process_when_it_is_appended(tmp_path):
    log = LogFile(tmp_path / "log")
    log.append(b"one\n")
    assert (tmp_path / "log").read_bytes() == b"one\n"


def test_what_a_full_disk_refuses_is_written_when_there_is_room(tmp_path, caplog):
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    log = LogFile(path)
    log.append(b"a" * 20)
    with no_file_beyond(30):
        for letter in (b"b", b"c", b"d"):
            log.append(letter * 20)
        log.sync()
        assert path.read_bytes() == b"before\n" + b"a" * 20 + b"b" * 3  # half an entry
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith(f"{path} cannot be written: File too large. The run goes on")
    log.append(b"e")
    assert (
        path.read_bytes()
        == b"before\n" + b"".join(letter * 20 for letter in (b"a", b"b", b"c", b"d")) + b"e"
    )
    assert caplog.records[-1].getMessage() == f"{path} is written again; nothing is missing"
    log.close()
    assert len(caplog.records) == 2


def test_a_folder_that_cannot_be_made_is_named_once(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    log = LogFile(tmp_path / "file" / "log")
    log.append(b"a")
    log.append(b"b")
    log.close()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "file/log cannot be written" in said[0]
    assert said[1].endswith("file/log lacks the last 2 entries")
    (tmp_path / "file").unlink()
    log.append(b"c")
    assert (tmp_path / "file" / "log").read_bytes() == b"abc"


def test_memory_is_bounded(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(log_file, "_MOST_WAITING", 5)
    caplog.set_level(logging.WARNING)
    log = LogFile(tmp_path / "log")
    with no_file_beyond(0):
        for letter in b"abcdefg":
            log.append(bytes([letter]))
    log.append(b"")
    assert (tmp_path / "log").read_bytes() == b"abcde"
    assert caplog.records[-1].getMessage().endswith("log is written again; 2 entries are lost")


@pytest.mark.parametrize("missing", ["deleted", "emptied"])
def test_a_file_that_somebody_removes_is_begun_anew(tmp_path, missing):
    log = LogFile(tmp_path / "log")
    log.append(b"one")
    (tmp_path / "log").unlink() if missing == "deleted" else (tmp_path / "log").write_bytes(b"")
    log.append(b"two")
    log.sync()
    assert (tmp_path / "log").read_bytes() == b"two"
