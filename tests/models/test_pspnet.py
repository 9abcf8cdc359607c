"""PSPNet: sizes and parameters of the specification, both kinds of dropout, and equality with a
transcription of the specification from each of the published layouts of weights."""

import functools
import importlib.util
import pathlib
import zlib

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from random_weights import random_image, relative_difference, shapes_of, torch_tensors

import flaxseg
from flaxseg.backbones import EfficientNetLite0, ResNet
from flaxseg.backbones.resnet import BasicBlock
from flaxseg.errors import WeightsError
from flaxseg.evaluation.metrics import ConfusionMatrix
from flaxseg.layers import AuxiliaryHead, normalize, resize
from flaxseg.training.optimizer import make_optimizer
from flaxseg.training.state import create_state
from flaxseg.training.step import make_train_step
from flaxseg.variable_paths import flatten
from flaxseg.weights import (
    NAME_MAPS,
    import_model,
    load_backbone,
    load_pretrained,
    load_weights,
)
from flaxseg.weights.layouts.pspnet_layout import SEMSEG_PSPNET

TOLERANCE = 1e-4


def reference_module():
    peers.import_torch()
    path = pathlib.Path(__file__).parent.parent / "reference" / "pspnet_torch.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("backbone", "millions"),
    [
        ("resnet50", (46.783, 46.716, 46.715)),
        pytest.param("resnet101", (65.775, 65.709, 65.707), marks=pytest.mark.slow),
        pytest.param("resnet152", (81.418, 81.352, 81.351), marks=pytest.mark.slow),
    ],
)
def test_parameters_are_those_of_the_specification(backbone, millions):
    for num_classes, wanted in zip((150, 21, 19), millions, strict=True):
        model = flaxseg.create_model("pspnet", num_classes, backbone=backbone, auxiliary=True)
        params = shapes_of(model)["params"]
        auxiliary = count(params["auxiliary_head"])
        assert round((count(params) - auxiliary) / 1e6, 3) == wanted
        assert auxiliary == 9 * 1024 * 256 + 2 * 256 + 257 * num_classes
        assert count(params["pyramid_pooling"]) == 4_198_400


@pytest.mark.peer
@pytest.mark.parametrize("num_classes", [19, 21, 150])
@pytest.mark.parametrize("depth", [50, 101, 152])
def test_parameters_are_those_of_the_transcription_one_by_one(depth, num_classes):
    torch, reference = peers.import_torch(), reference_module()
    with torch.device("meta"):
        net = reference.PSPNet(num_classes, reference.UNITS[depth])
    wanted = {k: p.numel() for k, p in net.named_parameters()}
    backbone = f"resnet{depth}"
    model = flaxseg.create_model("pspnet", num_classes, backbone=backbone, auxiliary=True)
    params = flatten({"params": shapes_of(model)["params"]})
    assert {SEMSEG_PSPNET.tensor_name(path): leaf.size for path, leaf in params.items()} == wanted


def test_a_plain_stem_and_a_network_without_a_pyramid():
    plain = flaxseg.create_model(
        "pspnet", 19, backbone="resnet101", backbone_options={"deep_stem": ()}
    )
    assert round(count(shapes_of(plain)["params"]) / 1e6, 2) == 65.58
    # The ablation's baseline: the 3x3 convolution reads 2048 channels and not 4096.
    baseline = shapes_of(flaxseg.create_model("pspnet", 19, bins=()))["params"]
    whole = shapes_of(flaxseg.create_model("pspnet", 19))["params"]
    assert count(whole) - count(baseline) == 4_198_400 + 9 * 2048 * 512


@pytest.mark.parametrize(("side", "sizes"), [(473, (237, 119, 60)), (713, (357, 179, 90))])
def test_sizes_are_those_of_the_specification(side, sizes):
    model = flaxseg.create_model("pspnet", 19)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = shapes_of(model)
    backbone = {k: v["backbone"] for k, v in variables.items()}
    features = jax.eval_shape(model.backbone.apply, backbone, image)
    channels = {"c1": 128, "c2": 256, "c3": 512, "c4": 1024, "c5": 2048}
    wanted = dict(zip(channels, (*sizes, sizes[-1], sizes[-1]), strict=True))
    assert {k: v.shape[1:] for k, v in features.items()} == {
        k: (wanted[k], wanted[k], channels[k]) for k in channels
    }
    assert jax.eval_shape(model.apply, variables, image).logits.shape == (1, side, side, 19)


