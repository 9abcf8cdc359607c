"""The recipes of FCN: every variant and data set is a config that can be run."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

import flaxseg
from flaxseg.data import list_datasets
from flaxseg.training.config_check import validate_config

VARIANTS = ("32s", "16s", "8s", "8s_atonce", "alexnet", "resnet")
DATA = ("voc", "cityscapes", "ade20k", "camvid", "shapes")


@pytest.fixture(scope="module")
def get_config(repository):
    spec = importlib.util.spec_from_file_location("fcn_recipe", repository / "configs" / "fcn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


def check(config):
    """Validates all but the data set, which not every version can prepare."""
    config = config.copy_and_resolve_references()
    if config.data.name not in list_datasets():
        config.data.name, config.data.train_split, config.data.eval_split = "shapes", "train", "val"
    validate_config(config)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_recipes_are_valid_and_make_their_model(get_config, variant, data):
    config = get_config(f"variant={variant},data={data}")
    check(config)
    options = config.model.options.to_dict()
    if config.loss.outputs.auxiliary.weight:
        options["auxiliary"] = True
    model = flaxseg.create_model(
        config.model.name,
        5,
        backbone=config.model.backbone,
        output_stride=config.model.output_stride,
        **options,
    )
    image = jax.ShapeDtypeStruct((1, *config.data.crop_size, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    assert jax.eval_shape(model.apply, shapes, image).logits.shape == (*image.shape[:3], 5)


def test_the_voc_recipe_is_the_released_solvers(get_config):
    steps = {"32s": 1e-10, "16s": 1e-12, "8s": 1e-14, "8s_atonce": 1e-10}
    for variant, rate in steps.items():
        config = get_config(f"variant={variant}")
        assert (config.loss.reduction, config.batch_size) == ("sum", 1)
        assert (config.optimizer.learning_rate, config.optimizer.momentum) == (rate, 0.99)
        assert config.steps == (300_000 if variant == "8s_atonce" else 100_000)
        assert config.schedule.name == "constant"
    assert get_config("variant=16s").init.model == "runs/fcn32s"
    assert get_config("variant=8s").init.model == "runs/fcn16s"


def test_torchvisions_classifier_comes_with_its_colours(get_config):
    first, second = (
        get_config(f"variant={variant},weights=torchvision") for variant in ("32s", "16s")
    )
    assert first.init.backbone == "timm/vgg16.tv_in1k"
    assert (second.init.backbone, second.init.model) == ("", "runs/fcn32s")
    for config in (first, second):
        check(config)
        options = config.model.options.to_dict()
        model = flaxseg.create_model(config.model.name, 5, backbone="vgg16", **options)
        assert model.normalization == flaxseg.layers.IMAGENET
