"""GCN and ResNet-GCN: parameters of the specification, equality with a transcription of it, the
port's weights, and what the known ports get wrong."""

import functools
import importlib.util
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import random_image, relative_difference, shapes_of

import flaxseg
from flaxseg.backbones import ResNet, ResNetGCN, create_backbone
from flaxseg.backbones.resnet import BasicBlock
from flaxseg.errors import WeightsError
from flaxseg.layers.bilinear_deconv import bilinear_init
from flaxseg.models import at_output_stride
from flaxseg.weights import NameMap, load_pretrained, load_weights
from flaxseg.weights.layouts.gcn_layout import PORT_GCN

TOLERANCE = 1e-4
SMALL = functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), width=0.125)


def reference_module():
    peers.import_torch()
    path = pathlib.Path(__file__).parent.parent / "reference" / "gcn_torch.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_state(net):
    """Seeded values for all tensors of a PyTorch network, with variances that keep its features in
    bounds."""
    tensors = {}
    for name, value in net.state_dict().items():
        rng = np.random.default_rng([0, zlib.crc32(name.encode())])
        if value.ndim == 4:
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


@pytest.mark.parametrize(
    ("num_classes", "k", "kernels", "refinements"),
    [(21, 15, 2_472_456, 71_820), (21, 7, 1_153_992, 71_820), (19, 25, 3_720_504, 58_824)],
)
def test_parameters_are_those_of_the_specification(num_classes, k, kernels, refinements):
    whole = (num_classes, k) == (21, 15)
    backbone = "resnet152" if whole else ResNet(stage_sizes=(1, 1, 1, 1))
    model = flaxseg.create_model("gcn", num_classes, backbone=backbone, kernel_size=k)
    params = shapes_of(model)["params"]

    def of(*prefixes):
        return count([tree for name, tree in params.items() if name.startswith(prefixes)])

    assert (of("gcn_"), of("br_", "refine_")) == (kernels, refinements)
    assert of("up_") == 5 * 16 * num_classes**2
    assert sum(name.startswith(("br_", "refine_")) for name in params) == 9
    if whole:
        assert of("backbone") == 58_143_808
        # The specification counts without the deconvolutions, of which there are five.
        assert count(params) - of("up_") == 60_688_084
        wanted = {"c5": 1_303_554, "c4": 658_434, "c3": 335_874, "c2": 174_594}
        assert {level: count(params[f"gcn_{level}"]) for level in wanted} == wanted


def test_options_of_the_ablations():
    def params(**options):
        backbone = ResNet(stage_sizes=(1, 1, 1, 1))
        model = flaxseg.create_model("gcn", 21, backbone=backbone, kernel_size=7, **options)
        return shapes_of(model)["params"]

    whole = params()
    heads = {"c5": 2048, "c4": 1024, "c3": 512, "c2": 256}
    for kind, kernel in (("baseline", 1), ("trivial", 49)):
        for level, channels in heads.items():
            part = params(kind=kind)[f"gcn_{level}"]
            assert count(part) == kernel * channels * 21 + 21
    stack = params(kind="stack", stack_features=210)
    assert count(stack["gcn_c5"]) == 4_307_310 + 2 * 210 + 21
    without = params(boundary_refinement=False)
    assert whole.keys() - without.keys() == {n for n in whole if n.startswith(("br_", "refine_"))}
    assert count(params(upsampling="depthwise")["up_c4"]) == 16 * 21
    for upsampling in ("fixed", "resize"):
        assert not any(name.startswith("up_") for name in params(upsampling=upsampling))


@pytest.mark.peer
def test_logits_are_those_of_the_transcription():
    """With learned deconvolutions, on a backbone of one unit a stage."""
    reference = reference_module()
    net = reference.GCN(5, (1, 1, 1, 1), k=5)
    tensors = random_state(net)
    net = peers.load_state(net, tensors)
    backbone = ResNet(stage_sizes=(1, 1, 1, 1))
    model = flaxseg.create_model("gcn", 5, backbone=backbone, kernel_size=5)
    variables, report = load_weights(
        shapes_of(model), tensors, name_maps=[PORT_GCN], prefix="", source="the transcription"
    )
    assert not report.unused
    image = random_image(1, 57, 34)
    wanted = peers.from_torch(net(peers.to_torch(image)))
    difference = relative_difference(jax.jit(model.apply)(variables, image).logits, wanted)
    print(difference)
    assert difference < TOLERANCE


