"""A model and images for exports."""

import numpy as np
import pytest
from tiny_model import TinyModel, init


@pytest.fixture
def tiny():
    """A model with three classes, and its variables."""
    model = TinyModel(3, blur=True)
    return model, init(model)


@pytest.fixture
def images():
    """Two images of 8 x 9."""
    return np.random.default_rng(0).integers(0, 256, (2, 8, 9, 3)).astype(np.uint8)
