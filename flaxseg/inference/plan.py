"""From a protocol to what `evaluate` wants: batches of whole pictures, or one picture at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from flaxseg.crf import CrfPreset
from flaxseg.inference.protocol import Protocol
from flaxseg.inference.segmenter import Segmenter
from flaxseg.inference.whole_image import make_predict_fn


class InferencePlan(NamedTuple):
    """Arguments of `evaluate`.

    Attributes:
      predict_fn: its first one.
      options: its batch_size, device_count, pad_to and pad_color.
    """

    predict_fn: Callable[[np.ndarray], np.ndarray]
    options: dict[str, Any]


def plan_inference(
    model: nn.Module,
    variables: Mapping,
    protocol: Protocol,
    devices: Sequence[jax.Device],
    *,
    batch_size: int = 1,
    crf: CrfPreset | None = None,
) -> InferencePlan:
    """Returns how `evaluate` runs a protocol.

    Whole pictures go in batches over all devices; with scales, mirror images or windows a picture
    is run alone, and its windows are spread over the devices. A CRF sees no canvas.

    Args:
      model: a flaxseg model.
      variables: its parameters and BatchNorm statistics.
      protocol: of the evaluation.
      devices: of this process.
      batch_size: pictures at a time over all devices, where they go in batches.
      crf: refines each prediction.
    """
    if protocol.is_plain or (protocol.is_canvas and crf is None):
        options = {"batch_size": batch_size, "device_count": len(devices)}
        if protocol.pad_to is not None:
            options |= {"pad_to": protocol.pad_to, "pad_color": model.normalization.mean}
        return InferencePlan(make_predict_fn(model, variables, devices, crf=crf), options)
    segmenter = Segmenter(model, variables, protocol, devices=devices, crf=crf)
    return InferencePlan(segmenter.batch, {"batch_size": 1, "device_count": 1})
