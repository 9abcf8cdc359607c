"""FCN checkpoints of Caffe and of torchvision: recognised, imported, the same function; and the way
from FCN-32s to FCN-8s."""

import importlib.util
import pathlib

import jax
import numpy as np
import peers
import pytest
import safetensors.numpy
from random_weights import random_image, relative_difference, shapes_of, torch_tensors

import flaxseg
from flaxseg.backbones import VGG, create_backbone
from flaxseg.errors import WeightsError
from flaxseg.layers import CAFFE, bilinear_kernel
from flaxseg.saved_model import save_model
from flaxseg.variable_paths import flatten
from flaxseg.weights import (
    NAME_MAPS,
    import_model,
    load_backbone,
    load_into,
    load_pretrained,
    load_weights,
    read_pretrained,
)
from flaxseg.weights.layouts.fcn_layout import TORCHVISION_FCN, caffe_fcn_map

CLASSES, WIDTH = 4, 16


def released(name):
    """Random tensors with the names and layouts of a released net, narrow in fc6 and fc7."""
    options = {"fc_features": (WIDTH, WIDTH)}
    model = flaxseg.create_model(name, CLASSES, backbone_options=options)
    tensors = torch_tensors(shapes_of(model), caffe_fcn_map(name))
    ups = {
        "fcn32s": {"upscore": 64},
        "fcn16s": {"upscore2": 4, "upscore16": 32},
        "fcn_alexnet": {"upscore": 63},
    }.get(name, {"upscore2": 4, "upscore_pool4": 4, "upscore8": 16})
    for up, size in ups.items():
        line = bilinear_kernel(size)
        tensors[f"{up}.weight"] = np.einsum(
            "ij,k,l->ijkl", np.eye(CLASSES, dtype=np.float32), line, line
        )
    return tensors


def saved(tensors, path):
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("fcn32s", "fcn32s.safetensors"),
        ("fcn16s", "fcn16s.safetensors"),
        ("fcn8s", "fcn8s-heavy.safetensors"),
        ("fcn8s_atonce", "fcn8s-atonce_from_caffe.safetensors"),
        ("fcn8s_atonce", "scaled.safetensors"),
        ("fcn_alexnet", "voc-fcn-alexnet.safetensors"),
    ],
)
def test_released_nets_are_told_by_their_names(tmp_path, name, file):
    tensors = released(name)
    if file == "scaled.safetensors":
        tensors["scale_pool4.weight"] = np.float32([0.01])
        tensors["scale_pool3.weight"] = np.float32([0.0001])
    # As the classifier has it: fully connected over [C, H, W].
    tensors["fc6.weight"] = tensors["fc6.weight"].reshape(WIDTH, -1)
    read = read_pretrained(saved(tensors, tmp_path / file))
    assert (read.name, read.num_classes) == (name, CLASSES)
    model = read.create_model()
    assert model.normalization == CAFFE
    assert flatten(shapes_of(model)).keys() == flatten(read.variables).keys()
    np.testing.assert_allclose(model.skip_scales, (0.01, 0.0001) if name == "fcn8s_atonce" else ())
    first = "conv1" if name == "fcn_alexnet" else "conv1_1"
    kernel = np.asarray(read.variables["params"]["backbone"][first]["kernel"])
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1)[:, ::-1], tensors[f"{first}.weight"])


@pytest.mark.peer
@pytest.mark.parametrize("learned", [(), ("upscore2", "upscore16"), ("upscore2",)])
def test_an_imported_net_is_the_transcription_with_the_same_tensors(tmp_path, learned):
    peers.import_torch()
    path = pathlib.Path(__file__).parent.parent / "reference" / "fcn_torch.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    tensors = released("fcn16s")
    for up in learned:
        noise = np.random.default_rng(0).normal(size=tensors[f"{up}.weight"].shape)
        tensors[f"{up}.weight"] += noise.astype(np.float32) * 0.1
    ups = ("upscore2", "upscore16")
    net = peers.load_state(reference.FCN("16s", CLASSES, WIDTH, ups), tensors)
    folder = import_model(saved(tensors, tmp_path / "net.safetensors"), tmp_path / "model")
    model, variables = load_pretrained(folder)
    assert {k for k in variables["params"] if k.startswith("upscore")} == {
        {"upscore2": "upscore_c4", "upscore16": "upscore"}[up] for up in learned
    }
    image = np.random.default_rng(0).integers(0, 256, (1, 33, 20, 3)).astype(np.uint8)
    # Caffe: blue, green, red, less the mean.
    caffe = image[..., ::-1] - np.float32([104.00698793, 116.66876762, 122.67891434])
    wanted = peers.from_torch(net(peers.to_torch(caffe)))
    logits = jax.jit(model.apply)(
        variables, flaxseg.layers.normalize(image, model.normalization)
    ).logits
    assert relative_difference(logits, wanted) < 1e-4


