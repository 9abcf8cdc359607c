"""What all tests share: eight virtual CPU devices, strict JAX settings, and the way to the shared
real data."""

import importlib.util
import os
import pathlib

# The tests compile much and compute little: a third of their time is LLVM's optimization. The run
# on the newer Python in CI has it. (Leaving out XLA's fusion emitters saves more and gives wrong
# gradients in jaxlib 0.10.)
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"

import jax
import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

PEERS = (
    "torch",
    "torchvision",
    "timm",
    "segmentation_models_pytorch",
    "sklearn",
    "cityscapesscripts",
    "jax2onnx",
)


def pytest_configure():
    """With FLAXSEG_REQUIRE_PEERS set, a missing peer ends the run instead of skipping its tests."""
    if os.environ.get("FLAXSEG_REQUIRE_PEERS"):
        missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
        if missing:
            raise pytest.UsageError(f"these peers are not installed: {', '.join(missing)}")


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs():
    """Keeps a long run of tests in bounds: a process would hold all that it ever compiled."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_dir() -> pathlib.Path:
    """The folder with real data and weights; a test that asks for it is skipped where it is
    absent."""
    path = pathlib.Path(os.environ.get("FLAXSEG_SHARED", REPOSITORY.parent / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no shared data at {path}; set FLAXSEG_SHARED to its folder")
    return path
