"""The recipes of DeepLab v1 and v2: valid configs, models that can be made, weights for every
output, and rates for the parts that the released solvers name."""

import jax
import numpy as np
import pytest
from recipe_networks import auxiliary_outputs, create_model, every_recipe, load_recipe, parameters

from flaxseg.errors import ConfigError
from flaxseg.training.config import default_config
from flaxseg.training.config_check import validate_config
from flaxseg.training.field_texts import names_in
from flaxseg.training.optimizer import frozen_parameters, make_optimizer


def network(config):
    """The model of a config, its parameters' shapes and the names of its auxiliary outputs."""
    model = create_model(config, auxiliary=True)
    return model, parameters(model), auxiliary_outputs(model)


@pytest.mark.parametrize(("name", "data"), every_recipe(("deeplab_v1", "deeplab_v2")))
def test_every_recipe_makes_a_model_with_a_weight_for_each_output(name, data):
    config = load_recipe(name)(f"data={data}")
    validate_config(config)
    _, params, outputs = network(config)
    assert set(config.loss.outputs) == {*outputs, "logits", "auxiliary"}
    for output, own in config.loss.outputs.items():
        assert own.weight == (output in outputs)
        assert output not in outputs or (own.resize_labels and own.align_corners)
    for field in (config.optimizer.head, config.optimizer.frozen):
        frozen_parameters(params, names_in(field))  # each entry fits
    unit = 32 if data in ("voc", "cityscapes", "ade20k") and name == "deeplab_v2" else 8
    assert all(side % unit == 1 for side in config.data.crop_size)


@pytest.mark.parametrize(
    ("name", "variant", "expected"),
    [
        ("deeplab_v1", "large", {"kernel_size": 3, "rate": 12, "average_pool": True}),
        ("deeplab_v1", "7x7", {"kernel_size": 7, "rate": 4, "average_pool": False}),
        ("deeplab_v1", "4x4_large", {"kernel_size": 4, "rate": 8, "average_pool": False}),
        ("deeplab_v2", "vgg16_aspp_s", {"rates": (2, 4, 8, 12), "scales": (1.0,)}),
        ("deeplab_v2", "resnet101_large_fov", {"rates": (12,), "scales": (1.0, 0.75, 0.5)}),
    ],
)
def test_variants(name, variant, expected):
    options = load_recipe(name)(f"variant={variant}").model.options
    assert {key: options[key] for key in expected} == expected


def test_rates_and_frozen_parts_of_version_2():
    config = load_recipe("deeplab_v2")()
    model, params, _ = network(config)
    assert model.normalization.mean == (122.675, 116.669, 104.008)
    frozen = frozen_parameters(params, names_in(config.optimizer.frozen))
    frozen_count = sum(
        p.size * f for p, f in zip(jax.tree.leaves(params), jax.tree.leaves(frozen), strict=True)
    )
    assert frozen_count == 105_344
    assert (config.optimizer.learning_rate, config.optimizer.accumulate_steps) == (2.5e-4, 10)
    assert (tuple(config.data.scale), config.data.scale_step) == ((0.5, 1.5), 0.25)


def test_rates_of_the_head_of_version_1():
    config = load_recipe("deeplab_v1")()
    params = {
        "backbone": {"conv1_1": {"kernel": np.ones(1), "bias": np.ones(1)}},
        "fc6": {"kernel": np.ones(1), "bias": np.ones(1)},
        "classifier": {"kernel": np.ones(1), "bias": np.ones(1)},
    }
    optimizer = config.optimizer
    tx = make_optimizer(
        params,
        momentum=0.0,
        weight_decay=0.0,
        head=names_in(optimizer.head),
        head_lr_multiplier=optimizer.head_lr_multiplier,
        bias_lr_multiplier=optimizer.bias_lr_multiplier,
    )
    update, _ = tx.update(params, tx.init(params), params)
    got = {
        name: (float(update[name]["kernel"][0]), float(update[name]["bias"][0]))
        for name in ("fc6", "classifier")
    }
    assert got["fc6"] == (1.0, 2.0)
    assert got["classifier"] == (10.0, 20.0)
    assert float(update["backbone"]["conv1_1"]["kernel"][0]) == 1.0


def test_msc_starts_from_large_fov_and_trains_what_is_new():
    config = load_recipe("deeplab_v1")("variant=msc")
    _, params, _ = network(config)
    frozen = frozen_parameters(params, names_in(config.optimizer.frozen))
    moving = {name for name, tree in frozen.items() if not all(jax.tree.leaves(tree))}
    assert moving == {"classifier", *(f"{key}_mlp" for key in ("image", "c1", "c2", "c3", "c4"))}
    assert (config.init.backbone, config.init.model) == ("", "runs/large_fov")


def test_a_head_that_fits_nothing_is_refused():
    params = {"backbone": {"kernel": np.ones(1)}, "classifier": {"kernel": np.ones(1)}}
    with pytest.raises(ConfigError, match=r"head has 'clasifier'.*Did you mean 'classifier'"):
        make_optimizer(params, head=("clasifier",))


def test_names_in_a_field():
    assert names_in("") == ()
    assert names_in(" a/b , c* ,") == ("a/b", "c*")
    assert default_config().optimizer.frozen == ""
