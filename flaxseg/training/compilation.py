"""Keeps compiled programs on disk, and notices when a step is compiled again."""

import os
import pathlib
import threading

import jax

_LOWERING_EVENT = "/jax/core/compile/jaxpr_to_mlir_module_duration"


def default_cache_dir() -> pathlib.Path:
    """Returns where compiled programs are kept: below `$XDG_CACHE_HOME`, by default `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "flaxseg" / "jax"


def enable_compilation_cache(directory: str | os.PathLike | None = None) -> pathlib.Path | None:
    """Keeps compiled programs on disk, so that a second start need not compile them.

    Args:
      directory: where; None for `default_cache_dir()`. `$JAX_COMPILATION_CACHE_DIR` takes
        precedence.

    Returns:
      The folder, or None where it cannot be written: the run then compiles at every start.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    path = pathlib.Path(directory).expanduser() if directory else default_cache_dir()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(path, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    return path


class CompilationWatch:
    """Counts the compilations that the thread which made it starts.

    Attributes:
      count: so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._note)

    def close(self) -> None:
        """Stops counting."""
        jax.monitoring.unregister_event_duration_listener(self._note)

    def _note(self, event: str, seconds: float, **details: object) -> None:
        if event == _LOWERING_EVENT and threading.get_ident() == self._thread:
            self.count += 1
