"""U-Net, SegNet, DeconvNet, Dilated-Net and ParseNet: parameters, sizes, options and mistakes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_image, relative_difference, shapes_of

import flaxseg
from flaxseg.backbones import UNetEncoder, create_backbone
from flaxseg.models.unet import check_tile
from flaxseg.variable_paths import flatten

KEY = jax.random.key(0)
NARROW = {"features": (4, 4, 8, 8, 8)}


def drawn(model, size=(33, 33)):
    """Variables drawn by NumPy, with statistics that are not those of fresh ones."""
    rng = np.random.default_rng(0)

    def value(path, leaf):
        if path[-1].key == "kernel":
            return (rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:3]))).astype("f")
        low, high = {"scale": (0.5, 1.5), "var": (0.5, 1.5)}.get(path[-1].key, (-0.1, 0.1))
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, shapes_of(model, size))


def count(params, *, norms=True):
    return sum(
        value.size
        for path, value in flatten(params).items()
        if norms or not re.search(r"bn[\d_]*/|_bn/", path)
    )


@pytest.mark.parametrize(
    ("name", "classes", "options", "parameters"),
    [
        ("unet", 2, {}, 31_031_810),
        ("segnet", 11, {}, 29_433_483),
        ("segnet_basic", 11, {}, 1_415_563),
        ("deconvnet", 21, {}, 251_772_245),
        ("dilatednet", 21, {"context": "none"}, 134_346_581),
        ("dilatednet", 21, {}, 134_346_581 + 28_392),
        ("dilatednet", 21, {"context": "large"}, 134_346_581 + 6_803_139),
        ("dilatednet", 19, {"context": "none"}, 134_346_581 - 2 * 4097),
        # LargeFOV but for its classifier, two lengths and a classifier of twice the channels.
        ("parsenet", 21, {}, 20_505_429 - 21 * 1025 + 2 * 1024 + 21 * 2049),
    ],
)
def test_parameters_are_those_of_the_specification(name, classes, options, parameters):
    params = shapes_of(flaxseg.create_model(name, classes, **options))["params"]
    assert count(params, norms=False) == parameters


def test_unet_has_the_parameters_of_one_channel_too():
    model = flaxseg.create_model("unet", 2)
    grey = jax.ShapeDtypeStruct((1, 64, 64, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), grey)["params"]
    assert count(params) == 31_030_658


def test_a_tile_of_572_pixels_gives_388():
    model = flaxseg.create_model("unet", 2, mirror=False)
    variables = shapes_of(model, (572, 572))
    image = jax.ShapeDtypeStruct((1, 572, 572, 3), jnp.float32)
    assert jax.eval_shape(model.apply, variables, image).logits.shape == (1, 388, 388, 2)
    features = jax.eval_shape(
        UNetEncoder().apply, {"params": variables["params"]["backbone"]}, image
    )
    assert {k: v.shape[1] for k, v in features.items()} == {
        "conv1": 568,
        "conv2": 280,
        "conv3": 136,
        "conv4": 64,
        "conv5": 28,
    }


def test_other_tiles_are_refused_with_the_nearest_sizes():
    for size in ((188, 188), (572, 204)):
        check_tile(size)
    message = "give it height 556 or 572 and width 188"
    with pytest.raises(ValueError, match=message):
        check_tile((560, 100))
    with pytest.raises(ValueError, match=message):
        shapes_of(flaxseg.create_model("unet", 2, mirror=False), (560, 100))


SMALL = {
    "unet": {"backbone_options": NARROW},
    "segnet": {"backbone_options": NARROW},
    "segnet_basic": {"backbone_options": {"features": 4}},
    "deconvnet": {"backbone_options": NARROW, "fc_features": 8},
    "dilatednet": {"backbone_options": NARROW | {"fc_features": (8, 8)}},
    "parsenet": {"backbone_options": NARROW, "features": 8, "levels": ("conv4", "conv5", "fc7")},
}


@pytest.mark.parametrize("name", SMALL)
def test_every_size_has_logits_of_its_own(name):
    for padding in ("valid", "torch") if name == "unet" else (None,):
        options = dict(SMALL[name])
        if padding is not None:
            options["backbone_options"] = NARROW | {"padding": padding}
        model = flaxseg.create_model(name, 3, **options)
        variables = shapes_of(model)
        for size in ((1, 1), (31, 300), (360, 480)):
            image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
            assert jax.eval_shape(model.apply, variables, image).logits.shape == (1, *size, 3)


@pytest.mark.parametrize(
    "name",
    [
        "unet",
        pytest.param("segnet", marks=pytest.mark.slow),
        pytest.param("dilatednet", marks=pytest.mark.slow),
        "parsenet",
    ],
)
def test_bfloat16_computes_close_by_with_float32_logits(name):
    image = random_image(1, 33, 20)
    exact = flaxseg.create_model(name, 2, **SMALL[name])
    variables = drawn(exact)
    wanted = jax.jit(exact.apply)(variables, image).logits
    half = flaxseg.create_model(name, 2, dtype=jnp.bfloat16, **SMALL[name])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes_of(half)))
    logits = jax.jit(half.apply)(variables, image).logits
    assert logits.dtype == jnp.float32
    # In the mean: where two values of a pool are nearly equal, rounding decides which is the
    # larger, and SegNet puts the value elsewhere.
    difference = float(np.abs(logits - wanted).mean() / np.abs(wanted).mean())
    assert 1e-5 < difference < 0.1


@pytest.mark.parametrize("name", ["unet", "segnet"])
def test_batch_norm_of_the_encoder_and_head_follow_the_run(name):
    options = {"backbone": "unet_encoder"} if name == "unet" else {}
    features = {"batch_norm": True, "padding": "torch"} if name == "unet" else {}
    model = flaxseg.create_model(
        name, 2, frozen_batch_norm=True, backbone_options=NARROW | features, **options
    )
    variables, image = drawn(model), random_image(2, 17, 17)
    rngs = {"dropout": jax.random.key(0)}
    _, updates = jax.jit(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], rngs=rngs)
    )(variables, image)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    heads = [path for path in flatten(variables["batch_stats"]) if "backbone" not in path]
    assert heads


def test_dilatednets_scores_are_those_that_are_upsampled():
    model = flaxseg.create_model("dilatednet", 2, **SMALL["dilatednet"])
    variables, image = drawn(model), random_image(1, 24, 16)
    prediction = jax.jit(lambda v, x: model.apply(v, x, train=True, rngs={"dropout": KEY}))(
        variables, image
    )
    scores = prediction.auxiliary["scores"]
    assert scores.shape == (1, 3, 2, 2)
    wanted = flaxseg.layers.resize(scores, (24, 16), align_corners=False)
    np.testing.assert_allclose(prediction.logits, wanted, rtol=1e-5, atol=1e-6)
    silent = flaxseg.create_model("dilatednet", 2, auxiliary=False, **SMALL["dilatednet"])
    assert (
        jax.eval_shape(
            lambda v, x: silent.apply(v, x, train=True, rngs={"dropout": KEY}), variables, image
        ).auxiliary
        == {}
    )


def test_global_context_reaches_every_pixel_of_parsenet():
    """A change in one corner is seen in the other, with the mean over the image alone."""
    image = random_image(1, 129, 129)
    changed = image.copy()
    changed[:, :8, :8] += 3.0
    for globally in (True, False):
        model = flaxseg.create_model(
            "parsenet",
            2,
            backbone_options=NARROW,
            features=8,
            rate=1,
            global_context=globally,
        )
        variables = drawn(model)
        apply = jax.jit(model.apply)
        difference = apply(variables, image).logits - apply(variables, changed).logits
        assert bool(np.any(difference[:, -1, -1] != 0)) == globally


def test_parsenet_does_not_see_the_magnitude_of_a_feature():
    """A layer a thousand times as large gives the same logits, with normalisation alone."""
    for scale, same in ((10.0, True), (None, False)):
        model = flaxseg.create_model(
            "parsenet", 2, backbone_options=NARROW, features=8, rate=1, initial_scale=scale
        )
        variables, image = drawn(model), random_image(1, 17, 17)
        larger = jax.tree.map(lambda leaf: leaf, variables)
        larger["params"]["fc7"] = {k: v * 1000 for k, v in variables["params"]["fc7"].items()}
        apply = jax.jit(model.apply)
        a, b = apply(variables, image).logits, apply(larger, image).logits
        assert (relative_difference(a, b) < 1e-4) == same


def test_vgg_gives_what_its_pools_read():
    image = jax.ShapeDtypeStruct((1, 33, 65, 3), jnp.float32)
    backbone = create_backbone("vgg16", **NARROW)
    features, _ = jax.eval_shape(backbone.init_with_output, KEY, image)
    assert set(features) == {f"{kind}{n}" for n in range(1, 6) for kind in ("conv", "c")}
    assert features["conv1"].shape == (1, 33, 65, 4)
    assert features["conv5"].shape == (1, 3, 5, 8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dilatednet", {"context": "huge"}, "context is 'huge'; it must be one of none, basic"),
        ("dilatednet", {"upsampling": "nearest"}, "upsampling is 'nearest'"),
        ("dilatednet", {"output_stride": 16}, "the front end's margin is for 8"),
        ("parsenet", {"levels": ("c6", "fc7")}, "levels has c6; the backbone's features are"),
        ("unet", {"backbone": "alexnet"}, "U-Net needs c1 to c5"),
        ("unet", {"output_stride": 16}, "output_stride is 16; UNetEncoder has no dilated form"),
        ("segnet", {"backbone": "alexnet"}, "needs c1 to c5"),
        ("segnet", {"convs": (1, 1)}, "a decoder of 2 stages"),
        ("segnet_basic", {"output_stride": 8}, "SegNetBasicEncoder has no dilated form"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(flaxseg.create_model(name, 2, **options), (227, 227))
