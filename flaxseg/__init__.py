"""flaxseg: the classic semantic-segmentation systems as functional Flax modules.

Public names and rooms are loaded on first use: `import flaxseg` costs nothing, and
`import flaxseg.layers` brings in JAX and Flax and nothing else.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names as below, for editors and type checkers
    from flaxseg import backbones as backbones
    from flaxseg import classes as classes
    from flaxseg import crf as crf
    from flaxseg import data as data
    from flaxseg import drawing as drawing
    from flaxseg import errors as errors
    from flaxseg import evaluation as evaluation
    from flaxseg import export as export
    from flaxseg import inference as inference
    from flaxseg import layers as layers
    from flaxseg import models as models
    from flaxseg import saved_model as saved_model
    from flaxseg import training as training
    from flaxseg import weights as weights
    from flaxseg.backbones import list_backbones as list_backbones
    from flaxseg.data import list_datasets as list_datasets
    from flaxseg.evaluation import evaluate as evaluate
    from flaxseg.models import Prediction as Prediction
    from flaxseg.models import create_model as create_model
    from flaxseg.models import list_models as list_models
    from flaxseg.saved_model import load_model as load_model
    from flaxseg.saved_model import read_model_card as read_model_card
    from flaxseg.saved_model import save_model as save_model
    from flaxseg.training import train_and_evaluate as train_and_evaluate

__version__ = "0.1.0"

_ROOMS = (
    *("backbones", "classes", "crf", "data", "drawing", "errors", "evaluation", "export"),
    *("inference", "layers", "models", "saved_model", "training", "weights"),
)
_PUBLIC = {
    "Prediction": "flaxseg.models",
    "create_model": "flaxseg.models",
    "evaluate": "flaxseg.evaluation",
    "list_backbones": "flaxseg.backbones",
    "list_datasets": "flaxseg.data",
    "list_models": "flaxseg.models",
    "load_model": "flaxseg.saved_model",
    "read_model_card": "flaxseg.saved_model",
    "save_model": "flaxseg.saved_model",
    "train_and_evaluate": "flaxseg.training",
}

__all__ = [*_PUBLIC, *_ROOMS, "__version__"]


def __getattr__(name: str):
    if name not in _PUBLIC and name not in _ROOMS:
        raise AttributeError(
            f"module 'flaxseg' has no attribute {name!r}; it has {sorted(__all__)}"
        )
    try:
        if name in _ROOMS:
            return importlib.import_module(f"flaxseg.{name}")
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    except ModuleNotFoundError as error:
        from flaxseg.errors import missing_package

        raise missing_package(error) or error from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
