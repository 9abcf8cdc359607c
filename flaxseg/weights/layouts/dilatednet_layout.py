"""Reads the released Dilated-Nets by their Caffe names, which ports to other frameworks keep."""

from collections.abc import Mapping

import numpy as np

from flaxseg.errors import WeightsError
from flaxseg.layers.context_module import CONTEXT_RATES
from flaxseg.layers.image_normalization import ImageNormalization
from flaxseg.weights.backbone_names.vgg_names import CAFFE_VGG16, caffe_vgg_module
from flaxseg.weights.layouts.layout import Layout, Network, count_classes
from flaxseg.weights.name_map import NameMap

_DILATION7 = (1, 1, 2, 4, 8, 1)
_DILATION10 = (1, 1, 2, 4, 8, 16, 32, 64, 1)
# What the released nets subtract from red, green, blue.
_MEANS = {
    "voc": (116.52, 111.36, 102.93),
    "camvid": (105.41, 108.77, 110.70),
    "kitti": (91.34, 95.55, 96.19),
    "cityscapes": (73.16, 82.91, 72.39),
}


def dilatednet_map(convs: int, *, prefix: str, final: str, mean: str) -> NameMap:
    """Returns the scheme of a released net.

    Args:
      convs: 3x3 convolutions of the context module; 0 without one.
      prefix: of the context module's layers, `"ct_"` for VOC and `"ctx_"` for the others.
      final: the front end's classifier, `"fc-final"` or `"final"`.
      mean: the data set.
    """
    # conv1_1, conv1_2, conv2_1, conv3_1, ... and fc1.
    layers = ["conv1_1", "conv1_2", *(f"conv{n}_1" for n in range(2, convs - 1)), "fc1"]
    names = {f"context_module/conv{n}": f"{prefix}{layer}" for n, layer in enumerate(layers, 1)}
    names |= {"context_module/classifier": f"{prefix}final", "classifier": final}

    def module(path: str) -> str:
        part, _, rest = path.partition("/")
        return caffe_vgg_module(rest) if part == "backbone" else names[path]

    return NameMap(
        "Caffe dilatednet",
        module,
        grids={f"backbone/{path}": grid for path, grid in CAFFE_VGG16.grids.items()},
        bgr=("backbone/conv1_1",),
        normalization=ImageNormalization(_MEANS[mean], (1.0, 1.0, 1.0)),
    )


def read_dilatednet(tensors: Mapping[str, np.ndarray], source: str) -> Network:
    """Returns which of the released nets has these tensors.

    The convolutions of the context module tell: none is the front end of VOC, 6 are KITTI's, 7
    VOC's (`ct_...`) or CamVid's, 9 Cityscapes'. The latter's fixed upsampling is left out. The
    means of CamVid and KITTI are those of a port.

    Args:
      tensors: by names such as `"ctx_conv1_1.weight"`, in Caffe's layouts, for images in blue,
        green, red.
      source: what to call them in messages.

    Raises:
      WeightsError: no released net has that many convolutions in its context module.
    """
    final = "fc-final" if "fc-final.weight" in tensors else "final"
    prefix = "ct_" if "ct_conv1_1.weight" in tensors else "ctx_"
    kernels = [
        name
        for name in tensors
        if name.startswith((f"{prefix}conv", f"{prefix}fc1")) and name.endswith(".weight")
    ]
    forms = {
        0: ("voc", {"context": "none"}),
        6: ("kitti", {"rates": _DILATION7}),
        7: ("voc" if prefix == "ct_" else "camvid", {"rates": CONTEXT_RATES}),
        9: ("cityscapes", {"rates": _DILATION10, "upsampling": "deconv"}),
    }
    if len(kernels) not in forms:
        raise WeightsError(
            f"{source} has {len(kernels)} convolutions in its context module ({prefix}...); the "
            f"released nets have {', '.join(map(str, forms))}."
        )
    mean, options = forms[len(kernels)]
    options = dict(options)
    name_map = dilatednet_map(len(kernels), prefix=prefix, final=final, mean=mean)
    if kernels:
        large = (
            len(tensors[f"{prefix}conv1_1.weight"]) > tensors[f"{prefix}conv1_1.weight"].shape[1]
        )
        options |= {"context": "large" if large else "basic", "pad_first": prefix == "ct_"}
    fc = tuple(len(tensors[f"{name}.weight"]) for name in ("fc6", "fc7"))
    if fc != (4096, 4096):
        options["backbone_options"] = {"fc_features": fc}
    kept = {k: v for k, v in tensors.items() if not k.startswith("ctx_upsample")}
    num_classes = count_classes(tensors, f"{final}.weight", source)
    return Network("dilatednet", num_classes, options, name_map.normalization, name_map, kept)


LAYOUTS = (
    Layout("Caffe's Dilated-Net", (r"fc-final\.weight", r"ctx_final\.weight"), read_dilatednet),
)
