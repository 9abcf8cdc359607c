"""What every backbone promises: parameter counts, names, sizes, one tree for all output strides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import fresh, random_image, shapes_of, torch_tensors

from flaxseg.backbones import (
    VGG,
    MobileNetV2,
    ResNet,
    UNetEncoder,
    Xception,
    create_backbone,
    list_backbones,
)
from flaxseg.backbones.mobile import Stage
from flaxseg.backbones.resnet import BasicBlock
from flaxseg.weights import NAME_MAPS, load_weights

PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "mobilenet_v2": 3_504_872,
    "efficientnet_lite0": 4_652_008,
    # Three 3x3 convolutions for one of 7x7, and a wider projection behind them: 123,776 more.
    "resnet50_beta": 25_680_808,
    "resnet101_beta": 44_672_936,
    # Two paths of large kernels for a 1x1 and a 3x3 convolution in the last two stages.
    "resnet50_gcn": 22_545_780,
    "xception41": 24_920_560 + 2_049_000,
    "xception65": 37_867_312 + 2_049_000,
    "xception71": 40_289_736 + 2_049_000,
    "alexnet": 60_965_224,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
}

# Parts of one network that were never classifiers; see that network's tests.
ENCODERS = ("unet_encoder", "segnet_basic_encoder")
# AlexNet has one output stride and pads nothing at first.
WITHOUT_GRIDS = ("alexnet", *ENCODERS)
# The same blocks as in smaller networks, more often.
DEEPER = ("resnet34", "resnet101", "resnet152", "resnet101_beta", "xception65", "xception71")
GRIDS = [name for name in list_backbones() if name not in (*WITHOUT_GRIDS, *DEEPER)]


@functools.cache
def tree_at(name, output_stride):
    """The shapes of a backbone's variables at an output stride."""
    return shapes_of(create_backbone(name, output_stride=output_stride))


def count(params) -> int:
    return sum(value.size for value in jax.tree.leaves(params))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in DEEPER else name
        for name in list_backbones()
        if name not in ENCODERS
    ],
)
def test_parameters_are_those_of_the_papers_network(name):
    shapes = shapes_of(create_backbone(name, num_classes=1000), (227, 227))
    assert count(shapes["params"]) == PARAMETERS[name]


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("output_stride", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_all_output_strides_share_one_tree(name, output_stride):
    assert tree_at(name, output_stride) == tree_at(name, 32)


@pytest.mark.parametrize(
    "output_stride", [8, *(pytest.param(stride, marks=pytest.mark.slow) for stride in (16, 32))]
)
@pytest.mark.parametrize("name", GRIDS)
def test_features_have_the_size_of_their_stride(name, output_stride):
    backbone = create_backbone(name, output_stride=output_stride)
    for height, width in ((65, 97), (64, 96), (1, 1), (2, 3)):
        image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
        features = jax.eval_shape(backbone.apply, tree_at(name, 32), image)
        wanted = {f"c{level}": 2**level for level in range(1, 6)}
        if name.startswith("vgg"):  # also what its pools see
            wanted |= {f"conv{level}": 2 ** (level - 1) for level in range(1, 6)}
        assert features.keys() == wanted.keys()
        for level, feature in features.items():
            stride = min(wanted[level], output_stride)
            assert feature.shape[1:3] == (-(-height // stride), -(-width // stride))


def test_alexnet_says_what_it_needs():
    for options, smallest, size in (
        ({}, 39, (1, 1)),
        ({"num_classes": 7}, 199, (1, 1)),
        ({"first_padding": 16}, 7, (1, 1)),
    ):
        backbone = create_backbone("alexnet", **options)
        features = jax.eval_shape(
            lambda key, image, backbone=backbone: backbone.init_with_output(key, image)[0],
            jax.random.key(0),
            jax.ShapeDtypeStruct((1, smallest, smallest, 3), jnp.float32),
        )
        assert list(features.values())[-1].shape[1:3] == size
        with pytest.raises(ValueError, match=f"must be at least {smallest}"):
            shapes_of(backbone, (smallest - 1, 300))
    with pytest.raises(ValueError, match="only 32"):
        shapes_of(create_backbone("alexnet", output_stride=16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride_on": "5x5"}, "stride_on is '5x5'; it must be one of 3x3, 1x1"),
        ({"stride_unit": "second"}, "it must be one of first, last"),
        ({"pool": "keras"}, "it must be one of torch, caffe, tf"),
        ({"multi_grid": (1, 2, 4)}, "one factor for each of the 2 units"),
        ({"width": 0.0}, "width is 0.0; it must be more than 0"),
        ({"c2_before_addition": True, "stage_sizes": (1, 1, 1, 1)}, "at least 2 units"),
    ],
)
def test_impossible_resnets_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(create_backbone("resnet18", **options))


def test_width_scales_all_channels_and_a_deep_stem_has_the_channels_given():
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    backbone = create_backbone("resnet50", width=0.5, deep_stem=(64, 64, 128))
    features, variables = jax.eval_shape(backbone.init_with_output, jax.random.key(0), image)
    assert [feature.shape[3] for feature in features.values()] == [64, 128, 256, 512, 1024]
    stem = [variables["params"][f"conv1_{index}"]["kernel"].shape for index in (1, 2, 3)]
    assert stem == [(3, 3, 3, 32), (3, 3, 32, 32), (3, 3, 32, 64)]


def test_unknown_names_and_strides_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'resnet50'"):
        create_backbone("resnet5O")
    with pytest.raises(ValueError, match="output_stride is 4"):
        shapes_of(create_backbone("resnet18", output_stride=4))


def test_all_layouts_of_a_resnet_share_one_tree_over_output_strides():
    for options in (
        {"stride_unit": "last"},
        {"dilate_first_unit": True, "stride_on": "1x1", "multi_grid": (1, 2, 4)},
    ):
        trees = [
            shapes_of(create_backbone("resnet50", output_stride=s, **options)) for s in (8, 32)
        ]
        assert trees[0] == trees[1] == shapes_of(create_backbone("resnet50"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("resnet18", marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", marks=pytest.mark.slow),
        "efficientnet_lite0",
    ],
)
def test_a_finer_output_stride_computes_the_same_features_on_a_finer_grid(name):
    # With odd sizes TensorFlow's padding is symmetric too, and the identity holds up to the border.
    coarse, fine = (create_backbone(name, output_stride=stride) for stride in (32, 16))
    image = random_image(1, 65, 33)
    shapes = shapes_of(coarse)
    family = "resnet" if name.startswith("resnet") else name
    variables, _ = load_weights(shapes, torch_tensors(shapes, NAME_MAPS[family][0]))
    a = jax.jit(coarse.apply)(variables, image)["c5"]
    b = jax.jit(fine.apply)(variables, image)["c5"][:, ::2, ::2]
    np.testing.assert_allclose(a, b, atol=1e-4 * float(np.abs(a).max()))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"stride_unit": "last"}, id="resnet"),
        pytest.param({"middle_blocks": 1}, id="xception"),
    ],
)
def test_the_release_networks_compute_the_same_on_a_finer_grid(options):
    network = Xception if "middle_blocks" in options else ResNet
    coarse, fine = (network(width=1 / 16, output_stride=stride, **options) for stride in (32, 16))
    image, shapes = random_image(1, 65, 33), shapes_of(coarse)
    family = "xception41" if network is Xception else "resnet"
    tensors = torch_tensors(shapes, NAME_MAPS[family][0])
    variables, _ = load_weights(shapes, tensors, name_maps=NAME_MAPS[family][:1])
    a = jax.jit(coarse.apply)(variables, image)["c5"]
    b = jax.jit(fine.apply)(variables, image)["c5"][:, ::2, ::2]
    np.testing.assert_allclose(a, b, atol=1e-4 * float(np.abs(a).max()))


