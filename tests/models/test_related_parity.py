"""U-Net, SegNet, DeconvNet, Dilated-Net and ParseNet against segmentation_models.pytorch and
transcriptions of their layer tables, with the same weights, from files in the published names
where there are such files."""

import functools
import importlib.util
import pathlib

import jax
import numpy as np
import peers
import pytest
import safetensors.numpy
from random_weights import random_image, relative_difference, shapes_of, torch_tensors

import flaxseg
from flaxseg.backbones import SegNetBasicEncoder
from flaxseg.layers import mirror_pad, normalize
from flaxseg.weights import NameMap, load_pretrained, load_weights
from flaxseg.weights.backbone_names.vgg_names import caffe_vgg_module
from flaxseg.weights.layouts.unet_layout import SMP_UNET

pytestmark = pytest.mark.peer
TOLERANCE = 1e-4
# Every width is this much smaller.
DIVISOR = 16
NARROW = (4, 8, 16, 32, 32)


def reference(name):
    peers.import_torch()
    path = pathlib.Path(__file__).parent.parent / "reference" / f"{name}_torch.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def apply(model, variables, image):
    return jax.jit(model.apply)(variables, image).logits


def check(ours, theirs):
    difference = relative_difference(ours, peers.from_torch(theirs))
    print("relative difference", difference)
    assert difference < TOLERANCE


def random_state(net):
    """Seeded tensors for every parameter and statistic of a PyTorch network."""
    rng, tensors = np.random.default_rng(0), {}
    for name, value in net.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            tensor = rng.uniform(0.5, 1.5, value.shape)
        elif value.ndim == 4:
            tensor = rng.normal(size=value.shape) * np.sqrt(2 / np.prod(value.shape[1:]))
        elif value.ndim == 1 and name.endswith("weight"):
            tensor = rng.uniform(0.5, 1.5, value.shape)
        else:
            tensor = rng.normal(size=value.shape) * 0.1
        tensors[name] = tensor.astype(np.float32)
    return tensors


def saved(tensors, path):
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
    return path


def pixels(*size):
    return np.random.default_rng(1).integers(0, 256, (1, *size, 3)).astype(np.uint8)


@pytest.mark.parametrize(
    ("padding", "size", "mirror"),
    [("valid", (188, 204), False), ("valid", (37, 20), True), ("torch", (48, 32), True)],
)
def test_unet_equals_its_transcription(padding, size, mirror):
    module = reference("unet")
    widths = (4, 6, 8, 10, 12)
    net = module.UNet(widths, 3, 0 if padding == "valid" else 1)
    options = {"padding": padding, "features": widths}
    model = flaxseg.create_model("unet", 3, backbone_options=options, mirror=mirror)
    names = NameMap(
        "reference", module.module_name, transposed=tuple(f"up{n}" for n in (1, 2, 3, 4))
    )
    tensors = random_state(net)
    peers.load_state(net, tensors)
    shapes = shapes_of(model, (188, 188))
    variables, report = load_weights(shapes, tensors, name_maps=[names], prefix="")
    assert not report.unused
    image = random_image(1, *size)
    seen = image
    if padding == "valid" and mirror:
        seen = np.pad(image, ((0, 0), (92, 92 + 15), (92, 92), (0, 0)), mode="reflect")
        assert seen.shape[1:3] == (236, 204)
    wanted = net(peers.to_torch(seen))[:, :, : size[0], : size[1]]
    logits = apply(model, variables, image)
    if not mirror:
        assert logits.shape == (1, 4, 20, 3)
    check(logits, wanted)


def test_unet_on_a_resnet_equals_segmentation_models_pytorch(tmp_path):
    peers.import_torchvision()
    smp = pytest.importorskip("segmentation_models_pytorch")
    widths = (32, 16, 16, 8, 8)
    net = smp.Unet("resnet18", encoder_weights=None, classes=4, decoder_channels=widths)
    model = flaxseg.create_model("unet", 4, backbone="resnet18", features=widths)
    tensors = torch_tensors(shapes_of(model), SMP_UNET)
    peers.load_state(net, tensors)
    model, variables = load_pretrained(saved(tensors, tmp_path / "unet.safetensors"))
    assert model.features == widths
    image = random_image(1, 64, 96)
    check(apply(model, variables, image), net(peers.to_torch(image)))


def caffe_image(image, mean):
    """Blue, green, red less a mean in that order, as Caffe's nets see it."""
    return peers.to_torch(image[..., ::-1].astype(np.float32) - np.float32(mean))


@pytest.mark.parametrize("merged", [False, True])
def test_segnet_equals_its_transcription(monkeypatch, tmp_path, merged):
    narrow_vgg(monkeypatch)
    net = reference("segnet").SegNet(5, DIVISOR)
    tensors = random_state(net)
    if merged:  # BN layers that only scale and shift, in Caffe's shape
        for name in list(tensors):
            if "running_" in name:
                tensors[name][:] = 1 - 1e-5 if name.endswith("var") else 0
    peers.load_state(net, tensors)
    image = pixels(45, 60)
    wanted = net(caffe_image(image, (0, 0, 0)))
    if merged:
        tensors = {
            k: v.reshape(1, -1, 1, 1) if "_bn." in k else v
            for k, v in tensors.items()
            if "running_" not in k
        }
    model, variables = load_pretrained(saved(tensors, tmp_path / "net.safetensors"))
    assert isinstance(model, flaxseg.models.SegNet)
    check(apply(model, variables, normalize(image, model.normalization)), wanted)


