"""What every model promises, checked on all of them."""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import fresh, random_image, shapes_of
from tiny_model import TinyBackbone

import flaxseg
from flaxseg.backbones import EfficientNetLite0, MobileNetV2, ResNet
from flaxseg.backbones.mobile import Stage
from flaxseg.backbones.resnet import BasicBlock
from flaxseg.errors import ConfigError

# What is tested here is the models.
BACKBONES = {
    "tiny": TinyBackbone,
    "resnet": functools.partial(
        ResNet, stage_sizes=(1, 1, 1, 1), block=BasicBlock, width=0.125, output_stride=16
    ),
    "mobile": functools.partial(
        EfficientNetLite0,
        stages=(
            Stage(1, 8, 1, 1),
            Stage(2, 8, 1, 2),
            Stage(2, 8, 1, 2, 5),
            Stage(2, 8, 1, 2),
            Stage(2, 16, 1, 2),
        ),
        output_stride=16,
    ),
}
# Options that keep a model small, for what does not depend on them.
SMALL_FORMS = {"deeplabv3_cascade": {"rates": (2,), "multi_grid": (1, 2)}}
# Options under which a model has other parameters than by default.
OTHER_FORMS = {
    "deeplabv3": ({"separable": True, "image_pooling": False},),
    "deeplabv3plus": (
        {"separable": False, "low_levels": ("c3", "c2"), "decoder_features": 8},
        {"decoder_kernel_size": 1, "decoder_convs": 1},
    ),
    "pspnet": ({"pooling": "max", "reduce": False},),
}
# Options under which a model has the same parameters at all output strides, where by default it has
# a deconvolution from each grid to the next.
STRIDE_FORMS = {"gcn": {"upsampling": "fixed"}}
# How a model is made small, where it is not by `features`.
SMALL = {
    "icnet": {"width": 0.125},
    "fcn": {},
    "fcn8s": {},
    "deeplabv2": {"fc_features": 16, "rates": (1, 2)},
    "gcn": {"kernel_size": 3},
    "dfn": {"features": 8, "border_features": 4, "head_factor": 2},
    "lrr": {"num_bases": 2, "mask_window": 3},
    "refinenet": {"features": 8, "input_units": 1, "output_units": 1, "pooling_blocks": 1},
    "refinenet_lw": {"features": 8, "pooling_blocks": 1},
    "unet": {"features": (8,) * 5},
    "segnet": {"convs": (1,) * 4},
    "deconvnet": {"fc_features": 16, "fc_kernel_size": 3, "convs": (1,) * 4},
    "dilatednet": {"context": "large", "rates": (1, 2, 1)},
    "parsenet": {"features": 16, "rate": 1, "levels": ("c3", "fc7")},
}
# The other FCNs are FCN-8s with fewer skips or another backbone, see test_fcn.py; on these
# backbones SegNet-Basic is SegNet.
NAMES = [
    name
    for name in flaxseg.list_models()
    if name not in ("fcn32s", "fcn16s", "fcn8s_atonce", "fcn_alexnet", "segnet_basic")
]


def has(name, option):
    """Whether a model has that attribute."""
    return option in flaxseg.models.MODELS[name].options


def simplest(name):
    """The backbone that compiles fastest; ICNet asks for more than named features."""
    return "mobile" if name == "icnet" else "tiny"


# With its auxiliary outputs, each system trains all that it can have.
CASES = [
    pytest.param(
        (name, backbone, options),
        id=f"{name}-{backbone}{''.join('-' + o for o in options)}",
        marks=pytest.mark.slow
        if backbone != simplest(name) or options in OTHER_FORMS.get(name, ())
        else (),
    )
    for name, backbone, options in (
        *(
            (name, simplest(name), {"auxiliary": True} if has(name, "auxiliary") else {})
            for name in NAMES
        ),
        *((name, "tiny", options) for name in OTHER_FORMS for options in OTHER_FORMS[name]),
        ("deeplabv3plus", "resnet", {"auxiliary": True}),
        ("pspnet", "mobile", {}),
        ("unet", "mobile", {}),
    )
]


