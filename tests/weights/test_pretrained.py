"""Whole networks: the golden outputs of real weights, torchvision's layout, conversion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from random_weights import shapes_of, torch_tensors

import flaxseg
from flaxseg import cli
from flaxseg.backbones import EfficientNetLite0, MobileNetV2
from flaxseg.classes import VOC_CLASSES
from flaxseg.errors import WeightsError
from flaxseg.inference import model_protocol
from flaxseg.layers import normalize, resize
from flaxseg.weights import (
    NameMap,
    import_model,
    list_hub_weights,
    load_pretrained,
    load_weights,
    read_pretrained,
)
from flaxseg.weights.layouts.deeplab_v3_layout import torchvision_deeplabv3_module

VOC21 = "deeplabv3_mobilenet_v2_voc21.safetensors"


@pytest.fixture(scope="module")
def weights_dir(shared_dir):
    return shared_dir / "data" / "weights"


@pytest.fixture(scope="module")
def golden(weights_dir):
    return np.load(weights_dir / "reference_outputs.npz")


# The golden numbers were computed in float32 by another implementation; sums in another order
# differ by some 1e-5, a wrong padding, order of channels or epsilon by 1e-1.
TOLERANCE = 1e-3


def test_mobilenet_v2_golden_outputs(weights_dir, golden):
    backbone = MobileNetV2(num_classes=1000)
    variables, _ = load_weights(
        shapes_of(backbone), weights_dir / "mobilenet_v2_imagenet.safetensors"
    )
    image = normalize(golden["cls_input_u8"], backbone.normalization)
    features = jax.jit(backbone.apply)(variables, image)
    assert np.abs(features["logits"] - golden["mobilenet_v2_logits"]).max() < TOLERANCE
    assert np.abs(features["c5"] - golden["mobilenet_v2_features17"]).max() < TOLERANCE
    original = golden["mobilenet_v2_int8_original_prob_u8"].argmax(1)
    np.testing.assert_array_equal(features["logits"].argmax(1), original)


def test_efficientnet_lite0_golden_outputs(weights_dir, golden):
    backbone = EfficientNetLite0(num_classes=1000)
    variables, _ = load_weights(
        shapes_of(backbone), weights_dir / "efficientnet_lite0_imagenet.safetensors"
    )
    image = normalize(golden["cls_input_u8"], backbone.normalization)
    logits = jax.jit(backbone.apply)(variables, image)["logits"]
    assert np.abs(logits - golden["efficientnet_lite0_logits"]).max() < TOLERANCE


def test_voc21_reproduces_the_golden_outputs_and_the_original(weights_dir, golden):
    model, variables = load_pretrained(weights_dir / VOC21)
    predict = jax.jit(lambda image: model.apply(variables, image).logits)
    upsample = jax.jit(lambda x: resize(x, (513, 513), align_corners=True).argmax(-1))
    # One by one: four images of this size at once take a gigabyte.
    for index, (height, width) in enumerate(golden["deeplab_valid_hw"]):
        image = normalize(golden["deeplab_input_u8"][index : index + 1], model.normalization)
        logits = predict(image)
        wanted = golden["deeplab_logits_os16"][index : index + 1]
        # Aligned corners put the coarse cells on every 16th pixel.
        assert np.abs(logits[:, ::16, ::16] - wanted).max() < TOLERANCE
        valid = (slice(height), slice(width))
        pred = np.asarray(logits[0].argmax(-1))[valid]
        assert (pred == np.asarray(upsample(wanted)[0])[valid]).mean() > 0.9999
        original = golden["deeplab_uint8_original_argmax"][index][valid]
        assert (pred == original).mean() >= 0.99


def test_voc21_is_converted_to_a_saved_model(weights_dir, golden, tmp_path):
    directory = import_model(weights_dir / VOC21, tmp_path / "model")
    card = flaxseg.read_model_card(directory)
    assert card["class_names"] == VOC_CLASSES
    assert card["class_colors"][15] == (192, 128, 128)
    assert card["normalization"] == {"mean": [128.0] * 3, "std": [128.0] * 3}
    stored = safetensors.numpy.load_file(weights_dir / VOC21)
    parameters = sum(v.size for k, v in stored.items() if "running" not in k)
    assert card["weights"]["parameters"] == parameters == 2_113_557
    model, variables = load_pretrained(directory)
    image = normalize(golden["deeplab_input_u8"][:1, :65, :65], model.normalization)
    direct, direct_variables = load_pretrained(weights_dir / VOC21)
    assert model.rates == direct.rates == ()
    assert model.backbone.output_stride == direct.backbone.output_stride
    np.testing.assert_array_equal(
        jax.jit(model.apply)(variables, image).logits,
        jax.jit(direct.apply)(direct_variables, image).logits,
    )


def test_voc21_is_imported_with_its_canvas_and_finds_the_dog(weights_dir, golden, tmp_path, capsys):
    files = weights_dir.parent / "voc2012_sample/VOCdevkit/VOC2012/JPEGImages"
    assert cli.main(["import", str(weights_dir / VOC21), "--out", str(tmp_path / "model")]) == 0
    assert (
        "its protocol is that of its authors: deeplab_voc(long_side=(1, 513))"
        in capsys.readouterr().out
    )
    flags = ["--model", str(tmp_path / "model"), "--out", str(tmp_path), "--save=mask"]
    assert cli.main(["predict", str(files / "2007_004189.jpg"), *flags]) == 0
    assert "protocol: whole(long_side=(1, 513), pad_to=(513, 513)) (the" in capsys.readouterr().out
    found = np.asarray(Image.open(tmp_path / "2007_004189_mask.png"))
    shares = {name: (found == VOC_CLASSES.index(name)).mean() for name in ("dog", "horse")}
    assert shares["dog"] > 0.04
    assert shares["horse"] < 0.005
    protocol = model_protocol(flaxseg.load_model(tmp_path / "model")[0])
    assert protocol.layout((600, 900), 1.0).window == (513, 513)
    assert protocol.layout((600, 900), 1.0).scaled == (342, 513)
    index = list(golden["ids"]).index("2007_004189")
    height, width = golden["deeplab_valid_hw"][index]
    original = golden["deeplab_uint8_original_argmax"][index][:height, :width]
    assert (found == original).mean() >= 0.99


TORCHVISION = NameMap("torchvision", torchvision_deeplabv3_module)


def torchvision_tensors(depth=50, num_classes=21, auxiliary=True, seed=0):
    """All tensors of torchvision's DeepLabV3 with its names."""
    model = flaxseg.create_model(
        "deeplabv3",
        num_classes,
        backbone=f"resnet{depth}",
        output_stride=8,
        head_conv=True,
        auxiliary=auxiliary,
    )
    return torch_tensors(shapes_of(model), TORCHVISION, seed)


