"""The recipes of RefineNet: the published numbers, and that each of them makes its network."""

import pytest
from recipe_networks import create_model, every_recipe, load_recipe, parameters

from flaxseg.errors import ConfigError
from flaxseg.training.config_check import validate_config
from flaxseg.weights import HUB_WEIGHTS, list_hub_weights

HEAVY = {
    "4cascaded": (4, 1),
    "2cascaded": (2, 1),
    "single": (1, 1),
    "4cascaded_2scale": (4, 2),
}
DATA = {"voc": 21, "cityscapes": 19, "ade20k": 150, "camvid": 11, "shapes": 5}
# Recipes whose networks are traced; the others differ from these in numbers that tests of the model
# go through.
TRACED = (
    ("lw_mobilenet", "voc"),
    ("lw_mobilenet", "camvid"),
    ("lw", "camvid"),
    ("2cascaded", "shapes"),
    ("4cascaded_2scale", "shapes"),
    ("lw_mobilenet", "shapes"),
)


get_config = load_recipe("refinenet")


@pytest.mark.parametrize(("variant", "data"), every_recipe([*HEAVY, "lw", "lw_mobilenet"]))
def test_every_recipe_makes_its_network(variant, data):
    config = get_config(f"variant={variant},data={data}")
    validate_config(config)
    assert config.init.backbone in ("", *list_hub_weights())
    model = create_model(config, DATA[data])
    if variant in HEAVY:
        assert config.model.name == "refinenet"
        assert (model.cascades, len(model.scales)) == HEAVY[variant]
        assert model.pool_first == (data != "ade20k")
    else:
        mobile = variant == "lw_mobilenet" and data != "shapes"
        assert model.form == ("mobilenet" if mobile else "resnet")
    if data in ("voc", "cityscapes", "ade20k"):
        assert model.normalization == HUB_WEIGHTS[config.init.backbone].normalization
        assert config.model.frozen_batch_norm
    else:
        assert config.optimizer.head_lr_multiplier == (0.1 if data == "camvid" else 1.0)
    if (variant, data) in TRACED:
        params = parameters(model)
        assert params["classifier"]["bias"].shape == (DATA[data],)
        assert ("backbone_2" in params) == (variant == "4cascaded_2scale")


def test_the_recipe_of_the_papers_code():
    config = get_config()
    assert (config.model.name, config.model.backbone) == ("refinenet", "resnet101")
    optimizer = config.optimizer
    # 5e-4 and a tenth of it for the ResNet.
    assert (optimizer.learning_rate, optimizer.head_lr_multiplier) == (5e-5, 10.0)
    assert (optimizer.weight_decay, optimizer.decay_bn_and_bias) == (5e-4, True)
    assert (config.batch_size, config.data.crop_size) == (1, (400, 400))
    assert (config.data.scale, config.data.scale_step) == ((0.7, 1.3), 0.1)
    assert config.model.options.scales == (1.2,)
    assert get_config("data=cityscapes").data.crop_size == (600, 600)


def test_the_recipe_of_the_light_weight_networks_code():
    config = get_config("variant=lw")
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.head_lr_multiplier) == (5e-4, 10.0)
    assert optimizer.weight_decay == 1e-5
    assert (config.batch_size, config.data.crop_size) == (6, (500, 500))
    assert config.data.scale == (0.5, 2.0)
    third = config.steps // 3
    assert tuple(config.schedule.step_milestones) == (third, 2 * third)
    assert config.schedule.step_factor == 0.5
    assert get_config("variant=lw_mobilenet").model.options.backbone_options.padding == "torch"


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"configs/refinenet.py:variant=4cascade: .*Did you mean"):
        get_config("variant=4cascade")
