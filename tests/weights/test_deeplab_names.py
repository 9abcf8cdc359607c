"""Published DeepLab v1 and v2 checkpoints: files with the real names and shapes, loaded, run and
compared with the transcription that has the same tensors."""

import importlib.util
import pathlib

import jax
import numpy as np
import peers
import pytest
import safetensors.numpy
from random_weights import random_image, relative_difference, shapes_of, torch_tensors

import flaxseg
from flaxseg.errors import WeightsError
from flaxseg.variable_paths import flatten
from flaxseg.weights import NAME_MAPS, NameMap, load_backbone, load_pretrained, read_pretrained
from flaxseg.weights.backbone_names.resnet_names import CaffeResNetNames, caffe_resnet_module
from flaxseg.weights.caffe_tensors import caffe_tensors
from flaxseg.weights.layouts.deeplab_v1_v2_layout import (
    MEAN,
    deeplab_resnet_module,
    deeplab_vgg_module,
    kazuto_module,
)

TOLERANCE = 1e-4
BGR = ("backbone/conv1", "backbone/conv1_1", "image_mlp/conv1")
VGG_NAMES = NameMap("Caffe", deeplab_vgg_module("voc12"), bgr=BGR)
POOLS = ("data", "pool1", "pool2", "pool3", "pool4")


def resnet_names(numbered=True, head="fc1_voc12_c{}"):
    return CaffeResNetNames(
        "Caffe", deeplab_resnet_module(caffe_resnet_module(numbered), head), bgr=BGR
    )


def tensors_of(name_map, name, num_classes=21, **options):
    """Random tensors under their names, and the shapes of our model."""
    shapes = shapes_of(flaxseg.create_model(name, num_classes, **options))
    return torch_tensors(shapes, name_map)


def reference():
    peers.import_torch()
    path = pathlib.Path(__file__).parent.parent / "reference" / "deeplab_v1_v2_torch.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def save(path, tensors):
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    return path


def assert_same_logits(model, variables, net, unit=8):
    """Ours, on red, green, blue, equals theirs on blue, green, red."""
    image = random_image(1, 33, 40)
    wanted = reference().canvas(net, peers.to_torch(image[..., ::-1]), unit)
    logits = jax.jit(model.apply)(variables, image).logits
    assert relative_difference(logits, peers.from_torch(wanted)) < TOLERANCE


@pytest.mark.peer
def test_caffe_large_fov_with_msc(tmp_path):
    """The biases of the branches' classifiers become part of the one."""
    tensors = tensors_of(VGG_NAMES, "deeplabv1", multi_scale=True)
    assert tensors["fc6.weight"].shape == (1024, 512, 3, 3)
    assert tensors["data_conv.weight"].shape == (128, 3, 3, 3)
    assert tensors["pool4_ms.weight"].shape == (21, 128, 1, 1)
    rng = np.random.default_rng(0)
    tensors |= {f"{name}_ms.bias": rng.normal(size=21).astype(np.float32) for name in POOLS}
    net = peers.load_state(reference().VGG(21, msc=128), tensors)
    model, variables = load_pretrained(save(tmp_path / "net.safetensors", tensors))
    assert model.multi_scale
    assert model.average_pool
    assert (model.rate, model.num_classes) == (12, 21)
    assert model.normalization == flaxseg.layers.ImageNormalization(MEAN, (1.0, 1.0, 1.0))
    assert_same_logits(model, variables, net)


@pytest.mark.peer
def test_caffe_vgg_with_aspp_as_numbered_blobs(tmp_path):
    tensors = tensors_of(VGG_NAMES, "deeplabv2", backbone="vgg16")
    assert tensors["fc8_voc12_4.weight"].shape == (21, 1024, 1, 1)
    blobs = {
        name.replace(".weight", ".0").replace(".bias", ".1"): value
        for name, value in tensors.items()
    }
    np.savez(tmp_path / "net.npz", **blobs)
    net = reference().VGG(21, average_pool=False, aspp=(6, 12, 18, 24))
    model, variables = load_pretrained(tmp_path / "net.npz")
    assert_same_logits(model, variables, peers.load_state(net, tensors))


