"""Imports of the PyTorch packages that the parity tests compare with."""

import pytest


def import_torch():
    """Returns torch; the test is skipped where it is not installed."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(2)
    return torch


def import_torchvision():
    """Returns torchvision with its models.

    The CPU build of torch goes with a torchvision whose compiled operators may be absent. Its
    models do not use them, but importing the package needs their signatures.
    """
    torch = import_torch()
    if not hasattr(torch.ops.torchvision, "nms"):
        for signature in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        ):
            try:
                torch.library.define(
                    "torchvision::" + signature.split("(")[0], signature[signature.index("(") :]
                )
            except RuntimeError as error:
                if "already" not in str(error) and "duplicate" not in str(error).lower():
                    raise
    pytest.importorskip("torchvision")
    import torchvision.models.segmentation

    return torchvision


def import_timm():
    """Returns timm; it imports torchvision."""
    import_torchvision()
    return pytest.importorskip("timm")
