"""RefineNet and its light-weight form: parameters of the specification one by one, equality with a
transcription of the specification in all forms and from published layouts of weights, and what the
recipes lean on."""

import functools
import importlib.util
import pathlib
import re
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import random_image, relative_difference, shapes_of, torch_tensors

import flaxseg
from flaxseg.backbones import MobileNetV2, ResNet
from flaxseg.errors import WeightsError
from flaxseg.layers import IMAGENET, AtrousConv, normalize
from flaxseg.training.optimizer import make_optimizer
from flaxseg.variable_paths import flatten
from flaxseg.weights import (
    NAME_MAPS,
    NameMap,
    import_model,
    load_backbone,
    load_pretrained,
    load_weights,
    read_pretrained,
    sources,
)
from flaxseg.weights.layouts.refinenet_layout import (
    REFINENET,
    REFINENET_LW,
    refinenet_module,
)

TOLERANCE = 1e-4
RELEASED_MOBILENET = {"padding": "torch", "expand_first": True}


def reference_module():
    peers.import_torch()
    path = pathlib.Path(__file__).parent.parent / "reference" / "refinenet_torch.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def parameters(name, **options):
    return shapes_of(flaxseg.create_model(name, 21, **options))["params"]


# Of four blocks on bottleneck ResNets with 21 classes: reduction, input units, fusions, pooling
# chains of four, output units, classifier.
HEAVY = (13_565_952, 16_517_632, 4_128_768, 16_515_072, 24_776_448, 48_405)
LIGHT = (1_507_328, 458_752, 1_835_008, 48_405)
ENCODERS = {50: 23_508_032, 101: 42_500_160, 152: 58_143_808}


class Taps(nn.Module):
    """A backbone with the channels of a bottleneck ResNet and no parameters."""

    @nn.compact
    def __call__(self, image, *, train=False):
        return {f"c{level}": jnp.zeros((1, 1, 1, 64 * 2**level)) for level in (2, 3, 4, 5)}


def test_parameters_are_those_of_the_specification():
    for name, options, head, millions in (
        ("refinenet", {}, sum(HEAVY), (99.06, 118.05, 133.70)),
        ("refinenet", {"pooling_blocks": 2}, sum(HEAVY) - HEAVY[3] // 2, (90.80, 109.79, 125.44)),
        ("refinenet_lw", {}, sum(LIGHT), (27.36, 46.35, 61.99)),
    ):
        assert count(parameters(name, backbone=Taps(), **options)) == head
        totals = [round((encoder + head) / 1e6, 2) for encoder in ENCODERS.values()]
        assert totals == list(millions)
    released = parameters(
        "refinenet_lw", backbone="mobilenet_v2", backbone_options=RELEASED_MOBILENET
    )
    assert count(released) == 3_284_565


def their_shapes(net):
    return {k: tuple(v.shape) for k, v in net.state_dict().items() if v.ndim}


def our_shapes(model, name_map):
    """Shapes of a model's variables in PyTorch's layout, by the published names."""
    shapes = {}
    for path, leaf in flatten(shapes_of(model)).items():
        shape = leaf.shape
        if len(shape) == 4:
            shape = (shape[3], shape[2], *shape[:2])
        shapes[name_map.tensor_name(path)] = shape
    return shapes


@pytest.mark.peer
@pytest.mark.parametrize(
    ("name", "depth", "num_classes"),
    [
        ("refinenet", 101, 21),
        ("refinenet_lw", 50, 40),
        ("refinenet_lw", 101, 60),
        pytest.param("refinenet_lw", 152, 7, marks=pytest.mark.slow),
    ],
)
def test_names_and_shapes_are_those_of_the_transcription_one_by_one(name, depth, num_classes):
    torch, reference = peers.import_torch(), reference_module()
    network = reference.RefineNet if name == "refinenet" else reference.LightWeight
    with torch.device("meta"):
        net = network(num_classes, reference.UNITS[depth])
    model = flaxseg.create_model(name, num_classes, backbone=f"resnet{depth}")
    assert ENCODERS[depth] == count(shapes_of(model.backbone)["params"])
    assert our_shapes(model, REFINENET) == their_shapes(net)


def reference_names(cascades):
    """The transcription's names of `RefineNet`, at one scale or two."""
    levels = 4 // cascades

    def number(block, place):
        stream, level = divmod(place - 1, levels)
        return 4 * stream + (block - 1) * levels + level + 1

    def module(path):
        if path.startswith("backbone_2/"):
            return f"second.{refinenet_module(path.replace('_2', '', 1))}"
        if second := re.fullmatch(r"reduce_c([2-5])_2", path):
            return f"p_ims1d2_outl{10 - int(second[1])}_dimred"
        if unit := re.fullmatch(r"block(\d)/input(\d)_(.*)", path):
            block, place = int(unit[1]), int(unit[2])
            name = refinenet_module(f"block{block}/input1_{unit[3]}")
            return name.replace(f"stage{block}", f"stage{number(block, place)}")
        if conv := re.fullmatch(r"block(\d)/fusion/conv(\d)", path):
            block, place = int(conv[1]), int(conv[2])
            if place <= levels * module.scales:
                return f"adapt_stage{number(block, place)}_b2_joint_varout_dimred"
            return f"mflow_conv_g{block - 1}_b3_joint_varout_dimred"
        return refinenet_module(path)

    module.scales = 1
    return module


def seeded(net):
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


def at_scale(image, scale):
    torch = peers.import_torch()
    size = [int(n * scale + 0.5) for n in image.shape[2:]]
    return torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=scale < 1)


