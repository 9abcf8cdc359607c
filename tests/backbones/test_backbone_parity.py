"""Features and logits of the backbones against torchvision and timm, with the same weights."""

import jax
import numpy as np
import peers
import pytest
from random_weights import random_image, relative_difference, shapes_of, torch_tensors

from flaxseg.backbones import EfficientNetLite0, MobileNetV2, ResNet, create_backbone
from flaxseg.variable_paths import flatten
from flaxseg.weights import NAME_MAPS, load_weights

pytestmark = pytest.mark.peer
# Float32 sums in another order: 1e-6 a layer. A wrong rate, padding or order of layers gives 1e-1.
TOLERANCE = 1e-4


def resnet_features(net, x):
    """Features and logits of torchvision's or timm's ResNet."""
    relu = getattr(net, "relu", None) or net.act1
    x = relu(net.bn1(net.conv1(x)))
    features = {"c1": x}
    x = net.maxpool(x)
    for index in range(1, 5):
        x = getattr(net, f"layer{index}")(x)
        features[f"c{index + 1}"] = x
    return features, net.fc(x.mean((2, 3)))


def timm_mobile_features(net, x):
    """Features and logits of timm's MobileNetV2 and EfficientNet-Lite."""
    logits = net(x)
    x = net.bn1(net.conv_stem(x))
    features = {}
    for stage, block in enumerate(net.blocks):
        x = block(x)
        level = {0: "c1", 1: "c2", 2: "c3", 4: "c4", 6: "c5"}.get(stage)
        if level:
            features[level] = x
    return features, logits


def assert_equal(backbone, variables, image, features, logits):
    """Compares all features and the logits."""
    ours = jax.jit(backbone.apply)(variables, image)
    wanted = {k: peers.from_torch(v) for k, v in features.items()}
    wanted["logits"] = logits.detach().numpy()
    differences = {k: relative_difference(ours[k], v) for k, v in wanted.items()}
    print(differences)
    assert set(ours) == set(wanted)
    assert max(differences.values()) < TOLERANCE


def check(name, backbone, net, features_of, size, map_index=0):
    family = "resnet" if name.startswith("resnet") else name
    shapes = shapes_of(backbone)
    tensors = torch_tensors(shapes, NAME_MAPS[family][map_index])
    peers.load_state(net, tensors)
    variables, report = load_weights(shapes, tensors)
    assert not report.unused
    image = random_image(1, *size)
    assert_equal(backbone, variables, image, *features_of(net, peers.to_torch(image)))


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("resnet50", 32),
        ("resnet50", 16),
        ("resnet50", 8),
        *(pytest.param("resnet101", stride, marks=pytest.mark.slow) for stride in (32, 16, 8)),
    ],
)
def test_bottleneck_resnets_equal_torchvision(name, output_stride):
    torchvision = peers.import_torchvision()
    dilate = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}
    net = getattr(torchvision.models, name)(replace_stride_with_dilation=dilate[output_stride])
    backbone = create_backbone(name, output_stride=output_stride, num_classes=1000)
    check(name, backbone, net, resnet_features, (33, 49))


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [("resnet18", 32), ("resnet18", 16), ("resnet18", 8), ("resnet34", 8)],
)
def test_basic_resnets_equal_timm(name, output_stride):
    timm = peers.import_timm()
    net = timm.create_model(name, output_stride=output_stride)
    backbone = create_backbone(name, output_stride=output_stride, num_classes=1000)
    check(name, backbone, net, resnet_features, (33, 50))


def small_torchvision_resnet(output_stride):
    """torchvision's ResNet with one or two bottlenecks a stage, 7 classes."""
    resnet = peers.import_torchvision().models.resnet
    dilate = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}
    return resnet.ResNet(
        resnet.Bottleneck,
        [1, 2, 2, 2],
        num_classes=7,
        replace_stride_with_dilation=dilate[output_stride],
    )


def small_resnet(output_stride, **options):
    return ResNet(stage_sizes=(1, 2, 2, 2), output_stride=output_stride, num_classes=7, **options)


