"""Knows how other libraries name and shape the tensors of whole networks: a file a family.

To add one: a module with `LAYOUTS`, named below.
"""

from flaxseg.weights.layouts import (
    deeplab_slim_layout,
    deeplab_v1_v2_layout,
    deeplab_v3_layout,
    dfn_layout,
    dilatednet_layout,
    fcn_layout,
    gcn_layout,
    icnet_layout,
    lrr_layout,
    pspnet_layout,
    refinenet_layout,
    unet_layout,
    unpooling_layout,
)
from flaxseg.weights.layouts.layout import Layout

LAYOUTS: tuple[Layout, ...] = (
    *deeplab_v1_v2_layout.LAYOUTS,
    *deeplab_v3_layout.LAYOUTS,
    *deeplab_slim_layout.LAYOUTS,
    *fcn_layout.LAYOUTS,
    *pspnet_layout.LAYOUTS,
    *icnet_layout.LAYOUTS,
    *lrr_layout.LAYOUTS,
    *gcn_layout.LAYOUTS,
    *dfn_layout.LAYOUTS,
    *refinenet_layout.LAYOUTS,
    *unpooling_layout.LAYOUTS,
    *dilatednet_layout.LAYOUTS,
    *unet_layout.LAYOUTS,
)
