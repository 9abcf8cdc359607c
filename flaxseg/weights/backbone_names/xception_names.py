"""Names the modules of the aligned Xceptions as timm and TF-slim do."""

import re
from collections.abc import Callable

from flaxseg.weights.name_map import FLAXSEG, NameMap
from flaxseg.weights.slim_names import slim_names, slim_scope


def _timm_xception_module(entry_blocks: int, middle_blocks: int) -> Callable[[str], str]:
    """Returns timm's names for an aligned Xception, which numbers all blocks in one row."""
    first = {"entry": 0, "middle": entry_blocks, "exit": entry_blocks + middle_blocks}

    def module(path: str) -> str:
        if path == "classifier":
            return "head.fc"
        if stem := re.fullmatch(r"entry_(conv|bn)(\d)", path):
            return f"stem.{int(stem[2]) - 1}.{stem[1]}"
        found = re.fullmatch(
            r"(entry|middle|exit)(\d+)/(?:separable(\d)/(depthwise|pointwise)|shortcut)_(conv|bn)",
            path,
        )
        if found is None:
            raise KeyError(path)
        flow, number, separable, half, kind = found.groups()
        block = f"blocks.{first[flow] + int(number) - 1}"
        if half is None:
            return f"{block}.shortcut.{kind}"
        return f"{block}.stack.conv{separable}.{kind}_{'dw' if half == 'depthwise' else 'pw'}"

    return module


def slim_xception_module(path: str) -> str:
    """Returns the scope of a module of `Xception`."""
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


def _xception_maps(depth: int, entry_blocks: int, middle_blocks: int) -> tuple[NameMap, ...]:
    return (
        NameMap(
            f"timm xception{depth}",
            _timm_xception_module(entry_blocks, middle_blocks),
            r"(stem|blocks)\.",
        ),
        slim_names("xception", slim_xception_module, r"(entry|middle|exit)_flow/"),
        FLAXSEG,
    )


XCEPTION41 = _xception_maps(41, entry_blocks=3, middle_blocks=8)
XCEPTION65 = _xception_maps(65, entry_blocks=3, middle_blocks=16)
XCEPTION71 = _xception_maps(71, entry_blocks=5, middle_blocks=16)
