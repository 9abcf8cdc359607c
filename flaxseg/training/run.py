"""A run opened from its config: what it is made of, and where it stands."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import config_dict

import flaxseg
from flaxseg import data
from flaxseg.errors import ConfigError
from flaxseg.models import MODELS, create_model
from flaxseg.training.checkpoint import Checkpoints
from flaxseg.training.config import (
    DATA_FIELD,
    check_resumable,
    config_to_dict,
    data_name,
    mesh_in,
    names_in,
    rates_in,
)
from flaxseg.training.optimizer import make_optimizer
from flaxseg.training.parallel import Parallel, make_parallel
from flaxseg.training.progress import Progress
from flaxseg.training.run_directory import RunDirectory
from flaxseg.training.schedules import Schedule, make_schedule
from flaxseg.training.state import TrainState, create_state

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same from the first step to the last."""

    config: config_dict.ConfigDict
    identity: dict[str, Any]  # the config and the data, as a checkpoint holds them
    directory: RunDirectory
    info: data.DatasetInfo
    model: nn.Module
    tx: optax.GradientTransformation
    schedule: Schedule
    parallel: Parallel
    records: Sequence[data.Record]  # to evaluate on
    checkpoints: Checkpoints
    progress: Progress


@dataclasses.dataclass
class Position:
    """How far a run is."""

    step: int
    state: TrainState
    iterator_state: str
    history: list[dict[str, Any]]


def open_run(config: config_dict.ConfigDict, directory: RunDirectory) -> Run:
    """Make all that the config describes; nothing is read from a checkpoint yet."""
    data_set = data_name(config)
    info = data.dataset_info(data_set)
    manifest = data.read_manifest(data_set, config.data.dir)
    identity = config_to_dict(config)
    section, field = DATA_FIELD.split(".")
    identity[section][field] = manifest.fingerprint
    parallel = make_parallel(config.parallel, mesh=mesh_in(config.mesh))
    model, shapes = _create_model(config, info.num_classes, parallel)
    optimizer = config.optimizer.to_dict()
    for name in ("learning_rate", "accumulate_steps", "ema_decay"):
        del optimizer[name]
    for name in ("head", "frozen"):
        optimizer[name] = names_in(optimizer[name])
    optimizer["lr_multipliers"] = rates_in(optimizer["lr_multipliers"])
    return Run(
        config=config,
        identity=identity,
        directory=directory,
        info=info,
        model=model,
        tx=make_optimizer(shapes["params"], **optimizer),
        schedule=make_schedule(
            learning_rate=config.optimizer.learning_rate,
            steps=config.steps,
            **config.schedule.to_dict(),
        ),
        parallel=parallel,
        records=_open_records(config),
        checkpoints=Checkpoints(
            directory.checkpoints,
            keep_last=config.checkpoint.keep_last,
            keep_best=config.checkpoint.keep_best,
        ),
        progress=Progress(config.steps, enabled=jax.process_index() == 0),
    )


def _open_records(config: config_dict.ConfigDict) -> Sequence[data.Record]:
    """The records to evaluate on."""
    records = data.open_split(data_name(config), config.data.eval_split, config.data.dir)
    if config.data.cache_dir:
        return data.CachedRecords(records, config.data.cache_dir)
    return records


def _create_model(
    config: config_dict.ConfigDict, num_classes: int, parallel: Parallel
) -> tuple[nn.Module, dict[str, Any]]:
    """The model to train and the shapes of its variables; ConfigError if there is no such model."""
    try:
        model = create_model(
            config.model.name,
            num_classes=num_classes,
            batch_norm_axis=parallel.batch_norm_axis,
            frozen_batch_norm=config.model.frozen_batch_norm,
            remat=config.remat,
            **model_options(config),
        )
        return model, _shapes(model, config.data.crop_size)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"config.model can not be made: {error}") from error


def model_options(config: config_dict.ConfigDict) -> dict[str, Any]:
    """The arguments of `create_model` that its parameters and its results depend on."""
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


def _shapes(model: nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    """Shapes of the model's variables; nothing is computed."""
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def start_or_resume(run: Run) -> Position:
    """The newest good checkpoint of the run, or its beginning."""
    config = run.config
    ema = config.optimizer.ema_decay > 0
    state = create_state(run.model, run.tx, config.seed, tuple(config.data.crop_size), ema=ema)
    step = config.checkpoint.restore_step
    restored = run.checkpoints.restore(state, step if step >= 0 else None)
    if restored is not None:
        check_resumable(
            restored.meta.config,
            run.identity,
            allow_change=config.allow_change,
            workdir=str(run.directory.path),
        )
        _warn_of_other_environment(restored.meta.environment, environment(run.parallel))
        run.progress.say(f"going on from step {restored.step} in {run.directory.path}")
        return Position(
            restored.step,
            run.parallel.put_state(restored.state),
            restored.meta.iterator_state,
            list(restored.meta.history),
        )
    if config.init.backbone or config.init.model or config.init.bases:
        variables = _load_weights(run, state.variables())
        state = create_state(
            run.model,
            run.tx,
            config.seed,
            tuple(config.data.crop_size),
            ema=ema,
            variables=variables,
        )
    run.progress.say(f"a new run in {run.directory.path}: {_describe(run, state)}")
    return Position(0, run.parallel.put_state(state), "", [])


def _load_weights(run: Run, variables: dict[str, Any]) -> dict[str, Any]:
    """Replace random values by those of `init.bases`, then of `init.backbone` or `init.model`; says
    what was loaded."""
    from flaxseg import weights

    init = run.config.init
    if init.bases:
        variables, kernels = weights.load_bases(
            variables, init.bases, class_names=run.info.class_names
        )
        run.progress.say(f"bases from {init.bases} in {len(kernels)} layers")
    if not (init.model or init.backbone):
        return variables
    if init.model:
        variables, report = weights.load_into(variables, init.model, reinit_head=init.reinit_head)
    else:
        variables, report = weights.load_backbone(run.model, variables, init.backbone)
    run.progress.say(str(report))
    return variables


def _describe(run: Run, state: TrainState) -> str:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    devices, space = run.parallel.device_count, run.parallel.space
    kind = jax.devices()[0].device_kind
    split = f", {space} to a picture" if space > 1 else ""
    return (
        f"{run.config.model.name} on {run.config.model.backbone}, {count / 1e6:.1f} M parameters, "
        f"{run.info.name} with {run.info.num_classes} classes, {run.config.steps} steps of "
        f"{run.config.batch_size} images on {devices} x {kind}{split}"
    )


def environment(parallel: Parallel) -> dict[str, Any]:
    """What bit-equal results depend on beside the config."""
    return {
        "flaxseg": flaxseg.__version__,
        "jax": jax.__version__,
        "devices": parallel.device_count,
        "device_kind": jax.devices()[0].device_kind,
        **({"space": parallel.space} if parallel.space > 1 else {}),
    }


def _warn_of_other_environment(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    saved, here = ({"space": 1, **facts} for facts in (saved, here))
    changed = [f"{k}: was {saved.get(k)}, is {v}" for k, v in here.items() if saved.get(k) != v]
    if changed:
        _log.warning(
            "the run goes on in another environment (%s); it is the same run, but its results are "
            "equal only up to rounding.",
            "; ".join(changed),
        )
