"""DeepLab v3 and v3+ as TensorFlow released them, against a transcription of their specification,
from files with the names and shapes of the release."""

import functools
import importlib.util
import pathlib

import jax
import numpy as np
import peers
import pytest
from random_weights import random_image, relative_difference, shapes_of, torch_tensors

import flaxseg
from flaxseg.backbones import ResNetBeta, Xception
from flaxseg.errors import WeightsError
from flaxseg.variable_paths import flatten, unflatten
from flaxseg.weights import NAME_MAPS, import_model, load_backbone, load_pretrained, load_weights
from flaxseg.weights.backbone_names.resnet_names import slim_resnet_module
from flaxseg.weights.slim_names import SlimNames

pytestmark = pytest.mark.peer
# Float32 sums in another order: 1e-6 a layer. A wrong rate, padding or order of layers gives 1e-1.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def release():
    peers.import_torch()
    path = pathlib.Path(__file__).parent.parent / "reference" / "deeplab_slim_torch.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_features_equal(release, backbone, reference, names, size):
    """Compares `"c2"` and `"c5"` of a backbone with the reference's."""
    variables, image = release.Variables(), random_image(1, *size)
    low_level, features = reference(variables, peers.to_torch(image))
    loaded, report = load_weights(shapes_of(backbone), dict(variables), name_maps=names)
    assert not report.unused
    ours = jax.jit(backbone.apply)(loaded, image)
    differences = [
        relative_difference(ours[key], peers.from_torch(value))
        for key, value in (("c2", low_level), ("c5", features))
    ]
    print(differences)
    assert max(differences) < TOLERANCE


@pytest.mark.parametrize(("output_stride", "size"), [(8, (50, 65)), (16, (64, 47)), (32, (65, 65))])
def test_xception_equals_the_release(release, output_stride, size):
    backbone = Xception(middle_blocks=2, width=1 / 16, output_stride=output_stride)
    reference = functools.partial(
        release.xception,
        scope="xception_65",
        middle=2,
        output_stride=output_stride,
        width=1 / 16,
    )
    names = NAME_MAPS["xception65"][1:2]
    assert_features_equal(release, backbone, reference, names, size)


@pytest.mark.parametrize(
    ("beta", "output_stride", "multi_grid", "size"),
    [
        (True, 8, (1, 2, 4), (50, 65)),
        (True, 16, (1, 2, 4), (66, 64)),
        (True, 32, (1, 1, 1), (65, 33)),
        (False, 16, (1, 2, 1), (64, 65)),
    ],
)
def test_resnet_v1_equals_the_release(release, beta, output_stride, multi_grid, size):
    units = (3, 2, 3, 3)
    backbone = ResNetBeta(
        stage_sizes=units,
        output_stride=output_stride,
        multi_grid=multi_grid,
        width=1 / 8,
        **({} if beta else {"deep_stem": ()}),
    )
    reference = functools.partial(
        release.resnet_v1,
        scope="resnet_v1_101",
        units=units,
        output_stride=output_stride,
        beta=beta,
        multi_grid=multi_grid,
        width=1 / 8,
    )
    names = [m for m in NAME_MAPS["resnet"] if m.name == "TF-slim resnet_v1"]
    assert_features_equal(release, backbone, reference, names, size)


def test_cascade_equals_the_specification(release):
    units, multi_grid, common = (2, 2, 2, 3), (1, 2, 1), {"scope": "resnet_v1_50", "width": 1 / 8}
    backbone = functools.partial(
        release.resnet_v1,
        units=units,
        output_stride=16,
        beta=True,
        multi_grid=multi_grid,
        **common,
    )
    variables, image = release.Variables(), random_image(1, 65, 97)
    wanted = release.cascade(
        variables,
        peers.to_torch(image),
        backbone,
        num_classes=5,
        rates=(4, 8, 16),
        multi_grid=multi_grid,
        depth=64,
    )
    model = flaxseg.create_model(
        "deeplabv3_cascade",
        5,
        backbone=ResNetBeta(
            stage_sizes=units, output_stride=16, multi_grid=multi_grid, width=1 / 8
        ),
        features=64,
    )

    def module(path):
        part, _, rest = path.partition("/")
        if part == "backbone":
            return f"resnet_v1_50/{slim_resnet_module(rest)}"
        if path == "classifier":
            return "logits"
        return f"{part}/conv{rest[-1]}" + ("/BatchNorm" if rest.startswith("bn") else "")

    names = [SlimNames("reference", module)]
    loaded, report = load_weights(shapes_of(model), dict(variables), name_maps=names)
    assert not report.unused
    ours = jax.jit(model.apply)(loaded, image).logits
    assert relative_difference(ours, peers.from_torch(wanted)) < TOLERANCE


