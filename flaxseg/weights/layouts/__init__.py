"""Knows how other libraries name and shape the tensors of whole networks: a file a family.

To add one: a module with `LAYOUTS`, named below.
"""

from flaxseg.weights.layouts import (
    deeplab_slim,
    deeplab_v1_v2,
    deeplab_v3,
    dfn,
    dilatednet,
    fcn,
    gcn,
    icnet,
    lrr,
    pspnet,
    refinenet,
    unet,
    unpooling,
)
from flaxseg.weights.layouts.network import Layout

LAYOUTS: tuple[Layout, ...] = (
    *deeplab_v1_v2.LAYOUTS,
    *deeplab_v3.LAYOUTS,
    *deeplab_slim.LAYOUTS,
    *fcn.LAYOUTS,
    *pspnet.LAYOUTS,
    *icnet.LAYOUTS,
    *lrr.LAYOUTS,
    *gcn.LAYOUTS,
    *dfn.LAYOUTS,
    *refinenet.LAYOUTS,
    *unpooling.LAYOUTS,
    *dilatednet.LAYOUTS,
    *unet.LAYOUTS,
)
