"""One network at several output strides: from the saved model, by one set of parameters."""

import jax
import numpy as np
import pytest
from PIL import Image
from random_weights import random_image

import flaxseg
from flaxseg import cli
from flaxseg.errors import WeightsError
from flaxseg.inference import predict
from flaxseg.models import at_output_stride

# A convolution that loses its stride keeps its rate: then the denser grid holds the sparser one.
BACKBONE = {"stage_sizes": (1, 1, 1, 1), "width": 0.125, "dilate_first_unit": False}


@pytest.mark.parametrize(
    ("name", "options", "output_stride", "wanted"),
    [
        ("deeplabv3", {"rates": (3, 6, 9)}, 8, {"rates": (6, 12, 18)}),
        ("deeplabv3", {}, 8, {}),  # the model's own go by the output stride
        ("deeplabv3", {"rates": None}, 8, {"rates": None}),
        ("deeplabv3plus", {"rates": ()}, 8, {"rates": ()}),
        ("deeplabv3_cascade", {"output_stride": 8, "rates": (8, 16)}, 32, {"rates": (2, 4)}),
        ("deeplabv2", {}, 16, {"rates": (3, 6, 9, 12)}),
        ("deeplabv1", {}, 16, {"rate": 6}),
        ("deeplabv1", {"rate": 4}, 8, {"rate": 4}),
        ("pspnet", {}, 16, {}),
        ("pspnet", {"windows": (10, 20, 30, 60)}, 16, {"windows": (5, 10, 15, 30)}),
        ("fcn", {"dropout": 0.5}, 32, {"dropout": 0.5}),
    ],
)
def test_rates_and_windows_keep_their_reach(name, options, output_stride, wanted):
    assert at_output_stride(name, options, output_stride) == {
        **options,
        **wanted,
        "output_stride": output_stride,
    }


def test_a_rate_that_would_be_a_fraction_is_refused():
    with pytest.raises(ValueError, match=r"rates=\(3, 6, 9\) at output stride 16 .* give rates"):
        at_output_stride("deeplabv3", {"output_stride": 16, "rates": (3, 6, 9)}, 32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A DeepLabv3 of output stride 16 with rates of its own."""
    options = {
        "backbone": "resnet18",
        "backbone_options": BACKBONE,
        "output_stride": 16,
        "features": 8,
        "rates": (1, 3),
        "image_pooling": False,
    }
    model = flaxseg.create_model("deeplabv3", 3, **options)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 33, 33, 3), np.float32))
    directory = tmp_path_factory.mktemp("saved")
    flaxseg.save_model(directory, variables, name="deeplabv3", num_classes=3, options=options)
    return directory


def scores_of(model, variables, image):
    """The scores before they are resized: those of an input whose size is that of the features."""
    _, captured = jax.jit(
        lambda variables: model.apply(
            variables, image, capture_intermediates=lambda m, _: m.name == "classifier"
        )
    )(variables)
    (scores,) = captured["intermediates"]["classifier"]["__call__"]
    return np.asarray(scores)


def test_a_saved_model_is_the_same_function_on_a_denser_grid(saved):
    """Every second score at output stride 8 is that at 16: atrous convolution adds cells between
    those that were there."""
    image = random_image(1, 65, 97)
    sparse = scores_of(*flaxseg.load_model(saved), image)
    model, variables = flaxseg.load_model(saved, output_stride=8)
    assert model.rates == (2, 6)
    dense = scores_of(model, variables, image)
    assert dense.shape == (1, 9, 13, 3)
    assert np.abs(sparse).max() > 0.1
    np.testing.assert_allclose(dense[:, ::2, ::2], sparse, atol=1e-5)


def test_predict_at_another_output_stride(saved, tmp_path):
    source, out = tmp_path / "street.png", tmp_path / "out"
    pixels = np.random.default_rng(0).integers(0, 256, (65, 97, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(source)
    arguments = ["predict", str(source), f"--model={saved}", f"--out={out}", "--output_stride=8"]
    assert cli.main(arguments) == 0
    mask = np.asarray(Image.open(out / "street_mask.png"))
    masks = [
        predict(*flaxseg.load_model(saved, output_stride=stride), pixels) for stride in (8, 16)
    ]
    np.testing.assert_array_equal(mask, masks[0])
    assert np.any(mask != masks[1])


def test_what_is_given_beside_the_output_stride_is_not_scaled(saved):
    model, _ = flaxseg.load_model(saved, output_stride=32, rates=(1, 2))
    assert model.rates == (1, 2)
    with pytest.raises(WeightsError, match=r"rates=\(1, 3\) at output stride 16 has no whole"):
        flaxseg.load_model(saved, output_stride=32)