@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.slow)])
def test_torchvisions_checkpoints_are_recognised(tmp_path, depth):
    model = flaxseg.create_model("fcn", 21, backbone=f"resnet{depth}", auxiliary=True)
    tensors = torch_tensors(shapes_of(model), TORCHVISION_FCN)
    read = read_pretrained(saved(tensors, tmp_path / "model.safetensors"))
    assert (read.name, read.num_classes) == ("fcn", 21)
    assert read.options["backbone"] == f"resnet{depth}"
    assert len(read.report.loaded) == len(tensors)
    flat = flatten(read.variables)
    np.testing.assert_array_equal(flat["params/head/classifier/bias"], tensors["classifier.4.bias"])
    np.testing.assert_array_equal(
        flat["batch_stats/auxiliary_head/block/bn/var"], tensors["aux_classifier.1.running_var"]
    )


def test_a_classifier_in_torchvisions_colours_is_refused_for_a_caffe_model(tmp_path):
    backbone = create_backbone("vgg16", num_classes=10, fc_features=(WIDTH, WIDTH))
    tensors = torch_tensors(shapes_of(backbone), NAME_MAPS["vgg16"][0])
    path = saved(tensors, tmp_path / "vgg16.safetensors")
    options = {"backbone_options": {"fc_features": (WIDTH, WIDTH)}}
    model = flaxseg.create_model("fcn32s", CLASSES, **options)
    variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes_of(model))
    with pytest.raises(WeightsError, match="it would see wrong colours"):
        load_backbone(model, variables, path)
    imagenet = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)}
    model = flaxseg.create_model("fcn32s", CLASSES, normalization=imagenet, **options)
    loaded, report = load_backbone(model, variables, path)
    assert len(report.loaded) == 30
    assert set(report.unused) == {"classifier.6.weight", "classifier.6.bias"}
    kernel = np.asarray(loaded["params"]["backbone"]["fc6"]["kernel"])
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), tensors["classifier.0.weight"])
    # The same classifier with Caffe's names is in Caffe's colours.
    caffe, _ = load_weights(
        {"params": loaded["params"]["backbone"]},
        {
            NAME_MAPS["vgg16"][2].tensor_name(f"params/{k}"): v
            for k, v in _layout(loaded["params"]["backbone"]).items()
        },
    )
    np.testing.assert_array_equal(
        caffe["params"]["conv1_1"]["kernel"],
        loaded["params"]["backbone"]["conv1_1"]["kernel"][:, :, ::-1],
    )


def _layout(params):
    return {
        path: np.transpose(value, (3, 2, 0, 1)) if np.ndim(value) == 4 else np.asarray(value)
        for path, value in flatten(params).items()
    }


def test_finer_nets_start_from_coarser_ones(tmp_path):
    small = {"features": (4,) * 5, "fc_features": (8, 8)}
    options = {"backbone": "vgg16", "backbone_options": small}
    image = random_image(1, 40, 33)
    coarse, before = None, None
    for name in ("fcn32s", "fcn16s", "fcn8s"):
        model = flaxseg.create_model(name, 3, **options)
        variables = model.init(jax.random.key(len(name)), image)
        if coarse is None:
            rng = np.random.default_rng(0)
            variables = jax.tree.map(
                lambda p, rng=rng: rng.normal(size=p.shape).astype(np.float32) * 0.1, variables
            )
        else:
            with pytest.raises(WeightsError, match="set reinit_head"):
                load_into(variables, coarse)
            variables, report = load_into(variables, coarse, reinit_head=True)
            level = {"fcn16s": "score_c4", "fcn8s": "score_c3"}[name]
            assert set(report.missing) == {f"params/{level}/kernel", f"params/{level}/bias"}
            assert not np.any(variables["params"][level]["kernel"])
            np.testing.assert_array_equal(
                variables["params"]["score_fr"]["kernel"], before["params"]["score_fr"]["kernel"]
            )
        coarse, before = tmp_path / name, variables
        save_model(coarse, variables, name=name, num_classes=3, options=options)


def test_a_narrow_backbone_keeps_its_width_in_a_saved_model(tmp_path):
    tensors = released("fcn32s")
    folder = import_model(saved(tensors, tmp_path / "a.safetensors"), tmp_path / "model")
    model, _ = load_pretrained(folder)
    assert isinstance(model.backbone, VGG)
    assert model.backbone.fc_features == (WIDTH, WIDTH)
    assert model.backbone.first_padding == 100
