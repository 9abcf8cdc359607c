"""Compiled programs are kept on disk without being asked for, and found by the next start."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from flaxseg.training.compilation import default_cache_dir, enable_compilation_cache

PROGRAM = """
import jax
from flaxseg.training.compilation import enable_compilation_cache
print(enable_compilation_cache())
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None
)
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8))).block_until_ready()
print(len(hits))
"""


@pytest.fixture
def _own_settings():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_a_second_start_finds_what_the_first_compiled(tmp_path, repository):
    environment = {
        **os.environ,
        "PYTHONPATH": str(repository),
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", PROGRAM]
    first, second = (
        subprocess.check_output(command, env=environment, text=True).split() for _ in range(2)
    )
    assert pathlib.Path(first[0]) == tmp_path / "flaxseg" / "jax"
    assert any((tmp_path / "flaxseg" / "jax").iterdir())
    assert int(first[1]) == 0
    assert int(second[1]) > 0


@pytest.mark.usefixtures("_own_settings")
def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "flaxseg" / "jax"
    assert enable_compilation_cache(tmp_path / "own") == tmp_path / "own"
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/given")
    assert enable_compilation_cache(tmp_path / "other") == pathlib.Path("/given")
    assert not (tmp_path / "other").exists()


@pytest.mark.usefixtures("_own_settings")
def test_a_cache_that_cannot_be_written_is_none(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    before = jax.config.jax_compilation_cache_dir
    (tmp_path / "file").touch()
    assert enable_compilation_cache(tmp_path / "file" / "below") is None
    assert jax.config.jax_compilation_cache_dir == before
