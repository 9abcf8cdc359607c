"""How other libraries name and shape the tensors of whole networks: a file a family.

To add one: a module with `LAYOUTS`, named below.
"""

import re
from collections.abc import Mapping

import numpy as np

from flaxseg.weights.caffe_tensors import caffe_tensors
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
from flaxseg.weights.layouts.network import Layout, Network

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


def read_network(tensors: Mapping[str, np.ndarray], source: str) -> Network | None:
    """Returns what the tensors of a file are, or None where no layout is recognised.

    Args:
      tensors: by name, also those of a Caffe net that was converted in one of the ways of
        `caffe_tensors`.
      source: what to call the file in messages.

    Raises:
      WeightsError: a layout is recognised, and something in it is not as it should be.
    """
    for named in (tensors, caffe_tensors(tensors)):
        for layout in LAYOUTS:
            for anchor in layout.anchors:
                pattern = re.compile(rf"((?:.*\.)?){anchor}")
                ends = [match for name in named if (match := pattern.fullmatch(name))]
                if len(ends) == 1:
                    prefix = ends[0][1]
                    inside = {
                        k.removeprefix(prefix): v for k, v in named.items() if k.startswith(prefix)
                    }
                    return layout.read(inside, source)
    return None
