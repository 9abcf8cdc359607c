"""LRR: what its sheet counts, equality with a transcription of its layer table from a file with the
release's names, sizes, and options."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import random_image, relative_difference, shapes_of

import flaxseg
from flaxseg.errors import WeightsError
from flaxseg.layers import IMAGENET
from flaxseg.weights import load_into, load_pretrained
from flaxseg.weights.layouts.lrr_layout import read_lrr

TOLERANCE = 1e-4
CLASSES = 19
WIDTHS, FC = (4, 4, 6, 8, 8), (12, 10)


def count(tree) -> int:
    return sum(value.size for value in jax.tree.leaves(tree))


def parameters_of(part, params) -> int:
    return sum(count(value) for name, value in params.items() if name.startswith(part))


@pytest.mark.parametrize(
    ("classes", "coefficients", "bases", "total", "heads"),
    [
        (21, (21_504_210, 2_688_210, 2_688_210, 1_344_210), 13_440, 162_539_144, 43_035_342),
        (19, (19_456_190, 2_432_190, 2_432_190, 1_216_190), 12_160, 159_845_944, 38_936_738),
    ],
)
def test_parameters_are_those_of_the_sheet(classes, coefficients, bases, total, heads):
    params = shapes_of(flaxseg.create_model("lrr", classes))["params"]
    assert count(params) == total
    assert count(params["backbone"]) == 14_714_688 + 102_764_544 + 16_781_312
    for level, wanted in zip((32, 16, 8, 4), coefficients, strict=True):
        assert count(params[f"coefficients_{level}x"]) == wanted
        assert count(params[f"reconstruction_{level}x"]) == bases
    model = flaxseg.create_model("lrr", classes, dilation_erosion=True)
    assert count(shapes_of(model)["params"]) == total + heads
    assert parameters_of(
        "", shapes_of(flaxseg.create_model("lrr", classes, finest=32))["params"]
    ) == (total - sum(coefficients[1:]) - 3 * bases)


def reference():
    """The transcription with random weights."""
    from reference import lrr_torch

    torch = peers.import_torch()
    torch.manual_seed(0)
    net = lrr_torch.LRR(CLASSES, WIDTHS, FC, window=17).eval()
    with torch.no_grad():
        for name, value in net.named_parameters():
            # Scores of some units, so that softmax and masks take all values in between.
            scale = 4.0 if "coef.weight" in name else 2.0 if "weight" in name else 1.0
            value.mul_(scale)
    return net


RELEASED = {
    "level32": ("bases_coef_32xf", "bases_coef_32xb", "deconv_32xf"),
    "level16": ("bases_coef_16sf", "bases_coef_16xb", "deconv_16xf"),
    "level8": ("bases_coef_8xf", "bases_coef_8xb", "deconv_8xf"),
    "level4": ("bases_coef_4xf", "bases_coef_4xb", "deconv_4xf"),
    "dilation": ("dil_seg32x_coeff", "dil_seg32x_coefb", "dil_seg_deconv_32xf"),
    "erosion": ("ero_mask32s_coeff", "ero_seg32x_coefb", "ero_seg_deconv_32xf"),
}


def released(net) -> dict[str, np.ndarray]:
    """Its tensors as the released file has them."""
    tensors = {}
    for name, value in net.state_dict().items():
        value = value.numpy()
        layer, _, leaf = name.rpartition(".")
        part, _, inner = layer.partition(".")
        if part not in RELEASED:
            hwio = value.transpose(2, 3, 1, 0) if leaf == "weight" else value
            tensors[part + {"weight": "f", "bias": "b"}[leaf]] = hwio
        elif inner == "coef":
            kernel, bias, _ = RELEASED[part]
            tensors[kernel if leaf == "weight" else bias] = (
                value.transpose(2, 3, 1, 0) if leaf == "weight" else value
            )
        elif leaf == "weight":  # [10 C, 1, 8, 8] to [8, 8, 1, 10 C]
            tensors[RELEASED[part][2]] = value.transpose(2, 3, 1, 0)
        else:
            tensors[f"{part[:3]}_mask_deconv32sb"] = value
    line = np.float32([0.25, 0.75, 0.75, 0.25])
    for level in (32, 16, 8):
        kernel = np.tile(np.outer(line, line)[:, :, None, None], (1, 1, 1, CLASSES))
        tensors[f"dec_prediction_{level}x_bil_x2f"] = kernel
    return tensors


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The transcription, and the model from a file of its tensors under the released names."""
    net = reference()
    path = tmp_path_factory.mktemp("lrr") / "lrr4x.npz"
    np.savez(path, **released(net))
    return net, *load_pretrained(path, auxiliary=True)