@pytest.mark.peer
def test_a_file_of_the_port_becomes_a_model(tmp_path):
    torch, reference = peers.import_torch(), reference_module()
    net = reference.GCN(3, reference.UNITS[50], k=7, upsampling="bilinear")
    tensors = random_state(net)
    net = peers.load_state(net, tensors)
    state = {f"module.{name}": torch.from_numpy(value) for name, value in tensors.items()}
    torch.save(state, tmp_path / "gcn.pth")
    model, variables = load_pretrained(tmp_path / "gcn.pth")
    assert (model.kernel_size, model.num_classes, model.upsampling) == (7, 3, "resize")
    image = random_image(1, 33, 49)
    wanted = peers.from_torch(net(peers.to_torch(image)))
    difference = relative_difference(jax.jit(model.apply)(variables, image).logits, wanted)
    print(difference)
    assert difference < TOLERANCE
    # A fork with deconvolutions, whose logits the test before this one compares.
    kernels = {f"deconv{n}.weight": np.full((3, 3, 4, 4), n, np.float32) for n in range(1, 6)}
    np.savez(tmp_path / "fork.npz", **tensors, **kernels)
    model, variables = load_pretrained(tmp_path / "fork.npz")
    assert model.upsampling == "dense"
    assert float(variables["params"]["up_s1"]["kernel"].max()) == 5


def test_a_file_of_another_backbone_is_refused(tmp_path):
    np.savez(tmp_path / "gcn.npz", **{"gcm1.conv_l1.weight": np.zeros((3, 8, 7, 1), np.float32)})
    with pytest.raises(WeightsError, match="known are resnet50"):
        load_pretrained(tmp_path / "gcn.npz")


@pytest.mark.peer
def test_resnet_gcn_is_that_of_the_transcription():
    reference = reference_module()
    net = reference.GCN(2, (1, 1, 2, 2), k=3, resnet_gcn=True)
    tensors = random_state(net)
    net = peers.load_state(net, tensors)

    def module(path):
        if path.startswith(("layer3", "layer4")):
            return reference.resnet_gcn_name(path)
        return PORT_GCN.module(f"backbone/{path}")

    backbone = ResNetGCN(stage_sizes=(1, 1, 2, 2))
    variables, _ = load_weights(
        shapes_of(backbone), tensors, name_maps=[NameMap("transcription", module)], prefix=""
    )
    image = random_image(1, 65, 49)
    x = net.layer2(net.layer1(net.layer0(peers.to_torch(image))))
    wanted = {"c4": net.layer3(x)}
    wanted["c5"] = net.layer4(wanted["c4"])
    features = jax.jit(backbone.apply)(variables, image)
    for level, theirs in wanted.items():
        theirs = peers.from_torch(theirs)
        assert float((theirs == 0).mean()) > 0.01  # a ReLU follows the addition
        assert relative_difference(features[level], theirs) < TOLERANCE


def test_resnet_gcn_has_the_size_of_the_resnet_that_it_replaces():
    """A port builds the last stage with half its channels and one set of weights for all units."""
    params = shapes_of(create_backbone("resnet50_gcn"))["params"]
    plain = shapes_of(create_backbone("resnet50"))["params"]
    for stage, units, k, mid, channels in ((3, 6, 5, 85, 1024), (4, 3, 7, 128, 2048)):
        assert [name for name in params if name.startswith(f"layer{stage}_")] == [
            f"layer{stage}_{index}" for index in range(units)
        ]
        kernels = [
            leaf.size
            for path, leaf in jax.tree_util.tree_leaves_with_path(params[f"layer{stage}_1"])
            if path[-1].key == "kernel"
        ]
        assert sum(kernels) == 2 * k * channels * mid + 2 * k * mid * mid + mid * channels
    assert {n: params[n] for n in plain if n < "layer3"} == {
        n: plain[n] for n in plain if n < "layer3"
    }
    assert 0.85 < count(params) / count(plain) < 1.0


def test_a_path_has_its_stride_once():
    """At output stride 16 the last stage computes the same on a twice as fine grid; a stride on
    both convolutions of a path would not fit the shortcut, one on the wrong axis would differ."""
    options = {"stage_sizes": (1, 1, 1, 2), "width": 0.125}
    coarse, fine = (ResNetGCN(output_stride=stride, **options) for stride in (32, 16))
    image = random_image(1, 97, 65)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda s: rng.uniform(-0.5, 1, s.shape).astype(np.float32) / np.sqrt(s.size),
        shapes_of(coarse),
    )
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    a, b = (jax.jit(net.apply)(variables, image)["c5"] for net in (coarse, fine))
    assert a.shape[1:3] == (4, 3)
    assert float(np.abs(a).max()) > 0
    np.testing.assert_allclose(a, b[:, ::2, ::2], atol=1e-5 * float(np.abs(a).max()))