def make(name, backbone, num_classes=2, *, frozen=False, dtype=jnp.float32, **options):
    if not has(name, "dropout"):
        options.pop("dropout", None)
    return flaxseg.create_model(
        name,
        num_classes,
        backbone=BACKBONES[backbone](frozen_batch_norm=frozen, dtype=dtype),
        output_stride=16,
        frozen_batch_norm=frozen,
        dtype=dtype,
        **(SMALL.get(name, {"features": 16}) | SMALL_FORMS.get(name, {}) | options),
    )


def make_train_step(model):
    """Returns a function that gives loss, logits, new statistics and gradient, auxiliary losses
    included."""

    @jax.jit
    def step(variables, image, label, key):
        def loss(params):
            prediction, updates = model.apply(
                {**variables, "params": params},
                image,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": key},
            )
            total = 0.0
            for logits in (prediction.logits, *prediction.auxiliary.values()):
                target = jax.image.resize(label, logits.shape[:3], "nearest")
                if logits.shape[3] == 1:  # whether there is something: the logit of a sigmoid
                    logits = jnp.concatenate([jnp.zeros_like(logits), logits], -1)
                    target = jnp.minimum(target, 1)
                log_probs = jax.nn.log_softmax(logits)
                total -= jnp.take_along_axis(log_probs, target[..., None], -1).mean()
            return total, (prediction.logits, updates["batch_stats"])

        (total, others), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return total, *others, gradient

    return step


def make_evaluation(model):
    """Returns a function that gives the prediction outside training, and the statistics after."""
    return jax.jit(functools.partial(model.apply, mutable=["batch_stats"]))


def some_labels(*shape, num_classes=2):
    return np.random.default_rng(0).integers(0, num_classes, shape).astype(np.int32)


class Trained(NamedTuple):
    """A model of three classes with dropout, and what is compiled once for all that is asked."""

    name: str
    model: nn.Module
    variables: dict
    step: jax.stages.Wrapped


@pytest.fixture(scope="module", params=CASES)
def trained(request):
    name, backbone, options = request.param
    model = make(name, backbone, 3, dropout=0.5, **options)
    return Trained(name, model, fresh(model), make_train_step(model))


def test_any_size_in_evaluation_without_new_statistics(trained):
    _, model, variables, _ = trained
    prediction, updates = make_evaluation(model)(variables, random_image(1, 65, 97))
    assert prediction.logits.shape == (1, 65, 97, 3)
    assert prediction.logits.dtype == jnp.float32
    assert bool(np.isfinite(prediction.logits).all())
    assert prediction.auxiliary == {}
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    for other in ((1, 1), (2, 33), (96, 64)):
        image = jax.ShapeDtypeStruct((3, *other, 3), jnp.float32)
        assert jax.eval_shape(model.apply, variables, image).logits.shape == (3, *other, 3)


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("deeplabv3plus", "pspnet", "refinenet")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
    ],
)
def test_a_single_pixel_has_finite_logits(name):
    model = make(name, simplest(name), 21)
    logits = jax.jit(model.apply)(fresh(model), random_image(1, 1, 1)).logits
    assert logits.shape == (1, 1, 1, 21)
    assert logits.dtype == jnp.float32
    assert bool(np.isfinite(logits).all())


def test_every_parameter_gets_a_gradient_and_training_moves_statistics(trained):
    _, _, variables, step = trained
    image, label = random_image(2, 65, 33), some_labels(2, 65, 33, num_classes=3)
    loss, _, statistics, gradient = step(variables, image, label, jax.random.key(1))
    assert bool(np.isfinite(loss))
    for path, value in jax.tree_util.tree_leaves_with_path(gradient):
        assert bool(np.isfinite(value).all()), jax.tree_util.keystr(path)
        assert bool(np.any(value != 0)), jax.tree_util.keystr(path)
    for (path, new), old in zip(
        jax.tree_util.tree_leaves_with_path(statistics),
        jax.tree.leaves(variables["batch_stats"]),
        strict=True,
    ):
        assert bool(np.any(new != old)), jax.tree_util.keystr(path)


