"""FCN against a transcription of the released nets and against torchvision; sizes and parameters of
the papers."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import random_image, relative_difference, shapes_of, torch_tensors

import flaxseg
from flaxseg.backbones import VGG, AlexNet
from flaxseg.weights import load_weights
from flaxseg.weights.layouts.fcn_layout import TORCHVISION_FCN, caffe_fcn_map

TOLERANCE = 1e-4
VARIANTS = {"fcn32s": "32s", "fcn16s": "16s", "fcn8s": "8s", "fcn8s_atonce": "at-once"}


def reference_module():
    peers.import_torch()
    path = pathlib.Path(__file__).parent.parent / "reference" / "fcn_torch.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def narrow(name, num_classes=5, **options):
    """The model with few channels in fc6 and fc7; the rest is the paper's."""
    return flaxseg.create_model(
        name, num_classes, backbone_options={"fc_features": (16, 16)}, **options
    )


def small(name, num_classes=3, **options):
    """The model with few channels everywhere."""
    if name == "fcn_alexnet":
        backbone = AlexNet(features=(4,) * 5, first_padding=100, fc_features=(8, 8))
    else:
        backbone = VGG(features=(4,) * 5, first_padding=100, fc_features=(8, 8), fc_padding="valid")
    return flaxseg.create_model(name, num_classes, backbone=backbone, **options)


def variables_of(model, image_shape=(1, 33, 33, 3), seed=0):
    """Random variables, not zero in the scores."""
    rng = np.random.default_rng(seed)
    image = jax.ShapeDtypeStruct(image_shape, jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    return jax.tree.map(
        lambda s: (rng.normal(size=s.shape) * np.sqrt(2 / max(np.prod(s.shape[:3]), 1))).astype(
            np.float32
        ),
        shapes,
    )


def check_with_reference(model, net, name_map):
    shapes = shapes_of(model)
    tensors = torch_tensors(shapes, name_map)
    for path in ("upscore2", "upscore_pool4", "upscore8"):
        if f"{path}.weight" in tensors:  # far from bilinear, and of the net's size
            shape = net.state_dict()[f"{path}.weight"].shape
            rng = np.random.default_rng(len(path))
            tensors[f"{path}.weight"] = rng.normal(size=shape).astype(np.float32) * 0.3
    peers.load_state(net, tensors)
    variables, report = load_weights(shapes, tensors, name_maps=[name_map])
    assert not report.unused
    image = random_image(1, 41, 30) * 50
    # Their images are blue, green, red.
    wanted = peers.from_torch(net(peers.to_torch(image[..., ::-1])))
    logits = jax.jit(model.apply)(variables, image).logits
    difference = relative_difference(logits, wanted)
    print(difference)
    assert difference < TOLERANCE
    return variables, image, wanted


@pytest.mark.peer
@pytest.mark.parametrize("name", VARIANTS)
def test_released_nets_equal_their_transcription(name):
    net = reference_module().FCN(VARIANTS[name], 5, fc=16)
    model = narrow(name)
    variables, image, wanted = check_with_reference(model, net, caffe_fcn_map(name))
    if name == "fcn8s":
        # Scaling is a reparametrisation: staged weights divided by the scales give the same.
        params = dict(variables["params"])
        for score, factor in (("score_c4", 0.01), ("score_c3", 0.0001)):
            params[score] = {**params[score], "kernel": params[score]["kernel"] / factor}
        atonce = jax.jit(narrow("fcn8s_atonce").apply)({"params": params}, image).logits
        assert relative_difference(atonce, wanted) < TOLERANCE


@pytest.mark.peer
def test_learned_deconvolutions_equal_their_transcription():
    net = reference_module().FCN("8s", 3, 16, ("upscore2", "upscore_pool4", "upscore8"))
    model = narrow("fcn8s", 3, learned_upsampling="dense", learned_last_upsampling=True)
    check_with_reference(model, net, caffe_fcn_map("fcn8s"))


@pytest.mark.peer
def test_fcn_alexnet_equals_its_transcription():
    net = reference_module().FCNAlexNet(5, fc=16)
    check_with_reference(narrow("fcn_alexnet"), net, caffe_fcn_map("fcn_alexnet"))


@pytest.mark.peer
def test_dilated_fcn_equals_torchvision():
    net = peers.import_torchvision().models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, num_classes=4, aux_loss=True
    )
    model = flaxseg.create_model("fcn", 4, auxiliary=True)
    shapes = shapes_of(model)
    tensors = torch_tensors(shapes, TORCHVISION_FCN)
    peers.load_state(net, tensors)
    variables, report = load_weights(shapes, tensors, name_maps=[TORCHVISION_FCN])
    assert not report.unused
    image = random_image(1, 65, 50)
    wanted = peers.from_torch(net(peers.to_torch(image))["out"])
    logits = jax.jit(model.apply)(variables, image).logits
    assert relative_difference(logits, wanted) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("fcn32s", 21, 134_346_581),
        ("fcn16s", 21, 134_357_354),
        ("fcn8s", 21, 134_362_751),
        ("fcn8s_atonce", 21, 134_362_751),
        ("fcn_alexnet", 21, 56_954_261),
        ("fcn32s", 60, 134_506_364),
        ("fcn16s", 60, 134_537_144),
        ("fcn8s", 60, 134_552_564),
        ("fcn32s", 40, 134_424_424),
    ],
)
def test_parameters_are_those_of_the_released_nets(name, num_classes, parameters):
    params = shapes_of(flaxseg.create_model(name, num_classes))["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == parameters


def test_parameters_of_the_dilated_form_are_torchvisions():
    for backbone, parameters in (("resnet50", 35_322_218), ("resnet101", 54_314_346)):
        model = flaxseg.create_model("fcn", 21, backbone=backbone, auxiliary=True)
        assert sum(p.size for p in jax.tree.leaves(shapes_of(model)["params"])) == parameters


@pytest.mark.parametrize(
    ("name", "dense"),
    [("fcn32s", 1_806_336), ("fcn16s", 458_640), ("fcn8s", 127_008)],
)
def test_dense_deconvolutions_have_the_released_tensors_sizes(name, dense):
    fixed, learned = (
        sum(p.size for p in jax.tree.leaves(shapes_of(small(name, 21, **options))))
        for options in ({}, {"learned_upsampling": "dense", "learned_last_upsampling": True})
    )
    assert learned - fixed == dense


@pytest.mark.parametrize("name", [*VARIANTS, "fcn_alexnet"])
def test_any_size_has_logits_of_its_own(name):
    model = small(name)
    variables = shapes_of(model)
    sizes = [(n, 513 - n) for n in range(1, 130, 32)] + [(227, 500), (375, 500), (1, 1)]
    for size in sizes:
        image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        assert jax.eval_shape(model.apply, variables, image).logits.shape == (1, *size, 3)


@pytest.mark.parametrize("name", [*VARIANTS, "fcn_alexnet"])
def test_scores_begin_at_zero(name):
    model, image = small(name), random_image(1, 17, 20)
    variables = model.init(jax.random.key(0), image)
    np.testing.assert_array_equal(model.apply(variables, image).logits, 0.0)


@pytest.mark.usefixtures("no_leaked_tracers")
@pytest.mark.parametrize(
    ("name", "learned"),
    [("fcn8s", "none"), ("fcn8s", "depthwise"), ("fcn8s", "dense"), ("fcn_alexnet", "none")],
)
def test_every_parameter_is_trained(name, learned):
    model = small(name, learned_upsampling=learned, learned_last_upsampling=learned != "none")
    variables = variables_of(model)
    kernels = {k for k in variables["params"] if k.startswith("upscore")}
    assert kernels == (set() if learned == "none" else {"upscore_c4", "upscore_c3", "upscore"})

    @jax.jit
    def gradient(variables):
        def loss(variables):
            prediction = model.apply(
                variables, random_image(1, 33, 33), train=True, rngs={"dropout": jax.random.key(0)}
            )
            return (prediction.logits @ np.float32([0, 1, 2])).sum()

        return jax.grad(loss)(variables)

    for path, value in jax.tree_util.tree_leaves_with_path(gradient(variables)):
        assert bool(np.isfinite(value).all()), jax.tree_util.keystr(path)
        assert bool(np.any(value != 0)), jax.tree_util.keystr(path)


def test_other_backbones_need_no_border():
    model = flaxseg.create_model("fcn8s", 3, backbone="resnet18")
    params = shapes_of(model)["params"]
    assert {"score_fr", "score_c4", "score_c3"} <= set(params)
    assert params["score_c3"]["kernel"].shape == (1, 1, 128, 3)
    assert model.normalization == flaxseg.layers.IMAGENET
    # Constant scores give constant logits up to the border.
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes_of(model))
    params["params"]["score_c4"]["bias"] += jnp.arange(3.0)
    logits = jax.jit(model.apply)(params, random_image(1, 37, 50)).logits
    np.testing.assert_allclose(logits, np.broadcast_to(np.arange(3.0), logits.shape), atol=1e-6)


