"""Describes how TF-slim names and shapes variables, as in TensorFlow's DeepLab release.

A backbone's scopes are given without their first part (`xception_65/`), which the loader finds.
"""

from collections.abc import Callable

import numpy as np

from flaxseg.weights.name_map import NameMap

_SLIM_LEAVES = {
    "scale": "gamma",
    "bias": "beta",
    "mean": "moving_mean",
    "var": "moving_variance",
}


class SlimNames(NameMap):
    """Maps to the variables of TF-slim, under `scope/weights` and `scope/BatchNorm/gamma`.

    Kernels lie as ours do, but that those of depthwise convolutions are `[h, w, C, 1]`.
    """

    def tensor_name(self, path: str) -> str:
        _, *module, leaf = path.split("/")
        scope = self.module("/".join(module))
        if scope.endswith("/BatchNorm"):
            return f"{scope}/{_SLIM_LEAVES[leaf]}"
        if leaf == "bias":
            return f"{scope}/biases"
        return f"{scope}/{'depthwise_' if module[-1] == 'depthwise_conv' else ''}weights"

    def convert(self, path: str, tensor: np.ndarray) -> np.ndarray:
        if path.endswith("depthwise_conv/kernel") and tensor.ndim == 4:
            return tensor.swapaxes(2, 3)
        if path.endswith("aspp/project/conv/kernel") and tensor.ndim == 4:
            # Their concatenation begins with image pooling, ours ends with it.
            return np.roll(tensor, -tensor.shape[3], 2)
        return tensor


# What an optimizer and an averaging of parameters leave beside a variable of TensorFlow.
SLIM_SLOTS = r"(Momentum|ExponentialMovingAverage|RMSProp(_1)?|Adam(_1)?)"


def slim_names(name: str, module: Callable[[str], str], body: str) -> SlimNames:
    """Returns the scheme of a backbone in TF-slim; `body` as for `NameMap`."""
    return SlimNames(f"TF-slim {name}", module, rf"{body}(?!.*/{SLIM_SLOTS}$)")


def slim_scope(scope: str, kind: str) -> str:
    """Returns the scope of a convolution, or with kind `"bn"` of its BatchNorm."""
    return f"{scope}/BatchNorm" if kind == "bn" else scope