@pytest.mark.peer
@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.slow)])
def test_caffe_resnet_as_numbered_blobs(tmp_path, depth):
    """Also: BatchNorm's statistics times a factor, and the copies at other scales."""
    names = resnet_names(numbered=depth == 101)
    tensors = tensors_of(names, "deeplabv2", backbone=f"resnet{depth}")
    if depth == 101:
        assert tensors["res4b22_branch2b.weight"].shape == (256, 256, 3, 3)
    assert tensors["scale2a_branch2a.weight"].shape == (64,)
    assert tensors["bn_conv1.running_mean"].shape == (64,)
    assert tensors["fc1_voc12_c3.weight"].shape == (21, 2048, 3, 3)
    blobs = {}
    for name, value in tensors.items():
        layer, leaf = name.split(".")
        blob = {"weight": 0, "bias": 1, "running_mean": 0, "running_var": 1}[leaf]
        if leaf.startswith("running"):
            value = value * np.float32(999.98)
            blobs[f"{layer}.2"] = np.full((1,), 999.98, np.float32)
        blobs[f"{layer}.{blob}"] = value
    blobs["conv1_res075.0"] = blobs["conv1.0"]
    blobs["fc1_voc12_c0_res05.0"] = blobs["fc1_voc12_c0.0"]
    units = (3, 4, 23, 3) if depth == 101 else (3, 4, 6, 3)
    net = peers.load_state(reference().ResNet(21, units=units), tensors)
    path = save(tmp_path / "net.safetensors", blobs)
    model, variables = load_pretrained(path, scales=(1.0,))
    assert read_pretrained(path).options["scales"] == (1.0, 0.75, 0.5)
    assert model.backbone.stride_on == "1x1"
    assert_same_logits(model, variables, net)


KAZUTO = NameMap("kazuto", deeplab_resnet_module(kazuto_module, "aspp.c{}"), bgr=BGR)
ISHT7 = NameMap(
    "isht7",
    deeplab_resnet_module(NAME_MAPS["resnet"][0].module, "layer5.conv2d_list.{}"),
    bgr=BGR,
)