FORMS = {
    "four": ((1, 2, 3, 4), {}),
    "two": ((1, 1, 2, 2), {"cascades": 2, "pooling_blocks": 2}),
    "one": (
        (1, 1, 1, 1),
        {"cascades": 1, "pooling_blocks": 2, "pool_first": False, "scales": (1.2,)},
    ),
    "two scales": ((1, 2, 3, 4) * 2, {"scales": (1.2, 0.6), "pooling_blocks": 1}),
}
SMALL = functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), width=1 / 16)


@pytest.mark.peer
@pytest.mark.parametrize("form", list(FORMS))
def test_logits_equal_the_transcription_in_every_form(form):
    torch, reference = peers.import_torch(), reference_module()
    groups, options = FORMS[form]
    model = flaxseg.create_model("refinenet", 5, backbone=SMALL(), features=8, **options)
    net = reference.RefineNet(
        5,
        (1, 1, 1, 1),
        groups,
        base=4,
        features=8,
        pooling=model.pooling_blocks,
        pool_first=model.pool_first,
    )
    tensors = seeded(net)
    net = peers.load_state(net, tensors)
    module = reference_names(model.cascades)
    module.scales = len(model.scales)
    variables, report = load_weights(
        shapes_of(model), tensors, name_maps=[NameMap("transcription", module)], prefix=""
    )
    assert not report.unused
    # Sides of which neither halves nor quarters of the features are whole.
    image = random_image(1, 75, 61)
    images = [peers.to_torch(image)]
    if model.scales != (1.0,):
        images = [at_scale(images[0], scale) for scale in model.scales]
    quarter = net(*images)
    wanted = torch.nn.functional.interpolate(quarter, (75, 61), mode="bilinear")
    logits = jax.jit(model.apply)(variables, image).logits
    difference = relative_difference(logits, peers.from_torch(wanted))
    print(form, difference)
    assert difference < TOLERANCE


@pytest.mark.peer
def test_logits_of_the_light_weight_net_equal_the_transcription():
    torch, reference = peers.import_torch(), reference_module()
    model = flaxseg.create_model("refinenet_lw", 5, backbone=SMALL(), features=8)
    net = reference.LightWeight(5, (1, 1, 1, 1), base=4, features=8)
    tensors = seeded(net)
    net = peers.load_state(net, tensors)
    variables, report = load_weights(shapes_of(model), tensors, name_maps=[REFINENET_LW])
    assert not report.unused
    image = random_image(1, 61, 75)
    quarter = net(peers.to_torch(image))
    wanted = torch.nn.functional.interpolate(quarter, (61, 75), mode="bilinear")
    logits = jax.jit(model.apply)(variables, image).logits
    difference = relative_difference(logits, peers.from_torch(wanted))
    print(difference)
    assert difference < TOLERANCE


