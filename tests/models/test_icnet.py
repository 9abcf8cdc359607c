"""ICNet: what its sheet counts, its sizes, and its own options."""

import doctest
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_image, shapes_of

import flaxseg
from flaxseg.backbones import EfficientNetLite0, MobileNetV2, ResNet
from flaxseg.backbones.mobile import Stage
from flaxseg.models import icnet
from flaxseg.models.icnet import released_windows

# Channels that the layer table of the released network has, of a kernel and its BatchNorm:
# (kernel size, in, out).
STEM = [(3, 3, 32), (3, 32, 32), (3, 32, 64)]
HEAD = [
    *((1, 1024, 256), (3, 256, 128), (1, 256, 128), (3, 128, 128)),
    *((3, 3, 32), (3, 32, 32), (3, 32, 64), (1, 64, 128)),
]


def bottlenecks():
    """The convolutions of conv2_1 to conv5_3."""
    channels = 64
    for units, inner in ((3, 32), (4, 64), (6, 128), (3, 256)):
        for unit in range(units):
            yield from [(1, channels, inner), (3, inner, inner), (1, inner, 4 * inner)]
            if unit == 0:
                yield 1, channels, 4 * inner
            channels = 4 * inner


def count(tree) -> int:
    return sum(value.size for value in jax.tree.leaves(tree))


def test_parameters_are_those_of_the_layer_table():
    convs = [*STEM, *bottlenecks(), *HEAD]

    def parameters(factor):
        kernels = sum(
            k * k * (i if i == 3 else factor * i) * factor * o + 2 * factor * o for k, i, o in convs
        )
        return kernels + factor * 128 * 19 + 19

    assert parameters(1) == 6_699_987
    assert parameters(2) == 26_734_483
    for width, factor, guidance in ((0.5, 1, 7_334), (1.0, 2, 14_630)):
        without = shapes_of(flaxseg.create_model("icnet", 19, width=width, auxiliary=False))
        assert count(without["params"]) == parameters(factor)
        shapes = shapes_of(flaxseg.create_model("icnet", 19, width=width))
        assert count(shapes["params"]) == parameters(factor) + guidance
        assert count(shapes["batch_stats"]) == sum(2 * factor * o for _, _, o in convs)


def test_every_size_of_the_layer_table():
    """Of a 1025 x 2049 image, by the modules' outputs."""
    model = flaxseg.create_model("icnet", 19)
    image = jax.ShapeDtypeStruct((1, 1025, 2049, 3), jnp.float32)

    def outputs(image):
        variables = model.init(jax.random.key(0), image)
        _, state = model.apply(
            variables,
            image,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )
        return state["intermediates"]

    found = jax.eval_shape(outputs, image)

    def shape_of(path):
        value = found
        for part in path.split("/"):
            value = value[part]
        return jax.tree.leaves(value["__call__"])[0].shape[1:]

    assert {path: shape_of(path) for path in SIZES} == SIZES
    prediction = found["__call__"][0]
    assert prediction.logits.shape == (1, 1025, 2049, 19)
    assert {k: v.shape[1:3] for k, v in prediction.auxiliary.items()} == {
        "sub4": (65, 129),
        "sub24": (129, 257),
    }


SIZES = {
    "backbone/conv1_1": (257, 513, 32),
    "backbone/conv1_3": (257, 513, 64),
    "backbone/layer1_2": (129, 257, 128),
    "backbone/layer2_0": (65, 129, 256),
    "backbone/layer2_3": (33, 65, 256),
    "backbone/layer3_5": (33, 65, 512),
    "backbone/layer4_2": (33, 65, 1024),
    "pyramid_pooling": (33, 65, 1024),
    "conv5_4": (33, 65, 256),
    "fusion24/low_conv": (65, 129, 128),
    "fusion24": (65, 129, 128),
    "fusion12/low_conv": (129, 257, 128),
    "conv1_sub1": (513, 1025, 32),
    "conv3_sub1": (129, 257, 64),
    "fusion12": (129, 257, 128),
    "classifier": (257, 513, 19),
}


def test_dilation_and_strides_of_the_backbone():
    backbone = flaxseg.create_model("icnet", 19).backbone
    assert backbone.output_stride == 8
    assert backbone.stride_on == "1x1"
    assert backbone.dilate_first_unit
    full = flaxseg.create_model("icnet", 19, width=1.0, backbone_options={"deep_stem": ()})
    assert full.backbone.width == full.width == 1.0
    assert full.backbone.deep_stem == ()


def test_windows_of_the_release():
    windows, strides = released_windows((33, 65), (1, 2, 3, 6))
    assert windows == ((33, 65), (17, 33), (13, 25), (8, 15))
    assert strides == ((33, 65), (16, 32), (10, 20), (5, 10))
    windows, strides = released_windows((25, 4), (1, 3, 6))
    assert windows == ((25, 4), (9, 2), (5, 1))
    assert strides == ((25, 4), (8, 1), (4, 1))
    assert doctest.testmod(icnet).failed == 0


BACKBONE = functools.partial(ResNet, stage_sizes=(1, 2, 1, 1), width=0.125, output_stride=8)
MOBILE = functools.partial(
    MobileNetV2,
    stages=(
        Stage(1, 8, 1, 1),
        Stage(2, 8, 1, 2),
        Stage(2, 8, 2, 2),
        Stage(2, 8, 1, 2),
        Stage(2, 8, 1, 2),
    ),
    output_stride=8,
)


def small(**options):
    return flaxseg.create_model(
        "icnet", 2, **{"backbone": BACKBONE(), "output_stride": 8, "width": 0.0625} | options
    )


