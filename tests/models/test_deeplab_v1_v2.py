"""DeepLab v1 and v2: sizes and counts of the specification, the four losses, and equality with a
transcription of the layer tables."""

import functools
import importlib.util
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import fresh, random_image, relative_difference, shapes_of, torch_tensors

import flaxseg
from flaxseg.backbones import VGG, ResNet
from flaxseg.layers import AtrousConv, pad_to_grid, resize
from flaxseg.models.deeplab_v1 import FIELDS_OF_VIEW, VGG_OPTIONS
from flaxseg.models.deeplab_v2 import RATES, RESNET_OPTIONS
from flaxseg.training.losses import OutputLoss
from flaxseg.training.objective import Objective
from flaxseg.training.optimizer import make_optimizer
from flaxseg.training.schedules import make_schedule
from flaxseg.training.state import create_state
from flaxseg.training.step import make_train_step
from flaxseg.variable_paths import flatten
from flaxseg.weights import NameMap, load_weights
from flaxseg.weights.backbone_names.resnet_names import CaffeResNetNames, caffe_resnet_module
from flaxseg.weights.layouts.deeplab_v1_v2_layout import deeplab_resnet_module, deeplab_vgg_module

TOLERANCE = 1e-4
THREE = (1.0, 0.75, 0.5)
WIDTHS = (8, 12, 16, 20, 24)
NARROW_VGG = {"features": WIDTHS, "output_stride": 8, **VGG_OPTIONS}
# One convolution a stage, for what does not depend on the depth.
SHALLOW_VGG = {**NARROW_VGG, "stage_sizes": (1,) * 5}
NARROW_RESNET = {
    "stage_sizes": (1, 1, 2, 1),
    "width": 0.125,
    "output_stride": 8,
    **RESNET_OPTIONS,
}
VGG_NAMES = NameMap(
    "Caffe", deeplab_vgg_module("voc12"), bgr=("backbone/conv1_1", "image_mlp/conv1")
)


def count(params) -> int:
    return sum(p.size for p in jax.tree.leaves(params))


def narrow_v1(num_classes=5, *, dtype=jnp.float32, features=16, vgg=NARROW_VGG, **options):
    return flaxseg.create_model(
        "deeplabv1",
        num_classes,
        backbone=VGG(**vgg, dtype=dtype),
        output_stride=8,
        dtype=dtype,
        features=features,
        **options,
    )


def narrow_v2(num_classes=5, *, vgg=None, dtype=jnp.float32, frozen=True, **options):
    if vgg:
        net = VGG(**vgg, dtype=dtype)
        options.setdefault("fc_features", 16)
    else:
        net = ResNet(**NARROW_RESNET, frozen_batch_norm=frozen, dtype=dtype)
    return flaxseg.create_model(
        "deeplabv2", num_classes, backbone=net, output_stride=8, dtype=dtype, **options
    )


# The specification's numbers


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("deeplabv1", {}, 20_505_429),
        ("deeplabv1", FIELDS_OF_VIEW["7x7"], 134_346_581),
        ("deeplabv1", FIELDS_OF_VIEW["4x4"], 65_140_565),
        ("deeplabv1", FIELDS_OF_VIEW["4x4_large"], 65_140_565),
        ("deeplabv1", {"multi_scale": True}, 20_505_429 + 1_192_576 + 13_440),
        ("deeplabv2", {"backbone": "vgg16"}, 37_877_652),
        ("deeplabv2", {"backbone": "vgg16", "rates": RATES["aspp_s"]}, 37_877_652),
        ("deeplabv2", {"backbone": "vgg16", "rates": RATES["large_fov"]}, 20_505_429),
        ("deeplabv2", {}, 44_048_532),
        ("deeplabv2", {"scales": THREE}, 44_048_532),
        ("deeplabv2", {"rates": RATES["large_fov"]}, 42_887_253),
    ],
)
def test_parameters_are_those_of_the_specification(name, options, parameters):
    assert count(shapes_of(flaxseg.create_model(name, 21, **options))["params"]) == parameters


def test_gamma_and_beta_are_the_frozen_share_of_version_2():
    flat = flatten(shapes_of(flaxseg.create_model("deeplabv2", 21)))
    norms = [v.size for path, v in flat.items() if path.startswith("params") and "/bn" in path]
    downsample = [
        v.size for k, v in flat.items() if k.startswith("params") and "downsample_bn" in k
    ]
    assert sum(norms) + sum(downsample) == 105_344


def train_shapes(model, size):
    prediction, _ = jax.eval_shape(
        functools.partial(model.apply, train=True, mutable=["batch_stats"]),
        shapes_of(model),
        jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32),
        rngs={"dropout": jax.random.key(0)},
    )
    assert prediction.logits.shape == (1, size, size, 5)
    return {name: value.shape[1:3] for name, value in prediction.auxiliary.items()}