def write_checkpoint(tensors, path, *, from_training):
    """A file as the release has it, or as its training script saves it."""
    torch = peers.import_torch()
    state = {k: torch.from_numpy(v) for k, v in tensors.items()}
    counts = {k.replace("running_mean", "num_batches_tracked") for k in state if "_mean" in k}
    state |= {k: torch.tensor(7) for k in counts}
    if from_training:
        state = {f"module.{k}": v for k, v in state.items()}
        state = {"segmenter": state, "epoch_start": 3, "best_val": 0.5}
    torch.save(state, path)


@pytest.mark.peer
@pytest.mark.parametrize(
    "backbone", [pytest.param("resnet50", marks=pytest.mark.slow), "mobilenet_v2"]
)
def test_published_light_weight_nets_give_the_logits_of_the_transcription(tmp_path, backbone):
    """From a file with the names and shapes of the release to the logits of the model."""
    torch, reference = peers.import_torch(), reference_module()
    mobile = backbone == "mobilenet_v2"
    net = reference.LightWeightMobile(21) if mobile else reference.LightWeight(21)
    tensors = seeded(net)
    for name in tensors:
        if mobile and re.match(r"conv\d\.", name):
            tensors[name] = 10 * tensors[name]  # sums beyond 6, where ReLU6 ends
    net = peers.load_state(net, tensors)
    path = tmp_path / f"rf_lw_{backbone}.pth.tar"
    write_checkpoint(tensors, path, from_training=not mobile)
    if mobile:
        found = read_pretrained(path)
        assert found.class_names[1] == "aeroplane"
        model, variables = found.create_model(), found.variables
    else:
        directory = import_model(path, tmp_path / "model")
        card = flaxseg.read_model_card(directory)
        assert card["model"] == "refinenet_lw"
        assert card["normalization"] == {"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)}
        model, variables = flaxseg.load_model(directory)
    assert model.normalization == IMAGENET
    pixels = np.random.default_rng(0).integers(0, 256, (1, 61, 75, 3)).astype(np.uint8)
    theirs = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    quarter = net(peers.to_torch(theirs.astype(np.float32)))
    wanted = torch.nn.functional.interpolate(quarter, (61, 75), mode="bilinear")
    image = normalize(pixels, model.normalization)
    logits = jax.jit(model.apply)(variables, image).logits
    difference = relative_difference(logits, peers.from_torch(wanted))
    print(backbone, difference)
    assert difference < TOLERANCE


@pytest.mark.peer
@pytest.mark.parametrize(
    ("name", "depth", "prefix"),
    [("refinenet", 101, ""), ("refinenet_lw", 50, "segmenter.module.")],
)
def test_published_nets_on_resnets_are_recognised(monkeypatch, name, depth, prefix):
    """All tensors with their names and shapes; one value stands for each."""
    torch, reference = peers.import_torch(), reference_module()
    network = reference.RefineNet if name == "refinenet" else reference.LightWeight
    with torch.device("meta"):
        net = network(21, reference.UNITS[depth])
    shapes = their_shapes(net)
    values = {k: np.float32(zlib.crc32(k.encode()) % 1000 / 1000) for k in shapes}
    tensors = {prefix + k: np.broadcast_to(v, shapes[k]) for k, v in values.items()}
    monkeypatch.setattr(sources, "read_tensors", lambda path: tensors)
    found = read_pretrained(__file__)
    assert (found.name, found.num_classes) == (name, 21)
    assert found.options["backbone"] == f"resnet{depth}"
    assert found.options["pooling_blocks"] == 4
    assert found.create_model().normalization == IMAGENET
    assert len(found.report.loaded) == len(shapes)
    for path, value in flatten(found.variables).items():
        assert np.ravel(value)[0] == values[REFINENET.tensor_name(path)], path


def test_unknown_depths_are_refused(tmp_path):
    tensors = {
        "p_ims1d2_outl1_dimred.weight": np.zeros((1, 1, 1, 1), np.float32),
        "layer3.0.conv1.weight": np.zeros((1, 1, 1, 1), np.float32),
    }
    np.savez(tmp_path / "net.npz", **tensors)
    with pytest.raises(WeightsError, match=r"1 units in its third stage; known are resnet50"):
        load_pretrained(tmp_path / "net.npz")


class Subsampled(nn.Module):
    """A backbone whose features are pixels of the image."""

    @nn.compact
    def __call__(self, image, *, train=False):
        return {f"c{level}": image[:, :: 2**level, :: 2**level] for level in (2, 3, 4, 5)}


@pytest.mark.parametrize(
    ("name", "backbone", "shapes"),
    [
        ("refinenet", Subsampled(), [(3, 3), (5, 3), (17, 256)]),
        ("refinenet_lw", Subsampled(), [(3, 3), (5, 3)]),
        ("refinenet_lw", "mobilenet_v2", []),
    ],
)
def test_dropout_is_on_the_two_coarsest_features_and_before_the_heavy_classifier(
    name, backbone, shapes
):
    model = flaxseg.create_model(name, 2, backbone=backbone, dropout=0.25)
    dropped = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            assert context.module.rate == 0.25
            height, channels = args[0].shape[1], args[0].shape[3]
            dropped.append((height, channels, kwargs["deterministic"]))
        return call(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    for train in (False, True):
        rngs = {name: jax.random.key(0) for name in ("params", "dropout")}
        with nn.intercept_methods(record):
            jax.eval_shape(functools.partial(model.init, train=train), rngs, image)
    assert dropped == [(*s, deterministic) for deterministic in (True, False) for s in shapes]


def test_any_backbone_with_named_features_is_one_call():
    model = flaxseg.create_model("refinenet_lw", 11, backbone="efficientnet_lite0")
    assert shapes_of(model)["params"]["reduce_c4"]["kernel"].shape == (1, 1, 112, 256)
    # Its stages are those of MobileNetV2, so it can have that form too.
    form = flaxseg.create_model("refinenet_lw", 11, backbone="efficientnet_lite0", form="mobilenet")
    assert shapes_of(form)["params"]["reduce_stage4"]["kernel"].shape == (1, 1, 80, 256)


def test_alignment_can_be_chosen_and_cells_need_the_image_at_its_size():
    image, logits = random_image(1, 37, 50), []
    for aligned, finally_aligned in ((True, False), (False, False), (True, "cells")):
        model = flaxseg.create_model(
            "refinenet_lw",
            3,
            backbone=Subsampled(),
            features=4,
            pooling_blocks=1,
            align_corners=aligned,
            final_align_corners=finally_aligned,
        )
        shapes = shapes_of(model)
        variables, _ = load_weights(
            shapes, torch_tensors(shapes, REFINENET_LW), name_maps=[REFINENET_LW]
        )
        logits.append(jax.jit(model.apply)(variables, image).logits)
    assert relative_difference(logits[1], logits[0]) > 1e-3
    assert relative_difference(logits[2], logits[0]) > 1e-3
    scaled = flaxseg.create_model(
        "refinenet", 3, backbone=Subsampled(), scales=(1.2,), final_align_corners="cells"
    )
    with pytest.raises(ValueError, match="both must be True or False"):
        shapes_of(scaled)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(
            "refinenet",
            {"cascades": 2, "input_units": 1, "output_units": 1},
            marks=pytest.mark.slow,
        ),
        ("refinenet_lw", {}),
    ],
)
def test_bfloat16_computes_close_by_with_float32_parameters_and_logits(name, options):
    image = random_image(2, 65, 33)
    models = [
        flaxseg.create_model(
            name,
            3,
            backbone=Subsampled(),
            features=8,
            pooling_blocks=1,
            dropout=0.0,
            dtype=dtype,
            **options,
        )
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    shapes = shapes_of(models[1])
    own_names = NameMap("ours", lambda path: path)
    variables, _ = load_weights(shapes, torch_tensors(shapes, own_names), name_maps=[own_names])
    wanted, logits = (jax.jit(model.apply)(variables, image).logits for model in models)
    assert logits.dtype == jnp.float32
    assert 1e-4 < relative_difference(logits, wanted) < 0.1
    gradient = jax.eval_shape(
        jax.grad(lambda v: models[1].apply(v, image, train=True).logits.sum()), variables
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, gradient))} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("refinenet", {"cascades": 3}, "cascades is 3; it must be 1, 2 or 4"),
        ("refinenet", {"scales": ()}, "must have at least one, all positive"),
        ("refinenet", {"scales": (1.0, -0.5)}, r"scales is \(1.0, -0.5\)"),
        ("refinenet_lw", {"form": "mobile"}, "must be one of resnet, mobilenet"),
        ("refinenet_lw", {"form": "mobilenet"}, "ResNet does not declare stage_features"),
        (
            "refinenet_lw",
            {"backbone": MobileNetV2(stages=MobileNetV2().stages[:5])},
            "the backbone has no stage7, stage6",
        ),
    ],
)
def test_mistakes_are_named(name, options, message):
    model = flaxseg.create_model(name, 3, **{"backbone": SMALL()} | options)
    with pytest.raises(ValueError, match=message):
        shapes_of(model)


