"""flaxseg: the classic semantic-segmentation systems as functional Flax modules.

Public names are loaded on first use, so that `import flaxseg.layers` brings in JAX and Flax and
nothing else.
"""

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "create_model": "flaxseg.models",
    "list_models": "flaxseg.models",
    "Prediction": "flaxseg.models",
    "save_model": "flaxseg.saved_model",
    "load_model": "flaxseg.saved_model",
    "read_model_card": "flaxseg.saved_model",
    "evaluate": "flaxseg.evaluation",
    "train_and_evaluate": "flaxseg.training",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(
            f"module 'flaxseg' has no attribute {name!r}; it has {sorted(_PUBLIC)}"
        )
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
