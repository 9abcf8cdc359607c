"""Finds where a run stands: at its newest good checkpoint, or at its beginning."""

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import jax

import flaxseg
from flaxseg.errors import ConfigError, WeightsError
from flaxseg.saved_model import read_model_card
from flaxseg.settings import raise_listed
from flaxseg.training.checkpoint import Meta
from flaxseg.training.config import DATA_FIELD, flat_fields
from flaxseg.training.field_texts import names_in
from flaxseg.training.parallel import Parallel
from flaxseg.training.run import Run
from flaxseg.training.run_settings import StartSettings
from flaxseg.training.state import TrainState, create_state

_log = logging.getLogger(__name__)

# Fields that do not affect the final parameters: they may change when a run is resumed.
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


@dataclasses.dataclass
class Position:
    """Records how far a run has come.

    Attributes:
      step: steps done.
      state: on the devices.
      iterator_state: JSON of the data iterator's state after the last batch that was used; "" at
        the beginning.
      history: one dict per evaluation.
      window: what the next report needs of the steps since the last one, see `Window.state`.
    """

    step: int
    state: TrainState
    iterator_state: str
    history: list[dict[str, Any]]
    window: dict[str, list[float]]


def check_start(start: StartSettings) -> None:
    """Checks that the weights to start from are there; none are downloaded, and only bases read.

    Raises:
      ConfigError: naming the fields of those that are not.
    """
    from flaxseg import weights  # slow to import, and needless for a run that is resumed

    finders = {
        "backbone": weights.find_source,
        "model": read_model_card,
        "bases": weights.read_bases,
    }
    problems = []
    for field, find in finders.items():
        source = getattr(start, field)
        try:
            if source:
                find(source)
        except WeightsError as error:
            problems.append(f"init.{field} is {source!r}: {error}")
    raise_listed(problems)


def start_or_resume(run: Run) -> Position:
    """Returns the newest good checkpoint of the run, or its beginning."""
    settings = run.settings
    state = _fresh_state(run)

    def check(meta: Meta, fits: bool) -> list[str]:
        return check_resumable(
            meta.config,
            identity(run),
            allow_change=settings.allow_change,
            workdir=str(run.directory.path),
            fits=fits,
        )

    restored = run.checkpoints.restore(state, _step_to_restore(run), check)
    if restored is not None:
        _warn_of_other_environment(restored.meta.environment, environment(run.parallel))
        position = Position(
            restored.step,
            run.parallel.put_state(restored.state),
            restored.meta.iterator_state,
            list(restored.meta.history),
            restored.meta.window,
        )
        run.checkpoints.go_on_from(restored)
        run.progress.say(f"going on from step {restored.step} in {run.directory.path}")
        return position
    start = settings.start
    if start.backbone or start.model or start.bases:
        state = _fresh_state(run, _load_weights(run, state.variables()))
    run.progress.say(f"a new run in {run.directory.path}: {_describe(run, state)}")
    return Position(0, run.parallel.put_state(state), "", [], {})


def _step_to_restore(run: Run) -> int | None:
    """Returns the step of `checkpoint.restore_step`; None for the newest, to which a run has gone
    on once it was taken back to that step."""
    step = run.settings.checkpoints.restore_step
    if step < 0:
        return None
    newest = run.checkpoints.newest_meta()
    if (
        newest is None
        or newest[0] <= step
        or newest[1].config["checkpoint"]["restore_step"] != step
    ):
        return step
    run.progress.say(
        f"checkpoint.restore_step={step} was done at an earlier start; the run has gone on to "
        f"step {newest[0]} from there. To go back once more, delete the later checkpoints in "
        f"{run.checkpoints.directory}"
    )
    return None


def save(run: Run, position: Position) -> None:
    """Begins a checkpoint of this moment."""
    meta = Meta(
        config=identity(run),
        iterator_state=position.iterator_state,
        history=[dict(entry) for entry in position.history],
        environment=environment(run.parallel),
        window=position.window,
    )
    run.checkpoints.save(position.step, run.parallel.get_state(position.state), meta)


def identity(run: Run) -> dict[str, Any]:
    """Returns what makes a run this run: its config, and the records it is trained on."""
    section, field = DATA_FIELD.split(".")
    fields = run.settings.fields
    return {**fields, section: {**fields[section], field: run.fingerprint}}


