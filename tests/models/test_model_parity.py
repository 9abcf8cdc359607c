"""Whole models against torchvision and against a transcription of the paper, with the same
weights."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import safetensors.numpy
from random_weights import random_image, relative_difference, shapes_of, torch_tensors

import flaxseg
from flaxseg.backbones import ResNet
from flaxseg.backbones.resnet import BasicBlock
from flaxseg.layers import AuxiliaryHead
from flaxseg.variable_paths import flatten, unflatten
from flaxseg.weights import NAME_MAPS, NameMap, load_pretrained, load_weights
from flaxseg.weights.layouts.deeplab_v3_layout import torchvision_deeplabv3_module

pytestmark = pytest.mark.peer
TOLERANCE = 1e-4
TORCHVISION = NameMap("torchvision", torchvision_deeplabv3_module)


def torchvision_options(depth: int, **options):
    return {
        "backbone": f"resnet{depth}",
        "output_stride": 8,
        "head_conv": True,
        "auxiliary": True,
        "align_corners": False,
    } | options


@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.slow)])
def test_deeplabv3_equals_torchvision(tmp_path, depth):
    """From torchvision's file to logits, auxiliary ones included."""
    segmentation = peers.import_torchvision().models.segmentation
    shapes = shapes_of(flaxseg.create_model("deeplabv3", 21, **torchvision_options(depth)))
    tensors = torch_tensors(shapes, TORCHVISION)
    net = getattr(segmentation, f"deeplabv3_resnet{depth}")(
        weights=None, weights_backbone=None, num_classes=21, aux_loss=True
    )
    peers.load_state(net, tensors)
    safetensors.numpy.save_file(tensors, tmp_path / "net.safetensors")
    model, variables = load_pretrained(tmp_path / "net.safetensors")
    image = random_image(1, 65, 50)
    wanted = net(peers.to_torch(image))
    difference = relative_difference(
        jax.jit(model.apply)(variables, image).logits, peers.from_torch(wanted["out"])
    )
    print(depth, difference)
    assert difference < TOLERANCE

    @jax.jit
    def auxiliary(variables, image):
        backbone = {k: v["backbone"] for k, v in variables.items()}
        head = {k: v["auxiliary_head"] for k, v in variables.items()}
        logits = AuxiliaryHead(21).apply(head, model.backbone.apply(backbone, image)["c4"])
        return flaxseg.layers.resize(logits, image.shape[1:3], align_corners=False)

    theirs = peers.from_torch(wanted["aux"])
    assert relative_difference(auxiliary(variables, image), theirs) < TOLERANCE


def reference_module():
    peers.import_torch()
    path = pathlib.Path(__file__).parent.parent / "reference" / "deeplab_v3plus_torch.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("separable", [True, False])
def test_deeplabv3plus_equals_the_transcription_of_the_paper(separable):
    reference = reference_module()
    torchvision = peers.import_torchvision()
    model = flaxseg.create_model(
        "deeplabv3plus", 5, backbone="resnet18", separable=separable, align_corners=True
    )
    flat = flatten(shapes_of(model))
    body = unflatten({k.replace("/backbone", ""): v for k, v in flat.items() if "/backbone" in k})
    head = unflatten({k: v for k, v in flat.items() if "/backbone" not in k})
    names = NameMap("reference", lambda p: reference.head_module_name(p, separable))
    resnet = NAME_MAPS["resnet"][0]
    body_tensors, head_tensors = torch_tensors(body, resnet), torch_tensors(head, names)
    variables, _ = load_weights(head, head_tensors, name_maps=[names])
    backbone, _ = load_weights(body, body_tensors, name_maps=[resnet])
    variables = {k: {**v, "backbone": backbone[k]} for k, v in variables.items()}

    their_head = reference.DeepLabV3PlusHead(64, 512, 5, (6, 12, 18), separable)
    peers.load_state(their_head, head_tensors)
    image = random_image(2, 65, 50)
    # Dilation is compared with timm elsewhere; here the features are ours.
    features = jax.jit(model.backbone.apply)(backbone, image)
    low, high = (peers.to_torch(features[k]) for k in ("c2", "c5"))
    wanted = peers.from_torch(their_head(low, high, (65, 50)))
    difference = relative_difference(jax.jit(model.apply)(variables, image).logits, wanted)
    print(separable, difference)
    assert difference < TOLERANCE
    assert torchvision is not None


def test_gradients_and_statistics_of_a_training_step_equal_torch():
    torch = peers.import_torch()
    torchvision = peers.import_torchvision()
    backbone = ResNet(stage_sizes=(1, 1, 1, 1), block=BasicBlock, num_classes=7)
    shapes = shapes_of(backbone)
    tensors = torch_tensors(shapes, NAME_MAPS["resnet"][0])
    net = torchvision.models.resnet.ResNet(
        torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=7
    )
    peers.load_state(net, tensors).train()
    variables, _ = load_weights(shapes, tensors)
    image, label = random_image(4, 65, 49), np.array([1, 6, 0, 3])

    @jax.jit
    def loss_and_gradient(params):
        def loss(params):
            features, updates = backbone.apply(
                {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
            )
            log_probs = jax.nn.log_softmax(features["logits"])
            return -jnp.take_along_axis(log_probs, label[:, None], 1).mean(), updates

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, updates), gradient = loss_and_gradient(variables["params"])
    theirs = torch.nn.functional.cross_entropy(net(peers.to_torch(image)), torch.from_numpy(label))
    theirs.backward()
    np.testing.assert_allclose(loss, theirs.item(), rtol=1e-5)
    name_map = NAME_MAPS["resnet"][0]
    parameters, state = dict(net.named_parameters()), net.state_dict()
    worst = 0.0
    for path, value in flatten({"params": gradient}).items():
        wanted = name_map.convert(path, parameters[name_map.tensor_name(path)].grad.numpy())
        worst = max(worst, relative_difference(value, wanted))
    print("gradient", worst)
    assert worst < 1e-3
    for path, value in flatten(updates).items():
        wanted = state[name_map.tensor_name(path)].numpy()
        if path.endswith("/var"):
            # PyTorch keeps the unbiased variance, the paper and we that of the batch.
            old = 0.9 * tensors[name_map.tensor_name(path)]
            scale = 1.0
            cells = {"bn1": 33 * 25, "layer1_0": 17 * 13, "layer2_0": 9 * 7}
            cells |= {"layer3_0": 5 * 4, "layer4_0": 3 * 2}
            n = 4 * cells[path.split("/")[1]]
            scale = (n - 1) / n
            wanted = old + (wanted - old) * scale
        np.testing.assert_allclose(value, wanted, atol=1e-4 * np.abs(wanted).max())
