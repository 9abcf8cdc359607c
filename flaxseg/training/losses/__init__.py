"""Losses and counts over pixels, as pairs (sum, count) that add up over micro-batches and devices.

Nothing here names a device axis or divides: the train step adds the sums and the counts of the
whole global batch and divides once. A mean over each device, averaged, would weigh a pixel by how
many of its neighbours are ignored. For that a count depends on labels alone, never on logits.
"""

from flaxseg.training.losses.border import border_target, boundary_loss
from flaxseg.training.losses.cross_entropy import label_weight, segmentation_loss
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

REDUCTIONS = ("mean", "sum")

__all__ = [
    "KINDS",
    "REDUCTIONS",
    "TARGETS",
    "LossTerm",
    "OutputLoss",
    "border_target",
    "boundary_loss",
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
