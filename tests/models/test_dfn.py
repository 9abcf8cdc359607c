"""DFN: parameters of the specification, its blocks, equality with a transcription of it from a file
of the author's layout, and what is there in training only."""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import random_image, relative_difference, shapes_of

import flaxseg
from flaxseg.backbones import ResNet
from flaxseg.errors import WeightsError
from flaxseg.layers import ChannelAttention, RefinementResidual
from flaxseg.weights import load_pretrained

TOLERANCE = 1e-4
SMALL = functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), width=0.125)
SMOOTH = ("smooth_c5", "smooth_c4", "smooth_c3")
BORDER = ("border_c2", "border_c3", "border_c4", "border_c5")
# A block that the author's code builds and never runs.
IDLE = 8_421


def reference_module():
    peers.import_torch()
    path = pathlib.Path(__file__).parent.parent / "reference" / "dfn_torch.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_state(net):
    """Seeded values for all tensors of a PyTorch network that keep its features in bounds."""
    rng, tensors = np.random.default_rng(0), {}
    for name, value in net.state_dict().items():
        if value.ndim in (2, 4):
            values = rng.normal(size=value.shape) * np.sqrt(1 / np.prod(value.shape[1:]))
        elif name.endswith("var"):
            values = rng.uniform(0.5, 1.5, value.shape)
        elif name.endswith("weight"):
            values = rng.uniform(0.3, 0.9, value.shape)
        else:
            values = rng.normal(size=value.shape) * 0.1
        if value.ndim:
            tensors[name] = values.astype(np.float32)
    return tensors


def some_variables(module, *shapes):
    """Random ones, drawn by NumPy: compiling `init` would take as long as the test."""
    rng = np.random.default_rng(0)

    def value(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if path[-1].key == "kernel" else 100
        return rng.normal(size=leaf.shape).astype(np.float32) / np.sqrt(fan_in).astype(np.float32)

    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    trees = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree_util.tree_map_with_path(value, trees)


def make(num_classes=3, **options):
    options = {"features": 16, "border_features": 4, "backbone": SMALL()} | options
    return flaxseg.create_model("dfn", num_classes, **options)


@pytest.mark.parametrize(
    ("num_classes", "heads", "total"), [(21, 2_976_456, 90_724_344), (19, 2_470_000, 90_217_888)]
)
def test_parameters_are_those_of_the_specification(num_classes, heads, total):
    whole = num_classes == 21
    small = ResNet(stage_sizes=(1, 1, 1, 1), deep_stem=(64, 64, 128))
    backbone = None if whole else small
    params = shapes_of(flaxseg.create_model("dfn", num_classes, backbone=backbone))["params"]

    def of(start, *ends):
        return sum(
            leaf.size
            for name, tree in params.items()
            if name.startswith(start) and name.endswith(ends or "")
            for leaf in jax.tree.leaves(tree)
        )

    if whole:
        assert of("backbone") == 42_623_936
    assert of("") - of("backbone") == total - IDLE - 42_623_936
    assert of("global_context") == 1_049_600
    assert of("smooth_", "_before") == 20_844_544
    assert of("smooth_", "_attention") == 3_149_824
    assert of("smooth_", "_after") == 19_927_040
    assert of("smooth_", "_head", "_classifier") == heads
    assert of("border_", "_before") == 112_560
    assert of("border_", "_after") == 33_684 - IDLE
    assert of("border_", "_head", "_classifier") == 6_700
    bare = flaxseg.create_model(
        "dfn", num_classes, backbone=small, border=False, deep_supervision=False
    )
    bare = shapes_of(bare)["params"]
    size = sum(
        leaf.size for name in bare.keys() - {"backbone"} for leaf in jax.tree.leaves(bare[name])
    )
    assert size == total - 42_623_936 - 152_944 - 3 * heads // 4


@pytest.mark.peer
def test_a_file_of_torchseg_gives_every_output_of_the_transcription(tmp_path):
    torch, reference = peers.import_torch(), reference_module()
    net = reference.DFN(3, reference.UNITS[50])
    tensors = random_state(net)
    net = peers.load_state(net, tensors)
    state = {name: torch.from_numpy(value) for name, value in tensors.items()}
    torch.save({"model": state, "epoch": 120, "iteration": 39_600}, tmp_path / "dfn.pth")
    model, variables = load_pretrained(tmp_path / "dfn.pth", frozen_batch_norm=True)
    assert model.num_classes == 3
    image = random_image(1, 64, 96)
    smooth, borders = net(peers.to_torch(image))
    # With frozen statistics training computes what evaluation does, and the auxiliary outputs.
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    prediction, _ = apply(variables, image)
    outputs = {"logits": prediction.logits, **prediction.auxiliary}
    theirs = {"logits": smooth[3][1]}
    theirs |= {name: own for name, (own, _) in zip(SMOOTH, smooth[:3], strict=True)}
    theirs |= {name: own for name, (own, _) in zip(BORDER, borders, strict=True)}
    assert outputs.keys() == theirs.keys()
    differences = {
        name: relative_difference(outputs[name], peers.from_torch(theirs[name])) for name in theirs
    }
    print(differences)
    assert max(differences.values()) < TOLERANCE
    # What the author's losses see: everything at full size, corners aligned.
    full = flaxseg.layers.resize(outputs["border_c5"], (64, 96), align_corners=True)
    assert relative_difference(full, peers.from_torch(borders[3][1])) < TOLERANCE


def test_a_file_of_another_backbone_is_refused(tmp_path):
    tensors = {"smooth_pre_rrbs.0.conv_1x1.weight": np.zeros((1, 1, 1, 1), np.float32)}
    np.savez(tmp_path / "dfn.npz", **tensors)
    with pytest.raises(WeightsError, match="known are resnet50"):
        load_pretrained(tmp_path / "dfn.npz")


def test_attention_chooses_between_high_and_the_sum():
    rng = np.random.default_rng(0)
    low, high = rng.normal(size=(2, 2, 5, 3, 4)).astype(np.float32)
    layer = ChannelAttention()
    variables = some_variables(layer, low.shape, high.shape)
    apply = jax.jit(layer.apply)
    dense = variables["params"]["dense2"]
    dense["kernel"] = np.zeros_like(dense["kernel"])
    for bias, wanted in ((-100.0, high), (100.0, low + high), (0.0, low / 2 + high)):
        dense["bias"] = np.full(4, bias, np.float32)
        np.testing.assert_allclose(apply(variables, low, high), wanted, atol=1e-6)
    # By hand, with weights for (low, high) in this order.
    variables = some_variables(layer, low.shape, high.shape)
    first, second = (variables["params"][name] for name in ("dense1", "dense2"))
    means = np.concatenate([low.mean((1, 2)), high.mean((1, 2))], 1)
    hidden = np.maximum(means @ first["kernel"] + first["bias"], 0)
    attention = 1 / (1 + np.exp(-(hidden @ second["kernel"] + second["bias"])))
    wanted = low * attention[:, None, None] + high
    np.testing.assert_allclose(apply(variables, low, high), wanted, atol=1e-6)
    # A mean stands for an image that is that everywhere.
    mean = high.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(
        apply(variables, low, mean),
        apply(variables, low, np.broadcast_to(mean, low.shape)),
        atol=1e-6,
    )
    with pytest.raises(ValueError, match="do not fit"):
        layer.apply(variables, low, high[:, :2])


@pytest.mark.parametrize("last_relu", [True, False])
def test_a_refinement_without_correction_is_its_first_convolution(last_relu):
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    layer = RefinementResidual(3, last_relu)
    variables = some_variables(layer, x.shape)
    variables["params"]["conv2"]["kernel"] *= 0
    wanted = x @ variables["params"]["unify"]["kernel"][0, 0]
    assert float(wanted.min()) < 0
    wanted = np.maximum(wanted, 0) if last_relu else wanted
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x), wanted, atol=1e-5)


