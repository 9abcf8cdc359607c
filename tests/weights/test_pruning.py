"""Pruning of channels: the function of those that stay, sums over residual stages and fusions, the
command."""

import functools

import jax
import numpy as np
import pytest
from random_weights import random_image, relative_difference, shapes_of

import flaxseg
from flaxseg import cli
from flaxseg.backbones import MobileNetV2
from flaxseg.errors import ConfigError, WeightsError
from flaxseg.variable_paths import flatten, unflatten
from flaxseg.weights import icnet_channels, prune_channels, prune_model

WIDTH = 0.125
OPTIONS = {
    "backbone": "resnet50",
    "width": WIDTH,
    "backbone_options": {"stage_sizes": (2, 2, 1, 1)},
}


def create(width=WIDTH, **options):
    return flaxseg.create_model("icnet", 3, **{**OPTIONS, "width": width, **options})


def random_variables(model):
    rng = np.random.default_rng(0)
    flat = {}
    for path, leaf in flatten(shapes_of(model)).items():
        noise = rng.normal(size=leaf.shape).astype(np.float32)
        if path.endswith("kernel"):
            flat[path] = noise * np.float32(np.sqrt(2 / np.prod(leaf.shape[:3])))
        elif path.endswith(("scale", "var")):
            flat[path] = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        else:
            flat[path] = 0.1 * noise
    return unflatten(flat)


def with_zero_channels(variables, groups, seed=0):
    """Half of the channels of each set set to zero, and which were not."""
    rng = np.random.default_rng(seed)
    flat, alive = {path: value.copy() for path, value in flatten(variables).items()}, []
    for group in groups:
        number = flat[f"params/{group.writers[0][0]}/kernel"].shape[3]
        dead = rng.permutation(number)[: number // 2]
        for conv, norm in group.writers:
            flat[f"params/{conv}/kernel"][..., dead] = 0
            flat[f"params/{norm}/bias"][dead] = 0
            flat[f"batch_stats/{norm}/mean"][dead] = 0
        alive.append(np.setdiff1d(np.arange(number), dead))
    return unflatten(flat), alive


@pytest.fixture(scope="module")
def full():
    """A model, its variables with half of the channels zero, and those that are not."""
    model = create()
    variables = random_variables(model)
    zeroed, alive = with_zero_channels(variables, icnet_channels(variables))
    return model, zeroed, alive


def test_without_channels_that_are_zero_the_function_is_the_same(full):
    model, variables, alive = full
    pruned, kept = prune_channels(variables, icnet_channels(variables), 0.5)
    for indices, wanted in zip(kept, alive, strict=True):
        np.testing.assert_array_equal(indices, wanted)
    half = create(WIDTH / 2)
    assert jax.tree.map(np.shape, pruned) == jax.tree.map(np.shape, shapes_of(half))
    image = random_image(1, 65, 97)
    wanted = jax.jit(model.apply)(variables, image).logits
    assert float(np.std(wanted)) > 1e-3
    assert relative_difference(jax.jit(half.apply)(pruned, image).logits, wanted) < 1e-5
    # In training too, with the outputs of the coarser branches.
    train, half_train = (
        jax.jit(functools.partial(m.apply, train=True, mutable=["batch_stats"]))
        for m in (model, half)
    )
    wanted, _ = train(variables, random_image(2, 65, 97))
    got, _ = half_train(pruned, random_image(2, 65, 97))
    for name in ("sub4", "sub24"):
        assert relative_difference(got.auxiliary[name], wanted.auxiliary[name]) < 1e-4
    assert relative_difference(got.logits, wanted.logits) < 1e-4


def test_every_axis_of_the_network_is_in_one_set(full):
    """Else the smaller network would have other shapes or an axis would be cut twice."""
    _, variables, _ = full
    groups = icnet_channels(variables)
    written = [conv for group in groups for conv, _ in group.writers]
    read = [conv for group in groups for conv in group.readers]
    convs = [p[7:-7] for p in flatten(variables) if p.startswith("params") and p.endswith("kernel")]
    classifiers = {"classifier", "fusion24/classifier", "fusion12/classifier"}
    assert sorted(written) == sorted(set(convs) - classifiers)
    assert sorted(read) == sorted(set(convs) - {"backbone/conv1_1", "conv1_sub1/conv"})
    norms = {norm for group in groups for _, norm in group.writers}
    assert norms == {p.split("/", 1)[1][:-4] for p in flatten(variables) if p.endswith("/var")}


def test_channels_that_are_added_stay_together(full):
    _, variables, _ = full
    writers = [{conv for conv, _ in group.writers} for group in icnet_channels(variables)]
    assert {
        "backbone/layer2_0/downsample_conv",
        "backbone/layer2_0/conv3",
        "backbone/layer2_1/conv3",
    } in writers
    assert {"fusion24/low_conv", "fusion24/high_conv"} in writers
    assert {"fusion12/low_conv", "fusion12/high_conv"} in writers
    assert {"backbone/layer1_1/conv1"} in writers


def test_the_largest_summed_norms_stay():
    model = create()
    variables = random_variables(model)
    flat = flatten(variables)
    groups = icnet_channels(variables)
    _, kept = prune_channels(variables, groups, 0.75)
    for group, stay in zip(groups, kept, strict=True):
        norms = sum(np.abs(flat[f"params/{c}/kernel"]).sum((0, 1, 2)) for c, _ in group.writers)
        assert len(stay) == 0.75 * len(norms)
        assert norms[stay].min() >= np.delete(norms, stay).max()
        assert list(stay) == sorted(stay)


def test_basic_blocks_without_projection_share_the_channels_of_the_stem():
    options = {
        "backbone": "resnet18",
        "backbone_options": {"stage_sizes": (2, 1, 1, 1), "deep_stem": ()},
    }
    model = create(**options)
    variables = random_variables(model)
    groups = icnet_channels(variables)
    stem = next(g for g in groups if ("backbone/conv1", "backbone/bn1") in g.writers)
    assert [conv for conv, _ in stem.writers] == [
        "backbone/conv1",
        "backbone/layer1_0/conv2",
        "backbone/layer1_1/conv2",
    ]
    zeroed, _ = with_zero_channels(variables, groups, seed=1)
    pruned, _ = prune_channels(zeroed, groups, 0.5)
    half = create(WIDTH / 2, **options)
    image = random_image(1, 33, 65)
    wanted = jax.jit(model.apply)(zeroed, image).logits
    assert relative_difference(jax.jit(half.apply)(pruned, image).logits, wanted) < 1e-5


def test_the_command_writes_a_model_of_half_the_width(tmp_path, capsys, full):
    model, variables, _ = full
    flaxseg.save_model(
        tmp_path / "full",
        variables,
        name="icnet",
        num_classes=3,
        options=OPTIONS,
        class_names=("road", "car", "sky"),
    )
    arguments = ["prune", str(tmp_path / "full"), "--keep=0.5", f"--out={tmp_path / 'half'}"]
    assert cli.main(arguments) == 0
    before, after = (
        sum(p.size for p in jax.tree.leaves(shapes_of(m)["params"]))
        for m in (model, create(0.0625))
    )
    assert f"{after:,} of {before:,} parameters remain" in capsys.readouterr().out
    half, pruned = flaxseg.load_model(tmp_path / "half")
    assert half.width == half.backbone.width == WIDTH / 2
    card = flaxseg.read_model_card(tmp_path / "half")
    assert card["class_names"] == ("road", "car", "sky")
    assert card["extra"]["keep"] == 0.5
    image = random_image(1, 65, 97)
    wanted = jax.jit(model.apply)(variables, image).logits
    assert relative_difference(jax.jit(half.apply)(pruned, image).logits, wanted) < 1e-5


def test_two_steps_of_pruning_end_at_half_the_width(tmp_path):
    model = create()
    flaxseg.save_model(
        tmp_path / "full", random_variables(model), name="icnet", num_classes=3, options=OPTIONS
    )
    prune_model(tmp_path / "full", tmp_path / "three_quarters", keep=0.75)
    prune_model(tmp_path / "three_quarters", tmp_path / "half", keep=0.6667)
    half, variables = flaxseg.load_model(tmp_path / "half")
    assert half.width == WIDTH / 2
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes_of(create(0.0625)))


