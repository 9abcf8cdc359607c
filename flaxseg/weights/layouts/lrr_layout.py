"""Reads the released MatConvNet LRRs on VGG16.

A network's parameters are arrays by name in an `.npz` file, filters `[h, w, in, out]`, as the
release's `net.params` has them: `conv1_1f` and `conv1_1b` to `fc7f` and `fc7b`, for red, green,
blue; `bases_coef_32xf`, `bases_coef_32xb`, `deconv_32xf` and their like for the levels; the
heads of dilation and erosion in several spellings.
"""

import re
from collections.abc import Mapping

import numpy as np

from flaxseg.errors import WeightsError
from flaxseg.layers.bilinear_deconv import bilinear_kernel
from flaxseg.layers.image_normalization import ImageNormalization
from flaxseg.weights.backbone_names.vgg_names import caffe_vgg_module
from flaxseg.weights.layouts.layout import Layout, Network
from flaxseg.weights.name_map import NameMap

# The tensor that every network has.
_ANCHOR = "bases_coef_32xf"

_BASES = 10
_MEAN = "averageImage"
# Of the released network for Cityscapes, red, green, blue.
_CITYSCAPES_MEAN = (73.1652, 82.9206, 72.4080)

_HEADS = {
    "coefficients_32x": {"kernel": "bases_coef_32xf", "bias": "bases_coef_32xb"},
    "coefficients_16x": {"kernel": "bases_coef_16sf", "bias": "bases_coef_16xb"},
    "coefficients_8x": {"kernel": "bases_coef_8xf", "bias": "bases_coef_8xb"},
    "coefficients_4x": {"kernel": "bases_coef_4xf", "bias": "bases_coef_4xb"},
    "reconstruction_32x": {"kernel": "deconv_32xf"},
    "reconstruction_16x": {"kernel": "deconv_16xf"},
    "reconstruction_8x": {"kernel": "deconv_8xf"},
    "reconstruction_4x": {"kernel": "deconv_4xf"},
    "coefficients_dilation": {"kernel": "dil_seg32x_coeff", "bias": "dil_seg32x_coefb"},
    "coefficients_erosion": {"kernel": "ero_mask32s_coeff", "bias": "ero_seg32x_coefb"},
    "reconstruction_dilation": {"kernel": "dil_seg_deconv_32xf", "bias": "dil_mask_deconv32sb"},
    "reconstruction_erosion": {"kernel": "ero_seg_deconv_32xf", "bias": "ero_mask_deconv32sb"},
}
_BILINEAR = re.compile(r"dec_prediction_\d+x_bil_x2f")


class _LRRNames(NameMap):
    """Maps to filters and biases called by a letter at the end of the layer's name."""

    def tensor_name(self, path: str) -> str:
        _, *module, leaf = path.split("/")
        if module[0] == "backbone":
            return caffe_vgg_module("/".join(module[1:])) + {"kernel": "f", "bias": "b"}[leaf]
        return _HEADS["/".join(module)][leaf]


MATCONVNET_LRR = _LRRNames("MatConvNet lrr", lambda path: path, channels_last=True)


def read_lrr(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Reads a released network.

    One with 19 classes is taken for the release's for Cityscapes: its masks have a window of 17 and
    its mean is known. Others have the 9 of the training code, and their mean, of the training
    images, must be among the tensors: `averageImage`, three values in red, green, blue.

    Raises:
      WeightsError: a level is missing, the mean is, or the fixed upsampling is not bilinear.
    """
    channels = tensors[_ANCHOR].shape[-1]
    if channels % _BASES or channels < 2 * _BASES:
        raise WeightsError(
            f"{source}: {_ANCHOR} has {channels} filters; wanted {_BASES} for each class."
        )
    num_classes = channels // _BASES
    try:
        widths = tuple(tensors[f"conv{stage}_1b"].size for stage in range(1, 6))
        fc_features = tuple(tensors[f"{layer}b"].size for layer in ("fc6", "fc7"))
    except KeyError as error:
        raise WeightsError(f"{source} has no tensor {error}; LRR is on VGG16.") from None
    kept = {}
    for name, value in tensors.items():
        if _BILINEAR.fullmatch(name):
            if not _is_bilinear(value):
                raise WeightsError(
                    f"{source}: {name} of shape {value.shape} is not the fixed bilinear kernel of "
                    "4 x 4; learned ones are not known."
                )
        elif name != _MEAN:
            kept[name] = value.reshape(-1) if name.endswith("b") else value
    if _MEAN in tensors and tensors[_MEAN].size == 3:
        mean = tuple(float(v) for v in np.ravel(tensors[_MEAN]))
    elif num_classes == 19:
        mean = _CITYSCAPES_MEAN
    else:
        raise WeightsError(
            f"{source} does not hold the mean of its training images; add it as {_MEAN!r}, three "
            "values in red, green, blue (net.meta of the release)."
        )
    options = {
        "backbone": "vgg16",
        "backbone_options": {"features": widths, "fc_features": fc_features},
        "finest": min(
            int(match[1]) for name in tensors if (match := re.fullmatch(r"deconv_(\d+)xf", name))
        ),
        "mask_window": 17 if num_classes == 19 else 9,
        "dilation_erosion": "dil_seg32x_coeff" in tensors,
    }
    return Network(
        "lrr",
        num_classes,
        options,
        ImageNormalization(mean, (1.0, 1.0, 1.0)),
        MATCONVNET_LRR,
        kept,
        protocol="whole(pad_multiple=32, pad_place='centre')",
    )


def _is_bilinear(kernel: np.ndarray) -> bool:
    line = bilinear_kernel(4)
    return kernel.shape[:2] == (4, 4) and np.allclose(
        kernel, np.outer(line, line)[:, :, None, None], atol=1e-5
    )


LAYOUTS = (Layout("MatConvNet's LRR", (_ANCHOR,), read_lrr),)
