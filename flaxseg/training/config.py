"""The config of a run: its default, what its texts mean, and what may change from start to start.

Only the programs read a config; the library below them takes plain arguments.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ml_collections import config_dict

from flaxseg.errors import ConfigError
from flaxseg.training.losses import OutputLoss

if TYPE_CHECKING:  # slow to import, and needless to read a config
    from flaxseg.inference import Protocol

# Fields without influence on the parameters a run ends with: they may differ from start to start.
FREE_FIELDS = (
    "allow_change",
    "checkpoint",
    "eval",
    "log",
    "mesh",
    "data.dir",
    "data.manual_dir",
    "data.allow_problems",
    "data.num_threads",
    "data.num_workers",
    "data.skip_broken",
    "data.cache_dir",
    "data.eval_split",
)

DATA_FIELD = "data.fingerprint"
"""Stands beside the fields of a saved config: what the prepared records are, not where they lie."""


def default_config() -> config_dict.ConfigDict:
    """Every field of a training run with its default.

    Sizes are `(height, width)`; 0, "" and () mean "off" or "none".

    Returns:
      A locked `ConfigDict`; `configs/*.py` change what their recipe needs.

    Example:
      >>> config = default_config()
      >>> config.optimizer.learning_rate = 0.02
      >>> config.schedule.name
      'poly'
    """
    config = config_dict.ConfigDict()
    config.seed = 0
    config.steps = 1000  # optimizer steps of the whole run
    config.batch_size = 8  # images per step over all devices and processes
    config.parallel = "jit"  # jit (over a mesh) | pmap
    config.mesh = ""  # with jit, data:4,space:2 splits a batch in 4 by pictures and those in 2 by
    # rows; "": by pictures alone
    config.dtype = (
        "float32"  # of the computation: float32 | bfloat16; parameters and logits are float32
    )
    config.remat = False  # recompute activations in the backward pass: less memory, more time
    config.allow_change = ""  # fields that a resumed run may change, comma separated; "all" for any

    config.model = _section(
        name="deeplabv3plus",
        backbone="resnet50",
        output_stride=16,
        frozen_batch_norm=False,
        options=config_dict.ConfigDict(),  # further arguments of the model
    )
    config.init = _section(
        backbone="",  # weights: a name such as timm/resnet50.tv_in1k, or a path; "" is random
        model="",  # a folder written by save_model (or a workdir) to start from
        reinit_head=False,  # with init.model: keep fresh what of the head is new or of another size
        bases="",  # of labels, for lrr: a file of learn-basis; those of init.model come before them
    )
    config.data = _section(
        name="shapes",
        dir="",  # where prepared data sets are kept; "": $FLAXSEG_DATA, else ./data
        manual_dir="",  # the data set as its authors publish it, for those that are not downloaded;
        # with name="folder", your own pictures
        allow_problems="",  # kinds of problems, comma separated, in spite of which data is prepared
        train_split="train",
        eval_split="val",
        crop_size=(512, 512),
        scale=(0.5, 2.0),  # range of the random scale
        scale_step=0.0,  # 0: any scale in the range
        flip=True,
        rotate=0.0,  # largest angle, degrees
        blur=0.0,  # probability
        photometric=0.0,  # strength
        num_threads=-1,  # that read and augment records, per process; -1: one per core, at most 16
        num_workers=0,  # processes to do so; for machines with many cores
        skip_broken=0,  # records that may be broken and are replaced by others; 0: none may
        cache_dir="",  # where decoded pictures are kept, 4 bytes a pixel; "": decoded each time
    )
    config.loss = _section(
        label_smoothing=0.0,
        class_weights=(),  # one weight per class
        reduction="mean",  # mean over all valid pixels | sum over those of an image
        sample_rate=1.0,  # probability that a pixel's loss counts in a step
        outputs=_section(
            logits=output_loss_section(OutputLoss()),  # the main output
            # Every auxiliary output without a section.
            auxiliary=output_loss_section(OutputLoss(weight=0.0)),
        ),
    )
    config.optimizer = _section(
        name="sgd",  # sgd | adam | adamw
        learning_rate=0.01,
        momentum=0.9,
        nesterov=False,
        b1=0.9,
        b2=0.999,
        weight_decay=1e-4,
        decay_bn_and_bias=False,
        head_lr_multiplier=1.0,  # of the head
        head="",  # paths of what is head, comma separated; "": everything that is not backbone
        bias_lr_multiplier=1.0,
        lr_multipliers="",  # of further parts: PATH=FACTOR, comma separated; in place of the head's
        frozen="",  # paths of what is not trained, comma separated, such as backbone/layer1_*
        grad_clip_norm=0.0,  # of the global gradient norm
        accumulate_steps=1,  # micro-batches that each batch is cut into, when memory is short
        ema_decay=0.0,  # of the averaged parameters that are evaluated and exported
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
        pad_to=(0, 0),  # (0, 0): each image at its own size
        protocol="whole",  # or a name, or text, of flaxseg.inference.parse_protocol
        num_pictures=4,  # predictions drawn at each evaluation
    )
    config.checkpoint = _section(
        every_steps=200,  # 0: only with an evaluation; every evaluation is followed by a checkpoint
        keep_last=2,
        keep_best=1,  # by mIoU, beside the last
        restore_step=-1,  # go on from this one; later ones are set aside. -1: from the newest
    )
    config.log = _section(every_steps=20, tensorboard=True)
    return config.lock()


def _section(**fields: Any) -> config_dict.ConfigDict:
    """One group of fields."""
    return config_dict.ConfigDict(fields)


def output_loss_section(loss: OutputLoss) -> config_dict.ConfigDict:
    """The loss of one output of the model, as a section of `config.loss.outputs`."""
    fields = dataclasses.asdict(loss)
    # A bool or "cells", whichever it is now.
    fields["align_corners"] = config_dict.FieldReference(loss.align_corners, field_type=object)
    return _section(**fields)


def config_to_dict(config: config_dict.ConfigDict) -> dict[str, Any]:
    """The config as JSON holds it: nested dicts of str, bool, int, float and lists."""
    return json.loads(json.dumps(config.to_dict()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean "x"?` for the known name nearest to `name`, or "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' Did you mean "{near[0]}"?' if near else ""


def names_in(text: str) -> tuple[str, ...]:
    """The names in a field that holds several, comma separated."""
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def rates_in(text: str) -> dict[str, float]:
    """The rates in `optimizer.lr_multipliers`, by path.

    >>> rates_in("head/conv=0.1, *classifier=10")
    {'head/conv': 0.1, '*classifier': 10.0}

    Raises:
      ConfigError: a part is not PATH=FACTOR with a number of at least 0.
    """
    rates = {}
    for part in names_in(text):
        path, _, factor = (word.strip() for word in part.rpartition("="))
        try:
            rates[path] = float(factor)
        except ValueError:
            rates[path] = math.nan
        if not path or not math.isfinite(rates[path]) or rates[path] < 0:
            raise ConfigError(
                f"optimizer.lr_multipliers has {part!r}; it must be PATH=FACTOR with a factor of "
                "at least 0, such as classifier=10"
            )
    return rates


def mesh_in(text: str) -> dict[str, int]:
    """The sizes in `mesh`, by axis.

    >>> mesh_in("data:4, space:2")
    {'data': 4, 'space': 2}

    Raises:
      ConfigError: a part is not AXIS:NUMBER, or an axis comes twice.
    """
    sizes = {}
    for part in names_in(text):
        axis, _, size = (word.strip() for word in part.partition(":"))
        if not size.isdecimal() or axis in sizes:
            raise ConfigError(
                f"mesh is {text!r}; it must be a number of devices for each axis, such as "
                "data:4,space:2"
            )
        sizes[axis] = int(size)
    return sizes


def protocol_of(config: Mapping[str, Any]) -> "Protocol":
    """The protocol of evaluations: `eval.protocol`, or the canvas of `eval.pad_to`.

    Raises:
      ConfigError: the text is no protocol, or both are set.
    """
    from flaxseg.inference import parse_protocol

    protocol = parse_protocol(config.eval.protocol)
    if not any(config.eval.pad_to):
        return protocol
    if not protocol.is_plain:
        raise ConfigError(
            f"eval.pad_to is {tuple(config.eval.pad_to)} and eval.protocol "
            f"{config.eval.protocol!r}; a protocol has its own pad_to: set eval.pad_to to (0, 0)."
        )
    return dataclasses.replace(protocol, pad_to=tuple(config.eval.pad_to))


def data_name(config: Mapping[str, Any]) -> str:
    """The name by which `flaxseg.data` knows the data set: for one's own pictures, `folder:PATH`.

    The path is not part of the name in the config, so that a run goes on where the pictures were
    moved; what they are, the fingerprint says.

    Raises:
      ConfigError: the name is "folder" and `data.manual_dir` does not say which.
    """
    from flaxseg import data

    return data.full_name(config.data.name, config.data.manual_dir)


def field_names(config: Mapping[str, Any]) -> list[str]:
    """All fields of a config, by their dotted names: `["seed", ..., "model.name", ...]`."""
    return list(flat_fields(config))


def check_resumable(
    saved: Mapping[str, Any], given: Mapping[str, Any], *, allow_change: str, workdir: str
) -> None:
    """Refuse to continue a run with a config that would make it another run.

    Args:
      saved: the config that the checkpoint holds, as `config_to_dict` gives it.
      given: the config of this start, in the same form.
      allow_change: fields that may differ all the same, comma separated; "all" for any.
      workdir: the run's folder, for the message.

    Raises:
      ConfigError: listing each field that differs with both values, unless it is one of
        `FREE_FIELDS` or is named in `allow_change`.
    """
    allowed = names_in(allow_change)
    if "all" in allowed:
        return
    changes = [
        (name, old, new)
        for name, old, new in changed_fields(saved, given)
        if not _is_under(name, (*FREE_FIELDS, *allowed))
    ]
    if changes:
        names = ",".join(name for name, _, _ in changes)
        lines = "\n".join(f"  - {name}: was {old!r}, is {new!r}" for name, old, new in changes)
        raise ConfigError(
            f"the run in {workdir} was started with other settings, and continuing it would "
            f"give neither run's result:\n{lines}\nStart a new run with another "
            f"--workdir, or go on all the same with --config.allow_change={names}"
        )


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """`(name, old value, new value)` of each field that differs; "not set" where it is missing."""
    old_fields, new_fields = flat_fields(old), flat_fields(new)
    names = [*new_fields, *(name for name in old_fields if name not in new_fields)]
    missing = "not set"
    return [
        (name, old_fields.get(name, missing), new_fields.get(name, missing))
        for name in names
        if old_fields.get(name, missing) != new_fields.get(name, missing)
    ]


def flat_fields(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one dict with dotted names."""
    flat = {}
    for name, value in fields.items():
        if isinstance(value, (Mapping, config_dict.ConfigDict)):
            flat.update(flat_fields(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _is_under(name: str, fields: Iterable[str]) -> bool:
    """Whether `name` is one of `fields` or inside one of them."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)
