"""Defines the config of a run: every field with its default and its meaning.

Only `flaxseg.training.assemble` reads the fields; the library below it takes plain arguments.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import config_dict

from flaxseg.training.losses import OutputLoss

DATA_FIELD = "data.fingerprint"
"""Beside the fields of a saved config: what the prepared records are, wherever they lie."""


def default_config() -> config_dict.ConfigDict:
    """Returns every field of a training run with its default.

    Sizes are `(height, width)`; 0, "" and () mean "off" or "none". Texts that hold several values
    are lists `a, b` or pairs `key=value, key=value`.

    Returns:
      A locked `ConfigDict`; the recipes in `configs/` change what they need.

    Example:
      >>> config = default_config()
      >>> config.optimizer.learning_rate = 0.02
      >>> config.schedule.name
      'poly'
    """
    # Longer than other functions: it is the reference of all fields, read from top to bottom.
    config = config_dict.ConfigDict()
    config.seed = 0
    config.steps = 1000  # optimizer steps in the whole run
    config.batch_size = 8  # images per step, over all devices and processes
    config.parallel = "jit"  # jit (over a mesh) | pmap
    config.mesh = ""  # with jit: "data=4, space=2" divides each batch in 4 by images and each image
    # in 2 by rows; "": by images alone
    config.dtype = "float32"  # of the computation: float32 | bfloat16. Parameters and logits are
    # always float32
    config.remat = False  # recompute activations in the backward pass: less memory, more time
    config.allow_change = ""  # fields that a resumed run may change, as a list; "all" for any

    config.model = _section(
        name="deeplabv3plus",  # one of flaxseg.list_models()
        backbone="resnet50",
        output_stride=16,  # of the backbone's last features: 8, 16 or 32
        frozen_batch_norm=False,  # use the running statistics in training, and keep them
        options=config_dict.ConfigDict(),  # further arguments of flaxseg.create_model
    )
    config.init = _section(
        backbone="",  # pretrained weights: a name such as timm/resnet50.tv_in1k, or a path; "":
        # random
        model="",  # a whole model to start from: a folder written by save_model, or a workdir
        reinit_head=False,  # with init.model: start afresh what the head does not share with it
        bases="",  # for lrr: a file of label bases from learn-basis, loaded before init.model
    )
    config.data = _section(
        name="shapes",  # one of flaxseg.data.list_datasets(); "folder" for your own images
        dir="",  # where prepared data sets are kept; "": $FLAXSEG_DATA, else ./data
        manual_dir="",  # the data set as published, where it cannot be downloaded; with
        # name="folder", the folder of your own images
        allow_problems="",  # kinds of problems to tolerate when data is prepared, as a list
        train_split="train",
        eval_split="val",
        crop_size=(512, 512),
        scale=(0.5, 2.0),  # range of the random scale
        scale_step=0.0,  # 0: any scale in the range
        flip=True,  # mirror half of the images, left to right
        rotate=0.0,  # largest angle, in degrees
        blur=0.0,  # probability
        photometric=0.0,  # strength of random changes of colour, 0 to 1
        num_threads=-1,  # that read and augment, per process; -1: one per core, at most 16
        num_workers=0,  # processes that read and augment; worth it on machines with many cores
        skip_broken=0,  # how many broken records to replace by others before the run fails
        cache_dir="",  # where to keep decoded images, 4 bytes a pixel; "": decode them each time
    )
    config.loss = _section(
        label_smoothing=0.0,
        class_weights=(),  # one weight per class
        reduction="mean",  # mean over all valid pixels | sum over those of an image
        sample_rate=1.0,  # probability that a pixel counts in a step
        outputs=_section(
            logits=output_loss_section(OutputLoss()),  # the main output
            # Every auxiliary output without a section of its own.
            auxiliary=output_loss_section(OutputLoss(weight=0.0)),
        ),
    )
    config.optimizer = _section(
        name="sgd",  # sgd | adam | adamw
        learning_rate=0.01,
        momentum=0.9,  # sgd
        nesterov=False,  # sgd
        b1=0.9,  # adam, adamw
        b2=0.999,  # adam, adamw
        weight_decay=1e-4,
        decay_bn_and_bias=False,  # decay BatchNorm parameters and biases too
        head_lr_multiplier=1.0,  # learning rate of the head over that of the backbone
        head="",  # paths that make up the head, as a list; "": everything but the backbone
        bias_lr_multiplier=1.0,  # learning rate of biases over that of kernels
        lr_multipliers="",  # for single parts, instead of the head's: "PATH=FACTOR, PATH=FACTOR"
        frozen="",  # paths that are not trained, as a list, such as backbone/layer1_*
        grad_clip_norm=0.0,  # largest global norm of the gradient
        accumulate_steps=1,  # micro-batches that each batch is cut into, to save memory
        ema_decay=0.0,  # of the moving averages that are then evaluated and exported
    )
    config.schedule = _section(
        name="poly",  # poly | cosine | step | constant
        power=0.9,  # poly
        warmup_steps=0,
        end_value=0.0,  # poly, cosine
        step_milestones=(),  # step: multiply by step_factor at each
        step_factor=0.1,
    )
    config.eval = _section(
        every_steps=500,  # 0: only at the end; the last step is always evaluated
        batch_size=8,
        pad_to=(0, 0),  # the size that images are padded to; (0, 0): each at its own size
        protocol="whole",  # a name or text for flaxseg.inference.parse_protocol
        num_images=4,  # predictions drawn at each evaluation
    )
    config.checkpoint = _section(
        every_steps=200,  # 0: only after evaluations; each evaluation is followed by a checkpoint
        keep_last=2,
        keep_best=1,  # by mIoU, in addition to the last ones
        restore_step=-1,  # resume from this step and set later ones aside; -1: the newest
    )
    config.log = _section(every_steps=20, tensorboard=True)
    return config.lock()


def _section(**fields: Any) -> config_dict.ConfigDict:
    """Returns one group of fields."""
    return config_dict.ConfigDict(fields)


def output_loss_section(loss: OutputLoss) -> config_dict.ConfigDict:
    """Returns the loss of one output of the model as a section of `config.loss.outputs`."""
    fields = dataclasses.asdict(loss)
    # A bool or "cells", whichever it is now.
    fields["align_corners"] = config_dict.FieldReference(loss.align_corners, field_type=object)
    return _section(**fields)


def config_to_dict(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Returns the config as JSON holds it: nested dicts of str, bool, int, float and lists."""
    return json.loads(json.dumps(config.to_dict()))


def field_names(config: Mapping[str, Any]) -> list[str]:
    """Returns the dotted names of all fields of a config: `["seed", ..., "model.name", ...]`."""
    return list(flat_fields(config))


def flat_fields(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested mappings as one dict with dotted names."""
    flat = {}
    for name, value in fields.items():
        if isinstance(value, (Mapping, config_dict.ConfigDict)):
            flat.update(flat_fields(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
