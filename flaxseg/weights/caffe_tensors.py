"""Brings the tensors of Caffe nets that were converted to other formats into PyTorch's form."""

import re
from collections.abc import Mapping

import numpy as np

# Kind of layer and PyTorch's name of TensorFlow's variables.
_TENSORFLOW_LEAVES = {
    "weights": ("", "weight"),
    "biases": ("", "bias"),
    "gamma": ("scale", "weight"),
    "beta": ("scale", "bias"),
    "moving_mean": ("", "running_mean"),
    "moving_variance": ("", "running_var"),
}


def caffe_tensors(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the tensors of a converted Caffe net with PyTorch's leaves and layout.

    Two forms are converted; other tensors are returned unchanged. `<layer>.<blob>`, such as
    `conv1_1.0`, has Caffe's blobs by number; BatchNorm's third is a factor of the other two.
    `<layer>/weights`, `biases`, `gamma`, `beta`, `moving_mean` and `moving_variance` is TensorFlow,
    kernels `[h, w, in, out]`.
    """
    result = dict(tensors)
    blobs: dict[str, dict[int, np.ndarray]] = {}
    for name in tensors:
        if match := re.fullmatch(r"(\w+)[./](\d)", name):
            blobs.setdefault(match[1], {})[int(match[2])] = result.pop(name)
            continue
        layer, _, leaf = name.rpartition("/")
        if leaf in _TENSORFLOW_LEAVES:
            kind, leaf = _TENSORFLOW_LEAVES[leaf]
            layer = re.sub(r"(^|/)bn(?=[^/]*$)", rf"\1{kind}", layer) if kind else layer
            value = result.pop(name)
            if value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)
            result[f"{layer.replace('/', '.')}.{leaf}"] = value
    for layer, values in blobs.items():
        if len(values) > 3:  # not a layer of Caffe's own
            result |= {f"{layer}.{blob}": value for blob, value in values.items()}
            continue
        if 2 in values and values[2].size == 1:
            factor = float(values[2].item())
            factor = 1.0 / factor if factor else 0.0  # Caffe's own rule for a net without training
            result[f"{layer}.running_mean"] = values[0].reshape(-1) * factor
            result[f"{layer}.running_var"] = values[1].reshape(-1) * factor
            continue
        result[f"{layer}.weight"] = values[0]
        if 1 in values:
            result[f"{layer}.bias"] = values[1].reshape(-1)
    return result
