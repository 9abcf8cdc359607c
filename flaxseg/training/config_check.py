"""The check of a config: everything that is wrong with it, before anything is read or compiled."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ml_collections import config_dict

from flaxseg.errors import ConfigError, DataError
from flaxseg.training.config import (
    DATA_FIELD,
    data_name,
    default_config,
    did_you_mean,
    flat_fields,
    mesh_in,
    names_in,
    output_loss_section,
    protocol_of,
    rates_in,
)
from flaxseg.training.losses import OutputLoss

if TYPE_CHECKING:  # slow to import, and needless to check the form of a config
    from flaxseg.data import DatasetInfo

# Sections whose fields depend on the model.
_FREE_SECTIONS = ("model.options.",)


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


def _structure_problems(config: config_dict.ConfigDict) -> list[str]:
    """Fields that no program knows, fields that are missing, and values of the wrong type."""
    default, given = default_config(), flat_fields(config)
    problems = []
    outputs = {name.split(".")[2] for name in given if name.startswith("loss.outputs.")}
    with default.unlocked():
        for name in outputs - set(default.loss.outputs):  # each output has the same fields
            default.loss.outputs[name] = output_loss_section(OutputLoss())
    expected = flat_fields(default)
    for name in given:
        if name not in expected and not name.startswith(_FREE_SECTIONS):
            problems.append(f"there is no field {name!r}.{did_you_mean(name, expected)}")
    for name, default in expected.items():
        if name not in given:
            problems.append(f"the field {name!r} is missing; its default is {default!r}")
        elif name.endswith(".align_corners"):
            pass  # a bool or a text; `OutputLoss` checks it
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
    fields = flat_fields(config)
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
    fields = flat_fields(config)
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