@pytest.mark.peer
@pytest.mark.parametrize("size", [(64, 96), (65, 33)])
def test_every_output_equals_the_transcription_from_a_file_with_released_names(network, size):
    net, model, variables = network
    assert (model.mask_window, model.finest, model.dilation_erosion) == (17, 4, True)
    assert model.normalization.mean == (73.1652, 82.9206, 72.4080)
    image = random_image(1, *size)
    wanted = {k: peers.from_torch(v) for k, v in net(peers.to_torch(image)).items()}
    # Without dropout training is evaluation with the other outputs.
    quiet = model.clone(backbone=model.backbone.clone(dropout=0.0))
    prediction = jax.jit(functools.partial(quiet.apply, train=True))(variables, image)
    found = {"4x": prediction.logits, **prediction.auxiliary}
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert value.dtype == jnp.float32
        difference = relative_difference(value, wanted[name])
        print(size, name, difference)
        assert difference < TOLERANCE, name
    evaluated = jax.jit(model.apply)(variables, image)
    assert relative_difference(evaluated.logits, wanted["4x"]) < TOLERANCE
    assert evaluated.auxiliary == {}


@pytest.mark.peer
def test_the_mask_matters(network):
    net, model, variables = network
    image = random_image(1, 64, 96)
    other = jax.jit(model.clone(mask_window=0).apply)(variables, image).logits
    wanted = peers.from_torch(net(peers.to_torch(image))["4x"])
    assert relative_difference(other, wanted) > 100 * TOLERANCE


@pytest.mark.peer
def test_bfloat16_computes_close_by_with_float32_logits(network):
    net, model, variables = network
    image = random_image(1, 64, 32)
    half = model.clone(dtype=jnp.bfloat16, backbone=model.backbone.clone(dtype=jnp.bfloat16))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes_of(half)))
    logits = jax.jit(half.apply)(variables, image).logits
    assert logits.dtype == jnp.float32
    wanted = peers.from_torch(net(peers.to_torch(image))["4x"])
    assert TOLERANCE < relative_difference(logits, wanted) < 0.1


@pytest.mark.peer
def test_files_that_are_no_such_network_are_refused(network):
    tensors = released(network[0])
    with pytest.raises(WeightsError, match="averageImage"):
        read_lrr({**tensors, "bases_coef_32xf": tensors["bases_coef_32xf"][..., :180]}, "x.npz")
    voc = {**tensors, "bases_coef_32xf": tensors["bases_coef_32xf"][..., :180]}
    found = read_lrr({**voc, "averageImage": np.float32([1, 2, 3])}, "x.npz")
    assert (found.num_classes, found.options["mask_window"]) == (18, 9)
    assert found.normalization.mean == (1.0, 2.0, 3.0)
    assert not any("bil" in name or "average" in name for name in found.tensors)
    with pytest.raises(WeightsError, match="not the fixed bilinear kernel"):
        read_lrr({**tensors, "dec_prediction_8x_bil_x2f": np.ones((4, 4, 1, 19))}, "x.npz")
    with pytest.raises(WeightsError, match="no tensor 'conv2_1b'"):
        read_lrr({k: v for k, v in tensors.items() if k != "conv2_1b"}, "x.npz")


class OnlyCoarse(nn.Module):
    """A backbone of someone's own with a single feature."""

    @nn.compact
    def __call__(self, image, *, train=False):
        return {"c5": nn.Conv(4, (1, 1), strides=32)(image)}


SMALL = {"features": (4, 4, 4, 4, 4), "fc_features": (4, 4)}


def small(**options):
    defaults = {"num_bases": 2, "backbone_options": SMALL}
    return flaxseg.create_model("lrr", 2, **defaults | options)


