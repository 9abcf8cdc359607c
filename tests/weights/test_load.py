"""Loading into models: name maps, prefixes, reports, and errors for all that does not fit."""

import functools
import json
import logging
import struct
import subprocess
import sys

import flax.core
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from random_weights import random_image, shapes_of, torch_tensors

import flaxseg
from flaxseg.backbones import MobileNetV2, ResNet, create_backbone
from flaxseg.backbones.resnet import BasicBlock
from flaxseg.errors import WeightsError
from flaxseg.saved_model import save_model
from flaxseg.variable_paths import flatten
from flaxseg.weights import (
    HUB_WEIGHTS,
    NAME_MAPS,
    NameMap,
    list_hub_weights,
    load_backbone,
    load_into,
    load_weights,
    read_tensors,
)

RESNET = NAME_MAPS["resnet"][0]


@pytest.fixture(scope="module")
def resnet18():
    """A DeepLabv3 on ResNet-18 and its variables, all zero."""
    model = flaxseg.create_model("deeplabv3", 3, backbone="resnet18", features=8)
    shapes = shapes_of(model)
    return model, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


@pytest.fixture(scope="module")
def resnet18_tensors():
    """torchvision's names of a whole ResNet-18 with classifier."""
    return torch_tensors(shapes_of(create_backbone("resnet18", num_classes=10)), RESNET)


def backbone_of(variables):
    return flatten({k: v["backbone"] for k, v in variables.items()})