@pytest.mark.parametrize(
    ("size", "cells"), [(321, 41), pytest.param(513, 65, marks=pytest.mark.slow)]
)
def test_sizes_of_the_scores(size, cells):
    assert train_shapes(narrow_v1(), size) == {"scale100": (cells, cells)}
    assert train_shapes(narrow_v1(multi_scale=True), size) == {"scale100": (cells, cells)}
    assert train_shapes(narrow_v2(), size) == {"scale100": (cells, cells)}
    half = (cells + 1) // 2
    assert train_shapes(narrow_v2(scales=THREE), size) == {
        "fused": (cells, cells),
        "scale100": (cells, cells),
        "scale75": (cells, cells),
        "scale50": (half, half),
    }


def test_the_nets_are_the_papers_own_by_default():
    model = flaxseg.create_model("deeplabv2", 21)
    assert (model.backbone.stride_on, model.backbone.dilate_first_unit) == ("1x1", True)
    assert len(model.backbone.stage_sizes) == 4
    model = flaxseg.create_model("deeplabv1", 21)
    assert (model.backbone.pool_window, model.backbone.dilated_pools) == (3, False)
    assert model.normalization == flaxseg.layers.CAFFE
    options = {"stride_on": "3x3"}
    model = flaxseg.create_model("deeplabv2", 21, backbone_options=options)
    assert (model.backbone.stride_on, model.backbone.dilate_first_unit) == ("3x3", True)


# Equality with the transcription


def reference():
    peers.import_torch()
    path = pathlib.Path(__file__).parent.parent / "reference" / "deeplab_v1_v2_torch.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bgr(image):
    return peers.to_torch(image[..., ::-1])


@pytest.mark.peer
@pytest.mark.parametrize("field", FIELDS_OF_VIEW)
def test_fields_of_view_equal_the_transcription(field):
    model = narrow_v1(**{**FIELDS_OF_VIEW[field], "features": 16})
    tensors = torch_tensors(shapes_of(model), VGG_NAMES)
    variables, _ = load_weights(shapes_of(model), tensors, name_maps=[VGG_NAMES])
    net = reference().VGG(
        5,
        WIDTHS,
        fc=16,
        kernel=model.kernel_size,
        rate=model.rate,
        average_pool=model.average_pool,
    )
    peers.load_state(net, tensors)
    image = random_image(2, 45, 98)  # on a canvas of 49 x 105
    wanted = peers.from_torch(reference().canvas(net, bgr(image), 8))
    assert relative_difference(jax.jit(model.apply)(variables, image).logits, wanted) < TOLERANCE


@pytest.mark.peer
@pytest.mark.parametrize("mode", ["train", "eval", "eval at the output stride"])
def test_msc_equals_the_transcription(mode):
    at_input = mode == "eval"
    model = narrow_v1(multi_scale=True, dropout=0.0, fuse_at_input=at_input or mode == "train")
    shapes = shapes_of(model)
    tensors = torch_tensors(shapes, VGG_NAMES)
    variables, _ = load_weights(shapes, tensors, name_maps=[VGG_NAMES])
    # The branches' biases are part of the one bias here; they are tested with the names.
    zeros = {f"{name}_ms.bias": np.zeros(5, np.float32) for name in ("data", *POOLS)}
    net = reference().VGG(5, WIDTHS, fc=16, msc=128)
    peers.load_state(net, tensors | zeros).train(not at_input)
    image = random_image(2, 49, 33)
    scores = net(bgr(image))
    if not at_input:
        assert scores.shape[2:] == (7, 5)
    wanted = peers.from_torch(scores)
    if mode == "train":
        apply = jax.jit(functools.partial(model.apply, train=True))
        value = apply(variables, image, rngs={"dropout": jax.random.key(0)}).auxiliary["scale100"]
    else:
        value = jax.jit(model.apply)(variables, image).logits
        if not at_input:
            value = value[:, ::8, ::8]
    assert relative_difference(value, wanted) < TOLERANCE


POOLS = ("pool1", "pool2", "pool3", "pool4")


@pytest.mark.peer
def test_vgg_with_aspp_equals_the_transcription():
    model = narrow_v2(vgg=NARROW_VGG, rates=RATES["aspp_s"])
    tensors = torch_tensors(shapes_of(model), VGG_NAMES)
    variables, _ = load_weights(shapes_of(model), tensors, name_maps=[VGG_NAMES])
    net = reference().VGG(5, WIDTHS, fc=16, average_pool=False, aspp=RATES["aspp_s"])
    peers.load_state(net, tensors)
    image = random_image(2, 60, 57)
    wanted = peers.from_torch(reference().canvas(net, bgr(image), 8))
    assert relative_difference(jax.jit(model.apply)(variables, image).logits, wanted) < TOLERANCE


