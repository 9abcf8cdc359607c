"""Opens what a run is made of, from its settings."""

import dataclasses
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import optax

from flaxseg import data
from flaxseg.inference import Segmenter
from flaxseg.training.checkpoint import Checkpoints
from flaxseg.training.network import Network
from flaxseg.training.parallel import Parallel, make_parallel
from flaxseg.training.run_directory import RunDirectory
from flaxseg.training.run_progress import RunProgress
from flaxseg.training.run_settings import DataSettings, Settings
from flaxseg.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Run:
    """Holds what stays the same from the first step to the last.

    Attributes:
      settings: all that the config says.
      fingerprint: of the prepared records.
      directory: where the run is kept.
      model: the model to train.
      segmenter: runs the model in evaluations, which bring their variables.
      tx: its optimizer.
      step: one step, not yet compiled.
      parallel: how steps are spread over devices.
      records: to evaluate on.
      checkpoints: what was saved so far.
      progress: what the user sees.
    """

    settings: Settings
    fingerprint: str
    directory: RunDirectory
    model: nn.Module
    segmenter: Segmenter
    tx: optax.GradientTransformation
    step: Callable
    parallel: Parallel
    records: Sequence[data.Record]
    checkpoints: Checkpoints
    progress: RunProgress


def open_run(settings: Settings, network: Network, directory: RunDirectory) -> Run:
    """Returns the run in a folder; nothing is read from a checkpoint yet."""
    own, layout = settings.data, settings.layout
    return Run(
        settings=settings,
        fingerprint=data.read_manifest(own.name, own.dir).fingerprint,
        directory=directory,
        model=network.model,
        segmenter=Segmenter(
            network.model, {}, settings.evaluation.protocol, devices=jax.local_devices()
        ),
        tx=network.tx,
        step=make_train_step(
            network.model,
            network.tx,
            schedule=settings.schedule,
            objective=settings.objective,
            **vars(settings.step),
        ),
        parallel=make_parallel(layout.kind, mesh={"data": layout.data, "space": layout.space}),
        records=_open_records(own),
        checkpoints=Checkpoints(
            directory.checkpoints,
            keep_last=settings.checkpoints.keep_last,
            keep_best=settings.checkpoints.keep_best,
        ),
        progress=RunProgress(settings.timetable.steps, enabled=jax.process_index() == 0),
    )


def open_batches(run: Run) -> data.TrainBatches:
    """Returns the iterator over this process's part of the batches, at its beginning."""
    own = run.settings.data
    fill = tuple(round(value) for value in run.model.normalization.mean)
    return data.train_batches(
        own.name,
        own.train_split,
        data_dir=own.dir,
        batch_size=run.settings.batch_size,
        crop_size=own.crop_size,
        augmentation=dataclasses.replace(own.augmentation, fill=fill),
        seed=run.settings.seed,
        num_threads=None if own.num_threads < 0 else own.num_threads,
        num_workers=own.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        skip_broken=own.skip_broken,
        cache_dir=own.cache_dir,
    )


def _open_records(own: DataSettings) -> Sequence[data.Record]:
    records = data.open_split(own.name, own.eval_split, own.dir)
    return data.CachedRecords(records, own.cache_dir) if own.cache_dir else records
