"""Sets up what all tests share: eight virtual CPU devices, strict JAX settings, the way to the
shared real data, and the line that says what a run left out."""

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

from flaxseg import data

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# A shape or dtype that NumPy's rules would quietly make fit is an error of the library.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
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
LEFT_OUT = pytest.StashKey[dict[str, int]]()
REASONS = {"peer": "compare with other packages", "slow": "repeat an assertion at further sizes"}


def pytest_configure(config):
    """Ends the run where FLAXSEG_REQUIRE_PEERS is set and a peer is missing."""
    config.stash[LEFT_OUT] = {}
    if os.environ.get("FLAXSEG_REQUIRE_PEERS"):
        missing = [name for name in PEERS if importlib.util.find_spec(name) is None]
        if missing:
            raise pytest.UsageError(f"these peers are not installed: {', '.join(missing)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Fails a test that is skipped for want of a package and is not marked `peer`.

    Neither `make test` nor `make test-rest` would ever run it.
    """
    report = yield
    missing = report.skipped and "could not import" in str(report.longrepr)
    if missing and item.get_closest_marker("peer") is None:
        report.outcome, report.longrepr = "failed", f"{item.nodeid} needs pytest.mark.peer"
    return report


def pytest_deselected(items):
    """Counts the tests that a `-m` expression leaves out, by the reason for it."""
    left_out = items[0].config.stash[LEFT_OUT]
    for item in items:
        name = next((name for name in REASONS if item.get_closest_marker(name)), None)
        if name is not None:
            left_out[name] = left_out.get(name, 0) + 1


def pytest_sessionfinish(session):
    """Hands the counts of an xdist worker to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """Takes over the counts of a worker; they are the same for each."""
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", {})


def pytest_terminal_summary(terminalreporter, config):
    """Says what was left out, and how to run it."""
    left_out = config.stash[LEFT_OUT]
    if config.option.markexpr and left_out:
        what = " and ".join(
            f"{left_out[name]} that {reason}"
            for name, reason in REASONS.items()
            if name in left_out
        )
        terminalreporter.line(f"left out: {what}; `make test-all` runs them too")


@pytest.fixture(autouse=True)
def _promotion(request):
    """Takes the strict settings back where a mark says whose promotion is met."""
    if request.node.get_closest_marker("promotes") is None:
        yield
    else:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            yield


@pytest.fixture
def no_leaked_tracers():
    """Raises where a traced value outlives its trace: on a module, in a cache, in a global."""
    with jax.checking_leaks():
        yield


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


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory) -> pathlib.Path:
    """A data_dir where `shapes` is prepared, once for all processes of a run; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has its own folder in that of the run
        base = base.parent
    data.prepare("shapes", base / "shapes", progress=False)
    return base / "shapes"
