"""Where TensorFlow's DeepLab release (TF-slim) keeps the modules of our networks: scopes, without
the name of the variable.

A backbone's scopes are given without the first part (`xception_65/`), which the loader finds.
"""

import re


def slim_xception_module(path: str) -> str:
    """The scope of a module of `Xception`."""
    if found := re.fullmatch(r"entry_(conv|bn)(\d)", path):
        return slim_scope(f"entry_flow/conv1_{found[2]}", found[1])
    found = re.fullmatch(
        r"(entry|middle|exit)(\d+)/(separable\d|shortcut)[/_](?:(depthwise|pointwise)_)?(conv|bn)",
        path,
    )
    if found is None:
        raise KeyError(path)
    flow, number, part, half, kind = found.groups()
    unit = f"block1/unit_{number}" if flow == "middle" else f"block{number}/unit_1"
    part = f"separable_conv{part[-1]}_{half}" if half else part
    return slim_scope(f"{flow}_flow/{unit}/xception_module/{part}", kind)


def slim_resnet_module(path: str) -> str:
    """The scope of a module of `ResNet` with bottlenecks."""
    if found := re.fullmatch(r"(conv|bn)1(_\d)?", path):
        return slim_scope(f"conv1{found[2] or ''}", found[1])
    found = re.fullmatch(r"layer(\d)_(\d+)/(?:(downsample)_(conv|bn)|(conv|bn)(\d))", path)
    if found is None:
        raise KeyError(path)
    stage, index, shortcut, shortcut_kind, kind, number = found.groups()
    unit = f"block{stage}/unit_{int(index) + 1}/bottleneck_v1"
    if shortcut:
        return slim_scope(f"{unit}/shortcut", shortcut_kind)
    return slim_scope(f"{unit}/conv{number}", kind)


def slim_mobilenet_v2_module(path: str) -> str:
    """The scope of a module of `MobileNetV2`."""
    if found := re.fullmatch(r"(stem|head)_(conv|bn)", path):
        return slim_scope({"stem": "Conv", "head": "Conv_1"}[found[1]], found[2])
    found = re.fullmatch(r"block(\d+)/(expand|depthwise|project)_(conv|bn)", path)
    if found is None:
        raise KeyError(path)
    number = "" if found[1] == "1" else f"_{int(found[1]) - 1}"
    return slim_scope(f"expanded_conv{number}/{found[2]}", found[3])


def slim_scope(scope: str, kind: str) -> str:
    return f"{scope}/BatchNorm" if kind == "bn" else scope