def test_dropout_follows_its_key(trained):
    name, _, variables, step = trained
    image, label = random_image(2, 65, 33), some_labels(2, 65, 33, num_classes=3)
    a, b, c = (step(variables, image, label, jax.random.key(k))[1] for k in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    # A model without dropout draws nothing.
    assert bool(np.any(a != c)) == has(name, "dropout")


def test_a_few_steps_learn_an_image(trained):
    _, _, variables, step = trained
    label = np.zeros((2, 65, 33), np.int32)
    label[:, :, 16:] = 1
    label[:, 40:, :10] = 2
    image = np.eye(3, dtype=np.float32)[label] * 2 - 1
    losses, moments = [], None
    # Most halve their loss in a few steps; the number to it differs between machines.
    for count in range(80):
        loss, _, statistics, gradient = step(variables, image, label, jax.random.key(1))
        losses.append(float(loss))
        if losses[-1] < 0.5 * losses[0]:
            break
        leaves, tree = jax.tree.flatten(variables["params"])
        moments = moments or [(0.0, 0.0)] * len(leaves)
        leaves, moments = zip(
            *map(functools.partial(adam, count), leaves, jax.tree.leaves(gradient), moments),
            strict=True,
        )
        variables = {"params": jax.tree.unflatten(tree, leaves), "batch_stats": statistics}
    assert losses[-1] < 0.5 * losses[0]


def adam(count, value, gradient, moments, rate=0.01, first=0.9, second=0.999):
    """Returns a parameter after a step of Adam, and its moments. In NumPy nothing is compiled."""
    gradient = np.asarray(gradient)
    mean = first * moments[0] + (1 - first) * gradient
    square = second * moments[1] + (1 - second) * gradient**2
    change = mean / (1 - first ** (count + 1))
    change = change / (np.sqrt(square / (1 - second ** (count + 1))) + 1e-8)
    return (value - rate * change).astype(np.float32), (mean, square)


# Without normalisation in the head there is only that of the backbone: one of these is enough.
@pytest.mark.parametrize("name", ["fcn8s", *(name for name in NAMES if has(name, "norm"))])
def test_frozen_batch_norm_keeps_all_statistics_in_training(name):
    model = make(name, simplest(name), frozen=True, dropout=0.0)
    variables = fresh(model)

    @jax.jit
    def both(variables, image, key):
        trained = model.apply(
            variables, image, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )
        return *trained, model.apply(variables, image).logits

    prediction, updates, wanted = both(variables, random_image(2, 33, 33), jax.random.key(0))
    np.testing.assert_allclose(prediction.logits, wanted, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize(
    ("name", "backbone", "options"),
    [
        ("pspnet", "tiny", {}),
        pytest.param("deeplabv3", "tiny", {}, marks=pytest.mark.slow),
        pytest.param("deeplabv3plus", "tiny", {"auxiliary": True}, marks=pytest.mark.slow),
        pytest.param("icnet", "mobile", {}, marks=pytest.mark.slow),
    ],
)
def test_bfloat16_computes_close_by_with_float32_parameters_and_logits(name, backbone, options):
    image, label = random_image(2, 65, 33), some_labels(2, 65, 33)
    full, model = (make(name, backbone, dtype=t, **options) for t in (jnp.float32, jnp.bfloat16))
    variables = fresh(full)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(shapes_of(model)))
    wanted, logits = jax.jit(lambda *xs: (full.apply(*xs).logits, model.apply(*xs).logits))(
        variables, image
    )
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, wanted, atol=0.1 * float(np.abs(wanted).max()))
    # It does compute in bfloat16.
    assert float(np.abs(logits - wanted).max()) > 1e-6 * float(np.abs(wanted).max())
    results = make_train_step(model)(variables, image, label, jax.random.key(1))
    for value in jax.tree.leaves(results):
        assert value.dtype == jnp.float32
        assert bool(np.isfinite(value).all())


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in NAMES
        if n not in ("deeplabv1", "deeplabv2", "icnet", "lrr", "dilatednet") and has(n, "auxiliary")
    ],
)  # whose outputs are no heads of their own; see their tests
def test_auxiliary_logits_are_there_in_training_only(name):
    model = make(name, "tiny", 4, auxiliary=True)
    variables = shapes_of(model, (33, 33))
    assert "auxiliary_head" in variables["params"]
    image = random_image(1, 65, 33)
    assert jax.eval_shape(model.apply, variables, image).auxiliary == {}
    prediction, _ = jax.eval_shape(
        functools.partial(model.apply, train=True, mutable=["batch_stats"]),
        variables,
        image,
        rngs={"dropout": jax.random.key(0)},
    )
    assert prediction.auxiliary["c4"].shape == (1, 5, 3, 4)
    assert prediction.auxiliary["c4"].dtype == jnp.float32
    assert "auxiliary_head" not in shapes_of(make(name, "tiny", 4))["params"]


