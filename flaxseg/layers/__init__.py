"""The field's building blocks. Each stands alone: plain arguments, no config, no data set."""

from flaxseg.layers.aspp import ASPP, ImagePooling
from flaxseg.layers.atrous import AtrousConv, atrous_conv, preferred_form
from flaxseg.layers.auxiliary import AuxiliaryHead
from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.cascade_feature_fusion import CascadeFeatureFusion
from flaxseg.layers.classifier import classifier, classifier_init
from flaxseg.layers.conv_block import ConvBlock
from flaxseg.layers.depthwise import DepthwiseConv, depthwise_conv
from flaxseg.layers.fully_connected import fully_connected
from flaxseg.layers.image_normalization import (
    CAFFE,
    EFFICIENTNET_LITE,
    IMAGENET,
    SYMMETRIC,
    ImageNormalization,
    normalize,
)
from flaxseg.layers.padding import Padding, explicit_padding, pad_to_grid
from flaxseg.layers.pooling import (
    adaptive_average_pool,
    adaptive_max_pool,
    average_pool,
    global_average_pool,
    max_pool,
)
from flaxseg.layers.pyramid_pooling import PyramidPooling
from flaxseg.layers.resize import resize, shrink, zoom
from flaxseg.layers.separable import SeparableConv

__all__ = [
    "ASPP",
    "CAFFE",
    "EFFICIENTNET_LITE",
    "IMAGENET",
    "SYMMETRIC",
    "AtrousConv",
    "AuxiliaryHead",
    "BatchNorm",
    "CascadeFeatureFusion",
    "ConvBlock",
    "DepthwiseConv",
    "ImageNormalization",
    "ImagePooling",
    "Padding",
    "PyramidPooling",
    "SeparableConv",
    "adaptive_average_pool",
    "adaptive_max_pool",
    "atrous_conv",
    "average_pool",
    "classifier",
    "classifier_init",
    "depthwise_conv",
    "explicit_padding",
    "fully_connected",
    "global_average_pool",
    "max_pool",
    "normalize",
    "pad_to_grid",
    "preferred_form",
    "resize",
    "shrink",
    "zoom",
]