def random_state(net):
    """Seeded values for all tensors of a PyTorch network, with variances that keep its features in
    bounds."""
    tensors = {}
    for name, value in net.state_dict().items():
        rng = np.random.default_rng([0, zlib.crc32(name.encode())])
        if value.ndim == 4:
            values = rng.normal(size=value.shape) * np.sqrt(2 / np.prod(value.shape[1:]))
        elif name.endswith("var"):
            values = rng.uniform(0.5, 1.5, value.shape)
        elif name.endswith("weight"):
            values = rng.uniform(0.3, 0.9, value.shape)
        else:
            values = rng.normal(size=value.shape) * 0.1
        if value.ndim:
            tensors[name] = values.astype(np.float32)
    return tensors


def write_published(tensors, layout, reference, directory):
    """A file as the release has it."""
    if layout == "caffe":
        blobs = {reference.caffe_name(name): value for name, value in tensors.items()}
        # BN layers of that Caffe have four axes.
        blobs = {k: v[None, :, None, None] if "/bn." in k else v for k, v in blobs.items()}
        np.savez(directory / "net.npz", **blobs)
        return directory / "net.npz"
    torch = peers.import_torch()
    rename = {
        "semseg": lambda name: f"module.{name}",
        "mmsegmentation": reference.mmsegmentation_name,
    }[layout]
    state = {rename(name): torch.from_numpy(value) for name, value in tensors.items()}
    counts = {k.replace("mean", "num_batches_tracked") for k in state if k.endswith("_mean")}
    state |= {k.replace("running_", ""): torch.tensor(7) for k in counts}
    content = {"epoch": 50, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(content, directory / "net.pth")
    return directory / "net.pth"


LAYOUTS = {
    "semseg": ({}, {}),
    "mmsegmentation": (
        {"stem": (32, 32, 64), "dilate_first_unit": False, "align_corners": False},
        {},
    ),
    "caffe": (
        # At a map of 8x9 cells: Caffe's windows leave smaller ones at the end.
        {"stride_on_1x1": True, "order": (3, 2, 1, 0), "windows": (9, 5, 3, 2)},
        {"windows": (2, 3, 5, 9)},
    ),
}


@pytest.mark.peer
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_published_weights_give_the_logits_of_the_transcription(tmp_path, layout):
    """From a file with the names and shapes of the release to logits at the size of the image."""
    reference = reference_module()
    their_options, overrides = LAYOUTS[layout]
    net = reference.PSPNet(5, **their_options, auxiliary=layout != "caffe")
    tensors = random_state(net)
    net = peers.load_state(net, tensors)
    path = write_published(tensors, layout, reference, tmp_path)
    model, variables = load_pretrained(path, **overrides)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 57, 65, 3)).astype(np.uint8)
    if layout == "caffe":
        their_image = pixels[..., ::-1] - np.float32([103.939, 116.779, 123.68])
    else:
        their_image = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    logits, auxiliary = net(peers.to_torch(their_image.astype(np.float32)))
    image = normalize(pixels, model.normalization)
    difference = relative_difference(
        jax.jit(model.apply)(variables, image).logits, peers.from_torch(logits)
    )
    print(layout, difference)
    assert difference < TOLERANCE
    assert model.auxiliary == (auxiliary is not None)
    if layout == "semseg":

        @jax.jit
        def auxiliary_logits(variables, image):
            backbone, head = (
                {k: v[part] for k, v in variables.items()}
                for part in ("backbone", "auxiliary_head")
            )
            return AuxiliaryHead(5).apply(head, model.backbone.apply(backbone, image)["c4"])

        theirs = peers.from_torch(auxiliary)
        assert relative_difference(auxiliary_logits(variables, image), theirs) < TOLERANCE


