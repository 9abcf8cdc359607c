"""What all tests share: eight virtual CPU devices, strict JAX settings, and the way to the shared real data."""

import os
import pathlib

import jax
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "allow")
if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """The folder with real data and weights; a test that asks for it is skipped where it is absent."""
    path = pathlib.Path(os.environ.get("FLAXSEG_SHARED", REPOSITORY.parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no shared data at {path}; set FLAXSEG_SHARED to its folder")
    return path