def test_fresh_finer_levels_only_double_the_coarser_scores():
    """Coefficients begin at zero, so that a stage of training starts where the last one ended."""
    model = small(auxiliary=True, dilation_erosion=True)
    image = random_image(1, 64, 32)
    variables = jax.jit(model.init)(jax.random.key(0), image)
    params = dict(variables["params"])
    rng = np.random.default_rng(0)
    for name in ("coefficients_32x", "coefficients_dilation"):
        assert not np.any(params[name]["kernel"])
    noise = rng.normal(size=params["coefficients_32x"]["bias"].shape).astype(np.float32)
    params["coefficients_32x"] = {**params["coefficients_32x"], "bias": noise}
    apply = functools.partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)})
    prediction = jax.jit(apply)({"params": params}, image)
    coarse = flaxseg.layers.bilinear_deconv(
        prediction.auxiliary["32x"], 4, 2, offset=1, size=(16, 8)
    )
    assert float(np.abs(coarse).max()) > 0.1
    np.testing.assert_allclose(prediction.auxiliary["16x"], coarse, rtol=1e-5, atol=1e-6)
    # Everywhere near background, nowhere inside of anything else.
    for head in ("dilation", "erosion"):
        expected = np.broadcast_to([1.0, -1.0], (1, 8, 4, 2))
        np.testing.assert_allclose(prediction.auxiliary[head], expected)


@pytest.mark.parametrize(
    ("options", "strides"),
    [
        ({"finest": 32}, {"32x": 8}),
        ({"finest": 8, "mask_window": (3, 0)}, {"32x": 8, "16x": 4, "8x": 2}),
        ({"dilation_erosion": True}, {"32x": 8, "16x": 4, "8x": 2, "dilation": 8, "erosion": 8}),
        ({"output_stride": 16}, {"32x": 4, "16x": 4, "8x": 2}),
        (
            {"backbone": "resnet18", "backbone_options": {"width": 0.125}},
            {"32x": 8, "16x": 4, "8x": 2},
        ),
    ],
)
def test_outputs_of_all_forms_have_their_stride(options, strides):
    model = small(auxiliary=True, **options)
    height, width = 67, 33
    prediction, _ = jax.eval_shape(
        lambda key, image: model.init_with_output(
            {"params": key, "dropout": key}, image, train=True
        ),
        jax.random.key(0),
        jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32),
    )
    assert prediction.logits.shape == (2, height, width, 2)
    assert {name: value.shape for name, value in prediction.auxiliary.items()} == {
        name: (2, -(-height // s), -(-width // s), 2) for name, s in strides.items()
    }


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"finest": 2}, "finest is 2; it must be one of 32, 16, 8, 4"),
        ({"mask_window": (9, 9)}, "there are 3 levels with a mask"),
        ({"mask_window": 8}, "window is 8; it must be odd"),
        ({"backbone": OnlyCoarse(), "backbone_options": None}, "level 16x needs conv5 or c4"),
    ],
)
def test_what_is_impossible_is_refused(options, part):
    with pytest.raises(ValueError, match=part):
        shapes_of(small(**options))


def test_a_stage_starts_from_the_one_before_with_its_own_bases(tmp_path):
    rng = np.random.default_rng(0)

    def values(model):
        return jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes_of(model)
        )

    coarse = values(small(finest=32))
    options = {"num_bases": 2, "backbone_options": SMALL, "finest": 32}
    flaxseg.save_model(tmp_path, coarse, name="lrr", num_classes=2, options=options)
    fresh = values(small(finest=16))
    params = load_into(fresh, tmp_path, reinit_head=True)[0]["params"]
    for name in ("backbone", "coefficients_32x", "reconstruction_32x"):
        jax.tree.map(np.testing.assert_array_equal, params[name], coarse["params"][name])
    for name in ("coefficients_16x", "reconstruction_16x"):
        jax.tree.map(np.testing.assert_array_equal, params[name], fresh["params"][name])


def test_torchvisions_weights_and_colours_are_an_option():
    assert (
        small(normalization={"mean": IMAGENET.mean, "std": IMAGENET.std}).normalization == IMAGENET
    )
    assert small().normalization == flaxseg.layers.CAFFE