def environment(parallel: Parallel) -> dict[str, Any]:
    """Returns what bit-equal results depend on in addition to the config."""
    space = parallel.layout.space
    return {
        "flaxseg": flaxseg.__version__,
        "jax": jax.__version__,
        "devices": parallel.device_count,
        "device_kind": jax.devices()[0].device_kind,
        **({"space": space} if space > 1 else {}),
    }


def check_resumable(
    saved: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    allow_change: str,
    workdir: str,
    fits: bool = True,
) -> list[str]:
    """Checks that a config would not make a resumed run another run.

    Args:
      saved: the config that the checkpoint holds, as `config_to_dict` gives it.
      given: the config of this start, in the same form.
      allow_change: fields that may differ all the same, as a list; "all" for any.
      workdir: the run's folder, for the message.
      fits: whether the checkpoint has the arrays of the given config, so that it could go on.

    Returns:
      The fields that differ and may, with both values, in words.

    Raises:
      ConfigError: listing each field that differs, with both values, unless it is one of
        `FREE_FIELDS` or is named in `allow_change`.
    """
    allowed = names_in(allow_change)
    changes = {
        name: f"{name}: was {old!r}, is {new!r}"
        for name, old, new in changed_fields(saved, given)
        if not _is_under(name, FREE_FIELDS)
    }
    refused = [name for name in changes if "all" not in allowed and not _is_under(name, allowed)]
    if refused:
        lines = "\n".join(f"  - {changes[name]}" for name in refused)
        way_out = (
            f"or resume it all the same with --config.allow_change={','.join(refused)}"
            if fits
            else "for its checkpoints hold other arrays; to start from its best model, add "
            f"--config.init.model={workdir} --config.init.reinit_head=True"
        )
        raise ConfigError(
            f"the run in {workdir} was started with other settings, and continuing it would "
            f"give neither run's result:\n{lines}\nStart a new run with another --workdir, "
            f"{way_out}"
        )
    return list(changes.values())


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Returns `(name, old value, new value)` of each field that differs; "not set" if missing."""
    old_fields, new_fields = flat_fields(old), flat_fields(new)
    names = [*new_fields, *(name for name in old_fields if name not in new_fields)]
    missing = "not set"
    return [
        (name, old_fields.get(name, missing), new_fields.get(name, missing))
        for name in names
        if old_fields.get(name, missing) != new_fields.get(name, missing)
    ]


def _is_under(name: str, fields: Iterable[str]) -> bool:
    """Returns whether `name` is one of `fields` or inside one of them."""
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def _fresh_state(run: Run, variables: Mapping[str, Any] | None = None) -> TrainState:
    """Returns the state before the first step, with given variables or random ones."""
    settings = run.settings
    return create_state(
        run.model,
        run.tx,
        settings.seed,
        settings.data.crop_size,
        ema=settings.step.ema_decay > 0,
        variables=variables,
    )


def _load_weights(run: Run, variables: dict[str, Any]) -> dict[str, Any]:
    """Returns the variables with those to start from in place of random ones; says what it did."""
    from flaxseg import weights  # as above

    start = run.settings.start
    if start.bases:
        variables, kernels = weights.load_bases(
            variables, start.bases, class_names=run.settings.data.info.class_names
        )
        run.progress.say(f"bases from {start.bases} in {len(kernels)} layers")
    if not (start.model or start.backbone):
        return variables
    if start.model:
        variables, report = weights.load_into(variables, start.model, reinit_head=start.reinit_head)
    else:
        variables, report = weights.load_backbone(run.model, variables, start.backbone)
    run.progress.say(str(report))
    return variables


def _describe(run: Run, state: TrainState) -> str:
    """Returns what a new run is, in one line."""
    settings = run.settings
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    space = run.parallel.layout.space
    split = f", {space} to an image" if space > 1 else ""
    return (
        f"{settings.model.name} on {settings.model.options['backbone']}, {count / 1e6:.1f} M "
        f"parameters, {settings.data.info.name} with {settings.data.info.num_classes} classes, "
        f"{settings.timetable.steps} steps of {settings.batch_size} images on "
        f"{run.parallel.device_count} x {jax.devices()[0].device_kind}{split}"
    )


def _warn_of_other_environment(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    saved, here = ({"space": 1, **facts} for facts in (saved, here))
    changed = [f"{k}: was {saved.get(k)}, is {v}" for k, v in here.items() if saved.get(k) != v]
    if changed:
        _log.warning(
            "the run goes on in another environment (%s); it is the same run, but its results are "
            "equal only up to rounding.",
            "; ".join(changed),
        )
