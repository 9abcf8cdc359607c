"""The recipes of FCN: every variant and data set is a config that can be run."""

import pytest
from recipe_networks import create_model, every_recipe, load_recipe, trace

from flaxseg.layers import IMAGENET
from flaxseg.training.config_check import validate_config

get_config = load_recipe("fcn")


@pytest.mark.parametrize(
    ("variant", "data"), every_recipe(("32s", "16s", "8s", "8s_atonce", "alexnet", "resnet"))
)
def test_all_recipes_are_valid_and_make_their_model(variant, data):
    config = get_config(f"variant={variant},data={data}")
    validate_config(config)
    options = {"auxiliary": True} if config.loss.outputs.auxiliary.weight else {}
    size = tuple(config.data.crop_size)
    prediction, _ = trace(create_model(config, **options), size, train=False)
    assert prediction.logits.shape == (1, *size, 5)


def test_the_voc_recipe_is_the_released_solvers():
    steps = {"32s": 1e-10, "16s": 1e-12, "8s": 1e-14, "8s_atonce": 1e-10}
    for variant, rate in steps.items():
        config = get_config(f"variant={variant}")
        assert (config.loss.reduction, config.batch_size) == ("sum", 1)
        assert (config.optimizer.learning_rate, config.optimizer.momentum) == (rate, 0.99)
        assert config.steps == (300_000 if variant == "8s_atonce" else 100_000)
        assert config.schedule.name == "constant"
    assert get_config("variant=16s").init.model == "runs/fcn32s"
    assert get_config("variant=8s").init.model == "runs/fcn16s"


def test_torchvisions_classifier_comes_with_its_colours():
    first, second = (
        get_config(f"variant={variant},weights=torchvision") for variant in ("32s", "16s")
    )
    assert first.init.backbone == "timm/vgg16.tv_in1k"
    assert (second.init.backbone, second.init.model) == ("", "runs/fcn32s")
    for config in (first, second):
        validate_config(config)
        assert config.model.backbone == "vgg16"
        model = create_model(config)
        assert model.normalization == IMAGENET
