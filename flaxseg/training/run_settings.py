"""Defines the settings of a run; those of a library function are defined beside it."""

import dataclasses
from typing import Any

from flaxseg import data
from flaxseg.errors import ConfigError
from flaxseg.inference import Protocol
from flaxseg.paths import any_path, local_folder, local_path, utf_8_path
from flaxseg.settings import (
    MAX_WORKERS,
    between,
    broken_rules,
    check_rules,
    count_from,
    raise_problems,
)
from flaxseg.training.objective import Objective
from flaxseg.training.optimizer import OptimizerSettings
from flaxseg.training.parallel import Layout
from flaxseg.training.schedules import Schedule
from flaxseg.training.step import StepSettings
from flaxseg.training.timetable import Timetable

_MAX_EVALUATED = 2**16  # images at a time, which have sizes of their own
_DATA_RULES = {
    "num_threads": between(-1, MAX_WORKERS),
    "dir": local_folder,
    "manual_dir": utf_8_path,
    "cache_dir": local_folder,
}
_START_RULES = {"backbone": local_path, "model": any_path, "bases": local_path}


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """Holds the arguments of `create_model`.

    Attributes:
      name: of the model.
      options: those that its parameters and its results depend on.
      training: those that only training depends on.
    """

    name: str
    options: dict[str, Any]
    training: dict[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """Returns all arguments that a config decides."""
        return {**self.options, **self.training}


@dataclasses.dataclass(frozen=True)
class StartSettings:
    """Names the weights that a new run starts from; all "" for random ones.

    Attributes:
      backbone: weights of the backbone: a name or a path.
      model: the folder of a whole model, which brings its backbone with it.
      reinit_head: keep what of the head is new or of another size than in `model`.
      bases: a file of bases of labels.

    Raises:
      SettingsError: for settings that do not go together.
    """

    backbone: str
    model: str
    reinit_head: bool
    bases: str

    def __post_init__(self):
        problems = broken_rules(vars(self), _START_RULES)
        if self.reinit_head and not self.model:
            text = "is set without init.model; name the model to start from"
            problems.append(("reinit_head", text))
        if self.model and self.backbone:
            text = (
                f"is {self.model!r} and init.backbone {self.backbone!r}; a model brings its "
                "backbone with it, so set one of them"
            )
            problems.append(("model", text))
        raise_problems(problems)


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Holds where the records come from and how they are read.

    Attributes:
      name: by which `flaxseg.data` knows the data set, see `data.full_name`.
      info: its facts.
      dir: the folder of prepared data sets.
      manual_dir: the folder of the data set as published.
      allow_problems: kinds of problems in spite of which it is prepared, as text.
      train_split: to train on.
      eval_split: to evaluate on.
      crop_size: (height, width) of the images in a batch.
      augmentation: what is drawn at random for each record.
      num_threads: of each process; -1 for one per core, at most 16.
      num_workers: processes that read.
      skip_broken: records that may be broken.
      cache_dir: for decoded images; "" for none.

    Raises:
      SettingsError: for values out of range.
    """

    name: str
    info: data.DatasetInfo
    dir: str
    manual_dir: str
    allow_problems: str
    train_split: str
    eval_split: str
    crop_size: tuple[int, int]
    augmentation: data.Augmentation | None
    num_threads: int
    num_workers: int
    skip_broken: int
    cache_dir: str

    def __post_init__(self):
        problems = broken_rules(vars(self), {**data.STREAM_RULES, **_DATA_RULES})
        for field in ("train_split", "eval_split"):
            try:
                data.check_split(self.info, getattr(self, field))
            except ConfigError as error:
                problems.append((field, f"is {getattr(self, field)!r}: {error}"))
        raise_problems(problems)


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Holds how the model is evaluated.

    Attributes:
      protocol: how an image becomes a prediction.
      batch_size: images at a time.
      num_images: predictions that are drawn.

    Raises:
      SettingsError: for values out of range.
    """

    protocol: Protocol
    batch_size: int
    num_images: int

    def __post_init__(self):
        check_rules(
            vars(self), {"batch_size": between(1, _MAX_EVALUATED), "num_images": count_from(0)}
        )


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
    """Holds which checkpoints are kept and which one is restored.

    Attributes:
      keep_last: newest ones that are kept.
      keep_best: ones with the largest mIoU that are kept beside them.
      restore_step: the one to resume from; -1 for the newest.

    Raises:
      SettingsError: for values out of range.
    """

    keep_last: int
    keep_best: int
    restore_step: int

    def __post_init__(self):
        rules = {
            "keep_last": count_from(1),
            "keep_best": count_from(0),
            "restore_step": count_from(-1),
        }
        check_rules(vars(self), rules)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Holds everything a config sets, checked, as plain arguments.

    Attributes:
      fields: the config as JSON holds it, to be written and compared.
      allow_change: fields that a resumed run may change, as text.
    """

    seed: int
    batch_size: int
    timetable: Timetable
    layout: Layout
    model: ModelSettings
    start: StartSettings
    data: DataSettings
    objective: Objective
    optimizer: OptimizerSettings
    step: StepSettings
    schedule: Schedule
    evaluation: EvaluationSettings
    checkpoints: CheckpointSettings
    tensorboard: bool
    fields: dict[str, Any]
    allow_change: str