def test_mistakes_are_named(tmp_path, full):
    _, variables, _ = full
    groups = icnet_channels(variables)
    with pytest.raises(ValueError, match=r"1/3 of 8 channels is 2.67; choose a keep"):
        prune_channels(variables, groups, 1 / 3)
    with pytest.raises(ValueError, match=r"keep is 0; it must be more than 0"):
        prune_channels(variables, groups, 0)
    mobile = flaxseg.create_model("icnet", 3, backbone=MobileNetV2(output_stride=8), width=WIDTH)
    with pytest.raises(ValueError, match="not a ResNet; only ICNet on a ResNet can be pruned"):
        icnet_channels(shapes_of(mobile))
    flaxseg.save_model(tmp_path / "m", variables, name="icnet", num_classes=3, options=OPTIONS)
    with pytest.raises(ConfigError, match=r"1/3 of 8 channels"):
        prune_model(tmp_path / "m", tmp_path / "out", keep=0.3333)
    with pytest.raises(ConfigError, match=r"keep is 1; it must be .* less than 1"):
        prune_model(tmp_path / "m", tmp_path / "out", keep=1)
    assert not (tmp_path / "out").exists()
    other = flaxseg.create_model("deeplabv3", 2, backbone="resnet18", features=8)
    tree = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes_of(other))
    options = {"backbone": "resnet18", "features": 8}
    flaxseg.save_model(tmp_path / "o", tree, name="deeplabv3", num_classes=2, options=options)
    with pytest.raises(WeightsError, match="is deeplabv3; only icnet can be pruned"):
        prune_model(tmp_path / "o", tmp_path / "out")
