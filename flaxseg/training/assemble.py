"""Turns a config into the settings of a run; nothing else reads the fields of a config.

Each group of settings checks itself. What is wrong with it is collected here, under the names of
the fields, so that a user sees all problems at once.
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from ml_collections import config_dict

from flaxseg import data
from flaxseg.call_text import check_name
from flaxseg.errors import ConfigError, SettingsError, near
from flaxseg.host_memory import host_memory
from flaxseg.inference import Protocol, parse_protocol
from flaxseg.models import MODELS
from flaxseg.paths import utf_8_path
from flaxseg.settings import (
    SEEDS,
    Problems,
    check_rules,
    count_from,
    image_size,
    one_of,
    raise_problems,
)
from flaxseg.training.config import DATA_FIELD, config_to_dict, flat_fields
from flaxseg.training.field_texts import names_in, numbers_in
from flaxseg.training.losses import OutputLoss, checked_weights
from flaxseg.training.network import check_model
from flaxseg.training.objective import Objective
from flaxseg.training.optimizer import OptimizerSettings
from flaxseg.training.parallel import Layout, make_layout
from flaxseg.training.run_settings import (
    CheckpointSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    Settings,
    StartSettings,
)
from flaxseg.training.schedules import Schedule, make_schedule
from flaxseg.training.step import StepSettings
from flaxseg.training.timetable import Timetable

_DRAWN = ("scale", "scale_step", "flip", "rotate", "blur", "photometric")
"""The fields of `data` that are attributes of `data.Augmentation`."""


def assemble(config: config_dict.ConfigDict, *, device_count: int = 1) -> Settings:
    """Returns the settings that a config describes.

    Args:
      config: with the fields of `default_config()`, each of its type.
      device_count: devices that share one batch, over all processes.

    Raises:
      ConfigError: for all impossible values, unknown names and conflicts at once.
    """
    problems = Problems()
    make = problems.make
    numbers = {"seed": config.seed, "batch_size": config.batch_size}
    make("", check_rules, numbers, {"seed": SEEDS, "batch_size": count_from(1)})
    make("", _check_memory, config, device_count)
    make("", _check_changes, config)
    name = make("data.", data_name, config)
    info = None if name is None else make("data.name", data.dataset_info, name)
    checkpoint = config.checkpoint
    settings = Settings(
        seed=config.seed,
        batch_size=config.batch_size,
        timetable=_timetable(config, problems),
        layout=_layout(config, device_count, problems),
        model=_model(config, info, problems),
        start=make("init.", StartSettings, **config.init.to_dict()),
        data=_data(config, name, info, problems),
        objective=_objective(config, problems),
        optimizer=_optimizer(config, problems),
        step=make(
            "optimizer.",
            StepSettings,
            accumulate_steps=config.optimizer.accumulate_steps,
            ema_decay=config.optimizer.ema_decay,
            frozen=names_in(config.optimizer.frozen),
        ),
        schedule=_schedule(config, problems),
        evaluation=make(
            "eval.",
            EvaluationSettings,
            protocol=make("eval.", _protocol, config),
            batch_size=config.eval.batch_size,
            num_images=config.eval.num_images,
        ),
        checkpoints=make(
            "checkpoint.",
            CheckpointSettings,
            keep_last=checkpoint.keep_last,
            keep_best=checkpoint.keep_best,
            restore_step=checkpoint.restore_step,
        ),
        tensorboard=config.log.tensorboard,
        fields=config_to_dict(config),
        allow_change=config.allow_change,
    )
    problems.raise_all()
    return settings


def default_workdir(config: config_dict.ConfigDict) -> str:
    """Returns the folder of a run whose user names none."""
    return f"runs/{config.model.name}_{config.data.name}"


def stream_settings(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Returns what decides which crops a training sees: `"split"`, `"seed"`, `"crop_size"`, and the
    attributes of `data.Augmentation`."""
    section = config.data
    settings = {"split": section.train_split, "seed": config.seed, "crop_size": section.crop_size}
    return {**settings, **{field: section[field] for field in _DRAWN}}