@pytest.fixture(scope="module")
def resnet_pair():
    """A narrow residual net at three scales, its variables, and the transcription of it."""
    model = narrow_v2(scales=THREE)
    names = CaffeResNetNames(
        "Caffe",
        deeplab_resnet_module(caffe_resnet_module(numbered=False), "fc1_voc12_c{}"),
        bgr=("backbone/conv1",),
    )
    tensors = torch_tensors(shapes_of(model), names)
    variables, _ = load_weights(shapes_of(model), tensors, name_maps=[names])
    net = reference().ResNet(5, units=(1, 1, 2, 1), width=8)
    return model, variables, peers.load_state(net, tensors)


@pytest.mark.peer
def test_resnet_at_three_scales_equals_the_transcription(resnet_pair):
    model, variables, net = resnet_pair
    image = random_image(2, 65, 97)
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    prediction, updates = apply(variables, image, rngs={"dropout": jax.random.key(0)})
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    wanted = reference().multi_scale(net, bgr(image))
    assert prediction.auxiliary.keys() == wanted.keys()
    for name, scores in wanted.items():
        difference = relative_difference(prediction.auxiliary[name], peers.from_torch(scores))
        assert difference < TOLERANCE, name
    fused = peers.from_torch(reference().zoom(wanted["fused"], 8))
    assert relative_difference(prediction.logits, fused) < TOLERANCE


@pytest.mark.peer
def test_other_sizes_are_padded_with_the_mean_as_in_the_release(resnet_pair):
    model, variables, net = resnet_pair
    image = random_image(1, 50, 40)
    wanted = reference().canvas(lambda x: reference().multi_scale(net, x)["fused"], bgr(image), 32)
    logits = jax.jit(model.apply)(variables, image).logits
    assert relative_difference(logits, peers.from_torch(wanted)) < TOLERANCE


# Multi-scale inputs and the sum of branches


class OneConvolution(nn.Module):
    """A backbone of output stride 8 that compiles in a moment."""

    output_stride: int = 8

    @nn.compact
    def __call__(self, image, *, train=False):
        return {"c5": AtrousConv(4, 3, 8, name="conv")(image)}


def one_convolution_v2(**options):
    return flaxseg.create_model(
        "deeplabv2", 5, backbone=OneConvolution(), output_stride=8, **options
    )


def test_fusion_is_the_maximum_over_three_runs_of_one_net():
    fused_model, model = one_convolution_v2(scales=THREE), one_convolution_v2()
    variables, image = fresh(fused_model), random_image(1, 65, 33)
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    runs = []
    for size in ((65, 33), (49, 25), (33, 17)):
        scaled = resize(image, size, align_corners=True)
        prediction, _ = apply(variables, scaled, rngs={"dropout": jax.random.key(0)})
        runs.append(resize(prediction.auxiliary["scale100"], (9, 5), align_corners=True))
    wanted = np.max(runs, 0)
    logits = np.asarray(jax.jit(fused_model.apply)(variables, image).logits)
    np.testing.assert_allclose(logits[:, ::8, ::8], wanted, atol=1e-5 * np.abs(wanted).max())
    # Each scale decides somewhere, else the test would not see a scale that is missing.
    assert all(np.any(run == wanted) for run in runs)


def test_the_sum_does_not_depend_on_the_order_of_the_branches():
    model, turned = (one_convolution_v2(rates=rates) for rates in ((1, 2, 3), (3, 1, 2)))
    variables, image = fresh(model), random_image(1, 33, 33)
    aspp = variables["params"]["aspp"]
    order = {f"classifier_{i + 1}": aspp[f"classifier_{j}"] for i, j in enumerate((3, 1, 2))}
    other = {**variables, "params": {**variables["params"], "aspp": order}}
    logits = jax.jit(model.apply)(variables, image).logits
    np.testing.assert_allclose(jax.jit(turned.apply)(other, image).logits, logits, atol=1e-4)
    # The rates matter.
    assert float(np.abs(jax.jit(turned.apply)(variables, image).logits - logits).max()) > 0.1


