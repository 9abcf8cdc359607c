"""Holds the field's building blocks. Each stands alone: plain arguments, no config, no data set."""

from flaxseg.layers.aspp import ASPP, ImagePooling
from flaxseg.layers.atrous import AtrousConv, atrous_conv
from flaxseg.layers.auxiliary import AuxiliaryHead
from flaxseg.layers.batch_norm import BatchNorm
from flaxseg.layers.bilinear_deconv import (
    BilinearDeconv,
    bilinear_deconv,
    bilinear_kernel,
    transposed_conv,
)
from flaxseg.layers.boundary_mask import boundary_mask, local_extreme, masked_residual
from flaxseg.layers.cascade_feature_fusion import CascadeFeatureFusion
from flaxseg.layers.chained_residual_pooling import ChainedResidualPooling
from flaxseg.layers.channel_attention import ChannelAttention
from flaxseg.layers.classifier import classifier, classifier_init
from flaxseg.layers.context_module import CONTEXT_RATES, ContextModule, identity_init
from flaxseg.layers.conv_block import ConvBlock
from flaxseg.layers.depthwise import DepthwiseConv, depthwise_conv
from flaxseg.layers.forms import convolution_form, preferred_form, traced_for
from flaxseg.layers.fully_connected import fully_connected
from flaxseg.layers.image_normalization import (
    CAFFE,
    EFFICIENTNET_LITE,
    IMAGENET,
    SYMMETRIC,
    ImageNormalization,
    normalize,
)
from flaxseg.layers.l2_norm import L2Norm
from flaxseg.layers.large_kernel import BoundaryRefinement, GlobalConvolution
from flaxseg.layers.largest import largest_class
from flaxseg.layers.learned_basis import LearnedBasisDeconv, cosine_bases, learned_basis_deconv
from flaxseg.layers.line_conv import LineConv, line_conv
from flaxseg.layers.local_response_norm import local_response_norm
from flaxseg.layers.multi_resolution_fusion import MultiResolutionFusion
from flaxseg.layers.padding import Padding, explicit_padding, mirror_pad, pad_to_grid
from flaxseg.layers.pooling import (
    adaptive_average_pool,
    adaptive_max_pool,
    average_pool,
    global_average_pool,
    max_pool,
)
from flaxseg.layers.pyramid_pooling import PyramidPooling
from flaxseg.layers.refinement_residual import RefinementResidual
from flaxseg.layers.residual_conv_unit import ResidualConvUnit
from flaxseg.layers.resize import ALIGN_CORNERS, resize, shrink, zoom
from flaxseg.layers.separable import SeparableConv
from flaxseg.layers.transposed_convolution import TransposedConv
from flaxseg.layers.unpooling import max_pool_with_indices, max_unpool
from flaxseg.layers.unpooling_decoder import UnpoolingDecoder, mirrored_features

__all__ = [
    "ALIGN_CORNERS",
    "ASPP",
    "CAFFE",
    "CONTEXT_RATES",
    "EFFICIENTNET_LITE",
    "IMAGENET",
    "SYMMETRIC",
    "AtrousConv",
    "AuxiliaryHead",
    "BatchNorm",
    "BilinearDeconv",
    "BoundaryRefinement",
    "CascadeFeatureFusion",
    "ChainedResidualPooling",
    "ChannelAttention",
    "ContextModule",
    "ConvBlock",
    "DepthwiseConv",
    "GlobalConvolution",
    "ImageNormalization",
    "ImagePooling",
    "L2Norm",
    "LearnedBasisDeconv",
    "LineConv",
    "MultiResolutionFusion",
    "Padding",
    "PyramidPooling",
    "RefinementResidual",
    "ResidualConvUnit",
    "SeparableConv",
    "TransposedConv",
    "UnpoolingDecoder",
    "adaptive_average_pool",
    "adaptive_max_pool",
    "atrous_conv",
    "average_pool",
    "bilinear_deconv",
    "bilinear_kernel",
    "boundary_mask",
    "classifier",
    "classifier_init",
    "convolution_form",
    "cosine_bases",
    "depthwise_conv",
    "explicit_padding",
    "fully_connected",
    "global_average_pool",
    "identity_init",
    "largest_class",
    "learned_basis_deconv",
    "line_conv",
    "local_extreme",
    "local_response_norm",
    "masked_residual",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "mirror_pad",
    "mirrored_features",
    "normalize",
    "pad_to_grid",
    "preferred_form",
    "resize",
    "shrink",
    "traced_for",
    "transposed_conv",
    "zoom",
]
