"""Where TensorFlow's DeepLab release (TF-slim) keeps the modules of our networks: scopes, without
the name of the variable.

A backbone's scopes are given without the first part (`xception_65/`), which the loader finds.
"""

import re


def slim_xception_module(path: str) -> str:
    """The scope of a module of `Xception`."""
    if found := re.fullmatch(r"entry_(conv|bn)(\d)", path):
        return _scope(f"entry_flow/conv1_{found[2]}", found[1])
    found = re.fullmatch(
        r"(entry|middle|exit)(\d+)/(separable\d|shortcut)[/_](?:(depthwise|pointwise)_)?(conv|bn)",
        path,
    )
    if found is None:
        raise KeyError(path)
    flow, number, part, half, kind = found.groups()
    unit = f"block1/unit_{number}" if flow == "middle" else f"block{number}/unit_1"
    part = f"separable_conv{part[-1]}_{half}" if half else part
    return _scope(f"{flow}_flow/{unit}/xception_module/{part}", kind)


def slim_resnet_module(path: str) -> str:
    """The scope of a module of `ResNet` with bottlenecks."""
    if found := re.fullmatch(r"(conv|bn)1(_\d)?", path):
        return _scope(f"conv1{found[2] or ''}", found[1])
    found = re.fullmatch(r"layer(\d)_(\d+)/(?:(downsample)_(conv|bn)|(conv|bn)(\d))", path)
    if found is None:
        raise KeyError(path)
    stage, index, shortcut, shortcut_kind, kind, number = found.groups()
    unit = f"block{stage}/unit_{int(index) + 1}/bottleneck_v1"
    if shortcut:
        return _scope(f"{unit}/shortcut", shortcut_kind)
    return _scope(f"{unit}/conv{number}", kind)


def slim_mobilenet_v2_module(path: str) -> str:
    """The scope of a module of `MobileNetV2`."""
    if found := re.fullmatch(r"(stem|head)_(conv|bn)", path):
        return _scope({"stem": "Conv", "head": "Conv_1"}[found[1]], found[2])
    found = re.fullmatch(r"block(\d+)/(expand|depthwise|project)_(conv|bn)", path)
    if found is None:
        raise KeyError(path)
    number = "" if found[1] == "1" else f"_{int(found[1]) - 1}"
    return _scope(f"expanded_conv{number}/{found[2]}", found[3])


def slim_deeplab_head_module(path: str) -> str:
    """The scope of a module of the heads of `DeepLabV3` and `DeepLabV3Plus`."""
    if path == "classifier":
        return "logits/semantic"
    found = re.fullmatch(
        r"(aspp/image_pooling/block|aspp/project|aspp/aspp\d|low_level|decoder\d+)"
        r"/(?:(depthwise|pointwise)_)?(conv|bn)",
        path,
    )
    if found is None:
        raise KeyError(path)
    module, half, kind = found.groups()
    fixed = {
        "aspp/image_pooling/block": "image_pooling",
        "aspp/project": "concat_projection",
        "low_level": "decoder/feature_projection0",
    }
    if module in fixed:
        scope = fixed[module]
    elif module.startswith("decoder"):
        scope = f"decoder/decoder_conv{module.removeprefix('decoder')}"
    else:
        scope = module.removeprefix("aspp/")
    return _scope(f"{scope}_{half}" if half else scope, kind)


def _scope(scope: str, kind: str) -> str:
    return f"{scope}/BatchNorm" if kind == "bn" else scope