def test_kernels_begin_as_published():
    def initialisers(model):
        found = set()

        def record(call, args, kwargs, context):
            if isinstance(context.module, AtrousConv):
                found.add(context.module.kernel_init)
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            shapes_of(model)
        (init,) = found  # one for all
        return init(jax.random.key(0), (1, 1, 256, 256))

    heavy, light = (
        initialisers(flaxseg.create_model(name, 3, backbone=Subsampled()))
        for name in ("refinenet", "refinenet_lw")
    )
    assert 0.0098 < float(heavy.std()) < 0.0102
    assert 0.06 < float(np.abs(light).max()) <= 1 / 16  # 256 is the fan-in
    paper = flaxseg.create_model(
        "refinenet_lw", 3, backbone=Subsampled(), kernel_init=nn.initializers.normal(0.01)
    )
    assert 0.0098 < float(initialisers(paper).std()) < 0.0102


def test_backbones_of_two_scales_begin_alike_and_are_no_head(tmp_path):
    model = flaxseg.create_model(
        "refinenet", 3, backbone=SMALL(), features=4, scales=(1.2, 0.6), cascades=1
    )
    variables = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes_of(model))
    backbone = {k: v["backbone"] for k, v in variables.items()}
    np.savez(tmp_path / "net.npz", **torch_tensors(backbone, NAME_MAPS["resnet"][0]))
    variables, _ = load_backbone(model, variables, tmp_path / "net.npz")
    for tree in variables.values():
        assert set(tree) >= {"backbone", "backbone_2"}
        jax.tree.map(np.testing.assert_array_equal, tree["backbone"], tree["backbone_2"])
    params = variables["params"]
    kernels = [params[k]["conv1"]["kernel"] for k in ("backbone", "backbone_2")]
    assert bool(kernels[0].any())
    assert kernels[0] is not kernels[1]
    tx = make_optimizer(params, momentum=0.0, weight_decay=0.0, head_lr_multiplier=10.0)
    ones = jax.tree.map(jnp.ones_like, params)
    update, _ = tx.update(ones, tx.init(params), params)
    factors = {name: float(jax.tree.leaves(part)[0].ravel()[0]) for name, part in update.items()}
    assert factors.pop("backbone") == factors.pop("backbone_2") == 1
    assert set(factors.values()) == {10.0}


def test_stages_of_mobile_networks_are_features_where_asked_for():
    backbone = MobileNetV2()
    image = jax.ShapeDtypeStruct((1, 65, 33, 3), jnp.float32)
    features = jax.eval_shape(
        functools.partial(backbone.apply, stage_features=True), shapes_of(backbone), image
    )
    channels, rows = (16, 24, 32, 64, 96, 160, 320), (33, 17, 9, 5, 5, 3, 3)
    for stage, (c, n) in enumerate(zip(channels, rows, strict=True), 1):
        assert features[f"stage{stage}"].shape == (1, n, (n + 1) // 2, c)