def test_segnet_basic_equals_its_transcription(monkeypatch, tmp_path):
    narrow = functools.partial(SegNetBasicEncoder, features=8)
    monkeypatch.setitem(flaxseg.backbones.BACKBONES, "segnet_basic_encoder", narrow)
    net = reference("segnet").SegNetBasic(5, 8)
    tensors = random_state(net)
    peers.load_state(net, tensors)
    model, variables = load_pretrained(saved(tensors, tmp_path / "net.safetensors"))
    image = pixels(45, 60)
    wanted = net(caffe_image(image, (0, 0, 0)))
    check(apply(model, variables, normalize(image, model.normalization)), wanted)


@pytest.mark.parametrize("size", [(224, 224), (230, 193)])
def test_deconvnet_equals_its_transcription(monkeypatch, tmp_path, size):
    narrow_vgg(monkeypatch)
    net = reference("deconvnet").DeconvNet(4, 16, DIVISOR)
    tensors = random_state(net)
    peers.load_state(net, tensors)
    model, variables = load_pretrained(saved(tensors, tmp_path / "net.safetensors"))
    assert model.fc_features == 16
    image = pixels(*size)
    wanted = net(caffe_image(image, (104.008, 116.669, 122.675)))
    check(apply(model, variables, normalize(image, model.normalization)), wanted)


@pytest.mark.parametrize(
    ("dilations", "prefix", "mean"),
    [
        ((), "ct_", (102.93, 111.36, 116.52)),
        ((1, 1, 2, 4, 8, 16, 1), "ct_", (102.93, 111.36, 116.52)),
        ((1, 1, 2, 4, 8, 16, 1), "ctx_", (110.70, 108.77, 105.41)),
        ((1, 1, 2, 4, 8, 1), "ctx_", (96.19, 95.55, 91.34)),
        ((1, 1, 2, 4, 8, 16, 32, 64, 1), "ctx_", (72.39, 82.91, 73.16)),
    ],
)
def test_dilatednet_equals_its_transcription(monkeypatch, tmp_path, dilations, prefix, mean):
    torch = peers.import_torch()
    narrow_vgg(monkeypatch)
    module = reference("dilatednet")
    net = module.DilatedNet(3, dilations, prefix, 16, DIVISOR)
    tensors = random_state(net)
    peers.load_state(net, tensors)
    ten = len(dilations) == 9
    file = saved(
        tensors | ({"ctx_upsample.weight": np.ones((3, 1, 16, 16), np.float32)} if ten else {}),
        tmp_path / "net.safetensors",
    )
    model, variables = load_pretrained(file)
    assert model.context == ("none" if not dilations else "large" if prefix == "ct_" else "basic")
    image = pixels(21, 16)
    margins = ((0, 0), (186, 189), (186, 186), (0, 0))
    scores = net(caffe_image(np.pad(image, margins, mode="reflect"), mean))
    assert scores.shape[2:] == (3, 2)
    if ten:
        wanted = module.upsample_in_the_net(scores)
    else:
        wanted = torch.nn.functional.interpolate(
            scores, scale_factor=8, mode="bilinear", align_corners=False
        )
    check(apply(model, variables, normalize(image, model.normalization)), wanted[:, :, :21, :16])


@pytest.mark.parametrize("levels", [("fc7",), ("conv4", "conv5", "fc7")])
def test_parsenet_equals_its_transcription(levels):
    torch = peers.import_torch()
    net = reference("parsenet").ParseNet(4, levels, 16, 3, DIVISOR)
    tensors = random_state(net)
    peers.load_state(net, tensors)
    model = flaxseg.create_model(
        "parsenet", 4, levels=levels, features=16, rate=3, backbone_options={"features": NARROW}
    )

    def module(path):
        return caffe_vgg_module(path.removeprefix("backbone/")) if "/" in path else path

    norms = {name for name in tensors if name.startswith("norm_")}
    renamed = {f"{k}.weight" if k in norms else k: v for k, v in tensors.items()}
    variables, report = load_weights(
        shapes_of(model), renamed, name_maps=[NameMap("reference", module)], prefix=""
    )
    assert not report.unused
    image = random_image(1, 65, 49)
    wanted = torch.nn.functional.interpolate(
        net(peers.to_torch(image)), (65, 49), mode="bilinear", align_corners=True
    )
    check(apply(model, variables, image), wanted)


def test_mirrored_margins_are_numpys():
    for size in ((1, 2), (5, 9), (300, 3)):
        image = random_image(1, *size)
        margins = ((0, 0), (7, 12), (92, 30), (0, 0))
        np.testing.assert_array_equal(
            mirror_pad(image, (7, 12), (92, 30)), np.pad(image, margins, mode="reflect")
        )


def narrow_vgg(monkeypatch):
    """VGG16 by name has narrow stages, for files that do not tell."""
    for name in ("vgg16", "vgg16_bn"):
        narrow = functools.partial(flaxseg.backbones.BACKBONES[name], features=NARROW)
        monkeypatch.setitem(flaxseg.backbones.BACKBONES, name, narrow)
