"""The recipe of LRR: every variant is a config whose outputs, frozen and slow parts the model has;
and rates by part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recipe_networks import create_model, load_recipe, trace

from flaxseg.errors import ConfigError
from flaxseg.training.config import default_config
from flaxseg.training.config_check import validate_config
from flaxseg.training.field_texts import numbers_in
from flaxseg.training.optimizer import frozen_parameters, make_optimizer

get_config = load_recipe("lrr")
CASES = [
    *((variant, "voc", "vgg16") for variant in ("32x", "16x", "8x", "4x")),
    ("4x", "voc", "resnet101"),
    ("4x", "camvid", "vgg16"),
    *(
        pytest.param("4x", data, "vgg16", marks=pytest.mark.slow)
        for data in ("cityscapes", "ade20k", "shapes")
    ),
]


@pytest.mark.parametrize(("variant", "data", "backbone"), CASES)
def test_every_recipe_is_valid_and_its_model_has_the_parts_it_names(variant, data, backbone):
    config = get_config(f"variant={variant},data={data},backbone={backbone}")
    validate_config(config)
    prediction, variables = trace(create_model(config, auxiliary=True), (64, 64))
    outputs = set(config.loss.outputs) - {"logits", "auxiliary"}
    assert outputs == set(prediction.auxiliary)
    assert (config.loss.outputs.logits.weight > 0) == (variant == "4x")
    fixed = frozen_parameters(variables["params"], [config.optimizer.frozen])
    frozen = [
        jax.tree_util.keystr(path)
        for path, is_fixed in jax.tree_util.tree_leaves_with_path(fixed)
        if is_fixed
    ]
    levels = {"32x": 1, "16x": 2, "8x": 3, "4x": 4}[variant]
    assert len(frozen) == levels + (2 if "dilation" in outputs else 0)
    assert all("reconstruction" in path and "kernel" in path for path in frozen)
    make_optimizer(
        variables["params"],
        lr_multipliers=numbers_in(config.optimizer.lr_multipliers, float),
        frozen=[config.optimizer.frozen],
    )


def test_the_voc_recipe_is_the_released_code():
    first, last = (get_config(f"variant={variant}") for variant in ("32x", "4x"))
    assert first.steps == 65 * (10_582 // 20)
    assert (first.optimizer.learning_rate, last.optimizer.learning_rate) == (1e-3, 6.25e-5)
    assert first.schedule.step_milestones == (50 * 529, 60 * 529)
    assert (first.init.model, last.init.model) == ("", "runs/lrr8x")
    rates = numbers_in(last.optimizer.lr_multipliers, float)
    effective = {name: 6.25e-5 * rate for name, rate in rates.items()}
    np.testing.assert_allclose(effective["coefficients_32x"], 6.3e-6, rtol=0.01)
    np.testing.assert_allclose(effective["coefficients_16x"], 3.1e-6, rtol=0.01)
    np.testing.assert_allclose(effective["coefficients_8x"], 7.8e-7, rtol=0.01)
    np.testing.assert_allclose(effective["coefficients_4x"], 1.2e-8, rtol=0.02)
    assert get_config("data=cityscapes").model.options.mask_window == 17
    assert get_config().model.options.background_class == 0


def test_rates_by_part_take_the_place_of_the_heads():
    params = {
        "backbone": {"kernel": jnp.ones(2)},
        "a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
        "b": {"kernel": jnp.ones(2)},
    }
    tx = make_optimizer(
        params,
        momentum=0.0,
        weight_decay=0.0,
        head_lr_multiplier=10.0,
        bias_lr_multiplier=2.0,
        lr_multipliers=numbers_in("a=0.5, backbone=0.1", float),
    )
    update, _ = tx.update(params, tx.init(params), params)
    assert float(update["a"]["kernel"][0]) == 0.5
    assert float(update["a"]["bias"][0]) == 1.0
    assert float(update["b"]["kernel"][0]) == 10.0
    np.testing.assert_allclose(update["backbone"]["kernel"], 0.1)
    with pytest.raises(ConfigError, match="lr_multipliers has 'c', which fits no parameter"):
        make_optimizer(params, lr_multipliers={"c": 1.0})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a", "'a' is not understood; write key=value"),
        ("=2", "'=2' is not understood; write key=value"),
        ("a=much", "'a' is 'much'; it must be a number"),
    ],
)
def test_rates_that_are_no_rates_are_named(text, problem):
    with pytest.raises(ConfigError, match=problem):
        numbers_in(text, float)
    config = default_config()
    config.optimizer.lr_multipliers = text
    with pytest.raises(ConfigError, match=rf"optimizer.lr_multipliers: {problem}"):
        validate_config(config)


def test_a_negative_rate_is_named():
    config = default_config()
    config.optimizer.lr_multipliers = "a=-1"
    with pytest.raises(ConfigError, match=r"optimizer.lr_multipliers of 'a' is -1.0; it must be"):
        validate_config(config)
