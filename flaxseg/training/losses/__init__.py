"""Computes losses over pixels as pairs (sum, count) that add up over micro-batches and devices.

Nothing here names a device axis or divides: the train step adds the sums and the counts of the
whole global batch and divides once. The average of the means of the devices would weigh a pixel by
how many of its neighbours are ignored. That is why a count depends on labels alone, never on
logits.
"""

from flaxseg.training.losses.border import border_target, boundary_loss
from flaxseg.training.losses.cross_entropy import (
    checked_weights,
    label_weight,
    segmentation_loss,
)
from flaxseg.training.losses.description import KINDS, TARGETS, LossTerm, OutputLoss
from flaxseg.training.losses.dice import dice_loss
from flaxseg.training.losses.focal import focal_loss
from flaxseg.training.losses.hard_pixels import ohem_loss, top_k_loss
from flaxseg.training.losses.lovasz import lovasz_loss
from flaxseg.training.losses.pixels import (
    pixel_accuracy,
    safe_divisor,
    sample_pixels,
    valid_pixels,
)
from flaxseg.training.losses.region_masks import class_masks, dilated_masks, eroded_masks

__all__ = [
    "KINDS",
    "TARGETS",
    "LossTerm",
    "OutputLoss",
    "border_target",
    "boundary_loss",
    "checked_weights",
    "class_masks",
    "dice_loss",
    "dilated_masks",
    "eroded_masks",
    "focal_loss",
    "label_weight",
    "lovasz_loss",
    "ohem_loss",
    "pixel_accuracy",
    "safe_divisor",
    "sample_pixels",
    "segmentation_loss",
    "top_k_loss",
    "valid_pixels",
]