@functools.cache
def tree_at(name, output_stride):
    """The shapes of a model's variables at an output stride."""
    return shapes_of(
        flaxseg.create_model(
            name,
            3,
            backbone="resnet18",
            backbone_options={"stage_sizes": (1,) * 4},
            output_stride=output_stride,
            **STRIDE_FORMS.get(name, {}),
        )
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output_stride", [8, pytest.param(16, marks=pytest.mark.slow)])
def test_output_strides_share_one_tree(name, output_stride):
    assert tree_at(name, output_stride) == tree_at(name, 32)


@pytest.mark.parametrize(
    ("name", "backbone", "options", "parameters"),
    [
        ("deeplabv3", "resnet50", {}, 39_048_533),
        pytest.param("deeplabv3", "resnet101", {}, 58_040_661, marks=pytest.mark.slow),
        pytest.param(
            "deeplabv3plus",
            "resnet101",
            {"separable": False},
            59_468_085 - 123_776,
            marks=pytest.mark.slow,
        ),
        ("deeplabv3plus", "resnet101", {}, 45_812_037 - 123_776),
        pytest.param("deeplabv3", "resnet101_beta", {}, 58_164_437, marks=pytest.mark.slow),
        pytest.param(
            "deeplabv3plus",
            "resnet101_beta",
            {"separable": False},
            59_468_085,
            marks=pytest.mark.slow,
        ),
        ("deeplabv3plus", "resnet101_beta", {}, 45_812_037),
        pytest.param("deeplabv3plus", "xception65", {}, 41_055_413, marks=pytest.mark.slow),
        ("deeplabv3plus", "xception41", {}, 28_108_661),
        # ResNet-101, nine bottlenecks of 2048-512-512-2048, the classifier.
        (
            "deeplabv3_cascade",
            "resnet101",
            {},
            42_500_160 + 9 * (2 * 2048 * 512 + 9 * 512 * 512 + 2 * (512 + 512 + 2048)) + 21 * 2049,
        ),
        # Dense decoders of table 2: what differs from two convolutions of 256.
        pytest.param(
            "deeplabv3plus",
            "resnet101_beta",
            {"separable": False, "decoder_convs": 1},
            59_468_085 - (9 * 256 * 256 + 512),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "deeplabv3plus",
            "resnet101_beta",
            {"separable": False, "decoder_convs": 1, "decoder_features": 128},
            59_468_085 - (9 * 256 * 256 + 512) - (9 * 304 * 128 + 256) - 21 * 128,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "deeplabv3plus",
            "resnet101_beta",
            {"separable": False, "decoder_convs": 1, "decoder_kernel_size": 1},
            59_468_085 - (9 * 256 * 256 + 512) - 8 * 304 * 256,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "deeplabv3plus",
            "resnet101_beta",
            {"separable": False, "low_level_features": 32},
            59_468_085 - 16 * (256 + 2 + 9 * 256),
            marks=pytest.mark.slow,
        ),
        (
            "deeplabv3plus",
            "resnet101_beta",
            {"separable": False, "low_levels": ("c3", "c2")},
            59_468_085 + (512 * 48 + 96) + (9 * 304 * 256 + 512) + (9 * 256 * 256 + 512),
        ),
        ("pspnet", "resnet50", {}, 46_716_373),
        pytest.param(
            "pspnet",
            "resnet101",
            {"auxiliary": True},
            65_708_501 + 2_365_205,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_parameters_are_those_of_the_specification(name, backbone, options, parameters):
    # The specification counts the v3+ networks with the "beta" stem, which has 123,776 more.
    params = shapes_of(flaxseg.create_model(name, 21, backbone=backbone, **options))["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == parameters


def test_rates_follow_the_output_stride():
    for stride, rates in ((8, (12, 24, 36)), (16, (6, 12, 18)), (32, (3, 6, 9))):
        model = flaxseg.create_model("deeplabv3", 2, backbone="resnet18", output_stride=stride)
        assert model.rates == rates
        assert model.backbone.output_stride == stride
    assert flaxseg.create_model("deeplabv3", 2, rates=(1, 2)).rates == (1, 2)


@pytest.mark.parametrize(
    ("name", "backbone", "backbone_options"),
    [
        pytest.param(
            "deeplabv3",
            "xception41",
            {"middle_blocks": 1, "width": 1 / 16},
            marks=pytest.mark.slow,
        ),
        ("deeplabv3", "resnet50_beta", {"stage_sizes": (2, 1, 1, 2), "width": 1 / 16}),
        ("deeplabv3_cascade", "resnet50", {"stage_sizes": (1, 1, 1, 2), "width": 1 / 16}),
    ],
)
def test_a_network_trained_at_stride_16_is_the_same_function_at_8(name, backbone, backbone_options):
    image, logits = random_image(1, 65, 49), []
    variables = None
    for output_stride in (16, 8):
        options = {"features": 8} | ({"image_pooling": False} if name == "deeplabv3" else {})
        model = flaxseg.create_model(
            name,
            3,
            backbone=backbone,
            output_stride=output_stride,
            backbone_options=backbone_options,
            **options,
        )
        variables = fresh(model) if variables is None else variables
        logits.append(jax.jit(model.apply)(variables, image).logits)
    # With aligned corners the cells of both grids lie on every sixteenth pixel, where the twice as
    # fine network with twice the rates has seen the same pixels.
    wanted = logits[0][:, ::16, ::16]
    assert float(wanted.std()) > 1e-3
    np.testing.assert_allclose(
        logits[1][:, ::16, ::16], wanted, atol=1e-4 * float(np.abs(wanted).max())
    )


def test_rates_of_the_cascade_double_from_block_to_block():
    for stride, rates in ((8, (8, 16, 32)), (16, (4, 8, 16)), (32, (2, 4, 8))):
        model = flaxseg.create_model(
            "deeplabv3_cascade", 2, backbone="resnet18", output_stride=stride
        )
        assert model.rates == rates


def test_backbone_options_reach_a_backbone_given_by_name():
    options = {"padding": "torch"}
    model = flaxseg.create_model("deeplabv3", 2, backbone="mobilenet_v2", backbone_options=options)
    assert model.backbone.padding == "torch"


@pytest.mark.parametrize("options", [{"remat": True}, {"backbone_options": {"padding": "tf"}}])
def test_what_a_module_of_ones_own_cannot_be_told_is_refused(options):
    with pytest.raises(
        ConfigError, match=rf"{next(iter(options))} is for a backbone given by name"
    ):
        flaxseg.create_model("deeplabv3", 2, backbone=MobileNetV2(), output_stride=32, **options)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="Did you mean 'deeplabv3plus'"):
        flaxseg.create_model("deeplabv3_plus", 2)
    with pytest.raises(ValueError, match="num_classes is 1"):
        flaxseg.create_model("deeplabv3", 1)
    with pytest.raises(TypeError, match="has no option decoder; it has"):
        flaxseg.create_model("deeplabv3", 2, decoder=3)
    with pytest.raises(ValueError, match="pass output_stride=8"):
        flaxseg.create_model("deeplabv3", 2, backbone=ResNet(output_stride=8))