def values(model, size=(65, 65)):
    rng = np.random.default_rng(0)

    def value(path, leaf):
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        match path[-1].key:
            case "kernel":
                return noise * np.float32(np.sqrt(2 / np.prod(leaf.shape[:3])))
            case "scale" | "var":
                return np.float32(1) + np.float32(0.1) * np.abs(noise)
        return np.float32(0.1) * noise

    return jax.tree_util.tree_map_with_path(value, shapes_of(model, size))


@pytest.mark.parametrize("backbone", [BACKBONE, MOBILE])
def test_the_first_unit_of_c3_is_not_shrunk_and_what_follows_is(backbone):
    module = backbone()
    image = jax.ShapeDtypeStruct((1, 129, 65, 3), jnp.float32)
    shapes = jax.eval_shape(
        functools.partial(module.init_with_output, halve_c3=True), jax.random.key(0), image
    )[0]
    assert {name: feature.shape[1:3] for name, feature in shapes.items()} == {
        "c1": (65, 33),
        "c2": (33, 17),
        "c3_1": (17, 9),
        "c3": (9, 5),
        "c4": (9, 5),
        "c5": (9, 5),
    }


def test_the_trunk_sees_every_second_cell_of_what_comes_before_it():
    """At sizes of 32 k + 1 the shrunk features are a subset of the full ones, so the second unit
    does not see a change of those in between."""
    module = MOBILE()
    variables = values(module)
    image = random_image(1, 65, 65)
    features = jax.jit(functools.partial(module.apply, halve_c3=True))(variables, image)
    plain = jax.jit(module.apply)(variables, image)
    np.testing.assert_allclose(features["c2"], plain["c2"], atol=1e-6)
    # The first block at stride 8 is the same with and without what follows.
    first = MOBILE(stages=(*module.stages[:2], module.stages[2]._replace(blocks=1)))
    alone = jax.jit(first.apply)(variables, image)["c3"]
    np.testing.assert_allclose(features["c3_1"], alone, atol=1e-5)
    assert features["c5"].shape[1:3] == (5, 5)


def test_released_and_adaptive_pooling_differ_where_the_sheet_says():
    image = random_image(1, 225, 225)  # 7 x 7 cells: 3 and 6 bins do not divide them
    released, adaptive = small(), small(windows="adaptive")
    one = {"bins": (1,)}
    models = released, adaptive, small(**one), small(**one, windows="adaptive")
    # One program, so that what the four have in common is compiled once.
    a, b, c, d = jax.jit(lambda *vx: [model.apply(*vx).logits for model in models])(
        values(released), image
    )
    assert float(np.abs(a - b).max()) > 1e-3 * float(np.abs(a).max())
    np.testing.assert_allclose(c, d, atol=1e-5)
    with pytest.raises(ValueError, match=r"windows is 'caffe'; it must be"):
        shapes_of(small(windows="caffe"))


@pytest.mark.parametrize("backbone", [BACKBONE, MOBILE])
def test_auxiliary_outputs(backbone):
    model = small(backbone=backbone(), quarter_logits=True)
    variables = shapes_of(model)
    assert {"classifier"} <= set(variables["params"]["fusion24"])
    image = jax.ShapeDtypeStruct((2, 65, 97, 3), jnp.float32)
    train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
    prediction, _ = jax.eval_shape(train, variables, image)
    assert {k: v.shape for k, v in prediction.auxiliary.items()} == {
        "sub4": (2, 5, 7, 2),
        "sub24": (2, 9, 13, 2),
        "sub124": (2, 17, 25, 2),
    }
    assert {v.dtype for v in prediction.auxiliary.values()} == {jnp.dtype("float32")}
    assert jax.eval_shape(model.apply, variables, image).auxiliary == {}
    plain = small(backbone=backbone(), auxiliary=False)
    assert "classifier" not in shapes_of(plain)["params"]["fusion24"]


def test_the_last_upsampling_of_the_quarter_logits_gives_the_logits():
    model = small(quarter_logits=True, frozen_batch_norm=True)
    variables = values(model)
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    prediction, _ = train(variables, random_image(1, 33, 65))
    quarter = prediction.auxiliary["sub124"]
    assert quarter.shape[1:3] == (9, 17)
    np.testing.assert_allclose(prediction.logits[:, ::4, ::4], quarter, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((721, 769), "height 705 or 737 and width 769"),
        ((1024, 2048), "height 993 or 1025 and width 2017 or 2049"),
        ((1, 64), "height 33 and width 33 or 65"),
    ],
)
def test_strict_sizes_name_the_nearest_that_work(size, message):
    model = small(strict_sizes=True)
    with pytest.raises(ValueError, match=re.escape(message)):
        shapes_of(model, size)


def test_a_width_of_nothing_is_refused():
    with pytest.raises(ValueError, match="width is 0; it must be more than 0"):
        shapes_of(small(width=0))


def test_strict_sizes_change_nothing_where_the_sizes_fit():
    image = random_image(1, 65, 97)
    variables = values(small())
    np.testing.assert_array_equal(
        jax.jit(small(strict_sizes=True).apply)(variables, image).logits,
        jax.jit(small().apply)(variables, image).logits,
    )


def test_a_backbone_that_cannot_be_split_is_refused():
    class Plain(EfficientNetLite0):
        call_options = ()

        def __call__(self, image, *, train=False):
            return {}

    with pytest.raises(
        ValueError, match=r"Plain does not declare halve_c3.*ICNet.*use one of resnet18"
    ):
        shapes_of(small(backbone=Plain(output_stride=8)))
