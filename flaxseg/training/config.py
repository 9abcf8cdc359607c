"""The config of a run: its default, its check, and what may change from start to start.

Only the programs read a config; the library below them takes plain arguments.
"""

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ml_collections import config_dict

from flaxseg.errors import ConfigError, DataError
from flaxseg.training.losses import OutputLoss

if TYPE_CHECKING:  # slow to import, and needless to read a config
    from flaxseg.data import DatasetInfo
    from flaxseg.evaluation import Protocol

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

# Sections whose fields depend on the model.
_FREE_SECTIONS = ("model.options.",)

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
        protocol="whole",  # or a name, or text, of flaxseg.evaluation.parse_protocol
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
    # So that it remains a bool or None, whichever it is now.
    fields["align_corners"] = config_dict.FieldReference(loss.align_corners, field_type=bool)
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
    from flaxseg.evaluation import parse_protocol

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
      DataError: the name is "folder" and `data.manual_dir` does not say which.
    """
    from flaxseg import data

    return data.full_name(config.data.name, config.data.manual_dir)


def field_names(config: Mapping[str, Any]) -> list[str]:
    """All fields of a config, by their dotted names: `["seed", ..., "model.name", ...]`."""
    return list(_flatten(config))


def validate_config(config: config_dict.ConfigDict, *, device_count: int = 1) -> None:
    """Check all fields of a config, alone and together, before anything is read or compiled.

    Args:
      config: the config of a run, of the form of `default_config()`.
      device_count: devices that share one batch, over all processes.

    Raises:
      ConfigError: listing all problems: unknown or missing fields, wrong types, impossible values,
        unknown names, a batch that the devices can not share.
    """
    problems = _structure_problems(config)
    if not problems:  # values are only looked at where every field is there and has its type
        problems = [
            *_range_problems(config),
            *_name_problems(config),
            *_output_problems(config),
            *_relation_problems(config, device_count),
        ]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{count} in the config:\n" + "\n".join(f"  - {p}" for p in problems))


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
    old_fields, new_fields = _flatten(old), _flatten(new)
    names = [*new_fields, *(name for name in old_fields if name not in new_fields)]
    missing = "not set"
    return [
        (name, old_fields.get(name, missing), new_fields.get(name, missing))
        for name in names
        if old_fields.get(name, missing) != new_fields.get(name, missing)
    ]


def _flatten(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one dict with dotted names."""
    flat = {}
    for name, value in fields.items():
        if isinstance(value, (Mapping, config_dict.ConfigDict)):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _is_under(name: str, fields: Iterable[str]) -> bool:
    """Whether `name` is one of `fields` or inside one of them."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def _structure_problems(config: config_dict.ConfigDict) -> list[str]:
    """Fields that no program knows, fields that are missing, and values of the wrong type."""
    default, given = default_config(), _flatten(config)
    problems = []
    outputs = {name.split(".")[2] for name in given if name.startswith("loss.outputs.")}
    with default.unlocked():
        for name in outputs - set(default.loss.outputs):  # each output has the same fields
            default.loss.outputs[name] = output_loss_section(OutputLoss())
    expected = _flatten(default)
    for name in given:
        if name not in expected and not name.startswith(_FREE_SECTIONS):
            problems.append(f"there is no field {name!r}.{did_you_mean(name, expected)}")
    for name, default in expected.items():
        if name not in given:
            problems.append(f"the field {name!r} is missing; its default is {default!r}")
        elif given[name] is None and name.endswith(".align_corners"):
            pass  # a third convention of `flaxseg.layers.resize`
        elif not _has_type_of(given[name], default):
            problems.append(
                f"{name} is {given[name]!r}; it must be a {_kind(default)}, such as {default!r}"
            )
    return problems


def _has_type_of(value: Any, default: Any) -> bool:
    """Whether `value` can stand for `default`: an int may for a float, a list for a tuple."""
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, float):
        return isinstance(value, (int, float))
    if isinstance(default, tuple):
        return isinstance(value, (tuple, list)) and all(
            isinstance(item, (int, float)) and not isinstance(item, bool) for item in value
        )
    return isinstance(value, type(default))


def _kind(default: Any) -> str:
    """What a field of this default holds, in words."""
    words = {bool: "bool", int: "whole number", float: "number", tuple: "tuple of numbers"}
    return words.get(type(default), "text")


def _at_least(low: float) -> tuple[Callable[[float], bool], str]:
    return lambda value: math.isfinite(value) and value >= low, f"at least {low}"


def _above(low: float) -> tuple[Callable[[float], bool], str]:
    return lambda value: math.isfinite(value) and value > low, f"more than {low}"


def _within(low: float, high: float) -> tuple[Callable[[float], bool], str]:
    return lambda value: low <= value < high, f"at least {low} and less than {high}"


def _up_to(low: float, high: float) -> tuple[Callable[[float], bool], str]:
    return lambda value: low <= value <= high, f"between {low} and {high}"


def _share() -> tuple[Callable[[float], bool], str]:
    return lambda value: 0 < value <= 1, "more than 0 and at most 1"


# Field -> (test, what is wanted).
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "seed": _at_least(0),
    "steps": _at_least(1),
    "batch_size": _at_least(1),
    "data.scale_step": _at_least(0),
    "data.rotate": _up_to(0, 180),
    "data.blur": _up_to(0, 1),
    "data.photometric": _up_to(0, 1),
    "data.num_threads": _at_least(-1),
    "data.num_workers": _at_least(0),
    "data.skip_broken": _at_least(0),
    "loss.label_smoothing": _within(0, 1),
    "loss.sample_rate": _share(),
    "optimizer.learning_rate": _above(0),
    "optimizer.momentum": _within(0, 1),
    "optimizer.b1": _within(0, 1),
    "optimizer.b2": _within(0, 1),
    "optimizer.weight_decay": _at_least(0),
    "optimizer.head_lr_multiplier": _at_least(0),
    "optimizer.bias_lr_multiplier": _at_least(0),
    "optimizer.grad_clip_norm": _at_least(0),
    "optimizer.accumulate_steps": _at_least(1),
    "optimizer.ema_decay": _within(0, 1),
    "schedule.power": _above(0),
    "schedule.warmup_steps": _at_least(0),
    "schedule.end_value": _at_least(0),
    "schedule.step_factor": _above(0),
    "eval.every_steps": _at_least(0),
    "eval.batch_size": _at_least(1),
    "eval.num_pictures": _at_least(0),
    "checkpoint.every_steps": _at_least(0),
    "checkpoint.keep_last": _at_least(1),
    "checkpoint.keep_best": _at_least(0),
    "checkpoint.restore_step": _at_least(-1),
    "log.every_steps": _at_least(1),
}


def _range_problems(config: config_dict.ConfigDict) -> list[str]:
    """Numbers and sizes outside their range."""
    fields = _flatten(config)
    problems = [
        f"{name} is {fields[name]}; it must be {wanted}"
        for name, (test, wanted) in _RANGES.items()
        if not test(fields[name])
    ]
    for name, low in (("data.crop_size", 1), ("eval.pad_to", 0)):
        size = fields[name]
        if len(size) != 2 or not all(isinstance(side, int) and side >= low for side in size):
            problems.append(
                f"{name} is {tuple(size)}; it must be (height, width) in pixels, "
                f"each a whole number of at least {low}"
            )
    scale = fields["data.scale"]
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        problems.append(
            f"data.scale is {tuple(scale)}; it must be (smallest, largest), 0 < smallest <= largest"
        )
    if any(weight < 0 or not math.isfinite(weight) for weight in fields["loss.class_weights"]):
        problems.append(
            f"loss.class_weights is {tuple(fields['loss.class_weights'])}; "
            "weights must be at least 0"
        )
    for check in (
        lambda: rates_in(fields["optimizer.lr_multipliers"]),
        lambda: protocol_of(config),
    ):
        try:
            check()
        except ConfigError as error:
            problems.append(str(error))
    milestones = list(fields["schedule.step_milestones"])
    if milestones != sorted(set(milestones)) or any(m < 1 for m in milestones):
        problems.append(
            f"schedule.step_milestones is {tuple(milestones)}; it must be rising steps from 1"
        )
    return problems


def _name_problems(config: config_dict.ConfigDict) -> list[str]:
    """Names that nothing has: model, backbone, data set, splits, and the fixed choices."""
    from flaxseg import backbones, data, list_models

    choices = {
        "parallel": ("jit", "pmap"),
        "dtype": ("float32", "bfloat16"),
        "loss.reduction": ("mean", "sum"),
        "optimizer.name": ("sgd", "adam", "adamw"),
        "schedule.name": ("poly", "cosine", "step", "constant"),
        "model.name": tuple(list_models()),
    }
    if config.model.backbone:
        choices["model.backbone"] = tuple(backbones.list_backbones())
    fields = _flatten(config)
    given = {name: (fields[name],) for name in choices}
    info, data_problems = _data_info(config)
    if info is not None:
        splits = tuple(info.splits)
        for name in ("data.train_split", "data.eval_split"):
            choices[name], given[name] = splits, data.split_names(fields[name])
    problems = [
        f"{name} is {value!r}; it must be one of {', '.join(known)}.{did_you_mean(value, known)}"
        for name, known in choices.items()
        for value in given[name]
        if value not in known
    ]
    problems += data_problems
    for name in names_in(config.allow_change):
        if name != "all" and name not in fields and name not in config and name != DATA_FIELD:
            problems.append(
                f"allow_change names {name!r}, which is no field.{did_you_mean(name, fields)}"
            )
    return problems


def _data_info(
    config: config_dict.ConfigDict,
) -> "tuple[DatasetInfo | None, list[str]]":
    """The facts of the data set, or why there are none."""
    from flaxseg import data

    if ":" in config.data.name:
        return None, [
            f"data.name is {config.data.name!r}; write data.name='folder' and say where the "
            "pictures are with data.manual_dir"
        ]
    try:
        data.problem_kinds(config.data.allow_problems)
        return data.dataset_info(data_name(config)), []
    except (ConfigError, DataError) as error:  # says what there is, and how to get it
        return None, [str(error)]


def _output_problems(config: config_dict.ConfigDict) -> list[str]:
    """Descriptions of losses that are not possible; which outputs there are, the model knows."""
    problems = []
    for name, own in config.loss.outputs.to_dict().items():
        try:
            OutputLoss(**own)
        except ConfigError as error:
            problems.append(f"loss.outputs.{name}: {error}")
    return problems


def _relation_problems(config: config_dict.ConfigDict, device_count: int) -> list[str]:
    """Fields that are possible alone and impossible together."""
    problems = []
    problems += _mesh_problems(config, device_count)
    if config.schedule.end_value > config.optimizer.learning_rate:
        problems.append(
            f"schedule.end_value is {config.schedule.end_value}; it must be at most "
            f"optimizer.learning_rate {config.optimizer.learning_rate}"
        )
    if config.schedule.warmup_steps >= config.steps:
        problems.append(
            f"schedule.warmup_steps is {config.schedule.warmup_steps} of {config.steps} steps; "
            "it must be less than steps"
        )
    if config.schedule.name == "step" and not config.schedule.step_milestones:
        problems.append(
            'schedule.name is "step" without schedule.step_milestones; set e.g. (400, 500)'
        )
    if config.init.reinit_head and not config.init.model:
        problems.append("init.reinit_head is set without init.model; name the model to start from")
    if config.init.model and config.init.backbone:
        problems.append(
            f"init.model {config.init.model!r} and init.backbone {config.init.backbone!r} are both "
            "set; a model brings its backbone with it, so set one of them"
        )
    info, _ = _data_info(config)
    if config.loss.class_weights and info is not None:
        num_classes = info.num_classes
        if len(config.loss.class_weights) != num_classes:
            problems.append(
                f"loss.class_weights has {len(config.loss.class_weights)} entries; "
                f"{info.name} has {num_classes} classes"
            )
    return problems


def _mesh_problems(config: config_dict.ConfigDict, device_count: int) -> list[str]:
    """A mesh that the devices do not have, and batches and pictures that it can not share."""
    from flaxseg.layers.split_rows import SPACE_AXIS
    from flaxseg.training.parallel import DATA_AXIS, height_unit, mesh_sizes, nearest_multiples

    try:
        sizes = mesh_sizes(mesh_in(config.mesh), device_count)
    except ConfigError as error:
        return [str(error)]
    problems = []
    data, space = sizes[DATA_AXIS], sizes[SPACE_AXIS]
    if space > 1 and config.parallel == "pmap":
        problems.append(
            f"parallel is 'pmap', and mesh {config.mesh!r} splits the rows of pictures, which only "
            "parallel='jit' can; set that, or mesh to \"\""
        )
    unit = data * config.optimizer.accumulate_steps
    if config.batch_size % unit:
        devices = f"{data} devices" if space == 1 else f"{DATA_AXIS}:{data}"
        cut = f" x {config.optimizer.accumulate_steps} accumulated parts" if unit > data else ""
        near = nearest_multiples(config.batch_size, unit)
        problems.append(
            f"batch_size {config.batch_size} can not be shared by {devices}{cut}; set it to {near}"
        )
    height, unit = config.data.crop_size[0], height_unit(space)
    if height % unit:
        problems.append(
            f"data.crop_size is {tuple(config.data.crop_size)}, and its height can not be shared "
            f"by {SPACE_AXIS}:{space}; set the height to {nearest_multiples(height, unit)}"
        )
    return problems