def test_names_of_torchvision_resnet():
    tensors = torch_tensors(shapes_of(create_backbone("resnet50", num_classes=1000)), RESNET)
    assert tensors["conv1.weight"].shape == (64, 3, 7, 7)
    assert tensors["layer3.5.bn3.running_var"].shape == (1024,)
    assert tensors["layer4.0.downsample.0.weight"].shape == (2048, 1024, 1, 1)
    assert tensors["layer4.0.downsample.1.running_mean"].shape == (2048,)
    assert tensors["fc.weight"].shape == (1000, 2048)
    assert len(tensors) == 267


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", "folder"])
def test_loads_every_backbone_tensor_and_lists_the_classifier_as_unused(
    tmp_path, resnet18, resnet18_tensors, suffix
):
    model, variables = resnet18
    tensors = {**resnet18_tensors, "bn1.num_batches_tracked": np.array(7)}
    if suffix == ".npz":
        path = tmp_path / "weights.npz"
        np.savez(path, **tensors)
    else:
        path = tmp_path / "weights.safetensors"
        safetensors.numpy.save_file(tensors, path)
    loaded, report = load_backbone(model, variables, tmp_path if suffix == "folder" else path)
    flat = backbone_of(loaded)
    assert len(report.loaded) == len(flat) == 100
    assert set(report.unused) == {"fc.weight", "fc.bias"}
    assert not report.missing
    assert not report.mismatched
    assert "100 loaded, 0 of another shape, 0 missing, 2 of the source unused" in str(report)
    np.testing.assert_array_equal(
        flat["params/layer2_0/downsample_conv/kernel"],
        tensors["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(
        flat["batch_stats/layer4_1/bn2/var"], tensors["layer4.1.bn2.running_var"]
    )
    # The head is untouched, and so are the variables that were given.
    assert not any(np.any(x) for x in jax.tree.leaves(loaded["params"]["aspp"]))
    assert not any(np.any(x) for x in jax.tree.leaves(variables))
    assert jax.tree.structure(loaded) == jax.tree.structure(variables)


@pytest.mark.parametrize(
    "prefix", ["encoder.", "module.", "state_dict.encoder.model.", "backbone."]
)
def test_prefixes_are_found(resnet18_tensors, prefix):
    shapes = shapes_of(create_backbone("resnet18"))
    tensors = {prefix + name: value for name, value in resnet18_tensors.items()}
    tensors["decoder.block1.0.weight"] = np.zeros((1, 1))
    variables, report = load_weights(shapes, tensors)
    assert len(report.loaded) == len(flatten(shapes))
    assert "decoder.block1.0.weight" in report.unused
    np.testing.assert_array_equal(
        variables["params"]["bn1"]["scale"], resnet18_tensors["bn1.weight"]
    )


def test_two_networks_in_a_file_need_a_choice(resnet18_tensors):
    shapes = shapes_of(create_backbone("resnet18"))
    tensors = {f"model.{k}": v for k, v in resnet18_tensors.items()}
    tensors |= {f"ema.{k}": v + 1 for k, v in resnet18_tensors.items()}
    with pytest.raises(WeightsError, match=r"'ema\.', 'model\.'.*pass prefix"):
        load_weights(shapes, tensors)
    variables, _ = load_weights(shapes, tensors, prefix="ema.")
    np.testing.assert_array_equal(
        variables["params"]["bn1"]["scale"], resnet18_tensors["bn1.weight"] + 1
    )


@pytest.mark.parametrize("which", [0, 1])
def test_depthwise_kernels_and_both_namings_of_mobilenet_v2(which):
    shapes = shapes_of(MobileNetV2(num_classes=10))
    tensors = torch_tensors(shapes, NAME_MAPS["mobilenet_v2"][which])
    variables, report = load_weights(shapes, tensors)
    assert report.layout == NAME_MAPS["mobilenet_v2"][which].name
    theirs = tensors[("features.2.conv.1.0.weight", "blocks.1.0.conv_dw.weight")[which]]
    assert theirs.shape == (96, 1, 3, 3)
    ours = variables["params"]["block2"]["depthwise_conv"]["kernel"]
    np.testing.assert_array_equal(ours[:, :, 0, 5], theirs[5, 0])
    classifier = ("classifier.1.weight", "classifier.weight")[which]
    np.testing.assert_array_equal(
        variables["params"]["classifier"]["kernel"].T, tensors[classifier]
    )


def test_missing_and_mismatched_tensors_are_errors(resnet18, resnet18_tensors):
    shapes = shapes_of(create_backbone("resnet18"))
    tensors = dict(resnet18_tensors)
    del tensors["layer2.0.bn1.running_var"]
    with pytest.raises(WeightsError, match=r"1 are missing(.|\n)*layer2_0/bn1/var \(as layer2"):
        load_weights(shapes, tensors)
    tensors = {**resnet18_tensors, "conv1.weight": np.zeros((64, 1, 7, 7), np.float32)}
    with pytest.raises(WeightsError, match=r"source has \[7, 7, 1, 64\], the model has \[7, 7, 3"):
        load_weights(shapes, tensors)
    tensors = {**resnet18_tensors, "bn1.bias": np.full(64, np.nan, np.float32)}
    with pytest.raises(WeightsError, match="params/bn1/bias has values that are not finite"):
        load_weights(shapes, tensors)


def test_a_deeper_network_of_the_same_family_is_refused():
    # Every tensor of ResNet-18's is in ResNet-34's, with the same shape.
    tensors = torch_tensors(shapes_of(create_backbone("resnet34")), RESNET)
    with pytest.raises(WeightsError, match="of a larger network"):
        load_weights(shapes_of(create_backbone("resnet18")), tensors)


def test_unknown_names_are_refused_with_examples(resnet18):
    model, variables = resnet18
    with pytest.raises(WeightsError, match=r"such as stem\.kernel.*torchvision and timm resnet"):
        load_weights(variables_of_backbone(variables), {"stem.kernel": np.zeros(3)})
    with pytest.raises(WeightsError, match="no naming schemes for the backbone 'vit'"):
        load_backbone(model, variables, __file__, backbone_name="vit")


def variables_of_backbone(variables):
    return {k: v["backbone"] for k, v in variables.items()}


def test_own_modules_with_an_own_name_map():
    small = functools.partial(ResNet, stage_sizes=(1, 1, 1, 1), block=BasicBlock)()
    shapes = shapes_of(small)
    mine = NameMap("mine", lambda path: "my." + path.replace("/", "."))
    tensors = torch_tensors(shapes, mine)
    variables, report = load_weights(flax.core.freeze(shapes), tensors, name_maps=[mine])
    assert len(report.loaded) == len(tensors)
    np.testing.assert_array_equal(variables["params"]["bn1"]["bias"], tensors["my.bn1.bias"])


def test_shared_real_weights_load(shared_dir):
    for name, tensors in (
        ("mobilenet_v2", "mobilenet_v2_imagenet"),
        ("efficientnet_lite0", "efficientnet_lite0_imagenet"),
    ):
        path = shared_dir / "data" / "weights" / f"{tensors}.safetensors"
        model = flaxseg.create_model("deeplabv3", 2, backbone=name, features=8)
        _, report = load_backbone(model, shapes_of(model), path)
        assert not report.missing
        assert len(report.unused) == 7


# Names


def test_names_download_from_the_hub(tmp_path, monkeypatch, resnet18, resnet18_tensors):
    import huggingface_hub

    safetensors.numpy.save_file(resnet18_tensors, tmp_path / "model.safetensors")
    asked = []

    def download(repository, filename):
        asked.append((repository, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model, variables = resnet18
    for name in ("timm/resnet18.tv_in1k", "hf:someone/net", "hf:someone/net/model.safetensors"):
        _, report = load_backbone(model, variables, name)
        assert len(report.loaded) == 100
    assert asked == [
        ("timm/resnet18.tv_in1k", "model.safetensors"),
        ("someone/net", "model.safetensors"),
        ("someone/net", "model.safetensors"),
    ]


def test_named_weights_with_another_normalisation_are_refused(tmp_path, monkeypatch):
    import huggingface_hub

    tensors = torch_tensors(shapes_of(MobileNetV2(num_classes=10)), NAME_MAPS["mobilenet_v2"][1])
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *_: str(tmp_path / "model.safetensors")
    )
    name = "timm/mobilenetv2_100.ra_in1k"
    model = flaxseg.create_model("deeplabv3", 2, backbone="mobilenet_v2", features=8)
    shapes = shapes_of(model)
    with pytest.raises(WeightsError, match=r"wrong colours.*normalization="):
        load_backbone(model, shapes, name)
    model = flaxseg.create_model(
        "deeplabv3",
        2,
        backbone="mobilenet_v2",
        features=8,
        normalization=HUB_WEIGHTS[name].normalization,
    )
    _, report = load_backbone(model, shapes, name)
    assert "padding 'torch'" in str(report)


def test_offline_the_error_says_how_to_give_a_file(monkeypatch, resnet18, caplog):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    log = logging.getLogger("huggingface_hub.utils._http")
    log.addHandler(caplog.handler)  # that package's records may not go on to the root

    def download(*_):
        log.warning("Retrying in 1s [Retry 1/5].")
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(WeightsError, match=r"no connection Without internet.*give its path"):
        load_backbone(*resnet18, "timm/resnet18.tv_in1k")
    assert not caplog.messages  # the error is the only line
    log.removeHandler(caplog.handler)


def test_unknown_sources_are_refused(tmp_path, resnet18):
    model, variables = resnet18
    with pytest.raises(WeightsError, match=r"neither a file or folder.*timm/resnet18\.tv_in1k"):
        load_backbone(model, variables, "weights/resnet18.pth")
    with pytest.raises(WeightsError, match="holds no weights file"):
        load_backbone(model, variables, tmp_path)
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, x=np.zeros(3))
    with pytest.raises(WeightsError, match=r"2 weights files \(a\.npz, b\.npz\)"):
        load_backbone(model, variables, tmp_path)
    with pytest.raises(WeightsError, match="form hf:"):
        load_backbone(model, variables, "hf:net")


def test_every_listed_name_is_of_a_known_family():
    assert {"timm/resnet50s.gluon_in1k", "timm/xception65.tf_in1k"} <= set(list_hub_weights())
    assert {w.family for w in HUB_WEIGHTS.values()} <= set(NAME_MAPS)


def test_the_hub_client_is_not_imported_before_it_is_needed():
    code = "import sys, flaxseg.weights; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Files


def test_damaged_files_are_named(tmp_path):
    for suffix in (".safetensors", ".npz", ".pth"):
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00 nothing of the kind")
        with pytest.raises(WeightsError, match="damaged"):
            read_tensors(path)
    (tmp_path / "a.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"suffix '\.onnx'"):
        read_tensors(tmp_path / "a.onnx")


def test_arrays_of_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], object))
    with pytest.raises(WeightsError, match="never read"):
        read_tensors(tmp_path / "a.npz")