@pytest.mark.parametrize(
    ("name_map", "prefix", "expected"),
    [
        (
            KAZUTO,
            "base.",
            {
                "layer1.conv1.bn.running_var": (64,),
                "layer2.block1.shortcut.conv.weight": (256, 64, 1, 1),
                "layer4.block6.conv3x3.conv.weight": (256, 256, 3, 3),
                "aspp.c3.bias": (21,),
            },
        ),
        pytest.param(
            ISHT7,
            "Scale.",
            {
                "bn1.running_var": (64,),
                "layer1.0.downsample.0.weight": (256, 64, 1, 1),
                "layer3.5.conv2.weight": (256, 256, 3, 3),
                "layer5.conv2d_list.3.bias": (21,),
            },
            marks=pytest.mark.slow,
        ),
        pytest.param(
            resnet_names(numbered=False, head="fc1_coco{}"),
            "",
            {"res4f_branch2b.weight": (256, 256, 3, 3), "scale4f_branch2c.bias": (1024,)},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_ports_have_the_same_tensors_under_other_names(tmp_path, name_map, prefix, expected):
    options = {"backbone": "resnet50"}
    several = "fc1_coco" not in str(name_map.module("aspp/classifier_1"))
    if not several:
        name_map = resnet_names(numbered=False, head="fc1_coco")
        options["rates"] = (12,)
    tensors = tensors_of(name_map, "deeplabv2", **options)
    assert {name: tensors[name].shape for name in expected} == expected
    path = save(tmp_path / "net.safetensors", {prefix + k: v for k, v in tensors.items()})
    pretrained = read_pretrained(path)
    assert pretrained.options["rates"] == ((6, 12, 18, 24) if several else (12,))
    flat = flatten(pretrained.variables)
    assert len(flat) == len(tensors)
    for place, value in flat.items():
        wanted = tensors[name_map.tensor_name(place)]
        if place.endswith("/kernel"):
            wanted = wanted.transpose(2, 3, 1, 0)
        if place == "params/backbone/conv1/kernel":
            wanted = wanted[:, :, ::-1]
        np.testing.assert_array_equal(value, wanted, err_msg=place)


def test_tensorflow_conversions_have_kernels_with_channels_last():
    converted = caffe_tensors(
        {
            "res2a_branch2a/weights": np.zeros((1, 2, 3, 4)),
            "fc1_voc12_c0/biases": np.zeros(21),
            "bn2a_branch2a/gamma": np.zeros(4),
            "bn2a_branch2a/beta": np.zeros(4),
            "bn2a_branch2a/moving_mean": np.zeros(4),
            "bn2a_branch2a/moving_variance": np.zeros(4),
        }
    )
    assert {name: value.shape for name, value in converted.items()} == {
        "res2a_branch2a.weight": (4, 3, 1, 2),
        "fc1_voc12_c0.bias": (21,),
        "scale2a_branch2a.weight": (4,),
        "scale2a_branch2a.bias": (4,),
        "bn2a_branch2a.running_mean": (4,),
        "bn2a_branch2a.running_var": (4,),
    }


def test_other_tensors_stay_as_they_are():
    tensors = {
        "params/backbone/conv1/kernel": np.zeros((1, 1, 2, 3)),
        "layer1.0.conv1.weight": np.zeros((3, 2, 1, 1)),
        "bn.0": np.zeros(3),
        "bn.1": np.zeros(3),
        "bn.2": np.zeros(3),
        "bn.3": np.zeros(3),
    }
    assert caffe_tensors(tensors).keys() == tensors.keys()


def test_caffe_resnet_as_a_backbone_wants_caffe_images(tmp_path):
    names = CaffeResNetNames("Caffe", caffe_resnet_module(numbered=False), bgr=("conv1",))
    tensors = torch_tensors(shapes_of(flaxseg.backbones.create_backbone("resnet50")), names)
    tensors |= {"fc1000.weight": np.zeros((1000, 2048)), "fc1000.bias": np.zeros(1000)}
    path = save(tmp_path / "net.safetensors", tensors)
    model = flaxseg.create_model("deeplabv2", 3, backbone="resnet50")
    with pytest.raises(WeightsError, match="it would see wrong colours"):
        load_backbone(model, shapes_of(model), path)
    normalization = flaxseg.layers.CAFFE
    model = flaxseg.create_model("deeplabv2", 3, backbone="resnet50", normalization=normalization)
    variables, report = load_backbone(model, shapes_of(model), path)
    assert report.layout == "Caffe ResNet-50"
    assert set(report.unused) == {"fc1000.weight", "fc1000.bias"}
    kernel = variables["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0)[:, :, ::-1])


def test_other_fields_of_view_are_told_by_their_shapes(tmp_path):
    tensors = tensors_of(VGG_NAMES, "deeplabv1", 3, features=8, kernel_size=4, rate=4)
    pretrained = read_pretrained(save(tmp_path / "a.safetensors", tensors))
    assert pretrained.options["kernel_size"] == pretrained.options["rate"] == 4
    assert not pretrained.options["average_pool"]
    tensors["fc6.weight"] = np.zeros((8, 512, 5, 5), np.float32)
    with pytest.raises(WeightsError, match=r"fc6\.weight has shape \(8, 512, 5, 5\)"):
        read_pretrained(save(tmp_path / "b.safetensors", tensors))


def test_another_number_of_branches_is_refused(tmp_path):
    tensors = tensors_of(KAZUTO, "deeplabv2", 3, backbone="resnet50", rates=(1, 2))
    with pytest.raises(WeightsError, match="has 2 branches"):
        read_pretrained(save(tmp_path / "a.safetensors", tensors))


@pytest.fixture(scope="module")
def small_vgg(tmp_path_factory):
    """A Caffe VGG16 with fc6 and fc7 of 7x7 and 16 channels, and of how it is saved."""
    shapes = shapes_of(flaxseg.backbones.create_backbone("vgg16", fc_features=(16, 16)))
    tensors = torch_tensors(shapes, NAME_MAPS["vgg16"][2])
    # As Caffe's classifier has it: a matrix.
    tensors["fc6.weight"] = tensors["fc6.weight"].reshape(16, -1)
    return tensors, save(tmp_path_factory.mktemp("vgg") / "net.safetensors", tensors)


@pytest.mark.parametrize(
    ("name", "options", "taps"),
    [
        ("deeplabv1", {"features": 8}, (0, 3, 6)),
        ("deeplabv1", {"features": 8, "kernel_size": 4, "rate": 4}, (0, 2, 4, 6)),
        ("deeplabv1", {"features": 8, "kernel_size": 7, "rate": 4}, range(7)),
        ("deeplabv2", {"backbone": "vgg16", "fc_features": 8, "rates": (6, 12)}, (0, 3, 6)),
    ],
)
def test_fully_connected_layers_of_vgg_are_thinned_out_for_the_head(small_vgg, name, options, taps):
    tensors, path = small_vgg
    model = flaxseg.create_model(name, 3, **options)
    variables, report = load_backbone(model, shapes_of(model), path)
    fc6 = tensors["fc6.weight"].reshape(16, 512, 7, 7)
    head = variables["params"]
    pairs = [("fc6", "fc7")]
    if name == "deeplabv2":
        head, pairs = head["aspp"], [("fc6_1", "fc7_1"), ("fc6_2", "fc7_2")]
    for ours6, ours7 in pairs:
        for i, row in enumerate(taps):
            for j, column in enumerate(taps):
                wanted = fc6[::2, :, row, column].T
                np.testing.assert_array_equal(head[ours6]["kernel"][i, j], wanted)
        np.testing.assert_array_equal(head[ours6]["bias"], tensors["fc6.bias"][::2])
        fc7 = tensors["fc7.weight"][::2, ::2, 0, 0].T
        np.testing.assert_array_equal(head[ours7]["kernel"][0, 0], fc7)
        np.testing.assert_array_equal(head[ours7]["bias"], tensors["fc7.bias"][::2])
    assert not report.unused
    assert "fc6 [7, 7, 512, 16] was taken as" in str(report)


def test_larger_fully_connected_layers_stay_fresh(small_vgg):
    model = flaxseg.create_model("deeplabv1", 3, features=32)
    shapes = shapes_of(model)
    variables, report = load_backbone(model, shapes, small_vgg[1])
    assert variables["params"]["fc6"] == shapes["params"]["fc6"]
    assert "fc6.weight" in report.unused
