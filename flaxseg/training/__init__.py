"""Training, in parts that are usable alone, and the program that puts them together."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flaxseg.training.config import default_config
    from flaxseg.training.config_check import validate_config
    from flaxseg.training.loop import TrainingResult, train_and_evaluate

__all__ = ["TrainingResult", "default_config", "train_and_evaluate", "validate_config"]


def __getattr__(name: str):
    """Import the program at first use, so that a loss can be used without Orbax and Grain."""
    if name in ("TrainingResult", "train_and_evaluate"):
        from flaxseg.training import loop

        return getattr(loop, name)
    if name == "default_config":
        from flaxseg.training.config import default_config

        return default_config
    if name == "validate_config":
        from flaxseg.training.config_check import validate_config

        return validate_config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
