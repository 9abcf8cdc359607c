"""The recipe of ICNet, and losses of its branches in a step of the train program."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

import flaxseg
from flaxseg.data import list_datasets
from flaxseg.models.icnet import check_size
from flaxseg.training.config_check import validate_config


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
    # A loss for every output, as the step wants it.
    outputs = config.loss.outputs
    assert set(outputs) == {*prediction.auxiliary, "logits", "auxiliary"}
    assert [outputs[name].weight for name in ("sub4", "sub24", "sub124")] == [0.16, 0.4, 1.0]
    assert all(outputs[name].resize_labels for name in prediction.auxiliary)
    assert outputs.logits.weight == 0.0


def test_the_default_is_the_papers_network_on_cityscapes(get_config):
    config = get_config()
    assert (config.data.name, config.model.options.width) == ("cityscapes", 0.5)
    assert config.init.backbone == ""
    assert get_config("variant=full").init.backbone == "timm/resnet50.tv_in1k"
