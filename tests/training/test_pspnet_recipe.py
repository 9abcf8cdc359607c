"""The recipes of PSPNet: the published numbers, and that each of them makes a network."""

import jax
import pytest
import recipe_networks
from recipe_networks import every_recipe, load_recipe, parameters

from flaxseg.errors import ConfigError
from flaxseg.training.config_check import validate_config

DATA = {"voc": 21, "cityscapes": 19, "ade20k": 150, "camvid": 11, "shapes": 5}


get_config = load_recipe("pspnet")


def create_model(config, num_classes):
    auxiliary = config.loss.outputs.auxiliary.weight > 0
    return recipe_networks.create_model(config, num_classes, auxiliary=auxiliary)


@pytest.mark.parametrize(
    ("data", "crop", "steps"),
    [("voc", 473, 33_050), ("cityscapes", 713, 37_000), ("ade20k", 473, 126_300)],
)
def test_the_recipes_of_the_authors_code(data, crop, steps):
    config = get_config(f"data={data}")
    assert config.data.crop_size == (crop, crop)
    assert config.steps == steps
    assert config.batch_size == 16
    assert config.loss.outputs.auxiliary.weight == 0.4
    optimizer = config.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.momentum) == ("sgd", 0.01, 0.9)
    assert (optimizer.head_lr_multiplier, optimizer.weight_decay) == (10.0, 1e-4)
    assert optimizer.decay_bn_and_bias
    assert (config.schedule.name, config.schedule.power) == ("poly", 0.9)
    assert (config.data.scale, config.data.rotate, config.data.blur) == ((0.5, 2.0), 10.0, 0.5)


@pytest.mark.parametrize(("variant", "data"), every_recipe(("semseg", "caffe", "baseline")))
def test_every_recipe_makes_a_network(variant, data):
    config = get_config(f"data={data},variant={variant}")
    validate_config(config)
    params = parameters(create_model(config, DATA[data]))
    assert "auxiliary_head" in params
    assert ("pyramid_pooling" in params) == (variant != "baseline")
    head = params["head"]["conv"]["kernel"].shape
    channels = {"camvid": 320, "shapes": 256}.get(data, 2048)
    assert head[2] == channels * (1 if variant == "baseline" else 2)
    if data == "ade20k" and variant == "semseg":
        auxiliary = sum(p.size for p in jax.tree.leaves(params["auxiliary_head"]))
        total = sum(p.size for p in jax.tree.leaves(params))
        assert total - auxiliary == 46_782_550


def test_the_caffe_release_has_other_rates_and_windows():
    config = get_config("data=cityscapes,variant=caffe")
    assert config.model.options.windows == (15, 30, 45, 90)
    assert get_config("data=ade20k,variant=caffe").model.options.windows == (10, 20, 30, 60)
    model = create_model(config, 19)
    assert model.bins == (6, 3, 2, 1)
    assert not model.channel_dropout
    assert model.backbone.batch_norm_momentum == 0.95
    assert config.optimizer.bias_lr_multiplier == 2.0


def test_torchvision_weights_are_one_option_away():
    config = get_config("data=voc")
    config.model.options.backbone_options.deep_stem = ()
    assert "conv1" in parameters(create_model(config, 21))["backbone"]


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"configs/pspnet.py:data=cityscape: .*Did you mean"):
        get_config("data=cityscape")
