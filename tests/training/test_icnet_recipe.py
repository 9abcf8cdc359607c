"""The recipe of ICNet, and losses of its branches in a step of the train program."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

import flaxseg
from flaxseg.data import list_datasets
from flaxseg.errors import ConfigError
from flaxseg.models.icnet import check_size
from flaxseg.training.config import default_config, validate_config


@pytest.fixture(scope="module")
def get_config(repository):
    spec = importlib.util.spec_from_file_location("icnet", repository / "configs" / "icnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config


@pytest.mark.parametrize("variant", ["half", "full"])
@pytest.mark.parametrize("data", ["cityscapes", "voc", "ade20k", "camvid", "shapes"])
def test_every_recipe_makes_a_model_and_its_crops_fit_the_branches(get_config, data, variant):
    config = get_config(f"variant={variant},data={data}")
    if config.data.name in list_datasets():
        validate_config(config)
    check_size(config.data.crop_size)
    width = {"half": 0.5, "full": 1.0}[variant]
    model = flaxseg.create_model(
        config.model.name,
        19,
        backbone=config.model.backbone,
        output_stride=config.model.output_stride,
        auxiliary=True,
        **config.model.options.to_dict(),
    )
    assert model.width == width
    if data not in ("camvid", "shapes"):  # small backbones of their own
        assert model.backbone.width == width
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    prediction, _ = jax.eval_shape(
        lambda key, image: model.init_with_output(
            key, image, train=True, mutable=["params", "batch_stats"]
        ),
        jax.random.key(0),
        image,
    )
    # A weight for every output, as the step wants it.
    assert set(config.loss.auxiliary_weights) == {*prediction.auxiliary, "logits"}
    assert config.loss.auxiliary_weights.sub4 == 0.16
    assert config.loss.auxiliary_weights.sub24 == 0.4


def test_the_default_is_the_papers_network_on_cityscapes(get_config):
    config = get_config()
    assert (config.data.name, config.model.options.width) == ("cityscapes", 0.5)
    assert config.init.backbone == ""
    assert get_config("variant=full").init.backbone == "timm/resnet50.tv_in1k"


def test_weights_of_outputs_are_checked():
    config = default_config()
    with config.unlocked():
        config.loss.auxiliary_weights.update(sub4=-1.0, sub24="much")
    config.loss.auxiliary_weight = 0.4
    with pytest.raises(ConfigError) as info:
        validate_config(config)
    for part in (
        "loss.auxiliary_weights.sub4 is -1.0; it must be a number of at least 0",
        "loss.auxiliary_weights.sub24 is 'much'",
        "set one of them",
    ):
        assert part in str(info.value), str(info.value)
