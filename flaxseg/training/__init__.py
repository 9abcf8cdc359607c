"""Training, in parts that are usable alone, and the program that puts them together."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flaxseg.training.config import default_config
    from flaxseg.training.config_check import validate_config
    from flaxseg.training.loop import TrainingResult, train_and_evaluate

_MODULES = {
    "TrainingResult": "loop",
    "default_config": "config",
    "train_and_evaluate": "loop",
    "validate_config": "config_check",
}

__all__ = ["TrainingResult", "default_config", "train_and_evaluate", "validate_config"]


def __getattr__(name: str):
    """Imports the program at first use, so that losses work without Orbax and Grain."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
