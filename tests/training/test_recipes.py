"""What the recipes share: their argument, and what can be set on the command line."""

import pytest
from ml_collections import config_dict
from recipe_networks import create_model, every_recipe, load_recipe, parameters

from flaxseg.errors import ConfigError
from flaxseg.training import recipes
from flaxseg.training.config import default_config
from flaxseg.training.config_check import validate_config
from flaxseg.weights import HUB_WEIGHTS, list_hub_weights

CHOICES = {"variant": ("big", "small"), "data": {"voc": 1, "shapes": 2}}


@pytest.mark.parametrize(
    ("argument", "variant", "data"),
    [
        ("", "big", "voc"),
        ("data=shapes", "big", "shapes"),
        (" variant = small , data=voc", "small", "voc"),
        ("data=shapes,", "big", "shapes"),
    ],
)
def test_the_first_choice_is_the_default(argument, variant, data):
    chosen = recipes.parse_recipe_argument(argument, "configs/x.py", **CHOICES)
    assert chosen == {"variant": variant, "data": data}


def test_every_mistake_of_the_argument_is_named_with_what_is_near():
    with pytest.raises(ConfigError) as info:
        recipes.parse_recipe_argument("varant=big,data=shape,big", "configs/x.py", **CHOICES)
    message = str(info.value)
    assert message.startswith("configs/x.py:varant=big,data=shape,big: ")
    for part in (
        "'varant=big' is not understood; write variant=... or data=...",
        "Did you mean 'variant'?",
        "data is 'shape'; it must be one of voc, shapes.",
        "Did you mean 'shapes'?",
        "'big' is not understood",
    ):
        assert part in message, message


@pytest.mark.parametrize("name", ["voc", "cityscapes", "ade20k", "camvid", "shapes"])
def test_the_facts_of_a_data_set_make_a_valid_config(name):
    config = default_config()
    getattr(recipes, name)(config, crop=65)
    assert config.data.crop_size == (65, 65)
    validate_config(config)


def test_options_can_be_added_and_a_placeholder_keeps_its_type():
    config = default_config()
    recipes.set_options(config, rates=config_dict.placeholder(tuple), dropout=0.1)
    assert config.model.options.to_dict() == {"rates": None, "dropout": 0.1}
    assert config.model.options.get_type("rates") is tuple
    with pytest.raises(AttributeError):
        config.model.options.ratess = (1, 2)


@pytest.mark.parametrize(
    ("variant", "data"), every_recipe(["v3plus", "v3", "cascade", "xception", "mobilenet"])
)
def test_every_deeplab_recipe_makes_its_model(variant, data):
    config = load_recipe("deeplab")(f"variant={variant},data={data}")
    validate_config(config)
    assert config.init.backbone in ("", *list_hub_weights())
    model = create_model(config)
    params = parameters(model)
    if data in ("voc", "cityscapes", "ade20k"):
        wanted = HUB_WEIGHTS[config.init.backbone].normalization
        assert model.normalization == wanted
    if variant == "mobilenet":
        assert set(params["aspp"]) == {"aspp0", "image_pooling", "project"}
    if variant == "cascade":
        assert {"block5_0", "block7_2"} <= params.keys()
    assert ("decoder1" in params) == (variant in ("v3plus", "xception") and data != "camvid")