def test_defaults_are_the_paper_and_can_be_changed():
    model = flaxseg.create_model("fcn8s", 21)
    assert (model.backbone.first_padding, model.backbone.fc_features) == (100, (4096, 4096))
    assert model.normalization == flaxseg.layers.CAFFE
    plain = flaxseg.create_model("fcn8s", 21, backbone_options={"first_padding": 1})
    assert plain.backbone.fc_padding == "valid"


def test_mistakes_are_named():
    image = random_image(1, 33, 33)
    init = functools.partial(jax.eval_shape, image=image)
    for options, message in (
        ({"skip_scales": (0.1,)}, "one factor for each"),
        ({"offsets": (5, 9)}, "one for each of the skips"),
        ({"learned_last_upsampling": True}, "must be 'depthwise' or 'dense'"),
    ):
        model = small("fcn8s", **options)
        with pytest.raises(ValueError, match=message):
            init(lambda image, model=model: model.init(jax.random.key(0), image))
    with pytest.raises(ValueError, match="output_stride is 16; FCN's own nets have 32"):
        shapes_of(flaxseg.create_model("fcn8s", 2, output_stride=16))
    model = flaxseg.create_model("fcn8s", 2, backbone="resnet18", learned_upsampling="dense")
    with pytest.raises(ValueError, match="lacks the border"):
        shapes_of(model)
