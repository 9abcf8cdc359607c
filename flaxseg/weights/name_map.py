"""Describes where another library keeps the weights of a network: one naming scheme, `NameMap`.

A scheme goes from our names to theirs, so that every variable of a model is looked for and none is
forgotten. It maps the path of a module (`"layer1_0/conv1"`) to the prefix of its tensors
(`"layer1.0.conv1"`). The variables inside a module have the same names in all PyTorch libraries:
`kernel` is `weight`, BatchNorm's `scale` is `weight` and its `mean` is `running_mean`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flaxseg.layers.image_normalization import ImageNormalization

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class NameMap:
    """Maps the paths of our variables to the names of another library's tensors.

    Attributes:
      name: for messages and reports.
      module: from the path of one of our modules to the prefix of its tensors; KeyError where the
        scheme has no such module.
      body: pattern of the beginning of names that belong to what the network is, in contrast to an
        ImageNet classifier on top; such a tensor may not be left over, or it is another network.
      channels_last: whether kernels are stored as ours are, and not as `[out, in, h, w]`.
      grids: `(height, width)` of the features before a fully connected layer that is a convolution
        here, by the path of our module; its matrix is `[out, in * height * width]`.
      bgr: paths of our convolutions that read the image, where the file's read blue, green, red.
        Channels beyond the third, such as a depth, stay where they are.
      transposed: paths of our transposed convolutions; theirs are `[in, out, h, w]`.
      normalization: of the images that networks with these names were trained on, where the names
        tell.
    """

    name: str
    module: Callable[[str], str]
    body: str = ""
    channels_last: bool = False
    grids: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    bgr: Sequence[str] = ()
    transposed: Sequence[str] = ()
    normalization: ImageNormalization | None = None

    def tensor_name(self, path: str) -> str:
        """Returns their name for our variable `"params/layer1_0/conv1/kernel"`.

        Raises:
          KeyError: the scheme has no such variable.
        """
        _, *module, leaf = path.split("/")
        return f"{self.module('/'.join(module))}.{_LEAVES[leaf]}"

    def convert(self, path: str, tensor: np.ndarray) -> np.ndarray:
        """Returns their tensor in our layout.

        Kernels of convolutions go from `[out, in, h, w]` to `[h, w, in, out]`, which takes
        depthwise ones from `[C, 1, h, w]` to `[h, w, 1, C]`, and linear layers are transposed.
        """
        if self.channels_last or not path.endswith("/kernel"):
            return tensor
        module = path.removesuffix("/kernel").partition("/")[2]
        if tensor.ndim == 2 and module in self.grids:
            grid = self.grids[module]
            tensor = tensor.reshape(len(tensor), -1, *grid)
        if tensor.ndim == 4:
            tensor = tensor.transpose((2, 3, 0, 1) if module in self.transposed else (2, 3, 1, 0))
            if module in self.bgr:
                tensor = np.concatenate([tensor[:, :, 2::-1], tensor[:, :, 3:]], 2)
            return tensor
        return tensor.T if tensor.ndim == 2 else tensor


class _FlaxsegNames(NameMap):
    """Maps to our own names, as in `model.safetensors` of a saved model."""

    def tensor_name(self, path: str) -> str:
        collection, rest = path.split("/", 1)
        return f"{collection}/backbone/{rest}"


FLAXSEG = _FlaxsegNames(
    "a flaxseg model", lambda path: path, r"(params|batch_stats)/backbone/", channels_last=True
)


def module_names(rules: Mapping[str, str], **parts: Callable[[str], str]) -> Callable[[str], str]:
    r"""Returns the function from our paths to their names that a table describes.

    >>> names = module_names({r"aspp/aspp(\d)/conv": r"convs.\1.0"}, backbone="net.{}".format)
    >>> names("aspp/aspp1/conv"), names("backbone/conv1")
    ('convs.1.0', 'net.conv1')

    Args:
      rules: patterns of whole paths, each with a template as `re.Match.expand` takes it.
      **parts: functions that name the modules of a submodule by the rest of their path.

    Returns:
      A function that raises KeyError for a path that the table does not know.
    """

    def module(path: str) -> str:
        part, _, rest = path.partition("/")
        if part in parts:
            return parts[part](rest)
        if path in rules:
            return rules[path]
        for pattern, name in rules.items():
            if found := re.fullmatch(pattern, path):
                return found.expand(name)
        raise KeyError(path)

    return module


def conv_block(path: str, conv: str, bn: str) -> dict[str, str]:
    """Returns the rules of `module_names` for a convolution and its BatchNorm."""
    return {f"{path}/conv": conv, f"{path}/bn": bn}


def behind(prefix: str, names: Callable[[str], str]) -> Callable[[str], str]:
    """Returns the function that puts a prefix before names."""
    return lambda path: f"{prefix}{names(path)}"