def _timetable(config: config_dict.ConfigDict, problems: Problems) -> Timetable | None:
    return problems.make(
        "",
        Timetable,
        steps=config.steps,
        report_every=config.log.every_steps,
        evaluate_every=config.eval.every_steps,
        save_every=config.checkpoint.every_steps,
        fields={
            "report_every": "log.every_steps",
            "evaluate_every": "eval.every_steps",
            "save_every": "checkpoint.every_steps",
        },
    )


def _layout(config: config_dict.ConfigDict, device_count: int, problems: Problems) -> Layout | None:
    mesh = problems.make("mesh", numbers_in, config.mesh, int)
    layout = problems.make("", make_layout, config.parallel, mesh or {}, device_count)
    parts = config.optimizer.accumulate_steps
    if layout is not None:
        if config.batch_size >= 1 and parts >= 1:
            problems.make("", layout.check_batch_size, config.batch_size, parts)
        if config.data.crop_size:
            height = config.data.crop_size[0]
            fields = {"height": "data.crop_size: the height"}
            problems.make("", layout.check_height, height, fields=fields)
    return layout


def _model(
    config: config_dict.ConfigDict, info: data.DatasetInfo | None, problems: Problems
) -> ModelSettings | None:
    name = config.model.name
    known = problems.make("model.name", check_name, name, MODELS, "model")
    typed = problems.make(
        "", check_rules, {"dtype": config.dtype}, {"dtype": one_of("float32", "bfloat16")}
    )
    if not (known and typed):
        return None
    training = {"frozen_batch_norm": config.model.frozen_batch_norm, "remat": config.remat}
    model = ModelSettings(name, model_options(config), training)
    if info is not None:
        problems.make("", check_model, model, info.num_classes)
    return model


