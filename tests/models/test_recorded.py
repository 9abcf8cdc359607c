"""Networks against recorded outputs of torchvision and timm, which need not be installed."""

import pathlib

import jax
import numpy as np
import pytest
from random_weights import random_image, relative_difference, shapes_of
from recorded_cases import SIZE, cases, fingerprint, sample, weights

from flaxseg.layers import AuxiliaryHead, resize
from flaxseg.weights import load_weights

FILE = pathlib.Path(__file__).parent.parent / "fixtures" / "peer_outputs.npz"
# Sums in another order differ by about 1e-6; a wrong rate, padding or layer by 1e-1.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def recorded():
    with np.load(FILE) as file:
        return dict(file)


# The other networks differ from these in depth or output stride alone.
QUICK = (
    "timm resnet18 os16",
    "timm mobilenetv2_100 os8",
    "timm tf_efficientnet_lite0 os16",
    "torchvision deeplabv3_resnet50",
)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in cases()],
)
def test_outputs_equal_the_recorded_ones(recorded, name):
    case = cases()[name]
    tensors = weights(case)
    assert fingerprint(tensors) == recorded[f"{name}/weights"], (
        "NumPy draws other numbers from the same seed; run fixtures/make_peer_outputs.py"
    )
    variables, _ = load_weights(shapes_of(case.module), tensors, name_maps=[case.name_map])
    image = random_image(1, *SIZE)
    output = jax.jit(case.module.apply)(variables, image)
    logits = output["logits"] if isinstance(output, dict) else output.logits
    assert relative_difference(sample(logits), recorded[f"{name}/logits"]) < TOLERANCE
    if f"{name}/auxiliary" in recorded:
        backbone, head = (
            {k: v[part] for k, v in variables.items()} for part in ("backbone", "auxiliary_head")
        )
        c4 = jax.jit(case.module.backbone.apply)(backbone, image)["c4"]
        auxiliary = resize(AuxiliaryHead(21).apply(head, c4), SIZE, align_corners=False)
        wanted = recorded[f"{name}/auxiliary"]
        assert relative_difference(sample(auxiliary), wanted) < TOLERANCE


def test_the_recorded_outputs_are_small_and_not_trivial(recorded):
    assert FILE.stat().st_size < 200_000
    for name, value in recorded.items():
        if not name.endswith("weights"):
            assert value.std() > 1e-2