def test_the_stride_on_the_1x1_convolution():
    net = small_torchvision_resnet(32)
    for stage in (net.layer2, net.layer3, net.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    check("resnet", small_resnet(32, stride_on="1x1"), net, resnet_features, (65, 50))


@pytest.mark.parametrize("multi_grid", [(), (2, 3)])
def test_the_first_unit_has_the_rate_of_its_stage(multi_grid):
    net = small_torchvision_resnet(8)
    rates = {
        net.layer3: (2, 2),
        net.layer4: tuple(4 * factor for factor in multi_grid or (1, 1)),
    }
    for stage, stage_rates in rates.items():
        for unit, rate in zip(stage, stage_rates, strict=True):
            unit.conv2.dilation = unit.conv2.padding = (rate, rate)
    backbone = small_resnet(8, dilate_first_unit=True, multi_grid=multi_grid)
    check("resnet", backbone, net, resnet_features, (65, 50))


def test_multi_grid_multiplies_the_rates_of_the_last_stage():
    net = small_torchvision_resnet(16)
    for unit, rate in zip(net.layer4, (1 * 2, 2 * 3), strict=True):
        unit.conv2.dilation = unit.conv2.padding = (rate, rate)
    check("resnet", small_resnet(16, multi_grid=(2, 3)), net, resnet_features, (65, 50))


def test_the_pool_in_ceil_mode():
    net = small_torchvision_resnet(32)
    net.maxpool.ceil_mode = True
    check("resnet", small_resnet(32, pool="caffe"), net, resnet_features, (67, 50))


def test_a_deep_stem_of_other_widths_equals_timm():
    resnet = peers.import_timm().models.resnet
    net = resnet.ResNet(
        resnet.Bottleneck, [1, 2, 2, 2], num_classes=7, stem_type="deep", stem_width=64
    )
    backbone = small_resnet(32, deep_stem=(64, 64, 128))
    check("resnet", backbone, net, resnet_features, (65, 50))


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_basic_resnets_equal_torchvision(name):
    net = getattr(peers.import_torchvision().models, name)()
    check(name, create_backbone(name, num_classes=1000), net, resnet_features, (33, 50))


def test_mobilenet_v2_equals_torchvision():
    net = peers.import_torchvision().models.mobilenet_v2()

    def features_of(net, x):
        features, logits = {}, net(x)
        for index, block in enumerate(net.features):
            x = block(x)
            level = {1: "c1", 3: "c2", 6: "c3", 13: "c4", 17: "c5"}.get(index)
            if level:
                features[level] = x
        return features, logits

    backbone = MobileNetV2(padding="torch", num_classes=1000)
    check("mobilenet_v2", backbone, net, features_of, (64, 49))


@pytest.mark.parametrize("output_stride", [32, 16, 8])
def test_mobilenet_v2_equals_timm(output_stride):
    net = peers.import_timm().create_model("mobilenetv2_100", output_stride=output_stride)
    backbone = MobileNetV2(output_stride=output_stride, padding="torch", num_classes=1000)
    check("mobilenet_v2", backbone, net, timm_mobile_features, (49, 64), map_index=1)


@pytest.mark.parametrize(
    ("output_stride", "size"), [(32, (65, 97)), (32, (64, 46)), (16, (65, 50)), (8, (33, 50))]
)
def test_efficientnet_lite0_equals_timm(output_stride, size):
    net = peers.import_timm().create_model("tf_efficientnet_lite0", output_stride=output_stride)
    backbone = EfficientNetLite0(output_stride=output_stride, num_classes=1000)
    check("efficientnet_lite0", backbone, net, timm_mobile_features, size)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg16_on_images_of_the_classifiers_size_is_torchvisions_classifier(batch_norm):
    torch = peers.import_torch()
    name = "vgg16_bn" if batch_norm else "vgg16"
    net = getattr(peers.import_torchvision().models, name)(num_classes=10)
    net.classifier[0] = torch.nn.Linear(512 * 7 * 7, 32)
    net.classifier[3] = torch.nn.Linear(32, 32)
    net.classifier[6] = torch.nn.Linear(32, 10)
    backbone = create_backbone(
        name, num_classes=10, fc_features=(32, 32), fc_padding="valid", ceil_mode=False
    )
    shapes = shapes_of(backbone, (224, 224))
    tensors = torch_tensors(shapes, NAME_MAPS[name][0])
    for layer in ("classifier.0", "classifier.3", "classifier.6"):
        # Their layers are fully connected over [C, H, W].
        kernel = tensors[f"{layer}.weight"]
        tensors[f"{layer}.weight"] = kernel.reshape(len(kernel), -1)
    peers.load_state(net, tensors)
    variables, report = load_weights(shapes, tensors)
    assert report.layout == f"torchvision {name}"
    assert not report.unused

    image = random_image(1, 224, 224)
    x, features = peers.to_torch(image), {}
    for layer in net.features:
        if isinstance(layer, torch.nn.MaxPool2d):
            stage = len(features) // 2 + 1
            features |= {f"conv{stage}": x, f"c{stage}": layer(x)}
        x = layer(x)
    fc7 = net.classifier[:6](x.flatten(1))
    logits = net.classifier[6](fc7)
    features["fc7"] = fc7[:, :, None, None]
    assert_equal(backbone, variables, image, features, logits[:, None, None])


def test_vgg16_takes_timms_weights():
    net = peers.import_timm().create_model("vgg16", num_classes=10)
    shapes = shapes_of(create_backbone("vgg16", num_classes=10))
    own = {k: tuple(v.shape) for k, v in net.state_dict().items()}
    timm = NAME_MAPS["vgg16"][1]
    ours = {timm.tensor_name(path): path for path in flatten(shapes)}
    assert set(own) == set(ours)
    for name, path in ours.items():
        tensor = np.broadcast_to(np.float32(0), own[name])
        assert timm.convert(path, tensor).shape == flatten(shapes)[path].shape


def test_dilated_vgg16_keeps_the_features_of_the_coarse_one():
    coarse, fine = (create_backbone("vgg16", output_stride=stride) for stride in (32, 8))
    image = random_image(1, 65, 33)
    shapes = shapes_of(coarse)
    variables, _ = load_weights(shapes, torch_tensors(shapes, NAME_MAPS["vgg16"][0]))
    a = jax.jit(coarse.apply)(variables, image)["c5"]
    b = jax.jit(fine.apply)(variables, image)["c5"][:, ::4, ::4]
    assert relative_difference(b, a) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "output_stride"),
    [
        ("xception41", 16),
        pytest.param("xception65", 32, marks=pytest.mark.slow),
        pytest.param("xception71", 16, marks=pytest.mark.slow),
    ],
)
def test_xception_equals_timm(name, output_stride):
    torch = peers.import_torch()
    net = peers.import_timm().create_model(name, output_stride=output_stride)
    shapes = shapes_of(create_backbone(name, num_classes=1000))
    tensors = torch_tensors(shapes, NAME_MAPS[name][0])
    peers.load_state(net, tensors)
    variables, report = load_weights(shapes, tensors)
    assert report.layout == f"timm {name}"
    image = random_image(1, 65, 50)
    logits, taps = net(peers.to_torch(image)), net.forward_intermediates(peers.to_torch(image))[1]
    backbone = create_backbone(name, output_stride=output_stride, num_classes=1000)
    ours = jax.jit(backbone.apply)(variables, image)
    # Their taps are behind the ReLU that begins the next separable convolution.
    pairs = [(jax.nn.relu(ours[f"c{i}"]), torch.relu(tap)) for i, tap in enumerate(taps, 1)]
    differences = [relative_difference(a, peers.from_torch(b)) for a, b in pairs]
    differences.append(relative_difference(ours["logits"], logits.detach().numpy()))
    print(differences)
    assert len(pairs) == 5
    assert max(differences) < TOLERANCE
