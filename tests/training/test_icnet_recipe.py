"""The recipe of ICNet, and losses of its branches in a step of the train program."""

import pytest
from recipe_networks import auxiliary_outputs, create_model, every_recipe, load_recipe

from flaxseg.models.icnet import check_size
from flaxseg.training.config_check import validate_config

get_config = load_recipe("icnet")


@pytest.mark.parametrize(("variant", "data"), every_recipe(("half", "full")))
def test_every_recipe_makes_a_model_and_its_crops_fit_the_branches(variant, data):
    config = get_config(f"variant={variant},data={data}")
    validate_config(config)
    check_size(config.data.crop_size)
    width = {"half": 0.5, "full": 1.0}[variant]
    model = create_model(config, 19, auxiliary=True)
    assert model.width == width
    if data not in ("camvid", "shapes"):  # small backbones of their own
        assert model.backbone.width == width
    # A loss for every output, as the step wants it.
    outputs, auxiliary = config.loss.outputs, auxiliary_outputs(model)
    assert set(outputs) == {*auxiliary, "logits", "auxiliary"}
    assert [outputs[name].weight for name in ("sub4", "sub24", "sub124")] == [0.16, 0.4, 1.0]
    assert all(outputs[name].resize_labels for name in auxiliary)
    assert outputs.logits.weight == 0.0


def test_the_default_is_the_papers_network_on_cityscapes():
    config = get_config()
    assert (config.data.name, config.model.options.width) == ("cityscapes", 0.5)
    assert config.init.backbone == ""
    assert get_config("variant=full").init.backbone == "timm/resnet50.tv_in1k"
