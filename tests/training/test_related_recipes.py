"""The recipes of U-Net, SegNet, DeconvNet, Dilated-Net and ParseNet: valid configs, models that can
be made, a weight for every output, and crops of which the networks lose nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe_networks
from recipe_networks import create_model, load_recipe

from flaxseg.data import dataset_info
from flaxseg.errors import ConfigError
from flaxseg.layers import resize
from flaxseg.training.config_check import validate_config
from flaxseg.training.field_texts import names_in
from flaxseg.training.optimizer import frozen_parameters
from flaxseg.weights import HUB_WEIGHTS

DATA = ("voc", "cityscapes", "ade20k", "camvid", "shapes")
VARIANTS = {
    "unet": ("valid", "same", "backbone"),
    "segnet": ("segnet", "basic"),
    "deconvnet": (None,),
    "dilatednet": ("front", "context", "joint"),
    "parsenet": ("global", "multi_layer", "baseline"),
}
# The first variant on all data sets, the others on one with the paper's backbone and one without.
CASES = [
    pytest.param(
        name,
        variant,
        data,
        marks=[]
        if data == "voc" or (variant, data) == (variants[0], "camvid")
        else [pytest.mark.slow],
    )
    for name, variants in VARIANTS.items()
    for variant, data in itertools.product(variants, DATA)
    if variant == variants[0] or data in ("voc", "camvid")
]


SIZE = (33, 33)


def recipe(name, argument=""):
    return load_recipe(name)(argument)


def parameters(model):
    return recipe_networks.parameters(model, SIZE)


@pytest.mark.parametrize(("name", "variant", "data"), CASES)
def test_every_recipe_is_valid_and_makes_a_model(name, variant, data):
    argument = f"data={data}" if variant is None else f"variant={variant},data={data}"
    config = recipe(name, argument)
    validate_config(config)
    model = create_model(config)
    params, outputs = parameters(model), recipe_networks.auxiliary_outputs(model, SIZE)
    assert set(config.loss.outputs) == {*outputs, "logits", "auxiliary"}
    frozen = frozen_parameters(params, names_in(config.optimizer.frozen))
    moving = {part for part, tree in frozen.items() if not all(jax.tree.leaves(tree))}
    assert moving == ({"context_module"} if variant == "context" else set(params))
    assert ("context_module" in params) == (variant in ("context", "joint"))
    if config.init.backbone in HUB_WEIGHTS and data != "camvid":
        assert model.normalization == HUB_WEIGHTS[config.init.backbone].normalization
    assert (config.init.backbone == "") or (config.init.model == "")
    if name == "unet" and variant == "valid" and data not in ("camvid", "shapes"):
        assert all(side % 16 == 4 for side in config.data.crop_size)
    if name == "dilatednet":
        # Labels are resized onto the scores: cells lie in the middle of their pixels without
        # padding, else on the first.
        padded = data in ("camvid", "shapes")
        assert config.loss.outputs.scores.align_corners == ("cells" if padded else False)
        assert all(side % 8 == padded for side in config.data.crop_size)


def test_dilatednets_loss_sees_scores_where_the_prediction_has_them():
    config = recipe("dilatednet", "data=shapes")
    size = 70, 47  # neither stretched to the corners nor to the borders would do
    model = create_model(config)

    @jax.jit
    def resized_and_logits(key):
        image = jnp.ones((1, *size, 3))
        keys = {"params": key, "dropout": key}
        prediction, _ = model.init_with_output(keys, image, train=True)
        scores = prediction.auxiliary["scores"]
        resized = resize(scores, size, align_corners=config.loss.outputs.scores.align_corners)
        return resized, prediction.logits

    np.testing.assert_array_equal(*resized_and_logits(jax.random.key(0)))


def test_the_published_networks():
    unet = create_model(recipe("unet"))
    assert (unet.backbone.padding, unet.backbone.batch_norm, unet.mirror) == ("valid", False, True)
    same = create_model(recipe("unet", "variant=same"))
    assert (same.backbone.padding, same.backbone.batch_norm) == ("torch", True)
    assert "stage1_1" in parameters(create_model(recipe("unet", "variant=backbone")))
    dilated = create_model(recipe("dilatednet", "variant=joint,context=large"))
    assert dilated.context == "large"
    assert dilated.backbone.conv_padding == "valid"
    ten = create_model(recipe("dilatednet", "variant=joint,data=cityscapes"))
    assert (len(ten.rates), ten.upsampling) == (9, "deconv")
    multi = create_model(recipe("parsenet", "variant=multi_layer"))
    assert set(parameters(multi)) >= {"norm_conv4", "norm_conv5", "norm_global"}
    assert "norm_fc7" not in parameters(create_model(recipe("parsenet", "variant=baseline")))


def test_stages_start_from_each_other():
    front, context, joint = (
        recipe("dilatednet", f"variant={name}") for name in ("front", "context", "joint")
    )
    assert (front.init.backbone, front.init.model) == ("VGG16.npz", "")
    assert (context.init.model, context.init.reinit_head) == ("runs/dilatednet_front", True)
    assert (joint.init.model, joint.init.reinit_head) == ("runs/dilatednet_context", False)
    rates = [config.optimizer.learning_rate for config in (front, context, joint)]
    assert rates == [1e-3, 1e-3, 1e-5]


def test_segnets_own_recipe_weighs_the_classes_of_camvid():
    config = recipe("segnet")
    validate_config(config)
    assert config.data.crop_size == (360, 480)
    weights = dict(zip(dataset_info("camvid").class_names, config.loss.class_weights, strict=True))
    assert (weights["Sky"], weights["Road"], weights["Bicyclist"]) == (0.2595, 0.1417, 7.3614)
    assert create_model(config).convs == (3, 3, 3, 2, 1)
    basic = create_model(recipe("segnet", "variant=basic"))
    assert (basic.kernel_size, basic.relu) == (7, False)
    assert basic.normalization.mean == (0.0, 0.0, 0.0)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"configs/segnet.py:variant=basics: .*Did you mean"):
        recipe("segnet", "variant=basics")