def test_a_decoder_of_two_levels_equals_its_description(release):
    """Table 2 of v3+: from coarse to fine, each level projected, concatenated and convolved."""
    torch = peers.import_torch()
    model = flaxseg.create_model(
        "deeplabv3plus",
        5,
        backbone="xception41",
        backbone_options={"middle_blocks": 1, "width": 1 / 16},
        rates=(),
        features=16,
        image_pooling=False,
        separable=False,
        low_levels=("c3", "c2"),
        low_level_features=6,
        decoder_convs=1,
        decoder_features=12,
        align_corners=True,
    )
    timm, shapes = NAME_MAPS["xception41"][:1], shapes_of(model.backbone)
    body, _ = load_weights(shapes, torch_tensors(shapes, timm[0]), name_maps=timm)
    image = random_image(1, 65, 50)
    features = jax.jit(model.backbone.apply)(body, image)

    v, conv = release.Variables(), functools.partial(release.conv, epsilon=1e-5)
    x = conv(v, "aspp/aspp0", peers.to_torch(features["c5"]), 16)
    x = conv(v, "aspp/project", x, 16)
    for scope, level in (("c3_", "c3"), ("", "c2")):
        low_level = conv(v, f"{scope}low_level", peers.to_torch(features[level]), 6)
        x = torch.cat([release.resize(x, low_level.shape[2:]), low_level], 1)
        x = conv(v, f"{scope}decoder0", x, 12, 3)
    kernel = v.kernel("classifier/weights", 1, 1, 12, 5, fan_in=12)
    bias = v.vector("classifier/biases", 5, -0.2, 0.2)
    x = torch.nn.functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias)
    wanted = release.resize(x, (65, 50))

    def module(path):
        return path.removesuffix("/conv").replace("/bn", "/BatchNorm")

    flat = flatten(shapes_of(model))
    head = unflatten({k: value for k, value in flat.items() if "/backbone/" not in k})
    head, report = load_weights(head, dict(v), name_maps=[SlimNames("reference", module)])
    assert not report.unused
    variables = {key: {**head[key], "backbone": body[key]} for key in head}
    # One branch alone: nothing is rolled to another place of the projection.
    kernel = np.asarray(v["aspp/project/weights"], np.float32)
    np.testing.assert_array_equal(head["params"]["aspp"]["project"]["conv"]["kernel"], kernel)
    ours = jax.jit(model.apply)(variables, image).logits
    assert relative_difference(ours, peers.from_torch(wanted)) < TOLERANCE


# Scope, function of the reference with its arguments, and what the head has.
RELEASED = {
    "xception_41": (("xception", {"middle": 8}), {"separable_convs": True, "decoder_convs": 2}),
    "resnet_v1_50 beta": (
        ("resnet_v1", {"beta": True}),
        {"separable_convs": False, "decoder_convs": 2},
    ),
    "resnet_v1_50": (("resnet_v1", {"beta": False}), {}),
    "MobilenetV2": (("mobilenet_v2", {}), {"rates": ()}),
}


def released(release, name, image, num_classes=5):
    """The checkpoint, with what an optimizer leaves in it, and the logits of a released network."""
    (function, arguments), head = RELEASED[name]
    backbone = functools.partial(
        getattr(release, function), scope=name.split()[0], output_stride=16, **arguments
    )
    variables = release.Variables()
    logits = release.deeplab(
        variables,
        peers.to_torch(image),
        backbone,
        num_classes=num_classes,
        **({"rates": (6, 12, 18)} | head),
    )
    some = "concat_projection/weights"
    slots = {f"{some}/Momentum": variables[some], "global_step": np.int64(30_000)}
    file = {k: np.asarray(v, np.float32) for k, v in variables.items()} | slots
    return file, peers.from_torch(logits)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_network_is_imported_whole(release, name, tmp_path):
    image = random_image(1, 65, 49)
    tensors, wanted = released(release, name, image)
    np.savez(tmp_path / "net.npz", **tensors)
    model, variables = load_pretrained(tmp_path / "net.npz")
    ours = jax.jit(model.apply)(variables, image).logits
    difference = relative_difference(ours, wanted)
    print(name, difference)
    assert difference < TOLERANCE
    mean = 123.15 if name == "resnet_v1_50" else 127.5
    assert model.normalization.mean[0] == mean


def test_an_import_remembers_how_images_are_normalised(release, tmp_path):
    tensors, _ = released(release, "resnet_v1_50", random_image(1, 33, 33))
    np.savez(tmp_path / "net.npz", **tensors)
    card = flaxseg.read_model_card(import_model(tmp_path / "net.npz", tmp_path / "model"))
    assert card["normalization"] == {"mean": [123.15, 115.90, 103.06], "std": [1.0] * 3}
    assert card["options"]["backbone_options"]["stride_unit"] == "last"


def test_files_of_other_networks_are_refused(release, tmp_path):
    tensors, _ = released(release, "MobilenetV2", random_image(1, 33, 33))
    path = tmp_path / "net.npz"
    np.savez(path, **{k.replace("MobilenetV2/", "MobilenetV3/"): v for k, v in tensors.items()})
    with pytest.raises(WeightsError, match="one of them must be of a backbone: xception_41"):
        load_pretrained(path)
    np.savez(path, **{k: v for k, v in tensors.items() if "expanded_conv_7/expand" not in k})
    with pytest.raises(WeightsError, match=r"as MobilenetV2/expanded_conv_7/expand/weights"):
        load_pretrained(path)


def test_a_backbone_is_taken_out_of_a_released_network(release, tmp_path):
    tensors, _ = released(release, "MobilenetV2", random_image(1, 33, 33))
    np.savez(tmp_path / "net.npz", **tensors)
    model = flaxseg.create_model("deeplabv3", 2, backbone="mobilenet_v2", rates=(), features=8)
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes_of(model))
    loaded, report = load_backbone(model, variables, tmp_path / "net.npz")
    assert report.layout == "TF-slim MobilenetV2"
    np.testing.assert_array_equal(
        loaded["params"]["backbone"]["block3"]["depthwise_conv"]["kernel"],
        tensors["MobilenetV2/expanded_conv_2/depthwise/depthwise_weights"].swapaxes(2, 3),
    )


def test_a_deeper_network_does_not_pass_for_a_shallower_one(release):
    variables = release.Variables()
    image = peers.to_torch(random_image(1, 33, 33))
    release.xception(variables, image, scope="net", middle=3, output_stride=32, width=1 / 32)
    shallow = shapes_of(Xception(middle_blocks=2, width=1 / 32))
    with pytest.raises(WeightsError, match=r"larger network.*unit_3"):
        load_weights(shallow, dict(variables), name_maps=NAME_MAPS["xception41"])