def test_torchvision_layout_is_recognised(tmp_path):
    tensors = torchvision_tensors(num_classes=3)
    safetensors.numpy.save_file(tensors, tmp_path / "net.safetensors")
    pretrained = read_pretrained(tmp_path / "net.safetensors")
    assert pretrained.options["backbone"] == "resnet50"
    assert pretrained.options["auxiliary"]
    assert pretrained.class_names is None
    model = pretrained.create_model(dtype=jnp.bfloat16)
    assert model.num_classes == 3
    assert model.rates == (12, 24, 36)
    assert model.head_conv
    assert not model.align_corners
    assert model.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        pretrained.variables["params"]["aspp"]["aspp3"]["conv"]["kernel"],
        tensors["classifier.0.convs.3.0.weight"].transpose(2, 3, 1, 0),
    )


def test_tensors_too_many_or_too_few_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    tensors = torchvision_tensors(num_classes=3, auxiliary=False)
    safetensors.numpy.save_file({**tensors, "extra.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match=r"no place for, such as extra\.weight"):
        read_pretrained(path)
    del tensors["classifier.1.weight"]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(WeightsError, match=r"head/conv/kernel \(as classifier\.1\.weight\)"):
        read_pretrained(path)


def test_what_needs_no_import_is_refused_with_the_way_to_use_it(tmp_path):
    """No name that a backbone is loaded from is unknown here; nothing is downloaded to say so."""
    for name in list_hub_weights():
        with pytest.raises(WeightsError, match=rf"ImageNet.*--config\.init\.backbone={name}"):
            import_model(name, tmp_path / "out")
    np.savez(tmp_path / "model.npz", x=np.zeros(3))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="flaxseg saved, which needs no import"):
        read_pretrained(tmp_path)


def test_other_layouts_are_refused(tmp_path, weights_dir):
    with pytest.raises(WeightsError, match="load_backbone"):
        read_pretrained(weights_dir / "mobilenet_v2_imagenet.safetensors")
    with pytest.raises(WeightsError, match=r"neither a file or folder.* Give a local file"):
        load_pretrained("deeplabv3_mobilenet_v2_voc21")
    with pytest.raises(WeightsError, match=r"Did you mean 'timm/resnet50\.tv_in1k'\?"):
        load_pretrained("timm/resnet50.tv_in1l")
    tensors = {
        "classifier.0.convs.0.0.weight": np.zeros((1, 1, 1, 1), np.float32),
        "backbone.features.0.0.weight": np.zeros(3, np.float32),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match=r"known are resnet50 \(6\), resnet101"):
        read_pretrained(tmp_path / "net.safetensors")