@pytest.mark.peer
@pytest.mark.slow
def test_loss_and_gradients_of_a_training_step_equal_torch():
    """Both losses in semseg's form: logits upsampled with aligned corners, weights 1 and 0.4."""
    torch, reference = peers.import_torch(), reference_module()
    net = reference.PSPNet(5, (1, 1, 1, 1))
    tensors = random_state(net)
    net = peers.load_state(net, tensors).train()
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.0
    model = flaxseg.create_model(
        "pspnet",
        5,
        backbone=ResNet(
            stage_sizes=(1, 1, 1, 1),
            deep_stem=(64, 64, 128),
            dilate_first_unit=True,
            output_stride=8,
        ),
        dropout=0.0,
        auxiliary=True,
    )
    variables, _ = load_weights(shapes_of(model), tensors, name_maps=[SEMSEG_PSPNET])
    image = random_image(4, 57, 57)
    label = np.random.default_rng(0).integers(0, 5, (4, 57, 57))

    @jax.jit
    def loss_and_gradient(params):
        def loss(params):
            prediction, _ = model.apply(
                {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
            )
            auxiliary = resize(prediction.auxiliary["c4"], (57, 57), align_corners=True)
            total = 0.0
            for weight, logits in ((1.0, prediction.logits), (0.4, auxiliary)):
                log_probs = jax.nn.log_softmax(logits)
                total -= weight * jnp.take_along_axis(log_probs, label[..., None], -1).mean()
            return total

        return jax.value_and_grad(loss)(params)

    loss, gradient = loss_and_gradient(variables["params"])
    functional = torch.nn.functional
    logits, auxiliary = net(peers.to_torch(image))
    auxiliary = functional.interpolate(auxiliary, (57, 57), mode="bilinear", align_corners=True)
    target = torch.from_numpy(label)
    theirs = functional.cross_entropy(logits, target)
    theirs = theirs + 0.4 * functional.cross_entropy(auxiliary, target)
    theirs.backward()
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)
    parameters = dict(net.named_parameters())
    differences = {}
    for path, value in flatten({"params": gradient}).items():
        name = SEMSEG_PSPNET.tensor_name(path)
        wanted = SEMSEG_PSPNET.convert(path, parameters[name].grad.numpy())
        differences[name] = np.linalg.norm(value - wanted) / np.linalg.norm(wanted)
    print(sorted(differences.items(), key=lambda item: item[1])[-5:])
    # Of all entries of a tensor together. A ReLU whose input is zero but for rounding is open in
    # one framework and closed in the other: one does so here, and moves one of 2048 channels.
    assert max(differences.values()) < 3e-3


@pytest.mark.peer
def test_the_caffe_net_is_saved_with_its_normalisation_and_form(tmp_path):
    reference = reference_module()
    torch = peers.import_torch()
    with torch.device("meta"):
        net = reference.PSPNet(3, auxiliary=False)
    # Nothing is computed: zeros of the right shapes will do.
    tensors = {k: np.zeros(v.shape, np.float32) for k, v in net.state_dict().items() if v.ndim}
    path = write_published(tensors, "caffe", reference, tmp_path)
    directory = import_model(path, tmp_path / "model")
    card = flaxseg.read_model_card(directory)
    assert card["normalization"] == {"mean": [123.68, 116.779, 103.939], "std": [1.0, 1.0, 1.0]}
    model, _ = flaxseg.load_model(directory)
    assert model.bins == (6, 3, 2, 1)
    assert not model.channel_dropout
    assert model.backbone.stride_on == "1x1"
    assert model.backbone.deep_stem == (64, 64, 128)
    assert model.backbone.dilate_first_unit
    assert model.backbone.output_stride == 8


def test_unknown_depths_are_refused(tmp_path):
    tensors = {"ppm.features.0.1.weight": np.zeros((1, 1, 1, 1), np.float32)}
    np.savez(tmp_path / "net.npz", **tensors)
    with pytest.raises(WeightsError, match=r"0 units in its third stage; known are resnet50"):
        load_pretrained(tmp_path / "net.npz")


SMALL = functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), block=BasicBlock, output_stride=16)


@pytest.mark.parametrize("channel_dropout", [True, False])
def test_dropout_takes_whole_channels_or_single_elements(channel_dropout):
    """With a classifier that hands the features through, logits show what was dropped."""
    model = flaxseg.create_model(
        "pspnet",
        16,
        backbone=SMALL(frozen_batch_norm=True),
        output_stride=16,
        features=16,
        dropout=0.5,
        channel_dropout=channel_dropout,
        auxiliary=True,
        frozen_batch_norm=True,
    )
    variables = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes_of(model))
    for head, features in (
        (variables["params"], 16),
        (variables["params"]["auxiliary_head"], 64),
    ):
        head["classifier"]["kernel"] = np.eye(features, 16, dtype=np.float32)[None, None]
    for path in (("head",), ("auxiliary_head", "block")):  # features are one everywhere
        block = variables["params"]
        for name in path:
            block = block[name]
        block["bn"]["bias"] = np.ones_like(block["bn"]["bias"])
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    prediction, _ = apply(variables, random_image(2, 65, 65), rngs={"dropout": jax.random.key(0)})
    # Corners are aligned, so every 16th pixel shows a cell.
    for logits in (prediction.logits[:, ::16, ::16], prediction.auxiliary["c4"]):
        assert logits.shape == (2, 5, 5, 16)
        np.testing.assert_array_equal(np.unique(np.round(logits, 5)), [0, 2])
        whole = (logits == logits[:, :1, :1]).all((1, 2))
        assert bool(whole.all()) == channel_dropout
        assert 0.2 < float((logits > 0).mean()) < 0.8