def test_the_border_network_is_for_training_only():
    """Evaluation neither has its outputs nor needs its parameters."""
    model, image = make(), random_image(1, 49, 34)
    variables = some_variables(model, image.shape)
    kept = {
        name: tree
        for name, tree in variables["params"].items()
        if not name.startswith("border_")
        and not name.startswith(tuple(f"{s}_{end}" for s in SMOOTH for end in ("head", "class")))
    }
    bare = make(border=False, deep_supervision=False)
    assert kept.keys() == shapes_of(bare)["params"].keys()

    @jax.jit
    def both(variables, image):
        params = {name: variables["params"][name] for name in kept}
        wanted = bare.apply({**variables, "params": params}, image).logits
        return model.apply(variables, image), wanted

    prediction, wanted = both(variables, image)
    assert prediction.auxiliary == {}
    np.testing.assert_array_equal(prediction.logits, wanted)


def test_auxiliary_outputs_come_at_their_own_size():
    model, image = make(5), jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)

    def auxiliary(model):
        train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        return jax.eval_shape(train, shapes_of(model), image)[0].auxiliary

    outputs = auxiliary(model)
    shapes = {name: value.shape for name, value in outputs.items()}
    assert shapes == {
        "smooth_c5": (2, 2, 3, 5),
        "smooth_c4": (2, 4, 6, 5),
        "smooth_c3": (2, 8, 12, 5),
        **dict.fromkeys(BORDER, (2, 16, 24, 1)),
    }
    assert all(value.dtype == jnp.float32 for value in outputs.values())
    assert set(auxiliary(make(5, border=False))) == set(SMOOTH)
    assert set(auxiliary(make(5, deep_supervision=False))) == set(BORDER)


def test_forms_of_the_ablation():
    whole = shapes_of(make())["params"]
    without = shapes_of(make(attention=False, global_context=False))["params"]
    gone = whole.keys() - without.keys()
    assert gone == {"global_context", *(f"smooth_c{k}_attention" for k in (2, 3, 4, 5))}
    # Without the context nothing is coarser than c5: there is nothing to attend to.
    context = shapes_of(make(global_context=False))["params"]
    assert whole.keys() - context.keys() == {"global_context", "smooth_c5_attention"}


def test_blocks_can_be_computed_again_in_the_backward_pass():
    image, recomputed = jax.ShapeDtypeStruct((1, 33, 33, 3), jnp.float32), []
    assert shapes_of(make()) == shapes_of(make(remat_blocks=True))
    for remat in (False, True):
        model = make(remat_blocks=remat)
        train = functools.partial(model.apply, train=True, mutable=["batch_stats"])
        jaxpr = jax.make_jaxpr(train)(shapes_of(model), image)
        recomputed.append(sum("remat" in str(e.primitive) for e in jaxpr.eqns))
    # Before and after each of four stages and in its head, on both sides, less the idle one.
    assert recomputed == [0, 23]