def model_options(config: config_dict.ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `create_model` that parameters and results depend on."""
    options = {
        "backbone": config.model.backbone,
        "output_stride": config.model.output_stride,
        "dtype": jnp.dtype(config.dtype),
        **config.model.options.to_dict(),
    }
    outputs = config.loss.outputs
    wanted = outputs.auxiliary.weight or set(outputs) - {"logits", "auxiliary"}
    # Some systems always have their auxiliary outputs, and no such option.
    if wanted and "auxiliary" in MODELS[config.model.name].options:
        options["auxiliary"] = True
    return options


def data_name(config: config_dict.ConfigDict) -> str:
    """Returns the name by which `flaxseg.data` knows the data set: `folder:PATH` for your images.

    The path is not part of the name in the config, so that a run goes on where the images were
    moved; their fingerprint says what they are.

    Raises:
      ConfigError: the name holds a path, or is "folder" and `data.manual_dir` does not say which;
        or that cannot be a path.
    """
    if ":" in config.data.name:
        problem = (
            f"is {config.data.name!r}; write data.name='folder', and say where the images are with "
            "data.manual_dir"
        )
        raise SettingsError([("name", problem)])
    check_rules({"manual_dir": config.data.manual_dir}, {"manual_dir": utf_8_path})
    return data.full_name(config.data.name, config.data.manual_dir)


def _data(
    config: config_dict.ConfigDict,
    name: str | None,
    info: data.DatasetInfo | None,
    problems: Problems,
) -> DataSettings | None:
    """Returns the fields of `data`, and checks those of `loss` that depend on the classes."""
    section = config.data
    problems.make("data.allow_problems", data.problem_kinds, section.allow_problems)
    drawn = {field: section[field] for field in _DRAWN}
    augmentation = problems.make("data.", data.Augmentation, **drawn)
    if name is None or info is None:
        return None
    weights = tuple(config.loss.class_weights)
    problems.make("loss.", checked_weights, weights, info.num_classes)
    return problems.make(
        "data.",
        DataSettings,
        name=name,
        info=info,
        dir=section.dir,
        manual_dir=section.manual_dir,
        allow_problems=section.allow_problems,
        train_split=info.in_own_names(section.train_split),
        eval_split=info.in_own_names(section.eval_split),
        crop_size=tuple(section.crop_size),
        augmentation=augmentation,
        num_threads=section.num_threads,
        num_workers=section.num_workers,
        skip_broken=section.skip_broken,
        cache_dir=section.cache_dir,
    )


def _objective(config: config_dict.ConfigDict, problems: Problems) -> Objective | None:
    """Returns the losses of `loss`; their class weights are checked where the classes are known."""
    loss = config.loss
    outputs = {
        name: problems.make(f"loss.outputs.{name}.", OutputLoss, **fields)
        for name, fields in loss.outputs.to_dict().items()
    }
    if None in outputs.values():
        return None
    return problems.make(
        "loss.",
        Objective,
        outputs=outputs,
        label_smoothing=loss.label_smoothing,
        class_weights=tuple(loss.class_weights) or None,
        reduction=loss.reduction,
        sample_rate=loss.sample_rate,
    )


def _optimizer(config: config_dict.ConfigDict, problems: Problems) -> OptimizerSettings | None:
    """Returns the fields of `optimizer` that become an optax transformation."""
    fields = config.optimizer.to_dict()
    for name in ("learning_rate", "accumulate_steps", "ema_decay"):  # of the schedule and the step
        del fields[name]
    for name in ("head", "frozen"):
        fields[name] = names_in(fields[name])
    rates = problems.make("optimizer.lr_multipliers", numbers_in, fields["lr_multipliers"], float)
    fields["lr_multipliers"] = rates or {}
    return problems.make("optimizer.", OptimizerSettings, **fields)


def _schedule(config: config_dict.ConfigDict, problems: Problems) -> Schedule | None:
    return problems.make(
        "schedule.",
        make_schedule,
        learning_rate=config.optimizer.learning_rate,
        steps=config.steps,
        fields={"learning_rate": "optimizer.learning_rate", "steps": "steps"},
        **config.schedule.to_dict(),
    )


def _protocol(config: config_dict.ConfigDict) -> Protocol:
    """Returns the protocol of `eval.protocol`, or that of the canvas of `eval.pad_to`."""
    canvas = tuple(config.eval.pad_to)
    check_rules({"pad_to": canvas}, {"pad_to": image_size(0)})
    try:
        protocol = parse_protocol(config.eval.protocol)
    except ConfigError as error:
        raise SettingsError([("protocol", f"is {config.eval.protocol!r}: {error}")]) from error
    if not any(canvas):
        return protocol
    if not protocol.is_plain:
        problem = (
            f"is {canvas} and eval.protocol {config.eval.protocol!r}; a protocol has its own "
            "pad_to: set eval.pad_to to (0, 0)."
        )
        raise SettingsError([("pad_to", problem)])
    return dataclasses.replace(protocol, pad_to=canvas)


def _check_memory(config: config_dict.ConfigDict, device_count: int) -> None:
    """Checks that batches of records, 4 bytes a pixel, fit into the memory of a host.

    A host holds at least the part of a batch that one device trains on.
    """
    memory, evaluation = host_memory(), config.eval
    problems = []
    for name, number, field, size, devices in (
        ("batch_size", config.batch_size, "data.crop_size", config.data.crop_size, device_count),
        ("eval.batch_size", evaluation.batch_size, "eval.pad_to", evaluation.pad_to, 1),
    ):
        needed = number / devices * math.prod(size[:2]) * 4
        if memory is not None and needed > memory:
            problem = (
                f"is {number} and {field} {tuple(size)}: the pixels alone take {needed / 1e9:.3g} "
                f"GB, and this machine has {memory / 1e9:.3g} GB of memory; lower one of them."
            )
            problems.append((name, problem))
    raise_problems(problems)


def _check_changes(config: config_dict.ConfigDict) -> None:
    """Checks that `allow_change` names fields or sections."""
    fields = flat_fields(config)
    raise_problems(
        [
            ("allow_change", f"names {name!r}, which is not a field.{near(name, fields)}")
            for name in names_in(config.allow_change)
            if name not in ("all", DATA_FIELD) and name not in fields and name not in config
        ]
    )
