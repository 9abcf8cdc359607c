"""Imports of the packages that the parity tests compare with, and moves to and from PyTorch."""

import numpy as np
import pytest


def import_torch():
    """Returns torch; the test is skipped where it is not installed."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(2)
    return torch


def import_torchvision():
    """Returns torchvision with its models.

    Beside a CPU build of torch, torchvision's compiled operators may be absent. Its models do not
    use them, but importing the package needs their signatures.
    """
    torch = import_torch()
    for name, signature in (
        ("nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
        ("qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"),
    ):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", signature)
    pytest.importorskip("torchvision.models.segmentation")
    return pytest.importorskip("torchvision")


def import_timm():
    """Returns timm, which imports torchvision."""
    import_torchvision()
    return pytest.importorskip("timm")


def import_cityscapesscripts():
    """Returns Cityscapes' own evaluation of semantic labels."""
    pytest.importorskip("cityscapesscripts")
    return pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")


def load_state(model, tensors: dict[str, np.ndarray]):
    """Fills a PyTorch model with all of its tensors, and puts it in eval mode.

    Names and shapes must be exactly those of the model, the count of steps aside.
    """
    import torch

    own = {k for k in model.state_dict() if not k.endswith("num_batches_tracked")}
    assert own == set(tensors)
    state = {k: torch.from_numpy(v.copy()) for k, v in tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model.eval()


def to_torch(image: np.ndarray):
    """`[N, H, W, C]` to a contiguous `[N, C, H, W]` tensor."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(image), 3, 1)))


def from_torch(tensor) -> np.ndarray:
    """`[N, C, H, W]` to `[N, H, W, C]`."""
    return np.moveaxis(tensor.detach().numpy(), 1, 3)
