"""Holds the systems, one paper a file, and `create_model`, which builds them by name."""

from flaxseg.models.deconvnet import DeconvNet
from flaxseg.models.deeplab import (
    DeepLabV3,
    DeepLabV3Cascade,
    DeepLabV3Plus,
    aspp_rates,
    cascade_rates,
)
from flaxseg.models.deeplab_v1 import DeepLabV1
from flaxseg.models.deeplab_v2 import DeepLabV2
from flaxseg.models.dfn import DFN
from flaxseg.models.dilatednet import DilatedNet
from flaxseg.models.fcn import FCN, DilatedFCN, FCN8s, FCN8sAtOnce, FCN16s, FCN32s, FCNAlexNet
from flaxseg.models.gcn import GCN
from flaxseg.models.icnet import ICNet
from flaxseg.models.lrr import LRR
from flaxseg.models.parsenet import ParseNet
from flaxseg.models.pspnet import PSPNet
from flaxseg.models.refinenet import RefineNet, RefineNetLW
from flaxseg.models.registry import (
    MODELS,
    ModelSpec,
    at_output_stride,
    create_model,
    list_models,
)
from flaxseg.models.segmentation_model import Prediction, SegmentationModel
from flaxseg.models.segnet import SegNet, SegNetBasic
from flaxseg.models.unet import UNet

__all__ = [
    "DFN",
    "FCN",
    "GCN",
    "LRR",
    "MODELS",
    "DeconvNet",
    "DeepLabV1",
    "DeepLabV2",
    "DeepLabV3",
    "DeepLabV3Cascade",
    "DeepLabV3Plus",
    "DilatedFCN",
    "DilatedNet",
    "FCN8s",
    "FCN8sAtOnce",
    "FCN16s",
    "FCN32s",
    "FCNAlexNet",
    "ICNet",
    "ModelSpec",
    "PSPNet",
    "ParseNet",
    "Prediction",
    "RefineNet",
    "RefineNetLW",
    "SegNet",
    "SegNetBasic",
    "SegmentationModel",
    "UNet",
    "aspp_rates",
    "at_output_stride",
    "cascade_rates",
    "create_model",
    "list_models",
]
