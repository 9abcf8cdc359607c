"""Keeps a trained model as a folder to save, share and load."""

from flaxseg.saved_model.card import CARD_FILE, WEIGHTS_FILE, check_classes, from_json
from flaxseg.saved_model.model_folder import load_model, read_model_card, save_model

__all__ = [
    "CARD_FILE",
    "WEIGHTS_FILE",
    "check_classes",
    "from_json",
    "load_model",
    "read_model_card",
    "save_model",
]