def test_impossible_resnet_gcns_are_refused():
    with pytest.raises(ValueError, match="stride_unit is 'last'"):
        shapes_of(create_backbone("resnet50_gcn", stride_unit="last"))
    with pytest.raises(ValueError, match="one number for each"):
        shapes_of(create_backbone("resnet50_gcn", global_kernels=(5, 7, 9)))


def make(num_classes=3, **options):
    options = {"kernel_size": 3, "backbone": SMALL()} | options
    stride = options["backbone"].output_stride
    return flaxseg.create_model("gcn", num_classes, output_stride=stride, **options)


def some_variables(model):
    """Random ones, drawn by NumPy: compiling `init` would take as long as the test."""
    rng = np.random.default_rng(0)

    def value(path, leaf):
        if path[-1].key == "kernel":
            return rng.normal(size=leaf.shape).astype(np.float32) / np.sqrt(
                np.prod(leaf.shape[:3])
            ).astype(np.float32)
        return np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32)

    return jax.tree_util.tree_map_with_path(value, shapes_of(model))


def test_the_head_is_linear_but_for_the_refinements():
    """BatchNorm and ReLU belong into the bottleneck alone."""
    assert set(shapes_of(make())["batch_stats"]) == {"backbone"}
    model, image = make(boundary_refinement=False), random_image(1, 33, 33)
    variables, apply = some_variables(model), jax.jit(model.apply)
    wanted = -2 * np.asarray(apply(variables, image).logits)
    for level in ("c5", "c4", "c3", "c2"):
        for name in ("left_vertical", "right_horizontal"):
            variables["params"][f"gcn_{level}"][name]["kernel"] *= -2
    assert relative_difference(apply(variables, image).logits, wanted) < 1e-5


def test_deconvolutions_begin_as_bilinear_ones():
    image, fixed = random_image(1, 49, 33), make(upsampling="fixed")
    learned = [make(upsampling=upsampling) for upsampling in ("dense", "depthwise")]

    @jax.jit  # one program, so that what the three have in common is compiled once
    def all_logits(variables, image):
        found = [fixed.apply(variables, image).logits]
        for model in learned:
            params = dict(variables["params"])
            for name, layer in shapes_of(model)["params"].items():
                if name.startswith("up_"):
                    kernel = bilinear_init(jax.random.key(0), layer["kernel"].shape)
                    params[name] = {"kernel": kernel}
            found.append(model.apply({**variables, "params": params}, image).logits)
        return found

    wanted, *others = all_logits(some_variables(fixed), image)
    for logits in others:
        np.testing.assert_allclose(logits, wanted, atol=1e-5 * float(np.abs(wanted).max()))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_levels_on_one_grid_are_added_without_upsampling(output_stride):
    model = make(backbone=SMALL(output_stride=output_stride))
    params = shapes_of(model)["params"]
    ups = {"up_c4": 32, "up_c3": 16, "up_c2": 8, "up_s2": 4, "up_s1": 2}
    assert {name for name in params if name.startswith("up_")} == {
        name for name, stride in ups.items() if stride <= output_stride
    }
    image = jax.ShapeDtypeStruct((1, 50, 33, 3), jnp.float32)
    assert jax.eval_shape(model.apply, shapes_of(model), image).logits.shape == (1, 50, 33, 3)


def test_a_trained_network_stays_at_its_output_stride():
    assert at_output_stride("gcn", {"kernel_size": 7}, 32) == {
        "kernel_size": 7,
        "output_stride": 32,
    }
    with pytest.raises(ValueError, match="gcn is another network at output stride 16 than at 32"):
        at_output_stride("gcn", {"kernel_size": 7}, 16)


def test_fewer_levels_are_upsampled_by_more():
    params = shapes_of(make(levels=("c5", "c3")))["params"]
    assert params["up_c3"]["kernel"].shape == (8, 8, 3, 3)
    assert {"up_s4", "up_s2", "up_s1", "refine_c3", "refine_s4"} <= params.keys()


def test_basic_blocks_and_mobile_backbones_serve():
    for backbone in (SMALL(block=BasicBlock), "efficientnet_lite0"):
        model = flaxseg.create_model("gcn", 4, backbone=backbone)
        assert shapes_of(model)["params"]["gcn_c5"]["left_vertical"]["kernel"].shape[3] == 4


def test_mistakes_are_named():
    for options, message in (
        ({"upsampling": "nearest"}, "upsampling is 'nearest'; it must be one of dense"),
        ({"levels": ("c2", "c3")}, "must go from coarse to fine"),
        ({"levels": ()}, "must go from coarse to fine"),
        ({"kernel_size": 6}, "take 5 or 7"),
        ({"kind": "full"}, "kind is 'full'"),
    ):
        with pytest.raises(ValueError, match=message):
            shapes_of(make(**options))