def cross_entropy(logits, label):
    """The mean over labels other than 255, in NumPy."""
    logits = np.asarray(logits, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = np.take_along_axis(log_probs, np.where(label == 255, 0, label)[..., None], -1)[..., 0]
    return -rows[label != 255].mean()


@pytest.mark.parametrize("scales", [(1.0,), THREE])
def test_the_loss_is_the_sum_over_the_outputs_at_their_own_grid(scales):
    model = flaxseg.create_model(
        "deeplabv2", 4, backbone=OneConvolution(), output_stride=8, scales=scales, rates=(1, 2)
    )
    names = ["scale100"] if len(scales) == 1 else ["fused", "scale100", "scale75", "scale50"]
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (2, 65, 33, 3), np.uint8),
        "label": rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (2, 65, 33)),
    }
    shapes = shapes_of(model)
    tx = make_optimizer(shapes["params"])
    state = create_state(model, tx, 0, (65, 33))
    # Far from zero, so that the fused output is another than that of scale 1.
    params = jax.tree.map(lambda p: 5.0 * p, state.params)
    state = state.replace(params=params)
    step = make_train_step(
        model,
        tx,
        schedule=make_schedule("poly", 0.01, 10),
        objective=Objective(
            {
                "logits": OutputLoss(weight=0.0),
                "auxiliary": OutputLoss(resize_labels=True, align_corners=True),
            }
        ),
    )
    _, metrics = jax.jit(step)(state, batch)
    image = flaxseg.layers.normalize(batch["image"], model.normalization)
    prediction = model.apply({"params": params}, image, train=True)
    assert sorted(prediction.auxiliary) == sorted(names)
    label = batch["label"].astype(np.int64)
    wanted = sum(
        cross_entropy(
            prediction.auxiliary[name],
            label[:, ::16, ::16] if name == "scale50" else label[:, ::8, ::8],
        )
        for name in names
    )
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=1e-5)


def test_the_loss_of_a_fresh_net_is_that_of_equal_classes():
    # Of the real initialisers: the classifier starts near zero.
    model = flaxseg.create_model(
        "deeplabv1", 7, backbone=OneConvolution(), output_stride=8, features=16
    )
    image = random_image(2, 33, 33)
    logits = model.apply(model.init(jax.random.key(0), image), image).logits
    label = np.random.default_rng(0).integers(0, 7, (2, 33, 33))
    assert abs(cross_entropy(logits, label) - np.log(7)) < 0.05


# What every model promises


MODELS = {
    "v1": functools.partial(narrow_v1, vgg=SHALLOW_VGG),
    "v1-msc": functools.partial(narrow_v1, vgg=SHALLOW_VGG, multi_scale=True),
    "v2-vgg": functools.partial(narrow_v2, vgg=SHALLOW_VGG, rates=(2, 3)),
    "v2-resnet": functools.partial(narrow_v2, scales=(1.0, 0.5), frozen=False, rates=(2, 3)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [pytest.param((1, 1), marks=pytest.mark.slow), (2, 33)])
def test_any_size(name, size):
    model = MODELS[name](2)
    prediction = jax.jit(model.apply)(fresh(model), random_image(1, *size))
    assert prediction.logits.shape == (1, *size, 2)
    assert bool(np.isfinite(prediction.logits).all())
    assert prediction.auxiliary == {}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("v1", jnp.bfloat16, marks=pytest.mark.slow),
        ("v1-msc", jnp.float32),
        pytest.param("v2-vgg", jnp.float32, marks=pytest.mark.slow),
        ("v2-scales", jnp.float32),
        pytest.param("v2-resnet", jnp.float32, marks=pytest.mark.slow),
        pytest.param("v2-resnet", jnp.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_every_parameter_gets_a_finite_gradient(name, dtype):
    if name == "v2-scales":
        model = one_convolution_v2(scales=(1.0, 0.5), rates=(1, 2))
    else:
        model = MODELS[name](2, dtype=dtype)
    variables, image = fresh(model), random_image(1, 49, 33)
    label = np.random.default_rng(0).integers(0, 2, (1, 49, 33))

    @jax.jit
    def gradient(params):
        def loss(params):
            prediction, _ = model.apply(
                {**variables, "params": params},
                image,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )
            total = 0.0
            for logits in (prediction.logits, *prediction.auxiliary.values()):
                assert logits.dtype == jnp.float32
                target = jax.image.resize(label, logits.shape[:3], "nearest")
                log_probs = jax.nn.log_softmax(logits)
                total -= jnp.take_along_axis(log_probs, target[..., None], -1).mean()
            return total

        return jax.grad(loss)(params)

    for path, value in flatten(gradient(variables["params"])).items():
        assert value.dtype == jnp.float32, path
        assert bool(np.isfinite(value).all()), path
        assert bool(np.any(value != 0)), path


def test_mistakes_are_named():
    image = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32)
    for options, message in (
        ({"rates": ()}, "rates is empty"),
        ({"scales": (0.5, 1.0)}, "the first must be 1"),
        ({"scales": (1.0, 0.0)}, "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(narrow_v2(**options).init, jax.random.key(0), image)


def test_images_are_padded_to_the_grid_at_the_bottom_and_right():
    image = jnp.ones((1, 34, 33, 2))
    padded = pad_to_grid(image, 8)
    assert padded.shape == (1, 41, 33, 2)
    assert float(padded.sum()) == float(image.sum())
    np.testing.assert_array_equal(padded[:, :34], image)
    assert pad_to_grid(image[:, :1, :32], 32).shape == (1, 1, 33, 2)