SMALL = {
    "resnet": functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), block=BasicBlock),
    "mobile": functools.partial(MobileNetV2, stages=(Stage(1, 8, 1, 1), Stage(2, 8, 2, 2))),
    "vgg": functools.partial(VGG, features=(8,) * 5, batch_norm=True),
    "unet": functools.partial(UNetEncoder, features=(8,) * 5, padding="torch", batch_norm=True),
}


@pytest.mark.parametrize(
    "name",
    [
        "resnet",
        pytest.param("mobile", marks=pytest.mark.slow),
        "vgg",
        pytest.param("unet", marks=pytest.mark.slow),
    ],
)
def test_remat_changes_neither_value_nor_gradient_nor_statistics(name):
    image = random_image(2, 17, 17)
    variables = fresh(SMALL[name]())
    results = []
    for remat in (False, True):
        backbone = SMALL[name](remat=remat)
        assert jax.tree.structure(shapes_of(backbone)) == jax.tree.structure(variables)

        def loss(params, backbone=backbone):
            features, updates = backbone.apply(
                {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
            )
            level = "conv2" if name == "unet" else "c2"
            return (features[level] ** 2).mean(), updates

        results.append(jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"]))
    scale = max(float(np.abs(g).max()) for g in jax.tree.leaves(results[0][1]))
    for x, y in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * max(scale, 1.0))


def test_a_backbone_that_cannot_recompute_its_blocks_says_which_can():
    for name in ("alexnet", "segnet_basic_encoder"):
        assert create_backbone(name, remat=False)
        with pytest.raises(ValueError, match=f"{name} cannot recompute.*: resnet18, .*vgg16"):
            create_backbone(name, remat=True)


@pytest.mark.slow
def test_all_of_xception_is_trained_with_remat_too():
    image = random_image(2, 17, 17)
    backbone = Xception(entry=((32, 2),), middle_blocks=1, width=1 / 32, remat=True)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.uniform(0.5, 1, x.shape).astype(np.float32), shapes_of(backbone)
    )

    @jax.jit
    def gradient(params):
        def loss(params):
            features, updates = backbone.apply(
                {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
            )
            return (features["c3"] ** 3).mean(), updates["batch_stats"]

        return jax.grad(loss, has_aux=True)(params)

    gradients, statistics = gradient(variables["params"])
    for path, value in jax.tree_util.tree_leaves_with_path(gradients):
        assert bool(np.isfinite(value).all()), jax.tree_util.keystr(path)
        assert bool(np.any(value != 0)), jax.tree_util.keystr(path)
    for new, old in zip(*map(jax.tree.leaves, (statistics, variables["batch_stats"])), strict=True):
        assert bool(np.any(new != old))


def test_frozen_batch_norm_uses_and_keeps_the_running_statistics():
    backbone = SMALL["resnet"](frozen_batch_norm=True)
    variables = fresh(backbone)

    @jax.jit
    def both(variables, image):
        trained = backbone.apply(variables, image, train=True, mutable=["batch_stats"])
        return *trained, backbone.apply(variables, image)

    trained, updates, wanted = both(variables, random_image(2, 17, 17))
    np.testing.assert_array_equal(trained["c5"], wanted["c5"])
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