def test_aligned_corners_equal_cells_at_the_sizes_of_the_releases_only():
    models = [
        flaxseg.create_model(
            "pspnet",
            3,
            backbone=SMALL(width=1 / 8),
            output_stride=16,
            features=8,
            align_corners=align_corners,
        )
        for align_corners in ("cells", True)
    ]
    variables = jax.jit(models[0].init)(jax.random.key(0), random_image(1, 33, 33))
    for side, equal in ((33, True), (40, False)):
        logits = [jax.jit(m.apply)(variables, random_image(1, side, side)).logits for m in models]
        assert np.allclose(*logits, atol=1e-5 * float(np.abs(logits[0]).max())) == equal


def test_any_backbone_with_named_features_is_one_call():
    model = flaxseg.create_model("pspnet", 11, backbone="efficientnet_lite0", auxiliary=True)
    assert isinstance(model.backbone, EfficientNetLite0)
    assert model.backbone.output_stride == 8
    params = shapes_of(model)["params"]
    assert params["pyramid_pooling"]["pool6"]["conv"]["kernel"].shape == (1, 1, 320, 80)
    assert params["head"]["conv"]["kernel"].shape == (3, 3, 640, 512)


@pytest.mark.parametrize("library", ["timm", "semseg", "mmsegmentation"])
def test_imagenet_weights_of_deep_stems_are_recognised(tmp_path, library):
    channels = (32, 32, 64) if library == "mmsegmentation" else (64, 64, 128)
    model = flaxseg.create_model(
        "pspnet",
        3,
        backbone=ResNet(stage_sizes=(1, 1, 1, 1), deep_stem=channels, output_stride=8),
    )
    shapes = shapes_of(model)
    backbone = {k: v["backbone"] for k, v in shapes.items()}
    name_map = next(m for m in NAME_MAPS["resnet"] if library in m.name)
    tensors = torch_tensors(backbone, name_map)
    tensors["fc.weight"] = np.zeros((1000, 2048), np.float32)
    np.savez(tmp_path / "net.npz", **tensors)
    variables, report = load_backbone(model, shapes, tmp_path / "net.npz")
    assert report.layout == name_map.name
    assert report.unused == ("fc.weight",)
    name = {"timm": "conv1.6.weight", "semseg": "conv3.weight", "mmsegmentation": "stem.6.weight"}
    np.testing.assert_array_equal(
        variables["params"]["backbone"]["conv1_3"]["kernel"],
        tensors[name[library]].transpose(2, 3, 1, 0),
    )


def coarse_camvid(shared_dir, size=(65, 81)):
    """Four small CamVid images and labels as coarse as features at stride 8: what an overfitting
    network can give back whatever its upsampling."""
    folder = shared_dir / "data" / "camvid"
    stems = sorted(path.stem for path in (folder / "train").glob("*.jpg"))[::92]
    images, labels = [], []
    for stem in stems:
        image = cv2.imread(str(folder / "train" / f"{stem}.jpg"))[..., ::-1]
        label = cv2.imread(str(folder / "trainannot" / f"{stem}.png"), cv2.IMREAD_GRAYSCALE)
        images.append(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA))
        cells = ((size[1] + 7) // 8, (size[0] + 7) // 8)
        labels.append(cv2.resize(label, cells, interpolation=cv2.INTER_NEAREST))
    label = np.stack(labels)
    label[label == 11] = 255
    label = resize(label[..., None], size, method="nearest", align_corners=True)
    return np.stack(images), np.asarray(label[..., 0])


@pytest.mark.slow
@pytest.mark.promotes("optax")
def test_four_images_are_learned_by_heart(shared_dir):
    pixels, label = coarse_camvid(shared_dir)
    assert len(pixels) == 4
    model = flaxseg.create_model(
        "pspnet",
        11,
        backbone=SMALL(output_stride=8, width=0.5),
        features=64,
        dropout=0.0,
        auxiliary=True,
    )
    tx = make_optimizer(
        shapes_of(model)["params"], name="adam", weight_decay=0.0, head_lr_multiplier=1.0
    )
    state = create_state(model, tx, 0, label.shape[1:])
    step = jax.jit(
        make_train_step(model, tx, schedule=lambda step: 4e-3),
        donate_argnums=0,
    )
    batch = {"image": pixels, "label": label}
    apply = jax.jit(model.apply)
    for count in range(1, 151):
        state, metrics = step(state, batch)
        if count % 25 == 0:
            logits = apply(state.variables(), normalize(pixels, model.normalization)).logits
            matrix = ConfusionMatrix(11)
            matrix.update(label, np.asarray(logits.argmax(-1)))
            print(count, float(metrics["loss"]), matrix.table())
            if matrix.metrics().miou > 0.9:
                break
    assert matrix.metrics().miou > 0.9