def test_half_precision_files_become_float32(tmp_path, resnet18_tensors):
    half = {k: v.astype(ml_dtypes.bfloat16) for k, v in resnet18_tensors.items()}
    header, data = {}, b""
    for name, value in half.items():
        span = [len(data), len(data) + value.nbytes]
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": span}
        data += value.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    shapes = shapes_of(create_backbone("resnet18"))
    variables, _ = load_weights(shapes, tmp_path / "a.safetensors")
    kernel = variables["params"]["conv1"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(
        kernel, half["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    )


# Saved models


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved model of five classes and its variables."""
    options = {"backbone": "mobilenet_v2", "features": 8, "rates": (1,)}
    model = flaxseg.create_model("deeplabv3", 5, **options)
    shapes = shapes_of(model)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(np.float32), shapes)
    directory = tmp_path_factory.mktemp("saved") / "model"
    save_model(directory, variables, name="deeplabv3", num_classes=5, options=options)
    return directory, options, variables


def test_load_into_takes_everything_when_it_fits(saved):
    directory, _, variables = saved
    fresh = jax.tree.map(np.zeros_like, variables)
    loaded, report = load_into(fresh, directory)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)
    assert len(report.loaded) == len(jax.tree.leaves(variables))


def test_another_number_of_classes_needs_reinit_head(saved):
    directory, options, variables = saved
    model = flaxseg.create_model("deeplabv3", 3, **options)
    fresh = jax.tree.map(lambda s: np.full(s.shape, 9, np.float32), shapes_of(model))
    with pytest.raises(
        WeightsError,
        match=r"params/classifier/kernel: the source has \[1, 1, 8, 5\], the model has "
        r"\[1, 1, 8, 3\](.|\n)*reinit_head",
    ):
        load_into(fresh, directory)
    loaded, report = load_into(fresh, directory, reinit_head=True)
    assert {path for path, _, _ in report.mismatched} == {
        "params/classifier/kernel",
        "params/classifier/bias",
    }
    np.testing.assert_array_equal(loaded["params"]["classifier"]["bias"], np.full(3, 9))
    for part in ("backbone", "aspp"):
        jax.tree.map(
            np.testing.assert_array_equal, loaded["params"][part], variables["params"][part]
        )


def test_another_backbone_is_refused_even_with_reinit_head(saved):
    directory, _, _ = saved
    model = flaxseg.create_model("deeplabv3", 5, backbone="resnet18", features=8, rates=(1,))
    with pytest.raises(WeightsError, match="backbones differ"):
        load_into(shapes_of(model), directory, reinit_head=True)


def test_the_backbone_of_a_saved_model_can_be_loaded(saved):
    directory, _, variables = saved
    model = flaxseg.create_model("deeplabv3plus", 2, backbone="mobilenet_v2", features=8)
    loaded, report = load_backbone(model, shapes_of(model), directory)
    assert report.layout == "a flaxseg model"
    for collection in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal,
            loaded[collection]["backbone"],
            variables[collection]["backbone"],
        )


def test_loaded_variables_run(resnet18_tensors):
    backbone = create_backbone("resnet18")
    variables, _ = load_weights(shapes_of(backbone), resnet18_tensors)
    features = jax.jit(backbone.apply)(variables, random_image(1, 9, 9))
    assert bool(np.isfinite(features["c5"]).all())
